//! The checks against our own vfio-user server, whole and with models that are not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use control::Transport;
use device::{Bus, Description, Migratable, PrecopyInfo, Runner, Settle, StateArc, Work};
use models::accel::{self, Accel};
use models::uart::{self, Uart};
use states::v2::{Capabilities, State};
use sys::socket::Listener;
use vfio_migrate_conformance::{Finding, Options, Verdict, run, select};
use vfio_user::client::{Client, ClientOptions, NoDma};
use vfio_user::server::{Server, ServerOptions, Stop};

/// A server in a thread of its own.
struct Served {
    folder: tempfile::TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(model: Box<dyn Migratable>) -> Served {
        Served::with(model, ServerOptions::default())
    }

    fn with(model: Box<dyn Migratable>, options: ServerOptions) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("device")).unwrap();
        let mut server = Server::new(Runner::new(model).unwrap(), options).unwrap();
        let stop = Stop::new().unwrap();
        let told = stop.clone();
        let thread = std::thread::spawn(move || server.serve(listener, &told).unwrap());
        Served { folder, stop, thread: Some(thread) }
    }

    fn client(&self, options: ClientOptions) -> Arc<dyn Transport> {
        Arc::new(Client::connect(&self.folder.path().join("device"), options).unwrap())
    }

    fn check(&self, only: &[&str]) -> Vec<Finding> {
        let options = ClientOptions::new("device", Arc::new(NoDma));
        check(self.client(options), only)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn check(transport: Arc<dyn Transport>, only: &[&str]) -> Vec<Finding> {
    let only: Vec<String> = only.iter().map(|id| (*id).to_owned()).collect();
    let checks = select(&only).unwrap();
    run(transport, &checks, &Options::default(), &mut |_| {}).unwrap()
}

fn uart(capabilities: Capabilities) -> Box<dyn Migratable> {
    Box::new(Uart::new(uart::Parameters { ports: 2, capabilities }).unwrap())
}

fn accel(capabilities: Capabilities) -> Box<dyn Migratable> {
    let parameters =
        accel::Parameters { firmware: 32 << 10, capabilities, ..Default::default() };
    Box::new(Accel::new(parameters).unwrap())
}

/// What is skipped over vfio-user, whatever the device has.
const SKIPPED: [&str; 7] = [
    "7.descriptor",
    "12.no-descriptors",
    "12.error",
    "14.p2p",
    "17.argsz",
    "22.races",
    "23.complete",
];

/// What is skipped of a device without PRE_COPY.
const PRE_COPY: [&str; 12] = [
    "4.from-pre-copy",
    "4.from-pre-copy-p2p",
    "5.back",
    "8.one-stream",
    "15.temporary",
    "16.any-amount",
    "17.start",
    "17.falls",
    "17.elsewhere",
    "18.silent",
    "18.asked",
    "17.argsz",
];

/// What is skipped of a device without P2P.
const P2P: [&str; 2] = ["4.from-running-p2p", "4.from-pre-copy-p2p"];

fn obeys(model: fn(Capabilities) -> Box<dyn Migratable>) {
    for capabilities in Capabilities::EVERY {
        for finding in Served::start(model(capabilities)).check(&[]) {
            let id = finding.check.id;
            let skipped = SKIPPED.contains(&id)
                || (!capabilities.pre_copy()
                    && PRE_COPY.contains(&id)
                    && id != "17.elsewhere")
                || (!capabilities.p2p() && P2P.contains(&id));
            let expected = if skipped { Verdict::Skipped } else { Verdict::Pass };
            assert_eq!(
                finding.verdict, expected,
                "{capabilities}: {id}: {}",
                finding.saw
            );
        }
    }
}

#[test]
fn the_uart_obeys_with_every_set_of_capabilities() {
    obeys(uart);
}

#[test]
fn the_accelerator_obeys_with_every_set_of_capabilities() {
    obeys(accel);
}

#[test]
fn a_server_without_our_additions_is_not_accused_of_what_it_cannot_know() {
    let options = ServerOptions { additions: false, ..ServerOptions::default() };
    let served = Served::with(uart(Capabilities::ALL), options);
    let findings = served.check(&[]);
    for finding in &findings {
        let id = finding.check.id;
        assert_ne!(finding.verdict, Verdict::Fail, "{id}: {}", finding.saw);
    }
    let skipped = |id: &str| {
        let found = findings.iter().find(|finding| finding.check.id == id).unwrap();
        assert_eq!(found.verdict, Verdict::Skipped, "{id}: {}", found.saw);
    };
    ["17.start", "18.asked", "19.bound"].into_iter().for_each(skipped);
}

#[test]
fn a_device_of_another_generation_is_told_and_not_tried() {
    let front = device::front::FrontOptions::new(device::front::Generation::V1);
    let options = ServerOptions { front: Some(front), ..ServerOptions::default() };
    let findings = Served::with(uart(Capabilities::ALL), options).check(&[]);
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(findings[0].saw.contains("no v2 migration"), "{}", findings[0].saw);
    let moved = findings.iter().filter(|finding| finding.check.id == "2.reset");
    for finding in moved {
        assert_eq!(finding.verdict, Verdict::Skipped, "{}", finding.saw);
    }
}

/// What a model does wrong, behind a server that does all it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sin {
    /// It takes half a state for a whole one.
    TakesHalf,
    /// It says that there is less than there is.
    SaysLess,
    /// It forgets what was read in pre-copy, and starts over.
    StartsOver,
    /// It counts each save, in what it saves.
    Counts,
    /// Its initial bytes never end.
    NeverDone,
    /// It never settles.
    NeverSettles,
}

struct Sinner {
    model: Box<dyn Migratable>,
    sin: Sin,
    saves: u8,
}

impl Migratable for Sinner {
    fn describe(&self) -> Description {
        self.model.describe()
    }

    fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.model.read(region, offset, into)
    }

    fn write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        self.model.write(region, offset, data, bus)
    }

    fn reset(&mut self) {
        self.model.reset();
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        let stops = arc.to == State::StopCopy;
        if stops && self.sin == Sin::NeverSettles {
            return Ok(Settle::Later);
        }

        if stops {
            self.saves = self.saves.wrapping_add(1);
        }
        if stops && self.sin == Sin::StartsOver && arc.from.is_saving() {
            let over = StateArc { from: arc.from, to: State::RunningP2p };
            let _ = self.model.enter(over, bus)?;
            let arc = StateArc { from: State::Stop, to: State::StopCopy };
            return self.model.enter(arc, bus);
        }
        self.model.enter(arc, bus)
    }

    fn settled(&mut self, _: &mut dyn Bus) -> Result<Settle, Errno> {
        Ok(Settle::Later)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let read = self.model.save(into)?;
        if self.sin == Sin::Counts && read == 96 {
            into[40] = self.saves;
        }
        Ok(read)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let info = self.model.precopy_info()?;
        let more = u64::from(self.sin == Sin::NeverDone);
        Ok(PrecopyInfo { initial_bytes: info.initial_bytes + more, ..info })
    }

    fn stop_copy_bytes(&self) -> u64 {
        match self.sin {
            Sin::SaysLess => 50,
            _ => self.model.stop_copy_bytes(),
        }
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.model.load(data)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        match self.model.loaded() {
            Err(_) if self.sin == Sin::TakesHalf => Ok(()),
            other => other,
        }
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        self.model.work(bus, now)
    }
}

fn sinner(sin: Sin) -> Box<dyn Migratable> {
    let model = uart(Capabilities::ALL);
    Box::new(Sinner { model, sin, saves: 0 })
}

#[test]
fn a_model_that_breaks_a_rule_is_found_through_a_server_that_does_not() {
    for (sin, ids) in [
        (Sin::TakesHalf, &["21.empty", "21.truncated"][..]),
        (Sin::SaysLess, &["19.bound"]),
        (Sin::StartsOver, &["8.one-stream", "16.any-amount"]),
        (Sin::Counts, &["13.still", "20.reads"]),
        (Sin::NeverDone, &["17.falls"]),
    ] {
        let findings = Served::start(sinner(sin)).check(&[]);
        for id in ids {
            let found = findings.iter().find(|finding| finding.check.id == *id).unwrap();
            assert_eq!(found.verdict, Verdict::Fail, "{sin:?}: {id}: {}", found.saw);
        }
    }
}

#[test]
fn a_server_that_does_not_answer_in_time_is_given_up() {
    let served = Served::start(sinner(Sin::NeverSettles));
    let options = ClientOptions {
        state_deadline: Duration::from_millis(300),
        ..ClientOptions::new("device", Arc::new(NoDma))
    };
    let began = Instant::now();
    let findings = check(served.client(options), &["2", "4", "13", "23"]);
    assert!(began.elapsed() < Duration::from_secs(20));
    let lost = findings.iter().position(|it| it.verdict == Verdict::Fail).unwrap();
    assert_eq!(findings[lost].check.id, "2.reset");
    assert!(findings[lost].saw.contains("no answer within 300 ms"));
    for finding in &findings[lost + 1..] {
        assert_eq!(finding.verdict, Verdict::Skipped);
        assert_eq!(finding.saw, "the device was lost in 2.reset");
    }
}

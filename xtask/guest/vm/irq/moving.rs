//! A guest that works in a thread of its own, and moves from one port to another by the
//! engine, as a VMM would have it.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::Machine;
use engine::drive::{Incoming, Outgoing};
use engine::migration::Options;
use engine::migration::sink::Ending;
use port::{Interrupts, Vcpus, VmmError};

use super::Place;
use super::guest::{Guest, Leave};
use super::wiring::{Kind, Wiring};
use crate::{PATIENCE, expect, said};

/// The longest that a migration may take: a guest is slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// How many bytes a guest writes between two moves, at the least.
const BYTES: u64 = 30;

/// How many steps it makes at a time.
const STEPS: u32 = 8;

/// Where the destination gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    No,
    Bind,
    Deliver,
}

impl Refusal {
    /// What its error says.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Refusal::No => "none",
            Refusal::Bind => "no interrupt left",
            Refusal::Deliver => "no guest to interrupt",
        }
    }
}

/// A guest, and where it is.
pub(crate) struct Vm {
    kind: Kind,
    shared: Arc<Mutex<Shared>>,
    vcpu: Option<JoinHandle<()>>,
    places: Mutex<Vec<Wiring>>,
}

struct Shared {
    guest: Guest,
    /// Where it runs; nowhere while it is stopped.
    at: Option<Place>,
    /// What waited for it as it was stopped.
    waited: u64,
    /// What went wrong, which ends it.
    failed: Option<String>,
    over: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Lets the guest do something where it runs.
    fn run(&mut self, act: impl FnOnce(&mut Guest, &Place) -> Result<(), String>) {
        let Shared { guest, at: Some(at), failed: failed @ None, .. } = self else {
            return;
        };
        *failed = act(guest, at).err();
    }

    fn check(&self) -> Result<(), String> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Vm {
    /// Starts a guest.
    pub(crate) fn start(kind: Kind, at: &Place) -> Result<Vm, String> {
        at.wiring.connect()?;
        let mut guest = Guest::new(kind);
        guest.program(at)?;
        let shared =
            Shared { guest, at: Some(at.clone()), waited: 0, failed: None, over: false };
        let shared = Arc::new(Mutex::new(shared));
        let runs = Arc::clone(&shared);
        let vcpu = thread::spawn(move || {
            while !lock(&runs).over {
                lock(&runs).run(|guest, at| (0..STEPS).try_for_each(|_| guest.step(at)));
                // Whoever wants to stop it has to get the lock.
                thread::sleep(Duration::from_micros(20));
            }
        });
        let places = Mutex::new(vec![at.wiring.clone()]);
        Ok(Vm { kind, shared, vcpu: Some(vcpu), places })
    }

    /// Waits until the guest has written some more bytes.
    pub(crate) fn work(&self) -> Result<(), String> {
        let enough = lock(&self.shared).guest.sent() + BYTES;
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            // Looking all the time would take a CPU from it.
            thread::sleep(Duration::from_millis(1));
            let shared = lock(&self.shared);
            shared.check()?;
            if shared.guest.sent() >= enough {
                return Ok(());
            }
        }
        Err(format!("the guest does not write {BYTES} bytes in {DEADLINE:?}"))
    }

    /// Moves the guest.
    pub(crate) fn migrate(
        &self,
        from: &Place,
        to: &Place,
        leave: Leave,
        refusal: Refusal,
    ) -> Result<(), String> {
        let mut known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|one| one.is(&to.wiring)) {
            known.push(to.wiring.clone());
        }
        drop(known);
        let before = to.wiring.counts().delivered;
        let uri = "unix:/tmp/irq.sock".parse().map_err(said("the place"))?;
        let listener = link::listen(&uri).map_err(said("listen"))?;
        let (control, dialer) = link::dial(&uri, PATIENCE).map_err(said("dial"))?;
        let (accepted, accept) = listener.accept(PATIENCE).map_err(said("accept"))?;
        // An emulated machine is slow, and its host may have other things to do.
        let options = Options { downtime_limit: DEADLINE, ..Options::default() };
        let patience = options.patience;
        let store = || store::Memory::new().map_err(said("random bytes"));
        let attempt = store::new_attempt().map_err(said("random bytes"))?;
        let there = self.machine(to, None, refusal)?;
        let outgoing = Outgoing::new(
            self.machine(from, Some(leave), Refusal::No)?,
            Box::new(control),
            Box::new(dialer),
            Box::new(store()?),
            attempt,
            options,
        );
        let incoming = Incoming::new(
            Box::new(accepted),
            Box::new(accept),
            Box::new(store()?),
            [7; 8],
            patience,
            Box::new(move |_| Ok(there)),
        );
        let (to_sent, sent) = channel();
        let (to_received, received) = channel();
        thread::spawn(move || drop(to_sent.send(outgoing.run())));
        thread::spawn(move || drop(to_received.send(incoming.run())));
        let sent = sent.recv_timeout(DEADLINE).map_err(said("the source"))?;
        let received =
            received.recv_timeout(DEADLINE).map_err(said("the destination"))?;
        lock(&self.shared).check()?;
        let drained = from.wiring.counts().drained;
        let by_hand = from.wiring.by_hand();
        if from.kernel
            && by_hand
            && let Some(expected) = leave.drained(self.kind)
        {
            expect(format_args!("drained, {leave:?}"), drained, expected)?;
        }
        sent.result.map_err(|error| format!("{error:?}"))?;
        if received.ending != (Ending::Running { paused: false }) {
            return Err(format!("the destination: {:?}", received.ending));
        }
        if by_hand {
            let delivered = to.wiring.counts().delivered - before;
            expect(format_args!("delivered, {leave:?}"), delivered, drained)?;
        }
        from.wiring.disconnect()
    }

    fn machine(
        &self,
        at: &Place,
        leave: Option<Leave>,
        refusal: Refusal,
    ) -> Result<Machine, String> {
        let device =
            control::open_any(Arc::clone(&at.device)).map_err(said("its data"))?;
        let mut machine = Machine::devices_only(vec![Box::new(device)], false, true);
        let paused = leave.is_none();
        let shared = Arc::clone(&self.shared);
        machine.vcpus = Box::new(Vcpu { shared, at: at.clone(), leave, paused });
        let (config, interrupts) = at.wiring.ports();
        machine.devices[0].config = config;
        machine.devices[0].interrupts = Some(Box::new(Wired { interrupts, refusal }));
        Ok(machine)
    }

    /// Lets the guest handle what is left, and settles the account.
    pub(crate) fn end(mut self) -> Result<String, String> {
        let mut shared = lock(&self.shared);
        shared.run(Guest::settle);
        shared.over = true;
        shared.check()?;
        let mut known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = &shared.at
            && !at.wiring.by_hand()
        {
            // Its account has moved with it.
            at.wiring.look()?;
            *known = vec![at.wiring.clone()];
        }
        let counts: Vec<_> = known.iter().map(Wiring::counts).collect();
        let waiting: u64 = known.iter().map(Wiring::waiting).sum();
        drop(known);
        let (mut signals, mut raised) = (0, 0);
        for one in &counts {
            signals += one.signals;
            raised += one.raised;
        }
        let guest = &shared.guest;
        let told = guest.told();
        expect("raised and not handled", waiting, 0)?;
        expect("handled of what was raised", guest.handled(), raised)?;
        let provoked = guest.provoked();
        drop(shared);
        self.stop();
        Ok(match signals {
            0 => told,
            _ if signals == provoked => format!("{told}, {signals} signals"),
            // Our uart says it again to whoever listens after a move.
            _ => format!("{told}, {signals} signals with those of our uart"),
        })
    }

    fn stop(&mut self) {
        lock(&self.shared).over = true;
        if let Some(vcpu) = self.vcpu.take() {
            let _ = vcpu.join();
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The vCPU, as the engine has it on each side.
struct Vcpu {
    shared: Arc<Mutex<Shared>>,
    at: Place,
    /// What the guest has to leave undone as it is stopped here.
    leave: Option<Leave>,
    paused: bool,
}

impl Vcpus for Vcpu {
    fn pause(&mut self) -> Result<(), VmmError> {
        let mut shared = lock(&self.shared);
        let mut waited = 0;
        if let Some(leave) = self.leave {
            shared.run(|guest, at| {
                guest.leave(at, leave)?;
                at.wiring.look()?;
                waited = at.wiring.waiting();
                Ok(())
            });
            shared.waited = waited;
        }
        shared.at = None;
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        let mut shared = lock(&self.shared);
        shared.at = Some(self.at.clone());
        let (arrives, waited) = (self.leave.is_none(), shared.waited);
        shared.run(|guest, at| {
            if arrives {
                guest.arrive(at)?;
            }
            // Our uart may say it again as soon as it runs.
            if at.kernel {
                expect(
                    "interrupts that wait, where it goes on",
                    at.wiring.waiting(),
                    waited,
                )?;
            }
            Ok(())
        });
        self.paused = false;
        Ok(())
    }

    fn paused(&self) -> bool {
        self.paused
    }
}

/// The interrupt as the engine has it, which may be refused.
struct Wired {
    interrupts: Box<dyn Interrupts>,
    refusal: Refusal,
}

impl Wired {
    fn unless(&self, refusal: Refusal) -> Result<(), VmmError> {
        if self.refusal == refusal {
            return Err(VmmError::new("the test", "go on", refusal.word()));
        }
        Ok(())
    }
}

impl Interrupts for Wired {
    fn bind(&mut self) -> Result<(), VmmError> {
        self.unless(Refusal::Bind)?;
        self.interrupts.bind()
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        self.interrupts.unbind()
    }

    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        self.interrupts.drain()
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        self.unless(Refusal::Deliver)?;
        self.interrupts.deliver(pending)
    }
}

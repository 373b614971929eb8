//! `vfio-migrate demo`: a live migration between processes of this host, checked.
//!
//! ```text
//!   serve x N --vfio-user-- guest run ====TCP====> guest receive --vfio-user-- serve x N
//!                               \                      /
//!                          control socket       control socket
//!                                 \                  /
//!                                         demo
//! ```
//!
//! Nothing of the migration happens in this process: it starts the others, asks and
//! tells them over their control sockets, and compares what the two guests wrote down.
//! Where it repeats, the process that the guest has left receives it again.

mod matrix;
mod plan;
mod process;
mod repeat;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::plan::Plan;
use self::process::{Crew, Folder, Process, Starter};
use super::ctl::{self, PATIENCE, Refused, talk};
use crate::args::{Demo, Generation, Global};
use crate::exit::Exit;
use crate::guest::check;
use crate::progress::Show;
use crate::report::{Problem, Summary};

/// How long the processes may take to be ready; memory is touched meanwhile.
const READY: Duration = Duration::from_secs(30);
/// How long the guest may take to do what it is waited for.
const WORK: Duration = Duration::from_secs(30);
/// How often the guest is asked what it did.
const PACE: Duration = Duration::from_millis(20);
/// How many pages the vCPUs, and blocks or bytes each device, have to write at the
/// destination before everything is checked once more.
const AFTERWARDS: u64 = 256;
/// Where a guest is awaited: the process says at which port.
const ANYWHERE: &str = "tcp:127.0.0.1:0";
/// What is said of one that does not.
const NO_PLACE: &str = "the destination does not say where it listens";
/// How many differences are told.
const TOLD: usize = 20;

/// Runs the demo, once or again and again, or all of the matrix.
///
/// # Errors
/// When a process does not start or dies, or a guest refuses. A migration that did not
/// complete, or that the check found to be wrong, is no error but a report; in the matrix
/// everything is.
pub(super) fn run(demo: &Demo, global: &Global) -> Result<Exit> {
    let plans = Plan::all(demo)?;
    let crew = Crew::default();
    let watch = crew.watch_signals()?;
    let done = match plans.as_slice() {
        [plan] if plan.repeat > 1 => repeat::run(plan, global, &crew),
        [plan] if !demo.matrix => {
            let show = Show::new(global.json, global.verbose > 0);
            perform(plan, global, &crew, Some(&show))
                .and_then(|summary| ctl::tell(&summary, global.json))
        }
        plans => matrix::run(plans, global, &crew),
    };
    drop(watch);
    if crew.interrupted() {
        bail!("interrupted: all processes of the demo were ended");
    }
    done
}

/// One migration, from the first process to the last. Without `show` nobody is told how
/// far it is.
fn perform(
    plan: &Plan,
    global: &Global,
    crew: &Crew,
    show: Option<&Show>,
) -> Result<Summary> {
    let pair = Pair::start(plan, global, crew)?;
    if let Some(show) = show {
        show.note(&pair.introduction());
    }
    pair.migrate(plan, crew, show)
}

/// Both guests, the servers of their devices, and what they share.
struct Pair {
    /// Where the guest is.
    here: Side,
    /// Where it is awaited.
    there: Side,
    /// And at which place there.
    to: String,
    _folder: Folder,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for side in [&self.here, &self.there] {
            // What does not end by itself is ended.
            let _ = side.ask(&json!({ "command": "quit", "discard": true }));
        }
    }
}

impl Pair {
    /// Starts everything, and waits until the guest does something.
    fn start(plan: &Plan, global: &Global, crew: &Crew) -> Result<Pair> {
        let folder = Folder::new()?;
        let (verbose, log) = (global.verbose, global.log.as_deref());
        let starter = Starter::new(folder.path(), verbose, log, crew.clone())?;
        let (here, there, to) = stage(plan, &starter, folder.path())?;
        here.works(&Done::default(), plan, 1)?;
        Ok(Pair { here, there, to, _folder: folder })
    }

    /// Who is who.
    fn introduction(&self) -> String {
        format!(
            "{} devices a side are served; the guest runs in process {} and is awaited in \
             process {}",
            self.here.servers.len(),
            self.here.guest.pid(),
            self.there.guest.pid(),
        )
    }

    /// Migrates the guest, checks it, and stops it.
    fn migrate(&self, plan: &Plan, crew: &Crew, show: Option<&Show>) -> Result<Summary> {
        let request = ctl::migrate_request(&self.to, &plan.budget);
        let answer = talk(&self.here.control, &request, PATIENCE, &mut |progress| {
            if let Some(show) = show {
                show.json(progress);
            }
        })
        .with_context(|| self.here.died())?;
        let mut summary = ctl::summary(&answer)?;
        plan.name(&mut summary);
        summary.source_pid = Some(self.here.guest.pid());
        summary.destination_pid = Some(self.there.guest.pid());
        if summary.outcome == "completed" {
            check(plan, crew, &self.here, &self.there, &mut summary)?;
        }
        Ok(summary)
    }

    /// The guest, which is there and stopped, goes on, and the process that it left
    /// awaits it.
    fn turn(&mut self) -> Result<()> {
        let request = json!({ "command": "receive", "from": ANYWHERE });
        let answer = self.here.ask(&request)?;
        let place = answer.pointer("/waiting/from").and_then(Value::as_str);
        self.to = place.context(NO_PLACE)?.to_owned();
        self.there.ask(&json!({ "command": "resume" }))?;
        std::mem::swap(&mut self.here, &mut self.there);
        Ok(())
    }
}

/// Compares both sides at the stop; lets the destination go on, and checks it again. One
/// that does not go on is no error but what was found.
fn check(
    plan: &Plan,
    crew: &Crew,
    source: &Side,
    destination: &Side,
    summary: &mut Summary,
) -> Result<()> {
    let mut problems = Vec::new();
    if let Err(found) = check::compare_files(&source.digests, &destination.digests)? {
        problems.extend(found);
    }
    match goes_on(plan, destination, summary) {
        Ok(found) => problems.extend(found),
        // It is told beside what was found before, which may say why.
        Err(error) if !crew.interrupted() => problems.push(Problem {
            place: "the guest after it arrived".to_owned(),
            text: format!("{error:#}"),
        }),
        Err(error) => return Err(error),
    }
    summary.verified = Some(problems.is_empty());
    let more = problems.len().saturating_sub(TOLD);
    problems.truncate(TOLD);
    if more > 0 {
        problems.push(Problem {
            place: "further places".to_owned(),
            text: format!("{more} more differences"),
        });
    }
    summary.problems = problems;
    Ok(())
}

/// Lets the destination go on for a while; what is wrong with it then.
fn goes_on(
    plan: &Plan,
    destination: &Side,
    summary: &mut Summary,
) -> Result<Vec<Problem>> {
    let arrived = destination.works(&Done::default(), plan, 0)?;
    summary.downtime_guest_ms = summary.downtime_ms.and(arrived.downtime_guest_ms);
    destination.works(&arrived, plan, AFTERWARDS)?;
    let frozen = destination.ask(&json!({ "command": "freeze" }))?;
    let found = frozen.get("problems").and_then(Value::as_array).into_iter().flatten();
    let problem = |found: &Value| match serde_json::from_value(found.clone()) {
        Ok(problem) => problem,
        Err(_) => Problem {
            place: "the guest after it ran on".to_owned(),
            text: found.as_str().map_or_else(|| found.to_string(), str::to_owned),
        },
    };
    Ok(found.map(problem).collect())
}

/// One guest and the servers of its devices. The guest ends first.
struct Side {
    guest: Process,
    servers: Vec<Process>,
    control: PathBuf,
    digests: PathBuf,
}

/// Starts everything, and waits until all of it is ready: the source, the destination, and
/// the place where that waits.
fn stage(plan: &Plan, starter: &Starter, folder: &Path) -> Result<(Side, Side, String)> {
    let deadline = Instant::now() + READY;
    let serve = |side: &str, generation: Generation| -> Result<Vec<Process>> {
        (0..plan.devices)
            .map(|n| {
                let name = format!("{side}{n}");
                let socket = folder.join(format!("{name}.sock"));
                let arguments = [
                    "serve".to_owned(),
                    format!("--model={}", plan.model),
                    format!("--ports={}", plan.ports),
                    format!("--name={name}"),
                    format!("--socket={}", socket.display()),
                    format!("--capabilities={}", plan.capabilities),
                    format!("--memory={}", plan.device_memory.bytes()),
                    format!("--generation={generation}"),
                ];
                starter.start(&name, &arguments)
            })
            .collect()
    };
    let (from, to) = plan.generation;
    let mut servers = [serve("source", from)?, serve("destination", to)?];
    for server in servers.iter_mut().flatten() {
        server.ready(deadline)?;
    }
    let machine = |side: &str| {
        let mut arguments = vec![
            format!("--memory={}", plan.guest_memory.bytes()),
            format!("--vcpus={}", plan.vcpus),
            format!("--dirty-rate={}", plan.dirty_rate.bytes_per_second()),
            format!("--dma-rate={}", plan.dma_rate.bytes_per_second()),
            format!("--control={}", folder.join(format!("{side}.ctl")).display()),
            format!("--digests={}", folder.join(format!("{side}.digests")).display()),
        ];
        arguments.extend((0..plan.devices).map(|n| {
            let socket = folder.join(format!("{side}{n}.sock"));
            format!("--device=vfio-user:{}", socket.display())
        }));
        if plan.p2p {
            arguments.push("--p2p".to_owned());
        }
        arguments
    };
    let guest = |side: &str, what: Vec<String>| {
        let arguments: Vec<String> = std::iter::once("guest".to_owned())
            .chain(what)
            .chain(machine(side))
            .collect();
        starter.start(&format!("{side} guest"), &arguments)
    };
    let receive = ["receive".to_owned(), format!("--from={ANYWHERE}"), "--hold".into()];
    let mut receive = guest("destination", receive.into())?;
    let mut run = vec!["run".to_owned(), "--hold".to_owned()];
    run.extend(plan.interrupts.map(|kind| format!("--interrupts={kind}")));
    run.extend(plan.inject.map(|inject| format!("--inject={inject}")));
    let mut run = guest("source", run)?;
    let ready = receive.ready(deadline)?;
    let place = ready.get("from").and_then(Value::as_str);
    let place = place.context(NO_PLACE)?.to_owned();
    run.ready(deadline)?;
    let [near, far] = servers;
    let side = |name: &str, guest, servers| Side {
        guest,
        servers,
        control: folder.join(format!("{name}.ctl")),
        digests: folder.join(format!("{name}.digests")),
    };
    Ok((side("source", run, near), side("destination", receive, far), place))
}

/// What a guest did so far: pages by each vCPU, blocks by each device.
#[derive(Default)]
struct Done {
    vcpus: Vec<u64>,
    devices: Vec<u64>,
    downtime_guest_ms: Option<f64>,
}

impl Side {
    fn ask(&self, request: &Value) -> Result<Value> {
        talk(&self.control, request, PATIENCE, &mut |_| {}).with_context(|| self.died())
    }

    /// What to say when it does not answer.
    fn died(&self) -> String {
        // Its socket may be gone a moment before it is.
        if self.guest.ends_within(PACE) {
            format!("the {} died{}", self.guest.name(), self.guest.last_words())
        } else {
            format!("the {} failed", self.guest.name())
        }
    }

    fn done(&self) -> Result<Done> {
        let answer = self.ask(&json!({ "command": "counters" }))?;
        let list = |pointer: &str, key: &str| -> Vec<u64> {
            let items = answer.pointer(pointer).and_then(Value::as_array);
            items
                .into_iter()
                .flatten()
                .filter_map(|item| item.get(key).and_then(Value::as_u64))
                .collect()
        };
        Ok(Done {
            vcpus: list("/counters/vcpus", "pages"),
            devices: list("/counters/devices", "blocks"),
            downtime_guest_ms: answer
                .pointer("/counters/downtime_guest_ms")
                .and_then(Value::as_f64),
        })
    }

    /// Waits until every vCPU wrote `more` pages, and every device `more` blocks, beyond
    /// those `before`; what they did then.
    fn works(&self, before: &Done, plan: &Plan, more: u64) -> Result<Done> {
        let deadline = Instant::now() + WORK;
        let idle = |rate: crate::units::Rate| rate.bytes_per_second() == 0;
        let enough = |now: &[u64], before: &[u64], count: usize| {
            now.len() == count
                && now.iter().enumerate().all(|(n, now)| {
                    *now >= before.get(n).copied().unwrap_or(0).saturating_add(more)
                })
        };
        loop {
            let now = match self.done() {
                // The guest runs a moment before this side has the machine back.
                Err(error) if error.is::<Refused>() => Done::default(),
                other => other?,
            };
            let vcpus = enough(&now.vcpus, &before.vcpus, plan.vcpus as usize);
            let devices = enough(&now.devices, &before.devices, plan.devices.into());
            if (vcpus || idle(plan.dirty_rate)) && (devices || idle(plan.dma_rate)) {
                return Ok(now);
            }
            if self.guest.ends_within(PACE) {
                bail!("{}", self.died());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the {} did not get {more} pages a vCPU and blocks a device further \
                     in {} s",
                    self.guest.name(),
                    WORK.as_secs()
                );
            }
        }
    }
}

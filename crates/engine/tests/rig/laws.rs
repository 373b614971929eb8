//! The laws, as checks on how a migration went.

use port::Decision;
use states::v2::State;
use vfio_migrate_engine::migration::Recovery;
use vfio_migrate_engine::migration::sink::Ending;

use super::{Rig, WRITTEN, Went, contents};

/// Everything that must hold after any migration, whatever broke: calls whose names
/// begin with `excused`. What does not hold is told.
pub(crate) fn broken(
    source: &Rig,
    destination: &Rig,
    went: &Went,
    excused: Option<&str>,
) -> Vec<String> {
    let mut laws = Laws(Vec::new());
    laws.one_side_runs(source, destination, went);
    laws.endings_agree(went);
    match &went.sent.result {
        Ok(()) => laws.arrived(source, destination, went),
        Err(error) => match error.recovery() {
            Recovery::Retry | Recovery::SourceResumed => laws.as_before(source, went),
            Recovery::DeviceLost => laws.lost_is_named(source, went),
            Recovery::InDoubt | Recovery::Moved => laws.stays_stopped(source),
        },
    }
    laws.everything_comes_back(source, went, excused);
    laws.thrown_away(destination, went, excused);
    laws.0
}

struct Laws(Vec<String>);

impl Laws {
    fn hold(&mut self, law: bool, what: impl FnOnce() -> String) {
        if !law {
            self.0.push(what());
        }
    }

    /// Law 1, and the decisions that stand for it.
    fn one_side_runs(&mut self, source: &Rig, destination: &Rig, went: &Went) {
        let violations = source.side.witness().violations();
        self.hold(violations.is_empty(), || violations.join("; "));
        let runs = (!source.vcpus.paused(), !destination.vcpus.paused());
        self.hold(runs != (true, true), || "both guests run".into());
        let (yielded, stands) = went.decisions;
        self.hold(!(runs.0 && stands == Some(Decision::Ran)), || {
            "the source runs and RAN stands".into()
        });
        self.hold(!runs.1 || stands == Some(Decision::Ran), || {
            format!("the destination runs and {stands:?} stands")
        });
        self.hold(!went.committed() || yielded.is_some(), || {
            "COMMIT was said before YIELDED was recorded".into()
        });
        self.hold(stands != Some(Decision::Ran) || went.committed(), || {
            "RAN without a COMMIT".into()
        });
    }

    /// Which endings of the two sides may come together.
    fn endings_agree(&mut self, went: &Went) {
        let here = went.sent.result.as_ref().err().map(|error| error.recovery());
        let there = &went.received.ending;
        let agree = match here {
            None => matches!(there, Ending::Running { .. }),
            Some(Recovery::Moved) => matches!(there, Ending::NotStarted(_)),
            // Nobody knows: that is what in doubt means. But there was a COMMIT.
            Some(Recovery::InDoubt) => went.committed(),
            // The guest is here: over there it was thrown away, or (where nobody knows
            // whether RETURNED was recorded) it stays where it is and does not run.
            Some(Recovery::Retry | Recovery::SourceResumed | Recovery::DeviceLost) => {
                matches!(
                    there,
                    Ending::Refused(_) | Ending::Discarded(_) | Ending::InDoubt(_)
                )
            }
        };
        self.hold(agree, || {
            format!("the source ends with {here:?}, the destination with {there:?}")
        });
    }

    fn arrived(&mut self, source: &Rig, destination: &Rig, went: &Went) {
        let paused = went.received.ending == Ending::Running { paused: true };
        self.hold(source.memory.digests() == destination.memory.digests(), || {
            "memory differs".into()
        });
        let pairs = source.devices.iter().zip(&destination.devices).enumerate();
        for (n, (here, there)) in pairs {
            self.hold(here.contents() == there.contents(), || {
                format!("device {n} differs")
            });
            let state = if paused { State::Stop } else { State::Running };
            self.hold(there.state() == state, || {
                format!("device {n} arrived in {}", there.state())
            });
            self.hold(there.holds_guest() && !there.in_session(), || {
                format!("device {n} did not arrive whole")
            });
            self.hold(here.state().is_stopped(), || {
                format!("device {n} stayed behind in {}", here.state())
            });
        }
        let pairs = source.sections.iter().zip(&destination.sections);
        self.hold(pairs.clone().all(|(a, b)| a.bytes() == b.bytes()), || {
            "sections differ".into()
        });
        let mut pairs = source.configs.iter().zip(&destination.configs);
        self.hold(pairs.all(|(a, b)| a.bytes() == b.bytes()), || "configs differ".into());
        for (n, lines) in source.interrupts.iter().enumerate() {
            let left = lines.pending();
            self.hold(left.iter().all(|count| *count == 0), || {
                format!("interrupts of device {n} stayed behind: {left:?}")
            });
            // Each was raised once by the guest of `busy_guest`, if that ran.
            let there = destination.interrupts[n].pending();
            self.hold(there.iter().sum::<u64>() <= 1, || {
                format!("interrupts of device {n} arrived twice: {there:?}")
            });
        }
        self.hold(destination.vcpus.paused() == paused, || {
            "the guest did not arrive as it was".into()
        });
    }

    /// Law 2: the guest runs here as before.
    fn as_before(&mut self, source: &Rig, went: &Went) {
        self.hold(!source.vcpus.paused(), || "the guest was left paused".into());
        for (n, device) in source.devices.iter().enumerate() {
            self.untouched(n, source);
            let state = device.state();
            self.hold(state == State::Running && !device.in_session(), || {
                format!("device {n} was left in {state}")
            });
            let usable = device.work(0, &contents(n)[..1]);
            self.hold(usable, || format!("device {n} is not usable"));
        }
        for (n, lines) in source.interrupts.iter().enumerate() {
            // Raised between the rounds, drained or not, given back if drained.
            let (pending, raised) = (lines.pending(), wrote(source));
            self.hold(pending.iter().sum::<u64>() == u64::from(raised), || {
                format!("interrupts of device {n}: {pending:?}, raised {raised}")
            });
        }
        let violations = source.side.witness().running();
        self.hold(violations == ["source"], || format!("{violations:?} run"));
        let _ = went;
    }

    /// The device holds what it held, with what the guest did meanwhile.
    fn untouched(&mut self, n: usize, source: &Rig) {
        let before = contents(n);
        let mut worked = before.clone();
        worked[5000..5006].copy_from_slice(b"worked");
        let now = source.devices[n].contents();
        self.hold(now == before || now == worked, || {
            format!("device {n} is not what it was")
        });
        let touched = source.devices[n].touched_while_stopped();
        self.hold(touched == 0, || format!("device {n} was touched while stopped"));
    }

    /// Law 2 and 6: a device of this side is named, its guest stays paused.
    fn lost_is_named(&mut self, source: &Rig, went: &Went) {
        let named = went.sent.result.as_ref().err().map_or(&[][..], |e| &e.devices[..]);
        self.hold(!named.is_empty(), || "nothing is named".into());
        self.hold(source.vcpus.paused(), || {
            format!("the guest runs on without {named:?}")
        });
        for n in 0..source.devices.len() {
            if !named.contains(&format!("dev{n}")) {
                self.untouched(n, source);
                let state = source.devices[n].state();
                self.hold(state == State::Running, || {
                    format!("device {n} was left in {state}, and not named")
                });
            }
        }
    }

    /// The guest may be elsewhere: here nothing moves.
    fn stays_stopped(&mut self, source: &Rig) {
        self.hold(source.vcpus.paused(), || "the guest runs in doubt".into());
        for (n, device) in source.devices.iter().enumerate() {
            self.hold(device.state().is_stopped(), || {
                format!("device {n} is in {} in doubt", device.state())
            });
        }
    }

    /// What was lent comes back, and nobody records any more.
    fn everything_comes_back(
        &mut self,
        source: &Rig,
        went: &Went,
        excused: Option<&str>,
    ) {
        let machine = &went.sent.machine;
        let lent = (source.devices.len(), source.sections.len(), source.tracked);
        let back = (machine.devices.len(), machine.sections.len(), machine.dirty.len());
        self.hold(lent == back, || format!("{lent:?} were lent, {back:?} came back"));
        let excused = excused.is_some_and(|name| "source log: stop".starts_with(name));
        self.hold(excused || !source.log.started(), || {
            "writes are still recorded".into()
        });
    }

    /// What was loaded over there and is not wanted holds nothing any more.
    fn thrown_away(&mut self, destination: &Rig, went: &Went, excused: Option<&str>) {
        if !matches!(went.received.ending, Ending::Discarded(_)) {
            return;
        }
        self.hold(destination.vcpus.paused(), || "a discarded guest runs".into());
        for (n, device) in destination.devices.iter().enumerate() {
            let reset = format!("destination dev{n}: reset");
            let excused = excused.is_some_and(|name| reset.starts_with(name));
            self.hold(excused || !device.holds_guest(), || {
                format!("device {n} over there holds what was discarded")
            });
        }
    }
}

/// Whether the guest of `busy_guest` came to write.
fn wrote(source: &Rig) -> bool {
    let mut bytes = [0; 18];
    let memory: &dyn port::GuestMemory = &source.memory;
    memory.read(port::Gpa(WRITTEN), &mut bytes).is_ok() && &bytes == b"between the rounds"
}

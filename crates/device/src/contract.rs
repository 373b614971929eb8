//! Checks any model against the rules of the interface.

mod bench;

use crate::{Digest, Migratable, Runner};
use abi::errno::Errno;
use bench::{Bench, Stream};
use states::v2::{Capabilities, State, plan};
use std::fmt;
use thiserror::Error;

/// How large a saved state may get in a check, in bytes: models are to be built small
/// for it.
const STATE_MAX: usize = 256 << 20;

/// Checks a model, as [`Contract`] does, without any work given to it.
///
/// # Errors
///
/// The first [`Violation`].
pub fn contract(make: impl FnMut() -> Box<dyn Migratable>) -> Result<Report, Violation> {
    Contract::new(make).check()
}

/// The rules that every model has to keep, as checks (document 002, the uAPI header of
/// Linux 7.3, and this project's own: a stream that was tampered with is refused).
///
/// Every check builds its devices anew, and gives them memory at IOVA 0 and a window
/// that only messages reach at [`Contract::MESSAGES`], both of [`Contract::WINDOW`]
/// bytes, and a listener for every interrupt.
///
/// ```
/// # use vfio_migrate_device::{Contract, Migratable};
/// fn check(make: impl FnMut() -> Box<dyn Migratable>) {
///     let report = Contract::new(make)
///         .exercise(|runner, round| {
///             // Give the device a state of its own, a different one each round.
///             let _ = runner.write_region(0, 0, &round.to_le_bytes());
///         })
///         .check();
///     println!("{report:?}");
/// }
/// ```
pub struct Contract<'a> {
    make: Make<'a>,
    exercise: Exercise<'a>,
    checksum: bool,
}

type Make<'a> = Box<dyn FnMut() -> Box<dyn Migratable> + 'a>;
type Exercise<'a> = Box<dyn FnMut(&mut Runner, u32) + 'a>;

/// What was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The model's capability set.
    pub capabilities: Capabilities,
    /// The checks that were made, in order.
    pub checks: Vec<&'static str>,
    /// Pairs of states that were tried.
    pub pairs: usize,
    /// Bytes of the state that was moved about.
    pub state_bytes: usize,
}

/// A rule that a model broke.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{check}: {what}")]
pub struct Violation {
    /// The check that found it.
    pub check: &'static str,
    /// What happened.
    pub what: String,
}

type Checked = Result<(), Violation>;

impl<'a> Contract<'a> {
    /// Bytes of each DMA window.
    pub const WINDOW: u64 = 1 << 20;
    /// Where the window is that only messages reach.
    pub const MESSAGES: u64 = 1 << 32;

    /// Checks for models that `make` builds, each as fresh and alike as the other.
    pub fn new(make: impl FnMut() -> Box<dyn Migratable> + 'a) -> Contract<'a> {
        Contract { make: Box::new(make), exercise: Box::new(|_, _| {}), checksum: true }
    }

    /// For a model whose stream has no checksum of its own, since its format is another's:
    /// it cannot refuse every flipped bit. What it then accepts has to be what it holds,
    /// and is saved again byte for byte. What comes in a migration or from a file is
    /// protected by their checksums.
    #[must_use]
    pub fn without_checksum(self) -> Contract<'a> {
        Contract { checksum: false, ..self }
    }

    /// Before it is saved, and between reads in pre-copy, each device is put to work by
    /// `exercise`, with a number that says how often it was before; it then gets some
    /// time. A check with a device that holds nothing shows little.
    #[must_use]
    pub fn exercise(self, exercise: impl FnMut(&mut Runner, u32) + 'a) -> Contract<'a> {
        Contract { exercise: Box::new(exercise), ..self }
    }

    /// Makes all checks.
    ///
    /// # Errors
    ///
    /// The first [`Violation`].
    pub fn check(mut self) -> Result<Report, Violation> {
        let mut bench = self.fresh("describe")?;
        let capabilities = bench.runner.description().capabilities;
        let data = bench.saved("save", State::StopCopy, 1 << 16)?;
        let stream = Stream { data, digest: bench.runner.digest() };
        let mut report = Report {
            capabilities,
            checks: Vec::new(),
            pairs: 0,
            state_bytes: stream.data.len(),
        };
        report.pairs = self.every_pair(&stream)?;
        report.checks.push("every pair of states by the tables");
        self.outside_sessions()?;
        report.checks.push("no data outside sessions");
        self.round_trips(&stream)?;
        report.checks.push("the same state whatever the segmentation");
        self.refusals(&stream)?;
        report.checks.push("truncated, corrupt and overlong states refused");
        self.resets(&stream)?;
        report.checks.push("reset to RUNNING from every state");
        if capabilities.pre_copy() {
            self.pre_copy()?;
            report.checks.push("complete whatever was read in pre-copy");
        }
        Ok(report)
    }

    /// A device that was put to work once.
    fn fresh(&mut self, check: &'static str) -> Result<Bench, Violation> {
        let mut bench = Bench::new(check, (self.make)())?;
        self.work(&mut bench);
        Ok(bench)
    }

    /// A device that did nothing.
    fn untouched(&mut self, check: &'static str) -> Result<Bench, Violation> {
        Bench::new(check, (self.make)())
    }

    fn work(&mut self, bench: &mut Bench) {
        let round = bench.rounds;
        (self.exercise)(&mut bench.runner, round);
        bench.rounds += 1;
        bench.run();
    }

    /// Rules 4 to 7: each pair ends where the tables say, or is refused with `EINVAL`
    /// and nothing changed.
    fn every_pair(&mut self, stream: &Stream) -> Result<usize, Violation> {
        let check = "every pair of states";
        let capabilities = self.untouched(check)?.runner.description().capabilities;
        let mut pairs = 0;
        for from in capabilities.states() {
            for to in State::ALL {
                pairs += 1;
                let mut bench = self.fresh(check)?;
                bench.reach(from, Some(stream))?;
                let session = bench.runner.session();
                let planned = plan(capabilities, from, to);
                let moved = bench.set_state(to);
                let place = format!("{from} to {to}");
                match (planned, moved) {
                    (Ok(path), Ok(opened)) => {
                        bench.expect(bench.runner.state() == to, || {
                            format!("{place} ended in {}", bench.runner.state())
                        })?;
                        bench.expect(opened.is_some() == path.opens_session(), || {
                            format!("{place} opened {opened:?}")
                        })?;
                        let kept = !path.is_empty() || bench.runner.session() == session;
                        bench.expect(kept, || format!("{place} changed the session"))?;
                    }
                    (Err(_), Err(errno)) => {
                        let same = bench.runner.state() == from
                            && bench.runner.session() == session
                            && errno == Errno::EINVAL;
                        bench.expect(same, || {
                            format!("{place}: {errno}, and {}", bench.runner.state())
                        })?;
                    }
                    (Ok(_), Err(errno)) => {
                        return Err(bench.violation(format!("{place} failed: {errno}")));
                    }
                    (Err(_), Ok(_)) => {
                        return Err(bench.violation(format!("{place} was not refused")));
                    }
                }
                bench.quiet()?;
            }
        }
        Ok(pairs)
    }

    /// Rule 9: a model gives and takes nothing without a session.
    fn outside_sessions(&mut self) -> Checked {
        let violation = |what: &str| Violation {
            check: "no data outside sessions",
            what: what.to_owned(),
        };
        let mut model = (self.make)();
        if model.save(&mut [0; 4096]).is_ok() {
            return Err(violation("a running device was saved"));
        }
        if model.load(&[0; 64]).is_ok() {
            return Err(violation("a running device was loaded"));
        }
        let mut bench = self.fresh("no data outside sessions")?;
        bench.reach(State::StopCopy, None)?;
        let dead = bench.runner.session();
        bench.reach(State::Stop, None)?;
        let read = dead.map(|dead| bench.runner.read_data(dead, &mut [0; 64]));
        bench.expect(read == Some(Err(Errno::ENODEV)), || {
            format!("a session that is over was read: {read:?}")
        })
    }

    /// Rule 20: any segmentation gives the same state, and save(load(x)) is x.
    fn round_trips(&mut self, stream: &Stream) -> Checked {
        let check = "save and load";
        for size in [1, 7, 4096, 65536, 1 << 20, usize::MAX] {
            let mut bench = self.fresh(check)?;
            let saved = bench.saved(check, State::StopCopy, size)?;
            bench.expect(saved == stream.data, || {
                format!("reads of {size} bytes gave another stream")
            })?;
            let mut other = self.untouched(check)?;
            other.load(&saved, size)?;
            other.reach(State::Stop, None)?;
            other.same(&stream.digest, "after a load")?;
            let again = other.saved(check, State::StopCopy, 1 << 16)?;
            other.expect(again == saved, || {
                format!(
                    "what was loaded is saved as another stream, from byte {} on",
                    first_difference(&again, &saved)
                )
            })?;
            other.quiet()?;
        }
        Ok(())
    }

    /// Rule 21: what is not a whole state of this model is refused, at the latest when
    /// RESUMING ends, and a refusal is not forgotten. Without a checksum a flipped bit
    /// may make another state, and a whole one.
    fn refusals(&mut self, stream: &Stream) -> Checked {
        let data = &stream.data;
        let len = data.len();
        for cut in places(len, 32) {
            self.refused("truncated state", &data[..cut], &format!("cut at byte {cut}"))?;
        }
        for at in places(len, 96).chain(0..len.min(48)) {
            for bit in [0, 7] {
                let mut broken = data.clone();
                broken[at] ^= 1 << bit;
                let what = format!("bit {bit} of byte {at}");
                if self.checksum {
                    self.refused("corrupt state", &broken, &what)?;
                } else {
                    self.taken_for_what_it_is("corrupt state", &broken, &what)?;
                }
            }
        }
        let mut longer = data.clone();
        longer.push(0);
        self.refused("overlong state", &longer, "one byte too many")?;
        longer.truncate(0);
        longer.extend_from_slice(data);
        longer.extend_from_slice(data);
        self.refused("overlong state", &longer, "the state twice")
    }

    fn refused(&mut self, check: &'static str, data: &[u8], what: &str) -> Checked {
        let mut bench = self.untouched(check)?;
        let session = bench.open_resume()?;
        let taken =
            data.chunks(4096).try_for_each(|part| bench.runner.write_data(session, part));
        if taken.is_err() {
            let more = bench.runner.write_data(session, data);
            bench.expect(more.is_err(), || format!("{what}: accepted after an error"))?;
        }
        let stopped = bench.set_state(State::Stop);
        bench.expect(stopped.is_err(), || format!("{what}: accepted"))?;
        bench.expect(bench.runner.state() == State::Resuming, || {
            format!("{what}: refused, but in {}", bench.runner.state())
        })?;
        bench.runner.reset();
        bench.expect(bench.runner.state() == State::Running, || {
            format!("{what}: no reset")
        })?;
        bench.quiet()
    }

    /// A state that is refused, or else is the device's from then on.
    fn taken_for_what_it_is(
        &mut self,
        check: &'static str,
        data: &[u8],
        what: &str,
    ) -> Checked {
        let mut bench = self.untouched(check)?;
        let session = bench.open_resume()?;
        let taken = bench.runner.write_data(session, data);
        if taken.is_err() || bench.set_state(State::Stop).is_err() {
            return self.refused(check, data, what);
        }
        let again = bench.saved(check, State::StopCopy, 1 << 16)?;
        bench.expect(again == data, || {
            format!(
                "{what}: accepted, and saved as another stream, from byte {} on",
                first_difference(&again, data)
            )
        })?;
        bench.quiet()
    }

    /// Rules 2 and 9: a reset leads to RUNNING, ends sessions, and leaves nothing.
    fn resets(&mut self, stream: &Stream) -> Checked {
        let check = "reset";
        let clean = self.untouched(check)?.runner.digest();
        let capabilities = self.untouched(check)?.runner.description().capabilities;
        for state in capabilities.states() {
            let mut bench = self.fresh(check)?;
            bench.reach(state, Some(stream))?;
            let session = bench.runner.session();
            bench.runner.reset();
            bench.expect(bench.runner.state() == State::Running, || {
                format!("{state} to {}", bench.runner.state())
            })?;
            let read = session.map(|old| bench.runner.read_data(old, &mut [0; 8]));
            bench.expect(read.is_none_or(|read| read == Err(Errno::ENODEV)), || {
                format!("the session of {state} survived")
            })?;
            bench.same(&clean, &format!("after a reset in {state}"))?;
            // And it works as if nothing had been.
            self.work(&mut bench);
            bench.saved(check, State::StopCopy, 1 << 16)?;
            bench.quiet()?;
        }
        Ok(())
    }

    /// Rules 8 and 15 to 17.
    fn pre_copy(&mut self) -> Checked {
        let check = "pre-copy";
        // How many bytes are read before the device stops: none, some, and all.
        for most in [0, 1, 100, 5000, 1 << 17, usize::MAX] {
            let mut bench = self.fresh(check)?;
            let session = bench.open_save(State::PreCopy)?;
            let start = bench.info(session)?;
            bench.expect(start.initial_bytes > 0, || "no initial bytes".to_owned())?;
            let mut data = Vec::new();
            let mut last = start;
            let mut round = 0;
            while data.len() < most && round < 64 {
                let size = (most - data.len()).min(30_011);
                let read = bench.read(session, size, &mut data)?;
                let info = bench.info(session)?;
                bench.expect(info.initial_bytes <= last.initial_bytes, || {
                    format!("initial bytes rise: {last:?}, {info:?}")
                })?;
                bench.expect(info.initial_bytes == 0 || info.dirty_bytes == 0, || {
                    format!("dirty bytes before the initial ones are read: {info:?}")
                })?;
                last = info;
                if read == 0 {
                    bench.expect(info.initial_bytes == 0, || {
                        format!("nothing to read, but {info:?}")
                    })?;
                    round += 32;
                }
                if round % 8 == 0 {
                    self.work(&mut bench);
                }
                round += 1;
            }
            self.work(&mut bench);
            bench.reach(State::StopCopy, None)?;
            bench.read_to_end(session, 1 << 16, &mut data)?;
            let digest = bench.runner.digest();
            bench.reach(State::Stop, None)?;
            let direct = bench.saved(check, State::StopCopy, 1 << 16)?;

            let mut other = self.untouched(check)?;
            other.load(&data, 10_007)?;
            other.reach(State::Stop, None)?;
            other.same(&digest, &format!("with {most} bytes read in pre-copy"))?;
            let again = other.saved(check, State::StopCopy, 1 << 16)?;
            other.expect(again == direct, || {
                format!("with {most} bytes read in pre-copy the state is another")
            })?;
            bench.quiet()?;
            other.quiet()?;
        }
        Ok(())
    }
}

/// At most `count` places in `len` bytes, evenly spread, the first and the last among
/// them.
fn places(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let step = (len / count).max(1);
    (0..len).step_by(step).chain(len.checked_sub(1))
}

fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How two digests differ; `None` where they agree or the model makes none.
fn difference(a: &Option<Digest>, b: &Option<Digest>) -> Option<String> {
    a.as_ref().zip(b.as_ref()).and_then(|(a, b)| a.difference(b))
}

impl fmt::Debug for Contract<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract").finish_non_exhaustive()
    }
}

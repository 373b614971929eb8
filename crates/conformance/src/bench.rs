//! The device under test: what checks do with it, bounded, and believing nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceMigState, DeviceState, Migration, PrecopyInfo};
use control::{DataSession, Direction, Raw, Transport};
use states::v2::{Capabilities, State, plan};
use zerocopy::FromBytes;

use crate::kernel::{Release, dies_of_stale_writes};
use crate::outcome::{Outcome, Stop, answer, fail, skip};

/// What is read or written at once, unless a check is about that, in bytes.
const CHUNK: usize = 1 << 20;

/// How checks are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a check may take, as long as the device answers.
    pub deadline: Duration,
    /// How long after that a call to the device may still take: more than the transport's
    /// own deadlines. Then the device is given up, with the thread that waits for it.
    pub patience: Duration,
    /// The most data of a device that is taken for one of its states, in bytes: as much is
    /// kept in memory, a few times.
    pub most_bytes: usize,
    /// The kernel behind a kernel's device; `None` for the one that runs.
    pub release: Option<Release>,
    /// The driver of a kernel's device, where it is known: some have to be spared what
    /// takes the kernel down.
    pub driver: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(60),
            patience: Duration::from_secs(70),
            most_bytes: 256 << 20,
            release: None,
            driver: None,
        }
    }
}

/// A device, for the time of one check.
pub(crate) struct Bench {
    transport: Arc<dyn Transport>,
    options: Options,
    ends: Instant,
}

impl Bench {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        options: &Options,
        began: Instant,
    ) -> Bench {
        Bench { transport, options: options.clone(), ends: began + options.deadline }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    /// The way to wrong calls.
    pub(crate) fn raw(&self) -> Result<&dyn Raw, Stop> {
        match self.transport.raw() {
            Some(raw) => Ok(raw),
            None => skip("this transport makes no wrong calls"),
        }
    }

    pub(crate) fn is_kernel(&self) -> bool {
        self.transport.raw().is_some_and(Raw::is_kernel)
    }

    /// The kernel behind the device, where one is. What is not known counts as old.
    pub(crate) fn release(&self) -> Option<Release> {
        let unknown = Release::new(0, 0, 0);
        self.is_kernel()
            .then(|| self.options.release.or_else(Release::running).unwrap_or(unknown))
    }

    /// The driver, where it may take the kernel down at a write to a session that is over.
    pub(crate) fn dies_of_stale_writes(&self) -> Option<&str> {
        let driver = self.options.driver.as_deref()?;
        (self.is_kernel() && dies_of_stale_writes(driver)).then_some(driver)
    }

    /// To be asked in every loop.
    pub(crate) fn in_time(&self) -> Result<(), Stop> {
        if Instant::now() < self.ends {
            return Ok(());
        }
        fail(format!("not over within {} s", self.options.deadline.as_secs()))
    }

    /// A feature, as the device gives it.
    pub(crate) fn get(
        &self,
        feature: Feature,
        input: &[u8],
        most: usize,
    ) -> Result<Result<Vec<u8>, Errno>, Stop> {
        answer(self.transport.feature_get(feature, input, most))
    }

    /// What the device can do.
    pub(crate) fn capabilities(&self) -> Result<Capabilities, Stop> {
        let flags = match self.get(Feature::MIGRATION, &[], size_of::<Migration>())? {
            Ok(bytes) => bytes,
            Err(errno) => return skip(format!("it has no v2 migration ({errno})")),
        };
        let Ok(migration) = Migration::read_from_bytes(&flags) else {
            return skip("it does not say what it can do; see 1.flags");
        };
        Capabilities::try_from_flags(migration.flags)
            .map_err(|error| Stop::Skip(error.to_string()))
    }

    /// The capabilities of a device that has all of `states`.
    pub(crate) fn with(&self, states: &[State]) -> Result<Capabilities, Stop> {
        let capabilities = self.capabilities()?;
        match states.iter().find(|state| !capabilities.supports(**state)) {
            None => Ok(capabilities),
            Some(state) => skip(format!("capabilities {capabilities} have no {state}")),
        }
    }

    /// Every state that the device has.
    pub(crate) fn states(&self) -> Result<Vec<State>, Stop> {
        Ok(self.capabilities()?.states().collect())
    }

    /// What GET of the state gives.
    pub(crate) fn raw_state(&self) -> Result<DeviceMigState, Stop> {
        let feature = Feature::MIG_DEVICE_STATE;
        let bytes = match self.get(feature, &[], size_of::<DeviceMigState>())? {
            Ok(bytes) => bytes,
            Err(errno) => return fail(format!("asked for its state: {errno}")),
        };
        DeviceMigState::read_from_bytes(&bytes).map_err(|_| {
            Stop::Fail(format!("its state has {} bytes instead of 8", bytes.len()))
        })
    }

    pub(crate) fn state(&self) -> Result<State, Stop> {
        let number = self.raw_state()?.device_state;
        State::from_number(number).ok_or_else(|| {
            Stop::Fail(format!("it is in state {number}, which nobody defined"))
        })
    }

    /// Asks for a number of a state; nothing is expected.
    pub(crate) fn ask(
        &self,
        target: u32,
        due: Option<Direction>,
    ) -> Result<Result<Option<Session>, Errno>, Stop> {
        self.in_time()?;
        let set = self.transport.set_migration_state(DeviceState(target), due);
        Ok(answer(set)?.map(|session| session.map(Session)))
    }

    /// Which session the tables have the device open on the way from `from` to `to`.
    pub(crate) fn due(&self, from: State, to: State) -> Result<Option<Direction>, Stop> {
        let path = plan(self.capabilities()?, from, to);
        let opens = path.is_ok_and(|path| path.opens_session());
        Ok(opens.then_some(match to {
            State::Resuming => Direction::Resume,
            _ => Direction::Save,
        }))
    }

    /// Goes to a state, which has to work; with the session that it opens by the tables.
    pub(crate) fn go(&self, to: State) -> Result<Option<Session>, Stop> {
        let from = self.state()?;
        let due = self.due(from, to)?;
        let session = match self.ask(to.number(), due)? {
            Ok(session) => session,
            Err(errno) => return fail(format!("{from} to {to}: {errno}")),
        };
        let now = self.state()?;
        if now != to {
            return fail(format!("{from} to {to}: it said done, and is in {now}"));
        }
        match (due.is_some(), session.is_some()) {
            (true, false) => fail(format!("{from} to {to}: no session was opened")),
            (false, true) => {
                fail(format!("{from} to {to}: a session that nobody asked for"))
            }
            _ => Ok(session),
        }
    }

    /// As [`go`](Self::go), to a state that opens a session from here.
    pub(crate) fn open(&self, to: State) -> Result<Session, Stop> {
        match self.go(to)? {
            Some(session) => Ok(session),
            None => fail(format!("to {to}: no session is open after it")),
        }
    }

    /// Resets; the errno is an answer.
    pub(crate) fn reset(&self) -> Result<Result<(), Errno>, Stop> {
        answer(self.transport.reset())
    }

    /// Back to RUNNING, by reset, or where that does not do it as libvfio-user by request.
    pub(crate) fn home(&self) -> Result<(), Stop> {
        let running = State::Running.number();
        if self.raw_state()?.device_state == running {
            return Ok(());
        }
        let reset = self.reset()?;
        if self.raw_state()?.device_state == running {
            return Ok(());
        }
        let set = answer(self.transport.set_migration_state(DeviceState(running), None))?;
        let now = self.raw_state()?.device_state;
        if now == running {
            return Ok(());
        }
        let name = State::from_number(now).map_or("an unknown state", State::name);
        let word = |errno: Option<Errno>| {
            errno.map_or_else(|| "done".to_owned(), |errno| errno.to_string())
        };
        fail(format!(
            "it does not come back to RUNNING from {name} (reset: {}, request: {})",
            word(reset.err()),
            word(set.err())
        ))
    }

    /// Reads stop-copy data to its end, `chunk` bytes at a time.
    pub(crate) fn read_out(
        &self,
        session: &mut Session,
        chunk: usize,
    ) -> Result<Vec<u8>, Stop> {
        let mut data = Vec::new();
        let mut buffer = vec![0; chunk];
        loop {
            self.in_time()?;
            match session.read(&mut buffer)? {
                Ok(0) => return Ok(data),
                Ok(bytes) => data.extend_from_slice(&buffer[..bytes]),
                Err(errno) => {
                    let at = data.len();
                    return fail(format!("STOP_COPY: read after {at} bytes: {errno}"));
                }
            }
            if data.len() > self.options.most_bytes {
                let most = self.options.most_bytes;
                return skip(format!("STOP_COPY has more than {most} bytes of data"));
            }
        }
    }

    /// Reads pre-copy data, `chunk` bytes at a time, until `most` bytes or the temporary
    /// end; with what that end was.
    pub(crate) fn read_ahead(
        &self,
        session: &mut Session,
        chunk: usize,
        most: usize,
    ) -> Result<(Vec<u8>, Option<Temporary>), Stop> {
        let mut data = Vec::new();
        let mut buffer = vec![0; chunk];
        while data.len() < most {
            self.in_time()?;
            let room = chunk.min(most - data.len());
            match session.read(&mut buffer[..room])? {
                Ok(0) => return Ok((data, Some(Temporary::Zero))),
                Err(Errno::ENOMSG) => return Ok((data, Some(Temporary::NoMessage))),
                Ok(bytes) => data.extend_from_slice(&buffer[..bytes]),
                Err(errno) => {
                    let at = data.len();
                    return fail(format!("PRE_COPY: read after {at} bytes: {errno}"));
                }
            }
            if data.len() > self.options.most_bytes {
                let most = self.options.most_bytes;
                return skip(format!("PRE_COPY goes on after {most} bytes"));
            }
        }
        Ok((data, None))
    }

    /// Saves what the device holds, by STOP_COPY alone, and leaves it in STOP.
    pub(crate) fn save(&self) -> Result<Vec<u8>, Stop> {
        self.save_by(CHUNK)
    }

    /// As [`save`](Self::save), `chunk` bytes at a time.
    pub(crate) fn save_by(&self, chunk: usize) -> Result<Vec<u8>, Stop> {
        let mut session = self.open(State::StopCopy)?;
        let data = self.read_out(&mut session, chunk)?;
        drop(session);
        self.go(State::Stop)?;
        Ok(data)
    }

    /// Writes all of `data`, `chunk` bytes at a time; where the device refused it how far
    /// it got.
    pub(crate) fn write_in(
        &self,
        session: &mut Session,
        data: &[u8],
        chunk: usize,
    ) -> Result<Result<(), Refused>, Stop> {
        let mut at = 0;
        while at < data.len() {
            self.in_time()?;
            let piece = &data[at..data.len().min(at + chunk)];
            match session.write(piece)? {
                Ok(bytes) => at += bytes,
                Err(errno) => return Ok(Err(Refused::Write { at, errno })),
            }
        }
        Ok(Ok(()))
    }

    /// Loads `data` by RESUMING and asks for STOP, which has to be where it is then. Where
    /// it was refused the device is in RESUMING, or in ERROR.
    pub(crate) fn load(&self, data: &[u8]) -> Result<Result<(), Refused>, Stop> {
        self.load_by(data, CHUNK)
    }

    /// As [`load`](Self::load), `chunk` bytes at a time.
    pub(crate) fn load_by(
        &self,
        data: &[u8],
        chunk: usize,
    ) -> Result<Result<(), Refused>, Stop> {
        let mut session = self.open(State::Resuming)?;
        let written = self.write_in(&mut session, data, chunk)?;
        if let Err(refused) = written {
            return Ok(Err(refused));
        }
        self.finish_load(session)
    }

    /// RESUMING to STOP, where the device judges what it got.
    pub(crate) fn finish_load(
        &self,
        session: Session,
    ) -> Result<Result<(), Refused>, Stop> {
        let set = self.ask(State::Stop.number(), None)?;
        drop(session);
        match (set, self.state()?) {
            (Ok(_), State::Stop) => Ok(Ok(())),
            (Err(errno), State::Resuming | State::Error) => {
                Ok(Err(Refused::Stop { errno }))
            }
            (Ok(_), now) => fail(format!("RESUMING to STOP: done, and it is in {now}")),
            (Err(errno), now) => {
                fail(format!("RESUMING to STOP: {errno}, and it is in {now}"))
            }
        }
    }

    /// Loads what the device saved itself, which has to work.
    pub(crate) fn put_back(&self, data: &[u8]) -> Result<(), Stop> {
        match self.load(data)? {
            Ok(()) => Ok(()),
            Err(refused) => {
                fail(format!("it does not take back what it saved: {refused}"))
            }
        }
    }

    /// Takes the device to `state`: one that can leave RESUMING has been given all of
    /// `data`.
    pub(crate) fn place(
        &self,
        state: State,
        data: &[u8],
    ) -> Result<Option<Session>, Stop> {
        self.home()?;
        if state == State::Running {
            return Ok(None);
        }
        let mut session = self.go(state)?;
        if let (State::Resuming, Some(session)) = (state, &mut session)
            && let Err(refused) = self.write_in(session, data, CHUNK)?
        {
            return fail(format!("it does not take back what it saved: {refused}"));
        }
        Ok(session)
    }

    /// Does `work` with what the device holds, and gives it that back afterwards: drivers
    /// keep what they were given over a reset, the damaged too.
    pub(crate) fn keeping(&self, work: impl FnOnce(&[u8]) -> Outcome) -> Outcome {
        let data = self.save()?;
        let outcome = work(&data);
        if matches!(outcome, Err(Stop::Lost(_))) {
            return outcome;
        }
        let back = self.restore(&data);
        // What the check found comes first.
        match outcome {
            Ok(saw) => back.map(|()| saw),
            Err(stop) => Err(stop),
        }
    }

    /// From any state to RUNNING with `data`.
    fn restore(&self, data: &[u8]) -> Result<(), Stop> {
        // Not by way of RUNNING with something damaged, if there is another.
        if self.state()? != State::Stop {
            self.home()?;
        }
        self.put_back(data)?;
        self.home()
    }

    pub(crate) fn most_bytes(&self) -> usize {
        self.options.most_bytes
    }
}

/// How pre-copy data ends for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temporary {
    /// By ENOMSG.
    NoMessage,
    /// By 0 bytes.
    Zero,
}

/// Where a device refused what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// When it was written.
    #[error("{errno} from a write at byte {at}")]
    Write {
        /// Bytes that were taken before.
        at: usize,
        /// What it said.
        errno: Errno,
    },
    /// When all of it was there.
    #[error("{errno} from RESUMING to STOP")]
    Stop {
        /// What it said.
        errno: Errno,
    },
}

/// An open data session.
pub(crate) struct Session(Box<dyn DataSession>);

impl Session {
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<Result<usize, Errno>, Stop> {
        match answer(self.0.read(into))? {
            Ok(bytes) if bytes > into.len() => fail(format!(
                "read: {bytes} bytes where there was room for {}",
                into.len()
            )),
            other => Ok(other),
        }
    }

    pub(crate) fn write(&mut self, from: &[u8]) -> Result<Result<usize, Errno>, Stop> {
        match answer(self.0.write(from))? {
            Ok(bytes) if bytes > from.len() || (bytes == 0 && !from.is_empty()) => {
                fail(format!("write: took {bytes} of {} bytes", from.len()))
            }
            other => Ok(other),
        }
    }

    pub(crate) fn info(&mut self) -> Result<Result<Option<PrecopyInfo>, Errno>, Stop> {
        answer(self.0.precopy_info())
    }

    pub(crate) fn raw_info(
        &mut self,
        argsz: u32,
        flags: u32,
    ) -> Result<Result<Option<PrecopyInfo>, Errno>, Stop> {
        let asked = PrecopyInfo { argsz, flags, initial_bytes: 0, dirty_bytes: 0 };
        answer(self.0.raw_precopy_info(asked))
    }

    /// The descriptor; over vfio-user there is none.
    pub(crate) fn descriptor(&self) -> Result<std::os::fd::BorrowedFd<'_>, Stop> {
        match self.0.descriptor() {
            Some(descriptor) => Ok(descriptor),
            None => skip("data has no descriptor over this transport"),
        }
    }
}

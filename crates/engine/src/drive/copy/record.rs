//! A guest into a file: the peer of a source that keeps its guest.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use port::{
    Accept as _, Archive, AttemptId, Channel, ChannelError, Clock, Observer, Receive,
};
use wire::message::{
    Accept, AcceptedDevice, FailureCode, Hello, LoadedDevice, Prepared, Reason, StoreId,
};
use wire::preamble::{Preamble, Role, Token};
use wire::{Decoder, Encoder, Frame, FrameError, Header, Message};

use super::pipe::{self, PipeAccept, PipeEnd};
use super::{Extent, Own};
use crate::drive::control::{Listener, Speaker};
use crate::drive::file::{FileCause, PATIENCE};
use crate::drive::handle::SourceHandle;
use crate::drive::send::{Outgoing, Sent};
use crate::drive::tracker::chain;
use crate::machine::Machine;
use crate::migration::{
    Cause, Error, Finish, Options, Outcome, Recovery, Report, compat,
};

/// How a guest is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// Whether the guest stays stopped once its copy is durable. Otherwise it goes on as
    /// soon as all of it was read, and the copy is made durable meanwhile. Default
    /// `false`.
    pub stopped: bool,
    /// How long any single answer of a device or the VMM, or one write to the file, may
    /// take. Default 30 s.
    pub patience: Duration,
}

impl Default for RecordOptions {
    fn default() -> RecordOptions {
        RecordOptions { stopped: false, patience: PATIENCE }
    }
}

/// A copy of a guest, about to be made.
pub struct Recording {
    outgoing: Outgoing,
    recorder: Recorder,
    stopped: bool,
}

/// How it went, and the machine that was lent.
#[derive(Debug)]
pub struct Recorded {
    /// The machine. A device whose thread is stuck is missing; the error names it.
    pub machine: Machine,
    /// What happened. Its downtime is how long the guest did not run, `None` where it
    /// was stopped before or stays so.
    pub report: Report,
    /// Whether there is a copy, and the guest is here as it is to be.
    pub result: Result<(), Error>,
    /// The file, where there is one. With an error it is whole all the same: a device
    /// did not come back and this is the only copy, or a cancel came too late for a
    /// guest that was to stay stopped.
    pub file: Option<Extent>,
    /// The operator asked for a pause, and it ended before its stop: the guest runs on,
    /// and the VMM should pause it.
    pub pause_pending: bool,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("outgoing", &self.outgoing)
            .finish_non_exhaustive()
    }
}

impl Recording {
    /// A copy of `machine` into an archive. Nothing is touched until
    /// [`Recording::run`]. `id` is new for each copy.
    ///
    /// The guest is stopped and read as it would be for another host, without pre-copy.
    /// Whatever fails, or where it is cancelled, the guest is as before and nothing is
    /// committed.
    pub fn new(
        machine: Machine,
        into: Box<dyn Archive>,
        id: AttemptId,
        options: RecordOptions,
    ) -> Recording {
        let RecordOptions { stopped, patience } = options;
        let (near, far) = pipe::pair();
        let (dial, accept) = pipe::place();
        let options = Options {
            channels: 1,
            patience,
            finish: Finish::Keep { stopped },
            ..Options::default()
        };
        let store = Box::<Own>::default();
        let outgoing =
            Outgoing::new(machine, Box::new(near), Box::new(dial), store, id, options);
        let file =
            Writer { into, encoder: Encoder::new(Role::File), extent: Extent::default() };
        let recorder =
            Recorder { control: far, accept, file, patience, commits: stopped };
        Recording { outgoing, recorder, stopped }
    }

    /// Somebody who watches.
    #[must_use]
    pub fn observer(self, observer: Arc<dyn Observer>) -> Recording {
        Recording { outgoing: self.outgoing.observer(observer), ..self }
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Recording {
        Recording { outgoing: self.outgoing.clock(clock), ..self }
    }

    /// Steers it from other threads: [`SourceHandle::cancel`].
    pub fn handle(&self) -> SourceHandle {
        self.outgoing.handle()
    }

    /// Runs it to its end, however that is.
    pub fn run(self) -> Recorded {
        let Recording { outgoing, recorder, stopped } = self;
        // Without this thread the other end is gone, and the source says so.
        let recorder =
            thread::Builder::new().name("record".into()).spawn(move || recorder.work());
        let sent = outgoing.run();
        let recorder = recorder.ok().and_then(|thread| thread.join().ok());
        let Sent { machine, mut report, mut result, pause_pending, .. } = sent;
        let (mut file, mut whole) = (None, false);
        match recorder {
            Some(Ok(mut writer)) if !stopped => {
                let only = |error: &Error| error.recovery == Recovery::DeviceLost;
                whole = result.as_ref().err().is_none_or(only);
                if whole {
                    let began = Instant::now();
                    match writer.into.commit() {
                        Ok(()) => file = Some(writer.extent),
                        Err(error) => fail(&mut result, cause(&error)),
                    }
                    report.total += began.elapsed();
                }
            }
            Some(Ok(writer)) => {
                whole = true;
                file = Some(writer.extent);
            }
            Some(Err(Failed::File(error))) => fail(&mut result, cause(&error)),
            // What the source says of it is nearer.
            Some(Err(Failed::Talk(cause))) => {
                tracing::debug!(%cause, "the recorder ended");
            }
            None => {}
        }
        if result.is_ok() && !whole {
            fail(&mut result, Cause::File("its end was not written".into()));
        }
        if let Err(error) = &result {
            report.outcome = Outcome::of(&error.cause, error.recovery);
        }
        Recorded { machine, report, result, file, pause_pending }
    }
}

/// The file failed: whatever the source heard of it is because of that.
fn fail(result: &mut Result<(), Error>, cause: Cause) {
    match result {
        Ok(()) => {
            let recovery = Recovery::SourceResumed;
            *result = Err(Error { cause, recovery, devices: Vec::new() });
        }
        Err(error) if error.cause != Cause::Cancelled => error.cause = cause,
        Err(_) => {}
    }
}

fn cause(error: &ChannelError) -> Cause {
    match FileCause::channel(error) {
        FileCause::Cancelled => Cause::Cancelled,
        cause => Cause::File(cause.to_string()),
    }
}

/// Why the recorder ended.
enum Failed {
    /// The file.
    File(ChannelError),
    /// The conversation; mostly because the source ended it.
    Talk(Cause),
}

impl From<Cause> for Failed {
    fn from(cause: Cause) -> Failed {
        Failed::Talk(cause)
    }
}

impl From<FrameError> for Failed {
    fn from(error: FrameError) -> Failed {
        Failed::Talk(Cause::Protocol(chain(&error)))
    }
}

/// Says what a destination says, and writes what it hears.
struct Recorder {
    control: PipeEnd,
    accept: PipeAccept,
    file: Writer,
    patience: Duration,
    /// The file is made durable before PREPARED, and not by whoever hears of the end.
    commits: bool,
}

/// What a data connection shows: anything, nobody else can open one.
const TOKEN: Token = Token([1; 8]);

impl Recorder {
    fn work(self) -> Result<Writer, Failed> {
        let Recorder { control, mut accept, mut file, patience, commits } = self;
        let (transmit, mut receive, _close) = halves(Box::new(control))?;
        let bytes = Listener::preamble(&mut *receive, patience)?;
        let preamble =
            Preamble::decode(&bytes).map_err(|error| Cause::Protocol(chain(&error)))?;
        let mut speaker = Speaker::open(transmit, &preamble, patience)?;
        let mut listener = Listener::new(receive, preamble.page_size);
        let Message::Hello(hello) = listener.hear()? else {
            return Err(unasked("what is no hello"));
        };
        let mut talk = || {
            file.begin(&preamble, &hello)?;
            speaker.say(&Message::Accept(Accept {
                store: StoreId([0; 16]),
                token: TOKEN,
                devices: vec![AcceptedDevice::default(); hello.devices.len()],
                prepare_us: None,
            }))?;
            let data = accept.accept(patience);
            let data = data.map_err(|error| Cause::Channel(chain(&error)))?;
            let (_, mut data, _close) = halves(data)?;
            let role = data_role(&Listener::preamble(&mut *data, patience)?)?;
            match listener.hear()? {
                Message::SwitchoverRequest => speaker.say(&Message::SwitchoverReady)?,
                other => return Err(unasked(&other.kind().to_string())),
            }
            // A device may take its time between two chunks; the source's deadlines
            // bound that, and it ends the connection when it gives up.
            data.set_deadline(SILENCE);
            let devices = file.copy(&mut *data, role, &preamble, hello.devices.len())?;
            match listener.hear()? {
                Message::RunState(_) => {}
                other => return Err(unasked(&other.kind().to_string())),
            }
            if commits {
                file.into.commit().map_err(Failed::File)?;
            }
            let prepared = Message::Prepared(Prepared { devices, verify_us: None });
            match speaker.say(&prepared) {
                // A source that is gone does not undo what is durable.
                Err(cause) if !commits => Err(cause.into()),
                _ => Ok(()),
            }
        };
        let done = talk();
        if let Err(Failed::File(error)) = &done {
            let reason = Reason {
                code: FailureCode::STORE,
                text: compat::text(&cause(error).to_string()),
            };
            let _ = speaker.say(&Message::Failed(reason));
        }
        if done.is_ok() {
            // The source's last word; it has all of what was said then.
            let _ = listener.hear();
        }
        done.map(|()| file)
    }
}

/// As long as a migration's connections may be silent.
const SILENCE: Duration = Duration::from_secs(24 * 60 * 60);

fn halves(channel: Box<dyn Channel>) -> Result<port::Halves, Failed> {
    channel.split().map_err(|error| Failed::Talk(Cause::Channel(chain(&error))))
}

fn data_role(bytes: &[u8; Preamble::SIZE]) -> Result<Role, Failed> {
    match Preamble::decode(bytes).map(|preamble| preamble.role) {
        Ok(role @ Role::Data { token: TOKEN, .. }) => Ok(role),
        _ => Err(unasked("what is no data connection")),
    }
}

fn unasked(what: &str) -> Failed {
    Failed::Talk(Cause::Protocol(format!("{what} from a source that is recorded")))
}

/// Frames into an archive.
struct Writer {
    into: Box<dyn Archive>,
    encoder: Encoder,
    extent: Extent,
}

impl Writer {
    fn begin(&mut self, preamble: &Preamble, hello: &Hello) -> Result<(), Failed> {
        self.raw(&[&Preamble { role: Role::File, ..*preamble }.encode()])?;
        let frame = self.encoder.message(&Message::Hello(hello.clone()))?;
        self.frame(&[&frame])
    }

    /// All of a data connection, each frame checked and numbered anew; what was in it of
    /// each device.
    fn copy(
        &mut self,
        from: &mut dyn Receive,
        role: Role,
        preamble: &Preamble,
        devices: usize,
    ) -> Result<Vec<LoadedDevice>, Failed> {
        let none =
            LoadedDevice { bytes: 0, crc: 0, load_us: 0, validated_at_start: false };
        let mut loaded = vec![none; devices];
        let mut decoder = Decoder::new(role, preamble.page_size);
        let mut buffer = Vec::new();
        let heard = |error: ChannelError| Cause::Channel(chain(&error));
        loop {
            let mut head = [0; Header::SIZE];
            from.receive(&mut head).map_err(heard)?;
            let header = decoder.header(&head)?;
            let length = header.length as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            from.receive(&mut buffer[..length]).map_err(heard)?;
            let payload = &buffer[..length];
            match decoder.payload(&header, payload)? {
                Frame::ChannelEnd(_) => {
                    let end = self.encoder.channel_end()?;
                    self.frame(&[&end])?;
                    return Ok(loaded);
                }
                Frame::DeviceEnd(end) => {
                    if let Some(device) = loaded.get_mut(end.device as usize) {
                        (device.bytes, device.crc) = (end.length, end.crc);
                    }
                }
                _ => {}
            }
            let head = self.encoder.header(header.kind, header.flags, &[payload])?;
            self.frame(&[&head, payload])?;
        }
    }

    fn frame(&mut self, parts: &[&[u8]]) -> Result<(), Failed> {
        self.raw(parts)?;
        self.extent.frames += 1;
        Ok(())
    }

    fn raw(&mut self, parts: &[&[u8]]) -> Result<(), Failed> {
        let slices: Vec<IoSlice<'_>> =
            parts.iter().map(|part| IoSlice::new(part)).collect();
        self.into.send(&slices).map_err(Failed::File)?;
        self.extent.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }
}

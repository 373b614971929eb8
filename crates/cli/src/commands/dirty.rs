//! `vfio-migrate dirty`: which memory a device writes, without any migration.
//!
//! ```text
//!   refuse -> lend memory -> start the log -> (let it write)
//!          -> every interval: ask the log, say a line, colour a column
//!          -> (stop it) -> ask a last time -> stop the log -> take the memory back
//! ```
//!
//! Who is asked, [`logs`] says. The device runs all the time, and whatever was done to
//! watch it is undone at the end, however that comes.

mod lent;
mod logs;
mod picture;

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ::dirty::{Bitmap, Drained, IovaRange, PageSize};
use anyhow::{Context, Result};
use control::Transport;
use port::{Archive, Transmit};
use serde_json::{Value, json};
use store::SavedFile;

use self::lent::{Driven, Lent, Wrote};
use self::logs::{Kind, Logs};
use self::picture::{Heat, Words};
use crate::args::Dirty;
use crate::exit::{Exit, Found, Nonsense, status};
use crate::output;
use crate::signals::cancel_once;
use crate::units::Size;

/// How many ranges a line names.
const HOTTEST: usize = 3;

/// Watches, and says.
pub(super) fn run(dirty: &Dirty) -> Result<Exit> {
    if dirty.interval > dirty.duration {
        return Err(Nonsense(format!(
            "--interval {:?} is longer than --duration {:?}: no interval would end",
            dirty.interval, dirty.duration
        ))
        .into());
    }
    if dirty.picture.as_deref().is_some_and(store::is_standard_output) {
        return Err(Nonsense(
            "--picture -: standard output is for the lines; name a file".to_owned(),
        )
        .into());
    }
    let range = IovaRange::new(dirty.iova, dirty.memory.bytes())
        .map_err(|error| Nonsense(error.to_string()))?;
    let device = &dirty.device;
    let transport = device.reach(device.to_string())?.transport();
    let mut picture = match &dirty.picture {
        Some(path) => Some(SavedFile::create(path, true)?),
        None => None,
    };
    let (asked, signal) = channel();
    let _watching = cancel_once(move || {
        // Whoever waited for it has ended by itself.
        let _ = asked.send(());
    })?;
    let mut heat = Heat::new(range, intervals(dirty));
    let seen = watch(&transport, dirty, range, &signal, &mut heat);
    let said = match &seen {
        Ok(seen) => seen.sentence(range),
        Err(_) => {
            let (size, start) = (Size::from_bytes(range.length()), range.start());
            format!("{size} at {start:#x}, until it could not be watched any more")
        }
    };
    // What was seen before a device went away is worth as much.
    let picture = picture.as_mut().filter(|_| seen.is_ok() || heat.begun());
    let drawn = picture.map_or(Ok(false), |file| {
        let device = device.to_string();
        let words = Words { device: &device, interval: dirty.interval, said: &said };
        let svg = heat.svg(&words);
        file.send(&[IoSlice::new(svg.as_bytes())])?;
        file.commit().map(|()| true)
    });
    // And what was counted, on a full disk.
    let named = dirty.picture.as_deref().filter(|_| matches!(drawn, Ok(true)));
    let seen = seen.with_context(|| match (heat.begun(), named, &drawn) {
        (false, ..) => format!("{device} cannot be watched"),
        (true, None, Err(error)) => format!(
            "{device} cannot be watched any more, nor its picture written ({error})"
        ),
        (true, None, Ok(_)) => format!("{device} cannot be watched any more"),
        (true, Some(path), _) => format!(
            "{device} cannot be watched any more (what was seen until then: {})",
            path.display()
        ),
    })?;
    output::say(&seen.text(dirty, range, named), &seen.to_json(dirty, range, named))?;
    drawn.context("cannot write the picture")?;
    Ok(status(Found::Done))
}

/// How many lines there will be.
fn intervals(dirty: &Dirty) -> u64 {
    let many = dirty.duration.as_nanos().div_ceil(dirty.interval.as_nanos().max(1));
    u64::try_from(many).unwrap_or(u64::MAX)
}

/// What was seen altogether.
struct Seen {
    /// Who told it, and what that is called.
    log: Option<(Kind, String)>,
    seconds: f64,
    intervals: u64,
    /// What one bit of the log stands for, in bytes.
    page: u64,
    /// Pages that were written, counted once an interval.
    pages: u64,
    bytes: u64,
    peak: f64,
    /// Bytes that were written at all.
    ever: u64,
    wrote: Option<Wrote>,
    driven_before: bool,
    cut_short: bool,
}

/// Refuses, or watches and leaves the device as it was.
fn watch(
    transport: &Arc<dyn Transport>,
    dirty: &Dirty,
    range: IovaRange,
    signal: &Receiver<()>,
    heat: &mut Heat,
) -> Result<Seen> {
    let kernel = dirty.device.socket().is_none();
    let mut logs = Logs::of(transport, kernel)?;
    let lent = match dirty.watch_only {
        true => None,
        false => Some(Lent::new(Arc::clone(transport), range)?),
    };
    let seen = logs.start(range).context("its log cannot be used").and_then(|log| {
        let seen = drive(transport, &mut logs, dirty, range, signal, heat);
        // Whatever went wrong: nobody will ask it any more.
        let stopped = logs.stop().context("its log may still be on");
        let seen = seen.and_then(|seen| stopped.map(|()| seen))?;
        Ok(Seen { log: Some(log), ..seen })
    });
    let back = lent.map_or(Ok(()), Lent::give_back);
    let seen = seen?;
    back?;
    Ok(seen)
}

/// Lets it write where it is to, and asks the log until the time is over.
fn drive(
    transport: &Arc<dyn Transport>,
    log: &mut Logs,
    dirty: &Dirty,
    range: IovaRange,
    signal: &Receiver<()>,
    heat: &mut Heat,
) -> Result<Seen> {
    let mut watching = Watching::new(log, range, heat)?;
    let rate = if dirty.watch_only { 0 } else { dirty.rate.bytes_per_second() };
    let driven = Driven::start(transport, range, rate)?;
    let looked = watching.until_over(dirty, &driven, signal);
    if let Driven::Here(ring) = &driven {
        let back = ring.put_back().context("cannot leave the accelerator as it was");
        looked?;
        back?;
    } else {
        looked?;
    }
    let mut seen = watching.seen;
    seen.driven_before = matches!(driven, Driven::Before);
    Ok(seen)
}

/// A log that is read.
struct Watching<'a> {
    log: &'a mut Logs,
    range: IovaRange,
    heat: &'a mut Heat,
    /// Of the interval that goes on.
    now: Bitmap,
    /// Since the start.
    ever: Bitmap,
    seen: Seen,
}

impl<'a> Watching<'a> {
    fn new(
        log: &'a mut Logs,
        range: IovaRange,
        heat: &'a mut Heat,
    ) -> Result<Watching<'a>> {
        let seen = Seen {
            log: None,
            seconds: 0.0,
            intervals: 0,
            page: PageSize::FOUR_K.bytes(),
            pages: 0,
            bytes: 0,
            peak: 0.0,
            ever: 0,
            wrote: None,
            driven_before: false,
            cut_short: false,
        };
        let now = Bitmap::new(range, PageSize::FOUR_K)?;
        let ever = Bitmap::new(range, PageSize::FOUR_K)?;
        Ok(Watching { log, range, heat, now, ever, seen })
    }

    fn until_over(
        &mut self,
        dirty: &Dirty,
        driven: &Driven,
        signal: &Receiver<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut from = Duration::ZERO;
        loop {
            // Where asking took longer than an interval, those that were missed are part
            // of this one.
            let missed = from.as_nanos() / dirty.interval.as_nanos().max(1);
            let missed = u32::try_from(missed).unwrap_or(u32::MAX);
            let due = dirty.interval.saturating_mul(missed.saturating_add(1));
            let due = due.min(dirty.duration);
            let wait = due.saturating_sub(start.elapsed());
            let called = signal.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
            let over = called || due == dirty.duration;
            if over && let Driven::Here(ring) = driven {
                // The last report then holds the last write.
                self.seen.wrote = Some(ring.stop()?);
            }
            let to = start.elapsed();
            self.ask(from, to)?;
            if over {
                self.seen.cut_short = called;
                self.seen.seconds = to.as_secs_f64();
                self.seen.ever = self.ever.drain().bytes();
                return Ok(());
            }
            from = to;
        }
    }

    /// One interval: asks, and says a line.
    fn ask(&mut self, from: Duration, to: Duration) -> Result<()> {
        let (now, page) = (&self.now, &mut self.seen.page);
        self.log.collect(self.range, &mut |report| {
            *page = report.page.bytes().max(*page);
            now.merge(report.range, report.page, report.words);
        })?;
        let drained = self.now.drain();
        self.ever.restore(&drained);
        self.heat.add(from, to, drained.runs());
        let bytes = drained.bytes();
        let pages = bytes.div_ceil(self.seen.page);
        let rate = bytes as f64 / (to - from).as_secs_f64().max(1e-6);
        let seen = &mut self.seen;
        seen.intervals += 1;
        seen.pages += pages;
        seen.bytes += bytes;
        seen.peak = seen.peak.max(rate);
        let hottest = hottest(&drained);
        let named: Vec<String> = hottest
            .iter()
            .map(|run| format!("{run} ({})", Size::from_bytes(run.length())))
            .collect();
        let text = format!(
            "{:>9.3} s  {pages:>8} pages  {:>10}  {:>10}/s  {}",
            to.as_secs_f64(),
            Size::from_bytes(bytes).to_string(),
            Size::from_bytes(rate as u64).to_string(),
            named.join(", "),
        );
        let hottest: Vec<Value> = hottest
            .iter()
            .map(|run| json!({ "iova": run.start(), "bytes": run.length() }))
            .collect();
        output::say(
            text.trim_end(),
            &json!({ "interval": {
                "seconds": to.as_secs_f64(),
                "pages": pages,
                "bytes": bytes,
                "bytes_per_second": rate as u64,
                "hottest": hottest,
            }}),
        )?;
        Ok(())
    }
}

/// The longest runs, the longest first.
fn hottest(drained: &Drained) -> Vec<IovaRange> {
    let mut most: Vec<IovaRange> = Vec::with_capacity(HOTTEST + 1);
    for run in drained.runs() {
        let place = most.partition_point(|other| other.length() >= run.length());
        if place < HOTTEST {
            most.insert(place, run);
            most.truncate(HOTTEST);
        }
    }
    most
}

impl Seen {
    /// For the picture.
    fn sentence(&self, range: IovaRange) -> String {
        let mut text = format!(
            "{} at {:#x}: {} in {} pages of {} written in {:.1} s, {}/s at most",
            Size::from_bytes(range.length()),
            range.start(),
            Size::from_bytes(self.bytes),
            self.pages,
            Size::from_bytes(self.page),
            self.seconds,
            Size::from_bytes(self.peak as u64),
        );
        if self.tells_nothing(range) {
            text += "; all of it each time, which tells nothing";
        }
        text
    }

    fn text(&self, dirty: &Dirty, range: IovaRange, picture: Option<&Path>) -> String {
        let mut text = format!(
            "{}: {} pages of {} ({}) in {:.1} s, {}/s on average, {}/s at most; {} of {} \
             were written at all",
            dirty.device,
            self.pages,
            Size::from_bytes(self.page),
            Size::from_bytes(self.bytes),
            self.seconds,
            Size::from_bytes(self.average()),
            Size::from_bytes(self.peak as u64),
            Size::from_bytes(self.ever),
            Size::from_bytes(range.length()),
        );
        if let Some((_, name)) =
            self.log.as_ref().filter(|(kind, _)| *kind != Kind::Device)
        {
            text += &format!("; told by {name}");
        }
        if self.tells_nothing(range) {
            text += ", for which everything is dirty on each question: it counts what the \
                     device may have written, and tells nothing of what it did write";
        }
        if let Some(Wrote { blocks, errors }) = self.wrote {
            text += &format!("; it was made to write {blocks} blocks of 4 KiB");
            if errors > 0 {
                text += &format!(", {errors} more failed");
            }
        }
        if self.driven_before {
            text += "; it does what somebody has programmed before, and was left to it \
                     (`start --reset` empties it)";
        } else if self.bytes == 0 && self.wrote.is_none() {
            text += "; nobody is known to make it write here";
        }
        if let Some(picture) = picture {
            text += &format!("; picture: {}", picture.display());
        }
        text
    }

    /// Whether everything was dirty each time, to somebody who does not know better.
    fn tells_nothing(&self, range: IovaRange) -> bool {
        let guesses = self.log.as_ref().is_some_and(|(kind, _)| *kind != Kind::Device);
        guesses && self.bytes == range.length().saturating_mul(self.intervals)
    }

    fn average(&self) -> u64 {
        (self.bytes as f64 / self.seconds.max(1e-6)) as u64
    }

    fn to_json(&self, dirty: &Dirty, range: IovaRange, picture: Option<&Path>) -> Value {
        json!({ "summary": {
            "device": dirty.device.to_string(),
            "log": self.log.as_ref().map(|(kind, name)| json!({
                "kind": kind.name(),
                "name": name,
                "all_each_time": self.tells_nothing(range),
            })),
            "iova": dirty.iova,
            "memory_bytes": dirty.memory.bytes(),
            "lent": !dirty.watch_only,
            "seconds": self.seconds,
            "intervals": self.intervals,
            "cut_short": self.cut_short,
            "page_bytes": self.page,
            "pages": self.pages,
            "bytes": self.bytes,
            "bytes_per_second": self.average(),
            "peak_bytes_per_second": self.peak as u64,
            "ever_bytes": self.ever,
            "made_to_write": self.wrote.map(|wrote| json!({
                "blocks": wrote.blocks,
                "errors": wrote.errors,
            })),
            "programmed_before": self.driven_before,
            "picture": picture.map(|path| path.display().to_string()),
        }})
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use abi::errno::Errno;
    use abi::feature::Feature;
    use clap::Parser;
    use control::{
        DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea, RegionInfo,
        TransportError,
    };
    use sys::EventFd;

    /// A device that cannot migrate, whose log somebody else reads, or that has none.
    #[derive(Default)]
    struct Watched {
        has_log: bool,
        /// What was done to it.
        done: Mutex<Vec<String>>,
    }

    fn no<T>(errno: Errno) -> Result<T, TransportError> {
        Err(TransportError::Errno { operation: "test", errno })
    }

    impl Transport for Watched {
        fn name(&self) -> &str {
            "watched"
        }
        fn device_info(&self) -> Result<DeviceInfo, TransportError> {
            Ok(DeviceInfo { flags: 2, regions: 0, irqs: 0 })
        }
        fn region_info(&self, _: u32) -> Result<RegionInfo, TransportError> {
            no(Errno::EINVAL)
        }
        fn irq_info(&self, _: u32) -> Result<IrqInfo, TransportError> {
            no(Errno::EINVAL)
        }
        fn region_read(
            &self,
            _: u32,
            _: u64,
            _: &mut [u8],
        ) -> Result<(), TransportError> {
            no(Errno::EINVAL)
        }
        fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), TransportError> {
            self.done.lock().unwrap().push("write".to_owned());
            Ok(())
        }
        fn region_map(&self, _: u32, _: u64) -> Result<MappedArea, TransportError> {
            no(Errno::EINVAL)
        }
        fn feature_probe(&self, feature: Feature) -> Result<(), TransportError> {
            let log = [
                Feature::DMA_LOGGING_START,
                Feature::DMA_LOGGING_STOP,
                Feature::DMA_LOGGING_REPORT,
            ];
            if self.has_log && log.contains(&feature) {
                Ok(())
            } else {
                no(Errno::ENOTTY)
            }
        }
        fn feature_get(
            &self,
            feature: Feature,
            _: &[u8],
            _: usize,
        ) -> Result<Vec<u8>, TransportError> {
            // Reading the migration feature changes nothing; reading the log does.
            if feature == Feature::DMA_LOGGING_REPORT {
                self.done.lock().unwrap().push("report".to_owned());
            }
            no(Errno::ENOTTY)
        }
        fn feature_set(
            &self,
            feature: Feature,
            _: &[u8],
        ) -> Result<Vec<u8>, TransportError> {
            self.done.lock().unwrap().push(feature.to_string());
            no(Errno::EINVAL)
        }
        fn set_migration_state(
            &self,
            _: abi::v2::DeviceState,
            _: Option<Direction>,
        ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
            self.done.lock().unwrap().push("state".to_owned());
            no(Errno::ENOTTY)
        }
        fn set_irqs(&self, _: u32, _: u32, _: &[&EventFd]) -> Result<(), TransportError> {
            no(Errno::EINVAL)
        }
        fn dma_map(&self, _: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
            self.done.lock().unwrap().push("map".to_owned());
            Ok(())
        }
        fn dma_unmap(&self, _: IovaRange) -> Result<(), TransportError> {
            self.done.lock().unwrap().push("unmap".to_owned());
            Ok(())
        }
        fn reset(&self) -> Result<(), TransportError> {
            self.done.lock().unwrap().push("reset".to_owned());
            Ok(())
        }
    }

    /// Why it is not watched, and what was done to it all the same.
    fn refused(has_log: bool) -> (String, Vec<String>) {
        let device = Arc::new(Watched { has_log, ..Watched::default() });
        let line = ["vfio-migrate", "dirty", "vfio-user:/nowhere"];
        let cli = crate::args::Cli::try_parse_from(line).expect("arguments");
        let crate::args::Command::Dirty(dirty) = cli.command else { panic!("dirty") };
        let range = IovaRange::new(0, 1 << 20).expect("a range");
        let (_asked, signal) = channel();
        let mut heat = Heat::new(range, 1);
        let transport: Arc<dyn Transport> = device.clone();
        let error = watch(&transport, &dirty, range, &signal, &mut heat).err();
        let done = device.done.lock().unwrap().clone();
        (format!("{:#}", error.expect("refused")), done)
    }

    #[test]
    fn a_log_that_somebody_reads_is_neither_read_nor_stopped() {
        let (why, done) = refused(true);
        assert!(why.contains("somebody else reads it"), "{why}");
        // Memory for it to write was lent, and taken back.
        assert_eq!(done, ["map", &Feature::DMA_LOGGING_START.to_string(), "unmap"]);
    }

    #[test]
    fn a_device_without_a_log_is_refused_before_anything_is_done() {
        let (why, done) = refused(false);
        assert!(why.contains("keeps no log"), "{why}");
        assert_eq!(done, [""; 0]);
    }
}

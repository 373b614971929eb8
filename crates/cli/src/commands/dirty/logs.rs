//! Who tells what a device writes: the first of these that starts.
//!
//! ```text
//!   its own DMA log            nothing else changes for it
//!   its way to memory          an IOMMU's page table, a container: neither does it
//!   the query of 2018's RFC    told in pre-copy alone: into it, and cancelled at the end
//! ```

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use control::{AnyDevice, DmaLog, ProbeError, Transport};
use dirty::{IovaRange, PageSize};
use port::{Device, DirtyReport, DirtySource, Generation, Opened, SaveSession};
use states::v2::State;

/// What there is to ask of a device that runs.
pub(super) struct Logs {
    sources: Vec<(Kind, Box<dyn DirtySource>)>,
    /// The one that was started.
    started: Option<usize>,
    /// One that can migrate.
    device: Option<AnyDevice>,
    /// Of a device that is in pre-copy. What it would save is left unread.
    saving: Option<Box<dyn SaveSession>>,
}

/// Who keeps a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The device.
    Device,
    /// What lies between it and memory.
    Memory,
    /// The device, while it is in pre-copy.
    PreCopy,
}

impl Kind {
    /// As JSON has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::Memory => "memory",
            Kind::PreCopy => "pre-copy",
        }
    }
}

impl Logs {
    /// Looks for them, and starts nothing. `kernel` is whether the device is one of the
    /// kernel's.
    ///
    /// A device that is being migrated is somebody else's to watch, and one that is
    /// stopped writes nothing. One that cannot migrate may keep a log all the same.
    pub(super) fn of(transport: &Arc<dyn Transport>, kernel: bool) -> Result<Logs> {
        let device = match control::open_any(Arc::clone(transport)) {
            Ok(mut device) => {
                refuse_unless_running(device.state()?)?;
                Some(device)
            }
            Err(ProbeError::NotMigratable { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let mut sources: Vec<(Kind, Box<dyn DirtySource>)> = Vec::new();
        if let Some(log) = DmaLog::open(Arc::clone(transport))? {
            sources.push((Kind::Device, Box::new(log)));
        }
        let below = transport.memory_log().context("cannot ask its way to memory")?;
        sources.extend(below.map(|log| (Kind::Memory, log)));
        if let Some(device) = &device
            && device.identity().generation == Generation::RFC2018
        {
            sources.extend(device.own_log()?.map(|log| (Kind::PreCopy, log)));
        }
        if sources.is_empty() {
            bail!(
                "it keeps no log of its writes (DMA logging, Linux 6.1), and nothing \
                 between it and memory does, so that nobody can tell what it writes and \
                 a migration takes all of its memory for dirty; watch a device that \
                 keeps one: `probe` says so{}",
                if kernel {
                    "; or open this one by its group (?by=group), whose container \
                     counts the pages that mediated devices pin"
                } else {
                    ""
                }
            );
        }
        Ok(Logs { sources, started: None, device, saving: None })
    }

    /// Starts the first that starts; says which, and what it is called.
    pub(super) fn start(&mut self, range: IovaRange) -> Result<(Kind, String)> {
        let mut first = None;
        for number in 0..self.sources.len() {
            match self.start_one(number, range) {
                Ok(()) => {
                    self.started = Some(number);
                    let (kind, source) = &self.sources[number];
                    return Ok((*kind, source.name().to_owned()));
                }
                Err(error) => {
                    tracing::info!(log = self.sources[number].1.name(), %error, "no");
                    // What the best of them lacks is what people can do something about.
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.context("there is no log")?)
    }

    fn start_one(&mut self, number: usize, range: IovaRange) -> Result<()> {
        let (kind, source) = &mut self.sources[number];
        let kind = *kind;
        if kind != Kind::PreCopy {
            return Ok(source.start(&[range], PageSize::FOUR_K)?);
        }
        let device = self.device.as_mut().context("there is no device")?;
        let Opened::Save(session) = device.set_state(State::PreCopy)? else {
            bail!("it went to pre-copy, and opened no session");
        };
        self.saving = Some(session);
        let started = source.start(&[range], PageSize::FOUR_K);
        if let Err(error) = started {
            self.cancel()?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Gives what was written since the last time.
    pub(super) fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<()> {
        let number = self.started.context("no log was started")?;
        Ok(self.sources[number].1.collect(range, found)?)
    }

    /// Stops it; the device is in the state that it was found in.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(number) = self.started.take() else { return Ok(()) };
        let stopped = self.sources[number].1.stop();
        self.cancel()?;
        Ok(stopped?)
    }

    /// Out of pre-copy, if it is in it; it ran all the time.
    fn cancel(&mut self) -> Result<()> {
        if let (Some(session), Some(device)) = (self.saving.take(), &mut self.device) {
            let back = device.set_state(State::Running);
            drop(session);
            back.context("it may still be in pre-copy; `start` lets it go on")?;
        }
        Ok(())
    }
}

fn refuse_unless_running(state: State) -> Result<()> {
    match state {
        State::Running => Ok(()),
        State::Error => bail!("it is in ERROR; `start --reset` brings it back, empty"),
        state => bail!(
            "it is in {state}, so that somebody migrates it or left it stopped: wait for \
             the end, or let it run with `start`"
        ),
    }
}

#[cfg(test)]
mod tests;

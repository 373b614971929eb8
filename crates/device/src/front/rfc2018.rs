//! The registers of document 001: 76 packed bytes, read and written by field or by whole
//! sub-structure.

use super::{Reach, asked, word};
use crate::{PAGE_SMALLEST, Runner};
use abi::errno::Errno;
use abi::rfc2018::{DataSection, DirtyPfns, FlowState, PendingBytes, RfcField};
use states::rfc2018::{Act, RfcState, front};
use states::v2::State;
use zerocopy::{FromBytes, IntoBytes};

/// What a page frame number counts, in bytes.
const PAGE: u64 = PAGE_SMALLEST;

/// The registers of an rfc2018 region.
pub(super) struct RfcFront {
    step: RfcState,
    /// What the step will be when the write that is being carried out is done.
    then: RfcState,
    threshold: u64,
    /// Where the client said that it put the data; `None` for the section's start.
    data_at: Option<u64>,
    query: Query,
    /// The DMA log was started here, in SETUP, and ends with the migration.
    logs: bool,
}

/// A query for dirty pages, and how far it was answered.
#[derive(Clone, Copy, Default)]
struct Query {
    /// In bytes.
    start: u64,
    /// In pages; as many as fit below 2^64 bytes.
    total: u64,
    /// In pages.
    answered: u64,
}

impl RfcFront {
    pub(super) fn new() -> RfcFront {
        RfcFront {
            step: RfcState::None,
            then: RfcState::None,
            threshold: 0,
            data_at: None,
            query: Query::default(),
            logs: false,
        }
    }

    /// What was written came true.
    pub(super) fn arrived(&mut self, runner: &mut Runner) {
        self.step = self.then;
        self.data_at = None;
        match self.step {
            // Tracking has no switch of its own in this generation. A log that the client
            // started by a feature is left to the client.
            RfcState::Setup if runner.log_page_size().is_none() => {
                self.logs = runner.log_start(PAGE, &[]).is_ok();
            }
            RfcState::Setup | RfcState::PreCopy | RfcState::StopNCopy => {}
            _ if std::mem::take(&mut self.logs) => runner.log_stop(),
            _ => {}
        }
    }

    /// The client is gone, and with it the DMA log.
    pub(super) fn disconnected(&mut self) {
        self.logs = false;
        self.query = Query::default();
        self.data_at = None;
    }

    /// The device was found in `state` without having been asked.
    pub(super) fn found(&mut self, state: State, reset: bool) {
        self.data_at = None;
        self.step = match state {
            State::Running if reset => RfcState::None,
            State::Running => RfcState::Running,
            State::PreCopy => RfcState::PreCopy,
            State::StopCopy => RfcState::StopNCopy,
            State::Stop => RfcState::SaveCompleted,
            State::Resuming => RfcState::Resume,
            // There is no state for it: every step is refused until the reset.
            State::Error | State::RunningP2p | State::PreCopyP2p => RfcState::Failed,
        };
    }

    pub(super) fn read(
        &mut self,
        reach: &mut Reach<'_>,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        let field = RfcField::find(offset, into.len()).ok_or(Errno::EINVAL)?;
        let value = match field {
            // The document has it as input only.
            RfcField::DeviceState => return Err(Errno::EINVAL),
            RfcField::Pending => {
                let pending = self.pending(reach)?;
                into.copy_from_slice(pending.as_bytes());
                return Ok(());
            }
            RfcField::Data => {
                let size = reach.show()?;
                let data = DataSection { offset: reach.section.at(), size };
                into.copy_from_slice(data.as_bytes());
                return Ok(());
            }
            RfcField::DirtyPfns => {
                let copied = self.query.answer(reach)?;
                let Query { start: start_addr, total, .. } = self.query;
                let answer = DirtyPfns { start_addr, total, copied };
                into.copy_from_slice(answer.as_bytes());
                return Ok(());
            }
            RfcField::PrecopyOnly => self.pending(reach)?.precopy_only,
            RfcField::Compatible => self.pending(reach)?.compatible,
            RfcField::PostcopyOnly => self.pending(reach)?.postcopy_only,
            RfcField::ThresholdSize => self.threshold,
            RfcField::Offset => {
                reach.show()?;
                reach.section.at()
            }
            RfcField::Size => reach.shown(),
            RfcField::StartAddr => self.query.start,
            RfcField::Total => self.query.total,
            RfcField::Copied => self.query.answer(reach)?,
        };
        into.copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    /// What is pending. In pre-copy initial data "must" and changed data "may" be read
    /// while the device runs, and the rest when it has stopped; then all of it has to be
    /// read before the target starts. Elsewhere it is what a save would move.
    fn pending(&self, reach: &mut Reach<'_>) -> Result<PendingBytes, Errno> {
        let pending = reach.pending()?;
        let (precopy_only, compatible, postcopy_only) = match self.step {
            RfcState::PreCopy if reach.saves() => {
                let now = pending.initial.saturating_add(pending.dirty);
                let later = pending.whole.saturating_sub(now);
                (pending.initial, pending.dirty, later)
            }
            RfcState::StopNCopy => (0, 0, pending.whole),
            RfcState::None | RfcState::Running | RfcState::Setup | RfcState::PreCopy => {
                (0, 0, reach.runner.stop_copy_bytes())
            }
            _ => (0, 0, 0),
        };
        let threshold_size = self.threshold;
        Ok(PendingBytes { precopy_only, compatible, postcopy_only, threshold_size })
    }

    /// What a write asks of the device; `None` where it is done.
    pub(super) fn write(
        &mut self,
        reach: &mut Reach<'_>,
        offset: u64,
        data: &[u8],
        busy: bool,
    ) -> Result<Option<Act>, Errno> {
        match RfcField::find(offset, data.len()).ok_or(Errno::EINVAL)? {
            RfcField::DeviceState => {
                if reach.runner.state() == State::Error {
                    return Err(Errno::EIO);
                }
                let model = reach.runner.description().capabilities;
                let stepped =
                    asked(data, busy, |step| front(model, self.step, FlowState(step)))?;
                self.then = stepped.then;
                return Ok(Some(stepped.act));
            }
            RfcField::ThresholdSize => self.threshold = word(data)?,
            RfcField::Data => {
                let data =
                    DataSection::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                reach.load(data.offset, data.size)?;
            }
            RfcField::Offset => {
                let at = word(data)?;
                if reach.runner.state() != State::Resuming || !reach.section.holds(at, 1)
                {
                    return Err(Errno::EINVAL);
                }
                self.data_at = Some(at);
            }
            RfcField::Size => {
                reach.load(self.data_at.unwrap_or(reach.section.at()), word(data)?)?;
            }
            RfcField::DirtyPfns => {
                let asked =
                    DirtyPfns::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                self.query = Query::new(reach, asked.start_addr, asked.total)?;
            }
            RfcField::StartAddr => {
                self.query = Query { start: word(data)?, ..Query::default() };
            }
            RfcField::Total => {
                self.query = Query::new(reach, self.query.start, word(data)?)?;
            }
            RfcField::Pending
            | RfcField::PrecopyOnly
            | RfcField::Compatible
            | RfcField::PostcopyOnly
            | RfcField::Copied => return Err(Errno::EINVAL),
        }
        Ok(None)
    }
}

impl Query {
    /// A query, where the log runs and the range is one.
    fn new(reach: &Reach<'_>, start: u64, total: u64) -> Result<Query, Errno> {
        let end = total.checked_mul(PAGE).and_then(|length| start.checked_add(length));
        if end.is_none()
            || total == 0
            || !start.is_multiple_of(PAGE)
            || reach.runner.log_page_size().is_none()
        {
            return Err(Errno::EINVAL);
        }
        Ok(Query { start, total, answered: 0 })
    }

    /// Puts the bitmap of the next pages into the section and says how many they are:
    /// all that are left, or as many as the section has bits, and 0 only when there are
    /// no more. The bits are drained.
    fn answer(&mut self, reach: &mut Reach<'_>) -> Result<u64, Errno> {
        let bits = reach.section.length() * 8;
        let pages = (self.total - self.answered).min(bits);
        if pages == 0 {
            return Ok(0);
        }
        let start = self.start + self.answered * PAGE;
        let words_max = (bits / 64) as usize;
        let mut words = reach.runner.log_report(start, pages * PAGE, PAGE, words_max)?;
        // A log that gave up says more than it was asked for.
        if let Some(last) = words.last_mut().filter(|_| !pages.is_multiple_of(64)) {
            *last &= (1 << (pages % 64)) - 1;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        reach.section.write(reach.section.at(), &bytes)?;
        self.answered += pages;
        Ok(pages)
    }
}

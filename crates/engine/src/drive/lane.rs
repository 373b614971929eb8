//! The sending end of a data connection, shared by whoever has bytes for it.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use port::{ChannelError, Transmit};
use thiserror::Error;
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord};
use wire::memory::RunTable;
use wire::preamble::Role;
use wire::section::{SectionData, SectionInfo};
use wire::{Encoder, FrameError};

/// One data connection. A frame goes out whole or the connection is done for.
pub(super) struct Lane {
    end: Mutex<End>,
    sent: AtomicU64,
}

struct End {
    encoder: Encoder,
    transmit: Box<dyn Transmit>,
}

/// How much is sent before it is counted: a frame on a slow link, which several may
/// share, moves as long as its pieces do.
const PIECE: usize = 512 << 10;

/// A frame could not be sent.
#[derive(Debug, Error)]
pub(super) enum LaneError {
    /// It breaks the stream's own rules.
    #[error("a frame cannot be encoded")]
    Frame(#[from] FrameError),
    /// The connection failed.
    #[error("a data connection failed")]
    Channel(#[from] ChannelError),
}

impl Lane {
    /// A connection whose preamble was sent.
    pub(super) fn new(role: Role, transmit: Box<dyn Transmit>) -> Lane {
        let end = End { encoder: Encoder::new(role), transmit };
        Lane { end: Mutex::new(end), sent: AtomicU64::new(0) }
    }

    /// Bytes that went out, frames and all.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Runs of memory and their bytes.
    pub(super) fn memory(&self, table: &RunTable, data: &[u8]) -> Result<(), LaneError> {
        let mut end = self.lock();
        let header = end.encoder.memory(table, data)?;
        self.transmit(&mut end, &[&header, table.prefix(), data])
    }

    /// A device's data begins.
    pub(super) fn device_begin(&self, begin: &DeviceBegin) -> Result<(), LaneError> {
        self.whole(|encoder| encoder.device_begin(begin))
    }

    /// A piece of a device's data.
    pub(super) fn device_data(&self, data: &DeviceData<'_>) -> Result<(), LaneError> {
        let mut end = self.lock();
        let head = end.encoder.device_data(data)?;
        self.transmit(&mut end, &[&head, data.bytes])
    }

    /// A device's data is complete.
    pub(super) fn device_end(&self, last: &DeviceEnd) -> Result<(), LaneError> {
        self.whole(|encoder| encoder.device_end(last))
    }

    /// A device's config space.
    pub(super) fn config(&self, record: &DeviceRecord<'_>) -> Result<(), LaneError> {
        let mut end = self.lock();
        let head = end.encoder.config(record)?;
        self.transmit(&mut end, &[&head, record.bytes])
    }

    /// A device's pending interrupts.
    pub(super) fn interrupts(&self, record: &DeviceRecord<'_>) -> Result<(), LaneError> {
        let mut end = self.lock();
        let head = end.encoder.interrupts(record)?;
        self.transmit(&mut end, &[&head, record.bytes])
    }

    /// A section begins.
    pub(super) fn section_begin(&self, info: &SectionInfo) -> Result<(), LaneError> {
        self.whole(|encoder| encoder.section_begin(info))
    }

    /// A piece of a section.
    pub(super) fn section_data(&self, data: &SectionData<'_>) -> Result<(), LaneError> {
        let mut end = self.lock();
        let head = end.encoder.section_data(data)?;
        self.transmit(&mut end, &[&head, data.bytes])
    }

    /// A round is complete on this connection.
    pub(super) fn round_end(&self, round: u32) -> Result<(), LaneError> {
        self.whole(|encoder| encoder.round_end(round))
    }

    /// Everything is complete on this connection: count and digest go out.
    pub(super) fn channel_end(&self) -> Result<(), LaneError> {
        self.whole(Encoder::channel_end)
    }

    fn whole(
        &self,
        encode: impl FnOnce(&mut Encoder) -> Result<Vec<u8>, FrameError>,
    ) -> Result<(), LaneError> {
        let mut end = self.lock();
        let frame = encode(&mut end.encoder)?;
        self.transmit(&mut end, &[&frame])
    }

    fn transmit(&self, end: &mut End, parts: &[&[u8]]) -> Result<(), LaneError> {
        let Some((bulk, heads)) = parts.split_last() else { return Ok(()) };
        let (first, rest) = bulk.split_at(bulk.len().min(PIECE));
        let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
        let together = heads.iter().copied().chain([first]);
        for (slice, part) in slices.iter_mut().zip(together) {
            *slice = IoSlice::new(part);
        }
        self.send(end, &slices[..parts.len()])?;
        rest.chunks(PIECE).try_for_each(|piece| self.send(end, &[IoSlice::new(piece)]))
    }

    fn send(&self, end: &mut End, slices: &[IoSlice<'_>]) -> Result<(), LaneError> {
        end.transmit.send(slices)?;
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        // A thread that panicked in here left a frame half sent; the connection's
        // checksums notice, so going on is safe and ends in an error.
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

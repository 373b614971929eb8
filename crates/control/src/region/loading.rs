//! The resume session of a device with a migration region.
//!
//! ```text
//!   where is data wanted? -> checked
//!        |
//!   the bytes of a transaction, as they come
//!        |  its end, or (data without transactions) no room for more
//!   "that many were written"          the data first, then its size
//! ```
//!
//! A transaction is given to the device as it was taken from another, in one; it is
//! never held in memory. Data of a device that knows no transactions (v2) is cut where
//! the data section is full, and what is left of it is handed over when the device
//! leaves RESUMING.

use port::{DeviceError, ResumeSession};

use super::buffers::{Inner, Protocol, Session, Shared, lock};
use super::{Piece, Trouble};

/// What is written.
#[derive(Default)]
pub(crate) struct Loading {
    /// The place of the transaction that is being written.
    place: Option<Piece>,
    /// How much of it was.
    filled: u64,
    /// Whether the data comes in transactions, once that is known.
    transactions: Option<bool>,
    /// Why nothing of this session is to be used.
    pub(crate) failed: Option<String>,
}

impl<P: Protocol> Inner<P> {
    fn write(&mut self, data: &[u8], ends_transaction: bool) -> Result<(), Trouble> {
        let mut left = data;
        while !left.is_empty() {
            let room = self.wanted()?;
            let Session::Loading(loading) = &mut self.session else {
                return Trouble::lie("it has no resume session");
            };
            let whole = loading.filled + left.len() as u64;
            let too_long = match loading.transactions {
                None => ends_transaction && whole > room.size,
                Some(true) => whole > room.size,
                // One that long was cut already.
                Some(false) => ends_transaction,
            };
            if too_long {
                return Trouble::lie(format!(
                    "a transaction of {whole} bytes or more does not fit into its data \
                     section of {} bytes, and a device takes a transaction in one",
                    room.size
                ));
            }
            let free = usize::try_from(room.size - loading.filled).unwrap_or(usize::MAX);
            let (now, later) = left.split_at(free.min(left.len()));
            if now.is_empty() {
                loading.transactions = Some(false);
                self.hand_over()?;
                continue;
            }
            self.region.write(room.offset + loading.filled, now)?;
            loading.filled += now.len() as u64;
            left = later;
        }
        if ends_transaction {
            self.hand_over()?;
            if let Session::Loading(loading) = &mut self.session {
                loading.transactions = Some(true);
            }
        }
        Ok(())
    }

    /// Where the transaction under way goes, and how long it can get.
    fn wanted(&mut self) -> Result<Piece, Trouble> {
        let Session::Loading(loading) = &mut self.session else {
            return Trouble::lie("it has no resume session");
        };
        if let Some(place) = loading.place {
            return Ok(place);
        }
        let offset = self.protocol.place(&self.region)?;
        let place = Piece { offset, size: self.region.room(offset)? };
        loading.place = Some(place);
        self.place = Some(offset);
        Ok(place)
    }

    /// Tells the device how much was written.
    fn hand_over(&mut self) -> Result<(), Trouble> {
        let Session::Loading(loading) = &mut self.session else { return Ok(()) };
        let size = std::mem::take(&mut loading.filled);
        let Some(place) = loading.place.take().filter(|_| size > 0) else {
            return Ok(());
        };
        self.protocol.was_written(&self.region, Piece { size, ..place })
    }

    /// Opens a resume session: the device says where it wants its data, so that the
    /// longest transaction is known from here on.
    pub(crate) fn begin_load(&mut self) -> Result<u64, Trouble> {
        let epoch = self.open(Session::Loading(Loading::default()));
        self.wanted()?;
        Ok(epoch)
    }

    /// Hands over what is left, before the device leaves RESUMING.
    pub(crate) fn finish_load(&mut self) -> Result<(), Trouble> {
        let Session::Loading(loading) = &mut self.session else { return Ok(()) };
        if loading.failed.is_some() || loading.filled == 0 {
            return Ok(());
        }
        if loading.transactions == Some(true) {
            let what = "the data ends in the middle of a transaction";
            loading.failed = Some(what.to_owned());
            return Trouble::lie(what);
        }
        let done = self.hand_over();
        if let (Err(trouble), Session::Loading(loading)) = (&done, &mut self.session) {
            loading.failed = Some(trouble.to_string());
        }
        done
    }
}

/// A resume session, for whoever writes it.
pub(crate) struct Resume<P> {
    shared: Shared<P>,
    epoch: u64,
}

impl<P: Protocol> Resume<P> {
    pub(crate) fn new(shared: Shared<P>, epoch: u64) -> Resume<P> {
        Resume { shared, epoch }
    }
}

impl<P: Protocol> ResumeSession for Resume<P> {
    fn write(&mut self, data: &[u8], ends_transaction: bool) -> Result<(), DeviceError> {
        const OPERATION: &str = "write its data";
        let inner = &mut *lock(&self.shared);
        if inner.epoch != self.epoch {
            return Err(inner.over(OPERATION));
        }
        if let Session::Loading(Loading { failed: Some(why), .. }) = &inner.session {
            let what = format!("its data is not complete: {why}");
            return Err(inner.line.broken(OPERATION, what));
        }
        inner.write(data, ends_transaction).map_err(|trouble| {
            if let Session::Loading(loading) = &mut inner.session {
                loading.failed = Some(trouble.to_string());
            }
            inner.session_error(OPERATION, trouble)
        })
    }
}

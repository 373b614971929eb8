//! Connections that lose, change or end bytes.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use port::{Channel, ChannelError, Close, Halves, Transmit};

/// What happens to the bytes that an end sends, counted from 0 over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// The connection breaks before the byte is sent, both ways; the sender is told.
    Cut(u64),
    /// The byte and all after it never arrive, and the peer sees an orderly end; the
    /// sender is told nothing.
    Truncate(u64),
    /// The byte and all after it never arrive, and nobody is told.
    Swallow(u64),
    /// The byte is changed by exclusive or with the mask.
    Corrupt(u64, u8),
}

/// A channel whose sent bytes are damaged.
pub struct Damaged<C> {
    inner: C,
    damage: Damage,
    sent: Arc<AtomicU64>,
}

impl<C> std::fmt::Debug for Damaged<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Damaged").field("damage", &self.damage).finish_non_exhaustive()
    }
}

impl<C: Channel> Damaged<C> {
    /// Damages what `inner` sends.
    pub fn new(inner: C, damage: Damage) -> Damaged<C> {
        Damaged { inner, damage, sent: Arc::default() }
    }

    /// How many bytes were given to it to send: with [`Damage::None`], how many bytes
    /// there are to damage.
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }
}

impl<C: Channel> Channel for Damaged<C> {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let Damaged { inner, damage, sent } = *self;
        let (transmit, receive, close) = Box::new(inner).split()?;
        let close: Arc<dyn Close> = Arc::from(close);
        let transmit = Out { inner: transmit, damage, sent, close: Arc::clone(&close) };
        Ok((Box::new(transmit), receive, Box::new(Shared(close))))
    }
}

struct Shared(Arc<dyn Close>);

impl Close for Shared {
    fn close(&self) {
        self.0.close();
    }
}

struct Out {
    inner: Box<dyn Transmit>,
    damage: Damage,
    sent: Arc<AtomicU64>,
    close: Arc<dyn Close>,
}

impl Transmit for Out {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let first = self.sent.fetch_add(length, Ordering::SeqCst);
        let at = match self.damage {
            Damage::None => return self.inner.send(parts),
            Damage::Corrupt(at, _)
            | Damage::Cut(at)
            | Damage::Truncate(at)
            | Damage::Swallow(at) => at,
        };
        if at >= first.saturating_add(length) {
            return self.inner.send(parts);
        }
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter()).copied().collect();
        let sound = usize::try_from(at.saturating_sub(first)).unwrap_or(usize::MAX);
        match self.damage {
            Damage::Corrupt(..) if at < first => return self.inner.send(parts),
            Damage::Corrupt(_, mask) => {
                let mut bytes = bytes;
                bytes[sound] ^= mask;
                return self.inner.send(&[IoSlice::new(&bytes)]);
            }
            _ if at >= first => self.inner.send(&[IoSlice::new(&bytes[..sound])])?,
            _ => {}
        }
        match self.damage {
            Damage::Cut(_) => {
                self.close.close();
                Err(ChannelError::Io(std::io::ErrorKind::ConnectionReset.into()))
            }
            Damage::Truncate(_) => {
                self.close.close();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.inner.set_deadline(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair;

    /// What the peer hears of four times three bytes, and whether the sender was told.
    fn heard(damage: Damage) -> (Vec<u8>, bool, bool) {
        let (here, there) = pair(100);
        let (mut transmit, _receive, _) =
            Box::new(Damaged::new(here, damage)).split().unwrap();
        let (_transmit, mut receive, _) = Box::new(there).split().unwrap();
        receive.set_deadline(Duration::from_millis(20));
        let told = (0..4).any(|n| {
            let parts = [3 * n, 3 * n + 1, 3 * n + 2].map(|byte| [byte]);
            transmit.send(&parts.each_ref().map(|part| IoSlice::new(part))).is_err()
        });
        let mut bytes = Vec::new();
        let mut one = [0];
        let end = loop {
            match receive.receive(&mut one) {
                Ok(()) => bytes.push(one[0]),
                Err(error) => break matches!(error, ChannelError::Closed),
            }
        };
        (bytes, told, end)
    }

    #[test]
    fn damage_is_at_the_very_byte() {
        let all: Vec<u8> = (0..12).collect();
        assert_eq!(heard(Damage::None), (all.clone(), false, false));
        for at in 0..12 {
            let until = all[..at as usize].to_vec();
            assert_eq!(heard(Damage::Cut(at)), (until.clone(), true, true));
            assert_eq!(heard(Damage::Truncate(at)), (until.clone(), false, true));
            assert_eq!(heard(Damage::Swallow(at)), (until, false, false));
            let mut changed = all.clone();
            changed[at as usize] ^= 0x80;
            assert_eq!(heard(Damage::Corrupt(at, 0x80)), (changed, false, false));
        }
        assert_eq!(heard(Damage::Cut(12)), (all, false, false));
    }
}

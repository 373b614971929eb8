//! A model that holds bytes.

use std::time::Instant;

use abi::errno::Errno;
use device::{
    Bus, Description, Identity, Migratable, PrecopyInfo, Region, Settle, StateArc, Work,
};
use dirty::Iova;
use states::v2::{Capabilities, Session as Arc, State, session};

/// It gives half of what it holds in pre-copy, and the rest once it has stopped.
///
/// ```text
///   saved: length u64, then so many bytes
///   region 0: 0 w  an address to write to by DMA
///             8 r  length    16 r  the bytes
/// ```
#[derive(Default)]
pub(crate) struct Jar {
    contents: Vec<u8>,
    stream: Vec<u8>,
    at: usize,
    /// How much may be given before it has stopped.
    early: usize,
    state: Option<State>,
}

impl Jar {
    pub(crate) fn new(contents: Vec<u8>) -> Jar {
        Jar { contents, ..Jar::default() }
    }
}

impl Migratable for Jar {
    fn describe(&self) -> Description {
        let region =
            |index, size| Region { index, size, writable: true, windows: Vec::new() };
        Description {
            identity: Identity { pci: None, model: "jar".to_owned(), data_version: 1 },
            capabilities: Capabilities::PRE_COPY,
            regions: vec![region(0, 1 << 20)],
            irqs: Vec::new(),
        }
    }

    fn read(&mut self, _: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let mut all = vec![0; 8];
        all.extend((self.contents.len() as u64).to_ne_bytes());
        all.extend(&self.contents);
        let at = offset as usize;
        into.copy_from_slice(all.get(at..at + into.len()).ok_or(Errno::EINVAL)?);
        Ok(())
    }

    fn write(
        &mut self,
        _: u32,
        _: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let at = u64::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        bus.write(Iova(at), &[1]).map(drop).map_err(|_| Errno::EIO)
    }

    fn reset(&mut self) {
        *self = Jar::default();
    }

    fn enter(&mut self, arc: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        let opens = matches!(session(arc.from, arc.to), opened if Arc::opens(opened));
        if opens {
            (self.stream, self.at) = (Vec::new(), 0);
            if arc.to != State::Resuming {
                self.stream.extend((self.contents.len() as u64).to_ne_bytes());
                self.stream.extend(&self.contents);
                self.early = self.stream.len() / 2;
            }
        }
        if arc.to == State::StopCopy {
            self.early = self.stream.len();
        }
        self.state = Some(arc.to);
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let left = &self.stream[self.at..self.early];
        let bytes = left.len().min(into.len());
        into[..bytes].copy_from_slice(&left[..bytes]);
        self.at += bytes;
        Ok(bytes)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let initial_bytes = (self.early - self.at) as u64;
        Ok(PrecopyInfo { initial_bytes, dirty_bytes: 0, reinit: false })
    }

    fn stop_copy_bytes(&self) -> u64 {
        (self.stream.len() - self.at) as u64
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.stream.extend(data);
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        let (length, rest) = self.stream.split_first_chunk().ok_or(Errno::EBADMSG)?;
        if u64::from_ne_bytes(*length) != rest.len() as u64 {
            return Err(Errno::EBADMSG);
        }
        self.contents = rest.to_vec();
        Ok(())
    }

    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        Work::Idle
    }
}

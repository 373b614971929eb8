//! Reads a saved state, and believes nothing of it.

use super::{
    AGAIN, BLOCK_BYTES, END, ENGINE, HEADER, Header, PASS, PREAMBLE, RECORD, Shape,
    WINDOW, ZERO, preamble,
};
use crate::accel::engine::{Engine, WORDS};
use crate::accel::memory::DeviceMemory;
use abi::errno::Errno;
use crc32c::{crc32c, crc32c_append};

/// A resume session.
pub(in crate::accel) struct Loader {
    shape: Shape,
    /// Bytes of the preamble or of a record that is not complete yet.
    partial: Vec<u8>,
    begun: bool,
    /// The next block that the pass has to bring.
    pass: u64,
    /// The next block that the window has to bring.
    window: u64,
    engine: Option<Engine>,
    records: u64,
    digest: u32,
    over: bool,
}

impl Loader {
    pub(in crate::accel) fn new(shape: Shape, memory: &DeviceMemory) -> Loader {
        Loader {
            shape,
            partial: Vec::new(),
            begun: false,
            pass: memory.window_blocks(),
            window: 0,
            engine: None,
            records: 0,
            digest: 0,
            over: false,
        }
    }

    /// Takes the next bytes, cut anywhere.
    pub(in crate::accel) fn take(
        &mut self,
        mut data: &[u8],
        memory: &mut DeviceMemory,
    ) -> Result<(), Errno> {
        while !data.is_empty() {
            // A record that lies in `data` as a whole is not copied.
            if self.partial.is_empty() {
                let wanted = self.wanted(data)?;
                if data.len() >= wanted && self.is_whole(data) {
                    let (record, rest) = data.split_at(wanted);
                    self.apply(record, memory)?;
                    data = rest;
                    continue;
                }
            }
            let missing = self.wanted(&self.partial)? - self.partial.len();
            let (more, rest) = data.split_at(data.len().min(missing));
            self.partial.extend_from_slice(more);
            data = rest;
            let wanted = self.wanted(&self.partial)?;
            if self.partial.len() == wanted && self.is_whole(&self.partial) {
                let record = std::mem::take(&mut self.partial);
                self.apply(&record, memory)?;
                // The buffer is kept: records are as long as the last one.
                self.partial = record;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Whether what is there is enough to know how long it has to be.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        !self.begun || bytes.len() >= HEADER
    }

    /// How many bytes make the next step: the preamble, a header, or a record whose
    /// header is there.
    fn wanted(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.over {
            return refuse("bytes behind the end");
        }
        if !self.begun {
            return Ok(PREAMBLE);
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(HEADER) };
        let header = Header::decode(header);
        if header.len as usize > RECORD - HEADER {
            return refuse("a record that is too long");
        }
        Ok(HEADER + header.len as usize)
    }

    fn apply(&mut self, record: &[u8], memory: &mut DeviceMemory) -> Result<(), Errno> {
        if !self.begun {
            return self.begin(record, memory);
        }
        let Some((head, payload)) = record.split_first_chunk::<HEADER>() else {
            return refuse("a record without a header");
        };
        let header = Header::decode(head);
        if header.encode(payload) != *head {
            return refuse("a record with a wrong checksum");
        }
        match header.kind {
            PASS | AGAIN | WINDOW => self.blocks(header, payload, memory)?,
            ENGINE => self.load_engine(header, payload, memory)?,
            END => return self.end(header, payload),
            _ => return refuse("a record of unknown kind"),
        }
        self.records += 1;
        self.digest = crc32c_append(self.digest, head);
        Ok(())
    }

    fn begin(&mut self, given: &[u8], memory: &DeviceMemory) -> Result<(), Errno> {
        let expected = preamble(self.shape, memory);
        if given[..8] != expected[..8] {
            return refuse("not a state of this model");
        }
        if given[44..] != crc32c(&given[..44]).to_le_bytes() {
            return refuse("a preamble with a wrong checksum");
        }
        if given[8..12] != expected[8..12] {
            return refuse("another version");
        }
        if given[16..32] != expected[16..32] {
            return refuse("another size of memory or window");
        }
        if given[32..36] != expected[32..36] {
            return refuse("another number of vectors");
        }
        if given != expected {
            return refuse("another configuration");
        }
        self.begun = true;
        Ok(())
    }

    fn blocks(
        &mut self,
        header: Header,
        payload: &[u8],
        memory: &mut DeviceMemory,
    ) -> Result<(), Errno> {
        let count = u64::from(header.count);
        let Some(end) = header.first.checked_add(count).filter(|_| count > 0) else {
            return refuse("a run of impossible length");
        };
        let len = match header.flags {
            0 => count.checked_mul(BLOCK_BYTES),
            ZERO => Some(0),
            _ => return refuse("a record with unknown flags"),
        };
        if len != Some(payload.len() as u64) {
            return refuse("a run whose payload has another length");
        }
        let window = memory.window_blocks();
        let in_order = match header.kind {
            PASS => header.first == self.pass && end <= memory.blocks(),
            AGAIN => header.first >= window && end <= self.pass,
            _ => header.first == self.window && end <= window,
        };
        if !in_order || self.engine.is_some() || (header.kind == AGAIN && self.window > 0)
        {
            return refuse("a run out of order");
        }
        match header.kind {
            PASS => self.pass = end,
            WINDOW => self.window = end,
            _ => {}
        }
        if payload.is_empty() {
            memory.zero(header.first, count);
        } else {
            memory.write(header.first * BLOCK_BYTES, payload);
        }
        Ok(())
    }

    fn load_engine(
        &mut self,
        header: Header,
        payload: &[u8],
        memory: &DeviceMemory,
    ) -> Result<(), Errno> {
        let all = self.pass == memory.blocks() && self.window == memory.window_blocks();
        if !all || self.engine.is_some() {
            return refuse("engine state out of order");
        }
        if !header.is_plain() || payload.len() != 8 * WORDS {
            return refuse("engine state of another shape");
        }
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(payload.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        self.engine = Some(Engine::from_words(&words, memory, self.shape.vectors)?);
        Ok(())
    }

    fn end(&mut self, header: Header, payload: &[u8]) -> Result<(), Errno> {
        if self.engine.is_none() {
            return refuse("the end comes too early");
        }
        let mut expected = [0; 16];
        expected[..8].copy_from_slice(&self.records.to_le_bytes());
        expected[8..].copy_from_slice(&u64::from(self.digest).to_le_bytes());
        if !header.is_plain() || payload != expected {
            return refuse("the records are not those that were saved");
        }
        self.over = true;
        Ok(())
    }

    /// The engine, if everything is there.
    pub(in crate::accel) fn finish(&mut self) -> Result<Engine, Errno> {
        match self.engine.take() {
            Some(engine) if self.over => Ok(engine),
            _ => refuse("the state is not complete"),
        }
    }
}

/// A device model refuses a stream; the reason goes to the trace, the number to the
/// client.
fn refuse<T>(reason: &'static str) -> Result<T, Errno> {
    tracing::warn!(reason, "saved state refused");
    Err(Errno::EINVAL)
}

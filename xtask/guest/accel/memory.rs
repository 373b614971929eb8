//! Guest memory that the kernel leaves alone, for the device.
//!
//! The command line reserves it (`memmap=16M$0x10000000`), and `/dev/mem` shows it:
//! the addresses in it are guest-physical, which is what the device is given.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::said;

/// Where it starts; as on the kernel's command line.
const BASE: u64 = 0x1000_0000;
/// How much there is, in bytes.
const BYTES: u64 = 16 << 20;

/// The reserved memory.
pub(crate) struct Memory {
    file: File,
}

impl Memory {
    pub(crate) fn open() -> Result<Memory, String> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/mem");
        Ok(Memory { file: file.map_err(said("/dev/mem"))? })
    }

    /// The guest-physical address of an offset.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        BASE + offset
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), String> {
        self.inside(offset, data.len())?;
        self.file.write_all_at(data, BASE + offset).map_err(said("write /dev/mem"))
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        self.inside(offset, len)?;
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, BASE + offset)
            .map_err(said("read /dev/mem"))?;
        Ok(bytes)
    }

    pub(crate) fn word(&self, offset: u64) -> Result<u32, String> {
        let bytes = self.read(offset, 4)?;
        let bytes: [u8; 4] = bytes.try_into().map_err(|_| "read /dev/mem".to_owned())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn inside(&self, offset: u64, len: usize) -> Result<(), String> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= BYTES => Ok(()),
            _ => Err(format!("{len} bytes at {offset:#x} are not reserved")),
        }
    }
}

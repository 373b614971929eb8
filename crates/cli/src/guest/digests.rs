//! Digests of a stopped guest, as a file: what `demo` compares between the two sides.
//!
//! ```text
//!   one line of JSON: counts, counters of devices, interrupts, BARs, registers, timer
//!   u32 CRC32C of each page of RAM, in order, little-endian
//!   u32 CRC32C of each chunk of each device's memory, likewise
//! ```
//!
//! The file comes into being whole: it is written beside its name and then renamed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::options::InterruptKind;

/// The version of the format.
const FORMAT: u32 = 3;
/// The longest first line, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// The most digests in a file: 4 TiB of pages.
const MOST: u64 = 1 << 30;

/// Digests of a stopped guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Everything that is no list of checksums.
    pub header: Header,
    /// CRC32C of each page of RAM.
    pub pages: Vec<u32>,
    /// CRC32C of each chunk of the memory of each device.
    pub chunks: Vec<Vec<u32>>,
}

/// The first line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub format: u32,
    /// Pages of RAM.
    pub pages: u64,
    /// What the guest's registers are, by vCPU, as a checksum.
    pub registers: Vec<u32>,
    /// What the guest's timer shows, in nanoseconds.
    pub timer_ns: u64,
    /// Whether each device writes into the next one.
    pub p2p: bool,
    /// The devices, in their order.
    pub devices: Vec<Device>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Bytes that each checksum of its memory covers.
    pub chunk_bytes: u64,
    /// How many checksums there are.
    pub chunks: u64,
    /// What it counts, by name.
    pub counters: Vec<(String, u64)>,
    /// How it interrupts; `None` for a device that the guest has not set up.
    pub interrupts: Option<InterruptKind>,
    /// Its vectors, where it interrupts by messages; where by its line, what that was for.
    pub vectors: Vec<Vector>,
    /// Its line, where it interrupts by that.
    pub line: Option<Line>,
    /// Where its BARs are that decode, by their numbers.
    pub bars: Vec<(u8, u64)>,
}

/// The account of one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector {
    /// Interrupts that the guest handled.
    pub handled: u64,
    /// Interrupts that it has not heard of yet; of a masked vector, one at most.
    pub pending: u64,
    /// Whether one of those is a pending bit, which takes in all that comes while the
    /// vector is masked. One that became an interrupt of its own meanwhile would let
    /// another one follow it.
    pub held: bool,
    /// Messages that came while the vector was masked.
    pub absorbed: u64,
    /// Times that it was masked and at least one came.
    pub windows: u64,
    /// What of that there can have been by what the guest itself knows, which masked it.
    pub own: Own,
    /// Whether it is masked now.
    pub masked: bool,
}

/// The times that a vector was masked and something came, as its guest knows them: as few
/// and as many as there can have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    /// Such times.
    pub windows: (u64, u64),
    /// What came then and became no interrupt of its own.
    pub swallowed: (u64, u64),
}

impl Own {
    /// Nothing is known.
    pub(super) const ANY: Own = Own { windows: (0, u64::MAX), swallowed: (0, u64::MAX) };
}

/// The account of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// How often it rose.
    pub rises: u64,
    /// How often the guest said that it was done.
    pub acknowledged: u64,
    /// Whether it is up, or waits to be.
    pub pending: bool,
    /// Whether the guest has turned it off.
    pub off: bool,
}

impl Device {
    /// One of its counters, where it has one of that name.
    pub fn find(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|(known, _)| known == name).map(|(_, n)| *n)
    }

    /// How many messages it has sent by a vector, where it counts that.
    pub fn sent(&self, vector: usize) -> Option<u64> {
        self.find(&format!("irq_sent_{vector}"))
    }

    /// One of its counters; 0 where it has none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }
}

impl Digests {
    /// Puts digests together.
    pub(super) fn new(
        registers: Vec<u32>,
        timer_ns: u64,
        p2p: bool,
        pages: Vec<u32>,
        devices: Vec<(Device, Vec<u32>)>,
    ) -> Digests {
        let (devices, chunks) = devices.into_iter().unzip();
        let header = Header {
            format: FORMAT,
            pages: pages.len() as u64,
            registers,
            timer_ns,
            p2p,
            devices,
        };
        Digests { header, pages, chunks }
    }

    /// Writes them to a file, which appears only once it is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = Path::new(&name);
        let mut file = BufWriter::new(File::create(new)?);
        serde_json::to_writer(&mut file, &self.header)?;
        file.write_all(b"\n")?;
        for sum in self.pages.iter().chain(self.chunks.iter().flatten()) {
            file.write_all(&sum.to_le_bytes())?;
        }
        file.into_inner()?;
        std::fs::rename(new, path)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Digests, DigestsError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        (&mut file).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(DigestsError::NoHeader);
        }
        let header: Header = serde_json::from_slice(&line)?;
        if header.format != FORMAT {
            return Err(DigestsError::Format(header.format));
        }
        let chunks = header.devices.iter().map(|device| device.chunks);
        let sums = chunks.fold(header.pages, u64::saturating_add);
        let wanted = line.len() as u64 + 1 + sums.min(MOST) * 4;
        if sums > MOST || wanted != length {
            return Err(DigestsError::Length { length, wanted });
        }
        let mut sums = |count: u64| -> io::Result<Vec<u32>> {
            let mut sums = Vec::new();
            for _ in 0..count {
                let mut bytes = [0; 4];
                file.read_exact(&mut bytes)?;
                sums.push(u32::from_le_bytes(bytes));
            }
            Ok(sums)
        };
        let pages = sums(header.pages)?;
        let chunks: io::Result<_> =
            header.devices.iter().map(|device| sums(device.chunks)).collect();
        Ok(Digests { pages, chunks: chunks?, header })
    }
}

/// A file that holds no digests.
#[derive(Debug, Error)]
pub enum DigestsError {
    /// It cannot be read.
    #[error("cannot read digests")]
    Io(#[from] io::Error),
    /// It does not begin with a line.
    #[error("no digests: the first line does not end")]
    NoHeader,
    /// Its first line is something else.
    #[error("no digests: the first line is not theirs")]
    Header(#[from] serde_json::Error),
    /// It is of another version.
    #[error("digests of format {0}, and this knows {FORMAT}")]
    Format(u32),
    /// It is shorter or longer than it says.
    #[error("digests of {length} bytes instead of {wanted}")]
    Length {
        /// Bytes of the file.
        length: u64,
        /// Bytes that its first line speaks of.
        wanted: u64,
    },
}

//! Data of `DEVICE_FEATURE` that is more than one structure.

use abi::dma_logging::{MAX_RANGES, Range};
use abi::vfio_user::{LoggingControl, LoggingReport};
use device::Digest;
use zerocopy::IntoBytes;

use super::{Malformed, first, take};

/// The longest name of a counter, in bytes.
const NAME: usize = 64;
/// The most checksums of a digest: 64 KiB each for 1 TiB.
const CHUNKS: usize = 1 << 24;
/// The most counters of a digest.
const COUNTERS: usize = 1024;

/// Reads `DMA_LOGGING_START`: the structure and its ranges, start and length in bytes.
/// No range means everything.
///
/// # Errors
/// [`Malformed`] where it is shorter than it says, or has more than 256 ranges.
pub fn parse_log_start(
    data: &[u8],
) -> Result<(LoggingControl, Vec<(u64, u64)>), Malformed> {
    let (control, mut rest) = take::<LoggingControl>(data)?;
    if control.num_ranges > MAX_RANGES {
        return Err(Malformed("too many ranges"));
    }
    let mut ranges = Vec::new();
    for _ in 0..control.num_ranges {
        let (range, after) = take::<Range>(rest)?;
        ranges.push((range.iova, range.length));
        rest = after;
    }
    Ok((control, ranges))
}

/// Reads `DMA_LOGGING_REPORT`, and in a reply the words behind it.
///
/// # Errors
/// [`Malformed`] where it is too short.
pub fn parse_log_report(data: &[u8]) -> Result<(LoggingReport, Vec<u64>), Malformed> {
    let (report, bitmap) = take::<LoggingReport>(data)?;
    let (words, _) = bitmap.as_chunks::<8>();
    Ok((report, words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
}

/// Which part of an encoded digest: the first fields of `VFIO_MIGRATE_DIGEST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestPart {
    /// 0: where the part starts in the whole, in bytes.
    pub offset: u64,
    /// 8: the length of the whole in bytes; 0 in a request.
    pub total: u64,
}

impl DigestPart {
    /// Takes it off the front of the feature's data.
    ///
    /// # Errors
    /// [`Malformed`] where that is too short.
    pub fn parse(data: &[u8]) -> Result<(DigestPart, &[u8]), Malformed> {
        let ([offset, total], part) = take::<[u64; 2]>(data)?;
        Ok((DigestPart { offset, total }, part))
    }

    /// As bytes.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.total.to_ne_bytes());
        bytes
    }
}

/// A digest as bytes, all of it.
pub fn encode_digest(digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + 4 * digest.chunks.len());
    bytes.extend(digest.chunk_bytes.to_ne_bytes());
    bytes.extend((digest.chunks.len() as u32).to_ne_bytes());
    bytes.extend((digest.counters.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(digest.chunks.as_bytes());
    for (name, value) in &digest.counters {
        bytes.extend(value.to_ne_bytes());
        bytes.extend((name.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}

/// A digest from bytes, all of it.
///
/// # Errors
/// [`Malformed`] where it is shorter than it says, or says absurd things.
pub fn decode_digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    let (chunk_bytes, rest) = take::<u64>(bytes)?;
    let (counts, rest) = take::<[u32; 2]>(rest)?;
    let [chunks, counters] = counts.map(|count| count as usize);
    if chunks > CHUNKS || counters > COUNTERS {
        return Err(Malformed("an absurd digest"));
    }
    let checksums = first(rest, 4 * chunks as u64)?;
    let mut rest = &rest[checksums.len()..];
    let (checksums, _) = checksums.as_chunks::<4>();
    let mut digest = Digest {
        chunk_bytes,
        chunks: checksums.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect(),
        counters: Vec::new(),
    };
    for _ in 0..counters {
        let (value, after) = take::<u64>(rest)?;
        let (length, after) = take::<u32>(after)?;
        let (name, after) = name(after, length)?;
        digest.counters.push((name, value));
        rest = after;
    }
    Ok(digest)
}

/// A name of 1 to 64 bytes, and what follows.
fn name(bytes: &[u8], length: u32) -> Result<(String, &[u8]), Malformed> {
    if length == 0 || length as usize > NAME {
        return Err(Malformed("a name that is empty or too long"));
    }
    let name = first(bytes, length.into())?;
    let text = std::str::from_utf8(name).map_err(|_| Malformed("a name is no text"))?;
    if text.contains('\0') {
        return Err(Malformed("a name is no text"));
    }
    Ok((text.to_owned(), &bytes[name.len()..]))
}

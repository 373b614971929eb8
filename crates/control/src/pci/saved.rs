//! What is saved of a function, version 2: a head and fields (`docs/stream.md`), so that a
//! later version can add to it. Version 1 is still read.
//!
//! It comes from another host or out of a file and may be anything: every length has a
//! ceiling, every number is compared with what this function has before it is used.

#[cfg(test)]
mod tests;
mod v1;

use port::{BarKind, MsiLayout, MsixLayout, PciBar, PciIds, PciLayout};
use wire::tlv::{Fields, Writer};

use super::intx::Level;
use super::registers::Register;
use super::unfit::Unfit;
use super::vectors::{Entry, Heard};
use super::view::Message;

const VERSION: u16 = 2;
const HEAD: usize = 4;
const TAGS: [u16; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];

/// The most registers.
const MOST_REGISTERS: usize = 512;
/// The most vectors of a kind: all of them may have an account.
const MOST_VECTORS: usize = 2048;

const BAR_SIZE: usize = 10;
const REGISTER_SIZE: usize = 8;
const ENTRY_SIZE: usize = 16;
const ACCOUNT_SIZE: usize = 36;

/// All that is saved of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) bars: Vec<PciBar>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLayout>,
    /// Ascending by place.
    pub(super) registers: Vec<Value>,
    /// The table of MSI-X.
    pub(super) entries: Vec<Entry>,
    /// One for each vector of MSI that there is.
    pub(super) msi_heard: Vec<Heard>,
    /// One for each vector of MSI-X.
    pub(super) msix_heard: Vec<Heard>,
    pub(super) line: Level,
}

/// A register, and the bits of it that are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) at: u16,
    pub(super) width: u8,
    pub(super) value: u32,
}

impl Saved {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Unfit> {
        let mut w = Writer::new();
        w.u32(1, u32::from(self.vendor) | u32::from(self.device) << 16);
        let bar = |bar: &PciBar| {
            let mut bytes = vec![bar.number, bar.kind.0];
            bytes.extend(bar.size.to_le_bytes());
            bytes
        };
        w.bytes(2, &self.bars.iter().flat_map(bar).collect::<Vec<_>>());
        if self.registers.len() > MOST_REGISTERS {
            return Err(Unfit::TooMuch { what: "the registers" });
        }
        let register = |one: &Value| {
            let [at_low, at_high] = one.at.to_le_bytes();
            let [a, b, c, d] = one.value.to_le_bytes();
            [at_low, at_high, one.width, 0, a, b, c, d]
        };
        w.bytes(3, &self.registers.iter().flat_map(register).collect::<Vec<_>>());
        if let Some(msi) = self.msi {
            w.u32(4, msi.vectors);
            w.u8(5, u8::from(msi.wide) | u8::from(msi.maskable) << 1);
        }
        if let Some(msix) = self.msix {
            w.u32(6, msix.table);
            w.u32(7, msix.pending);
            let entry = |entry: &Entry| {
                let mut bytes = [0; ENTRY_SIZE];
                for (n, register) in bytes.chunks_mut(4).enumerate() {
                    register.copy_from_slice(&entry.register(n as u64).to_le_bytes());
                }
                bytes
            };
            w.bytes(8, &self.entries.iter().flat_map(entry).collect::<Vec<_>>());
        }
        for (pending, accounts, heard) in
            [(9, 10, &self.msi_heard), (11, 12, &self.msix_heard)]
        {
            if !heard.is_empty() {
                w.bytes(pending, &pending_bits(heard));
                w.bytes(accounts, &accounts_of(heard));
            }
        }
        let Level { asserted, latched, again, rises } = self.line;
        let mut line = rises.to_le_bytes().to_vec();
        let flags = [asserted, latched, again].map(u8::from);
        line.push(flags[0] | flags[1] << 1 | flags[2] << 2);
        w.bytes(13, &line);
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(w.finish());
        Ok(bytes)
    }

    /// Reads what was saved of a function like this one; another is refused by name.
    pub(super) fn read(
        bytes: &[u8],
        ids: &PciIds,
        layout: &PciLayout,
        carried: &[Register],
    ) -> Result<Saved, Unfit> {
        let version = bytes.first_chunk().map(|first| u16::from_le_bytes(*first));
        let saved = match version {
            Some(1) => v1::read(bytes, ids, layout, carried)?,
            Some(VERSION) => Saved::decode(bytes)?,
            Some(other) => return Err(Unfit::Version(other)),
            None => return Err(Unfit::Length(bytes.len())),
        };
        saved.check(ids, layout, carried)?;
        Ok(saved)
    }

    /// Reads a record of version 2, by itself.
    pub(super) fn decode(bytes: &[u8]) -> Result<Saved, Unfit> {
        let Some(([v0, v1, 0, 0], fields)) = bytes.split_first_chunk::<HEAD>() else {
            return Err(Unfit::Length(bytes.len()));
        };
        let version = u16::from_le_bytes([*v0, *v1]);
        if version != VERSION {
            return Err(Unfit::Version(version));
        }
        let fields = Fields::parse(fields, &TAGS)?;
        let ids = fields.u32(1)?.ok_or(Unfit::Invalid("it has no ids"))?;
        let table = fields.u32(6)?.zip(fields.u32(7)?);
        let entries = many::<ENTRY_SIZE>(&fields, 8, MOST_VECTORS)?;
        let entries: Vec<Entry> = entries.iter().map(read_entry).collect();
        let msix = match (table, entries.len() as u32) {
            (Some((table, pending)), 1..) => {
                Some(MsixLayout { vectors: entries.len() as u32, table, pending })
            }
            (None, 0) => None,
            _ => return Err(Unfit::Invalid("half of MSI-X is missing")),
        };
        let msi = match (fields.u32(4)?, fields.u8(5)?) {
            (Some(vectors @ 1..=32), Some(flags @ 0..=3)) => Some(MsiLayout {
                vectors,
                wide: flags & 1 != 0,
                maskable: flags & 2 != 0,
            }),
            (None, None) => None,
            _ => return Err(Unfit::Invalid("MSI of no known kind")),
        };
        let vectors = |vectors: Option<u32>| vectors.map_or(0, |n| n as usize);
        Ok(Saved {
            vendor: ids as u16,
            device: (ids >> 16) as u16,
            bars: read_bars(&fields)?,
            msi,
            msix,
            registers: read_registers(&fields)?,
            msi_heard: read_heard(&fields, 9, vectors(msi.map(|msi| msi.vectors)))?,
            msix_heard: read_heard(&fields, 11, entries.len())?,
            entries,
            line: read_line(&fields)?,
        })
    }

    /// Whether it was saved on a function like this one.
    fn check(
        &self,
        ids: &PciIds,
        layout: &PciLayout,
        carried: &[Register],
    ) -> Result<(), Unfit> {
        let number = |n: u16| format!("{n:#06x}");
        same("the vendor", self.vendor, ids.vendor, number)?;
        same("the device", self.device, ids.device, number)?;
        let (saved, here) = (&self.bars, &layout.bars);
        for n in 0..saved.len().max(here.len()) {
            let show = |bar: Option<&PciBar>| shown(bar.map(ToString::to_string));
            same("a BAR", saved.get(n), here.get(n), show)?;
        }
        let show = |msi: Option<MsiLayout>| shown(msi.map(|msi| msi.to_string()));
        same("MSI", self.msi, layout.msi, show)?;
        let show = |msix: Option<MsixLayout>| shown(msix.map(|msix| msix.to_string()));
        same("MSI-X", self.msix, layout.msix, show)?;
        let saved = self.registers.iter().map(|one| (one.at, one.width));
        let mut here = carried.iter().map(|one| (one.at, one.width));
        for one in saved {
            if here.next() != Some(one) {
                return Err(Unfit::Register(one.0));
            }
        }
        here.next().map_or(Ok(()), |(at, _)| Err(Unfit::Register(at)))
    }
}

pub(super) fn same<T: PartialEq + Clone>(
    what: &'static str,
    saved: T,
    here: T,
    show: impl Fn(T) -> String,
) -> Result<(), Unfit> {
    if saved == here {
        return Ok(());
    }
    Err(Unfit::Another { what, saved: show(saved), here: show(here) })
}

fn shown(what: Option<String>) -> String {
    what.unwrap_or_else(|| "not there".to_owned())
}

fn pending_bits(heard: &[Heard]) -> Vec<u8> {
    let byte = |heard: &[Heard]| {
        let bits = heard.iter().enumerate();
        bits.fold(0, |byte, (n, one)| byte | u8::from(one.pending) << n)
    };
    heard.chunks(8).map(byte).collect()
}

/// The accounts of those vectors that have one.
fn accounts_of(heard: &[Heard]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (vector, one) in heard.iter().enumerate() {
        let counts = [one.due, one.delivered, one.absorbed, one.windows];
        if counts != [0; 4] {
            bytes.extend((vector as u32).to_le_bytes());
            counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        }
    }
    bytes
}

/// A field of at most `most` items of `N` bytes; none where it is absent.
fn many<'a, const N: usize>(
    fields: &Fields<'a>,
    tag: u16,
    most: usize,
) -> Result<&'a [[u8; N]], Unfit> {
    let bytes = fields.bytes(tag, most * N)?.unwrap_or(&[]);
    let (items, rest) = bytes.as_chunks();
    if rest.is_empty() { Ok(items) } else { Err(Unfit::Invalid("half of an item")) }
}

fn read_bars(fields: &Fields<'_>) -> Result<Vec<PciBar>, Unfit> {
    let bars = many::<BAR_SIZE>(fields, 2, 7)?.iter().map(|bar| {
        let [number, kind, size @ ..] = *bar;
        PciBar { number, kind: BarKind(kind), size: u64::from_le_bytes(size) }
    });
    Ok(bars.collect())
}

fn read_registers(fields: &Fields<'_>) -> Result<Vec<Value>, Unfit> {
    let registers = many::<REGISTER_SIZE>(fields, 3, MOST_REGISTERS)?;
    let mut values = Vec::with_capacity(registers.len());
    for [at_low, at_high, width, reserved, a, b, c, d] in registers {
        let at = u16::from_le_bytes([*at_low, *at_high]);
        let before = values.last().is_none_or(|last: &Value| last.at < at);
        if !before || *reserved != 0 {
            return Err(Unfit::Invalid("registers out of order"));
        }
        let value = u32::from_le_bytes([*a, *b, *c, *d]);
        values.push(Value { at, width: *width, value });
    }
    Ok(values)
}

fn read_entry(bytes: &[u8; ENTRY_SIZE]) -> Entry {
    let mut entry = Entry { message: Message::default(), masked: false };
    let (registers, _) = bytes.as_chunks::<4>();
    for (n, register) in registers.iter().enumerate() {
        entry.set_register(n as u64, u32::from_le_bytes(*register));
    }
    entry
}

/// Pending bits from field `tag`, accounts from the one after it.
fn read_heard(
    fields: &Fields<'_>,
    tag: u16,
    vectors: usize,
) -> Result<Vec<Heard>, Unfit> {
    let mut heard = vec![Heard::default(); vectors];
    let pending = fields.bytes(tag, vectors.div_ceil(8))?.unwrap_or(&[]);
    for (n, one) in heard.iter_mut().enumerate() {
        one.pending = pending.get(n / 8).is_some_and(|byte| byte >> (n % 8) & 1 != 0);
    }
    let mut next = 0;
    for bytes in many::<ACCOUNT_SIZE>(fields, tag + 1, MOST_VECTORS)? {
        let (vector, counts) = bytes.split_at(4);
        let (vector, counts) = (vector.as_chunks().0, counts.as_chunks().0);
        let ([vector], [due, delivered, absorbed, windows]) = (vector, counts) else {
            return Err(Unfit::Invalid("half of an account"));
        };
        let vector = u32::from_le_bytes(*vector) as usize;
        let ordered = vector >= next;
        let Some(one) = heard.get_mut(vector).filter(|_| ordered) else {
            return Err(Unfit::Invalid("an account of no vector, or out of order"));
        };
        one.due = u64::from_le_bytes(*due);
        one.delivered = u64::from_le_bytes(*delivered);
        one.absorbed = u64::from_le_bytes(*absorbed);
        one.windows = u64::from_le_bytes(*windows);
        next = vector + 1;
    }
    Ok(heard)
}

fn read_line(fields: &Fields<'_>) -> Result<Level, Unfit> {
    // Always there, so that one that was cut off does not pass for a whole.
    let line = fields.array::<9>(13)?.ok_or(Unfit::Invalid("it has no line"))?;
    let [rises @ .., flags] = line;
    if flags > 0b111 {
        return Err(Unfit::Invalid("a line in no known state"));
    }
    Ok(Level {
        asserted: flags & 1 != 0,
        latched: flags & 2 != 0,
        again: flags & 4 != 0,
        rises: u64::from_le_bytes(rises),
    })
}

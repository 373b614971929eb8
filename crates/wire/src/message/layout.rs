//! Where everything lies in a PCI function, as its guest sees it.

use super::MessageError;
use super::record::{Reader, Record, RecordWriter};

/// Most BARs, the ROM among them.
pub const MAX_BARS: usize = 7;
/// Most capabilities of a function.
pub const MAX_CAPABILITIES: usize = 48;
/// Most extended capabilities of a function.
pub const MAX_EXTENDED: usize = 96;

const BAR_SIZE: usize = 10;
const CAPABILITY_SIZE: usize = 2;
const EXTENDED_SIZE: usize = 6;

/// What a guest sees of a PCI function before it has written anything. A driver that runs
/// has seen it and will not look again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PciLayout {
    /// The BARs that are there and the ROM, ascending; at most [`MAX_BARS`].
    pub bars: Vec<PciBar>,
    /// In the order of their list; at most [`MAX_CAPABILITIES`].
    pub capabilities: Vec<PciCapability>,
    /// In the order of their list; at most [`MAX_EXTENDED`].
    pub extended: Vec<PciExtended>,
    /// Whether it has a line, `INTx`. Absent in the stream: it has none.
    pub intx: bool,
    /// MSI, where it has that.
    pub msi: Option<MsiLayout>,
    /// MSI-X, where it has that.
    pub msix: Option<MsixLayout>,
}

/// A base address register, or that of the ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciBar {
    /// 0 to 5, or 6 for the ROM.
    pub number: u8,
    /// Its lowest four bits, as the register has them; 0 for the ROM.
    pub kind: u8,
    /// Bytes.
    pub size: u64,
}

/// A capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciCapability {
    /// Its id.
    pub id: u8,
    /// Where it lies in config space.
    pub at: u8,
}

/// An extended capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciExtended {
    /// Its id.
    pub id: u16,
    /// Its version, 4 bits.
    pub version: u8,
    /// Where it lies in config space.
    pub at: u16,
}

/// MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsiLayout {
    /// 1 to 32.
    pub vectors: u32,
    /// Its address has 64 bits.
    pub wide: bool,
    /// Its vectors can be masked one by one.
    pub maskable: bool,
}

/// MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsixLayout {
    /// 1 to 2048.
    pub vectors: u32,
    /// Where the table lies: the BAR in bits 0 to 2, the offset in the others.
    pub table: u32,
    /// Where the pending bits lie, likewise.
    pub pending: u32,
}

impl Record for PciLayout {
    const NAME: &'static str = "PCI layout";
    const TAGS: &'static [u16] = &[1, 2, 3, 4, 5, 6];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        let bars = self.bars.iter().flat_map(|bar| {
            let [a, b, c, d, e, f, g, h] = bar.size.to_le_bytes();
            [bar.number, bar.kind, a, b, c, d, e, f, g, h]
        });
        w.bytes(1, &bars.collect::<Vec<_>>());
        let capabilities = self.capabilities.iter().flat_map(|one| [one.id, one.at]);
        w.bytes(2, &capabilities.collect::<Vec<_>>());
        let extended = self.extended.iter().flat_map(|one| {
            let ([id_low, id_high], [at_low, at_high]) =
                (one.id.to_le_bytes(), one.at.to_le_bytes());
            [id_low, id_high, one.version, 0, at_low, at_high]
        });
        w.bytes(3, &extended.collect::<Vec<_>>());
        w.u8(4, u8::from(self.intx));
        w.optional_record(5, self.msi.as_ref())?;
        w.optional_record(6, self.msix.as_ref())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        let bars = r.items::<BAR_SIZE>(1, MAX_BARS)?;
        let bars = bars.iter().map(|[number, kind, size @ ..]| PciBar {
            number: *number,
            kind: *kind,
            size: u64::from_le_bytes(*size),
        });
        let capabilities = r.items::<CAPABILITY_SIZE>(2, MAX_CAPABILITIES)?;
        let capabilities =
            capabilities.iter().map(|[id, at]| PciCapability { id: *id, at: *at });
        let mut extended = Vec::new();
        for [id_low, id_high, version, reserved, at_low, at_high] in
            r.items::<EXTENDED_SIZE>(3, MAX_EXTENDED)?
        {
            if *reserved != 0 {
                return Err(r.invalid("a reserved byte of an extended capability is set"));
            }
            extended.push(PciExtended {
                id: u16::from_le_bytes([*id_low, *id_high]),
                version: *version,
                at: u16::from_le_bytes([*at_low, *at_high]),
            });
        }
        let intx = match r.optional_u8(4)? {
            None | Some(0) => false,
            Some(1) => true,
            Some(_) => return Err(r.invalid("a line is there or not")),
        };
        Ok(Self {
            bars: bars.collect(),
            capabilities: capabilities.collect(),
            extended,
            intx,
            msi: r.optional_record(5)?,
            msix: r.optional_record(6)?,
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        let over = self.bars.len() > MAX_BARS
            || self.capabilities.len() > MAX_CAPABILITIES
            || self.extended.len() > MAX_EXTENDED;
        // Nobody would compare it.
        let strange = self.bars.iter().any(|bar| usize::from(bar.number) >= MAX_BARS);
        let ascend = self.bars.is_sorted_by(|one, next| one.number < next.number);
        if over {
            Some("more of a kind than a function has")
        } else if strange {
            Some("a BAR of no function")
        } else if !ascend {
            Some("the BARs do not ascend")
        } else {
            None
        }
    }
}

impl Record for MsiLayout {
    const NAME: &'static str = "MSI";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.vectors);
        w.u8(2, u8::from(self.wide) | u8::from(self.maskable) << 1);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        let kind = r.u8(2)?;
        if kind > 3 {
            return Err(r.invalid("a kind of MSI that is not known"));
        }
        Ok(Self { vectors: r.u32(1)?, wide: kind & 1 != 0, maskable: kind & 2 != 0 })
    }
}

impl Record for MsixLayout {
    const NAME: &'static str = "MSI-X";
    const TAGS: &'static [u16] = &[1, 2, 3];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.vectors);
        w.u32(2, self.table);
        w.u32(3, self.pending);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { vectors: r.u32(1)?, table: r.u32(2)?, pending: r.u32(3)? })
    }
}

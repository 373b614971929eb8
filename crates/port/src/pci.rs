//! What a guest sees of a PCI function before it has written anything: its ids, and where
//! everything lies. A driver that is running has seen it and will not look again, so the
//! function that takes a guest over must be the same.

/// The ids of a PCI function, as in its config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIds {
    /// Vendor id, offset 0x00.
    pub vendor: u16,
    /// Device id, offset 0x02.
    pub device: u16,
    /// Subsystem vendor id, offset 0x2c.
    pub subsystem_vendor: u16,
    /// Subsystem id, offset 0x2e.
    pub subsystem: u16,
    /// Class code, 24 bits, offset 0x09.
    pub class: u32,
    /// Revision, offset 0x08.
    pub revision: u8,
}

/// Where everything lies in a PCI function, as far as that is its guest's business.
///
/// What differs from host to host without a meaning to a guest is not in it: regions that
/// are no BAR, interrupt indexes for errors and requests, the speed of the link, the
/// serial number, the size of a config space that holds nothing behind its first 256
/// bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciLayout {
    /// The BARs that are there and the ROM, ascending.
    pub bars: Vec<PciBar>,
    /// The capabilities, in the order of their list.
    pub capabilities: Vec<PciCapability>,
    /// The extended capabilities, in the order of their list.
    pub extended: Vec<PciExtended>,
    /// Whether the function has a line, `INTx`.
    pub intx: bool,
    /// MSI, where there is a capability for it.
    pub msi: Option<MsiLayout>,
    /// MSI-X, where there is a capability for it.
    pub msix: Option<MsixLayout>,
}

/// A base address register, or the register of the expansion ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciBar {
    /// Its number, 0 to 5, or [`PciBar::ROM`].
    pub number: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// How much it decodes, in bytes: a power of two.
    pub size: u64,
}

impl PciBar {
    /// The number of the expansion ROM, as its region has it.
    pub const ROM: u8 = 6;
}

impl std::fmt::Display for PciBar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            PciBar::ROM => write!(f, "ROM of {} bytes", self.size),
            number => write!(f, "BAR {number}, {} of {} bytes", self.kind, self.size),
        }
    }
}

/// What a BAR decodes: its lowest four bits, which are read-only. 0 for the ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarKind(pub u8);

impl BarKind {
    /// I/O ports.
    pub const IO: BarKind = BarKind(1);
    /// Memory at a 32-bit address.
    pub const MEMORY: BarKind = BarKind(0);
    /// Memory at a 64-bit address; the next register is its upper half.
    pub const MEMORY_64: BarKind = BarKind(4);
    /// Bit 3 of memory: reading has no side effects.
    pub const PREFETCHABLE: u8 = 8;

    /// Whether it decodes I/O ports.
    pub fn is_io(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the next register is its upper half.
    pub fn is_wide(self) -> bool {
        self.0 & 0b111 == BarKind::MEMORY_64.0
    }
}

impl std::fmt::Display for BarKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = BarKind(self.0 & !BarKind::PREFETCHABLE);
        let kind = match plain {
            kind if kind.is_io() => return f.write_str("I/O"),
            BarKind::MEMORY => "32-bit",
            BarKind::MEMORY_64 => "64-bit",
            BarKind(other) => return write!(f, "kind {other}"),
        };
        let prefetch = if plain == *self { "" } else { " prefetchable" };
        write!(f, "{kind}{prefetch} memory")
    }
}

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciCapability {
    /// Its id.
    pub id: u8,
    /// Where it lies in config space, in bytes.
    pub at: u8,
}

/// An extended capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciExtended {
    /// Its id.
    pub id: u16,
    /// The version of its registers, 4 bits.
    pub version: u8,
    /// Where it lies in config space, in bytes, 0x100 to 0xffc.
    pub at: u16,
}

/// How MSI is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiLayout {
    /// How many vectors there are, 1 to 32.
    pub vectors: u32,
    /// Whether the address has 64 bits.
    pub wide: bool,
    /// Whether vectors can be masked one by one.
    pub maskable: bool,
}

impl std::fmt::Display for MsiLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = if self.wide { 64 } else { 32 };
        let masks = if self.maskable { "with" } else { "without" };
        let vectors = plural(self.vectors);
        write!(f, "MSI of {vectors}, {width}-bit addresses, {masks} masks")
    }
}

/// How MSI-X is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// How many vectors there are, 1 to 2048.
    pub vectors: u32,
    /// Where the table lies: bits 0 to 2 the BAR, the others the offset in it.
    pub table: u32,
    /// Where the pending bits lie, likewise.
    pub pending: u32,
}

impl std::fmt::Display for MsixLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MsixLayout { vectors, table, pending } = *self;
        let vectors = plural(vectors);
        let place = |at: u32| (at & 7, at & !7);
        let ((table, table_at), (bits, bits_at)) = (place(table), place(pending));
        write!(
            f,
            "MSI-X of {vectors}, table in BAR {table} at {table_at:#x}, pending bits in \
             BAR {bits} at {bits_at:#x}"
        )
    }
}

fn plural(vectors: u32) -> String {
    match vectors {
        1 => "1 vector".to_owned(),
        many => format!("{many} vectors"),
    }
}

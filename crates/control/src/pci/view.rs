//! What a VMM is told of a function: where it decodes, and what it says.

/// Where a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlace {
    /// Its number, 0 to 5, or 6 for the ROM.
    pub bar: u8,
    /// The address that the guest gave it: of memory, or of I/O ports where the layout
    /// says so.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Whether accesses there reach the device: decoding is on, the function is awake, and
    /// the address is one.
    pub decoded: bool,
}

/// By what a function tells its guest of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptMode {
    /// By nothing.
    Off,
    /// By its line.
    Intx,
    /// By MSI.
    Msi,
    /// By MSI-X.
    Msix,
}

/// What a vector sends to the guest's interrupt controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The account of a vector; it travels with the function. At any moment what the device
/// sent on it is `delivered + pending + absorbed - windows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorCounts {
    /// Interrupts that [`Function::take`](super::Function::take) delivered.
    pub delivered: u64,
    /// Signals that came while the vector was masked.
    pub absorbed: u64,
    /// Times that the vector was masked and at least one came: one interrupt each.
    pub windows: u64,
    /// How often the line rose; of vector 0.
    pub rises: u64,
    /// Interrupts that wait: in front of the guest, in the pending bit, or drained and
    /// not delivered again. Of the line 1 while it is up.
    pub pending: u64,
    /// Whether one of those is a pending bit: it waits until the vector is not masked, and
    /// takes in all that comes until then. Of the line, until it is not off.
    pub held: bool,
    /// Whether the vector is masked by itself, with all others, or as a line.
    pub masked: bool,
}

//! The registers of BAR0.
//!
//! Every register has 64 bits and lies at a multiple of 8. It is read and written whole
//! or by one aligned half; other accesses are refused with `EINVAL`. Addresses behind the last
//! register read 0 and refuse writes, as do registers marked ro. What a reset leaves
//! is 0, unless the table says otherwise.
//!
//! | offset | name | | what |
//! | --- | --- | --- | --- |
//! | 0x000 | [`ID`] | ro | [`ID_VALUE`] |
//! | 0x008 | [`MEMORY_BYTES`] | ro | size of BAR2 |
//! | 0x010 | [`WINDOW_BYTES`] | ro | size of the part of BAR2 that can be mapped, from 0 on |
//! | 0x018 | [`VECTORS`] | ro | number of vectors, 1 to 8 |
//! | 0x040 | [`COMMAND_KIND`] | rw | [`COPY_TO_DEVICE`] or [`COPY_TO_GUEST`] |
//! | 0x048 | [`COMMAND_IOVA`] | rw | guest address |
//! | 0x050 | [`COMMAND_OFFSET`] | rw | address in BAR2 |
//! | 0x058 | [`COMMAND_BYTES`] | rw | how much, at least 1 |
//! | 0x060 | [`COMMAND_VECTOR`] | rw | interrupt raised when it is over |
//! | 0x068 | [`COMMAND_DOORBELL`] | wo | any write starts the command; `EBUSY` while one runs, `EINVAL` where it makes no sense |
//! | 0x070 | [`COMMAND_STATUS`] | ro | 0 none yet, [`BUSY`], [`DONE`], [`FAILED`] |
//! | 0x078 | [`COMMAND_COUNT`] | ro | commands that are over, failed ones too |
//! | 0x100 | [`RING`] | | the free-running engine: see below |
//! | 0x200 | [`PEER`] | | the engine that writes into a peer: see below |
//! | 0x300 | [`RECEIVED`] | ro | whole blocks of kind peer that were written to BAR2 by region access |
//! | 0x308 | [`RECEIVED_SUM`] | ro | sum of their sequence numbers: `n * (n - 1) / 2` when the first `n` came exactly once, in any order |
//! | 0x310 | [`INTERRUPTS`] | rw | bit n: the interrupt of vector n came while MSI-X and MSI were off, and waits to be acknowledged: writing a 1 clears it. `INTx` is up while it is not 0 |
//! | 0x400 | [`IRQ_SENT`] | ro | 8 counters: messages sent and heard, of MSI-X or MSI, by the vector that they went by |
//! | 0x480 | [`IRQ_UNHEARD`] | ro | 8 counters: interrupts that no message told of, by vector: both were off, or nobody was bound |
//! | 0x500 | [`IRQ_WAITED`] | ro | 8 counters: how often the bit of a vector in [`INTERRUPTS`] was set where it was not; so often it was acknowledged, once less while it is set |
//!
//! The two engines write blocks ([`super::block`]) at a steady rate, and have the same
//! registers, relative to [`RING`] and [`PEER`]:
//!
//! | offset | name | | what |
//! | --- | --- | --- | --- |
//! | 0x00 | [`IOVA`] | rw | where the slots are: guest memory, or a peer's BAR2 |
//! | 0x08 | [`SLOTS`] | rw | how many slots of 4096 bytes; block n goes to slot n modulo this |
//! | 0x10 | [`RATE`] | rw | bytes a second; 0 is a standstill |
//! | 0x18 | [`VECTOR`] | rw | interrupt raised for every batch |
//! | 0x20 | [`BATCH`] | rw | blocks in a batch; 0 for no interrupts |
//! | 0x28 | [`CONTROL`] | rw | bit 0 [`RUN`] |
//! | 0x30 | [`SENT`] | ro | blocks begun: the next sequence number |
//! | 0x38 | [`ACKNOWLEDGED`] | ro | blocks that arrived |
//! | 0x40 | [`ERRORS`] | ro | blocks that did not |
//! | 0x48 | [`OWN_OFFSET`] | rw | ring only: where in BAR2 each block is written as well (kind device), after a reset behind the window |
//! | 0x50 | [`OWN_SLOTS`] | rw | ring only: how many slots there, 0 for none, after a reset all behind the window |
//!
//! With 0 slots in guest memory the ring writes own memory alone. Nothing runs and no
//! DMA is done unless Bus Master Enable is set in the PCI command register and the
//! device is in D0.

/// What [`ID`] reads: `ACCEL` and the version of the register map.
pub const ID_VALUE: u64 = u64::from_le_bytes(*b"ACCEL\0\x01\0");
/// Identifies the device.
pub const ID: u64 = 0x000;
/// Size of BAR2 in bytes.
pub const MEMORY_BYTES: u64 = 0x008;
/// Size in bytes of the window at the start of BAR2 that can be mapped.
pub const WINDOW_BYTES: u64 = 0x010;
/// Number of vectors.
pub const VECTORS: u64 = 0x018;

/// What the command does.
pub const COMMAND_KIND: u64 = 0x040;
/// Guest address of the command.
pub const COMMAND_IOVA: u64 = 0x048;
/// Address in BAR2 of the command.
pub const COMMAND_OFFSET: u64 = 0x050;
/// Length of the command in bytes.
pub const COMMAND_BYTES: u64 = 0x058;
/// The vector raised when the command is over.
pub const COMMAND_VECTOR: u64 = 0x060;
/// Starts the command.
pub const COMMAND_DOORBELL: u64 = 0x068;
/// How the last command went.
pub const COMMAND_STATUS: u64 = 0x070;
/// How many commands are over.
pub const COMMAND_COUNT: u64 = 0x078;

/// [`COMMAND_KIND`]: from guest memory into BAR2.
pub const COPY_TO_DEVICE: u64 = 1;
/// [`COMMAND_KIND`]: from BAR2 into guest memory.
pub const COPY_TO_GUEST: u64 = 2;
/// [`COMMAND_STATUS`]: it runs.
pub const BUSY: u64 = 1;
/// [`COMMAND_STATUS`]: it is done.
pub const DONE: u64 = 2;
/// [`COMMAND_STATUS`]: its DMA failed.
pub const FAILED: u64 = 3;

/// The registers of the engine that writes into guest memory and own memory.
pub const RING: u64 = 0x100;
/// The registers of the engine that writes into a peer.
pub const PEER: u64 = 0x200;

/// Relative to an engine: where its slots are.
pub const IOVA: u64 = 0x00;
/// Relative to an engine: how many slots.
pub const SLOTS: u64 = 0x08;
/// Relative to an engine: bytes a second.
pub const RATE: u64 = 0x10;
/// Relative to an engine: the vector.
pub const VECTOR: u64 = 0x18;
/// Relative to an engine: blocks for one interrupt.
pub const BATCH: u64 = 0x20;
/// Relative to an engine: [`RUN`].
pub const CONTROL: u64 = 0x28;
/// Relative to an engine: blocks begun.
pub const SENT: u64 = 0x30;
/// Relative to an engine: blocks that arrived.
pub const ACKNOWLEDGED: u64 = 0x38;
/// Relative to an engine: blocks that failed.
pub const ERRORS: u64 = 0x40;
/// Relative to [`RING`]: where in BAR2 its blocks go as well.
pub const OWN_OFFSET: u64 = 0x48;
/// Relative to [`RING`]: how many slots there are in BAR2.
pub const OWN_SLOTS: u64 = 0x50;

/// [`CONTROL`]: the engine runs.
pub const RUN: u64 = 1;

/// Peer blocks received.
pub const RECEIVED: u64 = 0x300;
/// Sum of the sequence numbers of the peer blocks received.
pub const RECEIVED_SUM: u64 = 0x308;
/// Interrupts that wait to be acknowledged, by vector.
pub const INTERRUPTS: u64 = 0x310;
/// The first counter of interrupts that were heard; vector n is at `8 * n`.
pub const IRQ_SENT: u64 = 0x400;
/// The first counter of interrupts that were not; vector n is at `8 * n`.
pub const IRQ_UNHEARD: u64 = 0x480;
/// The first counter of interrupts that came to wait; vector n is at `8 * n`.
pub const IRQ_WAITED: u64 = 0x500;

//! What a model may do to the world: DMA and interrupts.

use abi::errno::Errno;
use dirty::Iova;
use thiserror::Error;

/// The world as a model reaches it, lent for the duration of one call.
///
/// DMA has one shape: an access is *done at once* where its target is memory that the
/// client shared, or it is *taken* and comes back through
/// [`Migratable::dma_done`](crate::Migratable::dma_done) with the same token, where some
/// of the target can only be reached by messages to the client: a peer's BAR, or memory
/// that was not shared. How many messages that takes is the bus's matter. A model that submits must be ready for both; it never waits.
///
/// In STOP, `STOP_COPY`, RESUMING and ERROR everything is refused with
/// [`BusError::Stopped`] and counted as the model's violation: rule 13 of the uAPI is
/// then kept for it, but the count shows that it tried. In `RUNNING_P2P` and
/// `PRE_COPY_P2P`, and while an arc is pending, only messages are refused, with
/// [`BusError::Quiescing`]: the bus cannot tell a peer's BAR from memory that was not
/// shared, so it starts neither.
pub trait Bus {
    /// Reads `into.len()` bytes at `at`. When it is done at once `into` holds them;
    /// otherwise they come with the token and `into` is untouched.
    ///
    /// # Errors
    ///
    /// A [`BusError`]; nothing was read.
    fn read(&mut self, at: Iova, into: &mut [u8]) -> Result<Dma, BusError>;

    /// Writes `data` at `at`; what is written at once is marked in the DMA log.
    ///
    /// # Errors
    ///
    /// A [`BusError`]. Nothing was written, except after [`BusError::Failed`].
    fn write(&mut self, at: Iova, data: &[u8]) -> Result<Dma, BusError>;

    /// Raises interrupt `vector` of interrupt index `index` (1 is MSI, 2 is MSI-X for
    /// PCI). While the client has the vector masked it waits: one is heard when it is
    /// unmasked.
    ///
    /// What waits so is in nobody's state: not in the model's, which has told of it, and
    /// not in the client's, which has not heard of it. It does not travel. So an index
    /// that can be masked is for levels, which the model knows of by itself, and PCI
    /// needs no other: of its indexes only `INTx` is MASKABLE, as in the kernel. Vectors
    /// of MSI and MSI-X are masked in the VMM, which keeps their pending bits.
    ///
    /// # Errors
    ///
    /// [`BusError::Unbound`] where nobody listens, [`BusError::Stopped`].
    fn raise(&mut self, index: u32, vector: u32) -> Result<(), BusError>;

    /// Says whether a line that is a level (`INTx`) is up; to be said after whatever may
    /// have changed it, which a load does too, and as often as one likes. While it is up
    /// it is heard as soon as somebody listens, has it unmasked, and the device is not
    /// stopped; and again each time it is unmasked. Down, it is not heard any more.
    /// Staying up while the device stops is no violation. A reset takes it down.
    fn set_level(&mut self, index: u32, vector: u32, up: bool);

    /// Bytes that one message carries. A longer access takes several, and comes back
    /// when the last of them did.
    fn message_limit(&self) -> usize;

    /// Accesses by message that are on their way.
    fn outstanding(&self) -> usize;
}

/// How far an accepted DMA access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an access that is not done yet comes back through dma_done"]
pub enum Dma {
    /// It is done.
    Done,
    /// It is on its way and comes back with this token.
    Later(Token),
}

/// Names one DMA access that is on its way. Never used twice by one runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub(crate) u64);

impl Token {
    /// The number, for messages and traces.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// The bus did not take an access or an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    /// The device is stopped: it does no DMA and raises no interrupt. Counted.
    #[error("the device is stopped")]
    Stopped,
    /// The access needs a message, and the device starts none in this state or while
    /// an arc is pending. To be tried again when it runs.
    #[error("the device starts no messages now")]
    Quiescing,
    /// Too many accesses by message are on their way: 64, or 64 MiB in all. To be tried
    /// again when one came back.
    #[error("too many messages on their way")]
    Busy,
    /// The access is longer than what is taken where messages are needed
    /// ([`ACCESS_MAX`](crate::ACCESS_MAX)).
    #[error("longer than the {0} bytes that go by message")]
    TooLong(usize),
    /// The windows do not cover the whole range.
    #[error("no window covers the range")]
    Unmapped,
    /// The window may not be written.
    #[error("the window is read-only")]
    ReadOnly,
    /// The access was tried and failed.
    #[error("the access failed: {0}")]
    Failed(Errno),
    /// The interrupt has no listener.
    #[error("nobody listens to the interrupt")]
    Unbound,
}

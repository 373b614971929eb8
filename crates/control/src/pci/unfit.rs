//! What can be wrong with a function, an access to it, or what was saved of one.

use port::PciBar;
use thiserror::Error;
use wire::tlv::TlvError;

use crate::transport::TransportError;

/// A function did not do what it was asked.
#[derive(Debug, Error)]
#[error("{function}: {operation} failed")]
pub struct FunctionError {
    /// What people call it.
    pub function: String,
    /// What was asked of it.
    pub operation: &'static str,
    /// Why it failed.
    #[source]
    pub source: Unfit,
}

/// Why a function cannot be used, saved, or be given what was saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The device did not take an access.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// An eventfd failed.
    #[error("an eventfd failed")]
    Event(#[source] std::io::Error),
    /// An access that PCI does not have: not of 1, 2, 4 or (in a BAR) 8 bytes, not
    /// aligned, or across the end.
    #[error("an access of {length} bytes at {at:#x} of {what}")]
    Access {
        /// Of what.
        what: &'static str,
        /// Where.
        at: u64,
        /// How many bytes.
        length: usize,
    },
    /// There is no such BAR. Holds its number.
    #[error("there is no BAR {0}")]
    NoBar(u8),
    /// It reads as all ones.
    #[error("its config space reads as all ones: the device does not answer there")]
    NotThere,
    /// Its config space has less than a header. Holds its bytes.
    #[error("its config space has {0} bytes, less than a header")]
    Short(usize),
    /// It is no ordinary function. Holds the header type.
    #[error("its header type {0} is not supported")]
    Header(u8),
    /// A list of capabilities leaves its place or runs in circles. Holds an offset.
    #[error("its list of capabilities is broken at {0:#x}")]
    Capabilities(u16),
    /// A BAR has a size that no address fits.
    #[error("its {bar} cannot be")]
    Size {
        /// The BAR.
        bar: PciBar,
    },
    /// The table of MSI-X or its pending bits lie in no BAR. Holds what the capability
    /// says.
    #[error("its MSI-X capability points to {place:#x}, which is in no BAR")]
    Msix {
        /// What the capability says: a BAR in the lowest three bits, and an offset.
        place: u32,
    },
    /// Its capability shows more vectors of MSI-X than the host can serve.
    #[error("it shows {shown} vectors of MSI-X, and {served} of them are served")]
    Vectors {
        /// How many it shows.
        shown: u32,
        /// How many there are.
        served: u32,
    },
    /// It is not the function that it was.
    #[error("after a reset it is another function than before")]
    Changed,
    /// What was saved cannot be read. Holds its length in bytes.
    #[error("what was saved has {0} bytes, which is no config space")]
    Length(usize),
    /// What was saved is of a version that is not known. Holds the version.
    #[error("what was saved is of version {0}, only versions 1 and 2 are known")]
    Version(u16),
    /// What was saved is not made of fields as it should be.
    #[error("what was saved cannot be read")]
    Fields(#[from] TlvError),
    /// What was saved contradicts itself.
    #[error("what was saved cannot be: {0}")]
    Invalid(&'static str),
    /// More is to be saved than there is room for.
    #[error("{what} do not fit into what is saved")]
    TooMuch {
        /// What.
        what: &'static str,
    },
    /// It was saved on another kind of device.
    #[error("it was saved where {what} is {saved}, here it is {here}")]
    Another {
        /// What differs.
        what: &'static str,
        /// What it was there.
        saved: String,
        /// What it is here.
        here: String,
    },
    /// Only one of the two functions has a register. Holds where.
    #[error("only one of the two sides has a register at {0:#x}")]
    Register(u16),
    /// The device is not in D0.
    #[error(
        "the device sleeps, and waking it may reset it: reset it before it is loaded"
    )]
    Asleep,
    /// A BAR does not hold its address.
    #[error("the register of a BAR at {at:#x} was {saved:#x} and holds {held:#x}")]
    Bar {
        /// Where its register lies.
        at: u16,
        /// What was saved.
        saved: u32,
        /// What the register holds after it was written.
        held: u32,
    },
    /// There are counts for more vectors than the function has.
    #[error("counts of {counts} vectors, and there are {vectors}")]
    Counts {
        /// How many there are counts for.
        counts: usize,
        /// How many it has.
        vectors: usize,
    },
}

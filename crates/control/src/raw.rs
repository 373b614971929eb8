//! The calls as they are given, for whoever tests a device.

use abi::feature::FeatureHeader;

use crate::transport::{Direction, TransportError};

/// Calls that no driver of a device makes, and that whoever tests one has to: with sizes,
/// flags and directions that are wrong.
///
/// Nothing is checked, corrected or remembered on the way: what the device makes of it is
/// the answer. Errors are those of [`Transport`](crate::Transport).
pub trait Raw {
    /// Whether the kernel of this machine answers, and not a process. Some of its versions
    /// have to be spared what hangs them.
    fn is_kernel(&self) -> bool;

    /// `VFIO_DEVICE_FEATURE` with exactly this header and `data` behind it. What the device
    /// left behind the header comes back; where `argsz` promises more than there is, zeros
    /// stand for the rest.
    ///
    /// For nothing that takes a pointer, but PROBE; and a descriptor that comes back from a
    /// successful SET of the state is the caller's loss.
    ///
    /// # Errors
    /// The device's errno, or the transport's failure.
    fn feature(
        &self,
        header: FeatureHeader,
        data: &[u8],
    ) -> Result<Vec<u8>, TransportError>;

    /// Reads or writes migration data, whatever state the device is in, where that is a
    /// message and not a matter of descriptors (vfio-user). Returns how many bytes were.
    /// `None` where a descriptor is what data goes through.
    ///
    /// # Errors
    /// The device's errno, or the transport's failure.
    fn data(
        &self,
        direction: Direction,
        bytes: &mut [u8],
    ) -> Result<Option<usize>, TransportError>;
}

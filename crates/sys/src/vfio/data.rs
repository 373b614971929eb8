//! The descriptor of a migration session.

#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::AsFd;

use abi::v2::{MIG_GET_PRECOPY_INFO, PrecopyInfo};

use super::{exchange, size};

/// Reads, once: an interruption is an error (EINTR).
///
/// # Errors
/// As every function here: the errno. ENOMSG at the temporary end, ENODEV after the end
/// of the session.
pub fn read(session: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::read(session, into)?)
}

/// Writes, once; says how many bytes were taken.
///
/// # Errors
/// The errno.
pub fn write(session: impl AsFd, from: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(session, from)?)
}

/// `VFIO_MIG_GET_PRECOPY_INFO`, with `argsz` and `flags` as they are in `asked`: 24 and 0
/// are right. Without opting in to its second version, kernels give `flags` back.
///
/// # Errors
/// The errno: EINVAL outside of `PRE_COPY` and for an `argsz` below 24 (and, without
/// asking, above that), ENODEV after the end of the session.
pub fn precopy_info(session: impl AsFd, asked: PrecopyInfo) -> io::Result<PrecopyInfo> {
    if asked.argsz > size::<PrecopyInfo>() {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let mut info = asked;
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(session, MIG_GET_PRECOPY_INFO, &mut info) }?;
    Ok(info)
}

//! The one way to an ioctl.

#![expect(unsafe_code, reason = "ioctls")]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One ioctl whose answer is its return value, besides what it writes to its argument.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: the opcode and the argument are passed as they are, and the number that comes
// back is all of the output. Whether the two belong together is for those who call
// `call` and its like to promise.
unsafe impl Ioctl for Call {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

/// Calls with a pointer, or with a number in place of one.
///
/// # Safety
/// The argument must be what the kernel takes for `opcode`: valid for reading and
/// writing as far as the kernel goes, and so must be what it points to.
pub(super) unsafe fn call(
    fd: impl AsFd,
    opcode: u32,
    argument: *mut c_void,
) -> io::Result<i32> {
    let call = Call { opcode: opcode as Opcode, argument };
    // SAFETY: as the caller promised.
    Ok(unsafe { rustix::ioctl::ioctl(fd, call) }?)
}

/// Calls with a structure that is read and written.
///
/// # Safety
/// `T` must be the structure of `opcode`, or longer, and what it points to must be valid
/// as far as the kernel goes.
pub(super) unsafe fn exchange<T: FromBytes + IntoBytes + Immutable>(
    fd: impl AsFd,
    opcode: u32,
    argument: &mut T,
) -> io::Result<i32> {
    // SAFETY: all bytes of `T` may be written, and the caller promised the rest.
    unsafe { call(fd, opcode, (&raw mut *argument).cast()) }
}

/// Calls with bytes that begin with their own length, aligned to 8.
///
/// # Safety
/// `opcode` must write no further than the length that the buffer begins with, which
/// must not exceed it, and what the bytes point to must be valid as far as the kernel
/// goes.
pub(super) unsafe fn exchange_bytes(
    fd: impl AsFd,
    opcode: u32,
    buffer: &mut [u64],
) -> io::Result<i32> {
    // SAFETY: every bit pattern is a u64, and the caller promised the rest.
    unsafe { call(fd, opcode, buffer.as_mut_ptr().cast()) }
}

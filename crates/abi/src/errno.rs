//! Error numbers of Linux, as the kernel returns them and vfio-user sends them.

open_number! {
    /// A Linux error number, positive. The same on every architecture that this
    /// project runs on (x86, arm64, s390, RISC-V).
    Errno(i32), "errno";
    /// Operation not permitted.
    EPERM = 1,
    /// No such entry.
    ENOENT = 2,
    /// Interrupted by a signal.
    EINTR = 4,
    /// Input or output failed.
    EIO = 5,
    /// No such device or address.
    ENXIO = 6,
    /// Too much: more ranges than fit into a page (DMA logging START).
    E2BIG = 7,
    /// Bad descriptor, or read and write the wrong way round on a data descriptor.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// No memory.
    ENOMEM = 12,
    /// Access denied.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// Busy.
    EBUSY = 16,
    /// Exists already.
    EEXIST = 17,
    /// No such device; on a data descriptor: the session is over.
    ENODEV = 19,
    /// A folder.
    EISDIR = 21,
    /// Invalid argument; also every transition that is refused.
    EINVAL = 22,
    /// The system has too many open files.
    ENFILE = 23,
    /// The process has too many open files.
    EMFILE = 24,
    /// No such call, no such feature.
    ENOTTY = 25,
    /// Too large.
    EFBIG = 27,
    /// No space.
    ENOSPC = 28,
    /// Data descriptors do not seek.
    ESPIPE = 29,
    /// Nobody reads the other end.
    EPIPE = 32,
    /// Out of range.
    ERANGE = 34,
    /// A call that does not exist.
    ENOSYS = 38,
    /// Nothing there now; in `PRE_COPY`: the temporary end of the stream.
    ENOMSG = 42,
    /// No data.
    ENODATA = 61,
    /// The protocol is broken.
    EPROTO = 71,
    /// Not a message that can be understood.
    EBADMSG = 74,
    /// Larger than the type: a range that ends at 2^64 or past it.
    EOVERFLOW = 75,
    /// A message that is too long.
    EMSGSIZE = 90,
    /// Not supported.
    EOPNOTSUPP = 95,
    /// The peer closed the connection without ceremony.
    ECONNRESET = 104,
    /// No connection.
    ENOTCONN = 107,
    /// Shut down.
    ESHUTDOWN = 108,
    /// Took too long.
    ETIMEDOUT = 110,
    /// Nothing listens there.
    ECONNREFUSED = 111,
    /// Under way already.
    EALREADY = 114,
    /// Given up on request.
    ECANCELED = 125,
}

impl core::error::Error for Errno {}

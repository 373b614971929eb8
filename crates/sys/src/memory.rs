//! Memory shared with others: guest RAM, windows of a device.
//!
//! A [`SharedMemory`] is a mapped file. Whoever else has mapped it (a guest, a device, a
//! peer that is not to be trusted) may write to it at any moment, so nobody here ever
//! gets a reference to its bytes: they are copied in and out, and whatever tests and
//! checksums are made, are made on the copy.

#![expect(unsafe_code, reason = "mmap, and access to memory that others write to")]

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use thiserror::Error;

/// The granularity of mappings and of [`SharedMemory::zero`], in bytes.
const PAGE: usize = 4096;

/// How far [`SharedMemory::zero`] goes before it looks for the next hole, in bytes.
const STRIDE: usize = 64 * 1024;

/// A stretch of a mapped file. Clones and slices share the mapping, which lives as long
/// as any of them.
#[derive(Clone)]
pub struct SharedMemory {
    mapping: Arc<Mapping>,
    /// In the mapping; with `len` checked once, when made.
    start: usize,
    len: usize,
}

/// One mmap(2).
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
    /// Where in the file the mapping starts.
    offset: u64,
    writable: bool,
}

// SAFETY: the mapping belongs to no thread, and its bytes are reached only by copies
// and by atomic accesses, which any thread may make at any time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is exactly what mmap gave, and its last owner is going.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of what mmap gave");
    }
}

/// An access that shared memory does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// It leaves the memory.
    #[error("{len} bytes at {offset:#x} are outside shared memory of {size} bytes")]
    Outside {
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// How much there is, in bytes.
        size: u64,
    },
    /// The memory was given for reading only.
    #[error("shared memory was given for reading only")]
    ReadOnly,
    /// An atomic access that is not aligned to its width.
    #[error("{offset:#x} is not aligned to the {width} bytes of the access")]
    Unaligned {
        /// Where it starts, in bytes.
        offset: u64,
        /// Its width in bytes.
        width: u64,
    },
}

impl SharedMemory {
    /// New memory of `len` bytes, all 0, in a memfd that others can be given. Its size
    /// is sealed: nobody can shorten it under those who have it mapped.
    ///
    /// # Errors
    /// `InvalidInput` where `len` is 0, or no multiple of 4096, or beyond what can be
    /// addressed; else what `memfd_create(2)`, ftruncate(2) and mmap(2) say.
    pub fn create(name: &str, len: u64) -> io::Result<SharedMemory> {
        let size = usable(len)?;
        if !size.is_multiple_of(PAGE) {
            return Err(invalid("the length is no multiple of 4096"));
        }
        let fd = rustix::fs::memfd_create(
            name,
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(
            &fd,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        SharedMemory::map(fd, 0, size, true)
    }

    /// Maps `len` bytes of a descriptor that somebody gave, from `offset`.
    ///
    /// The file must reach that far now: touching a page behind its end is a SIGBUS.
    /// (Whoever gave it could still shorten a file that is not sealed; a VMM and its
    /// device servers trust each other that far, since vfio-user has no other way.)
    ///
    /// # Errors
    /// `InvalidInput` where `len` is 0, `offset` is not aligned to 4096, or the file is
    /// too short; `PermissionDenied` where `writable` asks for more than the descriptor
    /// allows; else what fstat(2) and mmap(2) say.
    pub fn from_fd(
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> io::Result<SharedMemory> {
        let size = mappable(offset, len)?;
        let end = offset.checked_add(len).ok_or_else(|| invalid("the end overflows"))?;
        let file = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        if end > file {
            return Err(invalid("the file is shorter than the mapping"));
        }
        SharedMemory::map(fd, offset, size, writable)
    }

    /// Maps `len` bytes of a device that shows its regions through `fd`, from `offset`.
    ///
    /// A device has no size that could be compared; the kernel knows what of it can be
    /// mapped. Where it takes that away (memory decoding off, a device that is gone), an
    /// access is a SIGBUS: for regions that stay, such as those of migration.
    ///
    /// # Errors
    /// `InvalidInput` where `len` is 0 or `offset` is not aligned to 4096; else what
    /// mmap(2) says.
    pub fn of_device(
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> io::Result<SharedMemory> {
        let size = mappable(offset, len)?;
        SharedMemory::map(fd, offset, size, writable)
    }

    fn map(
        fd: OwnedFd,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> io::Result<SharedMemory> {
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: the kernel chooses the address, so no mapping that exists is touched,
        // and nothing refers to the new one yet.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &fd,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| invalid("the kernel mapped address 0"))?;
        let mapping = Arc::new(Mapping { base, len, fd, offset, writable });
        Ok(SharedMemory { mapping, start: 0, len })
    }

    /// A part of it, with the same mapping beneath.
    ///
    /// # Errors
    /// When the part is not inside.
    pub fn slice(&self, offset: u64, len: u64) -> Result<SharedMemory, AccessError> {
        let at = self.check(offset, len)?;
        Ok(SharedMemory {
            mapping: Arc::clone(&self.mapping),
            start: self.start + at,
            len: usize::try_from(len).map_err(|_| self.outside(offset, len))?,
        })
    }

    /// The file, to give to others together with [`SharedMemory::offset`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd.as_fd()
    }

    /// Where in the file this memory starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.mapping.offset + self.start as u64
    }

    /// Whether both are parts of one mapping of one file.
    pub fn same_file(&self, other: &SharedMemory) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }

    /// How much there is, in bytes, never 0 except for an empty slice.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether this is an empty slice.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it may be written.
    pub fn writable(&self) -> bool {
        self.mapping.writable
    }

    /// Copies bytes out. What somebody writes meanwhile is seen or not, byte by byte.
    ///
    /// # Errors
    /// [`AccessError::Outside`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        let at = self.check(offset, into.len() as u64)?;
        let from = self.pointer(at);
        // Others may write these bytes while they are copied. That is a race only
        // between this copy and memory outside the program's own (the guest's, another
        // process's), or between two such copies by our threads, of which a device and
        // a guest make as many as they like. It is the accepted practice of VMMs, for
        // there is no bulk copy at memcpy's speed that the language would call atomic:
        // the bytes are bytes of no other type, no reference to them is ever made, the
        // compiler cannot see through the mapping to assume anything of them, and
        // nothing reads them twice expecting the same.
        //
        // SAFETY: `check` bounds the range inside the mapping, which lives as long as
        // `self`; `into` is the caller's own memory, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies bytes in. Others see them byte by byte, in no promised order.
    ///
    /// # Errors
    /// [`AccessError::Outside`], [`AccessError::ReadOnly`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        let at = self.check_write(offset, from.len() as u64)?;
        let into = self.pointer(at);
        // SAFETY: as in `read`, and the mapping is writable.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Makes bytes 0 without writing to whole pages that are 0 already, and without
    /// bringing pages into being that the file does not have yet.
    ///
    /// # Errors
    /// [`AccessError::Outside`], [`AccessError::ReadOnly`].
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), AccessError> {
        let mut at = self.check_write(offset, len)?;
        let end = at + usize::try_from(len).map_err(|_| self.outside(offset, len))?;
        while at < end {
            at = self.next_data(at).min(end);
            let stop = end.min(at.saturating_add(STRIDE));
            while at < stop {
                // Pages of the file, not of this slice, so that no page is split.
                let boundary = (self.start + at) / PAGE * PAGE + PAGE - self.start;
                let next = boundary.min(stop);
                self.zero_piece(at, next - at);
                at = next;
            }
        }
        Ok(())
    }

    /// Within one page, bounds checked by the caller.
    fn zero_piece(&self, at: usize, len: usize) {
        let mut copy = [0; PAGE];
        let copy = &mut copy[..len];
        let pointer = self.pointer(at);
        // SAFETY: as in `read`; the caller has checked the range.
        unsafe { std::ptr::copy_nonoverlapping(pointer, copy.as_mut_ptr(), len) };
        if copy.iter().any(|byte| *byte != 0) {
            // SAFETY: as in `write`; the caller has checked range and permission.
            unsafe { std::ptr::write_bytes(pointer, 0, len) };
        }
    }

    /// The first offset from `at` on where the file has a page at all.
    fn next_data(&self, at: usize) -> usize {
        let from = self.offset() + at as u64;
        match rustix::fs::seek(&self.mapping.fd, SeekFrom::Data(from)) {
            Ok(found) => {
                let skipped = found.saturating_sub(from);
                at.saturating_add(usize::try_from(skipped).unwrap_or(usize::MAX))
            }
            // Nothing but a hole up to the end of the file.
            Err(rustix::io::Errno::NXIO) => usize::MAX,
            // No such question here: look at every page.
            Err(_) => at,
        }
    }

    /// Touches every page, for writing where that is allowed, so that later accesses do
    /// not wait for the kernel.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn prefault(&self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let start = self.start / PAGE * PAGE;
        let len = self.start + self.len - start;
        let advice = if self.mapping.writable {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        // SAFETY: within the mapping, since `start` only went down to its page.
        let pointer = unsafe { self.mapping.base.as_ptr().add(start) };
        loop {
            // SAFETY: the range is inside the mapping, and populating changes no byte.
            let result =
                unsafe { rustix::mm::madvise(pointer.cast::<c_void>(), len, advice) };
            match result {
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<usize, AccessError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len as u64);
        match usize::try_from(offset) {
            Ok(at) if inside => Ok(at),
            _ => Err(self.outside(offset, len)),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<usize, AccessError> {
        if !self.mapping.writable {
            return Err(AccessError::ReadOnly);
        }
        self.check(offset, len)
    }

    fn outside(&self, offset: u64, len: u64) -> AccessError {
        AccessError::Outside { offset, len, size: self.len as u64 }
    }

    /// Where it lies in this process: for the kernel, which is told where devices may
    /// write.
    pub(crate) fn address(&self) -> usize {
        self.pointer(0).expose_provenance()
    }

    fn pointer(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.len, "callers check the range");
        // SAFETY: `start` and `len` were checked against the mapping when this value
        // was made, and `at` is at most `len`.
        unsafe { self.mapping.base.as_ptr().add(self.start + at) }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("offset", &self.offset())
            .field("len", &self.len)
            .field("writable", &self.mapping.writable)
            .finish_non_exhaustive()
    }
}

macro_rules! atomics {
    ($($width:literal $int:ident $atomic:ident $load:ident $store:ident;)*) => {
        impl SharedMemory {
            $(
                #[doc = concat!("Loads ", $width, " bytes in one access (acquire).")]
                ///
                /// # Errors
                /// [`AccessError::Outside`], [`AccessError::Unaligned`].
                pub fn $load(&self, offset: u64) -> Result<$int, AccessError> {
                    let at = self.check(offset, $width)?;
                    let pointer = self.aligned(at, offset, $width)?.cast::<$int>();
                    // SAFETY: inside the mapping, aligned, and alive as long as `self`.
                    let cell = unsafe { $atomic::from_ptr(pointer) };
                    Ok(cell.load(Ordering::Acquire))
                }

                #[doc = concat!("Stores ", $width, " bytes in one access (release).")]
                ///
                /// # Errors
                /// [`AccessError::Outside`], [`AccessError::ReadOnly`],
                /// [`AccessError::Unaligned`].
                pub fn $store(
                    &self,
                    offset: u64,
                    value: $int,
                ) -> Result<(), AccessError> {
                    let at = self.check_write(offset, $width)?;
                    let pointer = self.aligned(at, offset, $width)?.cast::<$int>();
                    // SAFETY: inside the mapping, aligned, and alive as long as `self`.
                    let cell = unsafe { $atomic::from_ptr(pointer) };
                    cell.store(value, Ordering::Release);
                    Ok(())
                }
            )*
        }
    };
}

atomics! {
    1 u8 AtomicU8 load_u8 store_u8;
    2 u16 AtomicU16 load_u16 store_u16;
    4 u32 AtomicU32 load_u32 store_u32;
    8 u64 AtomicU64 load_u64 store_u64;
}

impl SharedMemory {
    fn aligned(
        &self,
        at: usize,
        offset: u64,
        width: u64,
    ) -> Result<*mut u8, AccessError> {
        let pointer = self.pointer(at);
        if (pointer.addr() as u64).is_multiple_of(width) {
            Ok(pointer)
        } else {
            Err(AccessError::Unaligned { offset, width })
        }
    }
}

/// What can be mapped from `offset`: the length.
fn mappable(offset: u64, len: u64) -> io::Result<usize> {
    let size = usable(len)?;
    if offset.is_multiple_of(PAGE as u64) {
        Ok(size)
    } else {
        Err(invalid("the offset is not aligned to 4096"))
    }
}

fn usable(len: u64) -> io::Result<usize> {
    match usize::try_from(len) {
        Ok(size) if size > 0 && size <= isize::MAX as usize - PAGE => Ok(size),
        _ => Err(invalid("the length is 0 or cannot be addressed")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_also_through_another_mapping() {
        let memory = SharedMemory::create("test", 3 * 4096).unwrap();
        memory.write(4090, b"across pages").unwrap();
        let fd = memory.fd().try_clone_to_owned().unwrap();
        let other = SharedMemory::from_fd(fd, 0, 3 * 4096, false).unwrap();
        let mut back = [0; 12];
        other.read(4090, &mut back).unwrap();
        assert_eq!(&back, b"across pages");
        assert_eq!(other.write(0, &[1]), Err(AccessError::ReadOnly));
        assert_eq!(other.zero(0, 1), Err(AccessError::ReadOnly));
    }

    #[test]
    fn an_access_behind_the_end_or_around_it_is_refused() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let mut two = [0; 2];
        assert!(memory.read(4095, &mut two).is_err());
        assert!(memory.read(u64::MAX, &mut two).is_err());
        assert!(memory.write(u64::MAX - 1, &two).is_err());
        assert!(memory.zero(1, u64::MAX).is_err());
        assert!(memory.slice(4096, 1).is_err());
        assert!(memory.load_u64(4089).is_err());
        memory.read(4094, &mut two).unwrap();
        memory.read(4096, &mut []).unwrap();
    }

    #[test]
    fn a_slice_of_a_slice_stays_inside_and_knows_its_place_in_the_file() {
        let memory = SharedMemory::create("test", 4 * 4096).unwrap();
        let part = memory.slice(4096, 8192).unwrap().slice(4096, 4096).unwrap();
        assert_eq!((part.offset(), part.len()), (8192, 4096));
        part.write(0, &[7]).unwrap();
        assert_eq!(memory.load_u8(8192).unwrap(), 7);
        assert!(part.write(4096, &[7]).is_err());
    }

    #[test]
    fn a_file_shorter_than_promised_is_refused_before_it_can_kill_us() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 5000]).unwrap();
        let fd = || OwnedFd::from(file.try_clone().unwrap());
        assert!(SharedMemory::from_fd(fd(), 0, 8192, true).is_err());
        assert!(SharedMemory::from_fd(fd(), 8192, 4096, true).is_err());
        assert!(SharedMemory::from_fd(fd(), u64::MAX - 4095, 8192, true).is_err());
        assert!(SharedMemory::from_fd(fd(), 1, 4096, true).is_err());
        assert!(SharedMemory::from_fd(fd(), 0, 0, true).is_err());
        assert!(SharedMemory::from_fd(fd(), 4096, 904, true).is_ok());
    }

    #[test]
    fn memory_we_made_cannot_be_shortened_under_those_who_mapped_it() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        assert!(rustix::fs::ftruncate(memory.fd(), 4096).is_err());
        assert!(rustix::fs::ftruncate(memory.fd(), 16384).is_err());
    }

    #[test]
    fn zeroing_reaches_every_byte_and_brings_no_page_into_being() {
        let memory = SharedMemory::create("test", 64 * 4096).unwrap();
        memory.write(10 * 4096, &[0xff; 3 * 4096]).unwrap();
        let before = rustix::fs::fstat(memory.fd()).unwrap().st_blocks;
        memory.zero(10 * 4096 + 1, 3 * 4096 - 2).unwrap();
        let mut back = vec![1; 3 * 4096];
        memory.read(10 * 4096, &mut back).unwrap();
        assert_eq!((back[0], back[3 * 4096 - 1]), (0xff, 0xff));
        assert!(back[1..3 * 4096 - 1].iter().all(|byte| *byte == 0));

        let empty = SharedMemory::create("test", 1 << 30).unwrap();
        empty.zero(0, 1 << 30).unwrap();
        assert_eq!(rustix::fs::fstat(empty.fd()).unwrap().st_blocks, 0);
        assert_eq!(rustix::fs::fstat(memory.fd()).unwrap().st_blocks, before);
    }

    #[test]
    fn an_unaligned_atomic_access_is_an_error_and_no_crash() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        memory.store_u32(8, 0x0403_0201).unwrap();
        assert_eq!(memory.load_u8(8).unwrap().to_ne_bytes()[0], {
            0x0403_0201_u32.to_ne_bytes()[0]
        });
        assert_eq!(memory.load_u32(8).unwrap(), 0x0403_0201);
        assert_eq!(
            memory.load_u32(9),
            Err(AccessError::Unaligned { offset: 9, width: 4 })
        );
        assert!(memory.slice(2, 100).unwrap().store_u64(6, 1).is_ok());
        assert!(memory.slice(2, 100).unwrap().store_u64(8, 1).is_err());
    }

    #[test]
    fn prefaulting_brings_every_page_in() {
        let memory = SharedMemory::create("test", 16 * 4096).unwrap();
        memory.slice(4096 + 5, 4096).unwrap().prefault().unwrap();
        assert_eq!(rustix::fs::fstat(memory.fd()).unwrap().st_blocks, 2 * 8);
        memory.prefault().unwrap();
        assert_eq!(rustix::fs::fstat(memory.fd()).unwrap().st_blocks, 16 * 8);
    }

    proptest! {
        #[test]
        fn zeroing_any_range_is_zeroing_that_range_alone(
            start in 0_usize..5 * 4096,
            len in 0_usize..5 * 4096,
            holes in proptest::collection::vec(any::<bool>(), 5),
        ) {
            let size = 5 * 4096;
            let len = len.min(size - start);
            let memory = SharedMemory::create("test", size as u64).unwrap();
            let mut model = vec![0; size];
            for (page, hole) in holes.iter().enumerate() {
                if !hole {
                    model[page * 4096..][..4096].fill(0xaa);
                    memory.write(page as u64 * 4096, &[0xaa; 4096]).unwrap();
                }
            }
            model[start..start + len].fill(0);
            memory.zero(start as u64, len as u64).unwrap();
            let mut back = vec![0; size];
            memory.read(0, &mut back).unwrap();
            prop_assert!(back == model);
        }
    }
}

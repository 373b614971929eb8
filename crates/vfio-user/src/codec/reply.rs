//! What is answered. A reply that failed is a header alone.

use abi::errno::Errno;
use abi::feature::FeatureHeader;
use abi::irq::IrqInfo;
use abi::vfio_user::{
    Command, DeviceInfo, DirtyBitmap, DmaAccess, DmaUnmap, DmaUnmapFlags, IoFdSubRegion,
    MigData, RegionAccess, RegionIoFds, WriteMulti,
};
use zerocopy::IntoBytes;

use super::message::{Head, Message};
use super::region::Region;
use super::version::Version;
use super::{Malformed, first, take};

/// An answer that went well; what follows its fixed fields is borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To VERSION.
    Version(Version<'a>),
    /// To `DMA_UNMAP`: the request's own fields.
    DmaUnmap(DmaUnmap),
    /// To `DMA_UNMAP` with `GET_DIRTY_BITMAP`: `size` bytes, whole words of 8 bytes.
    DmaUnmapDirty(DmaUnmap, DirtyBitmap, &'a [u8]),
    /// To `DEVICE_GET_INFO`.
    DeviceInfo(DeviceInfo),
    /// To `DEVICE_GET_REGION_INFO`; beside a descriptor where some of it can be mapped.
    Region(Region),
    /// To `DEVICE_GET_REGION_IO_FDS`: the sub-regions, beside their descriptors. None
    /// where there are none, or where they did not fit into `argsz`: the reply's own
    /// `argsz` then says how much is needed.
    IoFds(RegionIoFds, Vec<IoFdSubRegion>),
    /// To `DEVICE_GET_IRQ_INFO`.
    IrqInfo(IrqInfo),
    /// To `REGION_READ`: `count` bytes.
    RegionRead(RegionAccess, &'a [u8]),
    /// To `REGION_WRITE`.
    RegionWrite(RegionAccess),
    /// To `REGION_WRITE_MULTI`: how many were done.
    WriteMulti(WriteMulti),
    /// To `DMA_READ`: `count` bytes.
    DmaRead(DmaAccess, &'a [u8]),
    /// To `DMA_WRITE`.
    DmaWrite(Option<DmaAccess>),
    /// To `DEVICE_FEATURE`.
    Feature(FeatureHeader, &'a [u8]),
    /// To `MIG_DATA_READ`: `size` bytes, and perhaps padding.
    MigDataRead(MigData, &'a [u8]),
    /// To `DMA_MAP`, `DEVICE_SET_IRQS`, `DEVICE_RESET` and `MIG_DATA_WRITE`.
    Done,
}

impl<'a> Reply<'a> {
    /// Reads the body of a reply to `command` that has no error.
    ///
    /// # Errors
    /// [`Malformed`] where it is shorter than its fields and counts say, and for a
    /// command that nobody here sends.
    pub fn parse(command: Command, body: &'a [u8]) -> Result<Reply<'a>, Malformed> {
        Ok(match command {
            Command::VERSION => Reply::Version(Version::parse(body)?),
            Command::DMA_UNMAP => dma_unmap(body)?,
            Command::DEVICE_GET_INFO => Reply::DeviceInfo(take(body)?.0),
            Command::DEVICE_GET_REGION_INFO => Reply::Region(Region::parse(body)?),
            Command::DEVICE_GET_REGION_IO_FDS => io_fds(body)?,
            Command::DEVICE_GET_IRQ_INFO => Reply::IrqInfo(take(body)?.0),
            Command::REGION_READ => {
                let (access, data) = take::<RegionAccess>(body)?;
                Reply::RegionRead(access, first(data, access.count.into())?)
            }
            Command::REGION_WRITE => Reply::RegionWrite(take(body)?.0),
            Command::REGION_WRITE_MULTI => Reply::WriteMulti(take(body)?.0),
            Command::DMA_READ => {
                let (access, data) = take::<DmaAccess>(body)?;
                Reply::DmaRead(access, first(data, access.count)?)
            }
            // The text gives the count 4 bytes, libvfio-user sends 8, and QEMU sends
            // nothing at all: whoever asked knows what was written.
            Command::DMA_WRITE => Reply::DmaWrite(take(body).ok().map(|(it, _)| it)),
            Command::DEVICE_FEATURE => {
                let (header, data) = take(body)?;
                Reply::Feature(header, data)
            }
            Command::MIG_DATA_READ => {
                let (fixed, data) = take::<MigData>(body)?;
                Reply::MigDataRead(fixed, first(data, fixed.size.into())?)
            }
            Command::DMA_MAP
            | Command::DEVICE_SET_IRQS
            | Command::DEVICE_RESET
            | Command::MIG_DATA_WRITE => Reply::Done,
            _ => return Err(Malformed("a reply to a command that nobody sends")),
        })
    }

    /// The message that answers message `id`, a `command`, with this.
    pub fn message(&self, id: u16, command: Command) -> Message<'a> {
        let head = Head::reply(id, command);
        match self {
            Reply::Version(version) => version.message(head),
            Reply::DmaUnmap(unmap) => Message::bare(head.with(unmap)),
            Reply::DmaUnmapDirty(unmap, found, bitmap) => {
                Message::new(head.with(unmap).with(found), *bitmap)
            }
            Reply::DeviceInfo(info) => Message::bare(head.with(info)),
            Reply::Region(region) => region.message(head),
            Reply::IoFds(info, parts) => {
                Message::new(head.with(info), parts.as_slice().as_bytes().to_vec())
            }
            Reply::IrqInfo(info) => Message::bare(head.with(info)),
            Reply::RegionRead(access, data) => Message::new(head.with(access), *data),
            Reply::RegionWrite(access) => Message::bare(head.with(access)),
            Reply::WriteMulti(count) => Message::bare(head.with(count)),
            Reply::DmaRead(access, data) => Message::new(head.with(access), *data),
            Reply::DmaWrite(Some(access)) => Message::bare(head.with(access)),
            Reply::DmaWrite(None) | Reply::Done => Message::bare(head),
            Reply::Feature(feature, data) => Message::new(head.with(feature), *data),
            Reply::MigDataRead(fixed, data) => Message::new(head.with(fixed), *data),
        }
    }

    /// The message that answers message `id`, a `command`, with an errno.
    pub fn refusal(id: u16, command: Command, errno: Errno) -> Message<'static> {
        Message::bare(Head::refusal(id, command, errno))
    }
}

fn dma_unmap(body: &[u8]) -> Result<Reply<'_>, Malformed> {
    let (unmap, rest) = take::<DmaUnmap>(body)?;
    let flags = DmaUnmapFlags::from_bits_retain(unmap.flags);
    if !flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
        return Ok(Reply::DmaUnmap(unmap));
    }
    let (found, bitmap) = take::<DirtyBitmap>(rest)?;
    if !found.size.is_multiple_of(8) {
        return Err(Malformed("a bitmap that does not end with a word"));
    }
    Ok(Reply::DmaUnmapDirty(unmap, found, first(bitmap, found.size)?))
}

fn io_fds(body: &[u8]) -> Result<Reply<'_>, Malformed> {
    let (info, mut rest) = take::<RegionIoFds>(body)?;
    let mut parts = Vec::new();
    // Where the asker had no room only the fixed part comes.
    if !rest.is_empty() {
        for _ in 0..info.count {
            let (part, after) = take::<IoFdSubRegion>(rest)?;
            parts.push(part);
            rest = after;
        }
    }
    Ok(Reply::IoFds(info, parts))
}

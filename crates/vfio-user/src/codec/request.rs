//! What is asked: by the client, and (DMA) by the server.

use abi::feature::FeatureHeader;
use abi::irq::{IrqInfo, IrqSet};
use abi::region::RegionInfo;
use abi::vfio_user::{
    Command, DeviceInfo, DirtyBitmap, DmaAccess, DmaMap, DmaUnmap, DmaUnmapFlags,
    MigData, RegionAccess, RegionIoFds, WriteMulti,
};

use super::message::{Head, Message};
use super::version::Version;
use super::writes::Writes;
use super::{Malformed, first, take};

/// A request; what follows its fixed fields is borrowed from the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// VERSION.
    Version(Version<'a>),
    /// `DMA_MAP`; beside one descriptor, or none where messages are to be used.
    DmaMap(DmaMap),
    /// `DMA_UNMAP`.
    DmaUnmap(DmaUnmap),
    /// `DMA_UNMAP` with `GET_DIRTY_BITMAP`: page size and length of the bitmap wanted.
    DmaUnmapDirty(DmaUnmap, DirtyBitmap),
    /// `DEVICE_GET_INFO`.
    DeviceInfo(DeviceInfo),
    /// `DEVICE_GET_REGION_INFO`.
    RegionInfo(RegionInfo),
    /// `DEVICE_GET_REGION_IO_FDS`.
    IoFds(RegionIoFds),
    /// `DEVICE_GET_IRQ_INFO`.
    IrqInfo(IrqInfo),
    /// `DEVICE_SET_IRQS` and what follows, a byte a vector with `DATA_BOOL`; with
    /// `DATA_EVENTFD` beside descriptors.
    SetIrqs(IrqSet, &'a [u8]),
    /// `REGION_READ`.
    RegionRead(RegionAccess),
    /// `REGION_WRITE` of exactly `count` bytes.
    RegionWrite(RegionAccess, &'a [u8]),
    /// `REGION_WRITE_MULTI`: at least one write, each of 1 to 8 bytes.
    WriteMulti(Writes<'a>),
    /// `DMA_READ`.
    DmaRead(DmaAccess),
    /// `DMA_WRITE` of exactly `count` bytes.
    DmaWrite(DmaAccess, &'a [u8]),
    /// `DEVICE_RESET`.
    Reset,
    /// `DEVICE_FEATURE` and the feature's data.
    Feature(FeatureHeader, &'a [u8]),
    /// `MIG_DATA_READ`.
    MigDataRead(MigData),
    /// `MIG_DATA_WRITE` of exactly `size` bytes.
    MigDataWrite(MigData, &'a [u8]),
    /// Anything else.
    Unknown(Command),
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// [`Malformed`] where it is shorter than its fields and counts say.
    pub fn parse(command: Command, body: &'a [u8]) -> Result<Request<'a>, Malformed> {
        Ok(match command {
            Command::VERSION => Request::Version(Version::parse(body)?),
            Command::DMA_MAP => Request::DmaMap(take(body)?.0),
            Command::DMA_UNMAP => {
                let (unmap, rest) = take::<DmaUnmap>(body)?;
                let flags = DmaUnmapFlags::from_bits_retain(unmap.flags);
                if flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
                    Request::DmaUnmapDirty(unmap, take(rest)?.0)
                } else {
                    Request::DmaUnmap(unmap)
                }
            }
            Command::DEVICE_GET_INFO => Request::DeviceInfo(take(body)?.0),
            Command::DEVICE_GET_REGION_INFO => Request::RegionInfo(take(body)?.0),
            Command::DEVICE_GET_REGION_IO_FDS => Request::IoFds(take(body)?.0),
            Command::DEVICE_GET_IRQ_INFO => Request::IrqInfo(take(body)?.0),
            Command::DEVICE_SET_IRQS => {
                let (set, data) = take(body)?;
                Request::SetIrqs(set, data)
            }
            Command::REGION_READ => Request::RegionRead(take(body)?.0),
            Command::REGION_WRITE => {
                let (access, data) = take::<RegionAccess>(body)?;
                Request::RegionWrite(access, first(data, access.count.into())?)
            }
            Command::REGION_WRITE_MULTI => {
                let (count, entries) = take::<WriteMulti>(body)?;
                Request::WriteMulti(Writes::parse(count.wr_cnt, entries)?)
            }
            Command::DMA_READ => Request::DmaRead(take(body)?.0),
            Command::DMA_WRITE => {
                let (access, data) = take::<DmaAccess>(body)?;
                Request::DmaWrite(access, first(data, access.count)?)
            }
            Command::DEVICE_RESET => Request::Reset,
            Command::DEVICE_FEATURE => {
                let (header, data) = take(body)?;
                Request::Feature(header, data)
            }
            Command::MIG_DATA_READ => Request::MigDataRead(take(body)?.0),
            Command::MIG_DATA_WRITE => {
                let (fixed, data) = take::<MigData>(body)?;
                Request::MigDataWrite(fixed, first(data, fixed.size.into())?)
            }
            unknown => Request::Unknown(unknown),
        })
    }

    /// The command that it goes by.
    pub fn command(&self) -> Command {
        match self {
            Request::Version(_) => Command::VERSION,
            Request::DmaMap(_) => Command::DMA_MAP,
            Request::DmaUnmap(_) | Request::DmaUnmapDirty(..) => Command::DMA_UNMAP,
            Request::DeviceInfo(_) => Command::DEVICE_GET_INFO,
            Request::RegionInfo(_) => Command::DEVICE_GET_REGION_INFO,
            Request::IoFds(_) => Command::DEVICE_GET_REGION_IO_FDS,
            Request::IrqInfo(_) => Command::DEVICE_GET_IRQ_INFO,
            Request::SetIrqs(..) => Command::DEVICE_SET_IRQS,
            Request::RegionRead(_) => Command::REGION_READ,
            Request::RegionWrite(..) => Command::REGION_WRITE,
            Request::WriteMulti(_) => Command::REGION_WRITE_MULTI,
            Request::DmaRead(_) => Command::DMA_READ,
            Request::DmaWrite(..) => Command::DMA_WRITE,
            Request::Reset => Command::DEVICE_RESET,
            Request::Feature(..) => Command::DEVICE_FEATURE,
            Request::MigDataRead(_) => Command::MIG_DATA_READ,
            Request::MigDataWrite(..) => Command::MIG_DATA_WRITE,
            Request::Unknown(command) => *command,
        }
    }

    /// The message that asks this.
    pub fn message(&self, id: u16) -> Message<'a> {
        let head = Head::command(id, self.command());
        match self {
            Request::Version(version) => version.message(head),
            Request::DmaMap(map) => Message::bare(head.with(map)),
            Request::DmaUnmap(unmap) => Message::bare(head.with(unmap)),
            Request::DmaUnmapDirty(unmap, wanted) => {
                Message::bare(head.with(unmap).with(wanted))
            }
            Request::DeviceInfo(info) => Message::bare(head.with(info)),
            Request::RegionInfo(info) => Message::bare(head.with(info)),
            Request::IoFds(info) => Message::bare(head.with(info)),
            Request::IrqInfo(info) => Message::bare(head.with(info)),
            Request::SetIrqs(set, data) => Message::new(head.with(set), *data),
            Request::RegionRead(access) => Message::bare(head.with(access)),
            Request::RegionWrite(access, data) => Message::new(head.with(access), *data),
            Request::WriteMulti(writes) => {
                let count = WriteMulti { wr_cnt: writes.len() as u64 };
                Message::new(head.with(&count), writes.as_bytes())
            }
            Request::DmaRead(access) => Message::bare(head.with(access)),
            Request::DmaWrite(access, data) => Message::new(head.with(access), *data),
            Request::Reset | Request::Unknown(_) => Message::bare(head),
            Request::Feature(feature, data) => Message::new(head.with(feature), *data),
            Request::MigDataRead(fixed) => Message::bare(head.with(fixed)),
            Request::MigDataWrite(fixed, data) => Message::new(head.with(fixed), *data),
        }
    }
}

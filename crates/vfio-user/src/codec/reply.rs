//! What is answered. A reply that failed is a header alone.

use abi::errno::Errno;
use abi::feature::FeatureHeader;
use abi::irq::IrqInfo;
use abi::vfio_user::{Command, DeviceInfo, DmaAccess, DmaUnmap, MigData, RegionAccess};

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
    /// To `DEVICE_GET_INFO`.
    DeviceInfo(DeviceInfo),
    /// To `DEVICE_GET_REGION_INFO`; beside a descriptor where some of it can be mapped.
    Region(Region),
    /// To `DEVICE_GET_IRQ_INFO`.
    IrqInfo(IrqInfo),
    /// To `REGION_READ`: `count` bytes.
    RegionRead(RegionAccess, &'a [u8]),
    /// To `REGION_WRITE`.
    RegionWrite(RegionAccess),
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
            Command::DMA_UNMAP => Reply::DmaUnmap(take(body)?.0),
            Command::DEVICE_GET_INFO => Reply::DeviceInfo(take(body)?.0),
            Command::DEVICE_GET_REGION_INFO => Reply::Region(Region::parse(body)?),
            Command::DEVICE_GET_IRQ_INFO => Reply::IrqInfo(take(body)?.0),
            Command::REGION_READ => {
                let (access, data) = take::<RegionAccess>(body)?;
                Reply::RegionRead(access, first(data, access.count.into())?)
            }
            Command::REGION_WRITE => Reply::RegionWrite(take(body)?.0),
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
            Reply::DeviceInfo(info) => Message::bare(head.with(info)),
            Reply::Region(region) => region.message(head),
            Reply::IrqInfo(info) => Message::bare(head.with(info)),
            Reply::RegionRead(access, data) => Message::new(head.with(access), *data),
            Reply::RegionWrite(access) => Message::bare(head.with(access)),
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

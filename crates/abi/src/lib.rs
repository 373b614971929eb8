//! Layouts and numbers of the VFIO migration interfaces.
//!
//! Everything that others define, written by hand and checked against their headers:
//! one module a subject, and one a generation of the migration interface, which never
//! share a name.
//!
//! | module | whose | what |
//! | --- | --- | --- |
//! | [`v2`] | Linux 5.18 and later | migration states, data sizes, pre-copy information |
//! | [`v1`] | Linux 5.8 to 5.17 | the migration region and its state bits |
//! | [`rfc2018`] | the RFC of November 2018 | the migration region before that |
//! | [`feature`] | Linux | the `VFIO_DEVICE_FEATURE` call and its numbers |
//! | [`dma_logging`] | Linux 6.1 and later | the dirty log that a device keeps |
//! | [`group`], [`iommufd`] | Linux | the two ways to a device and its IOMMU |
//! | [`type1`] | Linux 5.8 and later | the container's IOMMU and its dirty pages |
//! | [`device_info`], [`region`], [`irq`] | Linux | what a device consists of |
//! | [`pci`] | PCI-SIG, Linux | configuration space, region and interrupt indexes |
//! | [`vfio_user`] | vfio-user | messages between a client and a device's process |
//! | [`errno`] | Linux | error numbers |
//!
//! Numbers of others stay open. What may grow is a newtype with named constants
//! ([`feature::Feature`]) or a set of flags that keeps the bits it does not know
//! (`from_bits_retain`), never an enum: a newer kernel or peer is not undefined
//! behaviour. Decisions about them are made elsewhere.
//!
//! Every structure is `repr(C)` and in the byte order of the machine, without padding;
//! `zerocopy` turns it into bytes and back without `unsafe`:
//!
//! ```
//! use vfio_migrate_abi::vfio_user::{Command, Header, HeaderFlags};
//! use zerocopy::{FromBytes, IntoBytes};
//!
//! let header = Header {
//!     msg_id: 7,
//!     command: Command::DEVICE_RESET.0,
//!     msg_size: Header::SIZE as u32,
//!     flags: HeaderFlags::COMMAND.bits(),
//!     error: 0,
//! };
//! let (read, rest) = Header::read_from_prefix(header.as_bytes()).expect("16 bytes");
//! assert_eq!(read, header);
//! assert!(rest.is_empty());
//! ```
#![no_std]
#![allow(
    non_ascii_idents,
    reason = "zerocopy's derive makes such names out of those of fields"
)]

#[macro_use]
mod open;

pub mod device_info;
pub mod dma_logging;
pub mod errno;
pub mod feature;
pub mod group;
pub mod iommufd;
pub mod irq;
pub mod pci;
pub mod region;
pub mod rfc2018;
pub mod type1;
pub mod v1;
pub mod v2;
pub mod vfio_user;

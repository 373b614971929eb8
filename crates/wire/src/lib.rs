//! The migration stream: preamble, frames, sections, limits.
//!
//! What travels between the two hosts, and nothing about how: this room turns typed
//! values into bytes and back, and never reads or writes by itself. Both directions
//! treat the other side as hostile: a length is compared with its ceiling before
//! anything is allocated, every byte is under a checksum, and what is not understood
//! is either marked as safe to skip or refused by name.
//!
//! ```text
//! connection   | preamble (64) | frame | frame | frame | ...
//! frame        | header (24)   | payload, at most the ceiling of its type |
//!
//! control, both ways     CONTROL frames: one message each        message
//! data 1..=N, one way    MEMORY_RUNS                             memory
//!                        DEVICE_BEGIN, DEVICE_DATA, DEVICE_END   device
//!                        SECTION_BEGIN, SECTION_DATA             section
//!                        CONFIG, INTERRUPTS                      device
//!                        ROUND_END, CHANNEL_END                  frame, digest
//! file                   all of them, one sequence
//! ```
//!
//! Bulk bytes are never copied here: an [`Encoder`] returns the few bytes that go in
//! front, computed over the caller's buffers, and a [`Decoder`] hands out slices of
//! the caller's buffer.
//!
//! ```
//! use wire::device::{DeviceData, Phase};
//! use wire::preamble::{DataChannel, PageSize, Role, Token};
//! use wire::{Decoder, Encoder, Frame, Header};
//! # use vfio_migrate_wire as wire;
//!
//! let channel = DataChannel::new(1).expect("1 is in 1..=64");
//! let role = Role::Data { channel, token: Token([7; 8]) };
//!
//! // The sender writes the head, then the device's bytes where they lie.
//! let chunk = [0xab; 100];
//! let data = DeviceData {
//!     device: 0,
//!     phase: Phase::StopCopy,
//!     offset: 0,
//!     ends_transaction: false,
//!     bytes: &chunk,
//! };
//! let head = Encoder::new(role).device_data(&data)?;
//!
//! // The receiver reads 24 bytes, then as many as the checked header says.
//! let mut decoder = Decoder::new(role, PageSize::KIB_4);
//! let header = decoder.header(head[..Header::SIZE].try_into().expect("24 bytes"))?;
//! let payload = [&head[Header::SIZE..], &chunk].concat();
//! assert_eq!(header.length as usize, payload.len());
//! assert_eq!(decoder.payload(&header, &payload)?, Frame::DeviceData(data));
//! # Ok::<(), wire::FrameError>(())
//! ```
//!
//! Who only looks at a stream, whole or damaged, uses a [`walk::Walker`].
//!
//! Three version numbers are kept apart: the container's ([`preamble::VERSION`]), a
//! section's own schema ([`section::SectionInfo::version`]), and the device's
//! ([`message::Model::data_version`]). Every byte is described in `docs/stream.md`.

mod bytes;
pub mod decode;
pub mod device;
pub mod digest;
pub mod encode;
pub mod frame;
pub mod memory;
pub mod message;
pub mod preamble;
pub mod section;
pub mod tlv;
pub mod walk;

pub use decode::{Decoder, Frame};
pub use digest::{ChannelDigest, Crc};
pub use encode::Encoder;
pub use frame::{Flags, FrameError, FrameType, Header};
pub use message::Message;
pub use preamble::{Preamble, PreambleError};

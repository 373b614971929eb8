//! Messages as bytes, both ways, without any I/O.
//!
//! ```text
//!   0       2         4            8        12       16
//!   | id    | command | size       | flags  | error  | body ...
//!   '---------------- header, 16 bytes --------------'
//! ```
//!
//! What a peer sends is looked at by total functions: a value or [`Malformed`] comes
//! out, whatever the bytes. A request may be longer than its fields need (some clients
//! send as many bytes as they allow for the reply); the surplus is ignored. Nothing
//! here allocates by a number that a peer sent, only by how many bytes it did send.
//!
//! Layouts are [`abi::vfio_user`]'s; `docs/vfio-user.md` says where the specification
//! is silent or contradicts itself, and what is done then.
//!
//! ```
//! use abi::vfio_user::{Command, RegionAccess};
//! use vfio_migrate_vfio_user::codec::{Request, parse_header};
//!
//! let read = Request::RegionRead(RegionAccess { offset: 8, region: 0, count: 4 });
//! let message = read.message(7).bytes();
//! let (header, body) = message.split_first_chunk().unwrap();
//! let header = parse_header(header);
//! assert_eq!((header.msg_id, header.command), (7, Command::REGION_READ.0));
//! assert_eq!(Request::parse(Command(header.command), body), Ok(read));
//! ```

mod feature;
mod message;
mod region;
mod reply;
mod request;
mod version;
mod writes;

pub use feature::{
    DigestPart, decode_digest, encode_digest, parse_log_report, parse_log_start,
};
pub use message::{HEADER, Head, Kind, Message, kind, parse_header};
pub use region::Region;
pub use reply::Reply;
pub use request::Request;
pub use version::{Capabilities, Migration, TwinSocket, Version, VersionError};
pub use writes::Writes;

use thiserror::Error;
use zerocopy::FromBytes;

/// A body that is not what its command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

const SHORT: Malformed = Malformed("the body is too short");

/// Takes a structure off the front, wherever it lies.
fn take<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), Malformed> {
    T::read_from_prefix(bytes).map_err(|_| SHORT)
}

/// Takes `len` bytes off the front, and leaves the rest alone.
fn first(bytes: &[u8], len: u64) -> Result<&[u8], Malformed> {
    usize::try_from(len).ok().and_then(|len| bytes.get(..len)).ok_or(SHORT)
}

//! The payload of our IDENTITY feature (0xff01): which model a device is.
//!
//! Both ends of a vfio-user connection use this one codec; `docs/vfio-user.md` has the
//! layout for others. Host byte order, as everything in vfio-user.
//!
//! ```text
//!   0 u32   version of the data that the model saves
//!   4 u16   1: the byte order mark of that data, as the device's host writes it
//!   6 u16   bytes of the name, 1 to 64
//!   8       the name, UTF-8 without control characters
//! ```
//!
//! ```
//! use vfio_migrate_control::identity;
//!
//! let model = port::Model { name: "accel".to_owned(), data_version: 3 };
//! let payload = identity::encode(&model).expect("a name of 1 to 64 bytes");
//! assert_eq!(identity::decode(&payload), Ok(model));
//! ```

use port::Model;
use thiserror::Error;

/// The longest name, in bytes.
pub const LONGEST_NAME: usize = 64;
/// The most bytes of a payload.
pub const MOST: usize = HEADER + LONGEST_NAME;

const HEADER: usize = 8;
const ORDER: u16 = 1;

/// The payload for `model`; `None` where its name cannot be sent.
pub fn encode(model: &Model) -> Option<Vec<u8>> {
    let length = u16::try_from(model.name.len()).ok()?;
    if !fits(&model.name) {
        return None;
    }
    let mut payload = Vec::with_capacity(HEADER + model.name.len());
    payload.extend(model.data_version.to_ne_bytes());
    payload.extend(ORDER.to_ne_bytes());
    payload.extend(length.to_ne_bytes());
    payload.extend(model.name.as_bytes());
    Some(payload)
}

/// Reads a payload.
///
/// # Errors
/// When it is not one, or the device's data is of the other byte order.
pub fn decode(payload: &[u8]) -> Result<Model, Unreadable> {
    let Some((header, name)) = payload.split_first_chunk::<HEADER>() else {
        return Err(Unreadable::Length(payload.len()));
    };
    let [v0, v1, v2, v3, o0, o1, l0, l1] = *header;
    match u16::from_ne_bytes([o0, o1]) {
        ORDER => {}
        order if order == ORDER.swap_bytes() => return Err(Unreadable::ByteOrder),
        order => return Err(Unreadable::Mark(order)),
    }
    if usize::from(u16::from_ne_bytes([l0, l1])) != name.len() {
        return Err(Unreadable::Length(payload.len()));
    }
    let name = str::from_utf8(name).ok().filter(|name| fits(name));
    let name = name.ok_or(Unreadable::Name)?.to_owned();
    Ok(Model { name, data_version: u32::from_ne_bytes([v0, v1, v2, v3]) })
}

fn fits(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// An identity that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// The number of bytes is wrong. Holds it.
    #[error("an identity of {0} bytes, which is not what its header says")]
    Length(usize),
    /// The data of the device is of the other byte order.
    #[error("an identity of the other byte order")]
    ByteOrder,
    /// The byte order mark is none. Holds it.
    #[error("an identity with byte order mark {0:#x}")]
    Mark(u16),
    /// The name is empty, too long or no plain text.
    #[error("an identity whose name is not 1 to 64 bytes of plain text")]
    Name,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn no_identity_breaks_the_reader(bytes: Vec<u8>) {
            if let Ok(model) = decode(&bytes) {
                prop_assert_eq!(encode(&model), Some(bytes));
            }
        }

        #[test]
        fn an_identity_is_read_as_it_was_written(
            name in "[a-z0-9 .é-]{1,20}",
            data_version in any::<u32>(),
        ) {
            let model = Model { name, data_version };
            let payload = encode(&model).unwrap();
            prop_assert_eq!(decode(&payload), Ok(model));
            for length in 0..payload.len() {
                assert!(decode(&payload[..length]).is_err());
            }
        }
    }

    #[test]
    fn a_device_of_the_other_byte_order_is_not_taken_for_ours() {
        let model = Model { name: "accel".to_owned(), data_version: 1 };
        let mut payload = encode(&model).unwrap();
        payload.swap(4, 5);
        assert_eq!(decode(&payload), Err(Unreadable::ByteOrder));
    }
}

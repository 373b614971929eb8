//! VERSION: what both ends agree to before anything else.

use abi::vfio_user::{MAJOR, Version as Numbers, default, key};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::message::{Head, Message};
use super::{Malformed, take};

/// The text is short; this bounds what a peer can make us parse.
const TEXT_MOST: usize = 16 * 1024;

/// The body of VERSION: two numbers, and a JSON text with a NUL at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// Must be the same on both sides.
    pub major: u16,
    /// The reply has this one or a lower one.
    pub minor: u16,
    /// What follows, as it came; nothing at all is legal.
    pub text: &'a [u8],
}

/// VERSION that cannot be agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VersionError {
    /// Another protocol.
    #[error("major version {0}, not 0")]
    Major(u16),
    /// No NUL at the end of the text, or one inside of it.
    #[error("the text does not end with its only NUL")]
    NotTerminated,
    /// The text is no JSON object, or longer than 16 KiB.
    #[error("the text is no JSON object")]
    NotJson,
    /// A capability has the wrong type or an impossible value.
    #[error("capability {0} makes no sense")]
    Capability(&'static str),
}

impl<'a> Version<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Version<'a>, Malformed> {
        let (numbers, text) = take::<Numbers>(body)?;
        Ok(Version { major: numbers.major, minor: numbers.minor, text })
    }

    pub(crate) fn message(&self, head: Head) -> Message<'a> {
        let numbers = Numbers { major: self.major, minor: self.minor };
        Message::new(head.with(&numbers), self.text)
    }

    /// Looks at the text. Keys that are not known are skipped.
    ///
    /// # Errors
    /// [`VersionError`].
    pub fn capabilities(&self) -> Result<Capabilities, VersionError> {
        if self.major != MAJOR {
            return Err(VersionError::Major(self.major));
        }
        let mut found = Capabilities::default();
        if self.text.is_empty() {
            return Ok(found);
        }
        let (nul, text) = self.text.split_last().ok_or(VersionError::NotTerminated)?;
        if *nul != 0 || text.contains(&0) {
            return Err(VersionError::NotTerminated);
        }
        if text.len() > TEXT_MOST {
            return Err(VersionError::NotJson);
        }
        let json: Value =
            serde_json::from_slice(text).map_err(|_| VersionError::NotJson)?;
        let object = json.as_object().ok_or(VersionError::NotJson)?;
        let Some(capabilities) = object.get(key::CAPABILITIES) else {
            return Ok(found);
        };
        let all = capabilities
            .as_object()
            .ok_or(VersionError::Capability(key::CAPABILITIES))?;
        let most = u64::from(u32::MAX);
        if let Some(fds) = number(all, key::MAX_MSG_FDS, 0..=1024)? {
            found.max_msg_fds = fds as usize;
        }
        if let Some(bytes) = number(all, key::MAX_DATA_XFER_SIZE, 1..=most)? {
            found.max_data_xfer_size = bytes as usize;
        }
        if let Some(maps) = number(all, key::MAX_DMA_MAPS, 0..=u64::MAX)? {
            found.max_dma_maps = maps;
        }
        if let Some(ours) = all.get(key::VFIO_MIGRATE) {
            let version = ours
                .as_object()
                .and_then(|ours| ours.get(key::VERSION))
                .and_then(Value::as_u64)
                .and_then(|version| u32::try_from(version).ok())
                .ok_or(VersionError::Capability(key::VFIO_MIGRATE))?;
            // Version 0 is nobody's.
            found.vfio_migrate = (version > 0).then_some(version);
        }
        Ok(found)
    }
}

fn number(
    all: &Map<String, Value>,
    name: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, VersionError> {
    let Some(value) = all.get(name) else { return Ok(None) };
    match value.as_u64() {
        Some(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(VersionError::Capability(name)),
    }
}

/// What one end can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors in one message.
    pub max_msg_fds: usize,
    /// Bytes of data in one message.
    pub max_data_xfer_size: usize,
    /// DMA mappings at once.
    pub max_dma_maps: u64,
    /// The version of our own additions; `None` where the peer does not know them.
    pub vfio_migrate: Option<u32>,
}

impl Default for Capabilities {
    /// What the specification says where a key is missing.
    fn default() -> Capabilities {
        Capabilities {
            max_msg_fds: default::MAX_MSG_FDS as usize,
            max_data_xfer_size: default::MAX_DATA_XFER_SIZE as usize,
            max_dma_maps: u64::from(default::MAX_DMA_MAPS),
            vfio_migrate: None,
        }
    }
}

impl Capabilities {
    /// The text of VERSION, with the NUL at its end.
    pub fn text(&self) -> Vec<u8> {
        let mut all = json!({
            key::MAX_MSG_FDS: self.max_msg_fds,
            key::MAX_DATA_XFER_SIZE: self.max_data_xfer_size,
            key::MAX_DMA_MAPS: self.max_dma_maps,
            key::PGSIZES: default::PGSIZES,
        });
        if let Some(version) = self.vfio_migrate {
            all[key::VFIO_MIGRATE] = json!({ key::VERSION: version });
        }
        let mut text = json!({ key::CAPABILITIES: all }).to_string().into_bytes();
        text.push(0);
        text
    }
}

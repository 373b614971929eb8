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
        if let Some(sizes) = number(all, key::PGSIZES, 1..=u64::MAX)? {
            found.pgsizes = sizes;
        }
        if let Some(value) = all.get(key::WRITE_MULTIPLE) {
            found.write_multiple =
                value.as_bool().ok_or(VersionError::Capability(key::WRITE_MULTIPLE))?;
        }
        if let Some(value) = all.get(key::TWIN_SOCKET) {
            found.twin_socket = Some(twin_socket(value)?);
        }
        if let Some(value) = all.get(key::MIGRATION) {
            found.migration = Some(migration(value)?);
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

fn twin_socket(value: &Value) -> Result<TwinSocket, VersionError> {
    let wrong = VersionError::Capability(key::TWIN_SOCKET);
    let twin = value.as_object().ok_or(wrong.clone())?;
    let fd_index = match twin.get(key::FD_INDEX) {
        None => None,
        Some(index) => {
            let index = index.as_u64().and_then(|index| u32::try_from(index).ok());
            Some(index.ok_or(wrong.clone())?)
        }
    };
    let supported = match twin.get(key::SUPPORTED) {
        None => false,
        Some(supported) => supported.as_bool().ok_or(wrong)?,
    };
    Ok(TwinSocket { supported, fd_index })
}

fn migration(value: &Value) -> Result<Migration, VersionError> {
    let wrong = VersionError::Capability(key::MIGRATION);
    let all = value.as_object().ok_or(wrong.clone())?;
    let mut found = Migration::default();
    if let Some(size) = number(all, key::PGSIZE, 1..=u64::MAX)? {
        if !size.is_power_of_two() {
            return Err(wrong);
        }
        found.pgsize = size;
    }
    if let Some(size) = number(all, key::MAX_BITMAP_SIZE, 0..=u64::MAX)? {
        found.max_bitmap_size = size;
    }
    Ok(found)
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
    /// Sizes of DMA mappings, a bit each; everything is a multiple of one of them.
    pub pgsizes: u64,
    /// A second socket, for what the server asks; `None` where nothing is said of it.
    pub twin_socket: Option<TwinSocket>,
    /// Whether `REGION_WRITE_MULTI` may be used.
    pub write_multiple: bool,
    /// Bitmaps of dirty pages; `None` where nothing is said of them. The key is no
    /// longer in the text, but sent by everybody.
    pub migration: Option<Migration>,
    /// The version of our own additions; `None` where the peer does not know them.
    pub vfio_migrate: Option<u32>,
}

/// The second socket: asked for by a client, granted by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinSocket {
    /// Whether it can be used, or in a reply is.
    pub supported: bool,
    /// In a reply: which of the descriptors beside it is the socket.
    pub fd_index: Option<u32>,
}

/// What is said of dirty bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The page size of the log in bytes, a power of two.
    pub pgsize: u64,
    /// The longest bitmap, in bytes.
    pub max_bitmap_size: u64,
}

impl Default for Migration {
    /// What libvfio-user and QEMU take it for where a key is missing.
    fn default() -> Migration {
        Migration { pgsize: default::PGSIZES, max_bitmap_size: default::MAX_BITMAP_SIZE }
    }
}

impl Default for Capabilities {
    /// What the specification says where a key is missing.
    fn default() -> Capabilities {
        Capabilities {
            max_msg_fds: default::MAX_MSG_FDS as usize,
            max_data_xfer_size: default::MAX_DATA_XFER_SIZE as usize,
            max_dma_maps: u64::from(default::MAX_DMA_MAPS),
            pgsizes: default::PGSIZES,
            twin_socket: None,
            write_multiple: false,
            migration: None,
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
            key::PGSIZES: self.pgsizes,
        });
        // What is not offered is not named: some take an unknown key for an error.
        if self.write_multiple {
            all[key::WRITE_MULTIPLE] = json!(true);
        }
        if let Some(TwinSocket { supported, fd_index }) = self.twin_socket {
            all[key::TWIN_SOCKET] = json!({ key::SUPPORTED: supported });
            if let Some(index) = fd_index {
                all[key::TWIN_SOCKET][key::FD_INDEX] = json!(index);
            }
        }
        if let Some(Migration { pgsize, max_bitmap_size }) = self.migration {
            all[key::MIGRATION] =
                json!({ key::PGSIZE: pgsize, key::MAX_BITMAP_SIZE: max_bitmap_size });
        }
        if let Some(version) = self.vfio_migrate {
            all[key::VFIO_MIGRATE] = json!({ key::VERSION: version });
        }
        let mut text = json!({ key::CAPABILITIES: all }).to_string().into_bytes();
        text.push(0);
        text
    }
}

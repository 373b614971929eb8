//! Saved files in memory.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use port::{Archive, ChannelError, Receive, Transmit};

use crate::locked;

/// A file that is being written, on a disk that may be full.
#[derive(Debug, Default)]
pub struct FakeFile {
    written: Vec<u8>,
    room: Option<usize>,
    file: FileHandle,
}

/// Looks at what a [`FakeFile`] left behind.
#[derive(Clone, Debug, Default)]
pub struct FileHandle(Arc<Mutex<Option<Vec<u8>>>>);

impl FakeFile {
    /// A file on a disk with room for everything.
    pub fn new() -> FakeFile {
        FakeFile::default()
    }

    /// A file on a disk with room for `bytes` of it.
    pub fn with_room(bytes: usize) -> FakeFile {
        FakeFile { room: Some(bytes), ..FakeFile::default() }
    }

    /// What looks at it.
    pub fn handle(&self) -> FileHandle {
        self.file.clone()
    }
}

impl FileHandle {
    /// What is under the final name: nothing before the commit.
    pub fn contents(&self) -> Option<Vec<u8>> {
        locked(&self.0).clone()
    }
}

impl Transmit for FakeFile {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        for part in parts {
            let room = self.room.map_or(usize::MAX, |room| room - self.written.len());
            self.written.extend_from_slice(&part[..part.len().min(room)]);
            if part.len() > room {
                return Err(ChannelError::Io(io::ErrorKind::StorageFull.into()));
            }
        }
        Ok(())
    }

    fn set_deadline(&mut self, _deadline: Duration) {}
}

impl Archive for FakeFile {
    fn commit(&mut self) -> Result<(), ChannelError> {
        *locked(&self.file.0) = Some(std::mem::take(&mut self.written));
        Ok(())
    }
}

/// A file that is being read.
#[derive(Clone, Debug)]
pub struct FakeStored {
    bytes: Vec<u8>,
    at: usize,
}

impl FakeStored {
    /// A file with these bytes.
    pub fn new(bytes: Vec<u8>) -> FakeStored {
        FakeStored { bytes, at: 0 }
    }
}

impl Receive for FakeStored {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        let left = &self.bytes[self.at..];
        let Some(next) = left.get(..into.len()) else {
            return Err(ChannelError::Closed);
        };
        into.copy_from_slice(next);
        self.at += into.len();
        Ok(())
    }

    fn set_deadline(&mut self, _deadline: Duration) {}
}

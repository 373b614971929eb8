//! Reading.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use port::{ChannelError, Receive};
use rustix::event::PollFlags;
use rustix::fs::OFlags;

use super::patience::Patience;
use super::{FileError, STANDARD, shown};

/// How much is read from a file at a time.
const BUFFER: usize = 256 << 10;

/// A saved stream that is being read, from its beginning.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    file: File,
    regular: bool,
    waits: bool,
    buffer: Vec<u8>,
    /// What of the buffer was read and not given out.
    have: std::ops::Range<usize>,
    offset: u64,
    patience: Patience,
}

/// Opens a saved stream; `-` is standard input.
///
/// # Errors
/// When it is not there, or cannot be read.
pub fn open(path: &Path) -> Result<StoredFile, FileError> {
    open_unless(path, &Arc::default())
}

/// The same, with a flag that another thread may set: whoever reads, or waits for
/// somebody to write into a pipe, hears [`ChannelError::Cancelled`] soon.
///
/// # Errors
/// When it is not there, or cannot be read.
pub fn open_unless(
    path: &Path,
    cancel: &Arc<AtomicBool>,
) -> Result<StoredFile, FileError> {
    let failed = |source: io::Error| FileError::new(path, "open", source);
    let file = if path == Path::new(STANDARD) {
        File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
    } else {
        // A pipe that nobody has opened to write is waited for where it is read, not
        // here, where nothing could end the wait.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let options = OpenOptions::new().read(true).custom_flags(flags).open(path);
        options.map_err(failed)?
    };
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    Ok(StoredFile {
        path: path.to_owned(),
        regular: kind.is_file(),
        waits: kind.is_fifo() || kind.is_socket() || kind.is_char_device(),
        file,
        buffer: Vec::new(),
        have: 0..0,
        offset: 0,
        patience: Patience::new(cancel),
    })
}

impl StoredFile {
    /// Whether it can be read more than once.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    /// Bytes that were given out.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes back to its beginning.
    ///
    /// # Errors
    /// When it is no regular file.
    pub fn rewind(&mut self) -> Result<(), FileError> {
        let rewound = self.file.seek(SeekFrom::Start(0));
        rewound.map_err(|error| FileError::new(&self.path, "rewind", error))?;
        (self.have, self.offset) = (0..0, 0);
        Ok(())
    }

    /// Reads the next bytes into `into`, or, where that is `None`, into the buffer.
    fn fill(&mut self, into: Option<&mut [u8]>) -> Result<usize, ChannelError> {
        let into = into.unwrap_or_else(|| {
            self.buffer.resize(BUFFER, 0);
            &mut self.buffer
        });
        loop {
            self.patience.check()?;
            if self.waits {
                self.patience.wait(&self.file, PollFlags::IN)?;
            }
            match self.file.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.patience.wait(&self.file, PollFlags::IN)?;
                }
                Ok(count) => return Ok(count),
                Err(source) => {
                    return Err(ChannelError::File(Box::new(FileError::At {
                        path: shown(&self.path),
                        operation: "read",
                        at: self.offset,
                        remedy: "",
                        source,
                    })));
                }
            }
        }
    }
}

impl Receive for StoredFile {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        let mut filled = 0;
        while filled < into.len() {
            let left = &mut into[filled..];
            let have = &self.buffer[self.have.clone()];
            let count = if !have.is_empty() {
                let count = have.len().min(left.len());
                left[..count].copy_from_slice(&have[..count]);
                self.have.start += count;
                count
            } else if left.len() >= BUFFER {
                self.fill(Some(left))?
            } else {
                let count = self.fill(None)?;
                self.have = 0..count;
                if count > 0 {
                    continue;
                }
                0
            };
            if count == 0 && filled == 0 {
                return Err(ChannelError::Closed);
            }
            if count == 0 {
                let (path, at) = (shown(&self.path), self.offset);
                let early = FileError::EndsEarly { path, at };
                return Err(ChannelError::File(Box::new(early)));
            }
            filled += count;
            self.offset += count as u64;
        }
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.patience.deadline = deadline;
    }
}

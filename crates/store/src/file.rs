//! Saved streams as files: written under a temporary name, or not at all.
//!
//! ```text
//!   SavedFile::create     .a.vfm.5d0c1f0a.part     new, 0600, beside the final name
//!     send ...
//!     commit              fsync | rename to a.vfm | fsync of the directory
//!     drop before that    removed
//! ```
//!
//! What is no regular file (`-`, a pipe, `/dev/full`) is written and read directly: it
//! has no name that a half-written file could have.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use port::{Archive, ChannelError, Receive, Transmit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use thiserror::Error;

use crate::random;

/// How long a pipe may be silent, until somebody says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// How much a pipe takes at once when it takes anything (`PIPE_BUF` of Linux): a longer
/// write may wait without end.
const PIPE_BYTES: usize = 4096;

/// The most parts that one system call takes (`UIO_MAXIOV` of Linux).
const MOST_PARTS: usize = 1024;

/// How much is read from a file at a time.
const BUFFER: usize = 256 << 10;

/// The name that stands for standard input and output.
const STANDARD: &str = "-";

/// A saved stream that is being written.
///
/// ```
/// use std::io::IoSlice;
/// use port::{Archive, Receive, Transmit};
/// use vfio_migrate_store::{SavedFile, open};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("a.vfm");
///
/// let mut file = SavedFile::create(&path, false)?;
/// file.send(&[IoSlice::new(b"he"), IoSlice::new(b"llo")])?;
/// assert!(!path.exists());
/// file.commit()?;
///
/// let mut heard = [0; 5];
/// open(&path)?.receive(&mut heard)?;
/// assert_eq!(&heard, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SavedFile {
    path: PathBuf,
    file: File,
    /// The temporary name, as long as there is one.
    part: Option<PathBuf>,
    replace: bool,
    /// Waits for room before it writes.
    waits: bool,
    written: u64,
    deadline: Duration,
}

impl SavedFile {
    /// Begins a file that will be at `path`; `-` is standard output. `replace` allows a
    /// file that is there already to be replaced, at the commit and at once.
    ///
    /// # Errors
    /// When something is there already, or the place cannot be written to.
    pub fn create(path: &Path, replace: bool) -> Result<SavedFile, FileError> {
        let failed = |source: io::Error| FileError::new(path, "create", source);
        if let Some(file) = direct(path).map_err(failed)? {
            if io::IsTerminal::is_terminal(&file) {
                return Err(FileError::Terminal);
            }
            let waits = waits(&file).map_err(failed)?;
            return Ok(SavedFile::of(path.to_owned(), file, None, replace, waits));
        }
        // What a link points to is replaced, and not the link.
        let path = match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => path.canonicalize().map_err(failed)?,
            _ => path.to_owned(),
        };
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            Ok(_) if !replace => return Err(FileError::Exists { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let part = temporary(&path).map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(failed)?;
        Ok(SavedFile::of(path, file, Some(part), replace, false))
    }

    fn of(
        path: PathBuf,
        file: File,
        part: Option<PathBuf>,
        replace: bool,
        waits: bool,
    ) -> SavedFile {
        let deadline = DEADLINE;
        SavedFile { path, file, part, replace, waits, written: 0, deadline }
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that were written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> ChannelError {
        ChannelError::File(Box::new(FileError::At {
            remedy: remedy(&source),
            path: shown(&self.path),
            operation,
            at: self.written,
            source,
        }))
    }

    fn finish(&mut self) -> Result<(), ChannelError> {
        let Some(part) = &self.part else {
            // A pipe has nothing to be synced; a disk that was named directly has.
            return match self.file.sync_all() {
                Err(error) if !nothing_to_sync(&error) => {
                    Err(self.failed("make durable", error))
                }
                _ => Ok(()),
            };
        };
        self.file.sync_all().map_err(|error| self.failed("make durable", error))?;
        if self.replace {
            let renamed = renameat(CWD, part, CWD, &self.path);
            renamed.map_err(|errno| self.failed("name", errno.into()))?;
        } else {
            name_new(part, &self.path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    let path = self.path.clone();
                    ChannelError::File(Box::new(FileError::Exists { path }))
                }
                _ => self.failed("name", error),
            })?;
        }
        self.part = None;
        let synced = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        synced.map_err(|error| {
            // Whether the name would outlive a crash is not known: then there is none.
            // One that replaced another stays, there is nothing to go back to.
            if !self.replace {
                let _ = std::fs::remove_file(&self.path);
            }
            self.failed("make the name durable", error)
        })
    }
}

impl Transmit for SavedFile {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        let mut left: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).copied().collect();
        let mut left = left.as_mut_slice();
        while let Some(first) = left.first() {
            let wrote = if self.waits {
                let first = &first[..first.len().min(PIPE_BYTES)];
                wait(&self.file, PollFlags::OUT, self.deadline)?;
                (&self.file).write(first)
            } else {
                (&self.file).write_vectored(&left[..left.len().min(MOST_PARTS)])
            };
            match wrote {
                Ok(0) => {
                    return Err(self.failed("write", io::ErrorKind::WriteZero.into()));
                }
                Ok(moved) => {
                    self.written += moved as u64;
                    IoSlice::advance_slices(&mut left, moved);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("write", error)),
            }
        }
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

impl Archive for SavedFile {
    fn commit(&mut self) -> Result<(), ChannelError> {
        self.finish()
    }
}

impl Drop for SavedFile {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = std::fs::remove_file(part);
        }
    }
}

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
    deadline: Duration,
}

/// Opens a saved stream; `-` is standard input.
///
/// # Errors
/// When it is not there, or cannot be read.
pub fn open(path: &Path) -> Result<StoredFile, FileError> {
    let failed = |source: io::Error| FileError::new(path, "open", source);
    let file = if path == Path::new(STANDARD) {
        File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
    } else {
        File::open(path).map_err(failed)?
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
        deadline: DEADLINE,
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
        if self.waits {
            wait(&self.file, PollFlags::IN, self.deadline)?;
        }
        let into = into.unwrap_or_else(|| {
            self.buffer.resize(BUFFER, 0);
            &mut self.buffer
        });
        loop {
            match self.file.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
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
        self.deadline = deadline;
    }
}

/// A saved file cannot be written or read.
#[derive(Debug, Error)]
pub enum FileError {
    /// Something is there already.
    #[error(
        "{} exists: name another output, remove it, or allow it to be replaced",
        .path.display()
    )]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// Bytes would go to somebody's terminal.
    #[error("the output is a terminal: send it to a file or a pipe")]
    Terminal,
    /// The place as a whole.
    #[error("cannot {operation} {path}{remedy}")]
    Place {
        /// The file.
        path: String,
        /// What was tried.
        operation: &'static str,
        /// What to do about it, in brackets; empty where nobody knows.
        remedy: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// At some byte of it.
    #[error("cannot {operation} {path} at byte {at}{remedy}")]
    At {
        /// The file.
        path: String,
        /// What was tried.
        operation: &'static str,
        /// How many bytes went well.
        at: u64,
        /// What to do about it, in brackets; empty where nobody knows.
        remedy: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ends in the middle of something.
    #[error("{path} ends early, at byte {at}: the rest was cut off")]
    EndsEarly {
        /// The file.
        path: String,
        /// Its length.
        at: u64,
    },
}

impl FileError {
    fn new(path: &Path, operation: &'static str, source: io::Error) -> FileError {
        let (path, remedy) = (shown(path), remedy(&source));
        FileError::Place { path, operation, remedy, source }
    }
}

fn shown(path: &Path) -> String {
    if path == Path::new(STANDARD) {
        return "standard input or output".to_owned();
    }
    path.display().to_string()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge => {
            " (no room for it: free some, or write it elsewhere)"
        }
        io::ErrorKind::PermissionDenied => {
            " (not permitted to this user: write it elsewhere, or ask for permission)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (write it elsewhere)",
        io::ErrorKind::NotFound => " (check the path)",
        io::ErrorKind::IsADirectory => " (name a file in it)",
        io::ErrorKind::BrokenPipe => " (whoever read it is gone)",
        _ => "",
    }
}

/// What is written directly: standard output, and everything that is not a regular file.
fn direct(path: &Path) -> io::Result<Option<File>> {
    if path == Path::new(STANDARD) {
        let fd: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        return Ok(Some(fd.into()));
    }
    // Names of descriptors that are open already: a redirected `/dev/stdout` is a
    // regular file, and still nothing to rename over.
    let named = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"];
    let descriptor = named.iter().any(|prefix| path.starts_with(prefix));
    let special = path.metadata().is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_char_device() || kind.is_block_device() || kind.is_fifo()
    });
    if !descriptor && !special {
        return Ok(None);
    }
    OpenOptions::new().write(true).open(path).map(Some)
}

/// Whether writing to it may wait for somebody who reads.
fn waits(file: &File) -> io::Result<bool> {
    let kind = file.metadata()?.file_type();
    Ok(kind.is_fifo() || kind.is_socket())
}

fn wait(file: &File, what: PollFlags, deadline: Duration) -> Result<(), ChannelError> {
    let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let left = Timespec::try_from(deadline.min(Duration::from_secs(86_400))).ok();
    loop {
        let mut one = [PollFd::new(file, what)];
        match poll(&mut one, left.as_ref()) {
            Ok(0) => return Err(ChannelError::TimedOut(millis)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ChannelError::Io(errno.into())),
        }
    }
}

/// A name beside `path` that nobody else has, and that says what it is.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let chance = random().map_err(io::Error::other)?;
    let mut part = OsString::from(".");
    // A name has at most 255 bytes, and this one needs some of them.
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name);
    part.push(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(
        &bytes[..bytes.len().min(200)],
    ));
    let [a, b, c, d, ..] = chance;
    part.push(format!(".{a:02x}{b:02x}{c:02x}{d:02x}.part"));
    Ok(path.with_file_name(part))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Gives a file its name, unless there is one by that name.
fn name_new(part: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // A filesystem without that: a link does the same, in two steps.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(part, path)?;
            std::fs::remove_file(part)
        }
        renamed => Ok(renamed?),
    }
}

fn nothing_to_sync(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::ROFS | Errno::NOTSUP | Errno::BADF)
    )
}

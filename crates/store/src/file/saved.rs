//! Writing.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use port::{Archive, ChannelError, Transmit};
use rustix::event::PollFlags;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, renameat, renameat_with,
};
use rustix::io::Errno;

use super::patience::Patience;
use super::{FileError, is_standard_output, remedy, shown};
use crate::random;

/// How much a pipe takes at once when it takes anything (`PIPE_BUF` of Linux): a longer
/// write may wait without end.
const PIPE_BYTES: usize = 4096;

/// The most parts that one system call takes (`UIO_MAXIOV` of Linux).
const MOST_PARTS: usize = 1024;

/// How often somebody is looked for who reads a pipe.
const READER: Duration = Duration::from_millis(10);

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
    name: Name,
    replace: bool,
    /// Waits for room before it writes.
    waits: bool,
    written: u64,
    patience: Patience,
}

/// The name that a file has before its final one.
#[derive(Debug)]
enum Name {
    /// None, and it is gone when it is closed, whoever closes it.
    Unnamed,
    /// A temporary one beside the final one.
    Part(PathBuf),
    /// The final one: it was committed, or was written directly all the time.
    Final,
}

impl SavedFile {
    /// Begins a file that will be at `path`; `-` is standard output. `replace` allows a
    /// file that is there already to be replaced, at the commit and at once.
    ///
    /// # Errors
    /// When something is there already, or the place cannot be written to. A named pipe
    /// that nobody reads is waited for, 30 s.
    pub fn create(path: &Path, replace: bool) -> Result<SavedFile, FileError> {
        SavedFile::create_unless(path, replace, &Arc::default())
    }

    /// The same, with a flag that another thread may set: this, and every
    /// [`send`](Transmit::send) afterwards, ends soon then.
    ///
    /// # Errors
    /// Those of [`SavedFile::create`], and [`FileError::Cancelled`].
    pub fn create_unless(
        path: &Path,
        replace: bool,
        cancel: &Arc<AtomicBool>,
    ) -> Result<SavedFile, FileError> {
        let failed = |source: io::Error| FileError::new(path, "create", source);
        let patience = Patience::new(cancel);
        if let Some(file) = direct(path, &patience)? {
            if io::IsTerminal::is_terminal(&file) {
                return Err(FileError::Terminal);
            }
            let waits = waits(&file).map_err(failed)?;
            let (path, name) = (path.to_owned(), Name::Final);
            return Ok(SavedFile {
                path,
                file,
                name,
                replace,
                waits,
                written: 0,
                patience,
            });
        }
        // What a link points to is replaced, and not the link.
        let path = match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => {
                path.canonicalize().map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => FileError::Place {
                        path: shown(path),
                        operation: "create",
                        remedy: " (a link that leads nowhere: remove it, or name what it \
                                 should lead to)",
                        source,
                    },
                    _ => failed(source),
                })?
            }
            _ => path.to_owned(),
        };
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            Ok(found) if !found.is_file() => return Err(FileError::NoFile { path }),
            Ok(_) if !replace => return Err(FileError::Exists { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let (file, name) = match unnamed(folder(&path)).map_err(failed)? {
            Some(file) => (file, Name::Unnamed),
            None => part(&path).map_err(failed)?,
        };
        Ok(SavedFile { path, file, name, replace, waits: false, written: 0, patience })
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
        let synced = self.file.sync_all();
        if matches!(self.name, Name::Final) {
            // A pipe has nothing to be synced; a disk that was named directly has.
            return match synced {
                Err(error) if !nothing_to_sync(&error) => {
                    Err(self.failed("make durable", error))
                }
                _ => Ok(()),
            };
        }
        synced.map_err(|error| self.failed("make durable", error))?;
        let replaced = self.publish()?;
        self.name = Name::Final;
        let synced = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        synced.map_err(|error| {
            // Whether the name would outlive a crash is not known: then there is none.
            // One that replaced another stays, there is nothing to go back to.
            if !replaced {
                let _ = std::fs::remove_file(&self.path);
            }
            self.failed("make the name durable", error)
        })
    }

    /// Gives it its final name; whether something else had that name before.
    fn publish(&mut self) -> Result<bool, ChannelError> {
        let named = match &self.name {
            Name::Part(part) => name_new(part, &self.path),
            Name::Unnamed | Name::Final => link(&self.file, &self.path),
        };
        match named {
            Ok(()) => Ok(false),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.failed("name", error))
            }
            Err(_) if !self.replace => {
                let path = self.path.clone();
                Err(ChannelError::File(Box::new(FileError::Exists { path })))
            }
            Err(_) if !replaceable(&self.path) => {
                let path = self.path.clone();
                Err(ChannelError::File(Box::new(FileError::NoFile { path })))
            }
            Err(_) => {
                self.take_over().map_err(|error| self.failed("name", error))?;
                Ok(true)
            }
        }
    }

    /// Takes the name from what has it. A link cannot do that, a rename can; so a file
    /// without a name has a temporary one for a moment.
    fn take_over(&mut self) -> io::Result<()> {
        if matches!(self.name, Name::Unnamed) {
            let part = temporary(&self.path)?;
            link(&self.file, &part)?;
            self.name = Name::Part(part);
        }
        let Name::Part(part) = &self.name else { return Ok(()) };
        Ok(renameat(CWD, part, CWD, &self.path)?)
    }
}

impl Transmit for SavedFile {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        let mut left: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).copied().collect();
        let mut left = left.as_mut_slice();
        while let Some(first) = left.first() {
            self.patience.check()?;
            let wrote = if self.waits {
                let first = &first[..first.len().min(PIPE_BYTES)];
                self.patience.wait(&self.file, PollFlags::OUT)?;
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.patience.wait(&self.file, PollFlags::OUT)?;
                }
                Err(error) => return Err(self.failed("write", error)),
            }
        }
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.patience.deadline = deadline;
    }
}

impl Archive for SavedFile {
    fn commit(&mut self) -> Result<(), ChannelError> {
        self.finish()
    }
}

impl Drop for SavedFile {
    fn drop(&mut self) {
        if let Name::Part(part) = &self.name {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// What is written directly: standard output, and everything that is not a regular file.
fn direct(path: &Path, patience: &Patience) -> Result<Option<File>, FileError> {
    let failed = |source: io::Error| FileError::new(path, "open", source);
    if is_standard_output(path) {
        let fd = io::stdout().as_fd().try_clone_to_owned();
        return Ok(Some(fd.map_err(failed)?.into()));
    }
    // Names of descriptors that are open already.
    let named = ["/dev/stderr", "/dev/fd", "/proc"];
    let descriptor = named.iter().any(|prefix| path.starts_with(prefix));
    let kind = path.metadata().ok().map(|found| found.file_type());
    if descriptor && kind.is_some_and(|kind| kind.is_file()) {
        return Err(FileError::Open { path: path.to_owned() });
    }
    let pipe = kind.is_some_and(|kind| kind.is_fifo());
    let device = kind.is_some_and(|kind| kind.is_char_device() || kind.is_block_device());
    if !descriptor && !device && !pipe {
        return Ok(None);
    }
    // Opening a pipe waits for a reader without end, unless it is told not to.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = patience.until(|slice| {
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Err(error) if pipe && Errno::from_io_error(&error) == Some(Errno::NXIO) => {
                // No event tells of a reader.
                std::thread::sleep(slice.min(READER));
                Ok(None)
            }
            opened => Ok(Some(opened)),
        }
    });
    match opened {
        Ok(opened) => opened.map(Some).map_err(failed),
        Err(ChannelError::Cancelled) => Err(FileError::Cancelled),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

/// Whether a file may take this name from what has it: a server would lose its socket.
fn replaceable(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file() || found.is_symlink())
}

/// Whether writing to it may wait for somebody who reads.
fn waits(file: &File) -> io::Result<bool> {
    let kind = file.metadata()?.file_type();
    Ok(kind.is_fifo() || kind.is_socket())
}

/// A file in this folder that has no name, where there are such files.
fn unnamed(folder: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            let file = File::from(fd);
            // The way to a name goes through `/proc`, and not everybody has it.
            Ok(way_to(&file).is_symlink().then_some(file))
        }
        Err(errno) if refused(errno) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// What a file system says that has no files without a name, or a kernel that never
/// heard of them.
fn refused(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS)
}

/// A new file beside `path`, under a temporary name.
fn part(path: &Path) -> io::Result<(File, Name)> {
    let part = temporary(path)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&part)?;
    Ok((file, Name::Part(part)))
}

/// A name beside `path` that nobody else has, and that says what it is.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.as_bytes();
    let chance = random().map_err(io::Error::other)?;
    let mut part = OsString::from(".");
    // A name has at most 255 bytes, and this one needs some of them.
    part.push(OsStr::from_bytes(&name[..name.len().min(200)]));
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

/// Where a file is found that has no name.
fn way_to(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives a file without a name one, unless something has it.
fn link(file: &File, path: &Path) -> io::Result<()> {
    Ok(linkat(CWD, way_to(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Gives a file another name, unless something has it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// What a file is on a file system that has none without a name.
    fn named(path: &Path, replace: bool) -> SavedFile {
        let (file, name) = part(path).unwrap();
        let mut saved = SavedFile {
            path: path.to_owned(),
            file,
            name,
            replace,
            waits: false,
            written: 0,
            patience: Patience::new(&Arc::default()),
        };
        saved.send(&[IoSlice::new(b"new")]).unwrap();
        saved
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|one| one.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn where_every_file_has_a_name_a_half_written_one_has_the_final_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vfm");
        let saved = named(&path, false);
        let found = names(folder.path());
        let [part] = &found[..] else { panic!("{found:?}") };
        assert!(part.starts_with(".a.vfm.") && part.ends_with(".part"), "{part}");
        let mode = std::fs::metadata(folder.path().join(part)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        drop(saved);
        assert_eq!(names(folder.path()), [""; 0]);

        let mut saved = named(&path, false);
        saved.commit().unwrap();
        drop(saved);
        assert_eq!(names(folder.path()), ["a.vfm"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn where_every_file_has_a_name_one_that_exists_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vfm");
        std::fs::write(&path, b"precious").unwrap();
        let mut saved = named(&path, false);
        let error = saved.commit().unwrap_err();
        assert!(error.to_string().contains("a.vfm exists"), "{error}");
        drop(saved);
        assert_eq!(names(folder.path()), ["a.vfm"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");

        let mut saved = named(&path, true);
        saved.commit().unwrap();
        drop(saved);
        assert_eq!(names(folder.path()), ["a.vfm"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_file_system_without_unnamed_files_is_taken_for_a_broken_one() {
        for errno in [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL, Errno::NOSYS] {
            assert!(refused(errno), "{errno}");
        }
        for errno in [Errno::NOSPC, Errno::ACCESS, Errno::NOENT, Errno::ROFS] {
            assert!(!refused(errno), "{errno}");
        }
        // `/proc` is one, and says so in the middle of the real call.
        assert!(unnamed(Path::new("/proc")).unwrap().is_none());
    }
}

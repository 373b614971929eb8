//! Saved streams as files: under their final name they are whole, or not there.
//!
//! ```text
//!   SavedFile::create     a file without a name (O_TMPFILE), 0600, in the same folder
//!     send ...
//!     commit              fsync | link to a.vfm | fsync of the folder
//!     drop before that    gone; and so it is where the process is killed
//!
//!   where the file system has no such files: .a.vfm.5d0c1f0a.part, removed on drop
//! ```
//!
//! What is no regular file (`-`, a pipe, `/dev/full`) is written and read directly: it
//! has no name that a half-written file could have. Every wait for such a one has a
//! deadline, and ends soon after a flag was set that somebody else holds.

mod patience;
mod saved;
mod stored;

pub use saved::SavedFile;
pub use stored::{StoredFile, open, open_unless};

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

/// The name that stands for standard input and output.
const STANDARD: &str = "-";

/// Other names that the system has for standard output.
const STANDARD_OUTPUT: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Whether a path to be written stands for standard output, by whatever name: then what
/// is said there goes elsewhere.
pub fn is_standard_output(path: &Path) -> bool {
    path == Path::new(STANDARD)
        || STANDARD_OUTPUT.iter().any(|name| path == Path::new(name))
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
    /// Something is there that no file replaces: a socket that somebody serves.
    #[error("{} is no file, and nothing replaces it: name another output", .path.display())]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// A file that is open already, by the number that it has in this process: what is
    /// said there and what is written would go over each other.
    #[error(
        "{} stands for a file that is open already: name the file itself, or - for \
         standard output",
        .path.display()
    )]
    Open {
        /// The name.
        path: PathBuf,
    },
    /// Somebody set the flag that ends it.
    #[error("cancelled")]
    Cancelled,
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
    if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
        return " (a socket, and no file: name what `save` wrote)";
    }
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
        io::ErrorKind::TimedOut => " (nobody opened it to read: start the reader)",
        _ => "",
    }
}

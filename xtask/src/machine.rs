//! A machine that is emulated: what `qemu-test` and `vm-test` boot, and what it says.
//!
//! ```text
//!   apt, sources  packages by name, unpacked under target/; nothing is installed
//!   emulator      QEMU, installed or unpacked
//!   kernel        a kernel and its modules, installed or unpacked
//!   guest         our programs for it (`xtask/guest`), static
//!   initramfs     all of that in one archive, its only file system
//!   child         QEMU, never longer than us
//!   report        one line a check, over the guest's second serial line
//!   table         what people read in the end
//! ```

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::path::Path;

use crate::{Failure, Outcome};

pub(crate) mod apt;
pub(crate) mod child;
pub(crate) mod emulator;
pub(crate) mod guest;
pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod report;
mod sources;
pub(crate) mod table;

/// The guest's archive, in the folder of a run.
pub(crate) const INITRAMFS: &str = "initramfs";

/// Waits until no other run uses a part of a folder. It is ours until the file goes away,
/// however that is.
///
/// # Errors
///
/// When it cannot be asked for.
pub(crate) fn lock(folder: &Path, part: &str) -> Result<File, Failure> {
    let path = folder.join(format!("lock-{part}"));
    let file = File::create(&path).map_err(|error| failed("make", &path, &error))?;
    if file.try_lock().is_err() {
        println!("== wait: another run uses {} ({part})", folder.display());
        file.lock().map_err(|error| failed("lock", &path, &error))?;
    }
    Ok(file)
}

/// Makes a folder and those above it.
///
/// # Errors
///
/// When it cannot be made.
pub(crate) fn make_folder(path: &Path) -> Outcome {
    fs::create_dir_all(path).map_err(|error| failed("make", path, &error))
}

/// Removes a folder with all that is in it, where there is one.
///
/// # Errors
///
/// When it stays.
pub(crate) fn remove(path: &Path) -> Outcome {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("remove", path, &error))
        }
        _ => Ok(()),
    }
}

/// What could not be done to which file, and why.
pub(crate) fn failed(what: &str, path: &Path, error: &Error) -> Failure {
    Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
}

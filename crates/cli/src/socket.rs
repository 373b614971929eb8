//! Sockets that the commands make for others to connect to.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Result, anyhow};
use sys::socket::Listener;

/// Makes a socket at `path`, for this user alone from its first moment on. One that a
/// dead process left there is replaced. `what` says what it is made for.
///
/// # Errors
/// When it cannot be made, with what to do about it.
pub(crate) fn listen(path: &Path, what: &str) -> Result<Listener> {
    Listener::bind(path).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse if is_socket(path) => {
                ": another process listens there; end that one, or choose another path"
            }
            ErrorKind::AddrInUse => {
                ": something that is no socket is there; choose another path"
            }
            ErrorKind::NotFound => ": its folder does not exist",
            ErrorKind::PermissionDenied => {
                ": this user may not write there; choose another folder"
            }
            _ => "",
        };
        anyhow!(error).context(format!("cannot {what} at {}{remedy}", path.display()))
    })
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::listen;

    fn refused(path: &std::path::Path) -> String {
        format!("{:#}", listen(path, "serve").expect_err("a refusal"))
    }

    #[test]
    fn what_is_in_the_way_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let first = listen(&path, "serve").expect("a socket");
        assert!(refused(&path).contains("another process listens there"));
        drop(first);
        std::fs::write(&path, "precious").expect("a file");
        assert!(refused(&path).contains("no socket"));
        assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
        let text = refused(&folder.path().join("none/a.sock"));
        assert!(text.contains("none/a.sock: its folder does not exist"), "{text}");
    }
}

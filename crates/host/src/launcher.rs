//! Descriptors from somebody with more rights.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::open::OpenError;
use crate::workers::Workers;

/// Asks a launcher for descriptors in a thread that may be given up: one that takes no
/// connections lets whoever connects wait for ever.
pub(crate) fn handed_over(
    path: &Path,
    limit: Duration,
) -> Result<(OwnedFd, Option<OwnedFd>), OpenError> {
    let here = path.to_owned();
    let asked =
        Workers::new("launcher").run("ask it", 2 * limit, move || receive(&here, limit));
    asked.map_err(|source| OpenError::Launcher {
        path: path.into(),
        what: "it takes no connection",
        source: Some(io::Error::other(source)),
    })?
}

/// Asks a launcher for descriptors: whoever connects gets one message with them.
fn receive(
    path: &Path,
    limit: Duration,
) -> Result<(OwnedFd, Option<OwnedFd>), OpenError> {
    let failed = |what, source| OpenError::Launcher { path: path.into(), what, source };
    let socket = sys::socket::connect(path)
        .map_err(|error| failed("nobody listens there", Some(error)))?;
    let mut fds = Vec::new();
    let mut byte = [0; 1];
    // Waited for with an end: a launcher may be as dead as a device.
    sys::socket::set_receive_timeout(&socket, limit)
        .map_err(|error| failed("its socket is of no use", Some(error)))?;
    let read = sys::socket::recv_with_fds(&socket, &mut byte, 2, &mut fds, false)
        .map_err(|error| failed("nothing came", Some(error)))?;
    let mut fds = fds.into_iter();
    match (read, fds.next(), fds.next()) {
        (1, Some(device), iommu) => Ok((device, iommu)),
        (0, ..) => Err(failed("it hung up", None)),
        _ => Err(failed("no descriptor came", None)),
    }
}

//! VERSION: what is proposed to the server, and what of its answer can be.
//!
//! Limits are the smaller of both ends'. What was not proposed cannot be agreed to: a
//! server that says more than that is refused, as it would be understood by nobody.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use abi::feature::FeatureHeader;
use abi::vfio_user::{LoggingReport, MAJOR, MINOR};
use control::TransportError;

use super::line::{self, Line, Sink};
use super::{CAREFUL, ClientOptions};
use crate::codec::{Capabilities, Migration, Reply, Request, TwinSocket, Version};

/// The most bytes of an answer to VERSION.
const MOST: usize = 32 * 1024;

/// Messages of less than this are not limited by `max_data_xfer_size`, in bytes.
pub(super) const SMALL: usize = 4096;

/// The data that a client may let a message have, in bytes.
pub(super) const LEAST_DATA: usize = 4096;
pub(super) const MOST_DATA: usize = 64 << 20;

/// What both ends agreed to.
#[derive(Debug)]
pub(super) struct Agreed {
    /// The most bytes of data in one message.
    pub(super) max_data: usize,
    /// The same, of one that writes: a server that does not know us may lose its place
    /// in longer ones.
    pub(super) max_write: usize,
    /// The most descriptors in one message to the server.
    pub(super) max_fds: usize,
    /// The most DMA mappings at once.
    pub(super) max_maps: u64,
    /// What every DMA mapping is a multiple of, in bytes, as far as the server says.
    pub(super) page: u64,
    /// The most bytes of dirty bits in one answer, a multiple of 8.
    pub(super) max_report: usize,
    pub(super) write_multiple: bool,
    pub(super) additions: bool,
}

/// Agrees with the server. The twin socket comes beside what was agreed.
pub(super) fn agree(
    line: &Arc<Line>,
    options: &ClientOptions,
) -> Result<(Agreed, Option<OwnedFd>), TransportError> {
    const OPERATION: &str = "agree on the version";
    let max_data = options.max_data_xfer_size.clamp(LEAST_DATA, MOST_DATA);
    let ours = Capabilities {
        max_msg_fds: line::MAX_FDS,
        max_data_xfer_size: max_data,
        write_multiple: true,
        twin_socket: options
            .twin_socket
            .then_some(TwinSocket { supported: true, fd_index: None }),
        migration: Some(Migration::default()),
        vfio_migrate: options.additions.then_some(crate::ADDITIONS),
        ..Capabilities::default()
    };
    let text = ours.text();
    let request = Request::Version(Version { major: MAJOR, minor: MINOR, text: &text });
    let mut sink = Sink { fixed: MOST, data: &mut [] };
    let mut answer =
        line.call(OPERATION, &request, &[], &mut sink, options.call_deadline)?;
    let broken = |what: String| {
        line.give_up(&what);
        TransportError::Broken { operation: OPERATION, what }
    };
    let fds = std::mem::take(&mut answer.fds);
    let theirs = match answer.parse(request.command()) {
        Ok(Reply::Version(version)) if version.minor > MINOR => {
            let what =
                format!("minor version {}, where {MINOR} was proposed", version.minor);
            return Err(broken(what));
        }
        Ok(Reply::Version(version)) => version.capabilities(),
        _ => return Err(broken("not an answer to VERSION".to_owned())),
    };
    let theirs = theirs.map_err(|error| broken(error.to_string()))?;
    let additions = match theirs.vfio_migrate {
        None => false,
        Some(_) if !options.additions => {
            return Err(broken("additions that were not offered".to_owned()));
        }
        Some(version) if version > crate::ADDITIONS => {
            let most = crate::ADDITIONS;
            let what =
                format!("additions of version {version}, where {most} was offered");
            return Err(broken(what));
        }
        Some(_) => true,
    };
    let twin =
        twin(options, theirs.twin_socket, fds).map_err(|what| broken(what.into()))?;
    tracing::debug!(device = %options.name, ?theirs, additions, "agreed");
    let max_data = max_data.min(theirs.max_data_xfer_size);
    let bitmap = theirs.migration.unwrap_or_default().max_bitmap_size;
    let bitmap = bitmap.min(Migration::default().max_bitmap_size);
    let beside = FeatureHeader::SIZE + size_of::<LoggingReport>();
    let max_report = max_data.saturating_sub(beside).min(bitmap as usize) & !7;
    let agreed = Agreed {
        max_data,
        max_write: if additions { max_data } else { max_data.min(CAREFUL) },
        max_fds: theirs.max_msg_fds.min(line::MAX_FDS),
        max_maps: theirs.max_dma_maps.min(ours.max_dma_maps),
        page: 1 << theirs.pgsizes.trailing_zeros().min(63),
        max_report,
        write_multiple: theirs.write_multiple,
        additions,
    };
    Ok((agreed, twin))
}

/// The twin socket among the descriptors beside the answer. All others are closed.
fn twin(
    options: &ClientOptions,
    said: Option<TwinSocket>,
    mut fds: Vec<OwnedFd>,
) -> Result<Option<OwnedFd>, &'static str> {
    let Some(said) = said.filter(|twin| twin.supported) else { return Ok(None) };
    if !options.twin_socket {
        return Err("a twin socket that was not asked for");
    }
    let index = said.fd_index.ok_or("a twin socket without saying which descriptor")?;
    let index = index as usize;
    if index >= fds.len() {
        return Err("a twin socket without its descriptor");
    }
    let socket = UnixStream::from(fds.swap_remove(index));
    // Only a UNIX socket has such an address.
    match socket.local_addr() {
        Ok(_) => Ok(Some(socket.into())),
        Err(_) => Err("a twin socket that is no socket"),
    }
}

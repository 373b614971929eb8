//! What each command does. Errnos are the kernel's, except where vfio-user has its own
//! rules; `docs/vfio-user.md` has the table.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use abi::errno::Errno;
use abi::vfio_user::{Command, MAJOR, MINOR, default};
use sys::Interest;

use super::disconnect::DisconnectReason;
use super::line::{Incoming, MAX_FDS};
use super::peer::{Agreed, AskedBy, Buffers, Deferred, Peer, Socket};
use super::{Server, TWIN, features};
use crate::codec::{Capabilities, Kind, Migration, Reply, Request, TwinSocket, Version};
use crate::codec::{VersionError, kind};

/// DMA addresses and sizes are multiples of this at least, in bytes.
const PAGE: u64 = 4096;

/// The longest bitmap of `DMA_UNMAP`, in bytes: 512 GiB in pages of 4 KiB.
const BITMAP: u64 = 16 << 20;

/// What became of a request.
pub(super) enum Served<'a> {
    /// It is done, and answered so.
    Reply(Reply<'a>),
    /// The same, with what follows the fixed fields at the start of the answer's buffer.
    InData(Reply<'a>),
    /// It is answered when the runner settled.
    Deferred(Deferred),
}

/// What the header of a command says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) command: Command,
    pub(super) no_reply: bool,
}

impl Server {
    /// Carries out one message and answers it.
    pub(super) fn serve_message(
        &mut self,
        peer: &mut Peer,
        socket: Socket,
        message: &mut Incoming,
    ) -> Result<(), DisconnectReason> {
        let header = message.header;
        let (id, command) = (header.msg_id, Command(header.command));
        match kind(&header) {
            Kind::Reply { error } => {
                let runner = &mut self.runner;
                peer.answered(socket, &header, error, message.body(), runner)
            }
            _ if socket == Socket::Twin => {
                Err(DisconnectReason::NotAReply { id, command })
            }
            // Neither a question nor an answer.
            Kind::Unknown => {
                peer.main.send(&Reply::refusal(id, command, Errno::EINVAL), &[])
            }
            Kind::Command { no_reply } => {
                let asked = Asked { id, command, no_reply };
                let fds = std::mem::take(&mut message.fds);
                self.serve_command(peer, asked, message.body(), fds)
            }
        }
    }

    fn serve_command(
        &mut self,
        peer: &mut Peer,
        asked: Asked,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), DisconnectReason> {
        let mut buffers = std::mem::take(&mut peer.buffers);
        if buffers.data.is_empty() {
            buffers.data = peer.main.spare();
        }
        let mut reply_fd = None;
        let served = match Request::parse(asked.command, body) {
            Ok(request) => {
                self.carry_out(peer, asked, request, fds, &mut buffers, &mut reply_fd)
            }
            Err(_) => Err(Errno::EINVAL),
        };
        let result = match served {
            Ok(Served::Deferred(deferred)) => {
                peer.deferred = Some(deferred);
                Ok(())
            }
            Ok(Served::Reply(_) | Served::InData(_)) if asked.no_reply => Ok(()),
            Ok(Served::InData(reply)) => {
                let message = reply.message(asked.id, asked.command);
                let (head, len) = (message.head, message.tail.len());
                match peer.main.offer(&message, &[]) {
                    Ok(sent) if sent == message.size() => Ok(()),
                    Ok(sent) => {
                        drop(message);
                        // The buffer waits instead of a copy, unless most of it is not
                        // needed: many could wait so.
                        let data = &mut buffers.data;
                        let tail = if len < data.capacity() / 2 {
                            data[..len].to_vec()
                        } else {
                            std::mem::take(data)
                        };
                        peer.main.keep(head, tail, len, &[], sent)
                    }
                    Err(reason) => Err(reason),
                }
            }
            Ok(Served::Reply(reply)) => {
                let fds = reply_fd.as_ref().map(AsFd::as_fd);
                peer.main.send(&reply.message(asked.id, asked.command), fds.as_slice())
            }
            Err(errno) => self.refuse(peer, asked, errno),
        };
        peer.buffers = buffers;
        result
    }

    /// Answers with an errno, or where no answer is wanted counts it.
    fn refuse(
        &mut self,
        peer: &mut Peer,
        asked: Asked,
        errno: Errno,
    ) -> Result<(), DisconnectReason> {
        let Asked { id, command, no_reply } = asked;
        tracing::debug!(device = %self.options.name, id, %command, %errno, no_reply, "refused");
        if no_reply {
            self.unanswered_errors += 1;
            return Ok(());
        }
        peer.main.send(&Reply::refusal(id, command, errno), &[])
    }

    fn carry_out<'a>(
        &'a mut self,
        peer: &mut Peer,
        asked: Asked,
        request: Request<'a>,
        fds: Vec<OwnedFd>,
        buffers: &'a mut Buffers,
        reply_fd: &mut Option<OwnedFd>,
    ) -> Result<Served<'a>, Errno> {
        let Buffers { data, words } = buffers;
        let agreed = match (peer.agreed, &request) {
            (None, Request::Version(version)) => {
                let reply = self.version(peer, asked, version, data, reply_fd)?;
                return Ok(Served::Reply(reply));
            }
            (None, _) | (Some(_), Request::Version(_)) => return Err(Errno::EINVAL),
            (Some(agreed), _) => agreed,
        };
        let reply = match request {
            Request::DmaMap(map) => self.dma_map(agreed, map, fds)?,
            Request::DmaUnmap(unmap) => self.dma_unmap(unmap)?,
            Request::DmaUnmapDirty(unmap, wanted) => {
                self.dma_unmap_dirty(agreed, unmap, wanted, words)?
            }
            Request::DeviceInfo(info) => self.device_info(info)?,
            Request::RegionInfo(info) => self.region_info(agreed, info, reply_fd)?,
            Request::IoFds(info) => self.io_fds(info)?,
            Request::IrqInfo(info) => self.irq_info(info)?,
            Request::SetIrqs(set, bools) => self.set_irqs(set, bools, fds)?,
            Request::RegionRead(access) => {
                return self.region_read(agreed, access, data);
            }
            Request::RegionWrite(access, bytes) => {
                return self.region_write(agreed, asked, access, bytes);
            }
            Request::WriteMulti(writes) => self.write_multi(agreed, writes)?,
            Request::Reset => {
                self.runner.reset();
                peer.precopy_flags = false;
                Reply::Done
            }
            Request::Feature(header, bytes) => {
                return features::feature(
                    self,
                    peer,
                    asked,
                    (header, bytes),
                    data,
                    words,
                );
            }
            Request::MigDataRead(wanted) => {
                return self.data_read(agreed, wanted, data);
            }
            Request::MigDataWrite(fixed, bytes) => {
                self.data_write(agreed, fixed, bytes)?
            }
            // The client's to answer, not to ask. (VERSION is dealt with above.)
            Request::Version(_) | Request::DmaRead(_) | Request::DmaWrite(..) => {
                return Err(Errno::EINVAL);
            }
            Request::Unknown(_) => return Err(Errno::ENOSYS),
        };
        Ok(Served::Reply(reply))
    }

    /// Answers a change of state that took its time, where it is over.
    pub(super) fn settle(&mut self, peer: &mut Peer) -> Result<(), DisconnectReason> {
        if self.runner.pending().is_none() && peer.deferred.is_none() {
            return Ok(());
        }
        let Some(outcome) = self.settle_device() else { return Ok(()) };
        let Some(Deferred { id, no_reply, by }) = peer.deferred.take() else {
            return Ok(());
        };
        let command = match by {
            AskedBy::Feature { .. } => Command::DEVICE_FEATURE,
            AskedBy::Region(_) => Command::REGION_WRITE,
        };
        match (outcome, by) {
            (Ok(()), _) if no_reply => Ok(()),
            (Ok(()), AskedBy::Feature { data_fd, target }) => {
                let data = features::state_data(target, data_fd);
                let reply = Reply::Feature(features::state_header(), &data);
                peer.main.send(&reply.message(id, command), &[])
            }
            (Ok(()), AskedBy::Region(access)) => {
                peer.main.send(&Reply::RegionWrite(access).message(id, command), &[])
            }
            (Err(errno), _) => self.refuse(peer, Asked { id, command, no_reply }, errno),
        }
    }

    /// Carries a pending change of state on. `Some` once, when it is over.
    fn settle_device(&mut self) -> Option<Result<(), Errno>> {
        let now = Instant::now();
        match &mut self.front {
            Some(front) => front.settle(&mut self.runner, now),
            None => self.runner.settle(now).map(|outcome| outcome.map(|_| ())),
        }
    }

    /// Agrees to the lower of both sides' limits, and to what both have.
    fn version<'a>(
        &mut self,
        peer: &mut Peer,
        asked: Asked,
        version: &Version<'_>,
        data: &'a mut Vec<u8>,
        reply_fd: &mut Option<OwnedFd>,
    ) -> Result<Reply<'a>, Errno> {
        let refused = |error: VersionError| {
            tracing::warn!(device = %self.options.name, %error, "VERSION refused");
            Errno::EINVAL
        };
        let theirs = version.capabilities().map_err(refused)?;
        let ours = self.options.max_data_xfer_size;
        // Whoever maps larger pages only says so here, and is held to it.
        let pgsizes = match theirs.pgsizes & !(PAGE - 1) {
            0 => return Err(refused(VersionError::Capability("pgsizes"))),
            sizes if sizes & PAGE != 0 => PAGE,
            sizes => sizes,
        };
        let max_dma_maps = theirs.max_dma_maps.min(u64::from(default::MAX_DMA_MAPS));
        let migration = theirs.migration.map(|theirs| Migration {
            pgsize: PAGE,
            max_bitmap_size: theirs.max_bitmap_size.min(BITMAP),
        });
        let additions = self.options.additions && theirs.vfio_migrate.is_some();
        // It travels with the answer.
        let wants_twin = theirs.twin_socket.is_some_and(|twin| twin.supported)
            && theirs.max_msg_fds > 0
            && !asked.no_reply;
        let twin = if wants_twin { self.twin() } else { None };
        let capabilities = Capabilities {
            max_msg_fds: MAX_FDS,
            max_data_xfer_size: ours,
            max_dma_maps,
            pgsizes,
            twin_socket: twin
                .is_some()
                .then_some(TwinSocket { supported: true, fd_index: Some(0) }),
            write_multiple: theirs.write_multiple,
            migration,
            vfio_migrate: additions.then_some(crate::ADDITIONS),
        };
        *data = capabilities.text();
        let agreed = Agreed {
            additions,
            send: theirs.max_data_xfer_size.min(ours),
            take: ours,
            fds: theirs.max_msg_fds.min(MAX_FDS),
            page: 1 << pgsizes.trailing_zeros(),
            bitmap: migration.map_or(BITMAP, |agreed| agreed.max_bitmap_size),
            write_multiple: theirs.write_multiple,
        };
        let twin = twin.map(|(near, far)| {
            *reply_fd = Some(far);
            near
        });
        peer.agree(agreed, twin);
        self.runner.set_message_limit(agreed.send);
        self.runner.set_windows_limit(max_dma_maps as usize);
        let minor = version.minor.min(MINOR);
        Ok(Reply::Version(Version { major: MAJOR, minor, text: data }))
    }

    /// Both ends of a twin socket, of which the first is waited for; `None` where the
    /// process has no descriptors left for it, and the client does without.
    fn twin(&mut self) -> Option<(OwnedFd, OwnedFd)> {
        let made = sys::socket::pair().and_then(|(near, far)| {
            self.give_room(&near);
            self.epoll.add(&near, TWIN, Interest::READ)?;
            Ok((near, far))
        });
        made.inspect_err(|error| {
            tracing::warn!(device = %self.options.name, %error, "no twin socket");
        })
        .ok()
    }
}

/// `count` bytes of the answer's buffer, where the limit allows that many.
pub(super) fn room(
    data: &mut Vec<u8>,
    count: u32,
    limit: usize,
) -> Result<&mut [u8], Errno> {
    let count = count as usize;
    if count == 0 || count > limit {
        return Err(Errno::EINVAL);
    }
    if data.len() < count {
        data.resize(count, 0);
    }
    Ok(&mut data[..count])
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        _ => error.raw_os_error().map_or(Errno::EIO, Errno),
    }
}

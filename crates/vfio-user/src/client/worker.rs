//! The thread that answers what the server asks.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use abi::errno::Errno;
use abi::vfio_user::Command;

use super::line::{Failed, Foreign, Limit, Line, SOCKET, WAKE};
use super::{ClientOptions, DmaHandler};
use crate::codec::{Kind, Reply, Request, kind};

/// Starts it. It ends with the connection.
pub(super) fn start(
    line: &Arc<Line>,
    options: &ClientOptions,
) -> io::Result<JoinHandle<()>> {
    let worker = Worker {
        line: Arc::clone(line),
        handler: Arc::clone(&options.handler),
        name: options.name.clone(),
        deadline: options.call_deadline,
        max_data: options.max_data_xfer_size,
        data: Vec::new(),
    };
    std::thread::Builder::new()
        .name(format!("dma-{}", options.name))
        .spawn(move || worker.run())
}

struct Worker {
    line: Arc<Line>,
    handler: Arc<dyn DmaHandler>,
    name: String,
    deadline: Duration,
    max_data: usize,
    /// As long as the longest read so far, and reused.
    data: Vec<u8>,
}

impl Worker {
    fn run(mut self) {
        loop {
            match self.line.next_foreign() {
                Err(()) => return,
                Ok(Some(message)) => {
                    // Where that fails the connection is over, which shows right above.
                    let _ = self.serve(&message);
                }
                Ok(None) => self.wait(),
            }
        }
    }

    /// Waits for messages that others read, or, while nobody calls, reads.
    fn wait(&self) {
        let events = match self.line.epoll.wait(None) {
            Ok(events) => events,
            Err(error) => {
                self.line.give_up(&format!("epoll: {error}"));
                return;
            }
        };
        for (key, _) in events {
            match key {
                WAKE => {
                    let _ = self.line.wake.take();
                }
                SOCKET => {
                    if let Some(mut role) = self.line.take_idle_role() {
                        // Where that fails the connection is over.
                        let limit = Limit::of(self.deadline);
                        let _ = self.line.read_available(&mut role, limit);
                    }
                }
                _ => {}
            }
        }
    }

    fn serve(&mut self, message: &Foreign) -> Result<(), Failed> {
        let Foreign { header, body } = message;
        let (id, command) = (header.msg_id, Command(header.command));
        let reply = match Request::parse(command, body) {
            Ok(Request::DmaRead(access)) => {
                let data = room(&mut self.data, access.count, self.max_data);
                data.and_then(|data| {
                    self.handler.read(access.addr, data)?;
                    Ok(Reply::DmaRead(access, data))
                })
            }
            Ok(Request::DmaWrite(access, data)) => self
                .handler
                .write(access.addr, data)
                .map(|()| Reply::DmaWrite(Some(access))),
            Ok(_) => Err(Errno::ENOSYS),
            Err(_) => Err(Errno::EINVAL),
        };
        let reply = match reply {
            Ok(reply) => reply.message(id, command),
            Err(errno) => {
                tracing::debug!(device = %self.name, id, %command, %errno, "DMA refused");
                Reply::refusal(id, command, errno)
            }
        };
        match kind(header) {
            Kind::Command { no_reply: false } => {
                self.line.send(&reply, &[], Limit::of(self.deadline))
            }
            _ => Ok(()),
        }
    }
}

/// `count` bytes of the buffer, where the limit allows that many.
fn room(data: &mut Vec<u8>, count: u64, limit: usize) -> Result<&mut [u8], Errno> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    if count == 0 || count > limit {
        return Err(Errno::EINVAL);
    }
    if data.len() < count {
        data.resize(count, 0);
    }
    Ok(&mut data[..count])
}

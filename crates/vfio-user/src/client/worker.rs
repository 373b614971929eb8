//! The thread that answers what the server asks.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use abi::errno::Errno;
use abi::vfio_user::{Command, DmaAccess};

use super::agreement::{LEAST_DATA, MOST_DATA};
use super::line::{Failed, Foreign, Limit, Line, SOCKET, WAKE};
use super::{ClientOptions, DmaHandler};
use crate::codec::{Kind, Reply, Request, kind};

/// Starts it: on the twin socket if there is one, or else on the line that the calls use
/// too. It ends with the connection.
pub(super) fn start(
    line: &Arc<Line>,
    twin: Option<&Arc<Line>>,
    options: &ClientOptions,
) -> io::Result<JoinHandle<()>> {
    let worker = Worker {
        line: Arc::clone(twin.unwrap_or(line)),
        handler: Arc::clone(&options.handler),
        name: options.name.clone(),
        deadline: options.call_deadline,
        max_data: options.max_data_xfer_size.clamp(LEAST_DATA, MOST_DATA),
        data: Vec::new(),
    };
    let main = twin.map(|_| Arc::clone(line));
    std::thread::Builder::new().name(format!("dma-{}", options.name)).spawn(move || {
        match main {
            None => worker.run(),
            Some(main) => worker.run_alone(&main),
        }
    })
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
    /// Shares the line with those who call.
    fn run(mut self) {
        while self.serve_queued().is_ok() {
            self.wait();
        }
    }

    /// Has the twin socket to itself; `main` is the line that it belongs to, and goes
    /// when it goes.
    fn run_alone(mut self, main: &Line) {
        while self.serve_queued().is_ok() {
            let Some(mut role) = self.line.take_role() else { break };
            // Where that fails the connection is over.
            let _ = self.line.read_question(&mut role);
        }
        main.end_with(&self.line);
    }

    /// Answers what was read. `Err` when there is nothing more to wait for.
    fn serve_queued(&mut self) -> Result<(), ()> {
        while let Some(message) = self.line.next_foreign()? {
            // Where that fails the connection is over, which shows right above.
            let _ = self.serve(&message);
            self.line.served();
        }
        Ok(())
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
                        let _ = self.line.read_come(&mut role, limit);
                    }
                }
                _ => {}
            }
        }
    }

    fn serve(&mut self, message: &Foreign) -> Result<(), Failed> {
        let Foreign { header, body } = message;
        let (id, command) = (header.msg_id, Command(header.command));
        let ours = matches!(command, Command::DMA_READ | Command::DMA_WRITE);
        let reply = match Request::parse(command, body) {
            _ if !ours => Err(Errno::ENOSYS),
            Ok(Request::DmaRead(access)) => {
                length(&access, self.max_data).and_then(|length| {
                    if self.data.len() < length {
                        self.data.resize(length, 0);
                    }
                    let data = &mut self.data[..length];
                    self.handler.read(access.addr, data)?;
                    Ok(Reply::DmaRead(access, data))
                })
            }
            Ok(Request::DmaWrite(access, data)) => length(&access, self.max_data)
                .and_then(|_| {
                    self.handler.write(access.addr, data)?;
                    Ok(Reply::DmaWrite(Some(access)))
                }),
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

/// How many bytes, where that many are agreed to and lie in the address space.
fn length(access: &DmaAccess, limit: usize) -> Result<usize, Errno> {
    let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
    let last = access.count.checked_sub(1).and_then(|more| access.addr.checked_add(more));
    if last.is_none() || count > limit {
        return Err(Errno::EINVAL);
    }
    Ok(count)
}

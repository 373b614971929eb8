//! Clients come and go: one at a time, and nothing of one is left for the next.

use std::io;
use std::time::{Duration, Instant};

use sys::Interest;

use super::disconnect::DisconnectReason;
use super::peer::Peer;
use super::{LISTENER, Server, irqs};

/// How long nobody is accepted after that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Server {
    pub(super) fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match listener.accept() {
            Ok(socket) => self.adopt(socket),
            // It went away before its turn came, or the process is out of descriptors:
            // the device goes on, the client tries again.
            Err(error) => {
                tracing::warn!(device = %self.options.name, %error, "accept failed");
                // Who waits goes on to, and would have us try again all the time.
                self.hear_others(false)?;
                self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
                Ok(())
            }
        }
    }

    pub(super) fn disconnect(
        &mut self,
        peer: Peer,
        reason: DisconnectReason,
    ) -> io::Result<()> {
        match &reason {
            DisconnectReason::Closed => {
                tracing::debug!(device = %self.options.name, "the client went away");
            }
            reason => {
                let reason: &dyn std::error::Error = reason;
                tracing::warn!(device = %self.options.name, reason, "client disconnected");
            }
        }
        self.runner.disconnect();
        if let Some(front) = &mut self.front {
            front.disconnect();
        }
        if self.options.reset_on_disconnect {
            self.runner.reset();
        }
        self.forget_unmask(irqs::UNMASK..u64::MAX);
        self.epoll.remove(peer.main.fd())?;
        if let Some(twin) = &peer.twin {
            self.epoll.remove(twin.fd())?;
        }
        drop(peer);
        self.last_disconnect = Some(reason);
        self.hear_others(true)
    }

    /// Whether who else connects is heard.
    pub(super) fn hear_others(&mut self, heard: bool) -> io::Result<()> {
        self.accept_again = None;
        let Some(listener) = &self.listener else { return Ok(()) };
        let interest = if heard { Interest::READ } else { Interest::NONE };
        self.epoll.modify(listener, LISTENER, interest)
    }
}

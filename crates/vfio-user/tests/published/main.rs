//! The `vfio_user` crate of the registry, which is not ours, at the other end of the
//! socket: as a client of our server, and as a server for our client.
//!
//! It speaks the protocol without migration, and has defects that bound what can be
//! asked of it (seen in 0.1.7):
//!
//! * its client looks at no error flag: a refusal with a header alone passes for
//!   success, and where a payload was due it waits for that without end;
//! * its client turns `resettable()` round, its `DmaUnmapFlags` are off by one bit;
//! * its server leaves the body of a command that it does not know in the stream;
//! * its server says minor 0, one descriptor a message, and errno 0 for what fails.
//!
//! Nothing of it has a time limit, so all of it runs in threads that are waited for with
//! one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "../support/mod.rs"]
mod support;

mod their_client;
mod their_server;

use std::sync::mpsc::{RecvTimeoutError, channel};

/// Does what may never return, and fails where it does not in time.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, done) = channel();
    let thread = std::thread::spawn(move || {
        let _ = told.send(work());
    });
    match done.recv_timeout(support::SOON) {
        Ok(result) => {
            thread.join().unwrap();
            result
        }
        Err(RecvTimeoutError::Timeout) => panic!("the published crate hangs"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

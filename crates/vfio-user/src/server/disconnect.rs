//! Why a client is not served any more.

use std::time::Duration;

use abi::vfio_user::Command;
use thiserror::Error;

use crate::stream::StreamError;

/// Why a client was disconnected.
#[derive(Debug, Error)]
pub enum DisconnectReason {
    /// It closed the connection.
    #[error("it closed the connection")]
    Closed,
    /// The connection cannot go on.
    #[error("the connection cannot go on")]
    Stream(#[source] StreamError),
    /// It did not read its answers.
    #[error("{0} bytes wait for it, and it does not read them")]
    NotReading(usize),
    /// It answered a message that it was not sent, or not as that command, or not on
    /// that socket.
    #[error("it answered message {id} ({command}), which it was not sent there")]
    UnknownReply {
        /// The message's number.
        id: u16,
        /// The command in the reply.
        command: Command,
    },
    /// It asked something on the twin socket, where it only answers.
    #[error("it sent message {id} ({command}) on the twin socket, where it only answers")]
    NotAReply {
        /// The message's number.
        id: u16,
        /// The command.
        command: Command,
    },
    /// It did not agree on a version in time.
    #[error("it did not agree on a version within {} ms", .0.as_millis())]
    Handshake(Duration),
    /// It leaves too many of the device's own messages unanswered.
    #[error("it leaves {0} messages unanswered")]
    NotAnswering(usize),
}

impl From<StreamError> for DisconnectReason {
    fn from(error: StreamError) -> DisconnectReason {
        match error {
            StreamError::Closed => DisconnectReason::Closed,
            other => DisconnectReason::Stream(other),
        }
    }
}

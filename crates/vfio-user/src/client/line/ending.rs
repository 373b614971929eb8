//! How a connection ends, and when a call has to be over.

use std::io;
use std::time::{Duration, Instant};

use control::TransportError;

use crate::stream::StreamError;

/// As good as for ever.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a connection cannot go on.
#[derive(Clone, Debug)]
pub(in crate::client) enum Dead {
    TimedOut(Duration),
    Broken(String),
    Closed,
    Io(io::ErrorKind, String),
}

impl Dead {
    /// For the call that found out.
    pub(super) fn first(self, operation: &'static str) -> TransportError {
        match self {
            Dead::TimedOut(deadline) => TransportError::TimedOut {
                operation,
                millis: deadline.as_millis() as u64,
            },
            Dead::Broken(what) => TransportError::Broken { operation, what },
            other => other.later(operation),
        }
    }

    /// For every other call.
    pub(super) fn later(self, operation: &'static str) -> TransportError {
        let source = match self {
            Dead::TimedOut(deadline) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer came within {} ms", deadline.as_millis()),
            ),
            Dead::Broken(what) => io::Error::new(io::ErrorKind::InvalidData, what),
            Dead::Closed => io::ErrorKind::ConnectionReset.into(),
            Dead::Io(kind, what) => io::Error::new(kind, what),
        };
        TransportError::Gone { operation, source: Some(source) }
    }
}

impl From<StreamError> for Dead {
    fn from(error: StreamError) -> Dead {
        match error {
            StreamError::Closed => Dead::Closed,
            StreamError::Io(error) => Dead::Io(error.kind(), error.to_string()),
            StreamError::Size { .. } => Dead::Broken(error.to_string()),
        }
    }
}

/// What ended a call that got no reply.
#[derive(Clone, Debug)]
pub(in crate::client) enum Failed {
    /// This call found out.
    First(Dead),
    /// Another one had.
    Later(Dead),
}

impl Failed {
    pub(super) fn error(self, operation: &'static str) -> TransportError {
        match self {
            Failed::First(dead) => dead.first(operation),
            Failed::Later(dead) => dead.later(operation),
        }
    }
}

/// When a call has to be over.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Limit {
    pub(super) deadline: Duration,
    at: Instant,
}

impl Limit {
    pub(in crate::client) fn of(deadline: Duration) -> Limit {
        let now = Instant::now();
        // A time that no clock will show is a year from now.
        let at = now.checked_add(deadline).unwrap_or(now + YEAR);
        Limit { deadline, at }
    }

    pub(super) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(in crate::client) fn passed(&self) -> bool {
        self.left().is_zero()
    }
}

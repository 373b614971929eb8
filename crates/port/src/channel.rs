//! Connections to the other host.

use std::io::IoSlice;
use std::time::Duration;

use thiserror::Error;

/// A connection: bytes both ways, in order.
pub trait Channel: Send {
    /// Takes the connection apart, so that one thread sends and another receives.
    ///
    /// # Errors
    /// When the connection cannot be shared.
    fn split(self: Box<Self>) -> Result<Halves, ChannelError>;
}

/// The two halves of a [`Channel`], and a third hand that ends both.
pub type Halves = (Box<dyn Transmit>, Box<dyn Receive>, Box<dyn Close>);

/// The half that sends.
pub trait Transmit: Send {
    /// Sends all of the parts, in order.
    ///
    /// # Errors
    /// When the connection breaks, or nothing moved for the deadline.
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError>;

    /// How long one [`Transmit::send`] may go on without moving a byte.
    fn set_deadline(&mut self, deadline: Duration);
}

/// A place that a stream is kept in, such as a file. What was sent counts only once it
/// is committed; dropped before, it leaves nothing behind.
pub trait Archive: Transmit {
    /// Makes everything that was sent durable, under its final name. Nothing is sent
    /// after it.
    ///
    /// # Errors
    /// When that cannot be done; nothing is left under the final name then.
    fn commit(&mut self) -> Result<(), ChannelError>;
}

/// The half that receives.
pub trait Receive: Send {
    /// Fills all of `into`.
    ///
    /// # Errors
    /// When the connection ends or breaks, or nothing came for the deadline.
    /// [`ChannelError::Closed`] where it ended before the first byte of `into`.
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError>;

    /// How long one [`Receive::receive`] may go on without a byte.
    fn set_deadline(&mut self, deadline: Duration);
}

/// Ends a connection from any thread; sends and receives under way fail soon.
pub trait Close: Send + Sync {
    /// Ends both directions.
    fn close(&self);
}

/// Opens data connections beside a control connection (source).
pub trait Dial: Send {
    /// Opens one more connection to the same peer.
    ///
    /// # Errors
    /// When it cannot be opened within `deadline`.
    fn dial(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError>;

    /// How fast all that it opened may send together now, in bytes a second, where
    /// somebody limits that. A downtime is estimated with it.
    fn limit(&self) -> Option<u64> {
        None
    }
}

/// Takes data connections in beside a control connection (destination).
pub trait Accept: Send {
    /// Takes the next connection.
    ///
    /// # Errors
    /// When none came within `deadline`.
    fn accept(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError>;
}

/// A connection failed.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing moved for the deadline.
    #[error("nothing moved on the connection for {0} ms")]
    TimedOut(u64),
    /// Somebody on this side wants no more of it: a flag was set that ends every wait.
    #[error("cancelled")]
    Cancelled,
    /// It broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// It is no connection but a file, and that failed: in the file's own words.
    #[error(transparent)]
    File(Box<dyn std::error::Error + Send + Sync>),
}

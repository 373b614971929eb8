//! Links between two hosts: one control connection and N data connections.
//!
//! ```text
//!   source                                              destination
//!     dial(uri) ==================== control ===========> Listener::accept
//!        |                                                        |
//!     Dialer (port::Dial) ============ data 1 ==========> Acceptor (port::Accept)
//!        `------------------------ ... data N ==========>
//! ```
//!
//! A [`Uri`] names the place: `tcp:HOST:PORT` or `unix:PATH`. Every wait has a
//! deadline, and it is one of *progress*: an operation may take long, but not without
//! a byte moving. A [`RateLimit`] bounds what all data connections send together, and
//! never the control connection. Nothing here knows what the bytes mean; that a connection which came
//! in belongs to this migration is checked by the engine, by a token.
//!
//! ```
//! use std::{io::IoSlice, time::Duration};
//! use port::Channel;
//! use vfio_migrate_link::{Uri, dial, listen};
//!
//! let second = Duration::from_secs(1);
//! let listener = listen(&"tcp:127.0.0.1:0".parse()?)?;
//! let (there, _more) = dial(listener.local(), second)?;
//! let (here, _more) = listener.accept(second)?;
//!
//! let (mut transmit, _receive, _close) = Box::new(there).split()?;
//! transmit.send(&[IoSlice::new(b"he"), IoSlice::new(b"llo")])?;
//! let (_transmit, mut receive, _close) = Box::new(here).split()?;
//! let mut heard = [0; 5];
//! receive.receive(&mut heard)?;
//! assert_eq!(&heard, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod connection;
mod place;
mod rate;
mod uri;

pub use connection::{Connection, DEADLINE};
pub use place::{Acceptor, Dialer, LinkError, Listener, dial, listen};
pub use rate::RateLimit;
pub use uri::{Uri, UriError};

//! The VFIO migration state machines as tables, and the path planner.
//!
//! Pure: nothing here opens, reads or asks anything. The VMM side uses it to see
//! what a request will do before it makes it, the device side to carry a request
//! out arc by arc, and people to look at it ([`chart`]).
//!
//! [`v2`] is the state machine of Linux 5.18 and later, which is also the one of
//! vfio-user.
//!
//! ```
//! use vfio_migrate_states::v2::{Capabilities, State, plan};
//!
//! let path = plan(Capabilities::ALL, State::Running, State::StopCopy)?;
//! assert_eq!(path.as_slice(), [State::RunningP2p, State::Stop, State::StopCopy]);
//! assert!(path.opens_session());
//! # Ok::<(), vfio_migrate_states::v2::Refusal>(())
//! ```

pub mod chart;
pub mod v2;

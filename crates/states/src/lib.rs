//! The VFIO migration state machines as tables, and the path planner.
//!
//! Pure: nothing here opens, reads or asks anything. The VMM side uses it to see
//! what a request will do before it makes it, the device side to carry a request
//! out arc by arc, and people to look at it ([`chart`]).
//!
//! | module | machine |
//! | --- | --- |
//! | [`v2`] | Linux 5.18 and later, and vfio-user; also the one state set that the engine knows |
//! | [`v1`] | the region of Linux 5.8 to 5.17 |
//! | [`rfc2018`] | the region of the RFC of 2018 |
//! | [`mapping`] | what the older two have in common when they are presented as v2 |
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
pub mod mapping;
pub mod rfc2018;
pub mod v1;
pub mod v2;

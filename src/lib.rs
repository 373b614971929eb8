//! Live migration of VFIO devices, as one crate.
//!
//! The rooms that a user of the library needs, by their names.

pub use {
    abi, control, device, dirty, engine, link, port, states, store, vfio_user, wire,
};

//! Live migration of VFIO devices, as one crate.
//!
//! This page re-exports the rooms that a user of the library needs, by their names.
//! Who you are tells where to start:
//!
//! | you write | you want | start at |
//! | --- | --- | --- |
//! | a VMM with its own migration loop | devices that move in the right order | [`engine::devices::DeviceSet`] |
//! | a VMM without one | the whole migration | [`engine::drive::Outgoing`], [`engine::drive::Incoming`] |
//! | a user-space device | a device that can migrate | [`device::Migratable`], [`vfio_user::server`] |
//! | a kernel driver | to know whether it obeys | [`conformance`], [`host`] |
//! | a tool | to read a stream, to ask a device | [`wire`], [`control::open`] |
//!
//! # A VMM that keeps its own loop
//!
//! [`engine::devices::DeviceSet`] is the flow of the 2018 RFC as an API: set up,
//! iterate while the guest runs, quiesce through the peer-to-peer barrier, complete.
//! What it drives is any [`port::Device`]; [`control::open`] makes one of a device
//! behind any [`control::Transport`]: a [`host::Host`] (the kernel's devices) or a
//! [`vfio_user::client::Client`].
//!
//! ```no_run
//! use vfio_migrate::engine::devices::{DeviceId, DeviceSet, SetError};
//! use vfio_migrate::port::{Device, Read};
//!
//! fn save(devices: Vec<Box<dyn Device>>, out: &mut dyn std::io::Write) -> Result<(), SetError> {
//!     let count = devices.len();
//!     // No device maps another's BAR.
//!     let mut set = DeviceSet::new(devices, false)?;
//!     let mut buffer = vec![0; 1 << 20];
//!
//!     set.setup()?;
//!     for n in 0..count {
//!         // While the guest runs: what pre-copy has now.
//!         while let Ok(Read::Data { bytes, .. }) = set.iterate(DeviceId(n), &mut buffer) {
//!             out.write_all(&buffer[..bytes]).expect("a place for the data");
//!         }
//!     }
//!     // The VMM stops its vCPUs here.
//!     set.quiesce()?;
//!     for n in 0..count {
//!         set.complete(DeviceId(n), &mut buffer, |data, _ends_transaction| {
//!             out.write_all(data).expect("a place for the data");
//!             Ok::<(), SetError>(())
//!         })?;
//!     }
//!     set.finish()
//! }
//! ```
//!
//! After any failure, [`engine::devices::DeviceSet::rollback`] brings every device back
//! to RUNNING from wherever it is, and names those that it could not save.
//!
//! # A VMM that wants the whole thing
//!
//! It lends an [`engine::Machine`] and gets it back, however the migration ends:
//!
//! ```no_run
//! use std::time::Duration;
//! use vfio_migrate::engine::drive::Outgoing;
//! use vfio_migrate::engine::migration::{Options, Recovery};
//! use vfio_migrate::{engine::Machine, link, store};
//!
//! fn move_away(machine: Machine, to: &link::Uri) -> Result<Machine, Box<dyn std::error::Error>> {
//!     let (control, dial) = link::dial(to, Duration::from_secs(5))?;
//!     let store = Box::new(store::Memory::new()?);
//!     let attempt = store::new_attempt()?;
//!     let outgoing = Outgoing::new(
//!         machine,
//!         Box::new(control),
//!         Box::new(dial),
//!         store,
//!         attempt,
//!         Options { downtime_limit: Duration::from_millis(100), ..Options::default() },
//!     );
//!     let handle = outgoing.handle(); // cancel, pause, another limit: from any thread
//!     let sent = outgoing.run();
//!     drop(handle);
//!     match sent.result {
//!         Ok(()) => println!("down for {:?}", sent.report.downtime),
//!         Err(error) if error.recovery() == Recovery::InDoubt => {
//!             println!("do not start this guest: {error}");
//!         }
//!         Err(error) => println!("the guest goes on here: {error}"),
//!     }
//!     Ok(sent.machine)
//! }
//! ```
//!
//! # What holds, whatever dies
//!
//! At most one side runs. Until the source gives the guest away, every failure ends
//! with the source running as before; after it, only a recorded RETURNED brings the
//! guest back. `ARCHITECTURE.md` has these laws with the tests that hold them, and
//! `docs/failure.md` has a row for each step and party that dies.

pub use ::vfio_user;
pub use {abi, conformance, control, device, dirty, engine, host, link, port};
pub use {states, store, wire};

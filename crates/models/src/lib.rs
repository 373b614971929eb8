//! Devices people can run.
//!
//! [`accel`] is an accelerator with memory of its own and a DMA engine: what the demo
//! migrates, and what the tests and benchmarks are made with. [`uart`] is a card with one
//! or two serial ports, whose few bytes of state are those of the kernel's mtty sample.

pub mod accel;
pub mod uart;

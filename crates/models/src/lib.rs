//! Devices people can run.
//!
//! [`accel`] is an accelerator with memory of its own and a DMA engine: what the demo
//! migrates, and what the tests and benchmarks are made with.

pub mod accel;

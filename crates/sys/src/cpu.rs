//! Which CPU a thread runs on.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Pins the calling thread to one CPU, by its number from 0. Threads that it starts
/// afterwards inherit that. For measurements: two ends on one CPU are the stable
/// configuration on a shared machine.
///
/// # Errors
/// EINVAL where there is no such CPU, or this process may not use it.
pub fn set_affinity(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

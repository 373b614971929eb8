//! The stream as a whole: what is written is read again, what was ever written stays
//! readable, and nothing that a peer can send does harm.

#[cfg(test)]
mod documented;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod lying;
#[cfg(test)]
mod roundtrip;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod walk;
#[cfg(test)]
mod writing;

use vfio_migrate_wire as wire;

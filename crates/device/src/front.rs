//! A model behind a migration region: the two generations before v2.
//!
//! A v2 device is moved by features and a data session, which is what [`Runner`] offers.
//! Before that a device had a region for it: a structure of registers at its start, and
//! behind it a section through which data goes in pieces. A [`Front`] is that region, for
//! any model, over the same runner.
//!
//! ```text
//!   client: region read, region write, mapped section
//!      |
//!   [Front] -- device_state --> states::v1::front, states::rfc2018::front
//!      |                               |
//!      |  data section                 v  set_state, settle
//!      '------- transfer ----> [Runner] --> the model
//!               read_data, write_data, log_report
//! ```
//!
//! A server asks it for its [`region`](Front::region) and [`kind`](Front::kind), and
//! hands it every access to that index; everything else stays the runner's. Nobody but
//! the front asks that runner for a migration state.
//!
//! ```
//! use std::time::Instant;
//! use vfio_migrate_device::front::{Front, FrontOptions, Generation};
//! use vfio_migrate_device::{Moved, Runner};
//!
//! # fn stop(mut runner: Runner) -> Result<(), Box<dyn std::error::Error>> {
//! let mut front = Front::new(&runner, FrontOptions::new(Generation::V1))?;
//! // 001 to 010: the device stops, and its state can be read.
//! let moved = front.write(&mut runner, 0, &0b010_u32.to_ne_bytes(), Instant::now());
//! assert_eq!(moved, Ok(Moved::Done(None)));
//! let mut pending = [0; 8];
//! front.read(&mut runner, 8, &mut pending)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What both generations have in common
//!
//! * *A transaction* is what one look ahead finds: as much as the model gives, up to the
//!   size of the section. The model is asked for it when what is pending is read, so
//!   that 0 is the end of the phase and not an estimate.
//! * *Reading what is pending* (`pending_bytes`; `pending` and its three amounts) says
//!   that the buffer which was asked for was read. *Reading the offset* asks for the next
//!   one, and puts it into the section. Each of them may be read again: nothing happens
//!   until the other was.
//! * *Pre-copy may be left with data pending.* A buffer that was not asked for is the
//!   first of stop-and-copy; one that was counts as read.
//! * *Loading:* data first, then its size, which hands exactly these bytes to the model.
//! * *A write of the state is the transition.* Where the model takes its time the write is
//!   [`Moved::Pending`], and [`Front::settle`] has its answer. A transition that fails
//!   half-way leaves the device where it got to, as in v2; a peer-to-peer state, for
//!   which there is no name here, is left again first.
//! * *A load that failed* is never started. v1 reads 110 from the first error on, whether
//!   it came with a transaction or at the end; in rfc2018 the steps that would start it
//!   fail, and FAILED or CANCELLED resets the device.
//! * *A reset* of the runner leads back to running from everywhere.
//!
//! `docs/generations.md` has the decisions, `docs/device.md` how to serve one.

mod rfc2018;
mod section;
mod transfer;
mod v1;

use crate::{Moved, Region, Runner};
use abi::errno::Errno;
use abi::rfc2018::{RFC_REGION_SUBTYPE, RFC_REGION_TYPE, RfcInfo};
use abi::v1::{V1_REGION_SUBTYPE, V1_REGION_TYPE, V1Info};
use rfc2018::RfcFront;
use section::Section;
use states::rfc2018::Act;
use states::v2::State;
use std::fmt;
use std::io;
use std::time::Instant;
use thiserror::Error;
use transfer::Transfer;
use v1::V1Front;

/// Which generation of migration region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// Document 000, Linux 5.8 to 5.17: region type 3, subtype 1.
    V1,
    /// Document 001, the RFC of November 2018: region type `1 << 30`, subtype 1.
    Rfc2018,
}

/// How a client reaches the data section. The bytes are the same in all three, and
/// whoever does not map what can be mapped reads and writes it like the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataSection {
    /// By reads and writes. It begins right behind the registers.
    Trapped,
    /// All of it can be mapped. It begins at a multiple of 4096.
    Mapped,
    /// Its first page is trapped, the rest can be mapped; a buffer may lie in both. It
    /// begins at a multiple of 4096.
    Split,
}

/// What a migration region looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontOptions {
    /// Which generation.
    pub generation: Generation,
    /// How its data section is reached.
    pub data_section: DataSection,
    /// The size of the data section, which is the longest transaction, in bytes: a
    /// multiple of 4096 up to 64 MiB; at least 8192 where it is split.
    pub section_bytes: u64,
    /// What bits 3 to 31 of v1's `device_state` read, and what a client has to write
    /// back; its bits 0 to 2 do not count.
    pub reserved_bits: u32,
}

impl FrontOptions {
    /// A trapped section of 1 MiB, and no reserved bits.
    pub const fn new(generation: Generation) -> FrontOptions {
        FrontOptions {
            generation,
            data_section: DataSection::Trapped,
            section_bytes: 1 << 20,
            reserved_bits: 0,
        }
    }
}

/// A migration region that cannot be made.
#[derive(Debug, Error)]
pub enum FrontError {
    /// The size of the data section is out of its range.
    #[error(
        "a data section of {0} bytes is not a multiple of 4096 up to 64 MiB, \
         and at least 8192 where it is split"
    )]
    SectionBytes(u64),
    /// The operating system gives no memory for the section.
    #[error("no memory for the data section")]
    Memory(#[source] io::Error),
}

/// The lowest index that a migration region gets: that of libvfio-user, behind those that
/// a PCI function has.
pub const REGION_INDEX: u32 = 9;

/// A migration region in front of a runner; see the [module](self).
pub struct Front {
    region: Region,
    section: Section,
    transfer: Transfer,
    registers: Registers,
    /// Where the runner was when the registers were last known to say so.
    at: State,
    resets: u64,
    /// A write of the state that failed, while the device is being taken out of a
    /// peer-to-peer state.
    owed: Option<Errno>,
}

/// What differs.
enum Registers {
    V1(V1Front),
    Rfc2018(RfcFront),
}

/// What an access to a register reaches.
struct Reach<'a> {
    runner: &'a mut Runner,
    section: &'a mut Section,
    transfer: &'a mut Transfer,
}

impl Front {
    /// The region in front of `runner`, behind the regions that its model has.
    ///
    /// # Errors
    ///
    /// [`FrontError`], where the options or the system do not allow it.
    pub fn new(runner: &Runner, options: FrontOptions) -> Result<Front, FrontError> {
        let (registers, size) = match options.generation {
            Generation::V1 => {
                (Registers::V1(V1Front::new(options.reserved_bits)), V1Info::SIZE as u64)
            }
            Generation::Rfc2018 => {
                (Registers::Rfc2018(RfcFront::new()), RfcInfo::SIZE as u64)
            }
        };
        let section = Section::new(size, options.data_section, options.section_bytes)?;
        let regions = &runner.description().regions;
        let free = regions.iter().map(|region| region.index + 1).max().unwrap_or(0);
        let region = Region {
            index: free.max(REGION_INDEX),
            size: section.end(),
            writable: true,
            windows: section.windows(),
        };
        Ok(Front {
            region,
            section,
            transfer: Transfer::default(),
            registers,
            at: State::Running,
            resets: runner.resets(),
            owed: None,
        })
    }

    /// The region: its index, its size, and what of it can be mapped.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Type and subtype, for the region's capability.
    pub fn kind(&self) -> (u32, u32) {
        match self.registers {
            Registers::V1(_) => (V1_REGION_TYPE, V1_REGION_SUBTYPE),
            Registers::Rfc2018(_) => (RFC_REGION_TYPE, RFC_REGION_SUBTYPE),
        }
    }

    /// Which generation it is.
    pub fn generation(&self) -> Generation {
        match self.registers {
            Registers::V1(_) => Generation::V1,
            Registers::Rfc2018(_) => Generation::Rfc2018,
        }
    }

    /// Reads the region: exactly a register (in rfc2018 also a whole sub-structure), or
    /// anything inside the data section, in every state.
    ///
    /// # Errors
    ///
    /// `EINVAL` for anything else, and for what is only written; what the model says
    /// where the read asks it for data, `ENODEV` where its session died.
    pub fn read(
        &mut self,
        runner: &mut Runner,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        self.follow(runner);
        if self.section.holds(offset, into.len()) {
            return self.section.read(offset, into);
        }
        let Front { registers, section, transfer, .. } = self;
        let mut reach = Reach { runner, section, transfer };
        let read = match registers {
            Registers::V1(v1) => v1.read(&mut reach, offset, into),
            Registers::Rfc2018(rfc) => rfc.read(&mut reach, offset, into),
        };
        read.inspect_err(|errno| {
            tracing::debug!(offset, len = into.len(), %errno, "register not read");
        })
    }

    /// Writes the region: exactly a register (in rfc2018 also a whole sub-structure), or
    /// anything inside the data section while the device is loaded. Only a write of the
    /// state can be [`Moved::Pending`].
    ///
    /// # Errors
    ///
    /// `EINVAL` for anything else, for what is only read, and for a state that cannot be
    /// written in the present one; `EBUSY` while an earlier write of the state is being
    /// carried out; else what the model says. Where a write of the state fails, the
    /// device is where it was or in another valid state, or in error; v1 can be read.
    pub fn write(
        &mut self,
        runner: &mut Runner,
        offset: u64,
        data: &[u8],
        now: Instant,
    ) -> Result<Moved, Errno> {
        self.follow(runner);
        if self.section.holds(offset, data.len()) {
            if runner.state() != State::Resuming {
                return Err(Errno::EINVAL);
            }
            return self.section.write(offset, data).map(|()| Moved::Done(None));
        }
        let busy = self.owed.is_some() || runner.pending().is_some();
        let Front { registers, section, transfer, .. } = self;
        let mut reach = Reach { runner, section, transfer };
        let written = match registers {
            Registers::V1(v1) => v1.write(&mut reach, offset, data, busy),
            Registers::Rfc2018(rfc) => rfc.write(&mut reach, offset, data, busy),
        };
        match written {
            Ok(None) => Ok(Moved::Done(None)),
            Ok(Some(act)) => self.act(runner, act, now),
            Err(errno) => {
                tracing::debug!(offset, len = data.len(), %errno, "register not written");
                self.follow(runner);
                Err(errno)
            }
        }
    }

    /// Carries a pending write of the state on, instead of [`Runner::settle`]. `Some`
    /// once, with the answer to that write.
    pub fn settle(
        &mut self,
        runner: &mut Runner,
        now: Instant,
    ) -> Option<Result<(), Errno>> {
        let outcome = runner.settle(now)?;
        if let Some(errno) = self.owed.take() {
            self.follow(runner);
            return Some(Err(errno));
        }
        match outcome {
            Ok(_) => {
                self.arrive(runner);
                Some(Ok(()))
            }
            Err(errno) => match self.retreat(runner, errno, now) {
                Ok(_) => None,
                Err(errno) => Some(Err(errno)),
            },
        }
    }

    /// The client went away, together with [`Runner::disconnect`]: what it waited for is
    /// owed to nobody, and the next one finds nothing in the section.
    pub fn disconnect(&mut self) {
        self.owed = None;
        self.transfer = Transfer::default();
        self.section.clear();
        if let Registers::Rfc2018(rfc) = &mut self.registers {
            rfc.disconnected();
        }
    }

    /// Does what a write of the state asks for.
    fn act(
        &mut self,
        runner: &mut Runner,
        act: Act,
        now: Instant,
    ) -> Result<Moved, Errno> {
        match act {
            Act::Nothing => {}
            Act::Reset => {
                runner.reset();
                self.resets = runner.resets();
            }
            Act::Enter(target) => match runner.set_state(target, now) {
                Ok(Moved::Done(_)) => {}
                Ok(Moved::Pending) => return Ok(Moved::Pending),
                Err(errno) => return self.retreat(runner, errno, now),
            },
        }
        self.arrive(runner);
        Ok(Moved::Done(None))
    }

    /// What was written came true.
    fn arrive(&mut self, runner: &mut Runner) {
        if self.resets != runner.resets() {
            return;
        }
        self.at = runner.state();
        match &mut self.registers {
            Registers::V1(v1) => v1.arrived(),
            Registers::Rfc2018(rfc) => rfc.arrived(runner),
        }
    }

    /// A write of the state failed with `errno`. What is left may be a state that has no
    /// name here: it is left again, before the answer.
    fn retreat(
        &mut self,
        runner: &mut Runner,
        errno: Errno,
        now: Instant,
    ) -> Result<Moved, Errno> {
        let back = match runner.state() {
            State::RunningP2p => State::Running,
            State::PreCopyP2p => State::PreCopy,
            _ => {
                self.follow(runner);
                return Err(errno);
            }
        };
        match runner.set_state(back, now) {
            Ok(Moved::Pending) => {
                self.owed = Some(errno);
                Ok(Moved::Pending)
            }
            Ok(Moved::Done(_)) | Err(_) => {
                self.follow(runner);
                Err(errno)
            }
        }
    }

    /// Makes the registers say where the device is, where that changed by anything but a
    /// write of the state: a reset, a failure, a client that went away meanwhile.
    fn follow(&mut self, runner: &mut Runner) {
        let reset = self.resets != runner.resets();
        self.resets = runner.resets();
        if reset {
            self.owed = None;
        }
        if runner.pending().is_some() {
            return;
        }
        // v1 has a name for what only a reset leaves. In rfc2018 FAILED is how a load is
        // given up, from where it was.
        let lost = runner.load_is_lost() && self.generation() == Generation::V1;
        if lost || matches!(runner.state(), State::RunningP2p | State::PreCopyP2p) {
            tracing::error!(state = %runner.state(), "only a reset leads on: ERROR");
            runner.fail();
        }
        if !reset && self.at == runner.state() {
            return;
        }
        self.at = runner.state();
        match &mut self.registers {
            Registers::V1(v1) => v1.found(runner.state()),
            Registers::Rfc2018(rfc) => rfc.found(runner.state(), reset),
        }
    }
}

/// What a write of the state means by the `rules` of its generation; nothing is judged
/// while an earlier one is being carried out.
fn asked<Meaning, Refusal: fmt::Display>(
    data: &[u8],
    busy: bool,
    rules: impl FnOnce(u32) -> Result<Meaning, Refusal>,
) -> Result<Meaning, Errno> {
    let number = u32::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
    if busy {
        return Err(Errno::EBUSY);
    }
    rules(number).map_err(|refusal| {
        tracing::debug!(%refusal, "device_state refused");
        Errno::EINVAL
    })
}

/// The eight bytes of a register.
fn word(data: &[u8]) -> Result<u64, Errno> {
    Ok(u64::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?))
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Generation::V1 => "v1",
            Generation::Rfc2018 => "rfc2018",
        })
    }
}

impl fmt::Display for DataSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DataSection::Trapped => "trapped",
            DataSection::Mapped => "mapped",
            DataSection::Split => "split",
        })
    }
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("generation", &self.generation())
            .field("region", &self.region)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

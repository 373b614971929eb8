//! One PCI function, as a VMM shows it to its guest, and all that has to move with it.
//!
//! A device's own data holds none of this (document 004): without it a migrated device
//! decodes nothing and raises nothing. So the VMM keeps what its guest wrote of config
//! space, of the MSI-X table and of masks, knows which interrupts wait, and carries that.
//!
//! ```text
//!   guest                       Function                        device
//!   config_read/write  -->  [shadow] command, BARs, MSI  -->  config region
//!   bar_read/write     -->  [vectors] MSI-X table, PBA        (masks are not the
//!                           everything else of a BAR     -->   device's business)
//!   take, line         <--  [vectors, intx] due, pending <--  eventfds
//!
//!   save   (vCPUs stopped)      registers, table, masks, pending bits, accounts
//!   drain  (device stopped)     signals since then, as they came
//!   load   ConfigStage::Resuming   decoding, bus mastering and messages off
//!                                  BARs and ROM, read back; values; messages; command
//!          bind                    eventfds, the line masked while it is up
//!          ConfigStage::Power      the power state, without its wake-up bit
//!          deliver                 what was drained, sorted by the masks that were loaded
//! ```
//!
//! What is never written: a status register (cleared by writing one), a reset of the
//! function, and anything whose meaning is not known; the rule and the list are in
//! `registers`. Every write has the width of its register.
//!
//! What a guest made of a function ends with a reset of it, and when it wakes up from D3hot
//! where that is a reset: then all is as the device says (`reset`). What would not arrive
//! on another host is not shown to a guest, or cannot be written (`shadow`).
//!
//! Nothing is lost between the two halves of saving: masks do not change while the vCPUs
//! are stopped, and a device that is stopped raises nothing, so that what was signalled
//! until then is in the eventfds when they are drained, and nothing comes later. Nobody
//! may ask [`Function::take`] or [`Function::line`] between the two, nor read pending
//! bits: who hears of an interrupt then hears of it here, and not on the other side.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use vfio_migrate_control as control;
//! # fn show(transport: Arc<dyn control::Transport>) -> Result<(), Box<dyn std::error::Error>> {
//! let function = control::pci::Function::open(transport)?.ok_or("not on PCI")?;
//! // What the guest hears, from now on.
//! function.interrupts().bind()?;
//! function.on_bars(Box::new(|bars| println!("map {bars:?}")));
//! // The guest turns decoding and bus mastering on, and asks for its interrupts.
//! function.config_write(4, &6_u16.to_le_bytes())?;
//! function.take(&mut |vector, message, count| {
//!     println!("{count} of vector {vector}: {:#x} to {:#x}", message.data, message.address);
//! })?;
//! # Ok(()) }
//! ```

mod access;
mod carry;
mod interrupts;
mod intx;
mod registers;
mod reset;
mod saved;
mod seen;
mod shadow;
mod signals;
mod state;
mod unfit;
mod vectors;
mod view;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::device_info::DeviceFlags;
use abi::pci::capability::{CapabilityId, advanced_features, pcie};
use port::{ConfigSpace, Interrupts, PciIds, PciLayout};

use crate::probe::{ProbeError, failed};
use crate::transport::Transport;
use carry::Carried;
use interrupts::Routed;
pub(crate) use seen::{Seen, broken};
use state::State;
pub use unfit::{FunctionError, Unfit};
pub use view::{BarPlace, InterruptMode, Message, VectorCounts};

/// One PCI function as a VMM shows it to its guest.
///
/// Clones are the same function. Any number of threads may use it: vCPUs access it while
/// the engine saves it.
#[derive(Clone)]
pub struct Function {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<dyn Transport>,
    ids: PciIds,
    layout: PciLayout,
    fixed: Fixed,
    state: Mutex<State>,
    /// Never taken while `state` is.
    hook: Mutex<Hook>,
}

/// What else of a function never changes.
#[derive(Clone, Copy, Debug)]
struct Fixed {
    /// Bytes of config space that the device has.
    readable: usize,
    /// PCI Express has a second control register.
    pcie_control_2: bool,
    /// It can be reset by PCI Express, or by its advanced features.
    resets: (bool, bool),
}

/// What hears where the BARs are.
pub type BarHook = Box<dyn Fn(&[BarPlace]) + Send + Sync>;

struct Hook {
    heard: BarHook,
    last: Vec<BarPlace>,
}

impl Function {
    /// The function behind a transport; `None` for a device that is not on PCI. Changes
    /// nothing on the device: nothing is heard of it before
    /// [`Interrupts::bind`].
    ///
    /// # Errors
    /// When the device does not answer, or its config space makes no sense.
    pub fn open(transport: Arc<dyn Transport>) -> Result<Option<Function>, ProbeError> {
        let info = transport.device_info().map_err(failed(&*transport, "what it is"))?;
        if !DeviceFlags::from_bits_retain(info.flags).contains(DeviceFlags::PCI) {
            return Ok(None);
        }
        let seen = Seen::of(&*transport).map_err(|unfit| broken(&*transport, unfit))?;
        let fixed = Fixed::of(&seen);
        let state = State::new(&seen);
        let last = state.places(&seen.layout);
        let hook = Hook { heard: Box::new(|_| {}), last };
        let Seen { ids, layout, .. } = seen;
        Ok(Some(Function {
            inner: Arc::new(Inner {
                transport,
                ids,
                layout,
                fixed,
                state: Mutex::new(state),
                hook: Mutex::new(hook),
            }),
        }))
    }

    /// What people call the device.
    pub fn name(&self) -> &str {
        self.inner.transport.name()
    }

    /// Who it is.
    pub fn ids(&self) -> PciIds {
        self.inner.ids
    }

    /// Where everything in it lies: what must be the same on two hosts.
    pub fn layout(&self) -> &PciLayout {
        &self.inner.layout
    }

    /// Where its BARs and its ROM are now.
    pub fn bars(&self) -> Vec<BarPlace> {
        self.inner.state().places(&self.inner.layout)
    }

    /// Has `hook` hear of every change of a BAR's address or decoding, whoever made it: the
    /// guest, a load, a reset. It hears all BARs, in the thread that made the change and
    /// after it; it must not access the function's config space itself.
    pub fn on_bars(&self, hook: BarHook) {
        self.inner.hook().heard = hook;
    }

    /// By what the guest is told of something, as it chose.
    pub fn mode(&self) -> InterruptMode {
        self.inner.state().mode(&self.inner.layout)
    }

    /// Hands over everything that may be delivered now: of vectors that are not masked,
    /// with exact counts. Nothing while the function has its line in use.
    ///
    /// # Errors
    /// When an eventfd cannot be read; nothing is lost then.
    pub fn take(
        &self,
        deliver: &mut dyn FnMut(u32, Message, u64),
    ) -> Result<(), FunctionError> {
        let taken = self.inner.state().take(&self.inner.layout);
        let taken = taken.map_err(|source| self.event(source))?;
        // Whoever is told may access the function.
        taken
            .into_iter()
            .for_each(|(vector, message, count)| deliver(vector, message, count));
        Ok(())
    }

    /// Whether the line is up, as the guest's interrupt controller sees it: from when the
    /// device spoke until [`Function::end_of_interrupt`]. Always down while messages are
    /// on, or while the guest has turned the line off.
    ///
    /// # Errors
    /// When an eventfd cannot be read.
    pub fn line(&self) -> Result<bool, FunctionError> {
        let up = self.inner.state().line(&self.inner.layout);
        up.map_err(|source| self.event(source))
    }

    /// The guest's interrupt controller says that the interrupt of the line is over: it
    /// falls, and the device is let through; one that still wants raises it again. Nothing
    /// happens while it is down.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn end_of_interrupt(&self) -> Result<(), FunctionError> {
        self.inner
            .end_of_interrupt()
            .map_err(|unfit| self.error("end an interrupt", unfit))
    }

    /// The account of each vector, of MSI, MSI-X and the line together. Takes nothing away,
    /// and is exact while the device and the vCPUs are stopped.
    ///
    /// # Errors
    /// When an eventfd cannot be read.
    pub fn counts(&self) -> Result<Vec<VectorCounts>, FunctionError> {
        let counts = self.inner.state().counts(&self.inner.layout);
        counts.map_err(|source| self.event(source))
    }

    /// The device was reset: what the guest had made of it is gone, and it is as the device
    /// says. Interrupts that waited are gone too, and the accounts start from 0.
    ///
    /// # Errors
    /// When the device does not answer, or is another one.
    pub fn reset(&self) -> Result<(), FunctionError> {
        let done = self.inner.reset().map_err(|unfit| self.error("reset", unfit));
        self.inner.notify();
        done
    }

    /// What the engine saves and loads. Belongs together with [`Function::interrupts`]:
    /// each carries a part of what waits.
    pub fn config_space(&self) -> Box<dyn ConfigSpace> {
        Box::new(Carried::new(self.clone()))
    }

    /// What the engine binds, drains and delivers.
    pub fn interrupts(&self) -> Box<dyn Interrupts> {
        Box::new(Routed::new(self.clone()))
    }

    fn error(&self, operation: &'static str, source: Unfit) -> FunctionError {
        FunctionError { function: self.name().to_owned(), operation, source }
    }

    fn event(&self, source: std::io::Error) -> FunctionError {
        self.error("hear of interrupts", Unfit::Event(source))
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name())
            .field("ids", &self.inner.ids)
            .finish_non_exhaustive()
    }
}

impl Fixed {
    fn of(seen: &Seen) -> Fixed {
        let pcie = seen.capability(CapabilityId::PCI_EXPRESS);
        let by_pcie = pcie.is_some_and(|at| {
            let capabilities = seen.u32(at + pcie::DEVICE_CAPABILITIES);
            capabilities & pcie::DEVICE_CAPABILITIES_FLR != 0
        });
        let advanced = seen.capability(CapabilityId::ADVANCED_FEATURES);
        let by_features = advanced.is_some_and(|at| {
            let capabilities = seen.u8(at + advanced_features::CAPABILITIES);
            capabilities & advanced_features::CAPABILITIES_FLR != 0
        });
        Fixed {
            readable: seen.readable,
            pcie_control_2: pcie.is_some_and(|at| seen.has_pcie_control_2(at)),
            resets: (by_pcie, by_features),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self) -> MutexGuard<'_, Hook> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the hook where the BARs are, if that changed. The lock makes the last to tell
    /// the one that tells what is.
    fn notify(&self) {
        let mut hook = self.hook();
        let now = self.state().places(&self.layout);
        if now != hook.last {
            hook.last.clone_from(&now);
            (hook.heard)(&now);
        }
    }
}

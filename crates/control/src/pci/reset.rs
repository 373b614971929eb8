//! Resets, and sleep: after the one, and in places after the other, nothing is left of what
//! a guest made of a function.
//!
//! ```text
//!   the guest resets it, by PCI Express or its advanced features  --+
//!   it wakes up from D3hot, and does not say No_Soft_Reset        --+--> as the device says,
//!   the VMM resets the device, and says so                        --+    messages off
//! ```
//!
//! A driver knows that all three clear config space, and writes it again where it reads
//! something else than before: what it reads must be what the device has. A host may put
//! back what was cleared (vfio-pci does, in all three); then that is what is there. Only
//! the messages are off in any case: their table is the VMM's, and is as after a reset.

use abi::pci::capability::{CapabilityId, advanced_features, pcie, pm};

use super::Inner;
use super::access::overlaps;
use super::seen::{Seen, capability_of};
use super::state::State;
use super::unfit::Unfit;

/// What became of the power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    AsBefore,
    Changed,
}

impl Inner {
    /// Whether a guest's write of config space resets the function.
    pub(super) fn resets(&self, at: u16, from: &[u8]) -> bool {
        let wrote = |register: u16, bit: u8| {
            let byte = register.checked_sub(at).and_then(|n| from.get(usize::from(n)));
            byte.is_some_and(|byte| byte & bit != 0)
        };
        let find = |id| capability_of(&self.layout, id);
        let (by_pcie, by_features) = self.fixed.resets;
        let pcie = find(CapabilityId::PCI_EXPRESS).filter(|_| by_pcie);
        let features = find(CapabilityId::ADVANCED_FEATURES).filter(|_| by_features);
        let flr = (pcie::DEVICE_CONTROL_FLR >> 8) as u8;
        pcie.is_some_and(|start| wrote(start + pcie::DEVICE_CONTROL + 1, flr))
            || features.is_some_and(|start| {
                use advanced_features::{CONTROL, CONTROL_FLR};
                wrote(start + CONTROL, CONTROL_FLR)
            })
    }

    pub(super) fn reset(&self) -> Result<(), Unfit> {
        let mut state = self.state();
        self.renew(&mut state)
    }

    /// Takes over what a device that was reset says.
    pub(super) fn renew(&self, state: &mut State) -> Result<(), Unfit> {
        // Before it is looked at: vfio-pci shows MSI-X as on while it is bound.
        self.disconnect(state)?;
        let seen = Seen::of(&*self.transport)?;
        if (seen.ids, &seen.layout) != (self.ids, &self.layout) {
            return Err(Unfit::Changed);
        }
        self.messages_off()?;
        state.renew(&seen).map_err(Unfit::Event)?;
        state.shadow.messages_off(&self.layout);
        self.connect(state)
    }

    /// The guest accessed the power state, if that lies there: the device says what it is
    /// in.
    pub(super) fn follow_power(
        &self,
        state: &mut State,
        at: u16,
        length: usize,
    ) -> Result<Slept, Unfit> {
        let power = capability_of(&self.layout, CapabilityId::POWER_MANAGEMENT);
        if !power.is_some_and(|power| overlaps(at, length, power + pm::CONTROL, 2)) {
            return Ok(Slept::AsBefore);
        }
        let before = state.power;
        let control = self.ask_power(state)?;
        let awake = before == pm::CONTROL_D3_HOT && state.power == 0;
        if awake && control & pm::CONTROL_NO_SOFT_RESET == 0 {
            // Until that is done, it is to be done by whoever looks next.
            self.renew(state).inspect_err(|_| state.power = before)?;
        }
        Ok(if state.power == before { Slept::AsBefore } else { Slept::Changed })
    }

    /// Asks the device whether it sleeps. What its control register holds.
    pub(super) fn ask_power(&self, state: &mut State) -> Result<u16, Unfit> {
        let power = capability_of(&self.layout, CapabilityId::POWER_MANAGEMENT);
        let Some(at) = power else { return Ok(0) };
        let mut control = [0; 2];
        self.config_from_device(at + pm::CONTROL, &mut control)?;
        let control = u16::from_le_bytes(control);
        state.power = control & pm::CONTROL_STATE_MASK;
        Ok(control)
    }
}

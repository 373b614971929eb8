//! The guest's interrupt controller.
//!
//! ```text
//!   Function --- (address, data), count ---> [ routes ] ---> handled, by device, vector
//!            --- the line is up -----------> a vCPU ---> end of interrupt: acknowledged
//! ```
//!
//! Which message is which vector of which device is what the drivers programmed, here and
//! in the devices; a message that nobody programmed is a fault. A line is a level, and goes
//! down when its end of interrupt is said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control::pci::{Function, FunctionError, Message};
use serde::{Deserialize, Serialize};

use super::faults::Faults;

/// The most vectors that the guest uses of a device.
pub(super) const VECTORS: usize = 3;
/// A batch of the ring is there. Of a device with one interrupt for all, that is it.
pub(super) const RING: usize = 0;
/// A command is over.
pub(super) const COMMAND: usize = 1;
/// A batch of peer writes has arrived.
pub(super) const PEER: usize = 2;

/// Where messages go on a machine of this kind.
const MESSAGES: u64 = 0xfee0_0000;
/// The data of the first message.
const DATA: u32 = 0x4000;
/// Numbers for each device: the lowest bits of the data are the device's to set.
const EACH: u32 = 4;

/// The interrupt controller.
pub(super) struct Controller {
    state: Mutex<State>,
    /// Whether vCPUs take interrupts.
    enabled: AtomicBool,
}

/// What it knows, as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    routes: Vec<Route>,
    devices: Vec<Heard>,
}

/// What a message means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    address: u64,
    data: u32,
    device: usize,
    vector: usize,
}

/// What was heard of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Heard {
    /// Messages, by vector.
    pub(super) handled: [u64; VECTORS],
    /// Ends of interrupts of its line.
    pub(super) acknowledged: u64,
}

impl State {
    /// Whether it could be that of a machine with so many devices. Counters that are about
    /// to overflow were never reached by counting.
    fn fits(&self, devices: usize) -> bool {
        let route = |route: &Route| route.device < devices && route.vector < VECTORS;
        let most = u64::MAX / 4;
        self.devices.len() == devices
            && self.routes.len() <= devices * VECTORS
            && self.routes.iter().all(route)
            && self.devices.iter().all(|heard| {
                heard.acknowledged <= most && heard.handled.iter().all(|n| *n <= most)
            })
    }
}

impl Controller {
    /// Knows no message, and heard nothing of so many devices.
    pub(super) fn new(devices: usize) -> Controller {
        let state =
            State { routes: Vec::new(), devices: vec![Heard::default(); devices] };
        Controller { state: Mutex::new(state), enabled: AtomicBool::new(true) }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver programs the first `vectors` messages of a device, for one vCPU. The first
    /// of them; each of the others has data that is 1 higher.
    pub(super) fn program(&self, device: usize, vectors: usize, vcpu: u32) -> Message {
        let address = MESSAGES | u64::from(vcpu) << 12;
        let data = DATA + device as u32 * EACH;
        let mut state = self.locked();
        state.routes.retain(|route| route.device != device);
        state.routes.extend((0..vectors).map(|vector| Route {
            address,
            data: data + vector as u32,
            device,
            vector,
        }));
        Message { address, data }
    }

    /// A vCPU takes the messages of a device that came: how many, by vector.
    pub(super) fn take(
        &self,
        device: usize,
        function: &Function,
        faults: &Faults,
    ) -> Result<[u64; VECTORS], FunctionError> {
        let mut came = BTreeMap::new();
        let taken = function.take(&mut |_, message, count| {
            // A count from another host may be anything; it only has to stay one.
            let sum: &mut u64 = came.entry((message.address, message.data)).or_default();
            *sum = sum.saturating_add(count);
        });
        let mut vectors = [0; VECTORS];
        for ((address, data), count) in came {
            let mut state = self.locked();
            let found = state
                .routes
                .iter()
                .find(|route| (route.address, route.data) == (address, data))
                .map(|route| (route.device, route.vector));
            match found {
                Some((to, vector)) if to == device => {
                    let handled = &mut state.devices[device].handled[vector];
                    *handled = handled.saturating_add(count);
                    vectors[vector] = count.saturating_add(vectors[vector]);
                }
                _ => faults.add(|| {
                    let name = function.name();
                    format!(
                        "{name}: {count} messages {data:#x} to {address:#x}, which it \
                         was not given"
                    )
                }),
            }
        }
        taken.map(|()| vectors)
    }

    /// A vCPU is done with the interrupt of a line.
    pub(super) fn end(
        &self,
        device: usize,
        function: &Function,
    ) -> Result<(), FunctionError> {
        {
            let acknowledged = &mut self.locked().devices[device].acknowledged;
            *acknowledged = acknowledged.saturating_add(1);
        }
        function.end_of_interrupt()
    }

    /// A vCPU asked a device what its line was up for: one of each of these vectors, by
    /// its bit.
    pub(super) fn handled_by_line(&self, device: usize, bits: u64) {
        let handled = &mut self.locked().devices[device].handled;
        let bit = |vector: usize| bits >> vector & 1;
        for (vector, handled) in handled.iter_mut().enumerate() {
            *handled = handled.saturating_add(bit(vector));
        }
    }

    /// Whether vCPUs take interrupts.
    pub(super) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Whether vCPUs take interrupts from now on.
    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// What was heard of a device so far.
    pub(super) fn heard(&self, device: usize) -> Heard {
        self.locked().devices[device]
    }

    /// What it knows, to travel.
    pub(super) fn state(&self) -> State {
        self.locked().clone()
    }

    /// Takes over what another host's knew; whether that is one of a machine like this.
    pub(super) fn restore(&self, state: State) -> bool {
        let mut mine = self.locked();
        let fits = state.fits(mine.devices.len());
        if fits {
            *mine = state;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_devices_share_a_message() {
        let controller = Controller::new(16);
        for device in 0..16 {
            let first = controller.program(device, VECTORS, 1);
            assert_eq!(first.address, 0xfee0_1000);
            assert!(first.data.is_multiple_of(EACH) && VECTORS as u32 <= EACH);
        }
        // Once more is not twice.
        controller.program(3, VECTORS, 0);
        let state = controller.state();
        assert_eq!(state.routes.len(), 16 * VECTORS);
        let data: std::collections::BTreeSet<u32> =
            state.routes.iter().map(|route| route.data).collect();
        assert_eq!(data.len(), state.routes.len());
        assert!(Controller::new(16).restore(state));
    }

    #[test]
    fn what_another_host_says_is_believed() {
        let good = Controller::new(2);
        good.program(1, 2, 0);
        let good = good.state();
        let with = |change: fn(&mut State)| {
            let mut state = good.clone();
            change(&mut state);
            Controller::new(2).restore(state)
        };
        assert!(with(|_| {}));
        assert!(!with(|state| state.routes[0].device = 2));
        assert!(!with(|state| state.routes[0].vector = VECTORS));
        assert!(!with(|state| state.devices[1].handled[2] = u64::MAX));
        assert!(!with(|state| state.devices[0].acknowledged = u64::MAX));
        assert!(!with(|state| state.devices.truncate(1)));
        assert!(!with(|state| {
            let route = state.routes[0].clone();
            state.routes = vec![route; 7];
        }));
    }
}

//! What a command does with the machine that it took.

use anyhow::{Result, anyhow};
use engine::devices::{DeviceId, DeviceSet, SetError, check_p2p};
use engine::{Machine, Slot};

use super::Taken;

impl Taken<'_> {
    pub(super) fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().ok_or_else(|| anyhow!("the machine is gone"))
    }

    /// vCPUs first, then the devices through the peer-to-peer barrier.
    pub(super) fn stop(&mut self) -> Result<()> {
        let capabilities = self
            .machine()?
            .devices
            .iter()
            .map(|slot| slot.device.identity().capabilities);
        let capabilities: Vec<_> = capabilities.collect();
        // Before the guest is touched.
        check_p2p(capabilities, self.vm.p2p)?;
        let ran = !self.machine()?.vcpus.paused();
        self.machine()?.vcpus.pause()?;
        let stopped = self.devices(DeviceSet::pause);
        if stopped.is_err() && ran {
            self.machine()?.vcpus.resume()?;
        }
        stopped
    }

    /// Devices first, then the vCPUs.
    pub(super) fn start(&mut self) -> Result<()> {
        if !self.machine()?.vcpus.paused() {
            return Ok(());
        }
        self.devices(DeviceSet::start)?;
        Ok(self.machine()?.vcpus.resume()?)
    }

    /// Does something with all devices; after a failure they run again, or are named.
    fn devices(
        &mut self,
        each: impl FnOnce(&mut DeviceSet) -> Result<(), SetError>,
    ) -> Result<()> {
        let p2p = self.vm.p2p;
        let slots = std::mem::take(&mut self.machine()?.devices);
        let (mut devices, mut rest) = (Vec::new(), Vec::new());
        for Slot { device, config, interrupts } in slots {
            devices.push(device);
            rest.push((config, interrupts));
        }
        let mut set = match DeviceSet::new(devices, p2p) {
            Ok(set) => set,
            Err(error) => {
                // The set kept the devices; their transports are still here.
                let machine = self.vm.machine(&self.guest.lending());
                self.machine = machine.ok();
                return Err(error.into());
            }
        };
        let done = each(&mut set);
        let names = |ids: &[DeviceId]| {
            let all = &self.vm.board.devices;
            let names = ids.iter().filter_map(|id| all.get(id.0)).map(|d| d.name());
            names.collect::<Vec<_>>().join(", ")
        };
        let done = done.map_err(|error| {
            let back = set.rollback();
            let error = anyhow::Error::new(error);
            let all = &self.vm.board.devices;
            let away = back.reset.iter().chain(&back.lost);
            let away = away.filter_map(|id| all.get(id.0)).map(|device| device.name());
            self.guest.lost(away, &error.to_string());
            match (back.reset.as_slice(), back.lost.as_slice()) {
                ([], []) => error,
                (reset, lost) => error.context(format!(
                    "devices did not come back: reset [{}], lost [{}]",
                    names(reset),
                    names(lost)
                )),
            }
        });
        let devices = set.into_devices().into_iter().zip(rest);
        self.machine()?.devices = devices
            .map(|(device, (config, interrupts))| Slot { device, config, interrupts })
            .collect();
        done
    }
}

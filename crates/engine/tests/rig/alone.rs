//! Sides that have devices and no guest.

use port::{Vcpus, VmmError};
use states::v2::Capabilities;
use testkit::{FakeDevice, FakeVcpus, Side};
use vfio_migrate_engine::Machine;

use super::{CONTENTS, Rig, contents};

impl Rig {
    /// Devices without a guest that were in use.
    pub(crate) fn devices_in_use(side: &Side, capabilities: &[Capabilities]) -> Rig {
        let fakes = capabilities.iter().enumerate();
        let fakes = fakes
            .map(|(n, set)| FakeDevice::new(side, &format!("dev{n}"), *set, contents(n)));
        Rig::devices_only(side, fakes.collect(), FakeVcpus::running(side))
    }

    /// Devices without a guest that wait for what they will hold.
    pub(crate) fn devices_waiting(side: &Side, capabilities: &[Capabilities]) -> Rig {
        let fakes = capabilities.iter().enumerate();
        let fakes = fakes
            .map(|(n, set)| FakeDevice::blank(side, &format!("dev{n}"), *set, CONTENTS));
        Rig::devices_only(side, fakes.collect(), FakeVcpus::paused(side))
    }

    /// These devices without a guest. What a test sees of vCPUs and memory is not lent:
    /// the vCPUs follow the machine's, of which there are none.
    pub(crate) fn devices_only(
        side: &Side,
        fakes: Vec<FakeDevice>,
        vcpus: FakeVcpus,
    ) -> Rig {
        let mut rig = Rig::new(side, fakes, vcpus);
        let machine = rig.machine.take().expect("a machine");
        let devices: Vec<_> =
            machine.devices.into_iter().map(|slot| slot.device).collect();
        rig.tracked = 0;
        let alone = Machine::devices_only(devices, machine.vcpus.paused(), true);
        let vcpus = Box::new(Followed(alone.vcpus, machine.vcpus));
        rig.machine = Some(Machine { vcpus, ..alone });
        rig.sections.clear();
        rig.configs.clear();
        rig.interrupts.clear();
        rig
    }

    /// The first device changes between the first two rounds; then it may be stopped.
    pub(crate) fn busy_devices(&mut self) {
        let device = self.devices[0].clone();
        self.at_gate(move |look| {
            if look == 0 {
                device.work(5000, b"worked");
            }
            look > 0
        });
    }
}

/// The vCPUs of a machine, and fakes that show what became of them.
struct Followed(Box<dyn Vcpus>, Box<dyn Vcpus>);

impl Vcpus for Followed {
    fn pause(&mut self) -> Result<(), VmmError> {
        self.0.pause().and(self.1.pause())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.0.resume().and(self.1.resume())
    }

    fn paused(&self) -> bool {
        assert_eq!(self.0.paused(), self.1.paused());
        self.0.paused()
    }
}

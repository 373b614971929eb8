//! Devices that the guest has no driver for.

use std::time::Instant;

use abi::errno::Errno;
use device::{
    Bus, Description, Identity, Migratable, PciIds, Region, Settle, StateArc, Work,
};
use states::v2::Capabilities;
use vfio_migrate_cli::guest::run;

use crate::rig::{Model, Rig};

/// A device with a config space, where it is on PCI, and nothing else.
pub(crate) struct Strange(pub(crate) Option<PciIds>);

impl Migratable for Strange {
    fn describe(&self) -> Description {
        let identity =
            Identity { pci: self.0, model: "strange".to_owned(), data_version: 1 };
        let config = Region { index: 7, size: 256, writable: true, windows: vec![] };
        Description {
            identity,
            capabilities: Capabilities::STOP_COPY,
            regions: self.0.map(|_| config).into_iter().collect(),
            irqs: vec![],
        }
    }

    fn read(&mut self, _: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let ids = self.0.ok_or(Errno::EINVAL)?;
        let space = [ids.vendor.to_le_bytes(), ids.device.to_le_bytes()].concat();
        let byte = |at: usize| space.get(at).copied().unwrap_or(0);
        (offset as usize..).zip(into).for_each(|(at, into)| *into = byte(at));
        Ok(())
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8], _: &mut dyn Bus) -> Result<(), Errno> {
        panic!("a device that no driver fits was written to");
    }

    fn reset(&mut self) {
        panic!("a device that no driver fits was reset");
    }

    fn enter(&mut self, _: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        panic!("a device that no driver fits was stopped");
    }

    fn save(&mut self, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::ENODEV)
    }

    fn stop_copy_bytes(&self) -> u64 {
        0
    }

    fn load(&mut self, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        Work::Idle
    }
}

#[test]
fn a_device_that_no_driver_fits_is_driven_as_something_else() {
    let ids = PciIds { device: 0x5678, ..models::uart::IDS };
    for (pci, says) in [(Some(ids), "PCI 4348:5678"), (None, "not on PCI")] {
        let rig = Rig::of(&[Model::Uart(1), Model::Strange(pci)]);
        let error = format!("{:#}", run(rig.source()).expect_err("no driver"));
        for says in [says, "source1.sock", "--model uart"] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}

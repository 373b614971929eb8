//! The device of the table: a toy that has every kind of interrupt, and a ROM.

use std::time::Instant;

use abi::errno::Errno;
use device::{
    Bus, Description, Digest, Irq, Migratable, PrecopyInfo, Region, Settle, StateArc,
    Token, Work,
};
use states::v2::Capabilities;

use super::support::Toy;

/// Write to region 0: raises vector `value & 0xff` of index `value >> 8`.
pub const RAISE: u64 = 0x800;

/// See the module.
pub struct Device(Toy);

impl Device {
    pub fn new() -> Device {
        Device(Toy::new(Capabilities::ALL))
    }
}

impl Migratable for Device {
    fn describe(&self) -> Description {
        let mut description = self.0.describe();
        let rom = Region { index: 6, size: 4096, writable: false, windows: Vec::new() };
        description.regions.push(rom);
        // INTx, MSI, MSI-X, ERR, REQ.
        let irqs = [(0, 1), (1, 4), (2, 40), (3, 1), (4, 1)];
        description.irqs = irqs.map(|(index, count)| Irq::new(index, count)).into();
        description
    }

    fn read(&mut self, region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        if region == 6 {
            into.fill(0x66);
            return Ok(());
        }
        self.0.read(region, at, into)
    }

    fn write(
        &mut self,
        region: u32,
        at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        if let (0, RAISE, &[vector, index, ..]) = (region, at, data) {
            let raised = bus.raise(index.into(), vector.into());
            return raised.map_err(|_| Errno::ENXIO);
        }
        self.0.write(region, at, data, bus)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        self.0.enter(arc, bus)
    }

    fn settled(&mut self, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        self.0.settled(bus)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        self.0.save(into)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        self.0.precopy_info()
    }

    fn stop_copy_bytes(&self) -> u64 {
        self.0.stop_copy_bytes()
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.0.load(data)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        self.0.loaded()
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        self.0.work(bus, now)
    }

    fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        self.0.dma_done(token, result, bus)
    }

    fn digest(&self) -> Option<Digest> {
        self.0.digest()
    }
}

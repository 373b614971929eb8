//! A function with everything: I/O, 32-bit and 64-bit BARs, a ROM, four capabilities and
//! two extended ones.

use std::sync::Arc;

use port::{ConfigStage, VmmError};

use crate::control::Function;
use crate::scripted::Scripted;

pub(crate) const PM: usize = 0x40;
pub(crate) const MSIX: usize = 0x50;
pub(crate) const PCIE: usize = 0x60;
pub(crate) const MSI: usize = 0xa0;
pub(crate) const AF: usize = 0xd0;
pub(crate) const AER: usize = 0x100;
pub(crate) const LTR: usize = 0x148;
/// The BAR with the table of MSI-X, and where its pending bits lie.
pub(crate) const TABLE: u8 = 2;
pub(crate) const PENDING: u64 = 0x800;

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A device as it is after a reset.
pub(crate) fn device() -> Arc<Scripted> {
    let transport = Scripted::new(7);
    {
        let script = &mut *transport.script();
        let (config, writable) = (&mut script.config, &mut script.writable);
        put(config, 6, &[0x10, 0]);
        put(config, 0x10, &[0x0c]);
        put(config, 0x1c, &[0x01]);
        put(config, 0x34, &[PM as u8]);
        put(config, 0x3d, &[1]);
        put(config, PM, &[0x01, MSIX as u8, 3, 0, 8, 0x80]);
        put(config, MSIX, &[0x11, PCIE as u8, 3, 0, TABLE, 0, 0, 0, TABLE, 8, 0, 0]);
        put(config, PCIE, &[0x10, MSI as u8, 2, 0, 0, 0, 0, 0x10]);
        put(config, PCIE + 0xa, &[0x0f, 0]);
        // 8 vectors, 64 bits, masks.
        put(config, MSI, &[0x05, AF as u8, 0x86, 0x01]);
        put(config, AF, &[0x13, 0, 6, 3, 0, 0]);
        put(config, AER, &[0x01, 0, 0x82, 0x14]);
        // Errors that only writing ones would clear.
        put(config, AER + 4, &[0xff; 4]);
        put(config, AER + 0x10, &[0xff; 4]);
        put(config, LTR, &[0x18, 0, 0x01, 0]);
        put(writable, 4, &[0x47, 0x05]);
        put(writable, 0x0c, &[0xff, 0xff]);
        put(writable, 0x10, &[0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff]);
        put(writable, 0x18, &[0, 0xf0, 0xff, 0xff]);
        put(writable, 0x1c, &[0xe0, 0xff, 0xff, 0xff]);
        put(writable, 0x30, &[1, 0xf8, 0xff, 0xff]);
        put(writable, 0x3c, &[0xff]);
        put(writable, PM + 4, &[0x03, 0x01]);
        put(writable, MSIX + 2, &[0, 0xc0]);
        put(writable, PCIE + 8, &[0xff, 0x7f]);
        put(writable, PCIE + 0x28, &[0xff, 0xff]);
        put(writable, MSI + 2, &[0x71]);
        put(writable, MSI + 4, &[0xff; 8]);
        put(writable, MSI + 12, &[0xff; 2]);
        put(writable, MSI + 16, &[0xff]);
        put(writable, AER + 8, &[0xff; 8]);
        put(writable, AER + 0x14, &[0xff; 4]);
        put(writable, AER + 0x18, &[0x40, 0x01]);
        put(writable, LTR + 4, &[0xff, 0x1f, 0xff, 0x1f]);
        script.regions = [(0, 1 << 20), (2, 4096), (3, 32), (6, 2048), (7, 4096)].into();
        script.irqs = [(0, 1), (1, 8), (2, 4)].into();
    }
    transport
}

/// A device, and the function that a guest sees of it.
pub(crate) fn function() -> (Arc<Scripted>, Function) {
    let device = device();
    let function = Function::open(device.clone()).unwrap().unwrap();
    (device, function)
}

/// One that is heard.
pub(crate) fn connected() -> (Arc<Scripted>, Function) {
    let (device, function) = function();
    function.interrupts().bind().unwrap();
    (device, function)
}

pub(crate) trait Access {
    fn set_u8(&self, at: usize, value: u8);
    fn set_u16(&self, at: usize, value: u16);
    fn set_u32(&self, at: usize, value: u32);
    fn u16(&self, at: usize) -> u16;
    fn u32(&self, at: usize) -> u32;
    /// Vector `n` of MSI-X: its message, and whether it is masked.
    fn set_vector(&self, n: u64, masked: bool);
    fn mask_vector(&self, n: u64, masked: bool);
    /// What is delivered now: vector, data, count.
    fn taken(&self) -> Vec<(u32, u32, u64)>;
}

impl Access for Function {
    fn set_u8(&self, at: usize, value: u8) {
        self.config_write(at as u16, &[value]).unwrap();
    }

    fn set_u16(&self, at: usize, value: u16) {
        self.config_write(at as u16, &value.to_le_bytes()).unwrap();
    }

    fn set_u32(&self, at: usize, value: u32) {
        self.config_write(at as u16, &value.to_le_bytes()).unwrap();
    }

    fn u16(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.config_read(at as u16, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.config_read(at as u16, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set_vector(&self, n: u64, masked: bool) {
        let address = (0xfee0_0000_u64 + n).to_le_bytes();
        self.bar_write(TABLE, 16 * n, &address.map(|byte| byte & 0xfc)).unwrap();
        self.bar_write(TABLE, 16 * n + 8, &(0x40 + n as u32).to_le_bytes()).unwrap();
        self.mask_vector(n, masked);
    }

    fn mask_vector(&self, n: u64, masked: bool) {
        let control = u32::from(masked).to_le_bytes();
        self.bar_write(TABLE, 16 * n + 12, &control).unwrap();
    }

    fn taken(&self) -> Vec<(u32, u32, u64)> {
        let mut taken = Vec::new();
        self.take(&mut |vector, message, count| {
            taken.push((vector, message.data, count));
        })
        .unwrap();
        taken
    }
}

/// What a guest makes of a function: everything is written that it can write.
pub(crate) fn used() -> (Arc<Scripted>, Function) {
    let (device, function) = connected();
    {
        // Bits that writing ones would clear.
        let script = &mut *device.script();
        put(&mut script.config, 6, &[0x10, 0xf9]);
    }
    function.set_u32(0x10, 0xfe10_0000);
    function.set_u32(0x14, 3);
    function.set_u32(0x18, 0xfd20_4000);
    function.set_u32(0x1c, 0xc0e0);
    function.set_u32(0x30, 0xfd30_0001);
    function.set_u8(0x0c, 16);
    function.set_u8(0x0d, 32);
    function.set_u8(0x3c, 11);
    function.set_u16(4, 0x0547);
    function.set_u16(PCIE + 8, 0x512f);
    function.set_u16(PCIE + 0x28, 0x0005);
    function.set_u32(MSI + 4, 0xfee0_1000);
    function.set_u32(MSI + 8, 1);
    function.set_u16(MSI + 12, 0x40);
    function.set_u32(MSI + 16, 0xf0);
    function.set_u16(MSI + 2, 0x0030);
    for vector in 0..4 {
        function.set_vector(vector, vector == 3);
    }
    function.set_u16(MSIX + 2, 0x8000);
    function.set_u32(AER + 8, 0x0040_0000);
    function.set_u32(AER + 0x14, 0x2000);
    function.set_u32(AER + 0x18, 0x140);
    function.set_u16(LTR + 4, 0x1003);
    function.set_u16(PM + 4, 0x0100);
    (device, function)
}

pub(crate) fn save(function: &Function) -> Vec<u8> {
    function.config_space().save().unwrap()
}

pub(crate) fn load(
    function: &Function,
    saved: &[u8],
    stage: ConfigStage,
) -> Result<(), VmmError> {
    function.config_space().load(saved, stage)
}

/// A whole move, as the engine makes it: config while the device runs, interrupts when it
/// has stopped; then config, vectors, power and what was drained. The destination's
/// device runs at the end.
pub(crate) fn move_to(
    source: (&Arc<Scripted>, &Function),
    destination: (&Arc<Scripted>, &Function),
    between: impl FnOnce(),
) {
    use states::v2::State;
    let saved = save(source.1);
    between();
    source.0.script().state = State::StopCopy.number();
    let pending = source.1.interrupts().drain().unwrap();
    destination.0.script().state = State::Resuming.number();
    load(destination.1, &saved, ConfigStage::Resuming).unwrap();
    destination.1.interrupts().bind().unwrap();
    destination.0.script().state = State::Stop.number();
    load(destination.1, &saved, ConfigStage::Power).unwrap();
    destination.1.interrupts().deliver(&pending).unwrap();
    destination.0.script().start();
}

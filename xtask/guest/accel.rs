//! The accelerator, from inside, by QEMU's `vfio-user-pci`.
//!
//! ```text
//!   /init ---- sysfs: config, resource0, 2, 4 ----> QEMU ---- vfio-user ----> our server
//!     |                                               ^
//!     |--- /dev/mem: a reserved 16 MiB: DMA target ---'   and where messages go to
//!     '--- /dev/uio0: INTx as the kernel takes it
//! ```

use crate::report::Report;

mod device;
mod intx;
mod memory;
mod msi;
mod msix;
mod transfer;

use device::Device;
use memory::Memory;

/// Makes all checks.
pub(crate) fn run(report: &mut Report) {
    match Device::find().and_then(|device| Ok((device, Memory::open()?))) {
        Ok((device, memory)) => checks(report, &device, &memory),
        Err(error) => report.check("device", Err(error)),
    }
}

/// All that is checked, in order: what comes later relies on what came before.
fn checks(report: &mut Report, device: &Device, memory: &Memory) {
    report.check("config", device.check_identity());
    report.check("capabilities", device.check_capabilities());
    report.check("extended", device.check_extended());
    report.check("bars", device.check_bars());
    report.check("registers", device.check_registers());
    report.check("reset", device.check_fresh());
    report.check("memory", device.check_memory());
    report.check("dma-read", transfer::check_read(device, memory));
    report.check("dma-write", transfer::check_write(device, memory));
    report.check("dma-window", transfer::check_window(device, memory));
    report.check("dma-nowhere", transfer::check_nowhere(device));
    report.check("bus-master", transfer::check_bus_master(device, memory));
    report.check("ring", transfer::check_ring(device, memory));
    report.check("msix", msix::check_vectors(device, memory));
    report.check("msix-mask", msix::check_mask(device, memory));
    report.check("msix-all", msix::check_function_mask(device, memory));
    report.check("msi", msi::check_vectors(device, memory));
    report.check("msi-room", msi::check_room(device, memory));
    report.check("msi-mask", msi::check_mask(device, memory));
    report.check("intx", intx::check(device, memory));
    report.check("msix-again", msix::check_vectors(device, memory));
    report.check("msi-again", msi::check_vectors(device, memory));
}

//! The accelerator as the guest's kernel shows it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use abi::pci::config::{COMMAND, Command, INTERRUPT_PIN, STATUS};
use models::accel::registers as reg;
use models::accel::{AER, BAR0, BAR2, BAR4, IDS, LTR, MSI, MSIX, PCIE, PM, VECTORS};
use sys::SharedMemory;

use super::memory::Memory;
use crate::{Found, expect, said, wait_for};

/// What the test serves: `accel` as it is without options.
const MEMORY_BYTES: u64 = models::accel::MEMORY_MIN;
const WINDOW_BYTES: u64 = models::accel::MAPPED_WINDOW;

/// The device, with memory decoding on.
pub(crate) struct Device {
    path: PathBuf,
    config: File,
    bar0: SharedMemory,
    pub(crate) bar2: SharedMemory,
    pub(crate) bar4: SharedMemory,
}

impl Device {
    /// Looks for it by its ids, and lets it decode and do DMA.
    pub(crate) fn find() -> Result<Device, String> {
        let folder = "/sys/bus/pci/devices";
        let wanted = [IDS.vendor, IDS.device].map(|id| format!("{id:#06x}"));
        let mut seen = Vec::new();
        for entry in fs::read_dir(folder).map_err(said(folder))? {
            let path = entry.map_err(said(folder))?.path();
            let ids = [word(&path, "vendor")?, word(&path, "device")?];
            if ids == wanted {
                return Device::open(path);
            }
            seen.push(ids.join(":"));
        }
        Err(format!("no accelerator on the bus, only {}", seen.join(", ")))
    }

    fn open(path: PathBuf) -> Result<Device, String> {
        let file = |name: String| {
            let opened = OpenOptions::new().read(true).write(true).open(path.join(&name));
            opened.map_err(said(name))
        };
        let config = file("config".to_owned())?;
        let bar = |index: u32| {
            let name = format!("resource{index}");
            let file = file(name.clone())?;
            let bytes = file.metadata().map_err(said(&name))?.len();
            SharedMemory::from_fd(file.into(), 0, bytes, true)
                .map_err(said(format!("map {name}")))
        };
        let device = Device {
            bar0: bar(BAR0)?,
            bar2: bar(BAR2)?,
            bar4: bar(BAR4)?,
            path: path.clone(),
            config,
        };
        device.set_command(Command::MEMORY | Command::BUS_MASTER, Command::empty())?;
        Ok(device)
    }

    /// Its address on the bus, `0000:00:03.0`.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The kernel's number of its line.
    pub(crate) fn irq(&self) -> Result<String, String> {
        word(&self.path, "irq")
    }

    // Config space.

    pub(crate) fn config_u16(&self, at: u16) -> Result<u16, String> {
        let mut bytes = [0; 2];
        self.config
            .read_exact_at(&mut bytes, u64::from(at))
            .map_err(said(format!("read config at {at:#x}")))?;
        Ok(u16::from_le_bytes(bytes))
    }

    pub(crate) fn set_config_u16(&self, at: u16, value: u16) -> Result<(), String> {
        self.config
            .write_all_at(&value.to_le_bytes(), u64::from(at))
            .map_err(said(format!("write config at {at:#x}")))
    }

    pub(crate) fn command(&self) -> Result<Command, String> {
        Ok(Command::from_bits_retain(self.config_u16(COMMAND)?))
    }

    pub(crate) fn set_command(&self, on: Command, off: Command) -> Result<(), String> {
        let command = (self.command()? - off) | on;
        self.set_config_u16(COMMAND, command.bits())
    }

    pub(crate) fn status(&self) -> Result<u16, String> {
        self.config_u16(STATUS)
    }

    // Registers.

    pub(crate) fn register(&self, at: u64) -> Result<u64, String> {
        self.bar0.load_u64(at).map_err(said(format!("register {at:#x}")))
    }

    pub(crate) fn set_register(&self, at: u64, value: u64) -> Result<(), String> {
        self.bar0.store_u64(at, value).map_err(said(format!("register {at:#x}")))
    }

    /// Starts a copy and does not wait for it.
    pub(crate) fn start(&self, copy: Copy) -> Result<(), String> {
        self.set_register(reg::COMMAND_KIND, copy.kind)?;
        self.set_register(reg::COMMAND_IOVA, copy.iova)?;
        self.set_register(reg::COMMAND_OFFSET, copy.offset)?;
        self.set_register(reg::COMMAND_BYTES, copy.bytes as u64)?;
        self.set_register(reg::COMMAND_VECTOR, copy.vector)?;
        self.set_register(reg::COMMAND_DOORBELL, 1)
    }

    /// Waits until the copy is over, and says how it went.
    pub(crate) fn finish(&self) -> Result<u64, String> {
        wait_for("command", || Ok(self.register(reg::COMMAND_STATUS)? != reg::BUSY))?;
        self.register(reg::COMMAND_STATUS)
    }

    /// A copy from start to end.
    pub(crate) fn copy(&self, copy: Copy) -> Result<(), String> {
        self.start(copy)?;
        expect("status of the command", self.finish()?, reg::DONE)
    }

    /// Lets it raise a vector: a command that copies a little.
    pub(crate) fn interrupt(&self, memory: &Memory, vector: u64) -> Result<(), String> {
        let (iova, kind) = (memory.address(0), reg::COPY_TO_DEVICE);
        self.copy(Copy { kind, iova, offset: 8 << 20, bytes: 64, vector })
    }

    // What is checked of the device alone.

    pub(crate) fn check_identity(&self) -> Found {
        for (at, name, expected) in [
            (0x00, "vendor id", IDS.vendor),
            (0x02, "device id", IDS.device),
            (0x08, "revision", (IDS.class << 8) as u16 | u16::from(IDS.revision)),
            (0x0a, "class", (IDS.class >> 8) as u16),
            (0x2c, "subsystem vendor id", IDS.subsystem_vendor),
            (0x2e, "subsystem id", IDS.subsystem),
        ] {
            expect(name, self.config_u16(at)?, expected)?;
        }
        expect("header type", self.config_u16(0x0e)? & 0xff, 0)?;
        expect("interrupt pin", self.config_u16(INTERRUPT_PIN)? & 0xff, 1)?;
        let command = self.command()?;
        if !command.contains(Command::MEMORY | Command::BUS_MASTER) {
            return Err(format!("command {command:?} does not keep what was written"));
        }
        Ok(format!("{:04x}:{:04x} at {}", IDS.vendor, IDS.device, self.name()))
    }

    pub(crate) fn check_capabilities(&self) -> Found {
        expect("capability bit", self.status()? & 0x10, 0x10)?;
        let mut at = self.config_u16(0x34)? & 0xff;
        let mut found = Vec::new();
        while at != 0 && found.len() < 16 {
            let header = self.config_u16(at)?;
            found.push((header & 0xff, at));
            at = header >> 8;
        }
        for (id, place, name) in [
            (0x01, PM, "PM"),
            (0x11, MSIX, "MSI-X"),
            (0x10, PCIE, "PCIe"),
            (0x05, MSI, "MSI"),
        ] {
            if !found.contains(&(id, place as u16)) {
                return Err(format!("no {name} capability at {place:#x}: {found:x?}"));
            }
        }
        let msix = MSIX as u16;
        expect("MSI-X vectors", self.config_u16(msix + 2)? & 0x7ff, VECTORS as u16 - 1)?;
        expect("MSI-X table", self.config_u16(msix + 4)?, BAR4 as u16)?;
        expect("MSI-X pending bits", self.config_u16(msix + 8)?, 0x800 | BAR4 as u16)?;
        // Off, for 8 vectors, with addresses of 64 bits and masks.
        expect("MSI control", self.config_u16(MSI as u16 + 2)?, 0x0186)?;
        Ok(found
            .iter()
            .map(|(id, at)| format!("{id:#x}@{at:#x}"))
            .collect::<Vec<_>>()
            .join(" "))
    }

    /// Error and latency reporting: what is written stays, an error bit that is not set
    /// cannot be made.
    pub(crate) fn check_extended(&self) -> Found {
        let (aer, ltr) = (AER as u16, LTR as u16);
        expect("id of AER", self.config_u16(aer)?, 0x0001)?;
        expect("id of LTR", self.config_u16(ltr)?, 0x0018)?;
        for value in [0x1003, 0] {
            self.set_config_u16(ltr + 4, value)?;
            expect("snoop latency", self.config_u16(ltr + 4)?, value)?;
        }
        self.set_config_u16(aer + 4, 0xffff)?;
        expect("uncorrectable errors", self.config_u16(aer + 4)?, 0)?;
        let mask = self.config_u16(aer + 20)?;
        self.set_config_u16(aer + 20, mask ^ 0x40)?;
        expect("mask of correctable errors", self.config_u16(aer + 20)?, mask ^ 0x40)?;
        self.set_config_u16(aer + 20, mask)?;
        Ok("AER and LTR".to_owned())
    }

    pub(crate) fn check_bars(&self) -> Found {
        for (name, bar, bytes) in [
            ("BAR0", &self.bar0, models::accel::REGISTER_BYTES),
            ("BAR2", &self.bar2, MEMORY_BYTES),
            ("BAR4", &self.bar4, 4096),
        ] {
            expect(name, bar.len(), bytes)?;
        }
        let resources = fs::read_to_string(self.path.join("resource"));
        let resources = resources.map_err(said("resource"))?;
        let first = |line: &str| line.split(' ').next().map(str::to_owned);
        let starts: Vec<_> = resources.lines().take(6).filter_map(first).collect();
        Ok(starts.join(" ").replace("0x00000000", "0x"))
    }

    pub(crate) fn check_registers(&self) -> Found {
        for (name, at, expected) in [
            ("ID", reg::ID, reg::ID_VALUE),
            ("MEMORY_BYTES", reg::MEMORY_BYTES, MEMORY_BYTES),
            ("WINDOW_BYTES", reg::WINDOW_BYTES, WINDOW_BYTES),
            ("VECTORS", reg::VECTORS, VECTORS),
        ] {
            expect(name, self.register(at)?, expected)?;
            // The same by halves.
            let half = |at| self.bar0.load_u32(at).map(u64::from).map_err(said(name));
            expect(name, half(at)? | half(at + 4)? << 32, expected)?;
        }
        let value = 0x0123_4567_89ab_cdef;
        self.set_register(reg::COMMAND_IOVA, value)?;
        expect("COMMAND_IOVA", self.register(reg::COMMAND_IOVA)?, value)?;
        self.bar0
            .store_u32(reg::COMMAND_IOVA + 4, 0x55aa)
            .map_err(said("COMMAND_IOVA"))?;
        expect("COMMAND_IOVA", self.register(reg::COMMAND_IOVA)?, 0x55aa_89ab_cdef)?;
        Ok("read whole and by halves, written back".to_owned())
    }

    /// The machine's reset reached the device: nothing of an earlier guest is left.
    pub(crate) fn check_fresh(&self) -> Found {
        expect("COMMAND_COUNT", self.register(reg::COMMAND_COUNT)?, 0)?;
        expect("sent by the ring", self.register(reg::RING + reg::SENT)?, 0)?;
        for at in PLACES {
            let found = self.bar2.load_u64(at).map_err(said("BAR2"))?;
            expect(format!("memory at {at:#x}"), found, 0)?;
        }
        Ok("counters and memory are 0".to_owned())
    }

    /// In the mapped window, over its end, and far behind.
    pub(crate) fn check_memory(&self) -> Found {
        let value = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for at in PLACES {
            self.bar2.store_u64(at, value(at)).map_err(said("BAR2"))?;
        }
        for at in PLACES {
            let found = self.bar2.load_u64(at).map_err(said("BAR2"))?;
            expect(format!("memory at {at:#x}"), found, value(at))?;
        }
        for base in [0x100, WINDOW_BYTES + 0x100] {
            let failed = |error| format!("BAR2 by parts at {base:#x}: {error}");
            self.bar2.store_u64(base, 0).map_err(failed)?;
            self.bar2.store_u32(base, 0x1111_1111).map_err(failed)?;
            self.bar2.store_u16(base + 4, 0x2222).map_err(failed)?;
            self.bar2.store_u8(base + 7, 0x33).map_err(failed)?;
            let found = self.bar2.load_u64(base).map_err(failed)?;
            expect(format!("parts at {base:#x}"), found, 0x3300_2222_1111_1111)?;
            let byte = self.bar2.load_u8(base + 5).map_err(failed)?;
            expect(format!("byte of {base:#x}"), byte, 0x22)?;
        }
        Ok(format!("{} places, and by 1, 2, 4 and 8 bytes", PLACES.len()))
    }
}

/// Places in BAR2, in bytes.
const PLACES: [u64; 7] = [
    0,
    8,
    WINDOW_BYTES - 8,
    WINDOW_BYTES,
    WINDOW_BYTES + 4096,
    MEMORY_BYTES / 2,
    MEMORY_BYTES - 8,
];

/// One command of the device.
#[derive(Clone, Copy)]
pub(crate) struct Copy {
    /// [`reg::COPY_TO_DEVICE`] or [`reg::COPY_TO_GUEST`].
    pub(crate) kind: u64,
    /// Guest-physical.
    pub(crate) iova: u64,
    /// In BAR2.
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
    pub(crate) vector: u64,
}

/// One of the small files of a device.
fn word(path: &Path, name: &str) -> Result<String, String> {
    let text = fs::read_to_string(path.join(name));
    Ok(text.map_err(said(path.join(name).display()))?.trim().to_owned())
}

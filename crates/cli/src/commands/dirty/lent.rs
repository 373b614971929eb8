//! What a device is given to write while nobody else drives it: memory, and where it is
//! our accelerator a start. All of it is taken back.

use std::sync::Arc;

use abi::device_info::DeviceFlags;
use abi::pci::{config, region_index};
use anyhow::{Context, Result};
use control::{DmaTarget, Transport, TransportError};
use dirty::IovaRange;
use models::accel::registers as reg;
use models::accel::{BAR0, IDS};
use sys::SharedMemory;

/// Bus Master Enable, of the PCI command register.
const BUS_MASTER: u16 = 0x0004;

/// Memory that a device can reach until it is taken back.
pub(super) struct Lent {
    transport: Arc<dyn Transport>,
    range: IovaRange,
    /// The device has it mapped; here it is only held.
    _memory: SharedMemory,
}

impl Lent {
    /// Lends the device fresh memory at `range`.
    pub(super) fn new(transport: Arc<dyn Transport>, range: IovaRange) -> Result<Lent> {
        let memory = SharedMemory::create("vfio-migrate-dirty", range.length())
            .context("cannot make memory to lend; lend less with --memory")?;
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        transport.dma_map(range, target).with_context(|| {
            format!(
                "cannot lend it the memory at {range}; lend another part with --memory \
                 and --iova, or none with --watch-only"
            )
        })?;
        Ok(Lent { transport, range, _memory: memory })
    }

    /// Takes it back.
    pub(super) fn give_back(self) -> Result<()> {
        self.transport
            .dma_unmap(self.range)
            .context("cannot take back the memory that was lent to it")
    }
}

/// The registers of the ring that are set, but for [`reg::CONTROL`].
const SET: [u64; 7] = [
    reg::IOVA,
    reg::SLOTS,
    reg::RATE,
    reg::VECTOR,
    reg::BATCH,
    reg::OWN_OFFSET,
    reg::OWN_SLOTS,
];

/// The ring of an accelerator, which writes block after block until it is stopped.
pub(super) struct Ring {
    transport: Arc<dyn Transport>,
    /// What [`SET`] held before.
    before: [u64; SET.len()],
    /// What the PCI command register held before.
    command: u16,
    arrived: u64,
    failed: u64,
}

/// What a ring has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrote {
    /// Blocks of 4096 bytes that arrived.
    pub(super) blocks: u64,
    /// Blocks that did not.
    pub(super) errors: u64,
}

/// Who makes a device write.
pub(super) enum Driven {
    /// This command.
    Here(Ring),
    /// Whoever programmed it before: its registers are left alone.
    Before,
    /// Nobody that is known of.
    Unknown,
}

impl Driven {
    /// Lets an accelerator write all of `range`, again and again, `rate` bytes a second,
    /// where nobody has programmed it to do anything.
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        range: IovaRange,
        rate: u64,
    ) -> Result<Driven> {
        let start = || -> Result<Driven, TransportError> {
            if rate == 0 || !is_accel(&**transport)? {
                return Ok(Driven::Unknown);
            }
            let register = |at| register(&**transport, at);
            // With bus mastering back on, anything of this would go on.
            let busy = register(reg::RING + reg::CONTROL)? & reg::RUN != 0
                || register(reg::PEER + reg::CONTROL)? & reg::RUN != 0
                || register(reg::COMMAND_STATUS)? == reg::BUSY;
            if busy {
                return Ok(Driven::Before);
            }
            let mut before = [0; SET.len()];
            for (place, at) in before.iter_mut().zip(SET) {
                *place = register(reg::RING + at)?;
            }
            let ring = Ring {
                transport: Arc::clone(transport),
                before,
                command: command(&**transport)?,
                arrived: register(reg::RING + reg::ACKNOWLEDGED)?,
                failed: register(reg::RING + reg::ERRORS)?,
            };
            // Nothing of its own memory is written, and no interrupt raised.
            let slots = range.length() / 4096;
            let values = [range.start(), slots, rate, 0, 0, 0, 0];
            let started = ring
                .put(values)
                .and_then(|()| ring.set_command(ring.command | BUS_MASTER))
                .and_then(|()| ring.set(reg::CONTROL, reg::RUN));
            match started {
                Ok(()) => Ok(Driven::Here(ring)),
                Err(error) => {
                    // The first error says more than one of putting it back would.
                    let _ = ring.put_back();
                    Err(error)
                }
            }
        };
        start().context("cannot start the accelerator; --rate 0 leaves it as it is")
    }
}

impl Ring {
    /// Stops it. What it had written is in the log when this returns.
    pub(super) fn stop(&self) -> Result<Wrote> {
        let stop = || -> Result<Wrote, TransportError> {
            self.set(reg::CONTROL, 0)?;
            let now = |at| register(&*self.transport, reg::RING + at);
            Ok(Wrote {
                blocks: now(reg::ACKNOWLEDGED)?.wrapping_sub(self.arrived),
                errors: now(reg::ERRORS)?.wrapping_sub(self.failed),
            })
        };
        stop().context("cannot stop the accelerator")
    }

    /// Its registers are as they were. Its counters have gone on.
    pub(super) fn put_back(&self) -> Result<(), TransportError> {
        self.set(reg::CONTROL, 0)?;
        self.put(self.before)?;
        self.set_command(self.command)
    }

    fn put(&self, values: [u64; SET.len()]) -> Result<(), TransportError> {
        SET.into_iter().zip(values).try_for_each(|(at, value)| self.set(at, value))
    }

    fn set(&self, at: u64, value: u64) -> Result<(), TransportError> {
        self.transport.region_write(BAR0, reg::RING + at, &value.to_le_bytes())
    }

    fn set_command(&self, value: u16) -> Result<(), TransportError> {
        let at = config::COMMAND.into();
        self.transport.region_write(region_index::CONFIG, at, &value.to_le_bytes())
    }
}

fn is_accel(transport: &dyn Transport) -> Result<bool, TransportError> {
    let flags = DeviceFlags::from_bits_retain(transport.device_info()?.flags);
    if !flags.contains(DeviceFlags::PCI) {
        return Ok(false);
    }
    let mut ids = [0; 4];
    transport.region_read(region_index::CONFIG, config::VENDOR_ID.into(), &mut ids)?;
    let [vendor, device] = [IDS.vendor.to_le_bytes(), IDS.device.to_le_bytes()];
    Ok(ids[..2] == vendor
        && ids[2..] == device
        && register(transport, reg::ID)? == reg::ID_VALUE)
}

fn command(transport: &dyn Transport) -> Result<u16, TransportError> {
    let mut word = [0; 2];
    transport.region_read(region_index::CONFIG, config::COMMAND.into(), &mut word)?;
    Ok(u16::from_le_bytes(word))
}

fn register(transport: &dyn Transport, at: u64) -> Result<u64, TransportError> {
    let mut bytes = [0; 8];
    transport.region_read(BAR0, at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

//! One PCI function as a VMM shows it to its guest: any access of the guest's, any record
//! of another host, and a device that does not always answer what it should.
//!
//! A real accelerator or serial card answers, and the input changes some of the answers,
//! refuses some of the calls, and says when the device interrupts. Whatever it was: no
//! call makes more than a bounded number of accesses, and what the device sent by a vector
//! is what was delivered, waits, or was absorbed while it was masked. Once the device is
//! honest, opened again and reset, what is saved of it is accepted by another one like it,
//! which then saves the same.

#![no_main]

use abi::errno::Errno;
use abi::feature::Feature;
use abi::pci::irq_index;
use abi::v2::DeviceState;
use control::pci::{Function, InterruptMode};
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, IrqAction, IrqForm, IrqInfo,
    MappedArea, RegionInfo, Transport, TransportError,
};
use device::{Migratable, Runner, Trigger};
use dirty::IovaRange;
use models::accel::{self, Accel, BarOrder, MSI, MSIX, Msi};
use models::uart::{self, Uart};
use port::ConfigStage;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use sys::EventFd;

/// The most steps of one input.
const STEPS: usize = 128;
/// The most accesses that one call may make: all registers written and read again, and
/// the lists of capabilities walked, which can have 96 entries.
const ACCESSES: usize = 1024;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let liar = Arc::new(Liar::new(*kind, data));
    let Ok(Some(function)) = Function::open(Arc::<Liar>::clone(&liar)) else { return };
    liar.lock().looked_at = false;
    let mut guest = Guest { liar, function, record: Vec::new(), exact: true };
    for _ in 0..STEPS {
        let Some(step) = guest.liar.lock().byte() else { break };
        guest.step(step);
        let accesses = std::mem::take(&mut guest.liar.lock().accesses);
        assert!(accesses <= ACCESSES, "{accesses} accesses for one call");
        // The accounts of one that was reset, or says so, began anew.
        guest.exact &= !std::mem::take(&mut guest.liar.lock().looked_at);
        guest.account();
    }
    guest.honest(*kind);
});

/// A guest, its VMM, and the host that it comes from.
struct Guest {
    liar: Arc<Liar>,
    function: Function,
    /// What was saved last.
    record: Vec<u8>,
    /// Whether the accounts are those of this device.
    exact: bool,
}

impl Guest {
    fn step(&mut self, step: u8) {
        let function = &self.function;
        let (high, mut word) = (step >> 4, [0; 4]);
        match step % 16 {
            0 | 1 => {
                let at = self.liar.lock().place();
                let value = self.liar.lock().value();
                let width = [1, 2, 4][usize::from(high % 3)];
                let _ = function.config_write(at, &value[..width]);
            }
            2 => {
                let at = self.liar.lock().place();
                let _ = function.config_read(at, &mut word[..1 << (high % 3)]);
            }
            3 => {
                let at = u64::from(self.liar.lock().place());
                let value = self.liar.lock().value();
                let _ = function.bar_write(high % 7, at, &value);
            }
            4 => {
                let at = u64::from(self.liar.lock().place());
                let _ = function.bar_read(high % 7, at, &mut word);
            }
            // What a driver does, since few inputs would come to it.
            5 => {
                let on = [0_u16, 0x8000, 0xc000][usize::from(high % 3)];
                let _ = function.config_write(MSIX as u16 + 2, &on.to_le_bytes());
            }
            6 => {
                let _ = function.config_write(MSI as u16 + 2, &[high << 4 | high >> 3]);
            }
            7 => {
                let at = 16 * u64::from(high % 8) + 12;
                let _ = function.bar_write(4, at, &[high >> 3, 0, 0, 0]);
            }
            8..=10 => self.liar.interrupts(high.into()),
            11 => {
                let _ = function.take(&mut |_, _, count| assert!(count > 0, "nothing"));
            }
            12 => {
                if let Ok(true) = function.line() {
                    assert_eq!(function.mode(), InterruptMode::Intx, "a line beside it");
                }
                if high & 1 == 1 {
                    let _ = function.end_of_interrupt();
                }
            }
            13 => {
                let mut interrupts = function.interrupts();
                let _ =
                    if high % 4 > 0 { interrupts.bind() } else { interrupts.unbind() };
            }
            14 => {
                let mut interrupts = function.interrupts();
                if let Ok(pending) = interrupts.drain() {
                    let _ = interrupts.deliver(&pending);
                }
            }
            _ => self.carried(high),
        }
    }

    /// Saved, changed, loaded, reset.
    fn carried(&mut self, how: u8) {
        let mut config = self.function.config_space();
        match how {
            0..=5 => {
                if let Ok(record) = config.save() {
                    self.record = record;
                }
            }
            6..=9 => {
                let mut inner = self.liar.lock();
                for _ in 0..=how % 3 {
                    let at = usize::from(inner.place()) % self.record.len().max(1);
                    let byte = inner.byte().unwrap_or(0);
                    if let Some(old) = self.record.get_mut(at) {
                        *old = byte;
                    }
                }
            }
            10 => {
                let len = usize::from(self.liar.lock().byte().unwrap_or(0));
                let rest = self.liar.lock().rest.clone();
                self.record = rest.into_iter().rev().take(len).collect();
            }
            11..=13 => {
                self.exact = false;
                let _ = config.load(&self.record, ConfigStage::Resuming);
            }
            14 => {
                let _ = config.load(&self.record, ConfigStage::Power);
            }
            _ => {
                self.exact = false;
                let _ = self.function.reset();
            }
        }
    }

    /// What was sent is what became of it. The line, which is vector 0, is merged.
    fn account(&self) {
        let counts = self.function.counts().expect("eventfds can be read");
        for (vector, counts) in counts.iter().enumerate().skip(1) {
            let became = (counts.delivered + counts.pending + counts.absorbed)
                .checked_sub(counts.windows);
            let sent = self.liar.lock().sent.get(&(vector as u32)).copied();
            assert!(
                !self.exact || became == Some(sent.unwrap_or(0)),
                "vector {vector}: {sent:?} sent, {counts:?}"
            );
        }
    }

    /// The device lies no more. What it said before of itself is believed once, so it is
    /// opened again.
    fn honest(self, kind: u8) {
        self.liar.lock().honest = true;
        self.liar.lock().rest = Vec::new();
        let open =
            |liar| Function::open(liar).expect("it is opened").expect("it is on PCI");
        let function = open(Arc::<Liar>::clone(&self.liar));
        // As the guest left it: what it can have made of a device can be carried.
        let record = function.config_space().save().expect("it is saved");
        let other = Arc::new(Liar::new(kind, &[]));
        other.lock().honest = true;
        let other = open(other);
        assert_eq!(function.layout(), other.layout());
        let mut config = other.config_space();
        config.load(&record, ConfigStage::Resuming).expect("it is loaded");
        config.load(&record, ConfigStage::Power).expect("it is woken or sleeps");
        assert_eq!(config.save().expect("it is saved again"), record);
    }
}

/// A device, and what it says instead of the truth.
struct Liar(Mutex<Inner>);

struct Inner {
    runner: Runner,
    /// What is left of the input, the next byte last.
    rest: Vec<u8>,
    honest: bool,
    accesses: usize,
    /// It was asked what it is, as after a reset.
    looked_at: bool,
    /// What is bound, by index and vector.
    bound: BTreeMap<(u32, u32), EventFd>,
    /// Messages by vector.
    sent: BTreeMap<u32, u64>,
}

impl Liar {
    fn new(kind: u8, data: &[u8]) -> Liar {
        let model: Box<dyn Migratable> = if kind & 1 == 1 {
            let parameters = uart::Parameters::default();
            Box::new(Uart::new(parameters).expect("two ports are possible"))
        } else {
            let msi = Msi { wide: kind & 4 != 0, masks: kind & 8 != 0 };
            let parameters = accel::Parameters {
                msi: (kind & 2 == 0).then_some(msi),
                vectors: if kind & 16 == 0 { 8 } else { 3 },
                bars: if kind & 32 == 0 {
                    BarOrder::RegistersFirst
                } else {
                    BarOrder::MemoryFirst
                },
                ..accel::Parameters::default()
            };
            Box::new(Accel::new(parameters).expect("these parameters are possible"))
        };
        let runner = Runner::new(model).expect("the models are valid");
        Liar(Mutex::new(Inner {
            runner,
            rest: data.iter().rev().copied().collect(),
            honest: false,
            accesses: 0,
            looked_at: false,
            bound: BTreeMap::new(),
            sent: BTreeMap::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no call panics")
    }

    /// The device tells of something by whatever is bound.
    fn interrupts(&self, vector: u32) {
        let inner = &mut *self.lock();
        for index in [irq_index::INTX, irq_index::MSI, irq_index::MSIX] {
            if let Some(event) = inner.bound.get(&(index, vector)) {
                event.fire();
                if index != irq_index::INTX {
                    *inner.sent.entry(vector).or_default() += 1;
                }
            }
        }
    }
}

impl Inner {
    fn byte(&mut self) -> Option<u8> {
        self.rest.pop()
    }

    /// A place in config space or in a BAR: in the header, among capabilities, or any.
    fn place(&mut self) -> u16 {
        match self.byte().unwrap_or(0) {
            near @ 0..=239 => near.into(),
            _ => u16::from_le_bytes([0; 2].map(|_: u8| self.byte().unwrap_or(0))) % 4100,
        }
    }

    fn value(&mut self) -> [u8; 4] {
        match self.byte().unwrap_or(0) {
            0..=63 => [0xff; 4],
            small @ 64..=191 => [small, small >> 4, 0, 0],
            _ => [0; 4].map(|_: u8| self.byte().unwrap_or(0)),
        }
    }

    /// Whether this access is answered with something else, or not at all.
    fn lies(&mut self) -> Result<bool, TransportError> {
        self.accesses += 1;
        match if self.honest { 0 } else { self.byte().unwrap_or(0) } {
            0..=219 => Ok(false),
            220..=247 => Ok(true),
            _ => Err(errno(Errno::EIO)),
        }
    }
}

fn errno(errno: Errno) -> TransportError {
    TransportError::Errno { operation: "fuzz", errno }
}

impl Transport for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        Ok(DeviceInfo { flags: 3, regions: 9, irqs: 5 })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        let inner = &mut *self.lock();
        inner.looked_at = true;
        let region = inner.runner.description().region(index);
        let mut size = region.map_or(0, |region| region.size);
        if inner.lies()? {
            size = [0, 1, 16, 255, 256, 1 << 20, u64::MAX, 1 << 63]
                [usize::from(inner.byte().unwrap_or(0) % 8)];
        }
        let (flags, areas, kind) = (3, Vec::new(), None);
        Ok(RegionInfo { index, flags, size, areas, kind })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, TransportError> {
        let inner = &mut *self.lock();
        let irq = inner.runner.description().irq(index).copied();
        let (mut flags, mut count) =
            irq.map_or((0, 0), |irq| (irq.flags.bits(), irq.count));
        if inner.lies()? {
            flags = inner.byte().unwrap_or(0).into();
            count = [0, 1, 2, 32, 33, 2048, 2049, u32::MAX]
                [usize::from(inner.byte().unwrap_or(0) % 8)];
        }
        Ok(IrqInfo { flags, count })
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        let lies = inner.lies()?;
        let read = inner.runner.read_region(index, offset, into).map_err(errno);
        if lies {
            let at = usize::from(inner.place());
            let value = inner.value();
            into.iter_mut().skip(at).zip(value).for_each(|(byte, other)| *byte = other);
            return Ok(());
        }
        read
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        if inner.lies()? {
            return Ok(());
        }
        inner.runner.write_region(index, offset, from).map_err(errno)
    }

    fn region_map(&self, _: u32, _: u64) -> Result<MappedArea, TransportError> {
        Err(errno(Errno::EINVAL))
    }

    fn feature_probe(&self, _: Feature) -> Result<(), TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn feature_get(
        &self,
        _: Feature,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<u8>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn feature_set(&self, _: Feature, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn set_migration_state(
        &self,
        _: DeviceState,
        _: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        vectors: &[&EventFd],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        if inner.lies()? {
            return Err(errno(Errno::EBUSY));
        }
        if vectors.is_empty() {
            inner.bound.retain(|(of, _), _| *of != index);
        }
        for (vector, event) in (start..).zip(vectors) {
            let fd = event.as_fd().try_clone_to_owned().expect("a descriptor");
            let event = EventFd::from_fd(fd).expect("an eventfd");
            inner.bound.insert((index, vector), event);
        }
        Ok(())
    }

    fn act_on_irqs(
        &self,
        index: u32,
        start: u32,
        action: IrqAction,
        form: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        match (action, form) {
            (IrqAction::Trigger, IrqForm::Events(events)) => {
                self.set_irqs(index, start, events)
            }
            _ if self.lock().lies()? => Err(errno(Errno::ENOTTY)),
            _ => Ok(()),
        }
    }

    fn dma_map(&self, _: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
        Ok(())
    }

    fn dma_unmap(&self, _: IovaRange) -> Result<(), TransportError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.lock().runner.reset();
        Ok(())
    }
}

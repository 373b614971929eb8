//! What a driver does on its bus, with a real device behind it.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::{Migratable, Runner};
use models::accel::registers as reg;
use models::accel::{self, BarOrder};
use models::uart;
use sys::socket::Listener;
use tempfile::TempDir;
use vfio_user::{Server, ServerOptions, Stop};

use super::*;
use crate::devices::DeviceUri;
use crate::guest::bus::NOBODY;
use crate::guest::controller::VECTORS;
use crate::guest::options::MachineOptions;
use crate::guest::vm::Vm;

/// A guest with one device, whose vCPUs never run.
struct Guest {
    vm: Option<Vm>,
    server: Option<(Stop, JoinHandle<()>)>,
    options: MachineOptions,
    _folder: TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.vm.take());
        if let Some((stop, thread)) = self.server.take() {
            stop.stop();
            thread.join().expect("a server that ends");
        }
    }
}

impl Guest {
    fn with(model: Box<dyn Migratable>) -> Guest {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("device.sock");
        let runner = Runner::new(model).expect("a device");
        let mut server = Server::new(runner, ServerOptions::default()).expect("a server");
        let listener = Listener::bind(&path).expect("a socket");
        let stop = Stop::new().expect("an eventfd");
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            server.serve(listener, &stopped).expect("a server that works");
        });
        let options = MachineOptions {
            memory: 4 << 20,
            devices: vec![DeviceUri::new(path)],
            vcpus: 1,
            dirty_rate: 0,
            dma_rate: 0,
            p2p: false,
            seed: 1,
        };
        let vm = Vm::build(&options, false, None).expect("a machine");
        Guest { vm: Some(vm), server: Some((stop, thread)), options, _folder: folder }
    }

    /// An accelerator that was booted.
    fn accel(parameters: accel::Parameters, kind: InterruptKind) -> Guest {
        let model = accel::Accel::new(parameters).expect("an accelerator");
        let guest = Guest::with(Box::new(model));
        guest.vm().boot(&guest.options, Some(kind)).expect("a guest that boots");
        guest
    }

    fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("until it is dropped")
    }

    fn board(&self) -> &Board {
        &self.vm().board
    }

    fn pci(&self) -> Pci {
        self.board().driver(0).expect("its driver").pci
    }

    fn register(&self, pci: &Pci, at: u64) -> u64 {
        let mut bytes = [0; 8];
        pci.reach(&self.board().bus).read(0, at, &mut bytes).expect("a register");
        u64::from_le_bytes(bytes)
    }

    fn set(&self, pci: &Pci, at: u64, value: u64) {
        let reach = pci.reach(&self.board().bus);
        reach.write(0, at, &value.to_le_bytes()).expect("a register");
    }

    /// The device raises vector 0 until it has sent `more` messages by it.
    fn sends(&self, pci: &Pci, more: u64) {
        let before = self.register(pci, reg::IRQ_SENT);
        for (register, value) in [
            (reg::SLOTS, 0),
            (reg::RATE, 64 << 20),
            (reg::BATCH, 1),
            (reg::CONTROL, reg::RUN),
        ] {
            self.set(pci, reg::RING + register, value);
        }
        let until = Instant::now() + Duration::from_secs(20);
        while self.register(pci, reg::IRQ_SENT) < before + more {
            assert!(Instant::now() < until, "the device sends nothing");
        }
        self.set(pci, reg::RING + reg::CONTROL, 0);
    }

    /// What the guest hears now, of vector 0.
    fn hears(&self, pci: &mut Pci) -> u64 {
        match pci.hear(self.board()).expect("a device") {
            Came::Nothing => 0,
            Came::Messages(counts) => {
                assert_eq!(counts[1..], [0; VECTORS - 1]);
                counts[0]
            }
            Came::Line => panic!("no line is in use"),
        }
    }

    fn faults(&self) -> u64 {
        self.board().faults.count()
    }
}

#[test]
fn a_bar_that_moved_is_still_found_where_it_was() {
    for bars in [BarOrder::RegistersFirst, BarOrder::MemoryFirst] {
        let parameters = accel::Parameters { bars, ..accel::Parameters::default() };
        let guest = Guest::accel(parameters, InterruptKind::Msix);
        let (mut pci, bus) = (guest.pci(), &guest.board().bus);
        // What the guest sized is what there is.
        let layout = &bus.function(0).layout().bars;
        assert!(layout.len() == 3 && layout.len() == pci.bars.len());
        for (bar, there) in pci.bars.iter().zip(layout) {
            assert_eq!((bar.number, bar.bytes), (there.number, there.size));
        }
        for turn in 0..2 * pci.bars.len() {
            let before = pci.clone();
            pci.move_next(bus, 0, 1).expect("a move");
            let bar = &pci.bars[turn % pci.bars.len()];
            let old = &before.bars[turn % pci.bars.len()];
            assert!(bar.address() != old.address() && bar.place < PLACES);
            let read = |at: u64| {
                let mut bytes = [0; 8];
                bus.read(Space::Memory, at, &mut bytes).expect("a bus");
                u64::from_le_bytes(bytes)
            };
            // The same place by its new address, and nothing at the old one.
            let faults = guest.faults();
            read(bar.address());
            assert_eq!(guest.faults(), faults, "{bar:?}");
            assert_eq!(read(old.address()), u64::MAX);
            assert_eq!(guest.faults(), faults + 1, "{bar:?}");
            bus.write(Space::Memory, old.address(), &[1; 8]).expect("a bus");
            assert_eq!(guest.faults(), faults + 2, "{bar:?}");
        }
        let registers = if bars == BarOrder::RegistersFirst { 0 } else { 2 };
        let mut id = [0; 8];
        pci.reach(bus).read(registers, reg::ID, &mut id).expect("a register");
        assert_eq!(u64::from_le_bytes(id), reg::ID_VALUE);
    }
}

#[test]
fn what_was_written_through_the_window_stays_behind_when_it_moves() {
    let guest = Guest::accel(accel::Parameters::default(), InterruptKind::Msix);
    let (mut pci, bus) = (guest.pci(), &guest.board().bus);
    let end = accel::MAPPED_WINDOW;
    // In the window, behind it, and once across its edge, which is no mapping.
    for (at, byte) in [(0, 1), (end - 8, 2), (end, 3), (end + 4096, 4)] {
        pci.reach(bus).write(2, at, &[byte; 8]).expect("its memory");
    }
    let mut across = [0; 16];
    for _ in 0..3 {
        pci.move_next(bus, 0, 1).expect("a move");
        pci.reach(bus).read(2, end - 8, &mut across).expect("its memory");
        assert_eq!(across, [[2; 8], [3; 8]].concat()[..]);
    }
    assert_eq!(guest.faults(), 0);
}

#[test]
fn an_empty_slot_and_an_address_of_nobody_read_as_something() {
    let guest = Guest::accel(accel::Parameters::default(), InterruptKind::Msix);
    let bus = &guest.board().bus;
    let mut bytes = [0; 4];
    bus.config_read(1, 0, &mut bytes).expect("a bus");
    assert_eq!(bytes, [NOBODY; 4]);
    for space in [Space::Memory, Space::Ports] {
        let before = guest.faults();
        let mut bytes = [0; 4];
        bus.read(space, 0x1234, &mut bytes).expect("a bus");
        assert_eq!(bytes, [NOBODY; 4]);
        assert_eq!(guest.faults(), before + 1);
    }
    let texts = guest.board().faults.texts();
    assert!(texts[0].contains("0x1234") && texts[0].contains("no device"), "{texts:?}");
}

#[test]
fn a_masked_vector_is_heard_more_than_once_or_never() {
    for kind in [InterruptKind::Msi, InterruptKind::Msix] {
        let guest = Guest::accel(accel::Parameters::default(), kind);
        let (mut pci, bus) = (guest.pci(), &guest.board().bus);
        guest.sends(&pci, 3);
        let mut heard = guest.hears(&mut pci);
        assert_eq!(heard, guest.register(&pci, reg::IRQ_SENT), "{kind}");
        for whole in [false, true] {
            if whole && kind == InterruptKind::Msi {
                continue;
            }
            let set = |pci: &mut Pci, closed| match whole {
                true => pci.set_all(bus, closed).expect("a mask"),
                false => pci.set_one(bus, 0, closed).expect("a mask"),
            };
            // A time in which nothing comes is none.
            set(&mut pci, true);
            set(&mut pci, false);
            assert_eq!(guest.hears(&mut pci), 0);
            let before = bus.function(0).counts().expect("counts")[0];
            let sent = guest.register(&pci, reg::IRQ_SENT);
            set(&mut pci, true);
            guest.sends(&pci, 4);
            assert_eq!(guest.hears(&mut pci), 0, "{kind}: through its mask");
            let now = bus.function(0).counts().expect("counts")[0];
            let more = guest.register(&pci, reg::IRQ_SENT) - sent;
            assert_eq!(now.absorbed - before.absorbed, more, "{kind}");
            assert_eq!(now.windows - before.windows, 1, "{kind}");
            assert!(now.masked && now.pending == 1, "{kind}: {now:?}");
            set(&mut pci, false);
            assert_eq!(guest.hears(&mut pci), 1, "{kind}: once");
            assert_eq!(guest.hears(&mut pci), 0, "{kind}: and not again");
            heard += 1;
        }
        let handled = guest.board().controller.heard(0).handled[0];
        assert_eq!((handled, guest.faults()), (heard, 0), "{kind}");
    }
}

#[test]
fn a_window_in_which_the_device_sent_is_forgotten() {
    let guest = Guest::accel(accel::Parameters::default(), InterruptKind::Msix);
    let (mut pci, bus) = (guest.pci(), &guest.board().bus);
    let sent = |pci: &Pci, vector: usize| {
        Ok(Some(guest.register(pci, reg::IRQ_SENT + 8 * vector as u64)))
    };
    // All windows are open at first, and due: they close, and later open again.
    pci.mask_and_unmask(bus, 1, &sent).expect("masks");
    assert!((0..VECTORS).all(|vector| pci.vectors.masked(vector)));
    guest.sends(&pci, 2);
    pci.mask_and_unmask(bus, 1 << 40, &sent).expect("masks");
    let owed: Vec<bool> = pci.vectors.each.iter().map(|vector| vector.owed).collect();
    assert_eq!(owed, [true, false, false]);
    // It came. Had it not, that would have been seen.
    let mut lost = pci.clone();
    assert_eq!(guest.hears(&mut pci), 1);
    assert_eq!(guest.faults(), 0);
    assert_eq!(guest.hears(&mut lost), 0);
    assert_eq!(guest.faults(), 1);
    assert!(guest.board().faults.texts()[0].contains("vector 0"));
}

#[test]
fn the_guest_does_not_know_how_often_something_came_through_its_own_masks() {
    for kind in [InterruptKind::Msi, InterruptKind::Msix] {
        let guest = Guest::accel(accel::Parameters::default(), kind);
        let (mut pci, bus) = (guest.pci(), &guest.board().bus);
        let sent = |pci: &Pci, vector: usize| {
            Ok(Some(guest.register(pci, reg::IRQ_SENT + 8 * vector as u64)))
        };
        let mut now = 0;
        for step in 0..60 {
            // Now and then all are due at once, and nothing comes meanwhile.
            now += if step % 7 == 0 { 1 << 30 } else { 4_000_000 };
            pci.mask_and_unmask(bus, now, &sent).expect("masks");
            if step % 3 > 0 {
                guest.sends(&pci, 1 + step % 5);
            }
            guest.hears(&mut pci);
            let counts = bus.function(0).counts().expect("counts");
            for (vector, counts) in counts.iter().take(VECTORS).enumerate() {
                let sent = sent(&pci, vector).expect("a device");
                let own = pci.vectors.own(vector, sent);
                // Nothing comes while it masks, so the guest knows it exactly.
                let exact = |count| (count, count);
                assert_eq!(own.windows, exact(counts.windows), "{kind} {vector}");
                let swallowed = counts.absorbed - counts.windows;
                assert_eq!(own.swallowed, exact(swallowed), "{kind} {vector}");
            }
        }
        let windows = bus.function(0).counts().expect("counts")[0].windows;
        assert!(windows > 3 && guest.faults() == 0, "{kind}: {windows}");
    }
}

#[test]
fn a_function_without_a_way_to_interrupt_gets_another_unasked() {
    let guest =
        Guest::with(Box::new(uart::Uart::new(uart::Parameters::default()).unwrap()));
    let vm = guest.vm();
    for kind in [InterruptKind::Msi, InterruptKind::Msix] {
        let error = vm.boot(&guest.options, Some(kind)).expect_err("no such interrupt");
        let error = format!("{error:#}");
        assert!(error.contains("--interrupts intx"), "{error}");
    }
    vm.boot(&guest.options, None).expect("the best that it has");
    assert_eq!(guest.pci().vectors.each.len(), 1);
    let mode = guest.board().bus.function(0).mode();
    assert_eq!(mode, control::pci::InterruptMode::Intx);
}

#[test]
fn registers_of_another_function_are_taken() {
    let guest = Guest::accel(accel::Parameters::default(), InterruptKind::Msix);
    let (pci, most) = (guest.pci(), 1 << 40);
    assert!(pci.fits(0, VECTORS, most));
    let bad: [fn(&mut Pci); 8] = [
        |pci| pci.slot = 1,
        |pci| pci.bars[0].number = 6,
        |pci| pci.bars[0].place = PLACES,
        |pci| pci.bars[1].bytes = 12,
        |pci| pci.bars[1].base = u64::MAX - 4096,
        |pci| pci.bars = vec![pci.bars[0].clone(); 7],
        |pci| pci.moves = u64::MAX,
        |pci| pci.vectors = Vectors::default(),
    ];
    for (number, change) in bad.into_iter().enumerate() {
        let mut pci = pci.clone();
        change(&mut pci);
        assert!(!pci.fits(0, VECTORS, most), "{number}");
    }
    assert!(!pci.fits(0, VECTORS - 1, most));
}

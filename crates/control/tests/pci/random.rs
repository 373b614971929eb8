//! Any order of signals, masks, kinds of interrupts, moves and moves that fail, against a
//! model of what a guest must hear.

use std::sync::Arc;

use port::ConfigStage;
use proptest::prelude::{
    Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use states::v2::State;

use crate::control::{Function, InterruptMode};
use crate::rig::{Access, MSI, MSIX, PM, connected, function, load, move_to, save};
use crate::scripted::Scripted;

#[derive(Clone, Debug)]
enum Step {
    /// So many of a vector, of the kind that is on.
    Raise(u32, u64),
    Mask(u32, bool),
    /// All of MSI-X.
    MaskAll(bool),
    Turn(InterruptMode),
    Take,
    /// The guest reads pending bits, and somebody the accounts.
    Look,
    Sleep(u16),
    /// To another host; these come after config space was saved.
    Move(Vec<(u32, u64)>),
    /// Likewise, and back, from the first or the last step of it.
    Fail(Vec<(u32, u64)>, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let raise = || (0..8u32, 1..5u64);
    let late = || proptest::collection::vec(raise(), 0..4);
    prop_oneof![
        6 => raise().prop_map(|(vector, count)| Step::Raise(vector, count)),
        4 => (0..8u32, any::<bool>()).prop_map(|(n, masked)| Step::Mask(n, masked)),
        1 => any::<bool>().prop_map(Step::MaskAll),
        2 => prop_oneof![
            Just(InterruptMode::Intx),
            Just(InterruptMode::Msi),
            Just(InterruptMode::Msix)
        ]
        .prop_map(Step::Turn),
        3 => Just(Step::Take),
        2 => Just(Step::Look),
        1 => (1..4u16).prop_map(Step::Sleep),
        2 => late().prop_map(Step::Move),
        2 => (late(), any::<bool>()).prop_map(|(late, drained)| Step::Fail(late, drained)),
    ]
}

/// What one vector of one kind has for its guest.
#[derive(Clone, Copy, Default)]
struct Expected {
    masked: bool,
    due: u64,
    pending: bool,
}

struct Model {
    mode: InterruptMode,
    msi: [Expected; 8],
    msix: [Expected; 4],
    all_masked: bool,
    /// By vector, of both kinds.
    sent: [u64; 8],
}

impl Model {
    /// The kind that is on, and whether all of it is masked.
    fn on(&mut self) -> (&mut [Expected], bool) {
        match self.mode {
            InterruptMode::Msi => (&mut self.msi, false),
            InterruptMode::Msix => (&mut self.msix, self.all_masked),
            _ => (&mut [], false),
        }
    }

    fn raise(&mut self, vector: u32, count: u64) {
        let (on, all) = self.on();
        if let Some(one) = on.get_mut(vector as usize) {
            match one.masked || all {
                true => one.pending = true,
                false => one.due += count,
            }
            self.sent[vector as usize] += count;
        }
    }

    /// After a mask went away.
    fn release(&mut self) {
        let msix = self.msix.iter_mut().filter(|one| !one.masked && !self.all_masked);
        for one in self.msi.iter_mut().filter(|one| !one.masked).chain(msix) {
            one.due += u64::from(std::mem::take(&mut one.pending));
        }
    }

    fn take(&mut self) -> Vec<(u32, u64)> {
        let (on, all) = self.on();
        let open = on.iter_mut().zip(0..).filter(|(one, _)| !one.masked && !all);
        let taken = open.map(|(one, n)| (n, std::mem::take(&mut one.due)));
        taken.filter(|(_, count)| *count != 0).collect()
    }
}

/// The guest's function, wherever it is now.
struct Guest {
    device: Arc<Scripted>,
    function: Function,
    model: Model,
}

impl Guest {
    fn new() -> Guest {
        let (device, function) = connected();
        function.set_u16(MSI + 12, 0x40);
        (0..4).for_each(|vector| function.set_vector(vector, false));
        let model = Model {
            mode: InterruptMode::Intx,
            msi: Default::default(),
            msix: Default::default(),
            all_masked: false,
            sent: [0; 8],
        };
        Guest { device, function, model }
    }

    fn raise(&mut self, vector: u32, count: u64) {
        let (index, vectors) = match self.model.mode {
            InterruptMode::Msi => (1, 8),
            InterruptMode::Msix => (2, 4),
            _ => return,
        };
        if vector < vectors {
            self.device.script().raise(index, vector, count);
            self.model.raise(vector, count);
        }
    }

    fn turn(&mut self, mode: InterruptMode) {
        self.function.set_u16(MSIX + 2, self.msix_control(mode));
        self.function.set_u16(MSI + 2, 0x30 | u16::from(mode == InterruptMode::Msi));
        self.model.mode = mode;
        assert_eq!(self.function.mode(), mode);
    }

    fn msix_control(&self, mode: InterruptMode) -> u16 {
        u16::from(mode == InterruptMode::Msix) << 15
            | u16::from(self.model.all_masked) << 14
    }

    fn mask(&mut self, vector: u32, masked: bool) {
        match self.model.mode {
            InterruptMode::Msi => {
                let mask = self.function.u32(MSI + 16) & !(1 << vector);
                self.function.set_u32(MSI + 16, mask | u32::from(masked) << vector);
                self.model.msi[vector as usize].masked = masked;
            }
            // Its table may be written at any time.
            _ if vector < 4 => {
                self.function.mask_vector(vector.into(), masked);
                self.model.msix[vector as usize].masked = masked;
            }
            _ => {}
        }
        self.model.release();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Raise(vector, count) => self.raise(vector, count),
            Step::Mask(vector, masked) => self.mask(vector, masked),
            Step::MaskAll(masked) => {
                self.model.all_masked = masked;
                let control = self.msix_control(self.model.mode);
                self.function.set_u16(MSIX + 2, control);
                self.model.release();
            }
            Step::Turn(mode) => self.turn(mode),
            Step::Take => self.take(),
            Step::Look => {
                let pending = self.function.u32(MSI + 20);
                let expected = self.model.msi.iter().zip(0..);
                let expected =
                    expected.fold(0, |bits, (one, n)| bits | u32::from(one.pending) << n);
                assert_eq!(pending, expected, "the pending bits of MSI");
            }
            Step::Sleep(depth) => {
                self.function.set_u16(PM + 4, depth);
                self.function.set_u16(PM + 4, 0);
            }
            Step::Move(late) => {
                let (device, function) = function();
                let (from, to) = (self.function.clone(), function);
                let source = Arc::clone(&self.device);
                move_to((&source, &from), (&device, &to), || {
                    late.into_iter()
                        .for_each(|(vector, count)| self.raise(vector, count));
                });
                (self.device, self.function) = (device, to);
            }
            Step::Fail(late, drained) => {
                let saved = save(&self.function);
                late.into_iter().for_each(|(vector, count)| self.raise(vector, count));
                if drained {
                    self.device.script().state = State::StopCopy.number();
                    let mut interrupts = self.function.interrupts();
                    let pending = interrupts.drain().unwrap();
                    let (_, to) = function();
                    load(&to, &saved, ConfigStage::Resuming).unwrap();
                    to.interrupts().deliver(&pending).unwrap();
                    self.account(&to);
                    interrupts.deliver(&pending).unwrap();
                    self.device.script().start();
                }
            }
        }
        self.account(&self.function);
    }

    fn take(&mut self) {
        let taken = self.function.taken();
        let taken: Vec<_> = taken.iter().map(|(n, _, count)| (*n, *count)).collect();
        assert_eq!(taken, self.model.take());
    }

    /// What was sent is what became of it.
    fn account(&self, function: &Function) {
        for (n, counts) in function.counts().unwrap().iter().enumerate() {
            let known = counts.delivered + counts.pending + counts.absorbed;
            assert_eq!(
                known - counts.windows,
                self.model.sent[n],
                "vector {n}: {counts:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn in_no_order_of_events_is_an_interrupt_lost_or_doubled(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut guest = Guest::new();
        steps.into_iter().for_each(|step| guest.step(step));
        guest.step(Step::MaskAll(false));
        for mode in [InterruptMode::Msi, InterruptMode::Msix] {
            guest.turn(mode);
            (0..8).for_each(|vector| guest.mask(vector, false));
            guest.take();
        }
        for (n, counts) in guest.function.counts().unwrap().iter().enumerate() {
            let known = counts.delivered + counts.absorbed - counts.windows;
            prop_assert_eq!((known, counts.pending), (guest.model.sent[n], 0));
        }
    }
}

#[derive(Clone, Debug)]
enum LineStep {
    /// What the device wants.
    Level(bool),
    EndOfInterrupt,
    /// The guest turns its line off or on.
    Off(bool),
    Turn(InterruptMode),
    Look,
    /// To another host. What the device wants changes after config space was saved.
    Move(bool),
    /// Likewise, and back.
    Fail(bool),
}

fn line_step() -> impl Strategy<Value = LineStep> {
    let mode = prop_oneof![Just(InterruptMode::Intx), Just(InterruptMode::Msi)];
    prop_oneof![
        4 => any::<bool>().prop_map(LineStep::Level),
        3 => Just(LineStep::EndOfInterrupt),
        1 => any::<bool>().prop_map(LineStep::Off),
        1 => mode.prop_map(LineStep::Turn),
        3 => Just(LineStep::Look),
        2 => any::<bool>().prop_map(LineStep::Move),
        1 => any::<bool>().prop_map(LineStep::Fail),
    ]
}

proptest! {
    #[test]
    fn in_no_order_of_events_is_a_line_deaf_or_stuck(
        steps in proptest::collection::vec(line_step(), 1..60),
        unmaskable: bool,
    ) {
        let (mut device, mut function) = connected();
        device.script().unmaskable = unmaskable;
        let (mut level, mut off, mut mode) = (false, false, InterruptMode::Intx);
        let mut ended = 0;
        for step in steps {
            match step {
                LineStep::Level(up) => {
                    level = up;
                    device.script().set_level(up);
                }
                LineStep::EndOfInterrupt => {
                    ended += u64::from(function.line().unwrap());
                    function.end_of_interrupt().unwrap();
                }
                LineStep::Off(turned) => {
                    off = turned;
                    function.set_u16(4, u16::from(off) << 10);
                }
                LineStep::Turn(to) => {
                    mode = to;
                    function.set_u16(MSI + 2, u16::from(mode == InterruptMode::Msi));
                }
                LineStep::Look => {
                    let up = function.line().unwrap();
                    prop_assert!(!up || !off && mode == InterruptMode::Intx);
                }
                LineStep::Move(up) => {
                    let (other, to) = self::function();
                    other.script().unmaskable = unmaskable;
                    other.script().line.0 = up;
                    let source = Arc::clone(&device);
                    move_to((&source, &function), (&other, &to), || {
                        device.script().set_level(up);
                    });
                    (level, device, function) = (up, other, to);
                }
                LineStep::Fail(up) => {
                    drop(save(&function));
                    device.script().set_level(up);
                    level = up;
                    device.script().state = State::StopCopy.number();
                    let pending = function.interrupts().drain().unwrap();
                    function.interrupts().deliver(&pending).unwrap();
                    device.script().start();
                }
            }
            // One that cannot be masked has no level: it speaks once.
            let deaf = unmaskable || off || mode != InterruptMode::Intx;
            let heard = deaf || function.line().unwrap();
            prop_assert!(heard || !level, "the device wants, and nobody hears of it");
        }
        function.set_u16(MSI + 2, 0);
        function.set_u16(4, 0);
        device.script().set_level(false);
        // One that was up, one that is for nothing.
        for _ in 0..2 {
            function.end_of_interrupt().unwrap();
        }
        prop_assert!(!function.line().unwrap(), "stuck");
        let rises = function.counts().unwrap()[0].rises;
        prop_assert!(ended <= rises, "{ended} ended of {rises}");
    }
}

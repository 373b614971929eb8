//! Whatever a guest did before, a card that was saved and loaded is the same card.

use super::{Count, INTX, MSI, Rig};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
use proptest::proptest;
use std::time::Duration;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR0, BAR1};

/// Long enough for four bytes at the slowest divisor.
const AGES: Duration = Duration::from_secs(60);

/// One thing that a guest does.
#[derive(Clone, Debug)]
enum Act {
    Read(u32, u64),
    Write(u32, u64, u8),
    Send(u32, Vec<u8>),
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    let bar = || prop_oneof![3 => BAR0..BAR1, 1 => BAR1..BAR1 + 1];
    prop_oneof![
        4 => (bar(), 0_u64..8).prop_map(|(bar, register)| Act::Read(bar, register)),
        2 => (bar(), 0_u64..8, any::<u8>())
            .prop_map(|(bar, register, value)| Act::Write(bar, register, value)),
        // What drivers write: without DLAB, and with the FIFO on.
        2 => (bar(), 0_usize..4).prop_map(|(bar, n)| {
            let (register, value) =
                [(reg::LCR, 3), (reg::IER, 0x0f), (reg::FCR, 0x81), (reg::MCR, 0x2b)][n];
            Act::Write(bar, register, value)
        }),
        2 => (bar(), vec(any::<u8>(), 1..20)).prop_map(|(bar, bytes)| Act::Send(bar, bytes)),
        1 => (0..1).prop_map(|_| Act::Wait),
    ]
}

/// Does it; what the guest sees of it.
fn perform(rig: &mut Rig, act: &Act) -> u8 {
    match act {
        Act::Read(bar, register) => return rig.read_of(*bar, *register),
        Act::Write(bar, register, value) => rig.write_of(*bar, *register, *value),
        Act::Send(bar, bytes) => bytes.iter().for_each(|b| rig.write_of(*bar, 0, *b)),
        Act::Wait => rig.wait(AGES),
    }
    0
}

/// A client that unmasks the line after each access. Whether it is up then, and
/// whether a message came meanwhile.
struct Client {
    line: Count,
    message: Count,
}

impl Client {
    fn of(rig: &mut Rig) -> Client {
        let client = Client { line: Count::default(), message: Count::default() };
        for (index, count) in [(INTX, &client.line), (MSI, &client.message)] {
            rig.runner.bind(index, 0, Some(Box::new(count.clone()))).unwrap();
        }
        client
    }

    fn line_up(&self, rig: &mut Rig) -> bool {
        let before = self.line.heard();
        rig.runner.unmask(INTX, 0).unwrap();
        self.line.heard() > before
    }
}

proptest! {
    #[test]
    fn a_card_that_moved_behaves_in_another_way(
        before in vec(act(), 0..60),
        after in vec(act(), 0..60),
    ) {
        let mut rig = Rig::new(2);
        let client = Client::of(&mut rig);
        for act in &before {
            perform(&mut rig, act);
        }
        let digest = rig.runner.digest();
        let saved = rig.save();
        let mut other = Rig::new(2);
        let moved = Client::of(&mut other);
        prop_assert!(other.load(&saved));
        prop_assert_eq!(other.runner.digest(), digest);
        prop_assert_eq!(&other.save(), &saved);
        other.set(states::v2::State::Running);
        rig.set(states::v2::State::Running);
        let _ = client.line_up(&mut rig);
        let _ = moved.line_up(&mut other);
        for (n, act) in after.iter().enumerate() {
            let told = (client.message.heard(), moved.message.heard());
            let seen = (perform(&mut rig, act), perform(&mut other, act));
            prop_assert_eq!(seen.0, seen.1, "act {} of {:?}", n, &after);
            let up = (client.line_up(&mut rig), moved.line_up(&mut other));
            prop_assert_eq!(up.0, up.1, "line after act {} of {:?}", n, &after);
            prop_assert_eq!(
                client.message.heard() - told.0, moved.message.heard() - told.1,
                "messages of act {} of {:?}", n, &after
            );
        }
        prop_assert_eq!(rig.runner.digest(), other.runner.digest());
        prop_assert_eq!(other.runner.counters().interrupts_while_stopped, 0);
    }

    #[test]
    fn some_bytes_make_the_card_panic(
        stream in vec(any::<u8>(), 0..120),
        head in any::<bool>(),
        acts in vec(act(), 0..40),
    ) {
        let mut state = Rig::new(2).save();
        if head {
            // Behind a good header, all of it.
            state.truncate(24);
            state.extend(stream);
            state.resize(96, 0);
        } else {
            state = stream;
        }
        let mut rig = Rig::new(2);
        if rig.load(&state) {
            for act in &acts {
                perform(&mut rig, act);
            }
        }
    }
}

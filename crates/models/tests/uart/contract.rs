//! The contract of every model.
//!
//! mtty's format has no checksum, so a flipped bit may be another state; which ones are
//! refused is the matter of `state.rs`.

use device::{Contract, Migratable, Runner};
use states::v2::Capabilities;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR0, BAR1, CONFIG, Parameters, Uart};

fn card(parameters: Parameters) -> Box<dyn Migratable> {
    Box::new(Uart::new(parameters).unwrap())
}

/// Bytes on their way, both ports with all interrupts on, and registers of all kinds.
fn exercise(runner: &mut Runner, round: u32) {
    let round = round as u8;
    for bar in [BAR0, BAR1] {
        let mut write = |register, value| {
            // The second port is not on every card.
            let _ = runner.write_region(bar, register, &[value]);
        };
        write(reg::FCR, 0x81);
        write(reg::LCR, 0x83);
        write(reg::DATA, 12 + round);
        write(reg::LCR, 0x03);
        write(reg::IER, 0x0f);
        write(reg::SCR, round);
        write(reg::MCR, if round.is_multiple_of(2) { 0x0b } else { 0x1b });
        for n in 0..=round % 20 {
            write(reg::DATA, n ^ 0x55 ^ round);
        }
        let mut bytes = [0; 8];
        let _ = runner.read_region(bar, reg::DATA, &mut bytes[..1 + bar as usize]);
    }
    runner.write_region(CONFIG, 0x10, &[0xff; 4]).unwrap();
}

#[test]
fn the_card_keeps_the_contract_with_every_capability_set() {
    for ports in [1, 2] {
        for (capabilities, pairs) in Capabilities::EVERY.into_iter().zip([32, 40, 40, 56])
        {
            let parameters = Parameters { ports, capabilities };
            let report = Contract::new(|| card(parameters))
                .without_checksum()
                .exercise(exercise)
                .check()
                .unwrap();
            assert_eq!((report.capabilities, report.pairs), (capabilities, pairs));
            assert_eq!(report.state_bytes, 24 + 36 * ports as usize);
            assert_eq!(report.checks.len(), if capabilities.pre_copy() { 6 } else { 5 });
        }
    }
}

#[test]
fn an_idle_card_breaks_the_contract() {
    for capabilities in Capabilities::EVERY {
        let parameters = Parameters { ports: 2, capabilities };
        let report =
            Contract::new(|| card(parameters)).without_checksum().check().unwrap();
        assert_eq!(report.state_bytes, 96);
    }
}

#[test]
fn a_contract_without_a_checksum_lets_something_else_pass() {
    let parameters = Parameters::default();
    let violation = Contract::new(|| card(parameters)).exercise(exercise).check();
    let violation = violation.unwrap_err();
    // Pairs, sessions, round trips and truncations come before; this is what is left.
    assert_eq!(violation.check, "corrupt state", "{violation}");
    assert!(violation.what.ends_with("accepted"), "{violation}");
}

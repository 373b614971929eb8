//! The v1 machine against document 000, combination by combination and arc by arc.

use abi::v1::StateBits;
use vfio_migrate_states::v1::{
    Arc, CHART, COMBINATIONS, InvalidCombination, V1State, WriteRefusal, arc, front,
};
use vfio_migrate_states::v2::{self, Capabilities};

const MODEL: Capabilities = Capabilities::PRE_COPY;
/// Reserved bits that a device may have set.
const RESERVED: [u32; 4] = [0, 1 << 3, 0x8000_0000, 0xffff_fff8];

fn bits(number: u32) -> StateBits {
    StateBits::from_bits_retain(number)
}

#[test]
fn a_combination_is_a_state_the_error_or_invalid_as_document_000_lists_them() {
    let listed = [
        (0b000, Some(V1State::Stop)),
        (0b001, Some(V1State::Running)),
        (0b010, Some(V1State::StopCopy)),
        (0b011, Some(V1State::PreCopy)),
        (0b100, Some(V1State::Resuming)),
        (0b101, None),
        (0b110, Some(V1State::Error)),
        (0b111, None),
    ];
    assert_eq!(COMBINATIONS.len(), listed.len());
    for reserved in RESERVED {
        for (number, state) in listed {
            let read = bits(reserved | number);
            assert_eq!(V1State::from_bits(read).ok(), state);
            assert_eq!(COMBINATIONS[number as usize], state);
            // The document's own macros say the same.
            let sound = state.is_some_and(|state| state != V1State::Error);
            assert_eq!(read.is_valid(), sound, "VALID({number:03b})");
            assert_eq!(read.is_error(), state == Some(V1State::Error), "IS_ERROR");
            match state {
                Some(state) => {
                    assert_eq!(state.bits(), bits(number));
                    assert_eq!(state.onto(read), read, "reserved bits stay");
                }
                None => {
                    assert_eq!(V1State::from_bits(read), Err(InvalidCombination(read)));
                }
            }
        }
    }
    let error = InvalidCombination(bits(0b101)).to_string();
    assert_eq!(error, "device_state 0x5 is one of the invalid combinations 101 and 111");
}

#[test]
fn the_transitions_0_to_5_of_document_000_are_possible() {
    let drawn: Vec<Vec<u32>> = CHART
        .iter()
        .map(|path| path.iter().map(|state| state.bits().bits()).collect())
        .collect();
    let document: [&[u32]; 6] = [
        &[0b001],
        &[0b001, 0b000],
        &[0b001, 0b010, 0b000],
        &[0b001, 0b011, 0b010, 0b000],
        &[0b001, 0b100],
        &[0b100, 0b001],
    ];
    assert_eq!(drawn, document);
    for path in CHART {
        for step in path.windows(2) {
            assert_eq!(arc(step[0], step[1]), Arc::Charted);
            let written = front(MODEL, step[0].bits(), step[1].bits());
            assert_eq!(written.expect("charted").enter, Some(step[1].engine()));
        }
    }
}

#[test]
fn an_arc_that_nobody_drew_is_not_taken_by_accident() {
    let mut counted = [0; 4];
    for from in V1State::ALL {
        for to in V1State::ALL {
            let kind = arc(from, to);
            counted[kind as usize] += 1;
            let charted =
                CHART.iter().any(|path| path.windows(2).any(|step| step == [from, to]));
            assert_eq!(kind == Arc::Charted, charted, "{from} to {to}");
            let either_error = from == V1State::Error || to == V1State::Error;
            assert_eq!(kind == Arc::Same, from == to && !either_error);
            assert!(!either_error || kind == Arc::Refused);
        }
    }
    // Same, Charted, Tolerated, Refused: 5 + 7 + 7 + 6, and the 11 of the error.
    assert_eq!(counted, [5, 7, 7, 17]);
}

/// Each of 8 x 8 combinations, with and without reserved bits.
#[test]
fn no_write_of_any_bits_changes_more_than_it_says() {
    for reserved in RESERVED {
        for current in 0..8 {
            for written in 0..8 {
                let (read, write) = (bits(reserved | current), bits(reserved | written));
                let answer = front(MODEL, read, write);
                let (from, to) = (V1State::from_bits(read), V1State::from_bits(write));
                let expected = match (from, to) {
                    (Err(invalid), _) => Err(WriteRefusal::Invalid(invalid)),
                    (Ok(V1State::Error), _) => Err(WriteRefusal::FromError),
                    (Ok(_), Err(invalid)) => Err(WriteRefusal::Invalid(invalid)),
                    (Ok(_), Ok(V1State::Error)) => Err(WriteRefusal::ToError),
                    (Ok(from), Ok(to)) => match arc(from, to) {
                        Arc::Same => Ok((to, None)),
                        Arc::Charted | Arc::Tolerated => Ok((to, Some(to.engine()))),
                        Arc::Refused => Err(WriteRefusal::NoArc { from, to }),
                    },
                };
                let answer = answer.map(|written| (written.then, written.enter));
                assert_eq!(answer, expected, "{read:?} {write:?}");
            }
        }
    }
}

#[test]
fn a_write_without_the_read_before_it_does_not_lose_reserved_bits() {
    for reserved in RESERVED {
        for other in RESERVED {
            let (current, written) = (bits(reserved | 0b001), bits(other | 0b011));
            let answer = front(MODEL, current, written);
            if reserved == other {
                assert_eq!(answer.expect("preserved").then, V1State::PreCopy);
            } else {
                let refusal = WriteRefusal::ReservedBits { current, written };
                assert_eq!(answer, Err(refusal));
            }
        }
    }
}

/// "Vendor drivers must support the pre-copy state even for implementations where no data
/// is provided."
#[test]
fn a_model_without_pre_copy_takes_011_and_goes_on_running() {
    for model in Capabilities::EVERY {
        let written =
            front(model, V1State::Running.bits(), V1State::PreCopy.bits()).expect("must");
        let enters =
            if model.pre_copy() { v2::State::PreCopy } else { v2::State::Running };
        assert_eq!((written.then, written.enter), (V1State::PreCopy, Some(enters)));
    }
}

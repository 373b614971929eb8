//! Each model, behind each generation and each way to the data, gives what it holds to the
//! next and takes it from the one before: between real processes, by file and by wire.
//!
//! ```text
//!   v2 -> v1 trapped -> rfc2018 mapped -> v1 split -> rfc2018 trapped -> v1 mapped
//!      -> rfc2018 split -> v2
//! ```
#![allow(clippy::panic, reason = "a test stops where it fails")]

mod stage;

use std::path::Path;
use std::sync::Arc;

use control::{AnyDevice, Transport, open_any};
use models::uart::registers as reg;
use port::{Device, DeviceError, Opened, Read};
use serde_json::Value;
use stage::alone::Alone;
use stage::{Process, run};
use states::v2::State;

/// Each generation with each way to its data, each of them a source and a destination.
const RING: [(&str, &str); 8] = [
    ("v2", "trapped"),
    ("v1", "trapped"),
    ("rfc2018", "mapped"),
    ("v1", "split"),
    ("rfc2018", "trapped"),
    ("v1", "mapped"),
    ("rfc2018", "split"),
    ("v2", "trapped"),
];

/// More than a data section holds, so that it goes in several transactions.
const FULL: usize = 3 << 20;

fn serve(folder: &Path, model: &str, place: usize) -> Alone {
    let (generation, section) = RING[place];
    let mut options = vec!["--model", model, "--generation", generation];
    options.extend(["--data-section", section, "--memory", "16M"]);
    Alone::of(folder, &format!("{generation}-{section}-{place}"), &options)
}

/// The first of the ring, which holds something.
fn first(folder: &Path, model: &str) -> Alone {
    let device = serve(folder, model, 0);
    if model == "accel" {
        device.fill(FULL);
        return device;
    }
    // Bytes in both FIFOs, which come back over the loopback plug.
    let client = device.client();
    for bar in [0, 1] {
        let write = |register, value| {
            client.region_write(bar, register, &[value]).expect("registers are writable");
        };
        write(reg::FCR, 0x01);
        write(reg::SCR, 0x5a + bar as u8);
        for byte in *b"not sent yet" {
            write(reg::DATA, byte + bar as u8);
        }
    }
    device
}

/// Walks once round the ring, by `hop`; each has to hold what the first held.
fn round(model: &str, hop: impl Fn(&Path, &Alone, &Alone)) {
    let folder = stage::folder();
    let mut here = first(folder.path(), model);
    let before = here.holds();
    assert_ne!(before, serve(folder.path(), model, 1).holds());
    for place in 1..RING.len() {
        let there = serve(folder.path(), model, place);
        let asked = run(&["compat", &here.uri, &there.uri]);
        assert_eq!(asked.status, 0, "{asked:?}");
        hop(folder.path(), &here, &there);
        assert_eq!(there.holds(), before, "{:?} to {:?}", RING[place - 1], RING[place]);
        here = there;
    }
}

fn by_file(folder: &Path, here: &Alone, there: &Alone) {
    let file = folder.join("f.vfm");
    let file = file.to_str().expect("text");
    let saved = run(&["save", &here.uri, "--output", file, "--replace"]);
    assert_eq!(saved.status, 0, "{saved:?}");
    let restored = run(&["restore", &there.uri, "--input", file, "--start"]);
    assert_eq!(restored.status, 0, "{restored:?}");
}

fn by_wire(_: &Path, here: &Alone, there: &Alone) {
    let from = ["receive", &there.uri, "--from", "tcp:127.0.0.1:0", "--json"];
    let mut receiving = Process::start(&from);
    let ready: Value = serde_json::from_str(&receiving.line()).expect("JSON");
    let to = ready["ready"]["from"].as_str().expect("a place");
    let sent = run(&["send", &here.uri, "--to", to, "--json"]);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert_eq!(receiving.wait(stage::LONGEST), Some(0));
}

#[test]
fn an_accelerator_loses_something_in_a_file_of_another_generation() {
    round("accel", by_file);
}

#[test]
fn an_accelerator_loses_something_on_its_way_to_another_generation() {
    round("accel", by_wire);
}

#[test]
fn a_card_loses_bytes_of_its_fifos_in_a_file_of_another_generation() {
    round("uart", by_file);
}

#[test]
fn a_card_loses_bytes_of_its_fifos_on_its_way_to_another_generation() {
    round("uart", by_wire);
}

#[test]
fn nobody_is_told_beforehand_what_an_earlier_generation_cannot_do() {
    let folder = stage::folder();
    for (place, (generation, _)) in RING.iter().enumerate().take(3) {
        let device = serve(folder.path(), "uart", place);
        let found = run(&["probe", &device.uri, "--json"]).json();
        let old = *generation != "v2";
        let transactions = found["longest_transaction"].as_u64();
        assert_eq!(transactions, old.then_some(1 << 20), "{found}");
        assert_eq!(found["validated_at_start"], *generation == "v1", "{found}");
        let said = run(&["probe", &device.uri]).out;
        assert_eq!(said.contains("in transactions of at most 1 MiB"), old, "{said}");
    }
}

/// Everything that a card saves, which runs again then.
fn saved(device: &mut AnyDevice) -> Vec<u8> {
    let Ok(Opened::Save(mut session)) = device.set_state(State::StopCopy) else {
        panic!("no save session");
    };
    let (mut data, mut buffer) = (Vec::new(), [0; 64]);
    while let Read::Data { bytes, .. } = session.read(&mut buffer).expect("data") {
        data.extend_from_slice(&buffer[..bytes]);
    }
    drop(session);
    device.set_state(State::Running).expect("it runs");
    data
}

/// Loads a card in one transaction, as far as STOP.
fn load(device: &mut AnyDevice, data: &[u8]) -> Result<(), DeviceError> {
    let Opened::Resume(mut session) = device.set_state(State::Resuming)? else {
        panic!("no resume session");
    };
    if !data.is_empty() {
        session.write(data, true)?;
    }
    drop(session);
    device.set_state(State::Stop).map(drop)
}

#[test]
fn a_forged_state_of_a_card_gets_in_by_another_generation() {
    let folder = stage::folder();
    let full = first(folder.path(), "uart");
    let holds = full.holds();
    let good = saved(&mut open_any(Arc::new(full.client())).expect("a card"));
    assert_eq!(good.len(), 24 + 2 * 36);
    let changed = |at: usize, value: u8| {
        let mut state = good.clone();
        assert_ne!(state[at], value, "{at}");
        state[at] = value;
        state
    };
    let forged = [
        ("nothing", Vec::new()),
        ("only a header", good[..24].to_vec()),
        ("a port too few", good[..24 + 36].to_vec()),
        ("a byte too few", good[..good.len() - 1].to_vec()),
        ("a byte too many", [&good[..], &[0]].concat()),
        ("twice", [&good[..], &good[..]].concat()),
        ("magic", changed(0, 0)),
        ("major version", changed(8, 2)),
        ("minor version", changed(12, 1)),
        ("number of ports", changed(16, 1)),
        ("flags", changed(20, 1)),
        ("head", changed(24 + 24, 16)),
        ("tail", changed(24 + 25, 16)),
        ("count", changed(24 + 26, 17)),
        ("room", changed(24 + 36 + 33, 255)),
        ("trigger", changed(24 + 36 + 34, 3)),
        ("padding", changed(24 + 36 + 35, 1)),
    ];
    for (place, (generation, section)) in RING.iter().enumerate().skip(1) {
        let generation = format!("{generation} {section}");
        let card = serve(folder.path(), "uart", place);
        let fresh = card.holds();
        for (what, state) in &forged {
            let what = format!("{what}, by {generation}");
            {
                let mut device = open_any(Arc::new(card.client())).expect("a card");
                load(&mut device, state).expect_err(&what);
                // Neither started as it is, nor saved as if it were something.
                assert!(device.set_state(State::Running).is_err(), "{what}");
                assert!(device.set_state(State::StopCopy).is_err(), "{what}");
                device.reset().expect("a reset");
                assert_eq!(device.state().expect("a state"), State::Running, "{what}");
            }
            assert_eq!(card.holds(), fresh, "{what}");
        }
        let mut device = open_any(Arc::new(card.client())).expect("a card");
        load(&mut device, &good).expect("a good one after all the others");
        device.set_state(State::Running).expect("it runs");
        drop(device);
        assert_eq!(card.holds(), holds, "{generation}");
    }
}

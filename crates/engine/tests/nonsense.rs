//! Law 8: no nonsense from a peer, and no stranger, does any harm.

mod rig;

use std::io::IoSlice;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use port::{Channel, Transmit};
use rig::{ATTEMPT, BOUND, Rig, TOKEN, Wires, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{FakeDial, Side, network, pair};
use vfio_migrate_engine::Machine;
use vfio_migrate_engine::drive::Incoming;
use vfio_migrate_engine::migration::Cause;
use vfio_migrate_engine::migration::sink::Ending;
use wire::device::{DeviceBegin, DeviceEnd};
use wire::message::{
    Bus, DeviceIdentity, Generation, Hello, MemoryRegion, PciIds, RunState, StoreId,
};
use wire::preamble::{
    Architecture, ByteOrder, DataChannel, Features, MigrationId, PageSize, Preamble,
    Role, Token,
};
use wire::section::{SectionInfo, SectionOrder};
use wire::{Crc, Decoder, Encoder, Frame, Header, Message};

const ALL: Capabilities = Capabilities::ALL;

/// A destination, and the other end of its control connection.
struct Listening {
    transmit: Box<dyn Transmit>,
    receive: Box<dyn port::Receive>,
    _close: Box<dyn port::Close>,
    ended: std::sync::mpsc::Receiver<Ending>,
    dial: FakeDial,
    rig: Rig,
}

fn listening() -> Listening {
    let far = Side::alone("destination");
    let mut rig = Rig::destination(&far, &[ALL]);
    let here: Machine = rig.machine.take().expect("a machine");
    let (near, end) = pair(1 << 20);
    let (dial, accept) = network(1 << 20);
    let incoming = Incoming::new(
        Box::new(end),
        Box::new(accept),
        Box::new(store::Memory::new().expect("random bytes")),
        TOKEN,
        Duration::from_millis(200),
        Box::new(move |_| Ok(here)),
    );
    let (to_ended, ended) = channel();
    thread::spawn(move || to_ended.send(incoming.run().ending));
    let (transmit, mut receive, close) = Box::new(near).split().expect("two halves");
    receive.set_deadline(BOUND);
    Listening { transmit, receive, _close: close, ended, dial, rig }
}

impl Listening {
    fn say(&mut self, bytes: &[u8]) {
        // It may have hung up already.
        let _ = self.transmit.send(&[IoSlice::new(bytes)]);
    }

    /// Hangs up; how the destination ended. Its guest never ran.
    fn end(self) -> Ending {
        let Listening { transmit, receive, _close, ended, dial: _, rig } = self;
        drop((transmit, receive));
        _close.close();
        let ending = ended.recv_timeout(BOUND).expect("it ends");
        assert!(rig.vcpus.paused());
        ending
    }

    /// What it answers: a preamble, then a message.
    fn answer(&mut self) -> Message {
        let mut preamble = [0; Preamble::SIZE];
        self.receive.receive(&mut preamble).expect("a preamble");
        Preamble::decode(&preamble).expect("one of ours");
        let mut decoder = Decoder::new(Role::Control, PageSize::KIB_4);
        let mut head = [0; Header::SIZE];
        self.receive.receive(&mut head).expect("a header");
        let header = decoder.header(&head).expect("a header");
        let mut payload = vec![0; header.length as usize];
        self.receive.receive(&mut payload).expect("a payload");
        let frame = decoder.payload(&header, &payload).expect("a frame");
        let Frame::Message(message) = frame else { unreachable!("{frame:?}") };
        message
    }
}

fn preamble() -> Preamble {
    Preamble {
        byte_order: ByteOrder::HOST,
        architecture: Architecture::HOST,
        page_size: PageSize::KIB_4,
        required: Features::NONE,
        optional: Features::NONE,
        migration: MigrationId(ATTEMPT.0),
        role: Role::Control,
    }
}

/// A preamble with some bytes changed and its checksum made right.
fn written(at: usize, bytes: &[u8]) -> [u8; 64] {
    let mut all = preamble().encode();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = Crc::of(&all[..60]).value().to_le_bytes();
    all[60..].copy_from_slice(&crc);
    all
}

#[test]
fn a_source_of_another_kind_is_taken_at_its_bytes() {
    for (bytes, reason) in [
        (written(8, &[2, 0]), "version"),
        (written(8, &[255, 255]), "version"),
        (written(10, &[2]), "byte order"),
        (written(12, &Architecture::S390.0.to_le_bytes()), "s390"),
        (written(20, &[1]), "feature"),
        (written(11, &[9]), "role"),
        (written(16, &[1, 0, 0, 0]), "page"),
        (preamble_with_wrong_crc(), "checksum"),
        (*b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/html,  */*\r\n\r\n\r\n", "magic"),
    ] {
        let mut listening = listening();
        listening.say(&bytes);
        let Message::Refuse(refuse) = listening.answer() else { panic!("no refusal") };
        let text = refuse.reasons[0].text.to_lowercase();
        let Ending::Refused(_) = listening.end() else { panic!("not refused: {text}") };
        assert!(text.contains(reason), "{reason:?} is not in {text:?}");
    }
}

fn preamble_with_wrong_crc() -> [u8; 64] {
    let mut all = preamble().encode();
    all[63] ^= 1;
    all
}

/// What a source of the same guest would say.
fn hello(rig: &Rig) -> Hello {
    let identity = rig.devices.iter().enumerate().map(|(n, _)| DeviceIdentity {
        slot: format!("dev{n}"),
        bus: Bus::PCI,
        pci: Some(PciIds {
            vendor: 0x1b36,
            device: 0xfa4e,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x12_0000,
            revision: 1,
        }),
        generation: Generation(3),
        capabilities: ALL.flags(),
        model: Some(wire::message::Model { name: "fake".into(), data_version: 1 }),
        stop_copy_bytes: None,
        layout: None,
    });
    let section = |section, name: &str, order| SectionInfo {
        section,
        name: name.to_owned(),
        version: 1,
        order,
    };
    Hello {
        software: "a test".into(),
        store: StoreId([1; 16]),
        source_uri: None,
        data_channels: 1,
        run_state: RunState::Running,
        memory: rig::MEMORY
            .iter()
            .map(|(gpa, length)| MemoryRegion {
                gpa: *gpa,
                length: *length,
                page_size: 4096,
            })
            .collect(),
        devices: identity.collect(),
        sections: vec![
            section(0, "cpu", SectionOrder::BeforeDevices),
            section(1, "timer", SectionOrder::AfterDevices),
        ],
        expected_bytes: None,
    }
}

fn hears(change: impl FnOnce(&mut Hello)) -> (Option<Message>, Ending) {
    let mut listening = listening();
    listening.say(&preamble().encode());
    let mut hello = hello(&listening.rig);
    change(&mut hello);
    let Ok(frame) = Encoder::new(Role::Control).message(&Message::Hello(hello)) else {
        // It cannot even be said.
        return (None, listening.end());
    };
    listening.say(&frame);
    let answer = listening.answer();
    (Some(answer), listening.end())
}

#[test]
fn an_absurd_hello_is_believed() {
    let (answer, _) = hears(|_| {});
    assert!(matches!(answer, Some(Message::Accept(_))), "{answer:?}");
    let nonsense = |hello: &mut Hello| {
        let one = hello.devices[0].clone();
        hello.devices = (0..64)
            .map(|n| DeviceIdentity {
                slot: "x".repeat(60),
                bus: Bus(200),
                pci: None,
                generation: Generation(n),
                capabilities: 0xdead_beef << n,
                ..one.clone()
            })
            .collect();
    };
    let changes: [fn(&mut Hello); 8] = [
        |hello| hello.memory.clear(),
        |hello| {
            for region in &mut hello.memory {
                region.length = !4095;
            }
        },
        |hello| hello.memory[1].gpa = 0,
        |hello| hello.sections[1].section = 0,
        |hello| hello.sections[1].section = u32::MAX,
        |hello| hello.devices[0].capabilities = u64::MAX,
        |hello| hello.devices.clear(),
        |hello| hello.data_channels = u16::MAX,
    ];
    let (answer, ending) = hears(nonsense);
    assert!(matches!(answer, None | Some(Message::Refuse(_))), "{answer:?}");
    assert!(matches!(ending, Ending::Refused(_) | Ending::Discarded(_)), "{ending:?}");
    for (n, change) in changes.into_iter().enumerate() {
        let (answer, ending) = hears(change);
        let refused = matches!(answer, None | Some(Message::Refuse(_)));
        assert!(refused, "{n}: {answer:?}");
        let kept = matches!(ending, Ending::Refused(_) | Ending::Discarded(_));
        assert!(kept, "{n}: {ending:?}");
    }
}

#[test]
fn noise_after_a_good_beginning_harms_the_destination() {
    // xorshift: the same noise each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    for n in 0..40 {
        let mut listening = listening();
        listening.say(&preamble().encode());
        let hello = Message::Hello(hello(&listening.rig));
        let mut frame =
            Encoder::new(Role::Control).message(&hello).expect("a sound hello");
        if n % 2 == 0 {
            let at = usize::from(next()) * frame.len() / 256;
            frame[at] ^= next() | 1;
        }
        listening.say(&frame);
        let noise: Vec<u8> = (0..300).map(|_| next()).collect();
        listening.say(&noise);
        let ending = listening.end();
        let kept = matches!(ending, Ending::Refused(_) | Ending::Discarded(_));
        assert!(kept, "{n}: {ending:?}");
    }
}

#[test]
fn a_commit_out_of_the_blue_starts_a_guest() {
    for early in [
        Message::Commit,
        Message::SwitchoverRequest,
        Message::Running(wire::message::Running {
            devices: vec![],
            guest_running_us: None,
        }),
    ] {
        let mut listening = listening();
        listening.say(&preamble().encode());
        let mut encoder = Encoder::new(Role::Control);
        let hello = Message::Hello(hello(&listening.rig));
        listening.say(&encoder.message(&hello).expect("sound"));
        listening.say(&encoder.message(&early).expect("sound"));
        let devices = listening.rig.devices.clone();
        assert!(matches!(listening.end(), Ending::Discarded(_)), "{early:?}");
        assert!(devices.iter().all(|device| !device.holds_guest()));
    }
}

#[test]
fn a_device_that_took_other_bytes_than_were_read_is_started() {
    let end = |device, length, crc| DeviceEnd { device, length, crc };
    for (ends, says) in [
        (end(0, 5, 0), "was given 0 bytes"),
        (end(0, 0, 1), "was given 0 bytes"),
        (end(7, 0, 0), "there is no device 7"),
    ] {
        let mut listening = listening();
        listening.say(&preamble().encode());
        let hello = hello(&listening.rig);
        let identity = hello.devices[0].clone();
        let frame = Encoder::new(Role::Control).message(&Message::Hello(hello));
        listening.say(&frame.expect("sound"));
        assert!(matches!(listening.answer(), Message::Accept(_)));
        let data = Box::new(listening.dial.open().expect("it listens"));
        let (mut transmit, _receive, _close) = data.split().expect("two halves");
        let role = Role::Data {
            channel: DataChannel::new(1).expect("a channel"),
            token: Token(TOKEN),
        };
        let mut encoder = Encoder::new(role);
        let begin = DeviceBegin { device: 0, attempt: 0, identity, expected_bytes: None };
        let mut bytes = data_preamble(TOKEN, 1).to_vec();
        bytes.extend(encoder.device_begin(&begin).expect("sound"));
        bytes.extend(encoder.device_end(&ends).expect("sound"));
        transmit.send(&[IoSlice::new(&bytes)]).expect("room");
        let ending = listening.ended.recv_timeout(BOUND).expect("it ends");
        let Ending::Discarded(Cause::Protocol(text)) = ending else {
            panic!("{ending:?}")
        };
        assert!(text.contains(says), "{says:?} is not in {text:?}");
    }
}

fn data_preamble(token: [u8; 8], channel: u16) -> [u8; 64] {
    let channel = DataChannel::new(channel).expect("a channel");
    let role = Role::Data { channel, token: Token(token) };
    Preamble { role, ..preamble() }.encode()
}

#[test]
fn strangers_on_the_data_port_take_the_place_of_the_source() {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &[ALL]);
    let mut destination = Rig::destination(&far, &[ALL]);
    let (to_here, here) = channel();
    let strangers = move |dial: &FakeDial| {
        let mut silent = Vec::new();
        for said in [
            // Silent, gone, of another kind, with a wrong token, with half a preamble.
            None,
            Some(Vec::new()),
            Some(vec![b'x'; 64]),
            Some(data_preamble([8; 8], 1).to_vec()),
            Some(data_preamble([8; 8], 64).to_vec()),
            Some(preamble().encode().to_vec()),
            Some(vec![0x89; 20]),
        ] {
            let (mut transmit, receive, close) =
                Box::new(dial.open().expect("it listens")).split().expect("two halves");
            match said {
                None => silent.push((transmit, receive, close)),
                Some(bytes) => transmit.send(&[IoSlice::new(&bytes)]).expect("room"),
            }
        }
        // They stay, silent, for as long as the migration lasts.
        to_here.send(silent).expect("a test");
    };
    let wires =
        Wires { dialled: Some(Box::new(strangers)), ..Wires::default().channels(2) };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    drop(here);
    went.sent.result.as_ref().expect("completed");
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    assert!(destination.devices.iter().all(|device| device.state() == State::Running));
}

#[test]
fn a_crowd_on_the_data_port_keeps_the_source_out() {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &[ALL]);
    let mut destination = Rig::destination(&far, &[ALL]);
    let crowd = |dial: &FakeDial| {
        for _ in 0..500 {
            drop(dial.open().expect("it listens"));
        }
    };
    let wires = Wires { dialled: Some(Box::new(crowd)), ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    went.sent.result.expect("the source gets in all the same");
}

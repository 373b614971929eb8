//! The client's rarer calls, and what servers answer to them: posted writes, several
//! writes at once, interrupts in all their forms, descriptors of a region, and unmapping
//! with dirty bits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::irq::IrqSetFlags;
use abi::vfio_user::{Command, Header};
use control::{
    DmaTarget, DmaWrites, IoFd, IrqAction, IrqForm, RegionWrite, Transport,
    TransportError,
};
use dirty::{IovaRange, PageSize};
use support::{Raw, SOON, message};
use sys::EventFd;
use vfio_migrate_vfio_user::codec::{Reply, Version};
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma};
use zerocopy::{FromBytes, IntoBytes};

const REPLY: u32 = 1;
const ERROR: u32 = 0x21;
const NO_REPLY: u32 = 0x10;

fn options() -> ClientOptions {
    let mut options = ClientOptions::new("server", Arc::new(NoDma));
    options.call_deadline = Duration::from_millis(1500);
    options
}

/// A client, and a server that has said this of itself and then does what `then` says.
fn saying(
    says: &'static str,
    then: impl FnOnce(&mut Raw) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        let (header, _) = raw.receive();
        let text = format!("{{\"capabilities\":{{{says}}}}}\0");
        let version = Version { major: 0, minor: 2, text: text.as_bytes() };
        let reply = Reply::Version(version).message(header.msg_id, Command::VERSION);
        raw.send(&reply.bytes());
        then(&mut raw);
    });
    (Client::over(far, options()).unwrap(), thread)
}

const OURS: &str =
    r#""max_msg_fds":16,"write_multiple":true,"vfio_migrate":{"version":1}"#;

/// Answers the next message so, after a look at it.
fn answer(raw: &mut Raw, flags: u32, body: impl FnOnce(&Header, &[u8]) -> Vec<u8>) {
    let (header, asked) = raw.receive();
    let body = body(&header, &asked);
    raw.send(&message(header.msg_id, Command(header.command), flags, &body));
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

#[test]
fn posted_writes_overtake_each_other_or_a_call() {
    const WRITES: u32 = 100_000;
    let (client, thread) = saying(OURS, |raw| {
        for n in 0..WRITES {
            let (header, body) = raw.receive();
            assert_eq!(header.command, Command::REGION_WRITE.0);
            assert_eq!((header.flags, header.error), (NO_REPLY, 0));
            assert_eq!(u32s(&body), [8 * n, 0, 2, 4, n]);
        }
        answer(raw, REPLY, |_, body| [body, &[1; 4]].concat());
        assert!(raw.ended());
    });
    for n in 0..WRITES {
        client.region_write_posted(2, u64::from(8 * n), &n.to_ne_bytes()).unwrap();
    }
    client.region_read(2, 0, &mut [0; 4]).unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn posted_writes_of_many_threads_and_calls_between_them_mix() {
    const THREADS: u32 = 4;
    const WRITES: u32 = 5000;
    let (client, thread) = saying(OURS, |raw| {
        let mut next = [0; THREADS as usize];
        let mut calls = 0;
        while calls < THREADS || next != [WRITES; THREADS as usize] {
            let (header, body) = raw.receive();
            if header.command == Command::REGION_READ.0 {
                calls += 1;
                let reply = [&body[..], &[1; 4]].concat();
                let command = Command::REGION_READ;
                raw.send(&message(header.msg_id, command, REPLY, &reply));
                continue;
            }
            let fields = u32s(&body);
            let thread = &mut next[fields[0] as usize];
            assert_eq!(fields[4], *thread);
            *thread += 1;
        }
    });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                for n in 0..WRITES {
                    let data = n.to_ne_bytes();
                    client.region_write_posted(0, thread.into(), &data).unwrap();
                }
                client.region_read(0, 0, &mut [0; 4]).unwrap();
            });
        }
    });
    thread.join().unwrap();
}

#[test]
fn an_answer_to_a_posted_write_breaks_the_connection() {
    // The published crate answered until 2026, others to say an errno.
    let (client, thread) = saying(OURS, |raw| {
        for n in 0..50_u8 {
            let (header, body) = raw.receive();
            let flags = if n % 2 == 0 { REPLY } else { ERROR };
            let body = if n % 3 == 0 { &body[..16] } else { &[] };
            let command = Command::REGION_WRITE;
            raw.send(&message(header.msg_id, command, flags, body));
        }
        answer(raw, REPLY, |_, body| [body, &[1; 4]].concat());
        assert!(raw.ended());
    });
    for _ in 0..50 {
        client.region_write_posted(0, 0, &[1; 4]).unwrap();
    }
    client.region_read(0, 0, &mut [0; 4]).unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn posted_writes_that_nobody_takes_fill_the_memory_or_wait_for_ever() {
    let (told, over) = std::sync::mpsc::channel::<()>();
    let (client, thread) = saying(OURS, move |_| {
        let _ = over.recv_timeout(SOON);
    });
    let started = Instant::now();
    let mut posted = 0_u64;
    let error = loop {
        match client.region_write_posted(0, 0, &[1; 4]) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error:?}");
    // As many as the socket holds: nothing is queued here.
    assert!(posted < 100_000, "{posted}");
    assert!(started.elapsed() < SOON);
    let later = client.region_write_posted(0, 0, &[1; 4]).unwrap_err();
    assert!(matches!(later, TransportError::Gone { .. }), "{later:?}");
    drop((client, told));
    thread.join().unwrap();
}

#[test]
fn a_server_that_asks_while_writes_are_posted_waits_for_a_poster_that_waits_for_it() {
    // It reads nothing until its own questions are answered, and asks only when the
    // socket is full of writes.
    let (told, full) = std::sync::mpsc::channel();
    let (client, thread) = saying(OURS, move |raw| {
        full.recv_timeout(SOON).unwrap();
        let mut near = raw.0.try_clone().unwrap();
        let read = message(7, Command::DMA_READ, 0, [0_u64, 4].as_bytes());
        for _ in 0..1000 {
            std::io::Write::write_all(&mut near, &read).unwrap();
        }
        let (mut answers, mut writes) = (0, 0);
        while answers < 1000 || writes < 20_000 {
            let (header, _) = raw.receive();
            if header.flags == NO_REPLY { writes += 1 } else { answers += 1 }
        }
    });
    for n in 0..20_000 {
        if n == 100 {
            told.send(()).unwrap();
        }
        client.region_write_posted(0, 0, &[1; 4]).unwrap();
    }
    thread.join().unwrap();
    drop(client);
}

#[test]
fn many_writes_take_many_round_trips_or_lose_their_order() {
    let (client, thread) = saying(OURS, |raw| {
        let mut seen = Vec::new();
        let mut messages = Vec::new();
        while seen.len() < 452 {
            let (header, body) = raw.receive();
            let command = Command(header.command);
            messages.push(command);
            let reply = if command == Command::REGION_WRITE {
                let (count, data) = (u32s(&body)[3] as usize, &body[16..]);
                seen.push((u32s(&body)[0], data[..count].to_vec()));
                body[..16].to_vec()
            } else {
                let (entries, rest) = body[8..].as_chunks::<24>();
                assert!(rest.is_empty() && entries.len() <= 200);
                assert_eq!(u32s(&body)[0] as usize, entries.len());
                for entry in entries {
                    let fields = u32s(entry);
                    assert_eq!((fields[1], fields[2]), (0, 3));
                    let count = fields[3] as usize;
                    seen.push((fields[0], entry[16..16 + count].to_vec()));
                    assert!(entry[16 + count..].iter().all(|byte| *byte == 0));
                }
                body[..8].to_vec()
            };
            raw.send(&message(header.msg_id, command, REPLY, &reply));
        }
        assert_eq!(messages.len(), 5);
        for (n, (offset, data)) in seen.iter().enumerate() {
            let length = if n == 450 { 100 } else { n % 8 + 1 };
            assert_eq!((*offset, data), (n as u32, &vec![n as u8; length]));
        }
        // A server that did not do all of them, or more than all.
        answer(raw, REPLY, |_, _| 1_u64.to_ne_bytes().to_vec());
        // A header says that all was done.
        answer(raw, REPLY, |_, _| Vec::new());
        answer(raw, ERROR, |_, _| Vec::new());
        answer(raw, REPLY, |_, _| 3_u64.to_ne_bytes().to_vec());
        assert!(raw.ended());
    });
    let data: Vec<Vec<u8>> =
        (0..452).map(|n| vec![n as u8; if n == 450 { 100 } else { n % 8 + 1 }]).collect();
    let write = |(n, data)| RegionWrite { index: 3, offset: n as u64, data };
    let writes: Vec<_> = data.iter().map(Vec::as_slice).enumerate().map(write).collect();
    client.region_write_many(&writes).unwrap();
    client.region_write_many(&[]).unwrap();
    let two = &writes[..2];
    assert_eq!(client.region_write_many(two).unwrap_err().errno(), Some(Errno::EIO));
    client.region_write_many(two).unwrap();
    assert_eq!(client.region_write_many(two).unwrap_err().errno(), Some(Errno::EIO));
    let error = client.region_write_many(two).unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_server_that_knows_no_multiple_writes_gets_them() {
    let (client, thread) = saying(r#""write_multiple":false"#, |raw| {
        for _ in 0..2 {
            let (header, body) = raw.receive();
            let command = Command(header.command);
            assert_eq!(command, Command::REGION_WRITE);
            raw.send(&message(header.msg_id, command, REPLY, &body[..16]));
        }
    });
    let write = RegionWrite { index: 0, offset: 0, data: &[1; 4] };
    client.region_write_many(&[write, write]).unwrap();
    thread.join().unwrap();
}

#[test]
fn interrupts_are_told_in_another_form_than_was_asked() {
    use IrqSetFlags as F;
    let (client, thread) = saying(r#""max_msg_fds":3,"max_data_xfer_size":5"#, |raw| {
        let expected: [(F, u32, u32, &[u8]); 10] = [
            (F::DATA_NONE | F::ACTION_TRIGGER, 3, 7, &[]),
            (F::DATA_NONE | F::ACTION_MASK, 3, 7, &[]),
            (F::DATA_NONE | F::ACTION_UNMASK, 3, 7, &[]),
            (F::DATA_BOOL | F::ACTION_TRIGGER, 3, 5, &[1, 0, 1, 1, 0]),
            (F::DATA_BOOL | F::ACTION_TRIGGER, 8, 2, &[0, 1]),
            (F::DATA_EVENTFD | F::ACTION_TRIGGER, 3, 3, &[]),
            (F::DATA_EVENTFD | F::ACTION_TRIGGER, 6, 1, &[]),
            (F::DATA_EVENTFD | F::ACTION_UNMASK, 0, 1, &[]),
            (F::DATA_EVENTFD | F::ACTION_TRIGGER, 1, 4, &[]),
            (F::DATA_NONE | F::ACTION_TRIGGER, 0, 0, &[]),
        ];
        for (flags, start, count, data) in expected {
            answer(raw, REPLY, |header, body| {
                assert_eq!(header.command, Command::DEVICE_SET_IRQS.0);
                let argsz = 20 + data.len() as u32;
                assert_eq!(u32s(&body[..20]), [argsz, flags.bits(), 2, start, count]);
                assert_eq!(&body[20..], data);
                // Some say it all again.
                if count == 7 { body.to_vec() } else { Vec::new() }
            });
        }
        assert!(raw.ended());
    });
    for action in [IrqAction::Trigger, IrqAction::Mask, IrqAction::Unmask] {
        client.act_on_irqs(2, 3, action, IrqForm::All(7)).unwrap();
    }
    let which = [true, false, true, true, false, false, true];
    client.act_on_irqs(2, 3, IrqAction::Trigger, IrqForm::Each(&which)).unwrap();
    let events: Vec<_> = (0..4).map(|_| EventFd::new().unwrap()).collect();
    let events: Vec<_> = events.iter().collect();
    client.act_on_irqs(2, 3, IrqAction::Trigger, IrqForm::Events(&events)).unwrap();
    client.act_on_irqs(2, 0, IrqAction::Unmask, IrqForm::Events(&events[..1])).unwrap();
    client.act_on_irqs(2, 1, IrqAction::Trigger, IrqForm::Unbind(4)).unwrap();
    client.set_irqs(2, 0, &[]).unwrap();
    // What cannot be is not even sent.
    for (start, form) in [
        (0, IrqForm::Each(&[])),
        (0, IrqForm::Events(&[])),
        (u32::MAX, IrqForm::All(1)),
        (u32::MAX, IrqForm::Unbind(2)),
    ] {
        let error = client.act_on_irqs(2, start, IrqAction::Trigger, form).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL));
    }
    assert_eq!(client.set_irqs(2, 1, &[]).unwrap_err().errno(), Some(Errno::EINVAL));
    drop(client);
    thread.join().unwrap();
}

/// What the client makes of this answer to its question for region 2.
fn io_fds(body: Vec<u8>, fds: usize) -> Result<(Vec<IoFd>, usize), TransportError> {
    let (client, thread) = saying(OURS, move |raw| {
        let (header, asked) = raw.receive();
        assert_eq!(u32s(&asked)[1..], [0, 2, 0]);
        let given: Vec<OwnedFd> =
            (0..fds).map(|_| UnixStream::pair().unwrap().0.into()).collect();
        let given: Vec<_> = given.iter().map(AsFd::as_fd).collect();
        let command = Command::DEVICE_GET_REGION_IO_FDS;
        raw.send_with(&message(header.msg_id, command, REPLY, &body), &given);
        raw.ended();
    });
    let found = client.region_io_fds(2);
    drop(client);
    thread.join().unwrap();
    found.map(|found| (found.parts, found.fds.len()))
}

#[test]
fn a_descriptor_of_a_region_is_told_for_another_part_of_it() {
    let head = |index: u32, count: u32| [200, 0, index, count].as_bytes().to_vec();
    let part = |offset: u64, fd: u32| {
        let part = [[offset, 8].as_bytes(), [fd, 0, 5, 0].as_bytes()].concat();
        [part, 77_u64.to_ne_bytes().to_vec()].concat()
    };
    // libvfio-user has a shadow descriptor in the padding, and its offset after it.
    let wide = |offset: u64, fd: u32| {
        let part = [[offset, 8].as_bytes(), [fd, 2, 5, 1].as_bytes()].concat();
        [part, [4096_u64, 77].as_bytes().to_vec()].concat()
    };
    let io_fd =
        |offset, fd, kind| IoFd { offset, size: 8, fd, kind, flags: 5, datamatch: 77 };
    // Nothing is offered, and that is an answer.
    assert_eq!(io_fds(head(2, 0), 0).unwrap(), (vec![], 0));
    let two = [head(2, 2), part(0, 0), part(64, 0)].concat();
    let expected = (vec![io_fd(0, 0, 0), io_fd(64, 0, 0)], 1);
    assert_eq!(io_fds(two.clone(), 1).unwrap(), expected);
    let two = [head(2, 2), wide(0, 0), wide(64, 1)].concat();
    let expected = (vec![io_fd(0, 0, 2), io_fd(64, 1, 2)], 2);
    assert_eq!(io_fds(two.clone(), 2).unwrap(), expected);
    // Room for none of them.
    assert_eq!(io_fds(head(2, 300), 0).unwrap_err().errno(), Some(Errno::E2BIG));
    for lie in [
        Vec::new(),
        head(2, 1)[..12].to_vec(),
        head(3, 0),
        two[..two.len() - 20].to_vec(),
        [head(2, u32::MAX), part(0, 0)].concat(),
        [head(2, 1), part(0, 1)].concat(),
    ] {
        let error = io_fds(lie, 1).unwrap_err();
        assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    }
}

fn mapped(client: &Client, start: u64, length: u64) {
    let target = DmaTarget::Messages { writable: true };
    client.dma_map(range(start, length), target).unwrap();
}

#[test]
fn a_page_written_before_its_mapping_went_is_lost() {
    let all = range(0x10_0000, 100 * 4096);
    let (client, thread) = saying(r#""max_dma_maps":1"#, |raw| {
        let map = |raw: &mut Raw| answer(raw, REPLY, |_, _| Vec::new());
        let reply = |page: u64, bytes: u64, words: &'static [u64]| {
            move |_: &Header, asked: &[u8]| {
                let (fields, _) = <[u32; 2]>::read_from_prefix(asked).unwrap();
                assert_eq!(fields, [24 + 16 + 16, 1]);
                let rest = <[u64; 4]>::read_from_bytes(&asked[8..]).unwrap();
                assert_eq!(rest, [0x10_0000, 100 * 4096, 4096, 16]);
                let fixed = [page, bytes];
                [&asked[..24], fixed.as_bytes(), words.as_bytes()].concat()
            }
        };
        map(raw);
        answer(raw, REPLY, reply(4096, 16, &[5, 1 << 35]));
        map(raw);
        // Refused: the mapping stays.
        answer(raw, ERROR, |_, _| Vec::new());
        answer(raw, REPLY, reply(4096, 16, &[0, 0]));
        // Unmapped, and a bitmap that is none.
        for lie in 0..5 {
            map(raw);
            match lie {
                0 => answer(raw, REPLY, |_, _| Vec::new()),
                1 => answer(raw, REPLY, |_, asked| asked[..24].to_vec()),
                2 => answer(raw, REPLY, reply(4096, 16, &[0])),
                3 => answer(raw, REPLY, reply(4096, 8, &[0])),
                _ => answer(raw, REPLY, reply(8192, 16, &[0, 0])),
            }
        }
        map(raw);
        // And one that is longer than was asked for.
        answer(raw, REPLY, reply(4096, 24, &[0, 0, 0]));
        assert!(raw.ended());
    });
    mapped(&client, all.start(), all.length());
    let words =
        client.dma_unmap_dirty(all, PageSize::FOUR_K, DmaWrites::MayGoOn).unwrap();
    assert_eq!(words, [5, 1 << 35]);
    mapped(&client, all.start(), all.length());
    let error =
        client.dma_unmap_dirty(all, PageSize::FOUR_K, DmaWrites::MayGoOn).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EIO));
    let target = DmaTarget::Messages { writable: true };
    let full = client.dma_map(range(0, 4096), target).unwrap_err();
    assert_eq!(full.errno(), Some(Errno::ENOSPC));
    assert_eq!(
        client.dma_unmap_dirty(all, PageSize::FOUR_K, DmaWrites::MayGoOn).unwrap(),
        [0, 0]
    );
    for _ in 0..5 {
        mapped(&client, all.start(), all.length());
        let error = client
            .dma_unmap_dirty(all, PageSize::FOUR_K, DmaWrites::MayGoOn)
            .unwrap_err();
        assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    }
    mapped(&client, all.start(), all.length());
    let error =
        client.dma_unmap_dirty(all, PageSize::FOUR_K, DmaWrites::MayGoOn).unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    assert!(client.device_info().is_err());
    drop(client);
    thread.join().unwrap();
}

#[test]
fn more_dirty_bits_than_were_agreed_to_are_asked_for() {
    let says = r#""migration":{"pgsize":4096,"max_bitmap_size":64}"#;
    let (client, thread) = saying(says, |raw| {
        answer(raw, REPLY, |_, asked| [asked, &[0; 64]].concat());
        assert!(raw.ended());
    });
    assert_eq!(client.most_report_bytes(), 64);
    let pages = |count: u64| range(0, count * 4096);
    let error = client
        .dma_unmap_dirty(pages(513), PageSize::FOUR_K, DmaWrites::MayGoOn)
        .unwrap_err();
    assert_eq!(error.errno(), Some(Errno::E2BIG));
    assert!(error.to_string().contains("max_bitmap_size"), "{error}");
    let words =
        client.dma_unmap_dirty(pages(512), PageSize::FOUR_K, DmaWrites::MayGoOn).unwrap();
    assert_eq!(words, [0; 8]);
    drop(client);
    thread.join().unwrap();
    // The other limit: 32 bytes beside the bits, and whole words.
    for (says, most) in [
        (r#""max_data_xfer_size":65536"#, 65504),
        (r#""max_data_xfer_size":4099"#, 4064),
        (r#""max_data_xfer_size":7"#, 0),
        (r#""migration":{"max_bitmap_size":0}"#, 0),
        ("", (1 << 20) - 32),
    ] {
        let (client, thread) = saying(says, |raw| assert!(raw.ended()));
        assert_eq!(client.most_report_bytes(), most, "{says}");
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn everything_is_unmapped_at_once_where_the_server_can() {
    let (client, thread) = saying(r#""max_dma_maps":2"#, |raw| {
        for _ in 0..2 {
            answer(raw, REPLY, |_, _| Vec::new());
        }
        answer(raw, REPLY, |_, asked| {
            assert_eq!(u32s(asked), [24, 2, 0, 0, 0, 0]);
            asked.to_vec()
        });
        for _ in 0..2 {
            answer(raw, REPLY, |_, _| Vec::new());
        }
        assert!(raw.ended());
    });
    mapped(&client, 0, 4096);
    mapped(&client, 4096, 4096);
    client.dma_unmap_all().unwrap();
    mapped(&client, 0, 4096);
    mapped(&client, 4096, 4096);
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_deadline_that_cannot_be_reckoned_is_none() {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        answer(&mut raw, REPLY, |_, asked| asked[..4].to_vec());
        answer(&mut raw, REPLY, |_, _| Vec::new());
    });
    let options = ClientOptions {
        call_deadline: Duration::MAX,
        state_deadline: Duration::MAX,
        ..options()
    };
    Client::over(far, options).unwrap().reset().unwrap();
    thread.join().unwrap();
}

//! The client against servers that lie, fall silent or talk too much: a clear error
//! within the deadline, and never a panic, a hang or absurd memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use abi::vfio_user::{Command, Header};
use control::{Direction, Transport, TransportError};
use support::{Raw, SOON, message};
use vfio_migrate_vfio_user::codec::{Reply, Version};
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma};
use zerocopy::IntoBytes;

const REPLY: u32 = 1;
const ERROR: u32 = 0x21;

fn options() -> ClientOptions {
    let mut options = ClientOptions::new("liar", Arc::new(NoDma));
    options.call_deadline = Duration::from_millis(1500);
    options.state_deadline = Duration::from_millis(1500);
    options
}

/// A client, and a server that has agreed and then does what `then` says.
fn lying(
    additions: bool,
    then: impl FnOnce(&mut Raw) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        let (header, _) = raw.receive();
        let text = support::agreement(additions);
        let version = Version { major: 0, minor: 0, text: &text };
        let reply = Reply::Version(version).message(header.msg_id, Command::VERSION);
        raw.send(&reply.bytes());
        then(&mut raw);
    });
    (Client::over(far, options()).unwrap(), thread)
}

/// What a region read of 4 bytes comes to where the server answers it so.
fn read_answered(
    answer: impl FnOnce(Header) -> Vec<u8> + Send + 'static,
) -> TransportError {
    let (client, thread) = lying(true, move |raw| {
        let (header, _) = raw.receive();
        raw.send(&answer(header));
        // Whatever it said, it stays until the client has left.
        raw.ended();
    });
    let started = Instant::now();
    let error = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
    assert!(started.elapsed() < SOON);
    if error.errno().is_none() {
        // It is given up.
        let later = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
        assert!(matches!(later, TransportError::Gone { .. }), "{later:?}");
    }
    drop(client);
    thread.join().unwrap();
    error
}

fn broken(error: &TransportError) -> bool {
    matches!(error, TransportError::Broken { .. })
}

fn read_reply(id: u16, count: u32, data: &[u8]) -> Vec<u8> {
    let fixed = [[0_u32, 0, 0, count].as_bytes(), data].concat();
    message(id, Command::REGION_READ, REPLY, &fixed)
}

#[test]
fn an_honest_answer_is_one() {
    let (client, thread) = lying(true, |raw| {
        let (header, body) = raw.receive();
        assert_eq!(body.len(), 16);
        raw.send(&read_reply(header.msg_id, 4, &[1, 2, 3, 4]));
    });
    let mut value = [0; 4];
    client.region_read(0, 0, &mut value).unwrap();
    assert_eq!(value, [1, 2, 3, 4]);
    thread.join().unwrap();
}

#[test]
fn answers_that_cannot_be_are_named_and_the_server_is_given_up() {
    let of = |header: Header| header.msg_id;
    assert!(broken(&read_answered(move |header| read_reply(of(header), 4, &[1; 3]))));
    assert!(broken(&read_answered(move |header| read_reply(of(header), 4, &[1; 5]))));
    assert!(broken(&read_answered(move |header| read_reply(of(header), 3, &[1; 4]))));
    assert!(broken(&read_answered(move |header| read_reply(of(header) + 1, 4, &[1; 4]))));
    // A header alone where data is due, which made another client wait for ever.
    assert!(broken(&read_answered(move |header| {
        message(of(header), Command::REGION_READ, REPLY, &[])
    })));
    assert!(broken(&read_answered(move |header| {
        message(of(header), Command::REGION_WRITE, REPLY, &[0; 20])
    })));
    assert!(broken(&read_answered(move |header| {
        message(of(header), Command::REGION_READ, 0xf, &[0; 20])
    })));
    assert!(broken(&read_answered(move |header| {
        message(of(header), Command::REGION_READ, ERROR, &[0; 5000])
    })));
    for size in [0_u32, 15, 64 << 20, u32::MAX] {
        assert!(broken(&read_answered(move |header| {
            let mut bytes = message(of(header), Command::REGION_READ, REPLY, &[]);
            bytes[4..8].copy_from_slice(&size.to_ne_bytes());
            bytes
        })));
    }
}

#[test]
fn an_error_without_a_number_is_still_an_error() {
    let error =
        read_answered(|header| message(header.msg_id, Command::REGION_READ, ERROR, &[]));
    assert_eq!(error.errno(), Some(Errno::EIO));
    let error = read_answered(|header| {
        let refusal = Reply::refusal(header.msg_id, Command::REGION_READ, Errno::EPERM);
        refusal.bytes()
    });
    assert_eq!(error.errno(), Some(Errno::EPERM));
    // Some put the body of the request behind it, or that of the reply.
    for body in [1, 16, 20, 4096] {
        let error = read_answered(move |header| {
            message(header.msg_id, Command::REGION_READ, ERROR, &vec![7; body])
        });
        assert_eq!(error.errno(), Some(Errno::EIO), "{body} bytes");
    }
}

#[test]
fn silence_ends_at_the_deadline_and_then_the_device_is_gone() {
    let error = read_answered(|_| Vec::new());
    assert!(matches!(error, TransportError::TimedOut { millis: 1500, .. }), "{error:?}");
    // In the middle of an answer too.
    let error =
        read_answered(|header| read_reply(header.msg_id, 4, &[1; 4])[..30].to_vec());
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error:?}");
}

#[test]
fn a_server_that_hangs_up_is_gone_at_once() {
    let (client, thread) = lying(true, |raw| drop(raw.receive()));
    let error = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
    assert!(matches!(error, TransportError::Gone { .. }), "{error:?}");
    thread.join().unwrap();
    // And where nobody called when it happened.
    let (client, thread) = lying(true, |_| {});
    thread.join().unwrap();
    let error = client.device_info().unwrap_err();
    assert!(matches!(error, TransportError::Gone { .. }), "{error:?}");
}

#[test]
fn all_threads_that_wait_learn_that_the_server_fell_silent() {
    let (client, thread) = lying(true, |raw| while !raw.ended() {});
    let started = Instant::now();
    std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..4).map(|_| scope.spawn(|| client.device_info().unwrap_err())).collect();
        for call in calls {
            let error = call.join().unwrap();
            assert!(matches!(
                error,
                TransportError::TimedOut { .. } | TransportError::Gone { .. }
            ));
        }
    });
    assert!(started.elapsed() < SOON);
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_second_answer_to_one_question_is_noticed() {
    // At once, or later, when nobody asks.
    for together in [true, false] {
        let (client, thread) = lying(true, move |raw| {
            let (header, _) = raw.receive();
            let reply = read_reply(header.msg_id, 4, &[1; 4]);
            if together {
                raw.send(&[reply.clone(), reply].concat());
            } else {
                raw.send(&reply);
                raw.send(&reply);
            }
            // It goes on to answer properly, where anybody asks.
            while !raw.ended() {}
        });
        // The first is good; who asks next learns that nothing more can be believed.
        client.region_read(0, 0, &mut [0; 4]).unwrap();
        let error = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
        let noticed =
            matches!(error, TransportError::Gone { .. } | TransportError::Broken { .. });
        assert!(noticed, "{error:?}");
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn answers_in_another_order_find_those_who_asked() {
    const CALLS: u32 = 8;
    let (client, thread) = lying(true, |raw| {
        let mut asked: Vec<(u16, u32)> = (0..CALLS)
            .map(|_| {
                let (header, body) = raw.receive();
                (header.msg_id, u32::from_ne_bytes(body[12..16].try_into().unwrap()))
            })
            .collect();
        asked.reverse();
        for (id, count) in asked {
            raw.send(&read_reply(id, count, &vec![count as u8; count as usize]));
        }
    });
    std::thread::scope(|scope| {
        for count in 1..=CALLS {
            let client = client.clone();
            scope.spawn(move || {
                let mut data = vec![0; 1000 * count as usize];
                client.region_read(0, 0, &mut data).unwrap();
                assert!(data.iter().all(|byte| *byte == (1000 * count) as u8));
            });
        }
    });
    thread.join().unwrap();
}

#[test]
fn a_version_that_makes_no_sense_is_refused() {
    let version = |text: &[u8], minor: u16| {
        let body = [[0, minor].as_bytes(), text].concat();
        move |id: u16| message(id, Command::VERSION, REPLY, &body)
    };
    let too_new = br#"{"capabilities":{"vfio_migrate":{"version":9}}}"#;
    let answers: Vec<Box<dyn FnOnce(u16) -> Vec<u8> + Send>> = vec![
        Box::new(version(b"{}\0", 9)),
        Box::new(version(b"{}", 0)),
        Box::new(version(b"nonsense\0", 0)),
        Box::new(version(&[too_new.as_slice(), b"\0"].concat(), 0)),
        Box::new(|id| message(id, Command::VERSION, REPLY, &[0, 0])),
        Box::new(|id| message(id, Command::VERSION, REPLY, &[1, 0, 0, 0])),
        Box::new(|id| message(id, Command::VERSION, REPLY, &[0; 40_000])),
    ];
    for answer in answers {
        let (mut raw, far) = Raw::pair();
        let thread = std::thread::spawn(move || {
            let (header, _) = raw.receive();
            raw.send(&answer(header.msg_id));
            raw.ended();
        });
        let error = Client::over(far, options()).map(drop).unwrap_err();
        assert!(broken(&error), "{error:?}");
        thread.join().unwrap();
    }
}

#[test]
fn an_answer_about_another_feature_is_none() {
    let (client, thread) = lying(false, |raw| {
        let (header, _) = raw.receive();
        let body = [16_u32, 3, 0, 0];
        let bytes = body.as_bytes();
        raw.send(&message(header.msg_id, Command::DEVICE_FEATURE, REPLY, bytes));
        raw.ended();
    });
    let answer = client.set_migration_state(DeviceState::STOP, None);
    assert!(broken(&answer.map(drop).unwrap_err()));
    drop(client);
    thread.join().unwrap();
}

#[test]
fn padding_behind_the_data_is_not_data() {
    let (client, thread) = lying(false, |raw| {
        let (header, body) = raw.receive();
        raw.send(&message(header.msg_id, Command::DEVICE_FEATURE, REPLY, &body));
        let (header, _) = raw.receive();
        let body = [[16_u32, 3].as_bytes(), &[5, 5, 5, 9, 9, 9, 9, 9]].concat();
        raw.send(&message(header.msg_id, Command::MIG_DATA_READ, REPLY, &body));
        let (header, _) = raw.receive();
        let body = [[16_u32, 9].as_bytes(), &[0; 8]].concat();
        raw.send(&message(header.msg_id, Command::MIG_DATA_READ, REPLY, &body));
        raw.ended();
    });
    let target = DeviceState::STOP_COPY;
    let session = client.set_migration_state(target, Some(Direction::Save)).unwrap();
    let mut session = session.unwrap();
    let mut data = [0; 8];
    assert_eq!(session.read(&mut data).unwrap(), 3);
    assert_eq!(data[..3], [5; 3]);
    // A size above what came is a lie.
    assert!(broken(&session.read(&mut data).unwrap_err()));
    drop((session, client));
    thread.join().unwrap();
}

#[test]
fn a_server_that_only_talks_is_cut_off_before_it_takes_all_memory() {
    let (client, thread) = lying(true, |raw| {
        let write = [[0_u64, 1 << 20].as_bytes(), &vec![0; 1 << 20]].concat();
        let write = message(1, Command::DMA_WRITE, 0, &write);
        let mut sent = 0;
        // It takes none of the answers.
        while std::io::Write::write_all(&mut raw.0, &write).is_ok() {
            sent += 1;
            assert!(sent < 10_000);
        }
    });
    thread.join().unwrap();
    assert!(client.device_info().is_err());
}

/// Asks what a server has no right to, and what it has.
fn question(raw: &mut Raw) {
    for command in [Command::DEVICE_RESET, Command(99), Command::VERSION] {
        raw.send(&message(7, command, 0, &[0; 40]));
        assert_eq!(raw.errno(7), Errno::ENOSYS);
    }
    raw.send(&message(8, Command::DMA_READ, 0, &[0; 3]));
    assert_eq!(raw.errno(8), Errno::EINVAL);
    for count in [0, u64::MAX, 2 << 20] {
        raw.send(&message(9, Command::DMA_READ, 0, [0, count].as_bytes()));
        assert_eq!(raw.errno(9), Errno::EINVAL);
    }
    raw.send(&message(9, Command::DMA_READ, 0, [0_u64, 4].as_bytes()));
    assert_eq!(raw.errno(9), Errno::EFAULT);
}

#[test]
fn questions_of_the_server_are_answered_while_nobody_calls_and_while_somebody_does() {
    let (told, asked) = std::sync::mpsc::channel();
    let (client, thread) = lying(true, move |raw| {
        question(raw);
        told.send(()).unwrap();
        let (header, _) = raw.receive();
        question(raw);
        raw.send(&message(header.msg_id, Command::DEVICE_RESET, REPLY, &[]));
    });
    asked.recv_timeout(SOON).unwrap();
    client.reset().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_feature_answer_longer_than_asked_for_is_not_stored() {
    let (client, thread) = lying(true, |raw| {
        let (header, _) = raw.receive();
        let body = vec![0; 500_000];
        let answer = message(header.msg_id, Command::DEVICE_FEATURE, REPLY, &body);
        // It does not take all of it.
        let _ = std::io::Write::write_all(&mut raw.0, &answer);
    });
    let error = client.feature_get(Feature::MIGRATION, &[], 8).unwrap_err();
    assert!(broken(&error), "{error:?}");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_feature_answer_goes_where_it_belongs_as_far_as_it_goes() {
    // What is answered behind the feature's header, where 16 bytes are asked for; `None`
    // where there is not even that.
    let cases = [(Some(16), Some(16)), (Some(5), Some(5)), (Some(0), Some(0))];
    let cases = cases.into_iter().chain([(None, Some(0)), (Some(17), None)]);
    for (len, expected) in cases {
        let (client, thread) = lying(true, move |raw| {
            let (header, body) = raw.receive();
            let mut answer = len.map_or(Vec::new(), |_| body[..8].to_vec());
            answer.extend(std::iter::repeat_n(7, len.unwrap_or(0)));
            raw.send(&message(header.msg_id, Command::DEVICE_FEATURE, REPLY, &answer));
            raw.ended();
        });
        let mut into = [1; 16];
        let got = client.feature_get_into(Feature::DMA_LOGGING_REPORT, &[], &mut into);
        match expected {
            Some(len) => {
                assert_eq!(got.unwrap(), len);
                assert_eq!(into[..len], [7; 16][..len]);
                assert_eq!(into[len..], [1; 16][len..]);
            }
            None => assert!(broken(&got.unwrap_err())),
        }
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_takes_nothing_does_not_hold_a_call_for_ever() {
    let (told, over) = std::sync::mpsc::channel::<()>();
    let (client, thread) = lying(true, move |_| {
        let _ = over.recv_timeout(SOON);
    });
    let started = Instant::now();
    let error = client.region_write(0, 0, &vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error:?}");
    assert!(started.elapsed() < SOON);
    drop((client, told));
    thread.join().unwrap();
}

/// A region read of 1 MiB from a server that, once asked, sends `first` and then `piece`
/// over and over, one every `every`, until the client has hung up.
fn read_while_it_talks(
    first: impl FnOnce(Header) -> Vec<u8> + Send + 'static,
    piece: Vec<u8>,
    every: Duration,
) {
    let (client, thread) = lying(true, move |raw| {
        let (header, _) = raw.receive();
        let end = Instant::now() + SOON;
        let mut next = first(header);
        raw.0.set_read_timeout(Some(every)).unwrap();
        while std::io::Write::write_all(&mut raw.0, &next).is_ok() {
            assert!(Instant::now() < end, "the client never hung up");
            // What it answers is taken, and not looked at.
            let due = Instant::now() + every;
            while Instant::now() < due {
                if let Ok(0) = std::io::Read::read(&mut raw.0, &mut [0; 4096]) {
                    return;
                }
            }
            next.clone_from(&piece);
        }
    });
    let started = Instant::now();
    let error = client.region_read(0, 0, &mut vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { millis: 1500, .. }), "{error:?}");
    assert!(started.elapsed() >= Duration::from_millis(1500));
    let later = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
    assert!(matches!(later, TransportError::Gone { .. }), "{later:?}");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_server_that_asks_on_and_on_instead_of_answering_does_not_hold_a_call_for_ever() {
    let ask = message(7, Command::DMA_READ, 0, [0_u64, 4].as_bytes());
    read_while_it_talks(|_| Vec::new(), ask, Duration::from_millis(10));
}

#[test]
fn an_answer_that_drips_byte_by_byte_does_not_hold_a_call_for_ever() {
    let begun = |header: Header| {
        let mut bytes = read_reply(header.msg_id, 1 << 20, &[]);
        bytes[4..8].copy_from_slice(&((1_u32 << 20) + 32).to_ne_bytes());
        bytes
    };
    read_while_it_talks(begun, vec![1], Duration::from_millis(40));
    // In its fixed part.
    let begun = move |header| begun(header)[..16].to_vec();
    read_while_it_talks(begun, vec![1], Duration::from_millis(200));
}

#[test]
fn a_question_that_drips_byte_by_byte_does_not_hold_a_call_for_ever() {
    let begun = |_| {
        let mut bytes = message(7, Command::DMA_WRITE, 0, &[0; 16]);
        bytes[4..8].copy_from_slice(&((1_u32 << 20) + 32).to_ne_bytes());
        bytes
    };
    read_while_it_talks(begun, vec![1], Duration::from_millis(40));
    // In its header.
    read_while_it_talks(|_| vec![1], vec![0], Duration::from_millis(120));
}

#[test]
fn a_digest_that_comes_byte_by_byte_does_not_hold_a_call_for_ever() {
    let (client, thread) = lying(true, |raw| {
        loop {
            raw.0.set_read_timeout(Some(SOON)).unwrap();
            let mut question = [0; 40];
            if std::io::Read::read_exact(&mut raw.0, &mut question).is_err() {
                return;
            }
            // The same feature at the same offset, of 64 MiB, and a byte of it.
            let body = [&question[16..32], &(64_u64 << 20).to_ne_bytes(), &[7]].concat();
            let id = u16::from_ne_bytes([question[0], question[1]]);
            raw.send(&message(id, Command::DEVICE_FEATURE, REPLY, &body));
        }
    });
    let started = Instant::now();
    let error = client.digest().unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error:?}");
    assert!(started.elapsed() < SOON);
    drop(client);
    thread.join().unwrap();
}

//! The twin socket from the client's side: what the server asks comes over it and
//! nowhere else, and a server that is inconsistent about it is not listened to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::vfio_user::Command;
use control::{Transport, TransportError};
use support::{Raw, SOON, message};
use sys::EventFd;
use vfio_migrate_vfio_user::codec::{Reply, Version};
use vfio_migrate_vfio_user::{Client, ClientOptions, DmaHandler};
use zerocopy::IntoBytes;

const REPLY: u32 = 1;

/// Memory that counts who was there.
#[derive(Default)]
struct Memory(Mutex<Vec<u8>>);

impl DmaHandler for Memory {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        let memory = self.0.lock().unwrap();
        let at = usize::try_from(iova).map_err(|_| Errno::EFAULT)?;
        let part = memory.get(at..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(part.ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        let mut memory = self.0.lock().unwrap();
        let at = usize::try_from(iova).map_err(|_| Errno::EFAULT)?;
        let part = memory.get_mut(at..).and_then(|rest| rest.get_mut(..data.len()));
        part.ok_or(Errno::EFAULT)?.copy_from_slice(data);
        Ok(())
    }
}

fn options() -> ClientOptions {
    let memory = Memory(Mutex::new(vec![0; 4 << 20]));
    let mut options = ClientOptions::new("twin", Arc::new(memory));
    options.call_deadline = Duration::from_millis(2000);
    options
}

/// Reads the client's VERSION and answers it so, with these descriptors.
fn agree(raw: &mut Raw, twin: &str, fds: &[OwnedFd]) {
    let (header, body) = raw.receive();
    assert_eq!(header.command, Command::VERSION.0);
    let asked = String::from_utf8(body[4..].to_vec()).unwrap();
    assert!(asked.contains(r#""twin_socket":{"supported":true}"#), "{asked}");
    let text = format!("{{\"capabilities\":{{\"max_msg_fds\":8{twin}}}}}\0");
    let version = Version { major: 0, minor: 2, text: text.as_bytes() };
    let reply = Reply::Version(version).message(header.msg_id, Command::VERSION);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    raw.send_with(&reply.bytes(), &fds);
}

const GRANTED: &str = r#","twin_socket":{"supported":true,"fd_index":0}"#;

/// A client, and a server that has given it a twin socket: its ends of both.
fn twins(
    then: impl FnOnce(&mut Raw, &mut Raw) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        let (mut twin, given) = Raw::pair();
        agree(&mut raw, GRANTED, &[given]);
        then(&mut raw, &mut twin);
    });
    let client = Client::over(far, options()).unwrap();
    assert!(client.has_twin_socket());
    (client, thread)
}

fn dma_read(raw: &mut Raw, id: u16, addr: u64, count: u64) -> Vec<u8> {
    raw.send(&message(id, Command::DMA_READ, 0, [addr, count].as_bytes()));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (id, 0));
    assert_eq!(body[..16], *[addr, count].as_bytes());
    body[16..].to_vec()
}

fn dma_write(raw: &mut Raw, id: u16, addr: u64, data: &[u8]) {
    let body = [[addr, data.len() as u64].as_bytes(), data].concat();
    raw.send(&message(id, Command::DMA_WRITE, 0, &body));
    assert_eq!(raw.errno_or_body(id), 0);
}

trait ErrnoOrBody {
    /// The errno of the reply to `id`, whatever else it says.
    fn errno_or_body(&mut self, id: u16) -> u32;
}

impl ErrnoOrBody for Raw {
    fn errno_or_body(&mut self, id: u16) -> u32 {
        let (header, _) = self.receive();
        assert_eq!(header.msg_id, id);
        header.error
    }
}

#[test]
fn dma_over_the_twin_waits_for_a_call_that_waits_for_it() {
    let (told, done) = std::sync::mpsc::channel();
    let (client, thread) = twins(move |raw, twin| {
        // While nobody calls.
        dma_write(twin, 1, 0, b"before");
        let (header, body) = raw.receive();
        // And inside of a call, which gets its answer when all of it is done.
        for n in 0..100_u16 {
            dma_write(twin, n, 4096, &[n as u8; 4096]);
            assert_eq!(dma_read(twin, n, 4096, 4096), [n as u8; 4096]);
        }
        assert_eq!(dma_read(twin, 7, 0, 6), b"before");
        let reply = [&body[..16], &[9; 4]].concat();
        raw.send(&message(header.msg_id, Command::REGION_READ, REPLY, &reply));
        // After it too; and everything at once, as long as the server takes the replies.
        let ask = [0_u64, 100].as_bytes().to_vec();
        let ask: Vec<u8> =
            (0..50).flat_map(|id| message(id, Command::DMA_READ, 0, &ask)).collect();
        twin.send(&ask);
        for id in 0..50 {
            let (header, body) = twin.receive();
            assert_eq!((header.msg_id, body.len()), (id, 116));
        }
        told.send(()).unwrap();
        assert!(raw.ended() && twin.ended());
    });
    let mut value = [0; 4];
    client.region_read(0, 0, &mut value).unwrap();
    assert_eq!(value, [9; 4]);
    done.recv_timeout(SOON).unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn pieces_up_to_the_agreed_size_are_served_and_no_others() {
    let (client, thread) = twins(|_, twin| {
        for size in [1, 3, 4096, 65_537, (1 << 20) - 1, 1 << 20] {
            let data: Vec<u8> = (0..size).map(|n| n as u8).collect();
            dma_write(twin, 1, 5, &data);
            assert!(dma_read(twin, 2, 5, size as u64) == data);
        }
        for (addr, count) in
            [(0, 0), (0, (1 << 20) + 1), (0, u64::MAX), (u64::MAX, 2), (1 << 40, 1 << 21)]
        {
            let ask: [u64; 2] = [addr, count];
            twin.send(&message(3, Command::DMA_READ, 0, ask.as_bytes()));
            assert_eq!(twin.errno(3), Errno::EINVAL, "{addr:#x} {count:#x}");
        }
        // What nobody is behind is the handler's to refuse.
        twin.send(&message(4, Command::DMA_READ, 0, [8_u64 << 20, 4].as_bytes()));
        assert_eq!(twin.errno(4), Errno::EFAULT);
        let long = [[0_u64, (1 << 20) + 1].as_bytes(), &vec![0; (1 << 20) + 1]].concat();
        twin.send(&message(5, Command::DMA_WRITE, 0, &long));
        assert_eq!(twin.errno(5), Errno::EINVAL);
        twin.send(&message(6, Command::REGION_READ, 0, &[0; 16]));
        assert_eq!(twin.errno(6), Errno::ENOSYS);
        assert_eq!(dma_read(twin, 7, 5, 1), [0]);
    });
    thread.join().unwrap();
    drop(client);
}

#[test]
fn a_twin_whose_end_never_waits_spins_or_loses_a_message() {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        let (near, given) = UnixStream::pair().unwrap();
        // The flag is shared with whoever the descriptor is given to.
        given.set_nonblocking(true).unwrap();
        let mut twin = Raw(near);
        agree(&mut raw, GRANTED, &[given.into()]);
        dma_write(&mut twin, 1, 0, &vec![3; 500_000]);
        assert!(dma_read(&mut twin, 2, 0, 500_000) == vec![3; 500_000]);
        let ask = message(3, Command::DMA_READ, 0, [0_u64, 4].as_bytes());
        for byte in ask {
            twin.send(&[byte]);
        }
        assert_eq!(twin.errno_or_body(3), 0);
    });
    let client = Client::over(far, options()).unwrap();
    thread.join().unwrap();
    drop(client);
}

fn ended(client: &Client) -> TransportError {
    let started = Instant::now();
    loop {
        // It may not have noticed yet.
        match client.region_read(0, 0, &mut [0; 4]) {
            Ok(()) => assert!(started.elapsed() < SOON, "it goes on"),
            Err(error) => return error,
        }
    }
}

#[test]
fn a_question_on_the_main_socket_is_answered_where_there_is_a_twin() {
    let (client, thread) = twins(|raw, _| {
        let (header, body) = raw.receive();
        let ask = message(1, Command::DMA_READ, 0, [0_u64, 4].as_bytes());
        let reply = [&body[..16], &[9; 4]].concat();
        let reply = message(header.msg_id, Command::REGION_READ, REPLY, &reply);
        raw.send(&[ask, reply].concat());
        assert!(raw.ended());
    });
    match ended(&client) {
        TransportError::Broken { what, .. } => assert!(what.contains("twin"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.device_info(), Err(TransportError::Gone { .. })));
    thread.join().unwrap();
}

#[test]
fn a_reply_on_the_twin_is_taken_for_one_to_a_call() {
    let (client, thread) = twins(|raw, twin| {
        let (header, body) = raw.receive();
        let reply = [&body[..16], &[9; 4]].concat();
        twin.send(&message(header.msg_id, Command::REGION_READ, REPLY, &reply));
        assert!(twin.ended() && raw.ended());
    });
    let error = ended(&client);
    assert!(matches!(error, TransportError::Gone { .. }), "{error:?}");
    thread.join().unwrap();
}

#[test]
fn a_twin_that_hangs_up_leaves_a_client_that_waits_for_its_deadline() {
    let (client, thread) = twins(|raw, twin| {
        raw.receive();
        twin.0.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(raw.ended());
    });
    let started = Instant::now();
    let error = ended(&client);
    assert!(matches!(error, TransportError::Gone { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_millis(1500));
    thread.join().unwrap();
}

#[test]
fn a_server_that_is_given_up_is_still_served_by_the_twin() {
    let (client, thread) = twins(|raw, twin| {
        raw.receive();
        // No answer: the call misses its deadline, and then nothing is served any more.
        assert!(raw.ended() && twin.ended());
    });
    let error = ended(&client);
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error:?}");
    thread.join().unwrap();
}

#[test]
fn a_twin_that_is_not_what_the_answer_says_is_believed() {
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let index =
        |n: &str| format!(r#","twin_socket":{{"supported":true,"fd_index":{n}}}"#);
    let cases: [(String, Vec<OwnedFd>, &str); 8] = [
        (GRANTED.to_owned(), vec![], "without its descriptor"),
        (index("1"), vec![socket()], "without its descriptor"),
        (index("4294967295"), vec![socket()], "without its descriptor"),
        (r#","twin_socket":{"supported":true}"#.to_owned(), vec![socket()], "which"),
        (index("-1"), vec![socket()], "twin_socket"),
        (index("0"), vec![file()], "no socket"),
        (index("1"), vec![socket(), EventFd::new().unwrap().into()], "no socket"),
        (r#","twin_socket":true"#.to_owned(), vec![socket()], "twin_socket"),
    ];
    for (said, fds, because) in cases {
        let (mut raw, far) = Raw::pair();
        let thread = std::thread::spawn(move || {
            agree(&mut raw, &said, &fds);
            assert!(raw.ended());
        });
        match Client::over(far, options()).map(drop).unwrap_err() {
            TransportError::Broken { what, .. } => {
                assert!(what.contains(because), "{what}");
            }
            other => panic!("{other:?}"),
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_server_without_a_twin_is_refused_for_it() {
    for (said, fds) in [
        ("", 0),
        (r#","twin_socket":{"supported":false}"#, 0),
        (r#","twin_socket":{}"#, 0),
        // Descriptors that nobody asked for are closed.
        ("", 3),
    ] {
        let (mut raw, far) = Raw::pair();
        let thread = std::thread::spawn(move || {
            let (near, given): (Vec<_>, Vec<OwnedFd>) = (0..fds)
                .map(|_| UnixStream::pair().unwrap())
                .map(|(near, far)| (near, far.into()))
                .unzip();
            agree(&mut raw, said, &given);
            drop(given);
            for mut near in near {
                assert_eq!(near.read(&mut [0]).unwrap(), 0);
            }
            assert_eq!(dma_read(&mut raw, 1, 0, 4), [0; 4]);
        });
        let client = Client::over(far, options()).unwrap();
        assert!(!client.has_twin_socket());
        thread.join().unwrap();
        drop(client);
    }
}

#[test]
fn a_twin_that_nobody_asked_for_is_taken() {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        let (header, body) = raw.receive();
        assert!(!String::from_utf8_lossy(&body).contains("twin"));
        let text = format!("{{\"capabilities\":{{\"max_msg_fds\":8{GRANTED}}}}}\0");
        let version = Version { major: 0, minor: 2, text: text.as_bytes() };
        let reply = Reply::Version(version).message(header.msg_id, Command::VERSION);
        let (_near, given) = UnixStream::pair().unwrap();
        raw.send_with(&reply.bytes(), &[given.as_fd()]);
        assert!(raw.ended());
    });
    let mut options = options();
    options.twin_socket = false;
    match Client::over(far, options).map(drop).unwrap_err() {
        TransportError::Broken { what, .. } => {
            assert!(what.contains("not asked for"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    thread.join().unwrap();
}

#[test]
fn replies_that_nobody_takes_stop_the_twin_from_being_read() {
    // Many large reads at once, of which the server takes no reply until it has asked
    // them all: both directions are full at the same time.
    let (client, thread) = twins(|_, twin| {
        let mut near = twin.0.try_clone().unwrap();
        let asking = std::thread::spawn(move || {
            let data = vec![5; 256 << 10];
            for id in 0..40 {
                let body = [[0_u64, data.len() as u64].as_bytes(), &data].concat();
                let ask = message(id, Command::DMA_WRITE, 0, &body);
                std::io::Write::write_all(&mut near, &ask).unwrap();
                let read = [0_u64, 256 << 10];
                let ask = message(id + 100, Command::DMA_READ, 0, read.as_bytes());
                std::io::Write::write_all(&mut near, &ask).unwrap();
            }
        });
        asking.join().unwrap();
        for id in 0..40 {
            assert_eq!(twin.errno_or_body(id), 0);
            let (header, body) = twin.receive();
            assert_eq!((header.msg_id, body.len()), (id + 100, 16 + (256 << 10)));
        }
    });
    thread.join().unwrap();
    drop(client);
}

#[test]
fn a_twin_of_another_kind_keeps_a_client_from_being_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("listener")).unwrap();
    let datagrams = UnixDatagram::unbound().unwrap();
    for given in [OwnedFd::from(listener), datagrams.into()] {
        let (mut raw, far) = Raw::pair();
        let thread = std::thread::spawn(move || {
            agree(&mut raw, GRANTED, &[given]);
            raw.ended()
        });
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Whether it is taken or not: it can be let go of.
            drop(Client::over(far, options()));
            done.send(()).unwrap();
        });
        wait.recv_timeout(SOON).expect("it hangs");
        assert!(thread.join().unwrap());
    }
}

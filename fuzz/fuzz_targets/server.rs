//! The whole vfio-user server, with an accelerator behind it, against a client that says
//! anything at all: messages that are well formed and such that are not, answers to what
//! the device asks, descriptors, and connections that end in the middle.
//!
//! The input is a list of steps. Whatever they were, the next client is served.

#![no_main]

use abi::vfio_user::{Command, Header, HeaderFlags};
use device::Runner;
use models::accel::{Accel, Parameters};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use sys::{EventFd, SharedMemory, socket};
use vfio_user::codec::{
    Capabilities, HEADER, Kind, Message, Request, Version, kind, parse_header,
};
use vfio_user::{Server, ServerOptions};
use zerocopy::IntoBytes;

/// The most steps of one input, and the most bytes of one message's body.
const STEPS: usize = 64;
const BODY: usize = 8192;

/// What a client lends: memory and an eventfd, made once.
static LENT: OnceLock<(SharedMemory, EventFd)> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let accel = Accel::new(Parameters::default()).expect("the default size is possible");
    let runner = Runner::new(Box::new(accel)).expect("the accelerator is possible");
    let options = ServerOptions::default();
    let mut server = Server::new(runner, options).expect("the server is possible");
    let mut client = Client::connect(&mut server);
    let mut input = Input(data);
    if input.byte() % 8 != 0 {
        client.agree(&mut server);
    }
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 => {
                let len = input.length();
                client.send(&mut server, input.take(len), 0);
            }
            1 => {
                drop(client);
                turn(&mut server);
                client = Client::connect(&mut server);
                client.agree(&mut server);
            }
            2 => client.answer(&mut server, &mut input),
            _ => client.ask(&mut server, &mut input),
        }
    }
    drop(client);
    turn(&mut server);
    let mut next = Client::connect(&mut server);
    next.agree(&mut server);
    assert!(next.agreed, "the next client is not served");
});

/// Lets the server do what there is to do.
fn turn(server: &mut Server) {
    for _ in 0..4 {
        server.process().expect("the event loop goes on");
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn length(&mut self) -> usize {
        let bytes = [self.byte(), self.byte()];
        usize::from(u16::from_le_bytes(bytes)) % (BODY + 1)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Client {
    socket: OwnedFd,
    received: Vec<u8>,
    /// What the device asked and nobody answered yet.
    asked: VecDeque<Header>,
    agreed: bool,
}

impl Client {
    fn connect(server: &mut Server) -> Client {
        let (near, far) = socket::pair().expect("two sockets");
        assert!(!server.connected(), "a client that went away is still there");
        server.adopt(far).expect("nobody else is connected");
        Client {
            socket: near,
            received: Vec::new(),
            asked: VecDeque::new(),
            agreed: false,
        }
    }

    fn agree(&mut self, server: &mut Server) {
        let text = Capabilities {
            max_data_xfer_size: 1 << 20,
            write_multiple: true,
            vfio_migrate: Some(1),
            ..Capabilities::default()
        }
        .text();
        let version = Version { major: 0, minor: 0, text: &text };
        let message: Message<'_> = Request::Version(version).message(0);
        self.send(server, &message.bytes(), 0);
    }

    /// A message whose header is right.
    fn ask(&mut self, server: &mut Server, input: &mut Input<'_>) {
        let command = input.byte() % 20;
        let flags = input.byte();
        let len = input.length();
        let body = input.take(len);
        let header = Header {
            msg_id: 1,
            command: command.into(),
            msg_size: (HEADER + body.len()) as u32,
            flags: if flags & 0x80 == 0 { 0 } else { (flags & 0x3f).into() },
            error: 0,
        };
        self.send(server, &[header.as_bytes(), body].concat(), (flags >> 4 & 3).into());
    }

    /// An answer to what the device asked first, if it did.
    fn answer(&mut self, server: &mut Server, input: &mut Input<'_>) {
        let failed = input.byte().is_multiple_of(4);
        let len = input.length();
        let body = input.take(len);
        let Some(asked) = self.asked.pop_front() else { return };
        let (flags, body) = match failed {
            true => (HeaderFlags::REPLY | HeaderFlags::ERROR, &[][..]),
            false => (HeaderFlags::REPLY, body),
        };
        let header = Header {
            msg_size: (HEADER + body.len()) as u32,
            flags: flags.bits(),
            error: 14,
            ..asked
        };
        self.send(server, &[header.as_bytes(), body].concat(), 0);
    }

    fn send(&mut self, server: &mut Server, bytes: &[u8], fds: usize) {
        let (memory, event) = LENT.get_or_init(|| {
            let memory = SharedMemory::create("lent", 1 << 20).expect("memory");
            (memory, EventFd::new().expect("an eventfd"))
        });
        let mut lent = match fds {
            1 => vec![memory.fd()],
            2 => vec![event.as_fd()],
            3 => vec![event.as_fd(), event.as_fd()],
            _ => Vec::new(),
        };
        let mut rest = bytes;
        for _ in 0..64 {
            if rest.is_empty() {
                break;
            }
            match socket::send_with_fds(&self.socket, &[IoSlice::new(rest)], &lent, true)
            {
                Ok(sent) => {
                    rest = &rest[sent..];
                    lent.clear();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // It was disconnected, and says why no more.
                Err(_) => break,
            }
            turn(server);
            self.receive();
        }
        turn(server);
        self.receive();
    }

    /// Takes what came. The server's messages have to make sense.
    fn receive(&mut self) {
        let mut bytes = [0; 65536];
        let mut fds = Vec::new();
        while let Ok(len @ 1..) =
            socket::recv_with_fds(&self.socket, &mut bytes, 16, &mut fds, true)
        {
            self.received.extend_from_slice(&bytes[..len]);
        }
        loop {
            let Some(header) = self.received.first_chunk() else { return };
            let header = parse_header(header);
            let size = header.msg_size as usize;
            assert!((HEADER..2 << 20).contains(&size), "a message of {size} bytes");
            if self.received.len() < size {
                return;
            }
            self.received.drain(..size);
            match kind(&header) {
                Kind::Command { no_reply } => {
                    assert!(!no_reply);
                    self.asked.push_back(header);
                }
                Kind::Reply { error } => {
                    assert!(error.is_none_or(|errno| errno.0 > 0 && size == HEADER));
                    let version = header.command == Command::VERSION.0;
                    self.agreed |= version && error.is_none();
                }
                Kind::Unknown => panic!("a message that is neither command nor reply"),
            }
        }
    }
}

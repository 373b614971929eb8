//! What a server asks of our client, and how that answers: rows as the server's, the
//! other way round.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use abi::errno::Errno;
use control::{Transport, TransportError};
use vfio_migrate_vfio_user::{Client, ClientOptions, DmaHandler};

use super::super::errno::{EFAULT, EINVAL, ENOSYS};
use super::super::row::Defect::{
    Absent, Empty, Flags, Limit, Long, ManyFds, NoReply, Reply, Short, Size, StrayFds,
    Twice, Type, Valid,
};
use super::super::row::{Fd, Row, Wish};
use super::super::valid::longs;
use super::super::wire::{ERROR, REPLY, Wire};
use super::{Stuff, calls};

/// The guest's memory: 8 KiB at 0x10000.
struct Memory(Mutex<Vec<u8>>);

const START: u64 = 0x10000;

impl DmaHandler for Memory {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        let memory = self.0.lock().unwrap();
        let start = iova.checked_sub(START).ok_or(Errno::EFAULT)? as usize;
        let from = memory.get(start..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        let mut memory = self.0.lock().unwrap();
        let start = iova.checked_sub(START).ok_or(Errno::EFAULT)? as usize;
        let into = memory.get_mut(start..).and_then(|rest| rest.get_mut(..data.len()));
        into.ok_or(Errno::EFAULT)?.copy_from_slice(data);
        Ok(())
    }
}

/// 0 address, 8 count.
fn read() -> Row {
    Row::new(11, longs(&[START, 8])).answer(24).says(0, &longs(&[START, 8, 0]))
}

/// 0 address, 8 count, 16 data.
fn write() -> Row {
    let body = [longs(&[START, 8]), b"thisdata".to_vec()].concat();
    Row::new(12, body).answer(16).says(0, &longs(&[START, 8]))
}

/// The last is the limit that the client told, 1 MiB; and what a message may have beside.
const LONGEST: u32 = 16 + (1 << 20) + 8192;

fn rows() -> Vec<Row> {
    let arrived = [read().says(16, b"thisdata")];
    let mut rows = vec![
        read().why(Valid, "a read"),
        read()
            .u64(8, 8192)
            .answer(16 + 8192)
            .says_u64(8, 8192)
            .why(Limit, "a read of all"),
        read().cut(1).refused(EINVAL).why(Short, "a read of 15 bytes"),
        read().cut(16).refused(EINVAL).why(Empty, "a read"),
        read().tail(&[1; 100]).why(Long, "a read"),
        read().u64(8, u64::MAX).refused(EINVAL).why(Limit, "a read of 2^64"),
        read()
            .u64(8, (1 << 20) + 1)
            .refused(EINVAL)
            .why(Limit, "a read of more than agreed"),
        read().u64(8, 1 << 20).refused(EFAULT).why(Limit, "a read of as much as agreed"),
        read().u64(8, 0).refused(EINVAL).why(Limit, "a read of nothing"),
        read().u64(0, u64::MAX - 3).refused(EINVAL).why(Limit, "a read that wraps"),
        read().u64(0, 0).refused(EFAULT).why(Absent, "a read of what is not mapped"),
        read().silent().why(NoReply, "a read"),
        read().fds(&[Fd::File]).why(StrayFds, "a read"),
        read().fds(&[Fd::File; 16]).why(ManyFds, "a read with 16"),
        read().given([read()]).why(Twice, "a read"),
        write().then(arrived.clone()).why(Valid, "a write"),
        write().cut(1).refused(EINVAL).why(Short, "a write of 7 bytes of 8"),
        write().cut(24).refused(EINVAL).why(Empty, "a write"),
        write().tail(&[1; 100]).then(arrived.clone()).why(Long, "a write"),
        write().u64(8, 9).refused(EINVAL).why(Limit, "a write of more than came"),
        write().u64(8, u64::MAX).refused(EINVAL).why(Limit, "a write of 2^64"),
        write().u64(8, 0).refused(EINVAL).why(Limit, "a write of nothing"),
        write().u64(0, u64::MAX - 3).refused(EINVAL).why(Limit, "a write that wraps"),
        write().u64(0, 0).refused(EFAULT).why(Absent, "a write to what is not mapped"),
        write().silent().then(arrived).why(NoReply, "a write is carried out"),
        write().given([write()]).why(Twice, "a write"),
        write().fds(&[Fd::Event(0)]).why(StrayFds, "a write"),
    ];
    for row in [read(), write(), Row::new(13, vec![]).refused(ENOSYS)] {
        let command = row.command;
        let mut add = |defect, what: &str, row: Row| {
            rows.push(row.why(defect, format!("command {command} {what}")));
        };
        let row = || row.clone();
        for kind in 2..16 {
            add(Type, &format!("of type {kind}"), row().flags(kind).ends(None));
        }
        add(Reply, "as a reply", row().flags(REPLY).off(77).ends(None));
        add(Reply, "as an error reply", row().flags(REPLY | ERROR).ends(None));
        add(Flags, "with the error flag", row().flags(ERROR));
        add(Flags, "with unknown flags", row().flags(0xffff_ffc0));
        add(ManyFds, "with 17 descriptors", row().fds(&[Fd::File; 17]).ends(None));
        for size in [0, 15, LONGEST + 1, u32::MAX] {
            add(Size, &format!("of {size} bytes"), row().size(size).ends(None));
        }
    }
    // Nothing else is a server's to ask.
    for command in (0..=10).chain(13..=19).chain([999, 65535]) {
        let row = Row::new(command, vec![0; 64]).refused(ENOSYS);
        rows.push(row.clone().why(Absent, "not the server's to ask"));
        rows.push(row.clone().silent().why(NoReply, "not the server's to ask"));
        rows.push(row.clone().body(Vec::new()).why(Empty, "not the server's to ask"));
        let big = row.body(vec![0xff; 4096]);
        rows.push(big.why(Long, "not the server's to ask"));
    }
    rows
}

/// A client with its memory, and the other ends of its connection.
struct Bench {
    client: Client,
    main: Wire,
    twin: Option<Wire>,
    stuff: Stuff,
    next_id: u16,
}

impl Bench {
    /// With a twin socket or without.
    fn new(twin: bool) -> Bench {
        let (near, far) = UnixStream::pair().unwrap();
        let main = Wire::new(near);
        let greeting = std::thread::spawn(move || {
            let asked = main.receive().unwrap();
            let answer = calls::answer(&asked).unwrap();
            if !twin {
                main.send(&answer.message(asked.id).bytes(), &[]).unwrap();
                return (main, None);
            }
            let (near, far) = UnixStream::pair().unwrap();
            let text =
                r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#;
            let answer = answer.body(calls::version(text)).message(asked.id);
            main.send(&answer.bytes(), &[far.as_fd()]).unwrap();
            (main, Some(Wire::new(near)))
        });
        let memory = Memory(Mutex::new(vec![0; 8192]));
        let options = ClientOptions::new("asked", Arc::new(memory));
        let client = Client::over(OwnedFd::from(far), options).unwrap();
        let (main, twin) = greeting.join().unwrap();
        Bench { client, main, twin, stuff: Stuff::new(), next_id: 0 }
    }

    fn exchange(&mut self, row: &Row) -> Result<(), String> {
        // Far from the numbers that the client gives its own calls.
        self.next_id = 1000 + self.next_id.wrapping_add(1) % 1000;
        let wire = self.twin.as_ref().unwrap_or(&self.main);
        let sent = wire.send(&row.message(self.next_id).bytes(), &self.stuff.of(row));
        match row.wish {
            Wish::End(_) => return wire.ended().and_then(|()| self.main.ended()),
            Wish::Silence => return sent,
            _ => {}
        }
        row.check(self.next_id, &wire.receive()?)
    }

    /// The row, and then a call of the client.
    fn run(&mut self, row: &Row) -> Result<(), String> {
        for given in &row.given {
            self.exchange(given).map_err(|error| format!("before it: {error}"))?;
        }
        self.exchange(row)?;
        if matches!(row.wish, Wish::End(_)) {
            let later = self.client.device_info();
            *self = Bench::new(self.twin.is_some());
            return later.map_or(Ok(()), |_| Err("the client goes on".to_owned()));
        }
        for then in &row.then {
            self.exchange(then).map_err(|error| format!("then: {error}"))?;
        }
        self.exchange(&write().body([longs(&[START, 8]), vec![0; 8]].concat()))
            .map_err(|error| format!("the next question: {error}"))?;
        let client = self.client.clone();
        let call = std::thread::spawn(move || client.device_info());
        let asked = self.main.receive()?;
        let answer = calls::answer(&asked)?;
        self.main.send(&answer.message(asked.id).bytes(), &[])?;
        match call.join() {
            Ok(Ok(_)) => Ok(()),
            other => Err(format!("the client's own call: {other:?}")),
        }
    }
}

fn run_all(twin: bool) {
    let mut bench = Bench::new(twin);
    let (rows, mut failed) = (rows(), Vec::new());
    assert!(rows.len() >= 100);
    for (n, row) in rows.iter().enumerate() {
        if let Err(error) = bench.run(row) {
            let Row { command, defect, what, .. } = row;
            failed.push(format!("{n:4} command {command:5} {defect:?}: {what}: {error}"));
            bench = Bench::new(twin);
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        rows.len(),
        failed.join("\n")
    );
}

#[test]
fn whatever_a_server_asks_is_answered_and_the_client_goes_on() {
    run_all(false);
}

#[test]
fn whatever_a_server_asks_by_the_twin_socket_is_answered_there() {
    run_all(true);
}

#[test]
fn a_question_over_the_main_socket_is_astray_where_there_is_a_twin() {
    let bench = Bench::new(true);
    bench.main.send(&read().message(1).bytes(), &[]).unwrap();
    // Nobody reads there until something is called.
    let error = bench.client.device_info().unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    bench.twin.unwrap().ended().unwrap();
}

#[test]
fn a_twin_that_is_closed_takes_the_connection_with_it() {
    let mut bench = Bench::new(true);
    bench.twin = None;
    bench.main.ended().unwrap();
    assert!(bench.client.device_info().is_err());
}

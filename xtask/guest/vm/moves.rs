//! Data that go from one port to another, by a file, by TCP, and through user space.

use std::fs;
use std::sync::Arc;

use control::Transport;
use serde_json::Value;
use vfio_user::{Client, ClientOptions, NoDma};

use super::command::{Running, Said, run, words};
use super::port::Port;
use super::probe::bytes;
use super::uart::{self, Contents, Line};
use super::{Checked, Stop};
use crate::{expect, said, same};

fn wrong<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(text.into()))
}

/// A port with contents that no fresh one has.
struct Filled {
    port: Port,
    contents: Vec<Contents>,
    data: Vec<u8>,
}

impl Filled {
    fn new(lines: u32, seed: u8) -> Result<Filled, String> {
        let port = Port::new(lines)?;
        let device = uart::open(&port)?;
        let contents = uart::put(&device, lines, seed)?;
        let data = uart::data(&device)?;
        expect("bytes of data", data.len() as u64, bytes(lines))?;
        Ok(Filled { port, contents, data })
    }

    /// Whether a port has the same data, bit by bit, and the same contents.
    fn arrived(&self, port: &Port) -> Result<(), String> {
        let device = uart::open(port)?;
        same("its data", &uart::data(&device)?, &self.data)?;
        uart::take("there", &device, &self.contents)
    }

    /// Whether nothing of it was touched: it runs, with its contents.
    fn untouched(&self) -> Result<(), String> {
        running(&self.port)?;
        self.arrived(&self.port)
    }
}

/// Whether a port runs.
fn running(port: &Port) -> Result<(), String> {
    let probed = run(&["probe", &port.uri()])?;
    match &probed.well()?["state"] {
        Value::String(state) if state == "RUNNING" => Ok(()),
        other => Err(format!("{} is in {other}", port.uuid())),
    }
}

/// The checksum over the data of the only device of an answer.
fn checksum(said: &Said) -> Result<String, String> {
    Ok(words(&said.well()?["devices"][0]["crc32c"]))
}

fn file(lines: u32) -> Checked {
    let source = Filled::new(lines, 0x40)?;
    let (first, second) = (format!("/tmp/{lines}-a"), format!("/tmp/{lines}-b"));
    let saved = run(&["save", "--output", &first, &source.port.uri()])?;
    saved.well()?;
    // It ran on; saving took nothing from it.
    running(&source.port)?;
    let target = Port::new(lines)?;
    let restored = run(&["restore", "--start", "--input", &first, &target.uri()])?;
    restored.well()?;
    let again = run(&["save", "--output", &second, &target.uri()])?;
    let (one, two) = (checksum(&saved)?, checksum(&again)?);
    if one != two {
        return wrong(format!("the data were {one}, and are {two}"));
    }
    source.arrived(&target)?;
    source.untouched()?;
    Ok(format!(
        "{} bytes, {one} both times; {} changes of state",
        source.data.len(),
        saved.transitions().len() + restored.transitions().len()
    ))
}

pub(super) fn check_file_one() -> Checked {
    file(1)
}

pub(super) fn check_file_two() -> Checked {
    file(2)
}

/// A file of another kind of port is refused before anything stops.
pub(super) fn check_other_file() -> Checked {
    let mut reasons = Vec::new();
    for (from, to) in [(1, 2), (2, 1)] {
        let source = Filled::new(from, 0x10)?;
        let target = Filled::new(to, 0x20)?;
        let path = format!("/tmp/other-{from}");
        run(&["save", "--output", &path, &source.port.uri()])?.well()?;
        let restored =
            run(&["restore", "--start", "--input", &path, &target.port.uri()])?;
        reasons.push(restored.refused("uart-")?);
        let transitions = restored.transitions();
        if !transitions.is_empty() {
            return wrong(format!("it went to {}", transitions.join(", ")));
        }
        target.untouched()?;
    }
    Ok(reasons.swap_remove(0))
}

/// A file that was cut off or that has one wrong bit is refused, and the port is there
/// for the whole one.
pub(super) fn check_broken_file() -> Checked {
    let source = Filled::new(2, 0x70)?;
    run(&["save", "--output", "/tmp/whole", &source.port.uri()])?.well()?;
    let whole = fs::read("/tmp/whole").map_err(said("/tmp/whole"))?;
    let mut refused = 0;
    let target = Port::new(2)?;
    let mut broken = Vec::new();
    for end in [0, 63, 200, whole.len() / 2, whole.len() - 1] {
        broken.push(whole[..end].to_vec());
    }
    for at in [8, whole.len() / 3, whole.len() - 100] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        broken.push(bytes);
    }
    for bytes in broken {
        fs::write("/tmp/broken", bytes).map_err(said("/tmp/broken"))?;
        let words = ["restore", "--start", "--input", "/tmp/broken", &target.uri()];
        let restored = run(&words)?;
        if restored.status == 0 {
            return wrong(format!("broken file {refused} was taken"));
        }
        refused += 1;
    }
    run(&["restore", "--start", "--input", "/tmp/whole", &target.uri()])?.well()?;
    source.arrived(&target)?;
    Ok(format!("{refused} broken ones refused, the whole one taken after them"))
}

/// `receive` for some devices, and where it listens.
fn receive(from: &str, devices: &[String]) -> Result<(Running, String), String> {
    let mut line = vec!["receive", "--from", from];
    line.extend(devices.iter().map(String::as_str));
    let mut receiver = Running::start(&line)?;
    let place = words(&receiver.ready()?["from"]);
    Ok((receiver, place))
}

/// One migration, from `receive` to the end of both sides.
fn migrate(
    way: &str,
    from: &[String],
    to: &[String],
    more: &[&str],
) -> Result<(Said, Said), String> {
    let (receiver, place) = receive(way, to)?;
    // An emulated machine is slow, and its host may have other things to do.
    let mut line = vec!["send", "--to", &place, "--downtime-limit", "60000"];
    line.extend(more);
    line.extend(from.iter().map(String::as_str));
    let sent = run(&line)?;
    if sent.status != 0 {
        // A destination that nobody came to goes on listening.
        receiver.terminate()?;
    }
    let received = receiver.end()?;
    Ok((sent, received))
}

/// Two ports at once, over TCP.
pub(super) fn check_tcp() -> Checked {
    let sources = [Filled::new(2, 0x60)?, Filled::new(1, 0x90)?];
    let targets = [Port::new(2)?, Port::new(1)?];
    let from = sources.each_ref().map(|source| source.port.uri());
    let to = targets.each_ref().map(Port::uri);
    let (sent, received) = migrate("tcp:127.0.0.1:0", &from, &to, &["--channels", "2"])?;
    let report = sent.well()?.clone();
    received.well()?;
    let transitions = sent.transitions();
    for state in ["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"] {
        if transitions.iter().filter(|to| *to == state).count() != sources.len() {
            return wrong(format!("the sources went to {}", transitions.join(", ")));
        }
    }
    let moved = report["device_bytes"].as_u64().unwrap_or(0);
    expect("bytes of devices", moved, bytes(2) + bytes(1))?;
    for (source, target) in sources.iter().zip(&targets) {
        running(target)?;
        source.arrived(target)?;
    }
    // The sources have nothing to say any more.
    for source in &sources {
        let probed = run(&["probe", &source.port.uri()])?;
        if probed.well()?["state"] != "STOP" {
            return wrong(format!("a source is in {}", probed.well()?["state"]));
        }
    }
    Ok(format!(
        "two ports, {moved} bytes, down {} ms of {} ms",
        report["downtime_ms"], report["total_ms"]
    ))
}

/// Another kind of port on the other side is refused before anything stops.
pub(super) fn check_other_port() -> Checked {
    let source = Filled::new(2, 0x33)?;
    let target = Filled::new(1, 0x44)?;
    let (sent, received) =
        migrate("tcp:127.0.0.1:0", &[source.port.uri()], &[target.port.uri()], &[])?;
    let reason = sent.refused("uart-")?;
    for (side, said) in [("source", &sent), ("destination", &received)] {
        let transitions = said.transitions();
        if !transitions.is_empty() {
            return wrong(format!("the {side} went to {}", transitions.join(", ")));
        }
    }
    source.untouched()?;
    target.untouched()?;
    Ok(reason)
}

/// `compat` says beforehand what a migration would say, and touches nothing.
pub(super) fn check_compat() -> Checked {
    let two = Filled::new(2, 0x15)?;
    let one = Filled::new(1, 0x16)?;
    let socket = "/tmp/compat.sock";
    let mut server = Running::start(&["serve", "--model", "uart", "--socket", socket])?;
    server.ready()?;
    let served = format!("vfio-user:{socket}");
    let (two_uri, one_uri) = (two.port.uri(), one.port.uri());
    for (from, to, fits) in [
        (&two_uri, &served, 0),
        (&served, &two_uri, 0),
        (&two_uri, &one_uri, 1),
        (&one_uri, &served, 1),
    ] {
        let said = run(&["compat", from, to])?;
        if said.status != fits {
            return wrong(format!("from {from} to {to}: {said:?}"));
        }
    }
    two.untouched()?;
    one.untouched()?;
    server.terminate()?;
    server.end()?;
    Ok("mtty and vfio-user both ways; one line and two do not fit".to_owned())
}

/// A destination that is gone leaves the source running.
pub(super) fn check_lost_destination() -> Checked {
    let source = Filled::new(2, 0x55)?;
    let target = Port::new(2)?;
    let (receiver, place) = receive("tcp:127.0.0.1:0", &[target.uri()])?;
    drop(receiver);
    let sent = run(&["send", "--to", &place, &source.port.uri()])?;
    let reason = sent.refused("refused")?;
    source.untouched()?;
    Ok(reason)
}

/// From the kernel into user space, and back into the kernel, with bytes under way: some
/// are taken out in user space, and others put in.
pub(super) fn check_through_user_space() -> Checked {
    let source = Filled::new(2, 0xa0)?;
    let back = Port::new(2)?;
    let socket = "/tmp/uart.sock";
    let mut server = Running::start(&[
        "serve", "--model", "uart", "--ports", "2", "--socket", socket,
    ])?;
    server.ready()?;
    let served = [format!("vfio-user:{socket}")];

    let (sent, received) =
        migrate("unix:/tmp/in.sock", &[source.port.uri()], &served, &[])?;
    sent.well()?;
    received.well()?;
    let options = ClientOptions::new("uart", Arc::new(NoDma));
    let client = Client::connect(std::path::Path::new(socket), options)
        .map_err(said("connect to the server"))?;
    same("its data in user space", &uart::data(&client)?, &source.data)?;
    let contents = in_user_space(&client, &source.contents)?;
    let data = uart::data(&client)?;
    drop(client);

    let (sent, received) = migrate("unix:/tmp/out.sock", &served, &[back.uri()], &[])?;
    let report = sent.well()?.clone();
    received.well()?;
    let device = uart::open(&back)?;
    same("its data back in the kernel", &uart::data(&device)?, &data)?;
    uart::take("back in the kernel", &device, &contents)?;
    server.terminate()?;
    server.end()?;
    Ok(format!(
        "mtty, vfio-user, mtty: {} bytes of FIFO in order, down {} ms the second time",
        contents.iter().map(|contents| contents.fifo.len()).sum::<usize>(),
        report["downtime_ms"]
    ))
}

/// Takes five bytes out of every FIFO, puts three in, and says what must be left.
fn in_user_space(
    device: &dyn Transport,
    contents: &[Contents],
) -> Result<Vec<Contents>, String> {
    let mut left = contents.to_vec();
    for (line, contents) in
        uart::lines(device, contents.len() as u32).into_iter().zip(&mut left)
    {
        let line: Line<'_> = line;
        line.show_data()?;
        let taken: Vec<u8> = contents.fifo.drain(..5).collect();
        let mut found = Vec::new();
        for _ in &taken {
            found.push(line.read(models::uart::registers::DATA)?);
        }
        same("first out in user space", &found, &taken)?;
        for byte in [0xe1, 0xe2, 0xe3] {
            line.write(models::uart::registers::DATA, byte)?;
            contents.fifo.push(byte);
        }
        line.show_divisor(contents.divisor)?;
    }
    Ok(left)
}

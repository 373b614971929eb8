//! The second socket: who gets one, and what may go over which.

use vfio_migrate_vfio_user::ServerOptions;

use super::super::device::Device;
use super::super::row::Defect::{Absent, Fields, NoFds, Valid};
use super::super::row::{Link, Row};
use super::super::support::{Served, register, until};
use super::super::valid::{
    dma_map_bare, region_read, register_read, register_write, version_saying,
};
use super::super::wire::{Message, REPLY, Wire};

/// VERSION with these capabilities.
fn offering(capabilities: &str) -> Row {
    version_saying(&format!(r#"{{"capabilities":{{{capabilities}}}}}"#)).over(Link::Fresh)
}

fn granted(row: Row) -> Row {
    row.mentions(r#""supported":true"#).mentions(r#""fd_index":0"#).brings(1)
}

pub fn rows() -> Vec<Row> {
    vec![
        granted(offering(r#""max_msg_fds":16,"twin_socket":{"supported":true}"#))
            .why(Valid, "a twin socket"),
        granted(offering(r#""twin_socket":{"supported":true}"#))
            .why(Valid, "a twin socket, with one descriptor by default"),
        offering(r#""max_msg_fds":0,"twin_socket":{"supported":true}"#)
            .omits("twin_socket")
            .why(NoFds, "a twin socket, without room for it"),
        offering(r#""twin_socket":{"supported":false}"#)
            .omits("twin_socket")
            .why(Valid, "no twin socket"),
        offering(r#""twin_socket":{}"#)
            .omits("twin_socket")
            .why(Fields, "an empty twin_socket"),
        offering("").omits("twin_socket").why(Absent, "no word of a twin socket"),
    ]
}

/// A client with a twin socket, and memory that the device reaches by message.
fn twins() -> (Served, Wire, Wire) {
    let served = Served::with(Device::new(), ServerOptions::default());
    let main = Wire::connect(&served.path());
    let version =
        granted(offering(r#""max_msg_fds":1,"twin_socket":{"supported":true}"#));
    let mut got = exchange(&main, &version);
    let twin = got.fds.pop().expect("a twin socket");
    exchange(&main, &dma_map_bare());
    exchange(&main, &register_write(register::ADDRESS, 0x80000));
    (served, main, Wire::new(twin.into()))
}

fn exchange(wire: &Wire, row: &Row) -> Message {
    wire.send(&row.message(5).bytes(), &[]).unwrap();
    let got = wire.receive().unwrap();
    row.check(5, &got).unwrap();
    got
}

/// The device writes, and asks by the twin.
fn asked(main: &Wire, twin: &Wire) -> Message {
    exchange(main, &register_write(register::WRITE, 8));
    let got = twin.receive().unwrap();
    assert_eq!((got.command, got.flags, got.body.len()), (12, 0, 24));
    got
}

fn answer(to: &Message) -> Vec<u8> {
    let body = to.body[..16].to_vec();
    Message { flags: REPLY, size: 32, body, fds: Vec::new(), ..*to }.bytes()
}

#[test]
fn what_the_device_asks_goes_over_the_twin_and_nothing_else_does() {
    let (served, main, twin) = twins();
    for n in 1..4 {
        let request = asked(&main, &twin);
        twin.send(&answer(&request), &[]).unwrap();
        // By two sockets there is no order between them.
        until(|| {
            main.send(&register_read(register::DONE, n).message(5).bytes(), &[]).unwrap();
            let done = main.receive().unwrap();
            done.body[16..] == n.to_ne_bytes()
        });
    }
    exchange(&main, &region_read());
    drop((main, twin));
    served.raw().agree(true);
}

#[test]
fn an_answer_over_the_main_socket_ends_a_connection_that_has_a_twin() {
    let (served, main, twin) = twins();
    let request = asked(&main, &twin);
    main.send(&answer(&request), &[]).unwrap();
    main.ended().unwrap();
    twin.ended().unwrap();
    served.raw().agree(true);
}

#[test]
fn a_command_over_the_twin_ends_the_connection() {
    let (served, main, twin) = twins();
    twin.send(&region_read().message(6).bytes(), &[]).unwrap();
    twin.ended().unwrap();
    main.ended().unwrap();
    served.raw().agree(true);
}

#[test]
fn a_twin_that_is_closed_or_says_nonsense_ends_the_connection() {
    let (served, main, twin) = twins();
    drop(twin);
    main.ended().unwrap();
    drop(main);
    let nonsense = region_read().size(3);
    drop(served);
    let (served, main, twin) = twins();
    twin.send(&nonsense.message(1).bytes(), &[]).unwrap();
    main.ended().unwrap();
    drop((main, twin));
    served.raw().agree(true);
}

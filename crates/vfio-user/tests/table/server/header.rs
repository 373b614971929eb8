//! Headers, and messages as long as they may be.

use vfio_migrate_vfio_user::ServerOptions;

use super::super::device::Device;
use super::super::errno::{EINVAL, EMSGSIZE};
use super::super::row::Defect::{Limit, Size, Valid};
use super::super::row::{Link, Row};
use super::super::support::Served;
use super::super::valid::{self, LONGEST, MOST};
use super::super::wire::Wire;

pub fn rows() -> Vec<Row> {
    let body = |row: Row, size: u32| {
        let more = size as usize - 16 - row.body.len();
        row.tail(&vec![0xaa; more])
    };
    vec![
        body(valid::device_info(), LONGEST).why(Valid, "GET_INFO as long as it may be"),
        body(valid::unknown(77), LONGEST).why(Valid, "unknown, as long as it may be"),
        body(valid::version(), 32 << 10)
            .over(Link::Fresh)
            .why(Limit, "VERSION of 32 KiB, behind its NUL")
            .refused(EINVAL),
        valid::version()
            .over(Link::Fresh)
            .size((32 << 10) + 1)
            .ends(Some(EMSGSIZE))
            .why(Limit, "VERSION of more than 32 KiB"),
        valid::device_info()
            .over(Link::Fresh)
            .size(LONGEST)
            .ends(Some(EMSGSIZE))
            .why(Limit, "what is possible only after VERSION"),
        valid::version()
            .over(Link::Fresh)
            .size(15)
            .ends(Some(EINVAL))
            .why(Size, "VERSION of 15"),
    ]
}

/// Commands that need nothing before them, good and bad ones.
fn any() -> Vec<Row> {
    let info = valid::device_info();
    vec![
        info.clone(),
        valid::unknown(77),
        info.clone().u32(0, 0).refused(EINVAL),
        valid::memory_write(8, &[3; 500]),
        info.flags(9).refused(EINVAL),
        valid::memory_read(8, 500).says(16, &[3; 500]),
        valid::reset(),
        valid::migration(),
        valid::dma_unmap().cut(3).refused(EINVAL),
        valid::region_read(),
    ]
}

fn connected() -> (Served, Wire) {
    let max_data_xfer_size = MOST as usize;
    let options = ServerOptions { max_data_xfer_size, ..ServerOptions::default() };
    let served = Served::with(Device::new(), options);
    let wire = Wire::connect(&served.path());
    wire.send(&valid::version().message(1).bytes(), &[]).unwrap();
    valid::version().check(1, &wire.receive().unwrap()).unwrap();
    (served, wire)
}

#[test]
fn a_thousand_commands_in_one_go_are_answered_one_by_one_in_order() {
    let (_served, wire) = connected();
    let rows: Vec<Row> = (0..100).flat_map(|_| any()).collect();
    let all = rows.iter().zip(0..).flat_map(|(row, id)| row.message(id).bytes());
    wire.send(&all.collect::<Vec<u8>>(), &[]).unwrap();
    for (row, id) in rows.iter().zip(0..) {
        row.check(id, &wire.receive().unwrap()).unwrap();
    }
}

#[test]
fn commands_that_drip_byte_by_byte_are_answered_as_any() {
    let (_served, wire) = connected();
    for (row, id) in any().iter().zip(0..) {
        for byte in row.message(id).bytes() {
            wire.send(&[byte], &[]).unwrap();
            // So that it is received by itself.
            std::thread::yield_now();
        }
        row.check(id, &wire.receive().unwrap()).unwrap();
    }
}

#[test]
fn a_client_that_goes_in_the_middle_of_any_message_leaves_nothing() {
    let (served, wire) = connected();
    drop(wire);
    for row in any() {
        let whole = row.message(5).bytes();
        for cut in (1..whole.len()).step_by(1 + whole.len() / 16) {
            let wire = Wire::connect(&served.path());
            wire.send(&valid::version().message(1).bytes(), &[]).unwrap();
            wire.send(&whole[..cut], &[]).unwrap();
            let answer = wire.receive().unwrap();
            valid::version().check(1, &answer).unwrap();
        }
    }
    let wire = Wire::connect(&served.path());
    wire.send(&valid::version().message(1).bytes(), &[]).unwrap();
    wire.receive().unwrap();
    wire.send(&valid::is_in(valid::RUNNING).message(2).bytes(), &[]).unwrap();
    valid::is_in(valid::RUNNING).check(2, &wire.receive().unwrap()).unwrap();
}

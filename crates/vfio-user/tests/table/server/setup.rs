//! VERSION, and what was agreed by it.

use super::super::errno::{EINVAL, ENOSPC, ENOTTY};
use super::super::row::Defect::{
    Absent, Argsz, BeforeVersion, Empty, Fields, Flags, Limit, Long, ManyFds, NoFds,
    NoReply, Reply, Short, State, StrayFds, Twice, Type, Valid,
};
use super::super::row::{Fd, Link, Row};
use super::super::valid::{self, version, version_saying};
use super::super::wire::{ERROR, REPLY};

/// VERSION with these capabilities.
fn offering(capabilities: &str) -> Row {
    version_saying(&format!(r#"{{"capabilities":{{{capabilities}}}}}"#))
}

/// A row over a connection where these were offered.
fn after(capabilities: &str, row: Row) -> Row {
    let given = [&[offering(capabilities)], &row.given[..]].concat();
    Row { given, ..row }.over(Link::Fresh)
}

pub fn rows() -> Vec<Row> {
    let bare = |major: u16, minor: u16| {
        let body = [major.to_ne_bytes(), minor.to_ne_bytes()].concat();
        version().body(body)
    };
    let mut rows = vec![
        // What is accepted.
        version().why(Valid, "with our key").mentions("vfio_migrate"),
        bare(0, 0).why(Valid, "no text at all").omits("vfio_migrate"),
        version_saying("{}").why(Valid, "an empty object").omits("vfio_migrate"),
        offering("").why(Valid, "no capability").omits("vfio_migrate"),
        version_saying(r#"{"else":{}}"#).why(Valid, "another object"),
        offering(r#""unheard_of":[1,{"a":null}]"#).why(Valid, "a capability that is new"),
        version_saying(&format!("{}{{}}", " ".repeat(15_000)))
            .why(Valid, "much white space"),
        // Minor versions: the lower one.
        version().u16(2, 1).says(2, &[1, 0]).why(Valid, "minor 1"),
        version().u16(2, 2).says(2, &[2, 0]).why(Valid, "minor 2"),
        version().u16(2, 3).says(0, &[0, 0, 2, 0]).why(Limit, "minor 3"),
        version().u16(2, u16::MAX).says(0, &[0, 0, 2, 0]).why(Limit, "minor 65535"),
        // Keys that are answered where they were offered.
        offering(r#""vfio_migrate":{"version":7}"#)
            .mentions(r#""vfio_migrate":{"version":1}"#)
            .why(Limit, "a later version of our key"),
        offering(r#""vfio_migrate":{"version":0}"#)
            .omits("vfio_migrate")
            .why(Fields, "version 0 of our key"),
        offering(r#""migration":{"pgsize":4096}"#)
            .mentions(r#""migration":"#)
            .mentions(r#""pgsize":4096"#)
            .why(Valid, "the migration key"),
        offering(r#""migration":{"pgsize":4096,"max_bitmap_size":268435456}"#)
            .mentions(r#""max_bitmap_size":"#)
            .why(Valid, "the migration key as QEMU sends it"),
        offering("").omits(r#""migration":"#).why(Absent, "the migration key"),
        offering(r#""write_multiple":true"#)
            .mentions(r#""write_multiple":true"#)
            .why(Valid, "write_multiple"),
        offering(r#""write_multiple":false"#)
            .omits(r#""write_multiple":true"#)
            .why(Valid, "no write_multiple"),
        // As QEMU 11.1 sends it.
        offering(
            r#""max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,
               "pgsizes":4096,"migration":{"pgsize":4096,"max_bitmap_size":268435456},
               "write_multiple":true"#,
        )
        .says(0, &[0; 4])
        .mentions(r#""max_msg_fds":16"#)
        .why(Valid, "all that QEMU offers"),
        // What surrounds it.
        version().fds(&[Fd::Event(0), Fd::File]).why(StrayFds, "with descriptors"),
        version().fds(&[Fd::File; 16]).why(ManyFds, "with 16 descriptors"),
        version().fds(&[Fd::File; 17]).ends(None).why(ManyFds, "with 17 descriptors"),
        version().flags(ERROR).why(Flags, "with the error flag"),
        version().flags(0xffff_ffc0).why(Flags, "with unknown flags"),
        version().silent().why(NoReply, "without reply"),
        version().flags(REPLY).ends(None).why(Reply, "as a reply"),
        // Twice.
        version().given([version()]).refused(EINVAL).why(Twice, "twice"),
        version()
            .given([version().u16(0, 1).refused(EINVAL)])
            .why(Twice, "again, after it was refused"),
        valid::device_info()
            .given([version().u16(0, 1).refused(EINVAL)])
            .refused(EINVAL)
            .why(BeforeVersion, "after a VERSION that was refused"),
        // Lengths.
        version().body(Vec::new()).refused(EINVAL).why(Empty, "no body"),
        version().body(vec![0; 3]).refused(EINVAL).why(Short, "3 bytes"),
        version().cut(1).refused(EINVAL).why(Short, "no NUL"),
        version().tail(&[0; 8]).refused(EINVAL).why(Long, "more than one NUL"),
        version().tail(b"{}\0").refused(EINVAL).why(Long, "two texts"),
        bare(0, 0).tail(&[0]).refused(EINVAL).why(Argsz, "a NUL alone"),
        version().u16(0, 1).refused(EINVAL).why(Limit, "major 1"),
        version().u16(0, u16::MAX).refused(EINVAL).why(Limit, "major 65535"),
        bare(1, 0).refused(EINVAL).why(Limit, "major 1 without text"),
    ];
    for kind in [2, 8, 15] {
        let row = version().flags(kind).refused(EINVAL);
        rows.push(row.why(Type, format!("VERSION of type {kind}")));
    }
    for text in [
        "nonsense",
        "[]",
        "7",
        "null",
        "{",
        r#"{"capabilities":7}"#,
        r#"{"capabilities":[]}"#,
        r#"{"capabilities":null}"#,
        "{\"capabilities\":{\"\u{1}\":1}}",
    ] {
        let row = version_saying(text).refused(EINVAL);
        rows.push(row.why(Fields, format!("the text {text:?}")));
    }
    let deep = version_saying(&"[".repeat(15_000)).refused(EINVAL);
    rows.push(deep.why(Limit, "15,000 brackets"));
    let long = version_saying(&format!("{}{{}}", " ".repeat(16 << 10))).refused(EINVAL);
    rows.push(long.why(Limit, "more than 16 KiB of text"));
    let not_text = version().body([&[0, 0, 0, 0], &b"{\"\xff\xfe\":1}\0"[..]].concat());
    rows.push(not_text.refused(EINVAL).why(Fields, "no UTF-8"));
    for wrong in [
        r#""max_msg_fds":-1"#,
        r#""max_msg_fds":"16""#,
        r#""max_msg_fds":1.5"#,
        r#""max_msg_fds":1025"#,
        r#""max_data_xfer_size":0"#,
        r#""max_data_xfer_size":"big""#,
        r#""max_data_xfer_size":null"#,
        r#""max_data_xfer_size":18446744073709551616"#,
        r#""max_dma_maps":"many""#,
        r#""max_dma_maps":-5"#,
        r#""pgsizes":"all""#,
        r#""twin_socket":true"#,
        r#""twin_socket":{"supported":1}"#,
        r#""write_multiple":1"#,
        r#""write_multiple":"yes""#,
        r#""migration":4096"#,
        r#""migration":{"pgsize":"4096"}"#,
        r#""migration":{"pgsize":4096,"max_bitmap_size":"no"}"#,
        r#""vfio_migrate":1"#,
        r#""vfio_migrate":{}"#,
        r#""vfio_migrate":{"version":-1}"#,
        r#""vfio_migrate":{"version":4294967296}"#,
    ] {
        rows.push(offering(wrong).refused(EINVAL).why(Fields, wrong));
    }
    let mut rows: Vec<Row> = rows.into_iter().map(|row| row.over(Link::Fresh)).collect();

    // What was agreed holds.
    let small = r#""max_data_xfer_size":4096"#;
    rows.extend([
        after(small, valid::memory_read(0, 4096))
            .why(Limit, "as much as the client takes"),
        after(small, valid::memory_read(0, 4097))
            .refused(EINVAL)
            .why(Limit, "more than the client takes"),
        after(small, valid::memory_write(0, &[1; 8192]))
            .why(Limit, "more than the client takes, to the server"),
        after(small, valid::data_read().body(valid::words(&[8200, 8192])))
            .refused(EINVAL)
            .why(Limit, "more migration data than the client takes"),
        after(r#""max_dma_maps":1"#, valid::dma_map_bare().given([valid::dma_map()]))
            .refused(ENOSPC)
            .why(Limit, "one mapping more than the client said"),
        after(r#""max_dma_maps":1"#, valid::dma_map_bare())
            .given([valid::dma_map(), valid::dma_unmap()])
            .why(Limit, "as many mappings as the client said"),
        after(r#""pgsizes":65536"#, valid::dma_map())
            .refused(EINVAL)
            .why(Limit, "a mapping smaller than the client's pages"),
        offering(r#""pgsizes":65536"#)
            .over(Link::Fresh)
            .mentions(r#""pgsizes":65536"#)
            .why(Valid, "larger pages"),
        offering(r#""pgsizes":2048"#)
            .over(Link::Fresh)
            .refused(EINVAL)
            .why(Limit, "no pages of ours"),
        after(r#""max_msg_fds":0"#, region_with_window().answer(32).brings(0))
            .why(NoFds, "a window, for a client that takes no descriptor"),
        after(r#""max_msg_fds":1"#, region_with_window())
            .why(Valid, "a window, for a client that takes one descriptor"),
        valid::feature(9, valid::GET, &[])
            .u32(0, 16)
            .over(Link::Foreign)
            .refused(ENOTTY)
            .why(State, "our feature, without agreement"),
    ]);
    rows
}

/// Asks for region 2 with its capability.
fn region_with_window() -> Row {
    valid::region_info().u32(0, 64).u32(8, 2).answer(64).brings(1)
}

//! Answers to VERSION.

use super::super::row::{Fd, Row};
use super::Lie;
use super::calls::{VERSION, version};

/// The answer with these capabilities.
fn saying(capabilities: &'static str) -> Lie {
    Lie::new(&VERSION, capabilities, move |row: Row| {
        row.body(version(&format!(r#"{{"capabilities":{{{capabilities}}}}}"#)))
    })
}

/// The answer with this text.
fn text(text: &'static str) -> Lie {
    Lie::new(&VERSION, format!("the text {text:?}"), move |row: Row| {
        row.body(version(text))
    })
}

fn with_fds(lie: Lie, fds: &'static [Fd]) -> Lie {
    let change = std::sync::Arc::clone(&lie.change);
    let what = format!("{}, with {fds:?}", lie.what);
    Lie { what, change: std::sync::Arc::new(move |row| change(row).fds(fds)), ..lie }
}

pub fn lies() -> Vec<Lie> {
    let lie = |what: &str, change: fn(Row) -> Row| Lie::new(&VERSION, what, change);
    let twin = r#""twin_socket":{"supported":true,"fd_index":0}"#;
    let mut lies = vec![
        lie("major 1", |row| row.u16(0, 1)).broken(),
        lie("major 65535", |row| row.u16(0, u16::MAX)).broken(),
        lie("minor 1", |row| row.u16(2, 1)),
        lie("minor 2", |row| row.u16(2, 2)),
        lie("minor 3", |row| row.u16(2, 3)).broken(),
        lie("minor 9", |row| row.u16(2, 9)).broken(),
        lie("minor 65535", |row| row.u16(2, u16::MAX)).broken(),
        lie("no text at all", |row| row.body(vec![0; 4])),
        lie("3 bytes", |row| row.body(vec![0; 3])).broken(),
        lie("no NUL", |row| row.body(b"\0\0\0\0{}".to_vec())).broken(),
        lie("two NULs", |row| row.body(b"\0\0\0\0{}\0\0".to_vec())).broken(),
        lie("a NUL alone", |row| row.body(vec![0; 5])).broken(),
        lie("no UTF-8", |row| row.body(b"\0\0\0\0{\"\xff\":1}\0".to_vec())).broken(),
        lie("15,000 brackets", |row| row.body(version(&"[".repeat(15_000)))).broken(),
        lie("32 KiB of white space", |row| row.body(version(&" ".repeat(32_000))))
            .broken(),
        lie("additions that are newer", |row| {
            row.body(version(r#"{"capabilities":{"vfio_migrate":{"version":2}}}"#))
        })
        .broken(),
        text("{}"),
        text(r#"{"capabilities":{}}"#),
        text(r#"{"capabilities":{"unheard_of":[{}]}}"#),
        text("nonsense").broken(),
        text("[]").broken(),
        text("null").broken(),
        text("7").broken(),
        text("{").broken(),
        text(r#"{"capabilities":7}"#).broken(),
        text(r#"{"capabilities":null}"#).broken(),
        saying(r#""max_msg_fds":0"#),
        saying(r#""max_msg_fds":1024"#),
        saying(r#""max_data_xfer_size":1"#),
        saying(r#""max_data_xfer_size":4294967295"#),
        saying(r#""max_dma_maps":0"#),
        saying(r#""write_multiple":true"#),
        saying(r#""migration":{"pgsize":4096,"max_bitmap_size":0}"#),
        saying(r#""twin_socket":{"supported":false}"#),
        // A file is no socket, nor is an eventfd.
        saying(twin).broken(),
        with_fds(saying(twin), &[Fd::File]).broken(),
        with_fds(saying(twin), &[Fd::Event(0)]).broken(),
        with_fds(saying(twin), &[Fd::Memory]).broken(),
        with_fds(saying(r#""twin_socket":{"supported":true}"#), &[Fd::File]).broken(),
        with_fds(saying(r#""twin_socket":{"supported":true,"fd_index":1}"#), &[Fd::File])
            .broken(),
        with_fds(
            saying(r#""twin_socket":{"supported":true,"fd_index":4294967295}"#),
            &[Fd::File],
        )
        .broken(),
        with_fds(saying(r#""max_msg_fds":8"#), &[Fd::File, Fd::Event(0)]),
    ];
    for wrong in [
        r#""max_msg_fds":-1"#,
        r#""max_msg_fds":"16""#,
        r#""max_msg_fds":1025"#,
        r#""max_data_xfer_size":0"#,
        r#""max_data_xfer_size":"big""#,
        r#""max_data_xfer_size":18446744073709551616"#,
        r#""max_dma_maps":"many""#,
        r#""pgsizes":0"#,
        r#""pgsizes":"all""#,
        r#""twin_socket":true"#,
        r#""twin_socket":{"supported":true,"fd_index":-1}"#,
        r#""write_multiple":1"#,
        r#""migration":4096"#,
        r#""migration":{"pgsize":3}"#,
        r#""vfio_migrate":1"#,
        r#""vfio_migrate":{}"#,
        r#""vfio_migrate":{"version":-1}"#,
    ] {
        lies.push(saying(wrong).broken());
    }
    lies
}

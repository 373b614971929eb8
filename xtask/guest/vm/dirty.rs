//! `dirty` of a kernel device: what mtty writes, by whoever tells.

use super::command::{run, words};
use super::port::Port;
use super::{Checked, Stop, uart};
use crate::expect;

/// mtty writes no memory, and whoever is asked says so: its own log where the kernel can
/// report from it, and else its container, which counts what is pinned.
pub(super) fn check() -> Checked {
    let port = Port::new(1)?;
    let contents = uart::put(&uart::open(&port)?, 1, 0x61)?;
    let mut told = Vec::new();
    for way in ["group", "cdev"] {
        if way == "cdev" && port.cdev().is_none() {
            continue;
        }
        let uri = format!("{}?by={way}", port.uri());
        let picture = format!("/tmp/{way}.svg");
        let times = ["--interval", "100ms", "--duration", "300ms", "--memory", "8M"];
        let said = run(&[&["dirty", &uri, "--picture", &picture], &times[..]].concat())?;
        let summary = &said.well()?["summary"];
        let log = &summary["log"];
        told.push(format!("{way}: {} ({})", words(&log["name"]), words(&log["kind"])));
        expect("pages", summary["pages"].as_u64().unwrap_or(u64::MAX), 0)?;
        if summary["lent"] != true || log["all_each_time"] != false {
            return Err(Stop::Fail(format!("it was watched otherwise: {summary}")));
        }
        let drawn = std::fs::read_to_string(&picture).unwrap_or_default();
        if !drawn.contains("nothing was written") || !drawn.ends_with("</svg>\n") {
            return Err(Stop::Fail(format!("{picture}: {drawn}")));
        }
    }
    uart::take("after that", &uart::open(&port)?, &contents)?;
    Ok(format!("no page, told by {}", told.join(", ")))
}

//! Compares the digests of both sides, and each side's counters with themselves.
//!
//! Pure functions over what was written while the guest was stopped: on the source
//! before anything of the stop-copy was read, on the destination after everything was
//! loaded. None of it went through the migration's stream.
//!
//! | rule | breaks when |
//! | --- | --- |
//! | every page and chunk has the same digest on both sides | bytes were lost, or are from before or after the stop |
//! | registers and timer are the same | a section was lost, or the timer ticked |
//! | device counters are the same | a device took or did something in between |
//! | raised = handled + pending, on each side, by vector | an interrupt was lost or came twice |
//! | a line that is up is pending, on each side | the guest will never hear of it |
//! | what a device sent is what its peer received, each block once | a peer write was lost, came twice or too late |
//! | no access reached a device that was stopped, and it tried nothing | the barrier does not hold |

use std::path::Path;

use anyhow::{Context, Result};

use super::digests::{Device, Digests};
use crate::report::Problem;

/// The most problems that are listed one by one.
const LISTED: usize = 20;

/// How the counters end that must be 0: accesses to a device that is stopped, and what it
/// tried to do then.
const STOPPED: &str = "_while_stopped";

/// How the counters begin that say how often a vector was heard.
const SENT: &str = "irq_sent_";

/// How the counters begin that say whether a line is up, of a device whose interrupt is a
/// level.
const LINE_UP: &str = "irq_waits_";

/// What was compared and found the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Pages of guest memory.
    pub pages: u64,
    /// Chunks of device memory.
    pub chunks: u64,
    /// Blocks that the devices wrote, all together.
    pub blocks: u64,
    /// Interrupts of theirs that were handled or are pending, all together.
    pub interrupts: u64,
}

/// Compares two files of digests, the source's and the destination's.
///
/// # Errors
/// When a file cannot be read; the inner error are the places that differ.
pub fn compare_files(
    source: &Path,
    destination: &Path,
) -> Result<Result<Summary, Vec<Problem>>> {
    let read = |path: &Path| {
        Digests::read(path).with_context(|| format!("digests {}", path.display()))
    };
    Ok(compare(&read(source)?, &read(destination)?))
}

/// Compares the digests of both sides.
///
/// # Errors
/// Every place that differs, the first twenty by name.
pub fn compare(source: &Digests, destination: &Digests) -> Result<Summary, Vec<Problem>> {
    let mut found = Found::default();
    let (ours, theirs) = (&source.header, &destination.header);
    if (ours.pages, ours.devices.len()) != (theirs.pages, theirs.devices.len()) {
        let text = format!(
            "{} pages and {} devices on the source, {} and {} on the destination",
            ours.pages,
            ours.devices.len(),
            theirs.pages,
            theirs.devices.len()
        );
        return Err(vec![Problem { place: "the machine".to_owned(), text }]);
    }
    for (page, (a, b)) in source.pages.iter().zip(&destination.pages).enumerate() {
        if a != b {
            found.add(format!("page {page:#x}"), || differ(a, b));
        }
    }
    if ours.registers != theirs.registers {
        found.add("registers of the vCPUs", || {
            format!("{:08x?} and {:08x?}", ours.registers, theirs.registers)
        });
    }
    if ours.timer_ns != theirs.timer_ns {
        found.add("the timer", || {
            format!("{} ns on the source, {} ns later", ours.timer_ns, theirs.timer_ns)
        });
    }
    let mut chunks = 0;
    for (n, (a, b)) in ours.devices.iter().zip(&theirs.devices).enumerate() {
        let (before, after) = (&source.chunks[n], &destination.chunks[n]);
        chunks += before.len() as u64;
        device(&mut found, (a, before), (b, after));
    }
    found.0.extend(consistent(source, "source"));
    found.0.extend(consistent(destination, "destination"));
    found.end(Summary {
        pages: ours.pages,
        chunks,
        blocks: total(&ours.devices, "ring_sent") + total(&ours.devices, "peer_sent"),
        interrupts: ours.devices.iter().map(interrupts).sum(),
    })
}

/// Compares what one side counted with itself: interrupts and peer writes.
pub fn consistent(side: &Digests, name: &str) -> Vec<Problem> {
    let mut found = Found::default();
    let devices = &side.header.devices;
    for device in devices {
        for vector in 0..device.handled.len() {
            let handled = device.handled[vector];
            let pending = device.pending.get(vector).copied().unwrap_or(0);
            let place = || format!("interrupts of {}, vector {vector}", device.name);
            // How often a level was heard says nothing.
            if let Some(up) = device.find(&format!("{LINE_UP}{vector}")) {
                if up > 0 && pending == 0 {
                    found.add(place(), || format!("{name}: the line is up, unheard"));
                }
                continue;
            }
            let raised = device.counter(&format!("{SENT}{vector}"));
            if handled.checked_add(pending) != Some(raised) {
                found.add(place(), || {
                    format!(
                        "{name}: {raised} raised, {handled} handled and {pending} pending"
                    )
                });
            }
        }
        for (counter, count) in &device.counters {
            let error = counter.ends_with("_errors") || counter.ends_with(STOPPED);
            if error && *count > 0 {
                found.add(device.name.clone(), || format!("{name}: {counter} {count}"));
            }
        }
    }
    if side.header.p2p {
        for (n, device) in devices.iter().enumerate() {
            let peer = &devices[(n + 1) % devices.len()];
            let sent = device.counter("peer_acknowledged");
            let came = peer.counter("received");
            let sum = sent.wrapping_mul(sent.wrapping_sub(1)) / 2;
            if sent != came || (sent < 1 << 31 && peer.counter("received_sum") != sum) {
                let place = format!("peer-to-peer from {} to {}", device.name, peer.name);
                found.add(place, || {
                    format!("{name}: {sent} blocks arrived by the sender, {came} by the receiver")
                });
            }
        }
    }
    found.0
}

fn device(found: &mut Found, a: (&Device, &Vec<u32>), b: (&Device, &Vec<u32>)) {
    let ((a, before), (b, after)) = (a, b);
    if (a.chunk_bytes, before.len()) != (b.chunk_bytes, after.len()) {
        found.add(a.name.clone(), || {
            format!(
                "{} chunks of {} bytes on the source, {} of {} on the destination",
                before.len(),
                a.chunk_bytes,
                after.len(),
                b.chunk_bytes
            )
        });
        return;
    }
    for (chunk, (x, y)) in before.iter().zip(after).enumerate() {
        if x != y {
            let at = chunk as u64 * a.chunk_bytes;
            found.add(format!("memory of {} at {at:#x}", a.name), || differ(x, y));
        }
    }
    // What a server counts of its own life is each side's own.
    for (name, value) in a.counters.iter().filter(|(name, _)| !name.ends_with(STOPPED)) {
        let other = b.counters.iter().find(|(known, _)| known == name);
        if other.map(|(_, value)| value) != Some(value) {
            let other = other.map_or("nothing".into(), |(_, value)| value.to_string());
            found.add(format!("counter {name} of {}", a.name), || {
                format!("{value} on the source, {other} on the destination")
            });
        }
    }
    for (vector, pair) in a.handled.iter().zip(&b.handled).enumerate() {
        let totals = |device: &Device, handled: u64| {
            handled.saturating_add(device.pending.get(vector).copied().unwrap_or(0))
        };
        let (x, y) = (totals(a, *pair.0), totals(b, *pair.1));
        if x != y {
            let place = format!("interrupts of {}, vector {vector}", a.name);
            found.add(place, || {
                format!("{x} handled and pending on the source, {y} on the destination")
            });
        }
    }
}

/// Interrupts of a device that somebody heard.
fn interrupts(device: &Device) -> u64 {
    device.handled.iter().chain(&device.pending).fold(0, |sum, n| sum.saturating_add(*n))
}

fn total(devices: &[Device], counter: &str) -> u64 {
    devices.iter().map(|device| device.counter(counter)).sum()
}

fn differ(a: &u32, b: &u32) -> String {
    format!("digest {a:08x} on the source, {b:08x} on the destination")
}

/// Problems, as they come.
#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, place: impl Into<String>, text: impl FnOnce() -> String) {
        // Most of a text is made in vain when every page differs.
        let text = if self.0.len() < LISTED { text() } else { String::new() };
        self.0.push(Problem { place: place.into(), text });
    }

    fn end(mut self, summary: Summary) -> Result<Summary, Vec<Problem>> {
        if self.0.is_empty() {
            return Ok(summary);
        }
        let more = self.0.len().saturating_sub(LISTED);
        self.0.truncate(LISTED);
        if more > 0 {
            let text = format!("{more} more places differ");
            self.0.push(Problem { place: "elsewhere".to_owned(), text });
        }
        Err(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side() -> Digests {
        let device = |name: &str| Device {
            name: name.to_owned(),
            chunk_bytes: 65536,
            chunks: 3,
            counters: vec![
                ("ring_sent".to_owned(), 9),
                ("peer_acknowledged".to_owned(), 4),
                ("received".to_owned(), 4),
                ("received_sum".to_owned(), 6),
                ("irq_sent_0".to_owned(), 7),
                ("irq_sent_1".to_owned(), 0),
            ],
            handled: vec![5, 0],
            pending: vec![2, 0],
        };
        let devices = ["accel0", "accel1"].map(|name| (device(name), vec![1, 2, 3]));
        Digests::new(vec![11, 12], 99, true, (0..50).collect(), devices.into())
    }

    fn places(source: &Digests, destination: &Digests) -> Vec<String> {
        let problems = compare(source, destination).unwrap_err();
        problems.into_iter().map(|problem| problem.place).collect()
    }

    #[test]
    fn what_is_the_same_is_counted() {
        let expected = Summary { pages: 50, chunks: 6, blocks: 18, interrupts: 14 };
        assert_eq!(compare(&side(), &side()), Ok(expected));
    }

    #[test]
    fn whatever_differs_is_named() {
        let mut other = side();
        other.pages[0x1f] ^= 1;
        assert_eq!(places(&side(), &other), ["page 0x1f"]);
        let mut other = side();
        other.chunks[1][2] ^= 1;
        assert_eq!(places(&side(), &other), ["memory of accel1 at 0x20000"]);
        let mut other = side();
        other.header.timer_ns += 1;
        assert_eq!(places(&side(), &other), ["the timer"]);
        let mut other = side();
        other.header.registers[1] = 0;
        assert_eq!(places(&side(), &other), ["registers of the vCPUs"]);
    }

    #[test]
    fn a_dropped_interrupt_is_found_and_one_handled_meanwhile_is_none() {
        let mut other = side();
        other.header.devices[0].pending[0] = 1;
        let found = places(&side(), &other);
        assert!(found.iter().all(|place| place == "interrupts of accel0, vector 0"));
        assert!(!found.is_empty());
        let mut other = side();
        other.header.devices[0].pending[0] = 0;
        other.header.devices[0].handled[0] = 7;
        compare(&side(), &other).unwrap();
    }

    #[test]
    fn a_line_that_is_up_and_that_nobody_hears_is_found() {
        let line = |up: u64, handled: u64, pending: u64| {
            let mut side = side();
            let device = &mut side.header.devices[1];
            device.counters.push(("irq_waits_0".to_owned(), up));
            (device.handled, device.pending) = (vec![handled], vec![pending]);
            side
        };
        // However often it was heard, and whether it went down again since.
        for (up, pending) in [(0, 0), (1, 1), (0, 1), (1, 3)] {
            let side = line(up, 40, pending);
            compare(&side, &side).unwrap();
        }
        let found = places(&line(1, 40, 0), &line(1, 40, 0));
        assert!(found.iter().all(|place| place == "interrupts of accel1, vector 0"));
        // On the way it may neither get lost nor come twice.
        for (handled, pending) in [(40, 2), (39, 1), (40, 0)] {
            assert!(!places(&line(1, 40, 1), &line(1, handled, pending)).is_empty());
        }
    }

    #[test]
    fn a_late_a_lost_and_a_doubled_peer_write_are_found() {
        for (received, sum) in [(3, 3), (5, 6), (4, 5)] {
            let mut both = side();
            both.header.devices[1].counters[2].1 = received;
            both.header.devices[1].counters[3].1 = sum;
            let found = places(&both, &both);
            assert!(found[0].contains("from accel0 to accel1"), "{found:?}");
        }
        let mut late = side();
        let counter = ("accesses_while_stopped".to_owned(), 1);
        late.header.devices[0].counters.push(counter);
        assert!(!places(&late, &late).is_empty());
    }

    #[test]
    fn a_guest_that_differs_everywhere_does_not_flood_the_report() {
        let mut other = side();
        other.pages.iter_mut().for_each(|sum| *sum ^= 1);
        let problems = compare(&side(), &other).unwrap_err();
        assert_eq!(problems.len(), LISTED + 1);
        assert_eq!(problems[LISTED].text, "30 more places differ");
    }

    #[test]
    fn a_file_is_read_as_written_and_a_broken_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digests");
        side().write(&path).unwrap();
        assert_eq!(Digests::read(&path).unwrap(), side());
        assert_eq!(compare_files(&path, &path).unwrap(), compare(&side(), &side()));
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Digests::read(&path).is_err(), "{cut}");
        }
        let text = String::from_utf8_lossy(&whole).into_owned();
        for absurd in ["18446744073709551615", "1073741824"] {
            let line = text
                .lines()
                .next()
                .unwrap()
                .replace("\"pages\":50", &format!("\"pages\":{absurd}"));
            std::fs::write(&path, format!("{line}\n")).unwrap();
            assert!(Digests::read(&path).is_err());
        }
    }
}

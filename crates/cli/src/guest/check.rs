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
//! | BARs are at the same addresses, the same vectors are masked | the config space of a device was lost |
//! | sent = handled + pending, on each side, by vector | a message was lost or came twice |
//! | of those sent while a vector was masked, one counts each time | a mask let something through, or the bit was lost that one waits for |
//! | no more and no fewer such times than the guest knows of, who masked it | a delivery came twice, and a time that never was accounts for it |
//! | the same pending bits are set | what waited became an interrupt of its own, and another one may follow it |
//! | rises of a line = acknowledged, + 1 while it is up | an interrupt was lost or came twice |
//! | what a device waits to tell by its line, is pending there | the guest will never hear of it |
//! | what a device sent is what its peer received, each block once | a peer write was lost, came twice or too late |
//! | no access reached a device that was stopped, and it tried nothing | the barrier does not hold |

use std::path::Path;

use anyhow::{Context, Result};

use super::digests::{Device, Digests, Line, Vector};
use crate::report::Problem;

/// The most problems that are listed one by one.
const LISTED: usize = 20;

/// How the counters end that must be 0: accesses to a device that is stopped, and what it
/// tried to do then.
const STOPPED: &str = "_while_stopped";

/// How the counters begin that say how often something waited to be told by the line.
const WAITED: &str = "irq_waited_";

/// The counter that says whether anything does, of a device that does not say what.
const WAITS: &str = "irq_waits_0";

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
        interrupts: ours.devices.iter().map(interrupts).fold(0, u64::saturating_add),
    })
}

/// Compares what one side counted with itself: interrupts and peer writes.
pub fn consistent(side: &Digests, name: &str) -> Vec<Problem> {
    let mut found = Found::default();
    let devices = &side.header.devices;
    for device in devices {
        match &device.line {
            Some(line) => by_line(&mut found, name, device, *line),
            None => by_messages(&mut found, name, device),
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

/// Every message that was sent is handled or pending, but for those that came while their
/// vector was masked: all of one such time are one.
fn by_messages(found: &mut Found, name: &str, device: &Device) {
    for (number, vector) in device.vectors.iter().enumerate() {
        let Vector { handled, pending, absorbed, windows, own, .. } = *vector;
        let place = || format!("interrupts of {}, vector {number}", device.name);
        let sent = device.sent(number).unwrap_or(0);
        let heard = [handled, pending, absorbed]
            .iter()
            .try_fold(0_u64, |sum, n| sum.checked_add(*n));
        if heard.is_none() || heard != sent.checked_add(windows) {
            found.add(place(), || {
                format!(
                    "{name}: {sent} sent; {handled} handled, {pending} pending, \
                     {absorbed} while it was masked, {windows} times"
                )
            });
        }
        if windows > absorbed {
            found.add(place(), || {
                format!("{name}: {absorbed} came in {windows} times that it was masked")
            });
        }
        for (what, count, (least, most)) in [
            ("times that it was masked and something came", windows, own.windows),
            (
                "messages that became one with another",
                absorbed.saturating_sub(windows),
                own.swallowed,
            ),
        ] {
            if !(least..=most).contains(&count) {
                found.add(place(), || {
                    format!(
                        "{name}: {count} {what}; by the guest's own account there were \
                         {least} to {most}"
                    )
                });
            }
        }
    }
}

/// A line rises as often as it is acknowledged; what waits to be told is told by it.
fn by_line(found: &mut Found, name: &str, device: &Device, line: Line) {
    let Line { rises, acknowledged, pending, off } = line;
    let place = || format!("interrupts of {}, the line", device.name);
    let up = u64::from(pending && !off);
    if acknowledged.checked_add(up) != Some(rises) {
        found.add(place(), || {
            format!("{name}: {rises} rises, {acknowledged} acknowledged, {up} up")
        });
    }
    let mut waits = device.counter(WAITS) > 0;
    for (number, vector) in device.vectors.iter().enumerate() {
        let Some(waited) = device.find(&format!("{WAITED}{number}")) else { continue };
        let handled = vector.handled;
        waits |= waited > handled;
        if waited != handled && waited.checked_sub(1) != Some(handled) {
            let place = format!("interrupts of {}, vector {number}", device.name);
            found.add(place, || {
                format!("{name}: {waited} waited for the line, {handled} handled")
            });
        }
    }
    if waits && !pending && !off {
        found.add(place(), || format!("{name}: something waits, and the line is down"));
    }
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
    if (a.interrupts, a.vectors.len()) != (b.interrupts, b.vectors.len()) {
        found.add(format!("interrupts of {}", a.name), || {
            let kind = |device: &Device| match device.interrupts {
                Some(kind) => format!("{} vectors of {kind}", device.vectors.len()),
                None => "none".to_owned(),
            };
            format!("{} on the source, {} on the destination", kind(a), kind(b))
        });
    }
    for (number, (x, y)) in a.vectors.iter().zip(&b.vectors).enumerate() {
        if x != y {
            let place = format!("interrupts of {}, vector {number}", a.name);
            found.add(place, || format!("{x:?} on the source, {y:?} on the destination"));
        }
    }
    if let (Some(x), Some(y)) = (a.line, b.line)
        && x != y
    {
        let place = format!("interrupts of {}, the line", a.name);
        found.add(place, || format!("{x:?} on the source, {y:?} on the destination"));
    }
    if a.bars != b.bars {
        let places = |device: &Device| {
            let place = |(bar, at): &(u8, u64)| format!("BAR{bar} at {at:#x}");
            device.bars.iter().map(place).collect::<Vec<_>>().join(", ")
        };
        found.add(format!("addresses of {}", a.name), || {
            format!("[{}] on the source, [{}] on the destination", places(a), places(b))
        });
    }
}

/// Interrupts of a device that somebody heard.
fn interrupts(device: &Device) -> u64 {
    let line = device.line.map(|line| line.rises);
    let messages = || {
        let each =
            device.vectors.iter().map(|one| one.handled.saturating_add(one.pending));
        each.fold(0, u64::saturating_add)
    };
    line.unwrap_or_else(messages)
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
    use crate::guest::digests::Own;
    use crate::guest::options::InterruptKind;

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
                ("irq_sent_1".to_owned(), 9),
            ],
            interrupts: Some(InterruptKind::Msix),
            vectors: vec![
                Vector { handled: 5, pending: 2, ..Vector::default() },
                // Three came twice while it was masked, and the last of them wait.
                Vector {
                    handled: 4,
                    pending: 1,
                    held: true,
                    absorbed: 6,
                    windows: 2,
                    own: Own { windows: (1, 2), swallowed: (4, 4) },
                    masked: true,
                },
            ],
            line: None,
            bars: vec![(0, 0xe000_0000), (2, 1 << 32)],
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
        let expected = Summary { pages: 50, chunks: 6, blocks: 18, interrupts: 24 };
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
    fn a_message_is_lost_or_doubled_whether_its_vector_is_masked_or_not() {
        type Change = fn(&mut Vector);
        let changes: [(usize, Change); 7] = [
            (0, |open| open.pending = 1),
            (0, |open| open.pending = 3),
            (0, |open| open.handled = 6),
            (0, |open| open.handled = u64::MAX),
            // The bit that one waits for, a second delivery, a time that nobody counted.
            (1, |masked| masked.pending = 0),
            (1, |masked| masked.pending = 2),
            (1, |masked| masked.windows = 3),
        ];
        for (vector, change) in changes {
            let mut other = side();
            change(&mut other.header.devices[0].vectors[vector]);
            let place = format!("interrupts of accel0, vector {vector}");
            // On its way, and on each side by itself.
            for found in [places(&side(), &other), places(&other, &other)] {
                assert!(found.iter().all(|found| *found == place), "{found:?}");
                assert!(!found.is_empty());
            }
        }
        let mut other = side();
        other.header.devices[0].vectors[0].masked = true;
        assert!(!places(&side(), &other).is_empty());
    }

    #[test]
    fn a_delivery_that_came_twice_is_hidden_by_a_time_that_it_was_never_masked() {
        // All sums are whole. How often it was masked only the guest can tell, and where
        // it does not know that, still what can have been lost by it.
        for (windows, says) in [((1, 2), "3 times"), ((1, 9), "3 messages")] {
            let mut other = side();
            let vector = &mut other.header.devices[1].vectors[1];
            vector.own.windows = windows;
            assert!(compare(&other, &other).is_ok());
            let vector = &mut other.header.devices[1].vectors[1];
            vector.handled += 1;
            vector.windows += 1;
            for (name, found) in
                ["source", "destination"].map(|n| (n, consistent(&other, n)))
            {
                let told = found.iter().find(|problem| problem.text.contains(says));
                let told = told.unwrap_or_else(|| panic!("{says}: {found:?}"));
                assert_eq!(told.place, "interrupts of accel1, vector 1");
                assert!(told.text.starts_with(name), "{told:?}");
            }
        }
        // And one that came, and that nobody says.
        let mut other = side();
        let vector = &mut other.header.devices[1].vectors[1];
        (vector.pending, vector.held) = (0, false);
        (vector.windows, vector.absorbed) = (0, 5);
        vector.handled = 4;
        assert!(!consistent(&other, "here").is_empty());
    }

    #[test]
    fn a_masked_vector_is_delivered_twice_because_its_bit_became_a_delivery_on_the_way() {
        // By its sums it is whole: what still comes in the same time opens another.
        let mut other = side();
        other.header.devices[0].vectors[1].held = false;
        assert_eq!(places(&side(), &other), ["interrupts of accel0, vector 1"]);
    }

    #[test]
    fn a_line_that_is_up_and_that_nobody_hears_is_found() {
        let line = |waited: u64, handled: u64, line: Line| {
            let mut side = side();
            let device = &mut side.header.devices[1];
            device.interrupts = Some(InterruptKind::Intx);
            device.counters.push(("irq_waited_0".to_owned(), waited));
            device.vectors = vec![Vector { handled, ..Vector::default() }];
            device.line = Some(line);
            side
        };
        let down = Line { rises: 40, acknowledged: 40, pending: false, off: false };
        let up = Line { rises: 41, pending: true, ..down };
        let off = Line { off: true, ..down };
        for (waited, state) in [(9, down), (9, up), (10, up), (9, off), (10, off)] {
            let side = line(waited, 9, state);
            compare(&side, &side).unwrap();
        }
        for (waited, state) in [
            // Something waits, and will for ever.
            (10, down),
            // A rise or an acknowledgement too many or too few.
            (9, Line { rises: 41, ..down }),
            (9, Line { rises: 40, ..up }),
            (9, Line { rises: 42, ..up }),
            (9, Line { acknowledged: u64::MAX, ..up }),
            (9, Line { rises: 41, ..off }),
            // More, or less, was told than there was.
            (11, up),
            (8, up),
        ] {
            let side = line(waited, 9, state);
            let found = places(&side, &side);
            assert!(found.iter().all(|place| place.starts_with("interrupts of accel1")));
            assert!(!found.is_empty(), "{waited}, {state:?}");
        }
        assert!(!places(&line(9, 9, up), &line(9, 9, down)).is_empty());
        let mut waits = line(9, 9, down);
        waits.header.devices[1].counters.push(("irq_waits_0".to_owned(), 1));
        assert_eq!(places(&waits, &waits)[0], "interrupts of accel1, the line");
    }

    #[test]
    fn a_bar_elsewhere_or_another_kind_of_interrupts_is_found() {
        let mut other = side();
        other.header.devices[1].bars[1].1 += 1 << 20;
        assert_eq!(places(&side(), &other), ["addresses of accel1"]);
        let mut other = side();
        other.header.devices[0].interrupts = Some(InterruptKind::Msi);
        assert_eq!(places(&side(), &other), ["interrupts of accel0"]);
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

//! `vfio-migrate decode`: a stream or a file of ours, frame by frame.
//!
//! [`wire::walk`] reads and judges; here it is shown, as lines or as JSON objects:
//!
//! ```text
//!       offset         hex      seq type          flags  payload  meaning
//!            0         0x0        - preamble      -           64  a file of version 1, ...
//!           64        0x40        0 CONTROL       c          212  Hello, 1 device, ...
//!          300       0x12c        1 DEVICE_BEGIN  c          178  device 0 begins: accel0
//!                                 ! damaged: DEVICE_BEGIN number 1 has checksum ...
//! ```
//!
//! It holds one frame at a time, so a file may be of any size, and it stops when nobody
//! reads what it says.

mod ending;
mod groups;
mod meaning;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Read, StdoutLock, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context, Error, Result, bail};
use serde_json::{Value, json};
use wire::preamble::{MAGIC, PreambleError};
use wire::walk::{Damage, Item, Summary, WalkedFrame, Walker, Wrong};
use wire::{Flags, Preamble};

use crate::args::{Decode, Global};
use crate::exit::{Exit, Found, status};
use groups::{Group, Groups};
use meaning::Meaning;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// The stream was read, and is not whole.
#[derive(Debug, thiserror::Error)]
#[error("{name} is damaged at byte {offset}")]
pub(super) struct Damaged {
    name: String,
    offset: u64,
    #[source]
    wrong: Wrong,
}

/// Shows it.
pub(super) fn run(decode: &Decode, global: &Global) -> Result<Exit> {
    let file = decode.file.as_path();
    let name = match is_standard(file) {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let mut input = open(file, &name)?;
    let mut show = Show {
        out: BufWriter::new(io::stdout().lock()),
        json: global.json,
        verbose: global.verbose > 0,
        groups: decode.summary.then(Groups::default),
        titled: false,
    };
    let mut walker = Walker::new();
    let (mut buffer, mut start) = (vec![0; PIECE], Vec::new());
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Error::new(error).context(format!("cannot read {name}")));
            }
        };
        let mut piece = buffer.get(..count).unwrap_or(&[]);
        start.extend(piece.iter().take(START - start.len()));
        while let Some(item) = walker.next(&mut piece) {
            if let Item::Stopped(Damage { wrong: Wrong::Preamble(error), .. }) = &item {
                not_ours(&name, &start, *error)?;
            }
            if !heard(show.item(&item))? {
                return unheard(name, walker.finish());
            }
        }
        // The next read may wait for somebody who writes slowly.
        if !heard(show.out.flush())? {
            return unheard(name, walker.finish());
        }
    }
    let summary = walker.finish();
    match summary.first_damage.as_ref().map(|damage| &damage.wrong) {
        Some(Wrong::Empty) => empty(&name)?,
        Some(Wrong::Preamble(error)) => not_ours(&name, &start, *error)?,
        _ => {}
    }
    if !heard(show.ending(&summary))? {
        return unheard(name, summary);
    }
    drop(show);
    match summary.first_damage {
        None => Ok(status(Found::Done)),
        Some(Damage { offset, wrong }) => Err(Damaged { name, offset, wrong }.into()),
    }
}

/// Whether there still is somebody who reads.
fn heard(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::new(error).context("cannot write to standard output")),
    }
}

/// Nobody reads any more: the end is that of what was found by then.
fn unheard(name: String, summary: Summary) -> Result<Exit> {
    // What the walk did not come to is not missing from the stream.
    let by_then = summary.damages > summary.at_end.len() as u64;
    match summary.first_damage.filter(|_| by_then) {
        None => Ok(status(Found::Done)),
        Some(Damage { offset, wrong }) => Err(Damaged { name, offset, wrong }.into()),
    }
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

fn open(file: &Path, name: &str) -> Result<Box<dyn Read>> {
    if is_standard(file) {
        if io::stdin().is_terminal() {
            bail!("standard input is a terminal: pipe a stream into it, or name a file");
        }
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) => {
            return Err(match error.kind() {
                ErrorKind::NotFound => {
                    Error::msg(format!("there is no file {name}: check its path"))
                }
                ErrorKind::PermissionDenied => Error::msg(format!(
                    "{name} may not be read by this user: permission denied; run it as \
                     the file's owner"
                )),
                _ if file.metadata().is_ok_and(|found| found.file_type().is_socket()) => {
                    Error::msg(format!(
                        "{name} is a socket, and no file: name what `save` wrote"
                    ))
                }
                _ => Error::new(error).context(format!("cannot open {name}")),
            });
        }
    };
    let metadata = opened.metadata().with_context(|| format!("cannot read {name}"))?;
    if metadata.is_dir() {
        bail!("{name} is a directory: name a file in it");
    }
    Ok(Box::new(opened))
}

/// Refuses what does not even begin as a stream of ours, in the words of `decode`; for
/// commands that are given a regular file, before they read it as a stream. Standard
/// input can be read once, and is left alone.
pub(super) fn begins_as_ours(file: &Path) -> Result<()> {
    if is_standard(file) {
        return Ok(());
    }
    let name = file.display().to_string();
    let mut start = Vec::new();
    open(file, &name)?.take(START as u64).read_to_end(&mut start)?;
    if start.is_empty() {
        return empty(&name);
    }
    let known = MAGIC.len().min(start.len());
    if start[..known] == MAGIC[..known] {
        return Ok(());
    }
    not_ours(&name, &start, PreambleError::Magic)
}

fn empty(name: &str) -> Result<()> {
    bail!("{name} is empty: whatever should have written a stream into it did not begin")
}

/// How much of a foreign stream is quoted.
const START: usize = 16;

/// Refuses what is no stream of ours, or one that this version cannot read: nothing of
/// it is damaged.
fn not_ours(name: &str, start: &[u8], error: PreambleError) -> Result<()> {
    match error {
        PreambleError::Magic => {
            let hex: Vec<_> = start.iter().map(|byte| format!("{byte:02x}")).collect();
            bail!(
                "{name} is not a vfio-migrate stream: it starts with {} (\"{}\"), not \
                 with \"\\x89VFMIG\"; give it what `save` wrote, or a captured \
                 connection from its first byte",
                hex.join(" "),
                start.escape_ascii()
            )
        }
        PreambleError::Version { .. } | PreambleError::Features { .. } => {
            let error = Error::new(error);
            Err(error.context(format!(
                "{name} cannot be read by this version, take a newer vfio-migrate"
            )))
        }
        _ => Ok(()),
    }
}

/// Where everything is shown.
struct Show {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    verbose: bool,
    /// With `--summary`.
    groups: Option<Groups>,
    titled: bool,
}

impl Show {
    fn item(&mut self, item: &Item<'_>) -> io::Result<()> {
        match item {
            Item::Preamble(preamble) => self.preamble(preamble),
            Item::Frame(frame) => {
                if let Some(groups) = &mut self.groups {
                    let (done, taken) = groups.take(frame);
                    if let Some(group) = done {
                        self.group(&group)?;
                    }
                    if taken {
                        return Ok(());
                    }
                }
                self.frame(frame)
            }
            Item::Stopped(damage) => {
                self.end_group()?;
                if self.json {
                    self.object(&json!({ "stopped": damage_json(damage, false) }))
                } else {
                    self.line(&Columns::at(damage.offset), "the walk stops here")?;
                    self.damaged(damage)
                }
            }
            // Nothing else there is says anything that could be shown.
            _ => Ok(()),
        }
    }

    /// After the last byte.
    fn ending(&mut self, summary: &Summary) -> io::Result<()> {
        self.end_group()?;
        if self.json {
            self.object(&json!({ "summary": ending::json(summary) }))?;
        } else {
            self.out.write_all(ending::text(summary).as_bytes())?;
        }
        self.out.flush()
    }

    fn preamble(&mut self, preamble: &Preamble) -> io::Result<()> {
        let Meaning { line, json: mut object, .. } = meaning::preamble(preamble);
        if self.json {
            object["offset"] = json!(0);
            return self.object(&json!({ "preamble": object }));
        }
        let length = Preamble::SIZE as u64;
        let kind = "preamble".to_owned();
        self.line(&Columns { kind, length: Some(length), ..Columns::at(0) }, &line)
    }

    fn frame(&mut self, frame: &WalkedFrame<'_>) -> io::Result<()> {
        let WalkedFrame { offset, header, so_far, damage, .. } = frame;
        let meaning = frame
            .frame
            .as_ref()
            .map(|content| meaning::frame(content, *so_far, self.verbose));
        if self.json {
            let mut object = json!({
                "offset": offset,
                "sequence": header.sequence,
                "type": header.kind.to_string(),
                "flags": header.flags.0,
                "channel": header.channel,
                "length": header.length,
                "crc": crc(header.crc),
                "content": meaning.map(|meaning| meaning.json),
            });
            if let Some(damage) = damage {
                object["damage"] = damage_json(damage, true);
            }
            return self.object(&json!({ "frame": object }));
        }
        let columns = Columns {
            sequence: Some(header.sequence),
            kind: header
                .kind
                .name()
                .map_or_else(|| format!("{:#06x}", header.kind.0), str::to_owned),
            flags: flags(header.flags),
            length: Some(header.length.into()),
            ..Columns::at(*offset)
        };
        let nothing = || Meaning::new("its meaning is not known", Value::Null);
        let meaning = meaning.unwrap_or_else(nothing);
        self.line(&columns, &meaning.line)?;
        for detail in &meaning.details {
            writeln!(self.out, "{:INDENT$}{detail}", "")?;
        }
        damage.as_ref().map_or(Ok(()), |damage| self.damaged(damage))
    }

    fn end_group(&mut self) -> io::Result<()> {
        let group = self.groups.as_mut().and_then(Groups::end);
        group.map_or(Ok(()), |group| self.group(&group))
    }

    fn group(&mut self, group: &Group) -> io::Result<()> {
        if self.json {
            return self.object(&json!({ "frames": group.json() }));
        }
        let columns = Columns {
            sequence: Some(group.sequence),
            kind: group.kind.to_string(),
            length: Some(group.length),
            ..Columns::at(group.offset)
        };
        self.line(&columns, &group.line())
    }

    fn damaged(&mut self, damage: &Damage) -> io::Result<()> {
        writeln!(self.out, "{:>33} damaged: {}", "!", cause(damage))
    }

    fn object(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value}")
    }

    fn line(&mut self, columns: &Columns, meaning: &str) -> io::Result<()> {
        if !self.titled {
            self.titled = true;
            writeln!(
                self.out,
                "{:>12} {:>11} {:>8} {:<14} {:<6} {:>8}  meaning",
                "offset", "hex", "seq", "type", "flags", "payload"
            )?;
        }
        let Columns { offset, sequence, kind, flags, length } = columns;
        let number = |n: &Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        let hex = format!("{offset:#x}");
        let (sequence, length) = (number(sequence), number(length));
        writeln!(
            self.out,
            "{offset:>12} {hex:>11} {sequence:>8} {kind:<14} {flags:<6} {length:>8}  \
             {meaning}"
        )
    }
}

/// Where the details of a frame begin: under its type.
const INDENT: usize = 36;

/// What stands in front of a meaning.
struct Columns {
    offset: u64,
    sequence: Option<u64>,
    kind: String,
    flags: String,
    length: Option<u64>,
}

impl Columns {
    fn at(offset: u64) -> Self {
        let kind = "-".to_owned();
        Self { offset, sequence: None, flags: kind.clone(), kind, length: None }
    }
}

/// `c` for critical, `t` for the end of a transaction, and what else there is.
fn flags(flags: Flags) -> String {
    let mut text = String::new();
    let mut rest = flags.0;
    for (flag, letter) in [(Flags::CRITICAL, 'c'), (Flags::ENDS_TRANSACTION, 't')] {
        if flags.contains(flag) {
            text.push(letter);
            rest &= !flag.0;
        }
    }
    if rest != 0 {
        text.push_str(&format!("+{rest:x}"));
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

/// What is wrong, with everything that led to it.
fn cause(damage: &Damage) -> String {
    chain(&damage.wrong)
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn damage_json(damage: &Damage, goes_on: bool) -> Value {
    json!({ "offset": damage.offset, "text": cause(damage), "goes_on": goes_on })
}

/// A checksum as it is written everywhere.
fn crc(value: u32) -> String {
    format!("{value:08x}")
}

/// `1 device`, `2 devices`.
fn count(n: impl Display + PartialEq<usize>, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

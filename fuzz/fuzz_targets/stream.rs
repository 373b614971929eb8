//! A migration stream from a hostile peer: preamble, frames, messages.
//!
//! Every input is read twice: as it is, and with its checksums, sequence numbers and
//! lengths put right, since chance does not get past a checksum. What is taken must mean
//! the same after it was written and read again. The walker, which goes on where a reader
//! stops, sees the same in any pieces, and calls nothing whole that a reader refuses.

#![no_main]

use wire::memory::{Content, MemoryRuns, RunTable};
use wire::preamble::{MAGIC, PageSize, Preamble, Role, VERSION};
use wire::walk::{Summary, Walker};
use wire::{Crc, Decoder, Encoder, Flags, Frame, FrameError, FrameType, Header, Message};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    read(data, &mut |header, _| Some(*header));
    let mended = with_good_preamble(data);
    read(&mended, &mut with_good_header);
    walk(data);
    walk(&with_good_headers(mended));
    if let Ok(message) = Message::decode(data) {
        let again = message.encode().expect("what was taken can be written");
        assert_eq!(Message::decode(&again).as_ref(), Ok(&message));
    }
});

type HeaderBytes = [u8; Header::SIZE];

/// Reads a stream as a receiver does. `mend` is given each header and what follows it.
fn read(
    data: &[u8],
    mend: &mut dyn FnMut(&HeaderBytes, &Seen<'_>) -> Option<HeaderBytes>,
) {
    let Some((preamble, mut rest)) = data.split_first_chunk() else { return };
    let Ok(preamble) = Preamble::decode(preamble) else { return };
    assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
    let mut decoder = Decoder::new(preamble.role, preamble.page_size);
    let mut sequence = 0;
    while let Some((header, after)) = rest.split_first_chunk() {
        let seen = Seen { sequence, channel: preamble.role.channel(), rest: after };
        let Some(header) = mend(header, &seen) else { return };
        let Ok(header) = decoder.header(&header) else { return };
        assert!(header.length <= header.kind.ceiling());
        let Some((payload, after)) = after.split_at_checked(header.length as usize)
        else {
            return;
        };
        match decoder.payload(&header, payload) {
            Ok(frame) => same_when_written_again(&frame, preamble.page_size),
            // The frame is whole, what it means is refused: the next may still be
            // looked at here, though a receiver stops.
            Err(
                FrameError::Message(_)
                | FrameError::Memory(_)
                | FrameError::Device(_)
                | FrameError::Section(_)
                | FrameError::Malformed { .. },
            ) => {}
            Err(_) => return,
        }
        sequence += 1;
        rest = after;
    }
}

/// What a header can be mended from.
struct Seen<'a> {
    sequence: u64,
    channel: u32,
    rest: &'a [u8],
}

fn with_good_preamble(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    if let Some((body, crc)) =
        data.get_mut(..Preamble::SIZE).and_then(|p| p.split_last_chunk_mut())
    {
        body[..8].copy_from_slice(&MAGIC);
        body[8..10].copy_from_slice(&VERSION.to_le_bytes());
        body[20..28].fill(0);
        *crc = Crc::of(body).value().to_le_bytes();
    }
    data
}

fn with_good_header(header: &HeaderBytes, seen: &Seen<'_>) -> Option<HeaderBytes> {
    let mut header = Header::decode(header);
    header.channel = seen.channel;
    header.sequence = seen.sequence;
    header.length = header.length.min(seen.rest.len() as u32);
    let mut crc = header.start_crc();
    crc.add(seen.rest.get(..header.length as usize)?);
    header.crc = crc.value();
    Some(header.encode())
}

/// All headers put right, as far as frames follow each other.
fn with_good_headers(mut data: Vec<u8>) -> Vec<u8> {
    let Some(preamble) = data.first_chunk() else { return data };
    let Ok(preamble) = Preamble::decode(preamble) else { return data };
    let (mut at, mut sequence) = (Preamble::SIZE, 0);
    while let Some((header, rest)) = data[at..].split_first_chunk() {
        let seen = Seen { sequence, channel: preamble.role.channel(), rest };
        let Some(header) = with_good_header(header, &seen) else { break };
        let length = Header::decode(&header).length as usize;
        data[at..at + Header::SIZE].copy_from_slice(&header);
        at += Header::SIZE + length;
        sequence += 1;
    }
    data
}

fn walk(data: &[u8]) {
    let whole = walk_in_pieces(data, data.len().max(1));
    assert_eq!(whole.bytes, data.len() as u64);
    assert_eq!(whole, walk_in_pieces(data, 7));
    if whole.is_whole() {
        assert!(reads_to_its_end(data), "a damaged stream passes for whole");
    }
}

fn walk_in_pieces(data: &[u8], size: usize) -> Summary {
    let mut walker = Walker::new();
    for mut piece in data.chunks(size) {
        while walker.next(&mut piece).is_some() {}
    }
    walker.finish()
}

/// Whether a receiver takes all of it.
fn reads_to_its_end(data: &[u8]) -> bool {
    let Some((preamble, mut rest)) = data.split_first_chunk() else { return false };
    let Ok(preamble) = Preamble::decode(preamble) else { return false };
    let mut decoder = Decoder::new(preamble.role, preamble.page_size);
    while let Some((header, after)) = rest.split_first_chunk() {
        let Ok(header) = decoder.header(header) else { return false };
        let split = after.split_at_checked(header.length as usize);
        let Some((payload, after)) = split else { return false };
        if decoder.payload(&header, payload).is_err() {
            return false;
        }
        rest = after;
    }
    rest.is_empty() && (decoder.ended() || preamble.role == Role::Control)
}

fn same_when_written_again(frame: &Frame<'_>, page_size: PageSize) {
    let mut encoder = Encoder::new(Role::File);
    let written = match frame {
        Frame::Message(message) => encoder.message(message),
        Frame::Memory(runs) => return same_pages(runs, page_size),
        Frame::DeviceBegin(begin) => encoder.device_begin(begin),
        Frame::DeviceData(data) => {
            encoder.device_data(data).map(|head| [&head, data.bytes].concat())
        }
        Frame::DeviceEnd(end) => encoder.device_end(end),
        Frame::Config(record) => {
            encoder.config(record).map(|head| [&head, record.bytes].concat())
        }
        Frame::Interrupts(record) => {
            encoder.interrupts(record).map(|head| [&head, record.bytes].concat())
        }
        Frame::SectionBegin(info) => encoder.section_begin(info),
        Frame::SectionData(data) => {
            encoder.section_data(data).map(|head| [&head, data.bytes].concat())
        }
        Frame::RoundEnd { round } => encoder.round_end(*round),
        // Of a channel's end the decoder has compared every field, and a skipped frame
        // has none.
        _ => return,
    };
    let written = written.expect("what was taken can be written");
    let (header, payload) = written.split_first_chunk().expect("a frame has a header");
    let mut decoder = Decoder::new(Role::File, page_size);
    let header = decoder.header(header).expect("a good header");
    assert_eq!(decoder.payload(&header, payload).as_ref(), Ok(frame));
}

/// A table that is built again joins runs, but has the same pages.
fn same_pages(runs: &MemoryRuns<'_>, page_size: PageSize) {
    let mut table = RunTable::new(page_size);
    let mut data = 0;
    for (run, content) in runs.iter() {
        let place =
            table.push(run.gpa, run.pages, run.kind).expect("runs that were taken");
        let length = match content {
            Content::Data(bytes) => bytes.len(),
            Content::Zero => 0,
        };
        assert_eq!(place, data..data + length);
        data += length;
    }
    assert_eq!(data, runs.data().len());
    let header = Encoder::new(Role::File)
        .header(FrameType::MEMORY_RUNS, Flags::CRITICAL, &[table.prefix(), runs.data()])
        .expect("under the ceiling");
    let payload = [table.prefix(), runs.data()].concat();
    let mut decoder = Decoder::new(Role::File, page_size);
    let header = decoder.header(&header).expect("a good header");
    let Ok(Frame::Memory(again)) = decoder.payload(&header, &payload) else {
        unreachable!("a table that was built");
    };
    assert_eq!(again.runs().pages(), runs.runs().pages());
    assert_eq!(again.data(), runs.data());
}

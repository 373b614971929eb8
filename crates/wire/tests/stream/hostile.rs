//! What a broken link or a malicious peer can send: streams and frames that are not whole,
//! not in their place, or not of this connection. What whole ones can say: `lying.rs`.

use crate::samples::{self, read_stream, split};
use crate::wire::message::{MessageError, MessageKind};
use crate::wire::preamble::{DataChannel, PageSize, PreambleError, Role, Token};
use crate::wire::{
    ChannelDigest, Crc, Decoder, Encoder, Flags, Frame, FrameError, FrameType, Header,
    Message, Preamble,
};

/// One frame with a correct checksum, whatever is in it.
fn frame(
    kind: FrameType,
    flags: Flags,
    channel: u32,
    sequence: u64,
    payload: &[u8],
) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut header = Header { kind, flags, channel, sequence, length, crc: 0 };
    let mut crc = header.start_crc();
    crc.add(payload);
    header.crc = crc.value();
    [&header.encode()[..], payload].concat()
}

/// What a fresh decoder says to a single frame; owned, so that callers can compare.
fn take(role: Role, bytes: &[u8]) -> Result<String, FrameError> {
    let mut decoder = Decoder::new(role, PageSize::KIB_4);
    let (header, payload) = split(bytes);
    let header = decoder.header(header)?;
    decoder.payload(&header, payload).map(|frame| format!("{frame:?}"))
}

pub(crate) fn take_payload(
    kind: FrameType,
    payload: &[u8],
) -> Result<String, FrameError> {
    take(Role::File, &frame(kind, Flags::CRITICAL, 0, 0, payload))
}

#[test]
fn a_sample_stream_is_read_whole() {
    assert_eq!(read_stream(&samples::file()).unwrap().len(), 13);
}

#[test]
fn a_stream_cut_anywhere_is_never_complete() {
    let file = samples::file();
    for length in 0..file.len() {
        read_stream(&file[..length]).unwrap_err();
    }
}

#[test]
fn a_flipped_bit_anywhere_is_never_accepted() {
    let mut file = samples::file();
    let whole = file.len();
    for at in 0..whole {
        let mask = 1 << (at % 8);
        file[at] ^= mask;
        assert!(read_stream(&file).is_err(), "byte {at}");
        file[at] ^= mask;
    }
    for at in 0..Preamble::SIZE {
        for bit in 0..8 {
            file[at] ^= 1 << bit;
            assert!(read_stream(&file).is_err(), "preamble byte {at} bit {bit}");
            file[at] ^= 1 << bit;
        }
    }
}

#[test]
fn an_absurd_length_is_refused_before_anyone_makes_room() {
    for number in 0..=0x100 {
        let kind = FrameType(number);
        for length in [kind.ceiling() + 1, 1 << 31, u32::MAX] {
            let header = Header {
                kind,
                flags: Flags::NONE,
                channel: 0,
                sequence: 0,
                length,
                crc: 0,
            };
            let refused =
                Decoder::new(Role::File, PageSize::KIB_4).header(&header.encode());
            assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{kind}");
        }
    }
}

#[test]
fn a_frame_lost_doubled_or_moved_is_noticed() {
    let mut encoder = Encoder::new(Role::Control);
    let frames: Vec<_> = (0..3)
        .map(|round| encoder.message(&Message::RoundApplied { round }).unwrap())
        .collect();
    let read = |order: &[usize]| -> Result<(), FrameError> {
        let mut decoder = Decoder::new(Role::Control, PageSize::KIB_4);
        for &place in order {
            let (header, payload) = split(&frames[place]);
            let header = decoder.header(header)?;
            decoder.payload(&header, payload)?;
        }
        Ok(())
    };
    read(&[0, 1, 2]).unwrap();
    for order in [[0, 2, 1], [0, 0, 1], [1, 0, 2]] {
        assert!(matches!(read(&order), Err(FrameError::Sequence { .. })), "{order:?}");
    }
}

#[test]
fn a_frame_of_another_connection_is_refused() {
    let channel = DataChannel::new(4).unwrap();
    let other = Role::Data { channel, token: Token::NONE };
    let round = Encoder::new(samples::data_role()).round_end(0).unwrap();
    let refused = take(other, &round);
    assert!(matches!(refused, Err(FrameError::Channel { expected: 4, found: 3, .. })));

    let message = Encoder::new(other).message(&Message::Commit).unwrap();
    assert!(matches!(take(other, &message), Err(FrameError::Misplaced { .. })));
    let round = Encoder::new(Role::Control).round_end(0).unwrap();
    assert!(matches!(take(Role::Control, &round), Err(FrameError::Misplaced { .. })));
}

#[test]
fn an_unknown_frame_is_skipped_unless_it_is_critical() {
    let kind = FrameType(0x0999);
    let frame = |flags| frame(kind, flags, 0, 0, b"from the future");
    assert_eq!(
        take(Role::Control, &frame(Flags(0xff00))).unwrap(),
        "Skipped(FrameType(2457))"
    );
    let refused = take(Role::Control, &frame(Flags::CRITICAL));
    assert_eq!(refused, Err(FrameError::UnknownCritical { kind }));
    let text = refused.unwrap_err().to_string();
    assert_eq!(text, "frame type 0x0999 is critical and not known");
}

#[test]
fn an_unknown_message_is_skipped_unless_it_is_critical() {
    let payload = [MessageKind::QUERY.0.to_le_bytes(), [0, 0]].concat();
    let frame = |flags| frame(FrameType::CONTROL, flags, 0, 0, &payload);
    let skipped = take(Role::Control, &frame(Flags::NONE));
    assert_eq!(skipped.unwrap(), "Skipped(FrameType(1))");
    let unknown = MessageError::UnknownKind(MessageKind::QUERY);
    let refused = take(Role::Control, &frame(Flags::CRITICAL));
    assert_eq!(refused, Err(FrameError::Message(unknown)));
}

#[test]
fn a_flag_that_changes_the_meaning_is_not_ignored() {
    let round = |flags| frame(FrameType::ROUND_END, Flags(flags), 0, 0, &[0; 8]);
    take(Role::File, &round(0x8001)).unwrap();
    for unknown in [0x02, 0x04, 0x80] {
        let kind = FrameType::ROUND_END;
        let refused = take(Role::File, &round(unknown | 1));
        assert_eq!(refused, Err(FrameError::UnknownFlags { kind, unknown }));
    }
}

#[test]
fn a_payload_of_another_length_than_announced_is_refused() {
    let round = Encoder::new(Role::File).round_end(0).unwrap();
    let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
    let header = decoder.header(split(&round).0).unwrap();
    let refused = decoder.payload(&header, &[0; 9]);
    assert!(matches!(refused, Err(FrameError::Length { expected: 8, found: 9, .. })));
}

#[test]
fn a_channel_that_ends_with_another_digest_is_not_complete() {
    let mut encoder = Encoder::new(samples::data_role());
    let round = encoder.round_end(0).unwrap();
    let good = encoder.channel_end().unwrap();
    let read = |end: &[u8]| {
        let mut decoder = Decoder::new(samples::data_role(), PageSize::KIB_4);
        for bytes in [&round, end] {
            let (header, payload) = split(bytes);
            let header = decoder.header(header)?;
            decoder.payload(&header, payload)?;
        }
        Ok(decoder)
    };
    let mut decoder = read(&good).unwrap();
    assert!(decoder.ended());
    let next = Header { sequence: 2, ..Header::decode(split(&round).0) }.encode();
    let refused = decoder.header(&next);
    assert_eq!(refused, Err(FrameError::AfterEnd { kind: FrameType::ROUND_END }));

    for at in 0..20 {
        let mut payload = split(&good).1.to_vec();
        payload[at] ^= 0x10;
        let end = frame(FrameType::CHANNEL_END, Flags::CRITICAL, 3, 1, &payload);
        let refused: Result<Decoder, FrameError> = read(&end);
        assert!(matches!(refused, Err(FrameError::Digest { .. })), "byte {at}");
    }
}

#[test]
fn bulk_that_was_read_in_place_is_verified_by_its_checksum() {
    let (table, pages) = samples::memory();
    let header = Encoder::new(Role::File).memory(&table, &pages).unwrap();
    let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
    let header = decoder.header(&header).unwrap();
    let mut crc = header.start_crc();
    crc.add(table.prefix());
    let broken = crc;
    pages.chunks(100).for_each(|piece| crc.add(piece));
    assert!(matches!(decoder.verify(&header, broken), Err(FrameError::Checksum { .. })));
    assert_eq!(decoder.digest(), ChannelDigest::default());
    decoder.verify(&header, crc).unwrap();
    assert_eq!(decoder.digest().frames, 1);
}

#[test]
fn every_preamble_that_cannot_be_gone_on_from_says_why() {
    // Changes a good preamble, and makes its checksum good again.
    let refused = |change: &dyn Fn(&mut [u8; 64])| {
        let mut bytes = samples::preamble(Role::Control).encode();
        change(&mut bytes);
        let crc = Crc::of(&bytes[..60]).value();
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Preamble::decode(&bytes).unwrap_err()
    };
    assert_eq!(refused(&|b| b[0] = b'V'), PreambleError::Magic);
    assert_eq!(refused(&|b| b[8] = 2), PreambleError::Version { found: 2 });
    let text = refused(&|b| b[8] = 2).to_string();
    assert_eq!(text, "the stream has container version 2, this side reads 1");
    let unknown = crate::wire::preamble::Features(1 << 63);
    assert_eq!(refused(&|b| b[27] = 0x80), PreambleError::Features { unknown });
    assert_eq!(refused(&|b| b[17] = 0), PreambleError::PageSize(0));
    assert_eq!(refused(&|b| b[16] = 1), PreambleError::PageSize(0x1001));
    assert_eq!(refused(&|b| b[11] = 9), PreambleError::Role { role: 9, channel: 0 });
    assert_eq!(refused(&|b| b[11] = 2), PreambleError::Role { role: 2, channel: 0 });
    assert_eq!(refused(&|b| b[14] = 1), PreambleError::Role { role: 1, channel: 1 });
    assert_eq!(refused(&|b| b[52] = 1), PreambleError::Role { role: 1, channel: 0 });

    let mut broken = samples::preamble(Role::Control).encode();
    broken[8] = 2;
    assert_eq!(Preamble::decode(&broken), Err(PreambleError::Checksum));
}

#[test]
fn a_preamble_does_not_tell_its_token_to_a_log() {
    let text = format!("{:?}", samples::preamble(samples::data_role()));
    assert!(text.contains("Token(..)") && !text.contains("1, 2, 3"), "{text}");
}

#[test]
fn frames_of_a_fresh_decoder_stay_readable_after_a_skipped_one() {
    let mut encoder = Encoder::new(Role::Control);
    let unknown = encoder.header(FrameType(500), Flags::NONE, &[b"?"]).unwrap();
    let commit = encoder.message(&Message::Commit).unwrap();
    let mut decoder = Decoder::new(Role::Control, PageSize::KIB_4);
    let header = decoder.header(&unknown).unwrap();
    let skipped = Frame::Skipped(FrameType(500));
    assert_eq!(decoder.payload(&header, b"?").unwrap(), skipped);
    let (header, payload) = split(&commit);
    let header = decoder.header(header).unwrap();
    assert_eq!(
        decoder.payload(&header, payload).unwrap(),
        Frame::Message(Message::Commit)
    );
    assert_eq!(decoder.digest(), encoder.digest());
}

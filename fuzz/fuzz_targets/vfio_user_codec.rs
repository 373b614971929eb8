//! vfio-user messages from a hostile peer: every command, both directions.
//!
//! A first byte chooses the command, the rest is the body. What is taken must mean the
//! same after it was written and read again.

#![no_main]

use abi::vfio_user::Command;
use vfio_user::codec::{
    DigestPart, Reply, Request, Version, decode_digest, encode_digest, parse_header,
    parse_log_report, parse_log_start,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((command, body)) = data.split_first() else { return };
    let command = Command(u16::from(*command));
    if let Ok(request) = Request::parse(command, body) {
        let bytes = request.message(7).bytes();
        let (header, again) = bytes.split_first_chunk().expect("a whole header");
        let header = parse_header(header);
        assert_eq!(header.msg_size as usize, bytes.len());
        assert_eq!(Request::parse(Command(header.command), again), Ok(request));
    }
    if let Ok(reply) = Reply::parse(command, body) {
        let bytes = reply.message(7, command).bytes();
        let again = Reply::parse(command, &bytes[16..]);
        match (&reply, &again) {
            // A region says how long it is, which a peer may have had wrong, and with
            // too short an answer leaves its capabilities out.
            (Reply::Region(sent), Ok(Reply::Region(read))) => {
                assert_eq!(sent.info.size, read.info.size);
                assert!(!sent.fits() || sent.areas == read.areas);
            }
            _ => assert_eq!(again, Ok(reply)),
        }
    }
    let version = Version { major: 0, minor: 0, text: body };
    if let Ok(capabilities) = version.capabilities() {
        let text = capabilities.text();
        let again = Version { major: 0, minor: 0, text: &text };
        assert_eq!(again.capabilities(), Ok(capabilities));
    }
    if let Ok(digest) = decode_digest(body) {
        assert_eq!(decode_digest(&encode_digest(&digest)), Ok(digest));
    }
    let _ = parse_log_start(body);
    let _ = parse_log_report(body);
    let _ = DigestPart::parse(body);
});

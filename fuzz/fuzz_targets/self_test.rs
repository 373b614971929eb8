//! The fuzzer's own test: a seeded bug that chance does not find.
//!
//! Eight bytes must be right at once. The first four are compared one by one, so edge
//! coverage leads there; the others at once, so only the traced comparison does. A fuzzer
//! without either would need about 2^64 inputs. `cargo xtask fuzz` runs this target first
//! and refuses to go on when the bug is not found.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_at_checked(4) else { return };
    let Some(tail) = rest.first_chunk::<4>() else { return };
    if head[0] == b'V' && head[1] == b'F' && head[2] == b'I' && head[3] == b'O' {
        let tail = u32::from_le_bytes(*tail);
        assert!(tail != 0x5eed_b06e, "the seeded bug was reached");
    }
});

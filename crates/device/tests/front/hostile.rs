//! A client that does anything.

use crate::bench::{GENERATIONS, SECTIONS, bench, options, rfc, v1};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use states::v2::Capabilities;
use std::time::Duration;
use vfio_migrate_device::Moved;
use vfio_migrate_device::front::Generation;

#[derive(Clone, Debug)]
enum Deed {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    State(u32),
    Map(u64, u8),
    Reset,
    Disconnect,
    Lazy(u32),
    Settle(u64),
    Guest(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let registers =
        select(vec![0, 4, 8, 12, 16, 20, 24, 28, 36, 44, 52, 60, 68, 80, 4096]);
    let at = prop_oneof![
        6 => registers.boxed(),
        2 => (0_u64..13_000).boxed(),
        1 => any::<u64>().boxed(),
    ];
    let width =
        prop_oneof![5 => select(vec![4_usize, 8, 16, 24, 32]), 1 => 0_usize..9000];
    let word = prop_oneof![0_u64..12, 0_u64..10_000, Just4096::pages(), any::<u64>()];
    prop_oneof![
        4 => (at.clone(), width.clone()).prop_map(|(at, width)| Deed::Read(at, width)),
        4 => (at, width, word).prop_map(|(at, width, word)| {
            let mut data = vec![0; width];
            data.chunks_mut(8).for_each(|part| {
                part.copy_from_slice(&word.to_ne_bytes()[..part.len()]);
            });
            Deed::Write(at, data)
        }),
        6 => (0_u32..11).prop_map(Deed::State),
        1 => (0_u64..12_000, any::<u8>()).prop_map(|(at, byte)| Deed::Map(at, byte)),
        1 => select(vec![Deed::Reset, Deed::Disconnect]),
        1 => (0_u32..3).prop_map(Deed::Lazy),
        3 => (0_u64..12).prop_map(Deed::Settle),
        2 => any::<u64>().prop_map(Deed::Guest),
    ]
}

struct Just4096;

impl Just4096 {
    fn pages() -> impl Strategy<Value = u64> {
        (0_u64..1 << 20).prop_map(|page| page * 4096)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_client_that_does_anything_breaks_the_device(
        deeds in proptest::collection::vec(deed(), 1..80),
        generation in select(GENERATIONS.to_vec()),
        section in select(SECTIONS.to_vec()),
        capabilities in select(Capabilities::EVERY.to_vec()),
    ) {
        let mut bench = bench(options(generation, section), capabilities);
        for deed in &deeds {
            match deed {
                Deed::Read(at, width) => {
                    let _ = bench.read(*at, &mut vec![0; *width]);
                }
                Deed::Write(at, data) => {
                    let moved = bench.write(*at, data);
                    assert!(moved != Ok(Moved::Pending) || (*at, data.len()) == (0, 4));
                }
                Deed::State(state) => {
                    let _ = bench.write(0, &state.to_ne_bytes());
                }
                Deed::Map(at, byte) => {
                    if let Some(window) = bench.front.region().windows.first() {
                        let _ = window.memory.write(*at, &[*byte; 100]);
                    }
                }
                Deed::Reset => bench.runner.reset(),
                Deed::Disconnect => {
                    bench.runner.disconnect();
                    bench.front.disconnect();
                }
                Deed::Lazy(lazy) => bench.fate.lock().unwrap().lazy = *lazy,
                Deed::Settle(seconds) => {
                    bench.now += Duration::from_secs(*seconds);
                    let _ = bench.front.settle(&mut bench.runner, bench.now);
                }
                Deed::Guest(seed) => {
                    let _ = bench.runner.write_region(0, seed % 19_000, &[1; 8]);
                }
            }
            // What it says is where the device is.
            if generation == Generation::V1 && bench.runner.pending().is_none() {
                let state = bench.runner.state();
                let read = bench.state();
                let shown = states::v1::V1State::from_bits(
                    abi::v1::StateBits::from_bits_retain(read),
                );
                let shown = shown.unwrap().engine();
                let virtual_pre_copy =
                    read == v1::PRE_COPY && !capabilities.pre_copy();
                assert!(
                    shown == bench.runner.state() || virtual_pre_copy,
                    "{read:03b} in {state}"
                );
            }
        }
        // Nothing of it outlives a reset.
        bench.fate.lock().unwrap().lazy = 0;
        bench.runner.reset();
        let _ = bench.front.settle(&mut bench.runner, bench.now);
        bench.runner.log_stop();
        bench.scribble(1);
        let transactions = bench.save();
        let digest = bench.runner.digest().unwrap();
        bench.go(v1::RUNNING).unwrap();
        bench.runner.reset();
        bench.restore(&transactions).unwrap();
        assert_eq!(digest.difference(&bench.runner.digest().unwrap()), None);
    }
}

#[test]
fn a_client_that_writes_into_the_section_changes_what_is_saved() {
    for section in [SECTIONS[1], SECTIONS[2]] {
        let mut bench =
            bench(options(Generation::Rfc2018, section), Capabilities::PRE_COPY);
        bench.scribble(6);
        for state in [rfc::SETUP, rfc::STOPNCOPY] {
            bench.go(state).unwrap();
        }
        let window = bench.front.region().windows[0].memory.clone();
        let clean = bench.buffer().unwrap();
        window.write(0, &[0xff; 4096]).unwrap();
        let at = bench.word(rfc::DATA);
        assert_eq!(bench.section(at, clean.len()), clean, "asked for again");
    }
}

//! Any front to any front.

use crate::bench::{GENERATIONS, SECTIONS, bench, options, rfc, v1};
use states::v2::{Capabilities, State};
use vfio_migrate_device::front::Generation;

#[test]
fn a_device_arrives_as_another_by_way_of_another_section() {
    for (from, to) in
        GENERATIONS.iter().flat_map(|from| GENERATIONS.iter().map(move |to| (*from, *to)))
    {
        for out in SECTIONS {
            for into in SECTIONS {
                for maps in [true, false] {
                    let case = format!("{from} {out} to {to} {into}, maps {maps}");
                    let mut source = bench(options(from, out), Capabilities::PRE_COPY);
                    let mut target = bench(options(to, into), Capabilities::ALL);
                    (source.maps, target.maps) = (maps, maps);
                    source.scribble(1);
                    let transactions = source.save();
                    assert!(transactions.len() > 3, "{case}");
                    target.restore(&transactions).unwrap();
                    assert_eq!(target.runner.state(), State::Running, "{case}");
                    let (was, is) = (
                        source.runner.digest().unwrap(),
                        target.runner.digest().unwrap(),
                    );
                    assert_eq!(was.difference(&is), None, "{case}");
                }
            }
        }
    }
}

#[test]
fn a_section_reads_otherwise_when_it_is_mapped() {
    for generation in GENERATIONS {
        let mut saved = SECTIONS.map(|section| {
            [true, false].map(|maps| {
                let mut bench =
                    bench(options(generation, section), Capabilities::PRE_COPY);
                bench.maps = maps;
                bench.scribble(3);
                bench.save()
            })
        });
        let first = saved[0][0].clone();
        assert!(first.len() > 3);
        for transactions in saved.as_flattened_mut() {
            assert_eq!(*transactions, first, "{generation}");
        }
    }
}

#[test]
fn a_device_that_can_only_be_stopped_is_refused_pre_copy() {
    // "Vendor drivers must support the pre-copy state even for implementations where no
    // data is provided to the user before the stop-and-copy state."
    for generation in GENERATIONS {
        for capabilities in [Capabilities::STOP_COPY, Capabilities::P2P] {
            let section = SECTIONS[0];
            let mut source = bench(options(generation, section), capabilities);
            if generation == Generation::Rfc2018 {
                source.go(rfc::SETUP).unwrap();
                source.go(rfc::PRECOPY).unwrap();
            } else {
                source.go(v1::PRE_COPY).unwrap();
                assert_eq!(source.state(), v1::PRE_COPY);
            }
            assert_eq!(source.runner.state(), State::Running);
            source.scribble(4);
            assert!(source.buffers().is_empty(), "nothing before it has stopped");
            // As for a device with pre-copy, from here on.
            let old = generation == Generation::Rfc2018;
            source.go(if old { rfc::STOPNCOPY } else { v1::STOP_COPY }).unwrap();
            let transactions = source.buffers();
            let mut target = bench(options(generation, section), capabilities);
            target.restore(&transactions).unwrap();
            let (was, is) =
                (source.runner.digest().unwrap(), target.runner.digest().unwrap());
            assert_eq!(was.difference(&is), None, "{generation} {capabilities}");
        }
    }
}

#[test]
fn another_size_of_transaction_loses_bytes() {
    // Document 000 wants them as they were saved; our models take any.
    let mut source = bench(options(Generation::V1, SECTIONS[1]), Capabilities::PRE_COPY);
    source.scribble(5);
    let whole = source.save().concat();
    for size in [1, 7, 4096, 8192] {
        let mut target =
            bench(options(Generation::V1, SECTIONS[2]), Capabilities::PRE_COPY);
        let pieces: Vec<_> = whole.chunks(size).map(<[u8]>::to_vec).collect();
        target.restore(&pieces).unwrap();
        let (was, is) =
            (source.runner.digest().unwrap(), target.runner.digest().unwrap());
        assert_eq!(was.difference(&is), None, "{size}");
    }
}

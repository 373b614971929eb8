//! Every order in which threads can meet in the bitmap, tried by loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p vfio-migrate-dirty --test loom --release`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use vfio_migrate_dirty::{Bitmap, IovaRange, PageSize};

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(first * 4096, count * 4096).expect("a range")
}

/// Two producers and a consumer whose first attempt fails: what was marked is found
/// by the next drain, once.
#[test]
fn a_bit_marked_during_a_failed_attempt_is_not_lost() {
    loom::model(|| {
        let bitmap = Bitmap::new(pages(0, 3), PageSize::FOUR_K).expect("a bitmap");
        let bitmap = Arc::new(bitmap);
        let marks = {
            let bitmap = bitmap.clone();
            thread::spawn(move || bitmap.mark(pages(0, 2)))
        };
        let merges = {
            let bitmap = bitmap.clone();
            thread::spawn(move || bitmap.merge(pages(1, 2), PageSize::FOUR_K, &[0b11]))
        };
        let failed = bitmap.drain();
        bitmap.restore(&failed);
        marks.join().expect("no panic");
        merges.join().expect("no panic");
        assert_eq!(bitmap.drain().pages(), 3);
        assert!(bitmap.is_empty());
    });
}

/// A drained bit shows the write that it stands for.
#[test]
fn a_drained_page_is_not_read_before_it_was_written() {
    loom::model(|| {
        let bitmap = Bitmap::new(pages(0, 2), PageSize::FOUR_K).expect("a bitmap");
        let shared = Arc::new((bitmap, AtomicU32::new(0)));
        let device = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1.store(7, Ordering::Relaxed);
                shared.0.mark(pages(0, 1));
            })
        };
        let mut out = [0];
        shared.0.report(pages(0, 1), PageSize::FOUR_K, &mut out).expect("enough words");
        let drained = out[0] == 1;
        if drained {
            assert_eq!(shared.1.load(Ordering::Relaxed), 7);
        }
        device.join().expect("no panic");
        assert_eq!(shared.0.count(), u64::from(!drained));
    });
}

/// A bitmap of another whose words lie alike is merged whole words at a time, after a look
/// at what is there; one who drains looks at words too before it takes them.
#[test]
fn a_word_that_looked_clean_to_both_is_forgotten() {
    loom::model(|| {
        let bitmap = Bitmap::new(pages(0, 64), PageSize::FOUR_K).expect("a bitmap");
        let bitmap = Arc::new(bitmap);
        let merges = {
            let bitmap = bitmap.clone();
            thread::spawn(move || {
                bitmap.merge(pages(0, 64), PageSize::FOUR_K, &[1 << 63 | 1]);
            })
        };
        let marks = {
            let bitmap = bitmap.clone();
            thread::spawn(move || bitmap.mark(pages(7, 1)))
        };
        let first = bitmap.drain();
        merges.join().expect("no panic");
        marks.join().expect("no panic");
        let second = bitmap.drain();
        assert_eq!(first.pages() + second.pages(), 3, "each once, and none twice");
    });
}

/// Two who take, one by ranges and one by a report: whoever has a bit, one of them has.
#[test]
fn a_bit_falls_between_two_who_take() {
    loom::model(|| {
        let bitmap = Bitmap::new(pages(0, 4), PageSize::FOUR_K).expect("a bitmap");
        let bitmap = Arc::new(bitmap);
        bitmap.mark(pages(1, 2));
        let reports = {
            let bitmap = bitmap.clone();
            thread::spawn(move || {
                let mut out = [0];
                bitmap
                    .report(pages(0, 4), PageSize::FOUR_K, &mut out)
                    .expect("enough words");
                u64::from(out[0].count_ones())
            })
        };
        let failed = bitmap.drain_range(pages(2, 2));
        bitmap.restore(&failed);
        let reported = reports.join().expect("no panic");
        assert_eq!(reported + bitmap.drain().pages(), 2);
    });
}

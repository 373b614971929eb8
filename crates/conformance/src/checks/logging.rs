//! Rule 23: the DMA log.

use abi::dma_logging::{MAX_RANGES, Range};
use abi::errno::Errno;
use abi::feature::Feature;
use abi::vfio_user::{LoggingControl, LoggingReport};
use zerocopy::{FromBytes, IntoBytes};

use super::features::need;
use crate::bench::Bench;
use crate::outcome::{Outcome, Stop, answer, fail, skip};

const PAGE: u64 = 4096;
/// Where the ranges are: memory that nobody needs to have mapped.
const BASE: u64 = 1 << 30;

/// The last page of the address space: a range may not end at 2^64.
const LAST: u64 = u64::MAX - PAGE + 1;

/// START; the page size that was chosen, where the device says.
fn start_log(
    bench: &Bench,
    page_size: u64,
    ranges: &[(u64, u64)],
) -> Result<Result<Option<u64>, Errno>, Stop> {
    bench.in_time()?;
    let num_ranges = ranges.len() as u32;
    let control = LoggingControl { page_size, num_ranges, reserved: 0 };
    let mut payload = control.as_bytes().to_vec();
    for (iova, length) in ranges {
        payload.extend(Range { iova: *iova, length: *length }.as_bytes());
    }
    let set = bench.transport().feature_set(Feature::DMA_LOGGING_START, &payload);
    Ok(answer(set)?.map(|bytes| {
        LoggingControl::read_from_prefix(&bytes).ok().map(|(chosen, _)| chosen.page_size)
    }))
}

fn stop_log(bench: &Bench) -> Result<Result<(), Errno>, Stop> {
    // The kernel takes nothing, vfio-user the shape of START.
    let control = LoggingControl { page_size: PAGE, num_ranges: 0, reserved: 0 };
    let feature = Feature::DMA_LOGGING_STOP;
    let set = bench.transport().feature_set(feature, control.as_bytes());
    Ok(answer(set)?.map(drop))
}

fn report_log(
    bench: &Bench,
    iova: u64,
    length: u64,
    page_size: u64,
) -> Result<Result<Vec<u8>, Errno>, Stop> {
    bench.in_time()?;
    let report = LoggingReport { iova, length, page_size };
    // Room for more words than any of these ranges has pages.
    let most = size_of::<LoggingReport>() + 4096;
    bench.get(Feature::DMA_LOGGING_REPORT, report.as_bytes(), most)
}

/// Checks with a log that does not run before and not after.
fn with_log(bench: &Bench, work: impl FnOnce() -> Outcome) -> Outcome {
    need(bench, Feature::DMA_LOGGING_START)?;
    let outcome = work();
    if !matches!(outcome, Err(Stop::Lost(_))) {
        // It may never have started.
        let _ = stop_log(bench)?;
    }
    outcome
}

pub(super) fn start(bench: &Bench) -> Outcome {
    with_log(bench, || {
        let many: Vec<_> =
            (0..=u64::from(MAX_RANGES)).map(|n| (BASE + 2 * n * PAGE, PAGE)).collect();
        let cases = [
            ("257 ranges", many, Errno::E2BIG),
            ("a start inside a page", vec![(BASE + 1, PAGE)], Errno::EINVAL),
            ("half a page", vec![(BASE, PAGE / 2)], Errno::EINVAL),
            ("two of the same", vec![(BASE, PAGE); 2], Errno::EINVAL),
            (
                "an overlap",
                vec![(BASE, 4 * PAGE), (BASE + 3 * PAGE, PAGE)],
                Errno::EINVAL,
            ),
            ("an end at 2^64", vec![(LAST, PAGE)], Errno::EOVERFLOW),
            ("an end behind 2^64", vec![(LAST, 2 * PAGE)], Errno::EOVERFLOW),
        ];
        let mut wrong = Vec::new();
        let count = cases.len();
        for (what, ranges, expected) in cases {
            match start_log(bench, PAGE, &ranges)? {
                Err(errno) if errno == expected => {}
                Err(errno) => wrong.push(format!("{what}: {errno}, not {expected}")),
                Ok(_) => {
                    wrong.push(format!("{what}: done, not {expected}"));
                    let _ = stop_log(bench)?;
                }
            }
        }
        let none = start_log(bench, PAGE, &[])?;
        let note = match (none, bench.is_kernel()) {
            (Err(Errno::EINVAL), _) => "no range at all too",
            // In vfio-user that means everything.
            (Ok(_), false) => "no range at all is everything",
            (Ok(_), true) => {
                wrong.push("no range at all: done, not EINVAL".to_owned());
                ""
            }
            (Err(errno), _) => {
                wrong.push(format!("no range at all: {errno}"));
                ""
            }
        };
        match wrong.as_slice() {
            [] => Ok(format!("{count} refused as they should be, {note}")),
            wrong => fail(wrong.join("; ")),
        }
    })
}

pub(super) fn page_size(bench: &Bench) -> Outcome {
    with_log(bench, || {
        if start_log(bench, 0, &[(BASE, PAGE)])?.is_ok() {
            return fail("page size 0 is taken");
        }
        let mut seen = Vec::new();
        for page in [3, 1, 5000, PAGE] {
            let ranges = [(BASE, PAGE * 5000)];
            match start_log(bench, page, &ranges)? {
                Err(errno) => seen.push(format!("{page}: {errno}")),
                Ok(chosen) => {
                    let chosen = chosen.unwrap_or(page);
                    if !chosen.is_power_of_two() {
                        return fail(format!("for {page} it chose {chosen}"));
                    }
                    seen.push(format!("{page}: {chosen}"));
                    let _ = stop_log(bench)?;
                }
            }
        }
        Ok(seen.join(", "))
    })
}

pub(super) fn cycle(bench: &Bench) -> Outcome {
    with_log(bench, || {
        let chosen = match start_log(bench, PAGE, &[(BASE, 64 * PAGE)])? {
            Ok(chosen) => chosen.unwrap_or(PAGE),
            Err(errno) => return fail(format!("start: {errno}")),
        };
        let page = chosen.max(PAGE);
        for iova in [BASE, BASE + 32 * PAGE] {
            match report_log(bench, iova, 32 * PAGE, page)? {
                Ok(bytes) => check_report(&bytes, page)?,
                Err(Errno::EOPNOTSUPP) if bench.is_kernel() => {
                    return skip("this kernel reports nothing: it has no IOMMUFD");
                }
                Err(errno) => return fail(format!("report: {errno}")),
            }
        }
        match stop_log(bench)? {
            Ok(()) => Ok(format!("page size {chosen}")),
            Err(errno) => fail(format!("stop: {errno}")),
        }
    })
}

/// As many bits as pages, and none behind them.
fn check_report(bytes: &[u8], page: u64) -> Result<(), Stop> {
    let Some(bits) = bytes.get(size_of::<LoggingReport>()..) else {
        return fail(format!("report: {} bytes", bytes.len()));
    };
    let pages = (32 * PAGE).div_ceil(page);
    let word = bits.first_chunk().map(|word| u64::from_le_bytes(*word));
    match word {
        Some(word) if bits.len() == 8 || bits[8..].iter().all(|byte| *byte == 0) => {
            if pages < 64 && word >> pages != 0 {
                return fail(format!("report: bits behind the range, {word:#x}"));
            }
            Ok(())
        }
        _ => fail(format!("report: {} bytes of bits", bits.len())),
    }
}

pub(super) fn twice(bench: &Bench) -> Outcome {
    with_log(bench, || {
        if let Err(errno) = start_log(bench, PAGE, &[(BASE, PAGE)])? {
            return fail(format!("start: {errno}"));
        }
        match start_log(bench, PAGE, &[(BASE, PAGE)])? {
            Err(errno) => Ok(errno.to_string()),
            Ok(_) => fail("a second start is taken"),
        }
    })
}

pub(super) fn report(bench: &Bench) -> Outcome {
    with_log(bench, || {
        if let Err(errno) = start_log(bench, PAGE, &[(BASE, 64 * PAGE)])? {
            return fail(format!("start: {errno}"));
        }
        let cases = [
            ("page size 0", BASE, PAGE, 0, Errno::EINVAL),
            ("page size 3", BASE, PAGE, 3, Errno::EINVAL),
            ("page size 2048", BASE, PAGE, 2048, Errno::EINVAL),
            ("page size 12288", BASE, 3 * PAGE, 3 * PAGE, Errno::EINVAL),
            ("an end at 2^64", LAST, PAGE, PAGE, Errno::EOVERFLOW),
            ("an end behind 2^64", LAST, 2 * PAGE, PAGE, Errno::EOVERFLOW),
        ];
        let mut wrong = Vec::new();
        for (what, iova, length, page, expected) in cases {
            match report_log(bench, iova, length, page)? {
                Err(errno) if errno == expected => {}
                Err(errno) => wrong.push(format!("{what}: {errno}, not {expected}")),
                Ok(_) => wrong.push(format!("{what}: done, not {expected}")),
            }
        }
        match wrong.as_slice() {
            [] => Ok(format!("{} refused as they should be", cases.len())),
            wrong => fail(wrong.join("; ")),
        }
    })
}

pub(super) fn not_started(bench: &Bench) -> Outcome {
    with_log(bench, || match report_log(bench, BASE, PAGE, PAGE)? {
        Err(errno) => Ok(errno.to_string()),
        Ok(_) => fail("a report of what nobody logged"),
    })
}

pub(super) fn stop(bench: &Bench) -> Outcome {
    with_log(bench, || {
        let word = stop_log(bench)?
            .map_or_else(|errno| errno.to_string(), |()| "done".to_owned());
        match start_log(bench, PAGE, &[(BASE, PAGE)])? {
            Ok(_) => Ok(format!("{word}, and it starts afterwards")),
            Err(errno) => fail(format!("{word}, and a start afterwards: {errno}")),
        }
    })
}

pub(super) fn complete(_: &Bench) -> Outcome {
    skip("it takes a device that writes when it is told to")
}

//! Rule 1: which features there are, and what is done with nonsense.

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::v2::{DeviceMigState, DeviceState, Migration};
use states::v2::Capabilities;
use zerocopy::{FromBytes, IntoBytes};

use crate::bench::Bench;
use crate::outcome::{Outcome, Stop, answer, fail, skip};

const GET: FeatureFlags = FeatureFlags::GET;
const SET: FeatureFlags = FeatureFlags::SET;
const PROBE: FeatureFlags = FeatureFlags::PROBE;
const BOTH: FeatureFlags = GET.union(SET);

/// What there may be of migration, and what can be done with it.
const FEATURES: [(Feature, FeatureFlags); 7] = [
    (Feature::MIGRATION, GET),
    (Feature::MIG_DEVICE_STATE, BOTH),
    (Feature::DMA_LOGGING_START, SET),
    (Feature::DMA_LOGGING_STOP, SET),
    (Feature::DMA_LOGGING_REPORT, GET),
    (Feature::MIG_DATA_SIZE, GET),
    (Feature::MIG_PRECOPY_INFO_V2, SET),
];

/// Numbers that nobody uses.
const UNKNOWN: [Feature; 3] = [Feature(0x0400), Feature(0x7ffe), Feature(0xfefe)];

pub(super) fn flags(bench: &Bench) -> Outcome {
    let bytes = match bench.get(Feature::MIGRATION, &[], size_of::<Migration>())? {
        Ok(bytes) => bytes,
        Err(errno) => return fail(format!("{errno}: it has no v2 migration")),
    };
    let Ok(migration) = Migration::read_from_bytes(&bytes) else {
        return fail(format!("{} bytes instead of 8", bytes.len()));
    };
    match Capabilities::try_from_flags(migration.flags) {
        Ok(capabilities) => Ok(format!("flags {capabilities}")),
        Err(error) => fail(error.to_string()),
    }
}

pub(super) fn probe(bench: &Bench) -> Outcome {
    let mut here = Vec::new();
    for (feature, _) in FEATURES {
        match answer(bench.transport().feature_probe(feature))? {
            Ok(()) => here.push(feature),
            Err(errno) if absent(bench, feature, errno)? => {}
            Err(errno) => return fail(format!("{feature}: {errno}")),
        }
    }
    for feature in [Feature::MIGRATION, Feature::MIG_DEVICE_STATE] {
        let got = bench.get(feature, &[], 8)?;
        if got.is_ok() != here.contains(&feature) {
            let word = got.map_or_else(|errno| errno.to_string(), |_| "there".to_owned());
            return fail(format!("{feature}: GET and PROBE differ (GET: {word})"));
        }
        if got.is_err() {
            return fail(format!("{feature} is not there"));
        }
    }
    let logging = [
        Feature::DMA_LOGGING_START,
        Feature::DMA_LOGGING_STOP,
        Feature::DMA_LOGGING_REPORT,
    ];
    let some = logging.iter().filter(|feature| here.contains(feature)).count();
    if some != 0 && some != logging.len() {
        return fail(format!("{some} of the {} features of a DMA log", logging.len()));
    }
    Ok(format!("there: {}", list(&here)))
}

pub(super) fn operations(bench: &Bench) -> Outcome {
    let raw = bench.raw()?;
    let mut asked = 0;
    for (feature, operations) in FEATURES {
        let here = answer(bench.transport().feature_probe(feature))?;
        for wanted in [GET, SET, BOTH] {
            let got = answer(raw.feature(header(feature, PROBE | wanted, 0), &[]))?;
            asked += 1;
            let right = match (here, &got) {
                (Ok(()), Ok(_)) => operations.contains(wanted),
                (Ok(()), Err(errno)) => {
                    *errno == Errno::EINVAL && !operations.contains(wanted)
                }
                (Err(_), Err(errno)) => absent(bench, feature, *errno)?,
                (Err(_), Ok(_)) => false,
            };
            if !right {
                let words = names(PROBE | wanted);
                let word =
                    got.map_or_else(|errno| errno.to_string(), |_| "done".to_owned());
                return fail(format!("{feature}: {words}: {word}"));
            }
        }
    }
    Ok(format!("{asked} answers, all right"))
}

pub(super) fn unknown(bench: &Bench) -> Outcome {
    let mut seen = Vec::new();
    for feature in UNKNOWN {
        let probed = answer(bench.transport().feature_probe(feature))?;
        let got = bench.get(feature, &[], 8)?;
        for (what, result) in [("PROBE", probed), ("GET", got.map(drop))] {
            match result {
                Ok(()) => return fail(format!("{feature:?}: {what} succeeds")),
                Err(errno) if absent(bench, feature, errno)? => seen.push(errno),
                Err(errno) => {
                    return fail(format!(
                        "{feature:?}: {what}: {errno} instead of ENOTTY"
                    ));
                }
            }
        }
    }
    seen.dedup();
    Ok(seen.iter().map(Errno::to_string).collect::<Vec<_>>().join(", "))
}

pub(super) fn malformed(bench: &Bench) -> Outcome {
    let raw = bench.raw()?;
    let before = bench.raw_state()?;
    let migration = Feature::MIGRATION;
    // Where SET worked, the device would go there.
    let stop = DeviceMigState { device_state: DeviceState::STOP.0, data_fd: -1 };
    let state = Feature::MIG_DEVICE_STATE;
    let sized =
        |argsz, operation| FeatureHeader { argsz, ..header(migration, operation, 0) };
    let short = |argsz| FeatureHeader { argsz, ..header(state, SET, 0) };
    let odd = |bit: u32| {
        let plain = header(migration, GET, 8);
        FeatureHeader { flags: plain.flags | 1 << bit, ..plain }
    };
    let cases: [(&str, FeatureHeader, &[u8]); 16] = [
        ("GET with argsz 0", sized(0, GET), &[]),
        ("GET with argsz 7", sized(7, GET), &[]),
        ("PROBE with argsz 7", sized(7, PROBE), &[]),
        ("GET without room for the answer", sized(8, GET), &[]),
        ("GET with half the room", sized(12, GET), &[]),
        ("bit 19", odd(19), &[]),
        ("bit 24", odd(24), &[]),
        ("bit 31", odd(31), &[]),
        ("GET with SET", header(migration, BOTH, 8), &[0; 8]),
        ("nothing to do", header(migration, FeatureFlags::empty(), 8), &[]),
        ("SET of what can only be got", header(migration, SET, 8), &[0; 8]),
        ("SET of the state with argsz 7", short(7), stop.as_bytes()),
        ("SET of the state with argsz 8", short(8), stop.as_bytes()),
        ("SET of the state with argsz 12", short(12), stop.as_bytes()),
        ("SET of the state with argsz 15", short(15), stop.as_bytes()),
        ("SET and GET of the state", header(state, BOTH, 8), stop.as_bytes()),
    ];
    for (what, header, data) in cases {
        match answer(raw.feature(header, data))? {
            Err(Errno::EINVAL) => {}
            Err(errno) => return fail(format!("{what}: {errno} instead of EINVAL")),
            Ok(_) => return fail(format!("{what}: done instead of EINVAL")),
        }
    }
    let roomy = FeatureHeader { argsz: 4096, ..header(migration, GET, 8) };
    if let Err(errno) = answer(raw.feature(roomy, &[]))? {
        return fail(format!("GET with argsz 4096: {errno}"));
    }
    if bench.raw_state()?.device_state != before.device_state {
        return fail("a malformed SET changed the state");
    }
    Ok(format!("{} times EINVAL, and a large argsz is taken", cases.len()))
}

/// Whether an errno says that a feature is not there.
fn absent(bench: &Bench, feature: Feature, errno: Errno) -> Result<bool, Stop> {
    if errno == Errno::ENOTTY {
        return Ok(true);
    }
    if errno != Errno::EINVAL {
        return Ok(false);
    }
    Ok(match bench.release() {
        // The text of vfio-user does not say.
        None => true,
        // Feature 12 is looked at before the device is.
        Some(_) if feature == Feature::MIG_PRECOPY_INFO_V2 => {
            !bench.capabilities()?.pre_copy()
        }
        Some(release) => release.says_einval_for_unknown(),
    })
}

fn header(feature: Feature, operation: FeatureFlags, data: u32) -> FeatureHeader {
    FeatureHeader::new(feature, operation, data)
}

fn names(operation: FeatureFlags) -> String {
    operation.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(" and ")
}

fn list(features: &[Feature]) -> String {
    features.iter().map(Feature::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether a feature is there, for checks of it.
pub(super) fn need(bench: &Bench, feature: Feature) -> Result<(), Stop> {
    match answer(bench.transport().feature_probe(feature))? {
        Ok(()) => Ok(()),
        Err(errno) => skip(format!("it has no {feature} ({errno})")),
    }
}

//! `cargo xtask bench`: every figure with a limit measured beside it, in the same run.
//!
//! An absolute figure says more about the machine than about the code. So each row sets
//! our figure beside what the same machine does for the same bytes without us, the two
//! sides interleaved, at least [`MIN_RUNS`] times each, and states what is within reach.
//!
//! # Adding a row
//!
//! Write `bench/works/<work>.rs`, which is linked with the feature `bench` (its
//! dependencies on rooms are optional and belong to that feature), with one function that
//! measures and returns a [`Row`], and name it in `works::all`:
//!
//! ```ignore
//! pub(super) fn measure(runs: Runs) -> Result<Row, String> {
//!     let samples = runs.interleave(                 // the first run does not count
//!         &mut Rig::new()?,                          // touches all memory first
//!         |rig| rig.our_way(),                       // -> Result<f64, String>
//!         |rig| rig.the_limit(),
//!     )?;
//!     Row::new("region read of 4 bytes", "µs", Reach::AtMost { factor: 1.35, plus: 0.0 },
//!              &samples)
//! }
//! ```

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

mod machine;
#[allow(
    dead_code,
    reason = "only measurements use it all, and they are linked with the feature bench"
)]
mod row;
mod table;
#[cfg(feature = "bench")]
mod works;

use machine::Machine;
use row::{Row, Runs};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask bench [--json] [--runs N] [WORK...]

Builds in release mode and measures each WORK (default: all) with its limit beside it:
  region-read, posted-write, dma-message    messages of vfio-user
  data-read, data-write                     migration data over vfio-user
  v1-trapped, v1-mapped,
  rfc2018-trapped, rfc2018-mapped           a device saved through a migration region,
                                            beside the same device as v2
  bitmap-sparse, bitmap-some, bitmap-full   the dirty bitmap of 1 TiB
  dirty-sync, dirty-sync-idle               the same from the log of a vfio-user device
  migration, downtime                       from one process to another

  --json    one JSON object instead of the table
  --runs N  runs of each side, at least 7 (default 7)

Exit status 1 when a row falls short of its reach, cannot be measured, or when there is
nothing to measure.
";

/// Fewer runs say nothing on a noisy machine.
const MIN_RUNS: usize = 7;

/// Says to ourselves that we are the build that measures.
const MEASURE: &str = "--measure";

/// Something that can be measured.
struct Measurement {
    /// The name on the command line, and of the module.
    name: &'static str,
    /// Measures it.
    measure: fn(Runs) -> Result<Row, String>,
}

/// All measurements, in the order of the table. The rooms are linked only with the
/// feature `bench`, which [`run`] turns on.
fn measurements() -> Vec<Measurement> {
    #[cfg(feature = "bench")]
    return works::all();
    #[cfg(not(feature = "bench"))]
    Vec::new()
}

/// Runs the command.
///
/// # Errors
///
/// When a row falls short or cannot be measured, or when there is none.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    #[cfg(feature = "bench")]
    if let Some(side) = arguments.option::<String>(works::SIDE)? {
        return works::run_side(&side, &arguments.names()?).map_err(Failure::Failed);
    }
    let json = arguments.flag("--json");
    let measures = arguments.flag(MEASURE);
    let runs = arguments.option("--runs")?.unwrap_or(MIN_RUNS);
    let runs = Runs::new(runs).map_err(Failure::Usage)?;
    let wanted = arguments.names()?;
    if measures {
        return measure(json, runs, &wanted);
    }
    let root = process::root();
    let mut cargo = process::cargo(&root);
    cargo.args(["run", "--quiet", "--release", "--package", "xtask"]);
    cargo.args(["--features", "bench", "--", "bench", MEASURE]);
    if json {
        cargo.arg("--json");
    }
    cargo.args(["--runs", &runs.count().to_string()]).args(wanted);
    let status = cargo
        .status()
        .map_err(|error| Failure::Failed(format!("cannot run cargo: {error}")))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::failed("failed, see above")),
        Some(2) => Err(Failure::Usage("refused, see above".into())),
        _ => Err(Failure::Failed(format!("the release build ended with {status}"))),
    }
}

fn measure(json: bool, runs: Runs, wanted: &[String]) -> Outcome {
    let all = measurements();
    let known = |name: &String| all.iter().any(|one| one.name == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let names: Vec<_> = all.iter().map(|one| one.name).collect();
        return Err(Failure::Usage(format!(
            "unknown work `{unknown}`; there are: {}",
            names.join(", ")
        )));
    }
    let is_wanted = |one: &&Measurement| {
        wanted.is_empty() || wanted.iter().any(|name| name == one.name)
    };
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    if all.is_empty() {
        failures.push("no measurement is registered: nothing was measured".to_owned());
    }
    for Measurement { name, measure } in all.iter().filter(is_wanted) {
        eprintln!("measuring {name} ...");
        match measure(runs) {
            Ok(row) => rows.push(row),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    let machine = Machine::read();
    if json {
        println!("{}", table::json(&machine, &rows, &failures));
    } else {
        print!("{}", table::text(&machine, &rows));
    }
    failures.extend(
        rows.iter()
            .filter(|row| !row.ok())
            .map(|row| format!("{}: falls short of its reach", row.work())),
    );
    if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("; "))) }
}

//! `cargo xtask fuzz`: libFuzzer with coverage, on the stable toolchain.
//!
//! ```text
//! fuzz/corpus/<target>          checked in, small, only read here
//! target/fuzz-corpus/<target>   what runs on this machine found interesting
//! target/fuzz-artifacts/        inputs that broke something
//! target/fuzz-logs/             what each target printed
//! target/fuzz                   what is built
//! ```
//!
//! A fuzzer that sees nothing finds nothing, and looks like success. So `self_test`, with
//! a bug that only feedback from the comparisons leads to, runs first and must be found;
//! and a target that reports no executions or no edges has failed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask fuzz [--seconds N] [TARGET...]

Builds the fuzz targets of fuzz/ with coverage, on the stable toolchain; checks for at
most 30 s that the fuzzer finds the seeded bug of `self_test`; then runs each TARGET
(default: all) and prints its executions and edges.

  --seconds N  how long to run each target, 1 to 86400 (default 60)

Exit status 1 on any finding; the input is then under target/fuzz-artifacts/.
";

/// Coverage on stable: the pass is LLVM's, only its flags differ from nightly's `-Z`.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

/// Named explicitly, so that the flags above do not reach build scripts and macros.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

const SELF_TEST: &str = "self_test";

/// What the seeded bug says when it is hit.
const SEEDED_BUG: &str = "the seeded bug was reached";

const SELF_TEST_SECONDS: u64 = 30;

/// Start, reading the corpus and the last input may take as long as this beside the run.
const GRACE: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
///
/// When a target does not build or finds something, or when the fuzzer is blind.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let seconds = arguments.option("--seconds")?.unwrap_or(60);
    if !(1..=86400).contains(&seconds) {
        return Err(Failure::Usage("`--seconds` is from 1 to 86400".into()));
    }
    let wanted = arguments.names()?;
    let root = process::root();
    let known = targets(&root)?;
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(*name)) {
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        return Err(Failure::Usage(format!(
            "unknown target `{unknown}`; the targets are: {}",
            known.join(", ")
        )));
    }
    let chosen: Vec<&String> =
        known.iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect();
    let fuzzer = Fuzzer { root };
    let mut built: BTreeSet<&str> = chosen.iter().map(|name| name.as_str()).collect();
    built.insert(SELF_TEST);
    fuzzer.build(&built)?;
    fuzzer.self_test()?;
    let mut findings = Vec::new();
    for target in chosen.iter().filter(|name| **name != SELF_TEST) {
        if let Err(Failure::Failed(text) | Failure::Usage(text)) =
            fuzzer.target(target, seconds)
        {
            eprintln!("{text}");
            findings.push(target.as_str());
        }
    }
    if !findings.is_empty() {
        return Err(Failure::Failed(format!("failed: {}", findings.join(", "))));
    }
    match chosen.iter().filter(|name| **name != SELF_TEST).count() {
        0 if wanted.is_empty() => Err(Failure::failed("there are no targets to run")),
        _ => Ok(()),
    }
}

/// The binaries of the fuzz crate.
fn targets(root: &Path) -> Result<BTreeSet<String>, Failure> {
    let text = process::output(
        process::cargo(root)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .args(["--manifest-path", "fuzz/Cargo.toml"]),
    )?;
    let metadata: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Failed(format!("cargo metadata: {error}")))?;
    let targets = metadata["packages"][0]["targets"].as_array();
    let is_binary = |target: &&Value| target["kind"][0] == "bin";
    Ok(targets
        .into_iter()
        .flatten()
        .filter(is_binary)
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

struct Fuzzer {
    root: PathBuf,
}

/// How a run of one target ended.
struct Run {
    status: ExitStatus,
    log: PathBuf,
    output: String,
    artifacts: PathBuf,
}

impl Fuzzer {
    fn build(&self, targets: &BTreeSet<&str>) -> Outcome {
        let mut cargo = process::cargo(&self.root);
        cargo.args(["build", "--quiet", "--release", "--target", TRIPLE]);
        cargo.args(["--manifest-path", "fuzz/Cargo.toml"]);
        for target in targets {
            cargo.args(["--bin", target]);
        }
        cargo.env("CARGO_TARGET_DIR", self.root.join("target/fuzz"));
        cargo.env("RUSTFLAGS", RUSTFLAGS);
        // It would win over the flags above.
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
        process::step("build", &mut cargo)
    }

    /// Proves that the fuzzer sees: the seeded bug is found, from nothing, in time.
    fn self_test(&self) -> Outcome {
        // What an earlier run learnt must not help.
        let learnt = self.root.join("target/fuzz-corpus").join(SELF_TEST);
        if learnt.exists() {
            fs::remove_dir_all(&learnt).map_err(|error| at(&learnt, &error))?;
        }
        let start = Instant::now();
        let run = self.run(SELF_TEST, SELF_TEST_SECONDS)?;
        if run.status.success() || !run.output.contains(SEEDED_BUG) {
            return Err(Failure::Failed(format!(
                "the fuzzer is blind: the seeded bug of {SELF_TEST} was not found in \
                 {SELF_TEST_SECONDS} s ({}); see {}",
                run.status,
                run.log.display()
            )));
        }
        println!(
            "{SELF_TEST}: the seeded bug was found in {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Runs a real target, which must find nothing.
    fn target(&self, target: &str, seconds: u64) -> Outcome {
        let run = self.run(target, seconds)?;
        let found = format!("see {} and {}", run.artifacts.display(), run.log.display());
        if !run.status.success() {
            let lines: Vec<_> = run.output.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            return Err(Failure::Failed(format!(
                "{tail}\n{target}: a finding ({}); {found}",
                run.status
            )));
        }
        match Statistics::parse(&run.output) {
            Some(Statistics { executions, edges, all_edges }) => {
                println!(
                    "{target}: {executions} executions, {edges} of {all_edges} edges, \
                     no finding"
                );
                Ok(())
            }
            None => Err(Failure::Failed(format!(
                "{target}: no executions or no edges were reported, so nothing was \
                 tested; {found}"
            ))),
        }
    }

    fn run(&self, target: &str, seconds: u64) -> Result<Run, Failure> {
        let place = self.root.join("target");
        let learnt = place.join("fuzz-corpus").join(target);
        let artifacts = place.join("fuzz-artifacts").join(target);
        let logs = place.join("fuzz-logs");
        for folder in [&learnt, &artifacts, &logs] {
            fs::create_dir_all(folder).map_err(|error| at(folder, &error))?;
        }
        let log = logs.join(format!("{target}.log"));
        let output = File::create(&log).map_err(|error| at(&log, &error))?;
        let copy = output.try_clone().map_err(|error| at(&log, &error))?;
        let mut command =
            Command::new(place.join("fuzz").join(TRIPLE).join("release").join(target));
        command.current_dir(&self.root).stdout(output).stderr(copy);
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"]);
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        // New inputs go to the first folder; the others are only read.
        command.arg(&learnt);
        let corpus = self.root.join("fuzz/corpus").join(target);
        if corpus.is_dir() {
            command.arg(corpus);
        }
        let child = command.spawn().map_err(|error| at(&log, &error))?;
        let status = wait(child, Duration::from_secs(seconds) + GRACE)
            .map_err(|text| Failure::Failed(format!("{target}: {text}")))?;
        let bytes = fs::read(&log).map_err(|error| at(&log, &error))?;
        let output = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Run { status, log, output, artifacts })
    }
}

/// Waits for a child, and kills it at the deadline.
fn wait(mut child: Child, limit: Duration) -> Result<ExitStatus, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Err(error) => return Err(format!("cannot wait: {error}")),
            Ok(None) if start.elapsed() > limit => {
                // Either fails only where the child is gone already.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not end within {} s", limit.as_secs()));
            }
            Ok(None) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// What libFuzzer says at the end.
#[derive(Debug, PartialEq, Eq)]
struct Statistics {
    executions: u64,
    edges: u64,
    all_edges: u64,
}

impl Statistics {
    /// Reads the log; none where nothing was executed or nothing is instrumented.
    fn parse(log: &str) -> Option<Self> {
        let after = |marker: &str| {
            let at = log.rfind(marker)? + marker.len();
            let number = log[at..].trim_start();
            let end = number.find(|char: char| !char.is_ascii_digit());
            number[..end.unwrap_or(number.len())].parse::<u64>().ok()
        };
        let executions = after("stat::number_of_executed_units:")?;
        let edges = after(" cov: ")?;
        // "INFO: Loaded 1 modules   (123 inline 8-bit counters): ..."
        let loaded = log.lines().find(|line| line.contains("inline 8-bit counters)"))?;
        let all_edges = loaded.split_once('(')?.1.split_once(' ')?.0.parse().ok()?;
        (executions > 0 && edges > 0).then_some(Self { executions, edges, all_edges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
INFO: Seed: 1
INFO: Loaded 1 modules   (9123 inline 8-bit counters): 9123 [0x1, 0x2),
#2	INITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb
#999	DONE   cov: 345 ft: 400 corp: 20/99b lim: 8 exec/s: 100 rss: 41Mb
stat::number_of_executed_units: 999
stat::average_exec_per_sec:     100
";

    #[test]
    fn statistics_are_the_last_ones() {
        let expected = Statistics { executions: 999, edges: 345, all_edges: 9123 };
        assert_eq!(Statistics::parse(LOG), Some(expected));
    }

    #[test]
    fn run_that_tested_nothing_is_no_success() {
        assert_eq!(Statistics::parse(""), None);
        assert_eq!(Statistics::parse(&LOG.replace("units: 999", "units: 0")), None);
        assert_eq!(Statistics::parse(&LOG.replace(" cov: 345", " cov: 0")), None);
        assert_eq!(Statistics::parse(&LOG.replace("8-bit", "")), None);
    }

    #[test]
    fn child_that_does_not_end_is_killed() {
        let child = Command::new("sleep").arg("600").spawn().expect("sleep is installed");
        assert!(wait(child, Duration::from_millis(10)).is_err());
    }
}

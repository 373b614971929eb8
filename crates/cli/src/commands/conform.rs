//! `vfio-migrate conform`: whether a device obeys the migration interface.

use std::io;
use std::time::Instant;

use anyhow::{Context, Result};
use conformance::{Check, Finding, Options, Verdict, select};
use serde_json::{Value, json};

use crate::args::Conform;
use crate::devices::Reached;
use crate::exit::{Exit, Found, Nonsense, status};
use crate::output;

/// Checks it, or says what would be checked.
pub(super) fn run(conform: &Conform, json: bool) -> Result<Exit> {
    let checks = select(&conform.only).map_err(|error| Nonsense(error.to_string()))?;
    let device = match &conform.device {
        Some(device) if !conform.list => device,
        _ => {
            for check in checks {
                output::say(&listed(check), &about(check))?;
            }
            return Ok(status(Found::Done));
        }
    };
    let reached = device.reach(device.to_string())?;
    let transport = reached.transport();
    let driver = match &reached {
        Reached::Kernel(host) => host.about().driver.clone(),
        Reached::Server(_) => None,
    };
    let most_bytes = usize::try_from(conform.max_data.bytes())
        .map_err(|_| Nonsense(format!("--max-data {}: too much", conform.max_data)))?;
    let options = Options { most_bytes, driver, ..Options::default() };
    let began = Instant::now();
    let mut said = Ok(());
    let findings = conformance::run(transport, &checks, &options, &mut |finding| {
        if said.is_ok() {
            said = say(finding);
        }
    })
    .with_context(|| format!("{device} cannot be checked"))?;
    said?;
    let with = |verdict| {
        let these = findings.iter().filter(move |finding| finding.verdict == verdict);
        these.map(|finding| finding.check.id).collect::<Vec<_>>()
    };
    let passed = with(Verdict::Pass).len();
    let failed = with(Verdict::Fail);
    let skipped = with(Verdict::Skipped).len();
    let seconds = began.elapsed().as_secs_f64();
    let summary = json!({ "summary": {
        "device": device.to_string(),
        "passed": passed,
        "failed": failed.len(),
        "skipped": skipped,
        "failures": failed,
        "seconds": seconds,
    }});
    let mut text = format!(
        "{device}: {passed} passed, {} failed, {skipped} skipped in {seconds:.1} s",
        failed.len()
    );
    if !failed.is_empty() {
        text += &format!("; failed: {}", failed.join(", "));
    } else if passed == 0 {
        text += "; nothing was found out";
    }
    if json {
        output::json(&summary)?;
    } else {
        output::line(&text)?;
    }
    // A device that nothing can be asked of does not obey.
    Ok(if failed.is_empty() && passed > 0 { status(Found::Done) } else { Exit::Failed })
}

/// One line a check.
fn say(finding: &Finding) -> io::Result<()> {
    let Finding { check, verdict, saw, took } = finding;
    let text = format!("{:<7} {:<19} {}: {saw}", verdict.word(), check.id, check.did);
    let mut value = about(check);
    value["verdict"] = verdict.word().into();
    value["saw"] = saw.as_str().into();
    value["millis"] = (took.as_secs_f64() * 1000.0).into();
    output::say(&text, &value)
}

fn listed(check: &Check) -> String {
    format!("{:<19} {:<6} {}", check.id, check.effect.word(), check.did)
}

fn about(check: &Check) -> Value {
    json!({
        "check": check.id,
        "rule": check.rule,
        "did": check.did,
        "effect": check.effect.word(),
    })
}

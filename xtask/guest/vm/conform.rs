//! Every rule of the interface, by `vfio-migrate conform`, on the kernel's sample.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Stop;
use super::command::{run, words};
use super::port::Port;
use crate::report::Report;

/// What the sample is known to do otherwise than the interface says, and by which words
/// of a finding that is told from any other failure of the same rule. Where it no longer
/// does, that is no failure: its kernel is newer than this list.
const KNOWN: &[(&str, &str, &str)] = &[
    ("15.temporary", "and not ENOMSG", "mtty says 0 at a temporary end"),
    (
        "21.after-error",
        "the state is taken all the same",
        "mtty forgets that it refused a header",
    ),
    ("23.page-size", "it chose 3", "mtty takes page sizes that are no powers of two"),
    ("23.twice", "a second start", "mtty takes a second start"),
    ("23.not-started", "nobody logged", "mtty reports without a start"),
];

/// Ports of one line and of two.
const LINES: [u32; 2] = [1, 2];

fn name(lines: u32, id: &str) -> String {
    format!("conform-{lines}/{id}")
}

/// The names of all of them.
pub(super) fn names() -> Vec<String> {
    let of = |lines| conformance::CHECKS.iter().map(move |check| name(lines, check.id));
    LINES.into_iter().flat_map(of).collect()
}

/// Runs them on both kinds of ports.
pub(super) fn all(report: &mut Report) {
    for lines in LINES {
        let mut findings = match findings(lines) {
            Ok(findings) => findings,
            Err(error) => {
                for check in conformance::CHECKS {
                    report.check(&name(lines, check.id), Err(error.clone()));
                }
                continue;
            }
        };
        for check in conformance::CHECKS {
            let name = name(lines, check.id);
            match findings.remove(check.id).map(|finding| verdict(check.id, &finding)) {
                None => report.check(&name, Err("conform did not make it".to_owned())),
                Some(Ok(seen)) => report.check(&name, Ok(seen)),
                Some(Err(Stop::Skip(reason))) => report.skip(&name, &reason),
                Some(Err(Stop::Fail(error))) => report.check(&name, Err(error)),
            }
        }
    }
}

/// What it found, by the names of its checks.
fn findings(lines: u32) -> Result<BTreeMap<String, Value>, String> {
    let port = Port::new(lines)?;
    let said = run(&["conform", &port.uri()])?;
    let made =
        |answer: &Value| Some((answer["check"].as_str()?.to_owned(), answer.clone()));
    let findings: BTreeMap<_, _> = said.answers.iter().filter_map(made).collect();
    match findings.is_empty() {
        true => Err(format!(
            "conform: exit {}: {:?} {}",
            said.status, said.answers, said.errors
        )),
        false => Ok(findings),
    }
}

fn verdict(id: &str, finding: &Value) -> Result<String, Stop> {
    let saw = words(&finding["saw"]);
    let known =
        KNOWN.iter().find(|(known, words, _)| *known == id && saw.contains(words));
    match (finding["verdict"].as_str(), known) {
        (Some("pass"), _) => Ok(saw),
        // Nothing was asked any more: the check that lost it says why.
        (Some("skipped"), _) if saw.contains("the device was lost") => {
            Err(Stop::Fail(saw))
        }
        (Some("skipped"), _) => Err(Stop::Skip(saw)),
        (Some("fail"), Some((_, _, why))) => Ok(format!("as known, {why}: {saw}")),
        _ => Err(Stop::Fail(saw)),
    }
}

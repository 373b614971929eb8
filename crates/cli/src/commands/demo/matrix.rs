//! All pairs of generations, one migration after the other.

use anyhow::Result;
use engine::migration::{Outcome, Report};
use std::time::{Duration, Instant};

use super::perform;
use super::plan::Plan;
use super::process::Crew;
use crate::args::Global;
use crate::exit::Exit;
use crate::output;
use crate::report::{Extras, Summary};
use crate::units::Size;

/// Runs all of them and tells each as soon as it is over, whatever became of it.
pub(super) fn run(plans: &[Plan], global: &Global, crew: &Crew) -> Result<Exit> {
    let mut verified = 0;
    if !global.json {
        output::line(&head())?;
    }
    for plan in plans {
        let began = Instant::now();
        let done = perform(plan, global, crew, None);
        if crew.interrupted() {
            // Of what did not run nothing is said.
            return Ok(Exit::Failed);
        }
        let summary = done.unwrap_or_else(|error| broken(plan, &error, began.elapsed()));
        verified += usize::from(summary.is_verified());
        if global.json {
            output::json(&summary.to_json())?;
        } else {
            output::line(&row(&summary))?;
        }
    }
    let exit = if verified == plans.len() { Exit::Done } else { Exit::Failed };
    if exit != Exit::Done {
        output::note(&format!(
            "vfio-migrate: {} of {} migrations were not verified",
            plans.len() - verified,
            plans.len()
        ));
    }
    Ok(exit)
}

/// The report of a migration that did not even come to one.
pub(super) fn broken(plan: &Plan, error: &anyhow::Error, took: Duration) -> Summary {
    let report = Report {
        outcome: Outcome::Failed,
        total: took,
        downtime: None,
        downtime_estimate: None,
        phases: Vec::new(),
        rounds: 0,
        memory_bytes: 0,
        device_bytes: 0,
        dirty_failures: 0,
        devices: Vec::new(),
    };
    let mut summary = Summary::new(&report, &Extras::default());
    summary.error = Some(format!("{error:#}"));
    plan.name(&mut summary);
    summary
}

fn head() -> String {
    line(["model", "source", "destination", "rounds", "downtime", "devices", "result"])
}

/// One migration; what went wrong stands below it.
fn row(summary: &Summary) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let (downtime, result) = outcome(summary);
    let mut text = line([
        &name(&summary.model),
        &name(&summary.source_generation),
        &name(&summary.destination_generation),
        &summary.rounds.to_string(),
        &downtime,
        &Size::from_bytes(summary.device_bytes).to_string(),
        &result,
    ]);
    if let Some(error) = &summary.error {
        text.push_str(&format!("\n  {error}"));
    }
    for problem in &summary.problems {
        text.push_str(&format!("\n  {}: {}", problem.place, problem.text));
    }
    text
}

/// How long the guest was down, and what came of its migration.
pub(super) fn outcome(summary: &Summary) -> (String, String) {
    let downtime = summary.downtime_ms.map_or("-".into(), |ms| format!("{ms:.1} ms"));
    let result = match summary.verified {
        Some(true) => "verified".to_owned(),
        Some(false) => "NOT what was sent".to_owned(),
        None => summary.outcome.clone(),
    };
    (downtime, result)
}

fn line(columns: [&str; 7]) -> String {
    let [model, source, destination, rounds, downtime, devices, result] = columns;
    format!(
        "{model:<6} {source:<8} {destination:<12} {rounds:>6} {downtime:>10} \
         {devices:>10}  {result}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Problem;
    use crate::report::tests::report;

    #[test]
    fn a_row_hides_what_went_wrong() {
        let mut summary = Summary::new(&report(), &Extras::default());
        summary.model = Some("uart".to_owned());
        summary.source_generation = Some("v1".to_owned());
        summary.destination_generation = Some("rfc2018".to_owned());
        summary.verified = Some(true);
        assert_eq!(
            format!("{}\n{}", head(), row(&summary)),
            "model  source   destination  rounds   downtime    devices  result\n\
             uart   v1       rfc2018           3    43.0 ms     32 MiB  verified"
        );
        summary.verified = Some(false);
        summary.problems =
            vec![Problem { place: "page 0x1".into(), text: "differs".into() }];
        assert!(row(&summary).ends_with("NOT what was sent\n  page 0x1: differs"));
        summary.outcome = "failed".to_owned();
        summary.verified = None;
        summary.error = Some("the source died".to_owned());
        assert!(row(&summary).contains("failed\n  the source died"), "{}", row(&summary));
        assert!(!summary.is_verified());
    }
}

//! There and back again, in one pair of processes.

use std::time::Instant;

use anyhow::Result;

use super::Pair;
use super::matrix::{broken, outcome};
use super::plan::Plan;
use super::process::Crew;
use crate::args::Global;
use crate::exit::{Exit, status};
use crate::output;
use crate::progress::Show;
use crate::report::Summary;
use crate::report::repeat::{Total, found};
use crate::units::Size;

/// Migrates as often as was asked for, or until one migration is not verified; tells each
/// as soon as it is over, and in the end what they all come to.
pub(super) fn run(plan: &Plan, global: &Global, crew: &Crew) -> Result<Exit> {
    let mut pair = Pair::start(plan, global, crew)?;
    Show::new(global.json, global.verbose > 0).note(&pair.introduction());
    if !global.json {
        output::line(&head())?;
    }
    let began = Instant::now();
    let mut all: Vec<Summary> = Vec::new();
    let (there, back) = (plan.clone(), plan.back());
    for number in 1..=plan.repeat {
        let plan = if number % 2 == 1 { &there } else { &back };
        let start = Instant::now();
        let done = if number == 1 { Ok(()) } else { pair.turn() };
        let done = done.and_then(|()| pair.migrate(plan, crew, None));
        if crew.interrupted() {
            return Ok(Exit::Failed);
        }
        let mut summary =
            done.unwrap_or_else(|error| broken(plan, &error, start.elapsed()));
        summary.migration = Some(number);
        if global.json {
            output::json(&summary.to_json())?;
        } else {
            output::line(&row(&summary))?;
        }
        let verified = summary.is_verified();
        all.push(summary);
        if !verified {
            break;
        }
    }
    let total = Total::new(plan.repeat, &all, began.elapsed());
    if global.json {
        output::json(&total.to_json())?;
    } else {
        output::line(&total.text())?;
    }
    if let Some(error) = &total.error {
        output::note(&format!("vfio-migrate: {error}"));
    }
    Ok(status(found(all.last())))
}

fn head() -> String {
    line(["#", "from", "to", "rounds", "downtime", "memory", "devices", "result"])
}

/// One migration; what went wrong stands below all of them.
fn row(summary: &Summary) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let (downtime, result) = outcome(summary);
    let mut text = line([
        &summary.migration.unwrap_or(1).to_string(),
        &name(&summary.source_generation),
        &name(&summary.destination_generation),
        &summary.rounds.to_string(),
        &downtime,
        &Size::from_bytes(summary.memory_bytes).to_string(),
        &Size::from_bytes(summary.device_bytes).to_string(),
        &result,
    ]);
    for problem in &summary.problems {
        text.push_str(&format!("\n  {}: {}", problem.place, problem.text));
    }
    text
}

fn line(columns: [&str; 8]) -> String {
    let [number, source, destination, rounds, downtime, memory, devices, result] =
        columns;
    format!(
        "{number:>5}  {source:<8} {destination:<8} {rounds:>6} {downtime:>10} \
         {memory:>10} {devices:>10}  {result}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;
    use crate::report::{Extras, Problem};

    #[test]
    fn a_row_does_not_say_which_migration_went_wrong() {
        let mut summary = Summary::new(&report(), &Extras::default());
        summary.migration = Some(7);
        summary.source_generation = Some("v1".to_owned());
        summary.destination_generation = Some("rfc2018".to_owned());
        summary.verified = Some(true);
        assert_eq!(
            format!("{}\n{}", head(), row(&summary)),
            "    #  from     to       rounds   downtime     memory    devices  result\n    \
             7  v1       rfc2018       3    43.0 ms     96 MiB     32 MiB  verified"
        );
        summary.verified = Some(false);
        summary.problems =
            vec![Problem { place: "page 0x1".into(), text: "differs".into() }];
        assert!(row(&summary).ends_with("NOT what was sent\n  page 0x1: differs"));
    }
}

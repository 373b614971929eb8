//! The report of a demo that migrates back and forth: what all its migrations come to.

use std::time::Duration;

use engine::migration::Outcome;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Summary, ms};
use crate::exit::Found;

/// What all migrations of a demo come to, as it is printed with `--json`. Times are
/// milliseconds; what was not measured is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// `completed` where every one completed, else how the last one ended.
    pub outcome: String,
    /// Whether what arrived was what was sent, every time; null where the last migration
    /// did not come to that.
    pub verified: Option<bool>,
    /// How many migrations were asked for.
    pub repeat: u32,
    /// How many were verified: all that were asked for, or those before the one that was
    /// not.
    pub migrations: u32,
    /// The shortest time that the guest stood still.
    pub downtime_min_ms: Option<f64>,
    /// The one in the middle; of an even number, the mean of the two there.
    pub downtime_median_ms: Option<f64>,
    /// The longest.
    pub downtime_max_ms: Option<f64>,
    /// From the first request to the last check.
    pub total_ms: f64,
    /// The model of all devices.
    pub model: Option<String>,
    /// How devices interrupt, where that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<String>,
    /// The generation of the devices where the guest was at first.
    pub source_generation: Option<String>,
    /// The generation of the devices on the other side.
    pub destination_generation: Option<String>,
    /// Why the last migration is not what it should be, and which it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Total {
    /// Puts migrations together: all that were made, in their order. Each but the last
    /// was verified.
    pub fn new(repeat: u32, all: &[Summary], took: Duration) -> Total {
        let first = all.first();
        let name =
            |of: fn(&Summary) -> &Option<String>| first.and_then(|s| of(s).clone());
        let bad = all.last().filter(|summary| !summary.is_verified());
        let mut downtimes: Vec<f64> = all.iter().filter_map(|s| s.downtime_ms).collect();
        downtimes.sort_by(f64::total_cmp);
        let good = all.len() - usize::from(bad.is_some());
        Total {
            outcome: all.last().map_or_else(
                || Outcome::Failed.name().to_owned(),
                |summary| summary.outcome.clone(),
            ),
            verified: all.last().and_then(|summary| summary.verified),
            repeat,
            migrations: u32::try_from(good).unwrap_or(u32::MAX),
            downtime_min_ms: downtimes.first().copied(),
            downtime_median_ms: median(&downtimes),
            downtime_max_ms: downtimes.last().copied(),
            total_ms: ms(took),
            model: name(|summary| &summary.model),
            interrupts: name(|summary| &summary.interrupts),
            source_generation: name(|summary| &summary.source_generation),
            destination_generation: name(|summary| &summary.destination_generation),
            error: bad.map(|summary| {
                format!("migration {} of {repeat}: {}", good + 1, summary.why())
            }),
        }
    }

    /// The JSON, one object.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        let time =
            |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
        let Total { repeat, migrations, .. } = self;
        let mut text = if self.error.is_none() {
            format!("{repeat} migrations completed and were verified")
        } else {
            format!("{migrations} of {repeat} migrations completed and were verified")
        };
        text.push_str(&format!(
            " in {:.1} s\n  downtime    {} to {}, median {}",
            self.total_ms / 1000.0,
            time(self.downtime_min_ms),
            time(self.downtime_max_ms),
            time(self.downtime_median_ms),
        ));
        if let Some(error) = &self.error {
            text.push_str(&format!("\n  {error}"));
        }
        text
    }
}

/// What the exit status follows from, of several migrations of which `last` was the last.
pub fn found(last: Option<&Summary>) -> Found<'static> {
    last.map_or(Found::Done, Summary::found)
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(*upper);
    }
    let lower = sorted.get(sorted.len() / 2 - 1)?;
    // Whole microseconds, as all times of a report.
    Some((f64::midpoint(*lower, *upper) * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Extras;
    use crate::report::tests::report;

    fn migration(downtime_ms: f64) -> Summary {
        let mut summary = Summary::new(&report(), &Extras::default());
        summary.verified = Some(true);
        summary.downtime_ms = Some(downtime_ms);
        summary.model = Some("accel".to_owned());
        summary
    }

    #[test]
    fn the_middle_is_taken_from_times_that_were_not_put_in_order() {
        let all = [9.0, 1.0, 5.0].map(migration);
        let total = Total::new(3, &all, Duration::from_secs(2));
        let times =
            [total.downtime_min_ms, total.downtime_median_ms, total.downtime_max_ms];
        assert_eq!(times, [Some(1.0), Some(5.0), Some(9.0)]);
        assert_eq!((total.migrations, total.verified), (3, Some(true)));
        let two = Total::new(2, &all[..2], Duration::ZERO);
        assert_eq!(two.downtime_median_ms, Some(5.0));
        let says = "3 migrations completed and were verified in 2.0 s\n  \
                    downtime    1.0 ms to 9.0 ms, median 5.0 ms";
        assert_eq!(total.text(), says);
    }

    #[test]
    fn one_that_was_not_verified_is_lost_among_those_that_were() {
        let mut all = vec![migration(1.0), migration(2.0)];
        all[1].verified = Some(false);
        all[1].problems = vec![crate::report::Problem {
            place: "page 0x1".to_owned(),
            text: "differs".to_owned(),
        }];
        let total = Total::new(50, &all, Duration::ZERO);
        assert_eq!((total.migrations, total.verified), (1, Some(false)));
        let error = total.error.clone().expect("an error");
        assert!(error.starts_with("migration 2 of 50: "), "{error}");
        assert!(error.contains("page 0x1: differs"), "{error}");
        assert!(total.text().starts_with("1 of 50 migrations"), "{}", total.text());
        all[1].verified = None;
        all[1].outcome = "failed".to_owned();
        all[1].error = Some("the source died".to_owned());
        let total = Total::new(50, &all, Duration::ZERO);
        assert_eq!((total.outcome.as_str(), total.verified), ("failed", None));
        assert!(total.text().ends_with("migration 2 of 50: the source died"));
    }
}

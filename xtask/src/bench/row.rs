//! One row: a figure, the limit measured beside it, and whether it is within reach.

use serde_json::{Value, json};

use super::MIN_RUNS;

/// How often each side is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs(usize);

impl Runs {
    /// At least [`MIN_RUNS`].
    ///
    /// # Errors
    ///
    /// A text, when there are fewer.
    pub(super) fn new(count: usize) -> Result<Self, String> {
        if count < MIN_RUNS {
            return Err(format!("{count} runs are too few: at least {MIN_RUNS}"));
        }
        Ok(Self(count))
    }

    /// How many.
    pub(super) fn count(self) -> usize {
        self.0
    }

    /// Runs the two sides in turns, so that what disturbs the machine disturbs both, and
    /// changes which goes first, so that neither always finds the caches warm. Each
    /// returns its figure, in the unit of the row. A first run of each does not count:
    /// buffers grow in it, and code is read in.
    ///
    /// # Errors
    ///
    /// The first error of a side.
    pub(super) fn interleave<R>(
        self,
        rig: &mut R,
        mut figure: impl FnMut(&mut R) -> Result<f64, String>,
        mut limit: impl FnMut(&mut R) -> Result<f64, String>,
    ) -> Result<Samples, String> {
        figure(rig)?;
        limit(rig)?;
        let mut samples = Samples::default();
        for run in 0..self.0 {
            if run % 2 == 0 {
                samples.figure.push(figure(rig)?);
                samples.limit.push(limit(rig)?);
            } else {
                samples.limit.push(limit(rig)?);
                samples.figure.push(figure(rig)?);
            }
        }
        Ok(samples)
    }
}

/// What the runs of both sides gave, in the unit of the row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples {
    /// Our side.
    pub(super) figure: Vec<f64>,
    /// The limit.
    pub(super) limit: Vec<f64>,
}

/// How near to the limit the figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reach {
    /// Less is better: at most `factor` times the limit, and `plus` in the row's unit.
    AtMost {
        /// Times the limit.
        factor: f64,
        /// Beyond that, in the unit of the row.
        plus: f64,
    },
    /// More is better: at least `factor` times the limit.
    AtLeast {
        /// Times the limit.
        factor: f64,
    },
    /// Nothing is asked: the figure is there to be known.
    Any,
}

impl Reach {
    fn holds(self, figure: f64, limit: f64) -> bool {
        match self {
            Self::AtMost { factor, plus } => figure <= factor * limit + plus,
            Self::AtLeast { factor } => figure >= factor * limit,
            Self::Any => true,
        }
    }

    /// As the table spells it.
    pub(super) fn text(self, unit: &str) -> String {
        match self {
            Self::AtMost { factor, plus: 0.0 } => format!("<= {factor} x"),
            Self::AtMost { factor, plus } => format!("<= {factor} x + {plus} {unit}"),
            Self::AtLeast { factor } => format!(">= {factor} x"),
            Self::Any => "any".to_owned(),
        }
    }
}

/// A measured row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    work: &'static str,
    unit: &'static str,
    reach: Reach,
    figure: Summary,
    limit: Summary,
    runs: usize,
}

impl Row {
    /// Sums up the samples of both sides.
    ///
    /// # Errors
    ///
    /// A text, when a side has fewer than [`MIN_RUNS`] samples or another number than
    /// the other, or when a sample is no positive number.
    pub(super) fn new(
        work: &'static str,
        unit: &'static str,
        reach: Reach,
        samples: &Samples,
    ) -> Result<Self, String> {
        let runs = samples.figure.len();
        if runs != samples.limit.len() {
            return Err(format!(
                "{runs} runs beside {} of the limit",
                samples.limit.len()
            ));
        }
        Runs::new(runs)?;
        let figure = Summary::of(&samples.figure)?;
        let limit = Summary::of(&samples.limit)?;
        Ok(Self { work, unit, reach, figure, limit, runs })
    }

    /// What was measured.
    pub(super) fn work(&self) -> &'static str {
        self.work
    }

    /// The figure over the limit.
    pub(super) fn ratio(&self) -> f64 {
        self.figure.median / self.limit.median
    }

    /// Whether the figure is within its reach.
    pub(super) fn ok(&self) -> bool {
        self.reach.holds(self.figure.median, self.limit.median)
    }

    /// The cells of the table, in the order of its head.
    pub(super) fn cells(&self) -> [String; 8] {
        [
            self.work.to_owned(),
            format!("{} {}", number(self.figure.median), self.unit),
            format!("{} {}", number(self.limit.median), self.unit),
            format!("{:.2}", self.ratio()),
            self.reach.text(self.unit),
            if self.ok() { "ok" } else { "SHORT" }.to_owned(),
            format!(
                "{:.0} % / {:.0} %",
                self.figure.spread * 100.0,
                self.limit.spread * 100.0
            ),
            self.runs.to_string(),
        ]
    }

    /// As the JSON output has it. Spreads are fractions of the median.
    pub(super) fn json(&self) -> Value {
        json!({
            "work": self.work,
            "unit": self.unit,
            "figure": self.figure.median,
            "limit": self.limit.median,
            "ratio": self.ratio(),
            "reach": self.reach.text(self.unit),
            "ok": self.ok(),
            "spread": self.figure.spread,
            "limit_spread": self.limit.spread,
            "runs": self.runs,
        })
    }
}

/// The middle, and how far apart the rest is.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    median: f64,
    /// Greatest less smallest, over the median.
    spread: f64,
}

impl Summary {
    fn of(samples: &[f64]) -> Result<Self, String> {
        if let Some(bad) = samples.iter().find(|sample| !sample.is_normal()) {
            return Err(format!("a run gave {bad}, which is no measurement"));
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
            return Err("there are no runs".into());
        };
        if *first < 0.0 {
            return Err(format!("a run gave {first}, which is no measurement"));
        }
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Ok(Self { median, spread: (last - first) / median })
    }
}

/// Three significant digits where that makes sense.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row whose median figure and limit are the given ones.
    pub(in super::super) fn row(reach: Reach, figure: f64, limit: f64) -> Row {
        let around = |middle: f64| {
            [0.9, 1.0, 1.1, 1.0, 1.0, 0.95, 1.05].map(|factor| factor * middle).to_vec()
        };
        let samples = Samples { figure: around(figure), limit: around(limit) };
        Row::new("work", "ms", reach, &samples).expect("the samples are sound")
    }

    #[test]
    fn reach_is_judged_on_the_right_side() {
        let most = Reach::AtMost { factor: 1.3, plus: 20.0 };
        assert!(row(most, 149.0, 100.0).ok());
        assert!(!row(most, 151.0, 100.0).ok());
        let least = Reach::AtLeast { factor: 0.7 };
        assert!(row(least, 71.0, 100.0).ok());
        assert!(!row(least, 69.0, 100.0).ok());
    }

    #[test]
    fn median_and_spread_are_those_of_the_sorted_samples() {
        let odd = Summary::of(&[30.0, 10.0, 20.0]).expect("the samples are sound");
        assert_eq!(odd, Summary { median: 20.0, spread: 1.0 });
        let even = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("the samples are sound");
        assert!((even.median - 2.5).abs() < 1e-9);
    }

    #[test]
    fn too_few_or_senseless_runs_make_no_row() {
        let reach = Reach::AtLeast { factor: 1.0 };
        let make = |figure: Vec<f64>, limit: Vec<f64>| {
            Row::new("work", "ms", reach, &Samples { figure, limit })
        };
        assert!(make(vec![1.0; 7], vec![1.0; 7]).is_ok());
        assert!(make(vec![1.0; 6], vec![1.0; 6]).is_err());
        assert!(make(vec![1.0; 8], vec![1.0; 7]).is_err());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(make(vec![1.0; 7], vec![bad; 7]).is_err(), "{bad}");
        }
    }

    #[test]
    fn sides_are_interleaved() {
        let mut order = String::new();
        let samples = Runs::new(7)
            .and_then(|runs| {
                runs.interleave(
                    &mut order,
                    |order| {
                        order.push('f');
                        Ok(1.0)
                    },
                    |order| {
                        order.push('l');
                        Ok(2.0)
                    },
                )
            })
            .expect("both sides succeed");
        assert_eq!(order, "fl".to_owned() + "fllffllffllffl");
        assert_eq!(samples, Samples { figure: vec![1.0; 7], limit: vec![2.0; 7] });
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [1234.5, 56.78, 1.234, 0.05].map(number),
            ["1234", "56.8", "1.23", "0.0500"]
        );
    }
}

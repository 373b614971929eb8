//! The report of `receive`, as JSON and as text.

use std::fmt::Write;
use std::time::Duration;

use engine::Machine;
use engine::migration::sink::Ending;
use engine::migration::{Outcome, Recovery};
use serde::Serialize;
use serde_json::{Value, json};

use super::text::{identity, late_validation, millis};
use super::{IdentitySummary, ms, name, outcome, recovery};
use crate::exit::Found;

/// How devices came in.
#[derive(Clone, Debug, Serialize)]
pub struct Arrival {
    /// `completed`, `failed`, `cancelled` or `in-doubt`.
    pub outcome: &'static str,
    /// `running` or `stopped`: how the devices were left; null where that is not known.
    pub left: Option<&'static str>,
    /// From the source's first word to the last.
    pub total_ms: f64,
    /// The devices, in their order, where they could be opened.
    pub devices: Vec<Arrived>,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What there is after a failure: `retry`, `device-lost` or `in-doubt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<&'static str>,
}

/// A device that took something in.
#[derive(Clone, Debug, Serialize)]
pub struct Arrived {
    /// Its name here.
    pub name: String,
    /// Who it is.
    pub identity: IdentitySummary,
    /// Whether what it loaded was validated only when it started.
    pub validated_at_start: bool,
}

impl Arrival {
    /// How a migration ended here.
    pub fn new(machine: Option<&Machine>, ending: &Ending, took: Duration) -> Arrival {
        let slots = machine.map(|machine| machine.devices.as_slice()).unwrap_or_default();
        let loaded = matches!(ending, Ending::Running { .. } | Ending::NotStarted(_));
        let devices = slots.iter().map(|slot| Arrived {
            name: slot.device.name().to_owned(),
            identity: IdentitySummary::from(slot.device.identity()),
            validated_at_start: loaded && slot.device.validated_at_start(),
        });
        let (outcome, left, error) = match ending {
            Ending::Running { paused: false } => {
                (Outcome::Completed, Some("running"), None)
            }
            Ending::Running { paused: true } => {
                (Outcome::Completed, Some("stopped"), None)
            }
            Ending::Refused(reasons) => {
                (Outcome::Refused, None, Some(reasons.join("; ")))
            }
            Ending::Discarded(cause) => {
                let outcome = Outcome::of(cause, Recovery::Retry);
                (outcome, None, Some(format!("discarded what was received: {cause}")))
            }
            Ending::NotStarted(why) => (
                Outcome::Failed,
                None,
                Some(format!("the devices are here, and not all of them run: {why}")),
            ),
            Ending::InDoubt(cause) => (
                Outcome::InDoubt,
                Some("stopped"),
                Some(format!(
                    "whether the devices were taken over is not known: {cause}"
                )),
            ),
        };
        Arrival {
            outcome: outcome.name(),
            left,
            total_ms: ms(took),
            devices: devices.collect(),
            error,
            recovery: ending.recovery().map(name),
        }
    }

    /// Everything is here, the source is gone, and nothing was decided.
    pub fn held(took: Duration) -> Arrival {
        let error = "everything is loaded and stopped here, and the source is gone: it \
                     did not give its devices away, or its word was lost. Look at the \
                     source: if its devices run or are to run there, empty these \
                     (`vfio-migrate start --reset`), else let these run (`vfio-migrate \
                     start`)";
        Arrival {
            outcome: Outcome::InDoubt.name(),
            left: Some("stopped"),
            total_ms: ms(took),
            devices: Vec::new(),
            error: Some(error.to_owned()),
            recovery: Some(name(Recovery::InDoubt)),
        }
    }

    /// What the exit status follows from.
    pub fn found(&self) -> Found<'static> {
        Found::Migration {
            outcome: outcome(self.outcome),
            recovery: self.recovery.and_then(recovery),
            verified: None,
        }
    }

    /// The JSON, one object.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{arguments}").expect("writing to a String cannot fail");
        };
        line(format_args!("arrival {}", self.outcome));
        if let Some(error) = &self.error {
            line(format_args!("  {error}"));
        }
        line(format_args!("  total       {}", millis(self.total_ms)));
        if let Some(left) = self.left {
            line(format_args!("  devices     are {left}"));
        }
        for device in &self.devices {
            line(format_args!("  {}  {}", device.name, identity(&device.identity)));
        }
        let late = self.devices.iter().filter(|device| device.validated_at_start);
        late_validation(late.map(|device| device.name.as_str()), &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Arrival;
    use crate::exit::{Exit, status};
    use engine::migration::Cause;
    use engine::migration::sink::Ending;
    use std::time::Duration;

    fn exit(ending: &Ending) -> Exit {
        status(Arrival::new(None, ending, Duration::ZERO).found())
    }

    #[test]
    fn doubt_and_loss_are_told_from_plain_failure_here_too() {
        assert_eq!(exit(&Ending::Running { paused: true }), Exit::Done);
        assert_eq!(exit(&Ending::Discarded(Cause::Cancelled)), Exit::Failed);
        assert_eq!(exit(&Ending::NotStarted("a".into())), Exit::DeviceLost);
        assert_eq!(exit(&Ending::InDoubt(Cause::Cancelled)), Exit::InDoubt);
        assert_eq!(status(Arrival::held(Duration::ZERO).found()), Exit::InDoubt);
    }

    #[test]
    fn a_failed_arrival_says_why_in_text_and_json() {
        let ending = Ending::Discarded(Cause::Device("a is on fire".into()));
        let arrival = Arrival::new(None, &ending, Duration::from_millis(1));
        assert!(arrival.text().starts_with("arrival failed\n"), "{}", arrival.text());
        assert!(arrival.text().contains("a is on fire"));
        let json = arrival.to_json();
        assert!(json["error"].to_string().contains("a is on fire"), "{json}");
        assert_eq!(json["recovery"], "retry");
        assert!(json["left"].is_null());
    }
}

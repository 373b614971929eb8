//! Progress of a migration: as JSON lines over the control socket, as bars on a
//! terminal, as plain lines anywhere else.
//!
//! ```text
//!   engine --port::Progress--> [Told] --JSON--> control socket --JSON--> [Show]
//!                              (the guest)                    (guest ctl, demo)
//! ```
//!
//! Progress goes to standard error: standard output is the report's.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use port::{Observer, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::units::Size;

/// How far apart the rounds are that people are shown.
const ROUNDS_APART: Duration = Duration::from_millis(500);

/// Progress as JSON: one object, told apart by `event`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A phase began.
    Phase {
        /// Its name.
        phase: String,
    },
    /// A round of pre-copy ended.
    Round {
        /// Its number, from 1.
        number: u32,
        /// Bytes of guest memory it moved.
        memory_bytes: u64,
        /// Bytes of device data it moved.
        device_bytes: u64,
        /// Bytes of guest memory that are dirty again.
        remaining_bytes: u64,
        /// The downtime that a stop now would cost, in milliseconds; null while the
        /// link's speed is not known.
        downtime_estimate_ms: Option<f64>,
    },
    /// Bytes moved so far, of those known to be there.
    Bytes {
        /// Bytes moved.
        done: u64,
        /// Bytes moved and still to move.
        total: u64,
    },
    /// A device changed its state.
    Transition {
        /// The device, by name.
        device: String,
        /// The state before.
        from: String,
        /// The state after, null where unknown.
        to: Option<String>,
        /// How long it took, in microseconds.
        micros: u64,
    },
    /// Something the operator should read.
    Note {
        /// What.
        text: String,
    },
    /// An event of a newer version.
    #[serde(other)]
    Unknown,
}

impl From<&Progress> for Event {
    fn from(progress: &Progress) -> Event {
        match progress {
            Progress::Phase(phase) => Event::Phase { phase: phase.name().to_owned() },
            Progress::Round {
                number,
                memory_bytes,
                device_bytes,
                remaining_bytes,
                downtime_estimate_ms,
            } => Event::Round {
                number: *number,
                memory_bytes: *memory_bytes,
                device_bytes: *device_bytes,
                remaining_bytes: *remaining_bytes,
                // The engine says "for ever" by a number that JSON should not show.
                downtime_estimate_ms: Some(*downtime_estimate_ms)
                    .filter(|ms| ms.is_finite() && *ms < 1e12),
            },
            Progress::Bytes { done, total } => {
                Event::Bytes { done: *done, total: *total }
            }
            Progress::Transition { device, from, to, micros } => Event::Transition {
                device: device.clone(),
                from: from.name().to_owned(),
                to: to.map(|state| state.name().to_owned()),
                micros: *micros,
            },
            Progress::Note(text) => Event::Note { text: text.clone() },
            _ => Event::Unknown,
        }
    }
}

/// Progress as one JSON object.
pub fn to_json(progress: &Progress) -> Value {
    json!(Event::from(progress))
}

/// An observer that hands every event on as JSON.
pub struct Told<F>(F);

impl<F: Fn(Value) + Send + Sync> Told<F> {
    /// Hands events to `to`, which must return soon.
    pub fn new(to: F) -> Told<F> {
        Told(to)
    }
}

impl<F> std::fmt::Debug for Told<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl<F: Fn(Value) + Send + Sync> Observer for Told<F> {
    fn progress(&self, progress: &Progress) {
        (self.0)(to_json(progress));
    }
}

/// Shows events to whoever sits at standard error.
#[derive(Debug)]
pub struct Show {
    face: Face,
    transitions: bool,
    /// When a round was last shown: short ones come by the dozen.
    round: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Face {
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Show {
    /// Bars on a terminal, lines elsewhere, JSON lines with `json`; state changes of
    /// devices too with `transitions`.
    pub fn new(json: bool, transitions: bool) -> Show {
        let face = if json {
            Face::Json
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{msg:<12} [{bar:40}] {binary_bytes}/{binary_total_bytes} \
                 {binary_bytes_per_sec}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(200));
            Face::Bar(bar)
        } else {
            Face::Lines
        };
        Show { face, transitions, round: Mutex::default() }
    }

    /// Shows one event, as it came from [`to_json`]. What is no event is passed over.
    pub fn json(&self, value: &Value) {
        match &self.face {
            Face::Json => print(&json!({ "progress": value }).to_string()),
            Face::Bar(_) | Face::Lines => {
                if let Ok(event) = serde_json::from_value(value.clone()) {
                    self.event(&event);
                }
            }
        }
    }

    /// Shows a line of the command's own.
    pub fn note(&self, text: &str) {
        match &self.face {
            Face::Json => self.json(&json!({ "event": "note", "text": text })),
            Face::Bar(bar) => bar.suspend(|| print(text)),
            Face::Lines => print(text),
        }
    }

    fn event(&self, event: &Event) {
        if let Face::Bar(bar) = &self.face {
            match event {
                Event::Phase { phase } => return bar.set_message(phase.clone()),
                Event::Bytes { done, total } => {
                    bar.set_length(*total.max(done));
                    return bar.set_position(*done);
                }
                _ => {}
            }
        }
        if matches!(event, Event::Round { .. }) && !self.is_due() {
            return;
        }
        if let Some(line) = self.line(event) {
            match &self.face {
                Face::Bar(bar) => bar.suspend(|| print(&line)),
                Face::Lines | Face::Json => print(&line),
            }
        }
    }

    /// Whether a round is to be shown again.
    fn is_due(&self) -> bool {
        let mut shown = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let due = shown.is_none_or(|shown| shown.elapsed() >= ROUNDS_APART);
        if due {
            *shown = Some(Instant::now());
        }
        due
    }

    fn line(&self, event: &Event) -> Option<String> {
        match event {
            Event::Phase { phase } => Some(phase.clone()),
            Event::Round {
                number,
                memory_bytes,
                device_bytes,
                remaining_bytes,
                downtime_estimate_ms,
            } => Some(format!(
                "round {number}: {} of memory, {} of device data, {} dirty again{}",
                Size::from_bytes(*memory_bytes),
                Size::from_bytes(*device_bytes),
                Size::from_bytes(*remaining_bytes),
                downtime_estimate_ms
                    .map(|ms| format!(", a stop now would take {ms:.0} ms"))
                    .unwrap_or_default()
            )),
            Event::Transition { device, from, to, micros } => {
                self.transitions.then(|| {
                    let to = to.as_deref().unwrap_or("an unknown state");
                    format!("{device}: {from} to {to} in {micros} us")
                })
            }
            Event::Note { text } => Some(format!("note: {text}")),
            Event::Bytes { .. } | Event::Unknown => None,
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Show {
    fn progress(&self, progress: &Progress) {
        match &self.face {
            Face::Json => self.json(&to_json(progress)),
            Face::Bar(_) | Face::Lines => self.event(&Event::from(progress)),
        }
    }
}

fn print(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::{Event, Face, Show, Told, to_json};
    use port::{Observer, Phase, Progress};
    use states::v2::State;
    use std::sync::Mutex;

    fn lines(transitions: bool) -> Show {
        Show { face: Face::Lines, transitions, round: Mutex::default() }
    }

    #[test]
    fn rounds_by_the_dozen_are_shown_now_and_then() {
        let show = lines(false);
        assert_eq!([show.is_due(), show.is_due()], [true, false]);
    }

    fn every() -> Vec<Progress> {
        vec![
            Progress::Phase(Phase::Precopy),
            Progress::Round {
                number: 1,
                memory_bytes: 4096,
                device_bytes: 0,
                remaining_bytes: 12,
                downtime_estimate_ms: f64::INFINITY,
            },
            Progress::Bytes { done: 1, total: 2 },
            Progress::Transition {
                device: "accel0".into(),
                from: State::Running,
                to: None,
                micros: 9,
            },
            Progress::Note("read this".into()),
        ]
    }

    #[test]
    fn every_event_survives_the_control_socket() {
        for progress in every() {
            let text = to_json(&progress).to_string();
            let there: Event = serde_json::from_str(&text).expect("an event");
            assert_eq!(there, Event::from(&progress), "{text}");
        }
    }

    #[test]
    fn an_event_of_a_newer_version_is_passed_over() {
        let event: Event = serde_json::from_str(r#"{"event":"warp","speed":9}"#)
            .expect("an unknown event");
        assert_eq!(event, Event::Unknown);
        let show = lines(true);
        assert_eq!(show.line(&event), None);
    }

    #[test]
    fn an_estimate_for_ever_is_not_shown_as_a_number() {
        let json = to_json(&every()[1]);
        assert!(json["downtime_estimate_ms"].is_null());
        let show = lines(false);
        let line = show.line(&Event::from(&every()[1]));
        assert_eq!(
            line.as_deref(),
            Some("round 1: 4 KiB of memory, 0 B of device data, 12 B dirty again")
        );
    }

    #[test]
    fn an_observer_hands_on_what_it_hears() {
        let heard = Mutex::new(Vec::new());
        let told = Told::new(|value| heard.lock().expect("no panic before").push(value));
        for progress in every() {
            told.progress(&progress);
        }
        assert_eq!(heard.lock().expect("no panic before").len(), every().len());
    }
}

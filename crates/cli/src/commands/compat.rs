//! `vfio-migrate compat`: whether the data of one device fits another, asked beforehand.
//!
//! The comparison is the engine's own ([`engine::migration::compat`]), so the answer is
//! that of a migration. No device is driven for it.

use std::fmt::Write;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use engine::devices::check_p2p;
use engine::drive;
use engine::migration::Options;
use engine::migration::compat::{Field, Side, differences, not_compared};
use port::Device;
use serde_json::{Value, json};

use super::decode::begins_as_ours;
use crate::args::{Compat, Source};
use crate::devices::{distinct, open_all};
use crate::exit::{Exit, Found, Nonsense, status};
use crate::output;

/// Compares, and says.
pub(super) fn run(compat: &Compat, json: bool) -> Result<Exit> {
    let uris = &compat.destinations;
    if let Source::Device(source) = &compat.source {
        if uris.len() > 1 {
            let what = "SOURCE is one device: name one DESTINATION";
            return Err(Nonsense(what.to_owned()).into());
        }
        let mut all = vec![source.clone()];
        all.extend(uris.iter().cloned());
        distinct(&all)?;
    }
    let sources = sources(&compat.source)?;
    let devices = open_all(uris)?;
    let destinations = devices.iter().map(|device| Side::of(&**device)).collect();
    let mut answer = Answer { compat, sources, destinations, reasons: Vec::new() };
    answer.compare(&devices);
    if json {
        output::json(&answer.to_json())?;
    } else {
        output::line(&answer.text())?;
    }
    Ok(if answer.reasons.is_empty() { status(Found::Done) } else { Exit::Failed })
}

fn sources(source: &Source) -> Result<Vec<Side>> {
    match source {
        Source::Device(uri) => {
            let devices = open_all(slice::from_ref(uri))?;
            Ok(devices.iter().map(|device| Side::of(&**device)).collect())
        }
        Source::File(path) => {
            let never = Arc::new(AtomicBool::new(false));
            let mut file = store::open_unless(path, &never)?;
            let named = || format!("cannot compare with {}", path.display());
            if file.is_regular() {
                begins_as_ours(path).with_context(named)?;
            }
            let patience = Options::default().patience;
            drive::saved_sides(&mut file, patience).with_context(named)
        }
    }
}

/// What came of it.
struct Answer<'a> {
    compat: &'a Compat,
    sources: Vec<Side>,
    destinations: Vec<Side>,
    /// Why not; of one pair, by its number, or of all of them.
    reasons: Vec<(Option<(usize, Field)>, String)>,
}

impl Answer<'_> {
    fn compare(&mut self, devices: &[Box<dyn Device>]) {
        let (theirs, ours) = (self.sources.len(), self.destinations.len());
        if theirs != ours {
            let what = format!(
                "devices that come: {theirs}, devices that would take them: {ours}; name \
                 as many, in the same order"
            );
            self.reasons.push((None, what));
        }
        for (n, (source, destination)) in
            self.sources.iter().zip(&self.destinations).enumerate()
        {
            let why = differences(source, destination).into_iter();
            self.reasons.extend(why.map(|(field, what)| (Some((n, field)), what)));
        }
        let capabilities = devices.iter().map(|device| device.identity().capabilities);
        if let Err(refusal) = check_p2p(capabilities, !self.compat.independent) {
            self.reasons.push((None, refusal.to_string()));
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, &Side, &Side)> {
        let pairs = self.sources.iter().zip(&self.destinations).enumerate();
        pairs.map(|(n, (source, destination))| (n, source, destination))
    }

    fn why(&self, pair: usize, field: Field) -> Option<&str> {
        let found = self.reasons.iter().find(|(of, _)| *of == Some((pair, field)));
        found.map(|(_, what)| what.as_str())
    }

    fn late(&self) -> Vec<&str> {
        let late = self.destinations.iter().filter(|side| side.validated_at_start());
        late.map(Side::name).collect()
    }

    fn to_json(&self) -> Value {
        let fields = self.pairs().flat_map(|(n, source, destination)| {
            Field::EVERY.into_iter().map(move |field| {
                let why = self.why(n, field);
                let compared = not_compared(source, destination, field);
                // What was not compared neither fits nor differs.
                let fits = compared.is_none().then_some(why.is_none());
                let why = why.map(str::to_owned);
                let why =
                    why.or_else(|| compared.map(|why| format!("not compared: {why}")));
                json!({
                    "device": source.name(),
                    "field": field.name().replace(' ', "_"),
                    "source": source.shows(field),
                    "destination": destination.shows(field),
                    "fits": fits,
                    "why": why,
                })
            })
        });
        let uris = self.compat.destinations.iter();
        json!({
            "compatible": self.reasons.is_empty(),
            "source": self.compat.source.to_string(),
            "destinations": uris.map(ToString::to_string).collect::<Vec<_>>(),
            "reasons": self.reasons.iter().map(|(_, what)| what).collect::<Vec<_>>(),
            "fields": fields.collect::<Vec<_>>(),
            "validated_at_start": self.late(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{}", arguments.to_string().trim_end())
                .expect("writing to a String cannot fail");
        };
        let to = self.compat.destinations.iter().map(ToString::to_string);
        let to = to.collect::<Vec<_>>().join(", ");
        let verdict = if self.reasons.is_empty() { "yes" } else { "no" };
        line(format_args!("{verdict}: {} to {to}", self.compat.source));
        for (n, source, destination) in self.pairs() {
            let cells = Field::EVERY.map(|field| {
                let show = |side: &Side| {
                    let none = match field {
                        Field::Transactions => "none",
                        _ => "not known",
                    };
                    side.shows(field).unwrap_or_else(|| none.to_owned())
                };
                let (from, into) = (show(source), show(destination));
                let compared = not_compared(source, destination, field).is_none();
                let verdict = match self.why(n, field) {
                    Some(_) => "no",
                    None if !compared => "not compared",
                    None if from == into => "same",
                    None => "fine",
                };
                [field.name().to_owned(), from, into, verdict.to_owned()]
            });
            let head = [source.name(), "source", "destination", ""].map(str::to_owned);
            let rows: Vec<[String; 4]> = [head].into_iter().chain(cells).collect();
            let width = |column: usize| {
                rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
            };
            let (first, second, third) = (width(0), width(1), width(2));
            for [field, from, into, verdict] in &rows {
                line(format_args!(
                    "  {field:<first$}  {from:<second$}  {into:<third$}  {verdict}"
                ));
            }
        }
        if !self.reasons.is_empty() {
            line(format_args!("  why not"));
        }
        for (_, what) in &self.reasons {
            line(format_args!("    - {what}"));
        }
        let late = self.late();
        if !late.is_empty() {
            line(format_args!(
                "  validated at start, where it cannot stop after a load (it may: that is \
                 known only then): {}",
                late.join(", ")
            ));
        }
        line(format_args!("  nothing was asked about the other direction"));
        text
    }
}

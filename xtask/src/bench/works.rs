//! What is measured, and the processes that it takes. Linked with the feature `bench`.

mod destination;
mod downtime;
mod guest;
mod migration;
mod outgoing;
mod region_read;
mod server;
mod side;

use super::Measurement;

/// Says that this is another process of a measurement: which side of it, and what that
/// side needs to know follow.
pub(super) const SIDE: &str = "--side";

/// All measurements, in the order of the table.
pub(super) fn all() -> Vec<Measurement> {
    vec![
        Measurement { name: "region-read", measure: region_read::measure },
        Measurement { name: "migration", measure: migration::measure },
        Measurement { name: "downtime", measure: downtime::measure },
    ]
}

/// Is one side of a measurement.
pub(super) fn run_side(side: &str, arguments: &[String]) -> Result<(), String> {
    match side {
        "destination" => destination::run(arguments),
        "server" => server::run(arguments),
        other => Err(format!("there is no side `{other}`")),
    }
}

/// An error as text, with what lies beneath.
fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut beneath = error.source();
    while let Some(error) = beneath {
        text = format!("{text}: {error}");
        beneath = error.source();
    }
    text
}

//! What is measured, and the processes that it takes. Linked with the feature `bench`.

mod destination;
mod dirty_bitmap;
mod dirty_sync;
mod dma_message;
mod downtime;
mod front;
mod guest;
mod logged;
mod migration;
mod migration_data;
mod one_cpu;
mod outgoing;
mod plain;
mod posted_write;
mod region_read;
mod server;
mod side;

use super::Measurement;
use super::row::{Row, Runs};

/// Says that this is another process of a measurement: which side of it, and what that
/// side needs to know follow.
pub(super) const SIDE: &str = "--side";

/// Measures a row.
type Measure = fn(Runs) -> Result<Row, String>;

/// All measurements, in the order of the table.
pub(super) fn all() -> Vec<Measurement> {
    let works: [(_, Measure); _] = [
        ("region-read", region_read::measure),
        ("posted-write", posted_write::measure),
        ("dma-message", dma_message::measure),
        ("data-read", migration_data::measure_read),
        ("data-write", migration_data::measure_write),
        ("v1-trapped", front::v1_trapped),
        ("v1-mapped", front::v1_mapped),
        ("rfc2018-trapped", front::rfc2018_trapped),
        ("rfc2018-mapped", front::rfc2018_mapped),
        ("bitmap-sparse", dirty_bitmap::measure_sparse),
        ("bitmap-some", dirty_bitmap::measure_some),
        ("bitmap-full", dirty_bitmap::measure_full),
        ("dirty-sync", dirty_sync::measure),
        ("dirty-sync-idle", dirty_sync::measure_idle),
        ("migration", migration::measure),
        ("downtime", downtime::measure),
    ];
    works.map(|(name, measure)| Measurement { name, measure }).into()
}

/// Is one side of a measurement.
pub(super) fn run_side(side: &str, arguments: &[String]) -> Result<(), String> {
    match side {
        "destination" => destination::run(arguments),
        "logged" => logged::run(arguments),
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

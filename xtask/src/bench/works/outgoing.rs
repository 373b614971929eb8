//! The source: one migration, as a VMM would run it.

use std::time::Duration;

use engine::Machine;
use engine::drive::{Outgoing, Sent};
use engine::migration::{Options, Report};

use super::destination::PATIENCE;
use super::text;

/// Migrates over that many data connections, and gives the report. Whatever the downtime
/// is, the guest is stopped as soon as it can be.
pub(super) fn run(machine: Machine, to: &str, channels: u16) -> Result<Report, String> {
    let to: link::Uri = to.parse().map_err(text)?;
    let (control, dialer) = link::dial(&to, PATIENCE).map_err(text)?;
    let store = store::Memory::new().map_err(text)?;
    let attempt = store::new_attempt().map_err(text)?;
    let options = Options {
        downtime_limit: Duration::from_secs(60),
        patience: PATIENCE,
        channels,
        ..Options::default()
    };
    let (control, dialer) = (Box::new(control), Box::new(dialer));
    let outgoing =
        Outgoing::new(machine, control, dialer, Box::new(store), attempt, options);
    let Sent { report, result, .. } = outgoing.run();
    result.map_err(text)?;
    Ok(report)
}

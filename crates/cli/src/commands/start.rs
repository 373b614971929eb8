//! `vfio-migrate start`: devices that were left stopped run.
//!
//! For whoever finds devices that `save --stop`, `restore`, or a migration that broke left
//! in some state, and has decided that it is here where they are to run.

use anyhow::{Context, Result};
use engine::devices::DeviceSet;
use serde_json::{Value, json};

use crate::args::{Global, Start};
use crate::devices::open_lasting;
use crate::exit::{Exit, Found, status};
use crate::output;
use crate::progress::Show;

/// Starts them, through the peer-to-peer barrier.
pub(super) fn run(start: &Start, global: &Global) -> Result<Exit> {
    let mut devices = open_lasting(&start.devices.devices)?;
    let names: Vec<String> = devices.iter().map(|d| d.name().to_owned()).collect();
    if start.reset {
        for device in &mut devices {
            device.reset()?;
        }
    }
    let show = Show::new(global.json, global.verbose > 0);
    let mut set = DeviceSet::new(devices, !start.devices.independent)
        .context("cannot start the devices")?
        .with_observer(Box::new(show));
    // No rollback: it would reset what did not start, and with it what it holds.
    set.start().context("cannot start the devices")?;
    drop(set);
    if global.json {
        let devices: Vec<Value> = names
            .iter()
            .map(|name| json!({ "name": name, "state": "RUNNING" }))
            .collect();
        output::json(&json!({ "outcome": "started", "devices": devices }))?;
    } else {
        output::line(&format!("started {}", names.join(", ")))?;
    }
    Ok(status(Found::Done))
}

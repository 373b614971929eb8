//! `vfio-migrate states`: the state machine, to look at.

use ::states::chart;
use ::states::v2::{arcs, session};
use anyhow::Result;
use serde_json::{Value, json};

use crate::args::{Format, States};
use crate::exit::{Exit, Found, status};
use crate::output;

/// Shows it.
pub(super) fn run(states: States, json: bool) -> Result<Exit> {
    if json {
        output::json(&as_json(states))?;
    } else {
        output::line(&match states.format {
            Format::Table => chart::table(states.capabilities),
            Format::Mermaid => chart::mermaid(states.capabilities),
            Format::Dot => chart::dot(states.capabilities),
        })?;
    }
    Ok(status(Found::Done))
}

fn as_json(states: States) -> Value {
    let capabilities = states.capabilities;
    let names: Vec<&str> = capabilities.states().map(|state| state.name()).collect();
    let arcs: Vec<Value> = arcs(capabilities)
        .map(|(from, to)| {
            json!({
                "from": from.name(),
                "to": to.name(),
                "opens_session": session(from, to).opens(),
            })
        })
        .collect();
    json!({ "capabilities": capabilities.flags(), "states": names, "arcs": arcs })
}

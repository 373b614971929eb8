//! The v2 state machine for people: a table of paths and a diagram of arcs.

use crate::v2::{Capabilities, Path, Refusal, State, arcs, plan, session};
use std::fmt::Write;

/// The way from every state (row) to every other (column), as a text table with a
/// legend; the last line ends with a newline.
///
/// ```
/// use vfio_migrate_states::{chart, v2::Capabilities};
///
/// let table = chart::table(Capabilities::STOP_COPY);
/// assert!(table.starts_with("from\\to | R   | S | SC    | RE"));
/// ```
pub fn table(capabilities: Capabilities) -> String {
    let states = || COLUMNS.into_iter().filter(move |s| capabilities.supports(*s));
    let mut rows = vec![
        std::iter::once("from\\to".to_owned())
            .chain(states().map(|state| short(state).to_owned()))
            .collect::<Vec<_>>(),
    ];
    for from in states() {
        let cells = states().map(|to| cell(plan(capabilities, from, to)));
        rows.push(std::iter::once(short(from).to_owned()).chain(cells).collect());
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join(" | ").trim_end());
        text.push('\n');
        if number == 0 {
            let rules: Vec<String> =
                widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&rules.join("-|-"));
            text.push('\n');
        }
    }
    text.push('\n');
    for state in states() {
        line(&mut text, format_args!("{:<2}  {state}", short(state)));
    }
    text.push_str("\n*  the last arc returns a data descriptor\n");
    text.push_str(".  already there, nothing is done\n");
    text.push_str("-  refused (EINVAL)\n");
    text
}

/// The arcs that a driver with this set implements, as a mermaid state diagram; the
/// last line ends with a newline.
pub fn mermaid(capabilities: Capabilities) -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> RUNNING\n");
    for (from, to) in arcs(capabilities) {
        let label = if session(from, to).opens() {
            if to == State::Resuming {
                ": opens the resume session"
            } else {
                ": opens the save session"
            }
        } else {
            ""
        };
        line(&mut text, format_args!("    {from} --> {to}{label}"));
    }
    text
}

/// The order of columns: as a device lives, not by number.
const COLUMNS: [State; 7] = [
    State::Running,
    State::RunningP2p,
    State::PreCopy,
    State::PreCopyP2p,
    State::Stop,
    State::StopCopy,
    State::Resuming,
];

const fn short(state: State) -> &'static str {
    match state {
        State::Error => "E",
        State::Stop => "S",
        State::Running => "R",
        State::StopCopy => "SC",
        State::Resuming => "RE",
        State::RunningP2p => "RP",
        State::PreCopy => "PC",
        State::PreCopyP2p => "PP",
    }
}

fn cell(path: Result<Path, Refusal>) -> String {
    let Ok(path) = path else { return "-".to_owned() };
    if path.is_empty() {
        return ".".to_owned();
    }
    let mut text = path.iter().map(short).collect::<Vec<_>>().join(">");
    if path.opens_session() {
        text.push('*');
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a String cannot fail");
}

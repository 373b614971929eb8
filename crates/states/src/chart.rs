//! The v2 state machine for people: a table of paths, and diagrams of arcs.

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

/// The arcs that a driver with this set implements, as a graph for Graphviz
/// (`dot -Tsvg`), its states grouped by what the device may do in them; the last line
/// ends with a newline.
///
/// ```
/// use vfio_migrate_states::{chart, v2::Capabilities};
///
/// let graph = chart::dot(Capabilities::STOP_COPY);
/// assert!(graph.starts_with("digraph v2 {\n"));
/// assert!(graph.contains("    RUNNING -> STOP;\n"));
/// ```
pub fn dot(capabilities: Capabilities) -> String {
    let mut text = String::from(
        "digraph v2 {\n    rankdir=LR;\n    \
         node [shape=box, style=rounded, fontname=\"sans-serif\"];\n    \
         edge [fontname=\"sans-serif\", fontsize=10];\n    \
         start [shape=point];\n    start -> RUNNING;\n",
    );
    for (number, (label, states)) in GROUPS.into_iter().enumerate() {
        let mut states = states.iter().filter(|s| capabilities.supports(**s)).peekable();
        if states.peek().is_none() {
            continue;
        }
        line(&mut text, format_args!("    subgraph cluster_{number} {{"));
        line(&mut text, format_args!("        label=\"{label}\";"));
        for state in states {
            line(&mut text, format_args!("        {state};"));
        }
        text.push_str("    }\n");
    }
    for (from, to) in arcs(capabilities) {
        let label = match (session(from, to).opens(), to) {
            (false, _) => "",
            (true, State::Resuming) => " [label=\"opens the resume session\"]",
            (true, _) => " [label=\"opens the save session\"]",
        };
        line(&mut text, format_args!("    {from} -> {to}{label};"));
    }
    text.push_str("}\n");
    text
}

/// What a device may do, and the states in which it may.
const GROUPS: [(&str, &[State]); 3] = [
    ("runs", &[State::Running, State::PreCopy]),
    ("runs, leaves its peers alone", &[State::RunningP2p, State::PreCopyP2p]),
    ("stopped", &[State::Stop, State::StopCopy, State::Resuming]),
];

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

//! The two ways to print: a table for people, one JSON object for programs.

use serde_json::{Value, json};

use super::machine::Machine;
use super::row::Row;

const HEAD: [&str; 8] =
    ["work", "figure", "limit", "ratio", "reach", "ok", "spread", "runs"];

/// One JSON object on one line. `ok` is true only when something was measured, nothing
/// failed and every row is within its reach.
pub(super) fn json(machine: &Machine, rows: &[Row], failures: &[String]) -> Value {
    json!({
        "machine": machine.json(),
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "failures": failures,
        "ok": !rows.is_empty() && failures.is_empty() && rows.iter().all(Row::ok),
    })
}

/// A table with aligned columns, under a line that names the machine.
pub(super) fn text(machine: &Machine, rows: &[Row]) -> String {
    let Machine { cpu, cores, kernel } = machine;
    let lines: Vec<[String; 8]> = [HEAD.map(str::to_owned)]
        .into_iter()
        .chain(rows.iter().map(Row::cells))
        .collect();
    let mut widths = [0; 8];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = format!("{cpu}, {cores} cores, Linux {kernel}\n");
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| {
            let filled = width - cell.chars().count();
            format!("| {cell}{} ", " ".repeat(filled))
        });
        text.extend(cells);
        text.push_str("|\n");
        if text.lines().count() == 2 {
            text.extend(widths.map(|width| format!("| {} ", "-".repeat(width))));
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::row::Reach;
    use super::super::row::tests::row;
    use super::*;

    fn machine() -> Machine {
        Machine { cpu: "Some CPU".into(), cores: 2, kernel: "7.3.0".into() }
    }

    #[test]
    fn table_is_aligned_and_names_what_falls_short() {
        let rows = [
            row(Reach::AtMost { factor: 1.3, plus: 20.0 }, 100.0, 80.0),
            row(Reach::AtLeast { factor: 0.7 }, 5.0, 10.0),
        ];
        let expected = "\
Some CPU, 2 cores, Linux 7.3.0
| work | figure  | limit   | ratio | reach            | ok    | spread      | runs |
| ---- | ------- | ------- | ----- | ---------------- | ----- | ----------- | ---- |
| work | 100 ms  | 80.0 ms | 1.25  | <= 1.3 x + 20 ms | ok    | 20 % / 20 % | 7    |
| work | 5.00 ms | 10.0 ms | 0.50  | >= 0.7 x         | SHORT | 20 % / 20 % | 7    |
";
        assert_eq!(text(&machine(), &rows), expected);
    }

    #[test]
    fn json_has_every_column_and_is_one_line() {
        let rows = [row(Reach::AtLeast { factor: 0.7 }, 5.0, 10.0)];
        let value = json(&machine(), &rows, &[]);
        for key in HEAD {
            assert!(!value["rows"][0][key].is_null(), "{key}");
        }
        assert_eq!(value["rows"][0]["ok"], false);
        assert_eq!(value["ok"], false);
        assert_eq!(value["machine"]["kernel"], "7.3.0");
        assert!(!value.to_string().contains('\n'));
    }

    #[test]
    fn nothing_measured_is_not_ok() {
        assert_eq!(json(&machine(), &[], &[])["ok"], false);
        let rows = [row(Reach::AtLeast { factor: 0.1 }, 5.0, 10.0)];
        assert_eq!(json(&machine(), &rows, &[])["ok"], true);
        assert_eq!(json(&machine(), &rows, &["x".into()])["ok"], false);
    }
}

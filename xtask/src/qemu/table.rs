//! The answer: a line for every check.

/// One check.
#[derive(Debug)]
pub(super) struct Row {
    /// In which run.
    pub(super) run: &'static str,
    /// What was checked.
    pub(super) check: String,
    /// How long it took.
    pub(super) seconds: f64,
    /// What was found, or what is wrong.
    pub(super) found: Result<String, String>,
}

/// The table.
pub(super) fn text(rows: &[Row]) -> String {
    let mut text = format!("{:<9} {:<13} {:<6} {:>6}\n", "run", "check", "", "s");
    for Row { run, check, seconds, found } in rows {
        let (word, detail) = match found {
            Ok(detail) => ("ok", detail),
            Err(detail) => ("FAILED", detail),
        };
        let line = format!("{run:<9} {check:<13} {word:<6} {seconds:>6.2}  {detail}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

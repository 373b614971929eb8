//! The answer: a line for every check.

/// One check.
#[derive(Debug)]
pub(crate) struct Row {
    /// In which run.
    pub(crate) run: &'static str,
    /// What was checked.
    pub(crate) check: String,
    /// How long it took.
    pub(crate) seconds: f64,
    /// What came of it.
    pub(crate) found: Found,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It holds; what was seen.
    Ok(String),
    /// It could not be asked; why.
    Skipped(String),
    /// It does not hold; what is wrong.
    Failed(String),
}

impl Found {
    /// Of a check that cannot be skipped.
    pub(crate) fn of(found: Result<String, String>) -> Found {
        found.map_or_else(Found::Failed, Found::Ok)
    }

    /// Whether it does not hold.
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self, Found::Failed(_))
    }
}

/// How many failed, and how many were skipped.
pub(crate) fn counts(rows: &[Row]) -> (usize, usize) {
    let count =
        |kind: fn(&Found) -> bool| rows.iter().filter(|row| kind(&row.found)).count();
    (count(Found::is_failed), count(|found| matches!(found, Found::Skipped(_))))
}

/// The table.
pub(crate) fn text(rows: &[Row]) -> String {
    let width = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let (runs, checks) = (width(|row| row.run.len()), width(|row| row.check.len()));
    let mut text =
        format!("{:<runs$}  {:<checks$}  {:<7} {:>6}\n", "run", "check", "", "s");
    for Row { run, check, seconds, found } in rows {
        let (word, detail) = match found {
            Found::Ok(detail) => ("ok", detail),
            Found::Skipped(detail) => ("skipped", detail),
            Found::Failed(detail) => ("FAILED", detail),
        };
        let line =
            format!("{run:<runs$}  {check:<checks$}  {word:<7} {seconds:>6.2}  {detail}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

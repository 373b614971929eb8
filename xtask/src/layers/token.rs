//! A token of a `never` or `only_in` rule, and what it matches.

use std::fmt;

use super::paths::NamedPath;

/// What a rule forbids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    segments: Vec<String>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `std::net`: a path that begins so.
    Prefix,
    /// `engine::`: a path into that crate; a variable of the same name is none.
    Crate,
    /// `RawFd`: that word anywhere.
    Word,
}

impl Token {
    /// Reads a token as a manifest spells it.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (path, form) = match text.strip_suffix("::") {
            Some(path) if path.contains("::") => (path, Form::Prefix),
            Some(path) => (path, Form::Crate),
            None if text.contains("::") => (text, Form::Prefix),
            None => (text, Form::Word),
        };
        let segments: Vec<String> = path.split("::").map(str::to_owned).collect();
        let is_word = |segment: &String| {
            segment.starts_with(|first: char| first.is_alphabetic() || first == '_')
                && segment.chars().all(|char| char.is_alphanumeric() || char == '_')
        };
        if segments.iter().all(is_word) {
            Ok(Self { segments, form })
        } else {
            Err(format!("`{text}` is no path, crate or word"))
        }
    }

    /// The keyword that law 9 keeps in `sys`.
    pub(super) fn of_unsafe() -> Self {
        Self { segments: vec!["unsafe".into()], form: Form::Word }
    }

    /// Whether the path names what the token forbids.
    pub(super) fn matches(&self, path: &NamedPath) -> bool {
        let named = &path.segments;
        match self.form {
            Form::Word => named.contains(&self.segments[0]),
            Form::Crate => {
                named.first() == self.segments.first() && (named.len() > 1 || path.import)
            }
            Form::Prefix => {
                named.starts_with(&self.segments)
                    // `use std::*` brings `std::net` in.
                    || (path.glob && !named.is_empty() && self.segments.starts_with(named))
            }
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.segments.join("::"))?;
        if self.form == Form::Crate { formatter.write_str("::") } else { Ok(()) }
    }
}

//! The command line of one command: flags, options with a value, and names.
//!
//! A command takes what it knows; [`Arguments::names`] or [`Arguments::finish`] then
//! refuses what is left, so that a misspelt option is never silently ignored.

use std::str::FromStr;

use crate::Failure;

/// What was given after the command's name.
#[derive(Debug)]
pub(crate) struct Arguments {
    rest: Vec<String>,
}

impl Arguments {
    /// Takes the words after the command.
    pub(crate) fn new(words: impl Iterator<Item = String>) -> Self {
        Self { rest: words.collect() }
    }

    /// Whether help was asked for anywhere.
    pub(crate) fn wants_help(&self) -> bool {
        self.rest.iter().any(|word| word == "--help" || word == "-h")
    }

    /// Takes a flag, and says whether it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.rest.len();
        self.rest.retain(|word| word != name);
        self.rest.len() != before
    }

    /// Takes `name VALUE` or `name=VALUE`.
    ///
    /// # Errors
    ///
    /// A usage failure when the value is missing, does not parse, or is given twice.
    pub(crate) fn option<T: FromStr>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let mut found = None;
        while let Some((at, text)) = self.next_value(name)? {
            let value = text.parse().map_err(|_| {
                Failure::Usage(format!("`{text}` is not a value of `{name}`"))
            })?;
            if found.replace(value).is_some() {
                return Err(Failure::Usage(format!("`{name}` is given twice")));
            }
            self.rest.remove(at);
        }
        Ok(found)
    }

    /// The next occurrence of option `name`: its index, reduced to one word, and value.
    fn next_value(&mut self, name: &str) -> Result<Option<(usize, String)>, Failure> {
        for at in 0..self.rest.len() {
            if self.rest[at] == name {
                if at + 1 == self.rest.len() {
                    return Err(Failure::Usage(format!("`{name}` needs a value")));
                }
                return Ok(Some((at, self.rest.remove(at + 1))));
            }
            let joined = self.rest[at].strip_prefix(name);
            if let Some(value) = joined.and_then(|rest| rest.strip_prefix('=')) {
                return Ok(Some((at, value.to_owned())));
            }
        }
        Ok(None)
    }

    /// Takes what is left as names.
    ///
    /// # Errors
    ///
    /// A usage failure when an option is left over, that is, unknown.
    pub(crate) fn names(self) -> Result<Vec<String>, Failure> {
        match self.rest.iter().find(|word| word.starts_with('-')) {
            Some(unknown) => Err(Failure::Usage(format!("unknown option `{unknown}`"))),
            None => Ok(self.rest),
        }
    }

    /// Ends the parsing where no names are taken.
    ///
    /// # Errors
    ///
    /// A usage failure when anything is left over.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.names()?.first() {
            Some(extra) => Err(Failure::Usage(format!("unexpected argument `{extra}`"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> Arguments {
        Arguments::new(words.iter().map(|&word| word.to_owned()))
    }

    #[test]
    fn options_are_taken_in_both_spellings() {
        let mut both = given(&["--seconds", "5", "a", "--runs=9", "b"]);
        assert_eq!(both.option("--seconds"), Ok(Some(5)));
        assert_eq!(both.option("--runs"), Ok(Some(9)));
        assert_eq!(both.option::<u8>("--other"), Ok(None));
        assert_eq!(both.names(), Ok(vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn misspelt_option_is_not_ignored() {
        assert!(matches!(given(&["--secnds=5"]).names(), Err(Failure::Usage(_))));
        assert!(matches!(given(&["extra"]).finish(), Err(Failure::Usage(_))));
        assert_eq!(given(&[]).finish(), Ok(()));
    }

    #[test]
    fn bad_missing_and_doubled_values_are_refused() {
        for words in [
            &["--seconds", "soon"][..],
            &["--seconds"],
            &["--seconds", "1", "--seconds=2"],
        ] {
            let refused = given(words).option::<u64>("--seconds");
            assert!(matches!(refused, Err(Failure::Usage(_))), "{words:?}");
        }
    }
}

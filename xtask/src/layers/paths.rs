//! The paths that a source file names, with `use` trees spread out and aliases resolved.
//!
//! ```text
//! use std::{net::{TcpStream as Tcp}, os};     std::net::TcpStream, std::os
//! os::fd::OwnedFd                             std::os::fd::OwnedFd
//! ```
//!
//! Aliases are taken for the whole file, whatever scope they are in: a rule of layers is
//! about the file, and the rare mistake is on the strict side.

use std::collections::BTreeMap;

use super::lexer::{Kind, Token};

/// One path in the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedPath {
    /// Its segments, aliases of the file resolved.
    pub(crate) segments: Vec<String>,
    /// Line of its last segment, from 1.
    pub(crate) line: usize,
    /// Whether it is named by `use` or `extern crate`.
    pub(crate) import: bool,
    /// Whether it ends in `::*`.
    pub(crate) glob: bool,
}

/// Finds the paths in the code, keywords included (they are paths of one segment).
pub(crate) fn paths(tokens: &[Token]) -> Vec<NamedPath> {
    let mut reader = Reader { tokens, at: 0, found: Vec::new(), names: BTreeMap::new() };
    reader.read();
    let Reader { mut found, names, .. } = reader;
    for path in &mut found {
        resolve(&mut path.segments, &names);
    }
    found
}

/// Replaces a first segment that the file itself defined. Chains of aliases are short;
/// the bound stops those that go round (`use a::b; use b::a;`).
fn resolve(segments: &mut Vec<String>, names: &BTreeMap<String, Vec<String>>) {
    for _ in 0..4 {
        let Some(full) = segments.first().and_then(|first| names.get(first)) else {
            return;
        };
        if full.first() == segments.first() {
            return;
        }
        segments.splice(..1, full.iter().cloned());
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    found: Vec<NamedPath>,
    /// What a name of this file stands for.
    names: BTreeMap<String, Vec<String>>,
}

impl<'a> Reader<'a> {
    fn kind(&self, ahead: usize) -> Option<&'a Kind> {
        self.tokens.get(self.at + ahead).map(|token| &token.kind)
    }

    fn word(&self, ahead: usize) -> Option<&'a str> {
        match self.kind(ahead) {
            Some(Kind::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn read(&mut self) {
        while let Some(kind) = self.kind(0) {
            let Kind::Word(word) = kind else {
                self.at += 1;
                continue;
            };
            match (word.as_str(), self.kind(1)) {
                // `use<'a>` in a bound captures lifetimes, it imports nothing.
                ("use", next) if next != Some(&Kind::Mark('<')) => {
                    self.at += 1;
                    self.tree(&[]);
                }
                ("extern", _) if self.word(1) == Some("crate") => {
                    self.at += 2;
                    self.tree(&[]);
                }
                ("mod", Some(Kind::Word(name))) => {
                    self.names.insert(name.clone(), vec!["self".into(), name.clone()]);
                    self.at += 2;
                }
                _ => self.path(),
            }
        }
    }

    /// A path in an expression, a type or a pattern.
    fn path(&mut self) {
        let mut segments = Vec::new();
        while let Some(word) = self.word(0) {
            segments.push(word.to_owned());
            self.at += 1;
            if self.kind(0) != Some(&Kind::PathSeparator) || self.word(1).is_none() {
                break;
            }
            self.at += 1;
        }
        self.record(segments, false, false);
    }

    /// One branch of a `use` tree.
    fn tree(&mut self, prefix: &[String]) {
        if self.kind(0) == Some(&Kind::PathSeparator) {
            self.at += 1;
        }
        match self.kind(0) {
            Some(Kind::Word(word)) => {
                let mut path = prefix.to_vec();
                if word != "self" || prefix.is_empty() {
                    path.push(word.clone());
                }
                self.at += 1;
                if self.kind(0) == Some(&Kind::PathSeparator) {
                    self.tree(&path);
                    return;
                }
                let mut name = path.last().cloned();
                if self.word(0) == Some("as") {
                    name = self.word(1).map(str::to_owned);
                    self.at += 2;
                }
                if let Some(name) = name.filter(|name| name != "_") {
                    self.names.insert(name, path.clone());
                }
                self.record(path, true, false);
            }
            Some(Kind::Mark('*')) => {
                self.at += 1;
                self.record(prefix.to_vec(), true, true);
            }
            Some(Kind::Mark('{')) => {
                self.at += 1;
                while !matches!(self.kind(0), None | Some(Kind::Mark('}' | ';'))) {
                    let before = self.at;
                    self.tree(prefix);
                    if self.kind(0) == Some(&Kind::Mark(',')) || self.at == before {
                        self.at += 1;
                    }
                }
                self.at += 1;
            }
            _ => {}
        }
    }

    fn record(&mut self, segments: Vec<String>, import: bool, glob: bool) {
        // The token just read, or the last one where the text ended early.
        let last = self.at.min(self.tokens.len()).saturating_sub(1);
        let line = self.tokens.get(last).map_or(1, |token| token.line);
        self.found.push(NamedPath { segments, line, import, glob });
    }
}

#[cfg(test)]
mod tests {
    use super::super::lexer::lex;
    use super::*;

    fn all(source: &str) -> Vec<String> {
        paths(&lex(source))
            .into_iter()
            .map(|path| path.segments.join("::") + if path.glob { "::*" } else { "" })
            .collect()
    }

    #[test]
    fn trees_are_spread_out() {
        assert_eq!(
            all("pub use ::std::{self, net::{TcpStream, UdpSocket as U}, os::fd::*};")
                [1..],
            ["std", "std::net::TcpStream", "std::net::UdpSocket", "std::os::fd::*"]
        );
    }

    #[test]
    fn aliases_are_followed() {
        assert_eq!(
            all("use std::os; use os::fd; fd::OwnedFd")[2],
            "std::os::fd::OwnedFd"
        );
        assert_eq!(all("use std as s; s::net::X")[1], "std::net::X");
        assert_eq!(all("extern crate engine as e; e::X")[1], "engine::X");
    }

    #[test]
    fn circles_of_aliases_end() {
        all("use a::b; use b::a; a::x b::x");
        assert_eq!(all("use engine; engine::x")[1], "engine::x");
    }

    #[test]
    fn module_of_the_file_is_not_a_crate() {
        assert_eq!(all("mod engine; engine::x")[0], "self::engine::x");
    }

    #[test]
    fn broken_trees_end() {
        for source in ["use", "use {", "use a::{b", "use a::{{,", "use a as", "use {;}"] {
            all(source);
        }
    }

    #[test]
    fn line_is_that_of_the_branch() {
        let found = paths(&lex("use std::{\n  io,\n  net::X,\n};"));
        assert_eq!(found.iter().map(|path| path.line).collect::<Vec<_>>(), [2, 3]);
    }
}

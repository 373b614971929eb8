//! `cargo xtask layers`: every room obeys its level and says what is never in it.
//!
//! Each room's manifest carries the rule, beside the dependencies it governs:
//!
//! ```toml
//! [package.metadata.room]
//! level = 3                                   # uses rooms of levels 0 to 2 only
//! never = ["std::net", "rustix", "sys::"]     # tokens that its code does not name
//! only_in = { "std::thread" = "src/drive" }   # tokens that one folder may name
//! ```
//!
//! A token is a path (`std::net` stands for everything below it), a crate (`sys::`), or
//! a word anywhere (`RawFd`, `unsafe`). Comments and literals do not count, tests inside
//! `src/` do: what only tests need belongs in the room's `tests/` folder. `unsafe` is
//! refused everywhere but in `sys`, whatever the manifest says.

use std::collections::BTreeSet;
use std::path::Path;

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

mod lexer;
mod paths;
mod room;
mod token;

use room::{Dependency, DependencyKind, Room, Source};
use token::Token;

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask layers

Reads [package.metadata.room] of every crate of the workspace and checks that
  - normal and build dependencies on rooms are of a strictly lower level, and
    development dependencies of at most the room's own level; nothing depends on the
    facade;
  - no file under src/ names a token of the room's `never` list, none outside the stated
    folder a token of its `only_in` table, and none but those of `sys` is unsafe;
  - every room has a level and a crate-level doc comment.
Prints file:line, room, rule and remedy of every violation; exit status 1 if any.
";

/// The package that users see: nothing inside may depend on it.
const FACADE: &str = "vfio-migrate";

/// The only room that may hold `unsafe` (law 9).
const UNSAFE_ROOM: &str = "vfio-migrate-sys";

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    /// File, relative to the workspace.
    file: String,
    /// Line, from 1.
    line: usize,
    /// Package.
    room: String,
    /// What is broken.
    rule: String,
    /// What to do about it.
    remedy: String,
}

/// Runs the command.
///
/// # Errors
///
/// When a rule is broken, or the workspace cannot be read.
pub(crate) fn run(arguments: Arguments) -> Outcome {
    arguments.finish()?;
    check(&process::root())
}

/// Checks the workspace in the given folder and prints what it found.
///
/// # Errors
///
/// When a rule is broken, or the workspace cannot be read.
pub(crate) fn check(root: &Path) -> Outcome {
    let (rooms, mut violations) = room::read_workspace(root)?;
    violations.extend(violations_of(&rooms));
    violations.sort();
    for Violation { file, line, room, rule, remedy } in &violations {
        println!("{file}:{line}: {room}: {rule}\n    remedy: {remedy}");
    }
    match violations.len() {
        0 if rooms.is_empty() => Err(Failure::failed("the workspace has no rooms")),
        0 => {
            let files: usize = rooms.iter().map(|room| room.sources.len()).sum();
            println!("layers: {} rooms, {files} files, no violation", rooms.len());
            Ok(())
        }
        1 => Err(Failure::failed("1 violation of the layers")),
        count => Err(Failure::failed(format!("{count} violations of the layers"))),
    }
}

fn violations_of(rooms: &[Room]) -> BTreeSet<Violation> {
    let mut found = BTreeSet::new();
    for room in rooms {
        for dependency in &room.dependencies {
            found.extend(check_dependency(room, dependency, rooms));
        }
        for source in &room.sources {
            check_source(room, source, &mut found);
        }
    }
    found
}

fn check_dependency(
    room: &Room,
    dependency: &Dependency,
    rooms: &[Room],
) -> Option<Violation> {
    let violation = |rule: String, remedy: &str| Violation {
        file: room.manifest.path.clone(),
        line: room.manifest.line_of(dependency.name()),
        room: room.package.clone(),
        rule,
        remedy: remedy.to_owned(),
    };
    let package = &dependency.package;
    if package == FACADE {
        return Some(violation(
            "the facade may not be depended on".into(),
            "depend on the rooms it re-exports",
        ));
    }
    let Some(other) = rooms.iter().find(|other| other.package == *package) else {
        return (package == "xtask").then(|| {
            let remedy = "move what is needed into a room";
            violation("xtask is no room and may not be depended on".into(), remedy)
        });
    };
    let (own, level) = (room.level, other.level);
    let remedy = "move what is shared down a level, or turn the dependency round with a \
                  trait in the lower room; ARCHITECTURE.md lists the levels";
    match dependency.kind {
        DependencyKind::Development if level > own => Some(violation(
            format!(
                "a development dependency of level {own} is at most of level {own}, \
                 `{package}` is of level {level}"
            ),
            "move the test to the room that is higher, or to the workspace's tests/",
        )),
        DependencyKind::Normal if level >= own => Some(violation(
            format!(
                "a dependency of level {own} is of a lower level, `{package}` is of \
                 level {level}"
            ),
            remedy,
        )),
        _ => None,
    }
}

fn check_source(room: &Room, source: &Source, found: &mut BTreeSet<Violation>) {
    let mut report = |line: usize, rule: String, remedy: String| {
        let (file, room) = (source.path.clone(), room.package.clone());
        found.insert(Violation { file, line, room, rule, remedy });
    };
    if source.crate_root && !has_crate_doc(&source.text) {
        report(
            1,
            "the crate has no documentation".into(),
            "begin with `//!`: what the room holds, why, and what is never in it".into(),
        );
    }
    let paths = paths::paths(&lexer::lex(&source.text));
    let of_unsafe = (room.package != UNSAFE_ROOM).then(Token::of_unsafe);
    for path in &paths {
        if of_unsafe.as_ref().is_some_and(|token| token.matches(path)) {
            report(
                path.line,
                "`unsafe` lives in `sys` alone".into(),
                "put the operation behind a safe function of `sys`".into(),
            );
        }
        for token in room.never.iter().filter(|token| token.matches(path)) {
            // Said above, with a better remedy.
            if of_unsafe.as_ref() != Some(token) {
                report(
                    path.line,
                    format!("`{token}` is never in this room"),
                    "move the code to a room that may hold it, or take it through a \
                     trait of a lower room; what only tests need goes to the room's \
                     tests/ folder"
                        .into(),
                );
            }
        }
        for (token, folder) in &room.only_in {
            if token.matches(path) && !source.is_in(folder) {
                report(
                    path.line,
                    format!("`{token}` is only in {folder} of this room"),
                    format!("move the code to {folder}"),
                );
            }
        }
    }
}

/// Whether the text begins with an inner doc comment (after attributes and comments).
fn has_crate_doc(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .take_while(|line| {
            line.is_empty()
                || line.starts_with("//")
                || line.starts_with("#![")
                || line.starts_with("/*!")
        })
        .any(|line| {
            line.starts_with("#![doc =")
                || line.starts_with("/*!")
                || line.strip_prefix("//!").is_some_and(|doc| !doc.trim().is_empty())
        })
}

#[cfg(test)]
mod tests;

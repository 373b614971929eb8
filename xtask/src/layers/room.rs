//! Reading the workspace: its rooms, what they depend on, and their source files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Violation;
use super::token::Token;
use crate::{Failure, process};

/// One crate of the workspace that is part of the product.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Package name.
    pub(super) package: String,
    /// Its manifest.
    pub(super) manifest: Manifest,
    /// 0 is the lowest.
    pub(super) level: u64,
    /// What its code does not name.
    pub(super) never: Vec<Token>,
    /// What only one folder of it names.
    pub(super) only_in: Vec<(Token, String)>,
    /// All of its dependencies, on rooms or not.
    pub(super) dependencies: Vec<Dependency>,
    /// Every `src/**/*.rs`.
    pub(super) sources: Vec<Source>,
}

/// A manifest's place and text.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    /// Relative to the workspace.
    pub(super) path: String,
    /// As it is on disk.
    pub(super) text: String,
}

impl Manifest {
    /// The first line that defines `name`, or 1.
    pub(super) fn line_of(&self, name: &str) -> usize {
        let defines = |line: &str| {
            line.trim_start()
                .strip_prefix(name)
                .is_some_and(|rest| rest.trim_start().starts_with(['.', '=']))
        };
        self.text.lines().position(defines).map_or(1, |index| index + 1)
    }
}

/// A dependency as the manifest states it.
#[derive(Debug, Clone)]
pub(super) struct Dependency {
    /// Package name.
    pub(super) package: String,
    /// The name it has in this crate, where another.
    pub(super) rename: Option<String>,
    /// What it is needed for.
    pub(super) kind: DependencyKind,
}

impl Dependency {
    /// The name that the manifest uses.
    pub(super) fn name(&self) -> &str {
        self.rename.as_deref().unwrap_or(&self.package)
    }
}

/// What a dependency is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DependencyKind {
    /// The code or the build script.
    Normal,
    /// Tests and examples only.
    Development,
}

/// A source file.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Relative to the workspace, for messages.
    pub(super) path: String,
    /// Relative to the room, for `only_in`.
    pub(super) path_in_room: PathBuf,
    /// Its text.
    pub(super) text: String,
    /// Whether the compiler starts here (library or binary).
    pub(super) crate_root: bool,
}

impl Source {
    /// Whether the file is in the folder, or is the folder's own module file.
    pub(super) fn is_in(&self, folder: &str) -> bool {
        self.path_in_room.starts_with(folder)
            || self.path_in_room.with_extension("") == Path::new(folder)
    }
}

/// Reads all rooms of the workspace, and what is wrong with their own rules.
///
/// # Errors
///
/// When cargo or the file system fails.
pub(super) fn read_workspace(
    root: &Path,
) -> Result<(Vec<Room>, Vec<Violation>), Failure> {
    let text = process::output(process::cargo(root).args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Failed(format!("cargo metadata: {error}")))?;
    let (mut rooms, mut violations) = (Vec::new(), Vec::new());
    for package in list(&metadata["packages"]) {
        if package["name"] == "xtask" {
            continue;
        }
        match read_room(root, package)? {
            Ok(room) => rooms.push(room),
            Err(violation) => violations.push(violation),
        }
    }
    Ok((rooms, violations))
}

fn read_room(root: &Path, package: &Value) -> Result<Result<Room, Violation>, Failure> {
    let place = PathBuf::from(text(&package["manifest_path"]));
    let folder = place.parent().unwrap_or(root).to_path_buf();
    let manifest = Manifest { path: relative(root, &place), text: read(&place)? };
    let name = text(&package["name"]);
    let rules = match Rules::parse(&package["metadata"]["room"]) {
        Ok(rules) => rules,
        Err(rule) => {
            let line = manifest.text.lines();
            let line = line.into_iter().position(|line| line.contains("metadata.room"));
            return Ok(Err(Violation {
                file: manifest.path,
                line: line.map_or(1, |index| index + 1),
                room: name,
                rule,
                remedy: "state the rules in [package.metadata.room]: level, never, \
                         only_in; ARCHITECTURE.md lists the levels"
                    .into(),
            }));
        }
    };
    let roots: Vec<PathBuf> = list(&package["targets"])
        .filter(|target| {
            list(&target["kind"]).any(|kind| kind != "test" && kind != "example")
        })
        .map(|target| PathBuf::from(text(&target["src_path"])))
        .collect();
    let mut files = Vec::new();
    find_sources(&folder.join("src"), &mut files)?;
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        sources.push(Source {
            path: relative(root, &file),
            path_in_room: file.strip_prefix(&folder).unwrap_or(&file).to_path_buf(),
            text: read(&file)?,
            crate_root: roots.contains(&file),
        });
    }
    let dependencies = list(&package["dependencies"])
        .map(|dependency| Dependency {
            package: text(&dependency["name"]),
            rename: dependency["rename"].as_str().map(str::to_owned),
            kind: match dependency["kind"].as_str() {
                Some("dev") => DependencyKind::Development,
                _ => DependencyKind::Normal,
            },
        })
        .collect();
    let Rules { level, never, only_in } = rules;
    Ok(Ok(Room { package: name, manifest, level, never, only_in, dependencies, sources }))
}

/// What a room's manifest says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) level: u64,
    pub(super) never: Vec<Token>,
    pub(super) only_in: Vec<(Token, String)>,
}

impl Rules {
    /// Reads `[package.metadata.room]`.
    ///
    /// # Errors
    ///
    /// The rule that the table breaks, as a text: a level is missing or is no number, a
    /// key or a token is not one.
    pub(super) fn parse(table: &Value) -> Result<Self, String> {
        let Some(level) = table["level"].as_u64() else {
            return Err("the room has no `level`".into());
        };
        let (mut never, mut only_in) = (Vec::new(), Vec::new());
        for (key, value) in table.as_object().into_iter().flatten() {
            match (key.as_str(), value) {
                ("level", _) => {}
                ("never", Value::Array(tokens)) => {
                    for token in tokens {
                        never.push(Token::parse(token.as_str().unwrap_or_default())?);
                    }
                }
                ("only_in", Value::Object(folders)) => {
                    for (token, folder) in folders {
                        match folder.as_str() {
                            Some(folder) if folder.starts_with("src/") => {
                                only_in.push((Token::parse(token)?, folder.to_owned()));
                            }
                            _ => {
                                return Err(format!(
                                    "the folder of `{token}` is not a text that begins \
                                     with `src/`"
                                ));
                            }
                        }
                    }
                }
                _ => return Err(format!("`{key}` is no rule of a room")),
            }
        }
        Ok(Self { level, never, only_in })
    }
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |error| Failure::Failed(format!("{}: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            find_sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

//! The laws of `ARCHITECTURE.md`, and the errors in `docs/generations.md`, name tests that
//! exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder, but what cargo builds.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All of the project's own code.
fn code() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["crates", "tests", "xtask"] {
        sources(&root.join(folder), &mut files);
    }
    files.iter().map(|path| fs::read_to_string(path).expect("a file")).collect()
}

fn page(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).expect("the page")
}

#[test]
fn a_law_is_held_by_a_test_that_nobody_wrote() {
    let page = page("ARCHITECTURE.md");
    let (_, laws) = page.split_once("\n## Laws\n").expect("a section of laws");
    let (laws, _) = laws.split_once("\n## ").expect("a section after the laws");
    let code = code();

    let quoted = laws.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted.filter(|name| name.matches('_').count() >= 3).collect();
    assert!(named.len() >= 20, "the laws name {} tests", named.len());
    for name in named {
        assert!(code.contains(&format!("fn {name}(")), "no test is called {name}");
    }
}

#[test]
fn an_error_of_the_documents_is_said_to_be_tested_and_is_not() {
    let (page, code) = (page("docs/generations.md"), code());
    let names: Vec<&str> = page
        .split('`')
        .filter_map(|quoted| quoted.split_once(": "))
        .map(|(_, name)| name)
        .filter(|name| name.starts_with("error_"))
        .collect();
    assert_eq!(names.len(), 17);
    for (number, name) in (1..).zip(names) {
        assert!(name.starts_with(&format!("error_{number:02}_")), "{name}");
        assert!(code.contains(&format!("fn {name}(")), "no test is called {name}");
    }
}

/// Where the generations get their numbers and names, which is all that is done there.
const NAMES: &str = "crates/wire/src/message/identity.rs";

/// Comparisons that look at no generation in particular.
const EQUALITY: [&str; 2] = [
    // Two devices whose model is not known, each with what it brought.
    "theirs.generation != ours.generation",
    // How often the layout of guest memory changed: another thing of that name.
    "self.memory.generation() != self.generation",
];

/// Lines of `code` that know a generation from another, with their numbers. Comments and
/// tests may.
fn told_apart<'a>(path: &str, code: &'a str) -> Vec<(usize, &'a str)> {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let tells = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        let mut words = line.split(|char: char| !char.is_alphanumeric() && char != '_');
        let known =
            |word: &str| matches!(word, "V1" | "V2" | "RFC2018" | "v1" | "rfc2018");
        let named = words.any(|word| known(word) || word.starts_with("Rfc"));
        if path == NAMES && named {
            let line = line.trim();
            let declared = line.starts_with("pub const ") && line.contains(": Self = ");
            let shown = line.starts_with("Self::") && line.ends_with("\",");
            return !declared && !shown;
        }
        let asks = [" if ", "match", "==", "!=", " < ", " > ", "<=", ">="];
        let asked = line.contains("generation")
            && asks.iter().any(|ask| format!(" {line}").contains(ask));
        named || asked && !EQUALITY.iter().any(|equality| line.contains(equality))
    };
    (1..).zip(code.lines()).filter(|(_, line)| tells(line)).collect()
}

#[test]
fn the_engine_treats_one_generation_otherwise_than_another() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for room in ["engine", "wire", "link"] {
        let mut files = Vec::new();
        sources(&root.join("crates").join(room).join("src"), &mut files);
        assert!(!files.is_empty(), "{room} has no code");
        for file in files {
            let path = file.strip_prefix(root).expect("a file of the project");
            let path = path.to_str().expect("text");
            let code = fs::read_to_string(&file).expect("a file");
            let found = told_apart(path, &code);
            assert!(
                found.is_empty(),
                "{path}: generations are data, never a branch: {found:?}"
            );
        }
    }
}

#[test]
fn a_branch_on_a_generation_is_overlooked() {
    for (path, code, found) in [
        ("a.rs", "if identity.generation == Generation::V1 {", true),
        ("a.rs", "Generation::RFC2018 => transactions(),", true),
        ("a.rs", "match generation.0 {", true),
        ("a.rs", "let late = theirs.generation.0 < 3;", true),
        ("a.rs", "let known = ours.generation.0 == theirs;", true),
        ("a.rs", "use states::v1::Wire;", true),
        ("a.rs", "RfcField::Data => 4,", true),
        (NAMES, "Self::V1 => read_old(r),", true),
        (NAMES, "    pub const V1: Self = Self(2);", false),
        (NAMES, "            Self::V1 => \"v1\",", false),
        ("a.rs", "// v1 has transactions", false),
        ("a.rs", "generation: Generation(r.u16(4)?),", false),
        ("a.rs", "if !known && theirs.generation != ours.generation {", false),
        ("a.rs", "use states::v2::State;", false),
        ("a.rs", "#[cfg(test)]\nmod tests { use super::V1; }", false),
    ] {
        assert_eq!(!told_apart(path, code).is_empty(), found, "{code}");
    }
}

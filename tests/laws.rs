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

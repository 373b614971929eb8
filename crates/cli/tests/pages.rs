//! The man pages and completions that are checked in are those of the command.

use std::path::Path;
use std::process::Command;

use clap::{CommandFactory, Parser};
use vfio_migrate_cli::args::Cli;
use vfio_migrate_cli::pages::{EXAMPLES, all, differences};

fn pages() -> Vec<(String, String)> {
    all().expect("rendered into memory")
}

#[test]
fn a_page_that_drifted_from_the_command_misleads() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let differences = differences(&docs).expect("docs can be read");
    let names: Vec<_> = differences.iter().map(|(path, _)| path).collect();
    assert!(names.is_empty(), "{names:?} are out of date: run cargo xtask gen");
}

#[test]
fn pages_are_the_same_whoever_renders_them() {
    assert_eq!(pages(), pages());
    for (path, contents) in pages() {
        assert!(contents.ends_with('\n'), "{path}");
        for (number, line) in contents.lines().enumerate() {
            let of_the_machine = line.contains(env!("CARGO_MANIFEST_DIR"));
            assert!(!of_the_machine, "{path}:{number}: {line}");
        }
    }
    // Where the time would stand.
    for (path, page) in pages().iter().filter(|(path, _)| path.starts_with("man/")) {
        let title = page.lines().find(|line| line.starts_with(".TH ")).expect("a title");
        let name = path.trim_start_matches("man/").trim_end_matches(".1");
        let expected = format!(".TH {} 1  \"", name.to_uppercase());
        assert!(title.starts_with(&expected), "{title}");
    }
}

#[test]
fn every_command_has_a_page_that_is_found_from_its_parent() {
    fn check(command: &clap::Command, name: &str, pages: &[(String, String)]) -> usize {
        let path = format!("man/{name}.1");
        let (_, page) = pages.iter().find(|(p, _)| *p == path).expect(&path);
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\"", "\"SEE ALSO\""]
        {
            assert!(page.contains(&format!("\n.SH {part}\n")), "{path}: {part}");
        }
        for status in 0..=4 {
            assert!(page.contains(&format!("\n\\fB{status}\\fR\n")), "{path}: {status}");
        }
        let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let mut found = 1;
        for sub in subcommands {
            let name = format!("{name}-{}", sub.get_name());
            let link = format!("\\fB{}\\fR(1)", name.replace('-', "\\-"));
            assert!(page.contains(&link), "{path} does not name {link}");
            found += check(sub, &name, pages);
        }
        found
    }
    let pages = pages();
    let found = check(&Cli::command(), "vfio-migrate", &pages);
    let there = pages.iter().filter(|(path, _)| path.starts_with("man/")).count();
    assert!(found > 10 && found == there, "{found} commands, {there} pages");
}

#[test]
fn an_example_that_the_command_refuses_is_no_example() {
    let pages = pages();
    for (name, lines) in EXAMPLES {
        let path = format!("man/{name}.1");
        assert!(pages.iter().any(|(page, _)| *page == path), "{path}");
        for line in *lines {
            if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{line}: {error}");
            }
        }
    }
}

#[test]
fn what_is_hidden_is_offered_nowhere() {
    for (path, contents) in pages() {
        assert!(!contents.replace('\\', "").contains("with-parent"), "{path}");
    }
}

#[test]
fn completions_know_every_command_and_are_scripts() {
    let pages = pages();
    let scripts = pages.iter().filter(|(path, _)| path.starts_with("completions/"));
    let mut shells = 0;
    for (path, script) in scripts {
        shells += 1;
        for command in Cli::command().get_subcommands() {
            assert!(
                script.contains(command.get_name()),
                "{path}: {}",
                command.get_name()
            );
        }
        assert!(script.contains("--json") || script.contains("-l json"), "{path}");
    }
    assert_eq!(shells, 3);
    let bash = &pages.iter().find(|(path, _)| path.ends_with(".bash")).expect("bash").1;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bash).expect("written");
    // `.ci/run` is a script of bash, so there is one wherever that runs.
    if let Ok(checked) = Command::new("bash").arg("-n").arg(file.path()).output() {
        assert!(checked.status.success(), "{checked:?}");
    }
}

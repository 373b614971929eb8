//! The rules, on rooms that break them.

use std::path::PathBuf;

use serde_json::json;

use super::room::{Manifest, Rules};
use super::*;

fn room(package: &str, level: u64) -> Room {
    Room {
        package: package.into(),
        manifest: Manifest { path: format!("{package}/Cargo.toml"), text: String::new() },
        level,
        never: Vec::new(),
        only_in: Vec::new(),
        dependencies: Vec::new(),
        sources: Vec::new(),
    }
}

fn source(path: &str, text: &str) -> Source {
    Source {
        path: format!("crates/x/{path}"),
        path_in_room: PathBuf::from(path),
        text: text.into(),
        crate_root: false,
    }
}

fn depends(room: &mut Room, package: &str, kind: DependencyKind) {
    room.dependencies.push(Dependency { package: package.into(), rename: None, kind });
}

/// Lines on which `token` is found in `text`.
fn hits(token: &str, text: &str) -> Vec<usize> {
    let mut one = room("x", 0);
    one.never = vec![Token::parse(token).expect("the test's token is one")];
    one.sources = vec![source("src/lib.rs", text)];
    violations_of(&[one]).into_iter().map(|violation| violation.line).collect()
}

#[test]
fn forbidden_path_is_found_in_every_spelling() {
    let text = "\
use std::net;
use std::net::TcpStream;
use std::{io, net::{self, UdpSocket}};
fn f(x: ::std::net::IpAddr) {}
use std as s; type T = s::net::IpAddr;
macro_rules! m { () => { std::net::TcpStream::connect(a) } }
impl<T: std::net::ToSocketAddrs> A<{ <T as std::net::X>::Y }> for B {}
use {std::net::X as _};
use std::*;
#[cfg(test)] mod tests { use std::net::X; }
";
    assert_eq!(hits("std::net", text), (1..=10).collect::<Vec<_>>());
}

#[test]
fn what_is_not_the_forbidden_path_is_left_alone() {
    let text = r#"
//! std::net in a doc comment
/// [`std::net::TcpStream`]
use mystd::net;
use std::network;
use std::io::net;
use crate::std::net as n;
fn f() { let s = "std::net::TcpStream"; /* std::net */ n::x(); }
// std::net
"#;
    assert_eq!(hits("std::net", text), [0; 0]);
}

#[test]
fn descriptors_are_found_in_brace_groups() {
    let text = "use std::{\n    io,\n    os::{\n        fd::{AsFd, OwnedFd},\n    },\n};";
    assert_eq!(hits("std::os::fd", text), [4]);
    assert_eq!(hits("OwnedFd", text), [4]);
    assert_eq!(hits("RawFd", text), [0; 0]);
}

#[test]
fn crate_token_spares_names_that_are_not_the_crate() {
    assert_eq!(hits("engine::", "use engine::X;\nfn f(engine: engine::Y) {}"), [1, 2]);
    assert_eq!(hits("engine::", "use engine as e;\ne::X"), [1, 2]);
    assert_eq!(hits("engine::", "let engine = self.engine.run(engine);"), [0; 0]);
    assert_eq!(hits("engine::", "mod engine; use engine::X; crate::engine::Y"), [0; 0]);
}

#[test]
fn word_token_is_found_anywhere() {
    assert_eq!(hits("rustix", "rustix::fs::open();\nuse a::{rustix};"), [1, 2]);
    assert_eq!(hits("rustix", "\"rustix\" // rustix"), [0; 0]);
}

#[test]
fn unsafe_outside_sys_is_found_whatever_the_manifest_says() {
    let text = "//! unsafe\n#![forbid(unsafe_code)]\nunsafe fn f() {}";
    let mut one = room("vfio-migrate-engine", 3);
    one.sources = vec![source("src/lib.rs", text)];
    let mut sys = one.clone();
    sys.package = UNSAFE_ROOM.into();
    let found: Vec<_> = violations_of(&[one, sys]).into_iter().collect();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].line, found[0].room.as_str()), (3, "vfio-migrate-engine"));
}

#[test]
fn thread_outside_its_folder_is_found() {
    let mut one = room("x", 3);
    let token = Token::parse("std::thread").expect("the test's token is one");
    one.only_in = vec![(token, "src/drive".into())];
    let text = "use std::thread;\nfn f() { thread::spawn(g); }";
    for path in ["src/drive.rs", "src/drive/a.rs", "src/drive/b/c.rs"] {
        one.sources = vec![source(path, text)];
        assert!(violations_of(&[one.clone()]).is_empty(), "{path}");
    }
    for path in ["src/driver.rs", "src/a/drive.rs", "src/lib.rs"] {
        one.sources = vec![source(path, text)];
        let lines: Vec<_> =
            violations_of(&[one.clone()]).into_iter().map(|found| found.line).collect();
        assert_eq!(lines, [1, 2], "{path}");
    }
}

#[test]
fn dependency_upwards_or_sideways_is_found() {
    use DependencyKind::{Development, Normal};
    let breaks = |level, kind| {
        let mut one = room("one", 2);
        depends(&mut one, "other", kind);
        depends(&mut one, "serde", kind);
        !violations_of(&[one, room("other", level)]).is_empty()
    };
    assert_eq!([1, 2, 3].map(|level| breaks(level, Normal)), [false, true, true]);
    assert_eq!([1, 2, 3].map(|level| breaks(level, Development)), [false, false, true]);
}

#[test]
fn facade_and_xtask_are_nobodys_dependency() {
    for package in [FACADE, "xtask"] {
        let mut one = room("vfio-migrate-cli", 5);
        depends(&mut one, package, DependencyKind::Development);
        let found = violations_of(&[one, room(FACADE, 5)]);
        assert_eq!(found.len(), 1, "{package}");
    }
}

#[test]
fn dependency_is_found_on_its_line() {
    let text = "[dependencies]\nporter = \"1\"\nport.workspace = true\n".into();
    let manifest = Manifest { path: "Cargo.toml".into(), text };
    assert_eq!(manifest.line_of("port"), 3);
    assert_eq!(manifest.line_of("absent"), 1);
}

#[test]
fn room_without_level_or_with_a_misspelt_rule_is_refused() {
    for table in [
        json!(null),
        json!({}),
        json!({ "level": "3" }),
        json!({ "level": -1 }),
        json!({ "level": 3, "nevr": [] }),
        json!({ "level": 3, "never": "std::net" }),
        json!({ "level": 3, "never": ["std net"] }),
        json!({ "level": 3, "never": [""] }),
        json!({ "level": 3, "never": [1] }),
        json!({ "level": 3, "only_in": { "std::thread": "drive" } }),
        json!({ "level": 3, "only_in": { "std::thread": 1 } }),
    ] {
        assert!(Rules::parse(&table).is_err(), "{table}");
    }
    let table = json!({
        "level": 3, "never": ["a::"], "only_in": { "std::thread": "src/drive" }
    });
    let rules = Rules::parse(&table).expect("the table is right");
    assert_eq!((rules.level, rules.never.len(), rules.only_in.len()), (3, 1, 1));
}

#[test]
fn room_without_a_word_about_itself_is_found() {
    assert!(has_crate_doc("//! What.\nuse x;"));
    assert!(has_crate_doc("// licence\n\n#![no_std]\n//! What."));
    assert!(has_crate_doc("/*! What. */"));
    assert!(!has_crate_doc("//!\n// no\nuse x;\n//! late"));
    assert!(!has_crate_doc("/// not of the crate\nmod x;"));
    assert!(!has_crate_doc(""));
    let mut one = room("x", 0);
    one.sources = vec![Source { crate_root: true, ..source("src/lib.rs", "mod x;") }];
    assert_eq!(violations_of(&[one]).len(), 1);
}

#[test]
fn this_workspace_obeys_its_layers() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in a folder");
    check(root).expect("the layers hold, see the violations above");
}

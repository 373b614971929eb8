//! What a check finds reaches whoever asked: a line, an object, the exit status.
#![allow(clippy::panic, reason = "a test's way to fail")]

mod stage;

use std::os::unix::net::UnixListener;

use rustix::process::Signal;
use serde_json::Value;
use stage::{Process, folder, run};

/// A uart that is served until the test ends.
fn served(socket: &str, more: &[&str]) -> Process {
    let mut arguments = vec!["serve", "--model", "uart", "--socket", socket];
    arguments.extend(more);
    let mut server = Process::start(&arguments);
    assert!(server.line().contains("served"));
    server
}

fn objects(out: &str) -> Vec<Value> {
    let object = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    out.lines().map(object).collect()
}

#[test]
fn a_device_that_obeys_ends_in_0_and_says_so_line_by_line() {
    let folder = folder();
    let socket = folder.path().join("a.sock").display().to_string();
    let _server = served(&socket, &[]);
    let device = format!("vfio-user:{socket}");
    let ended = run(&["conform", &device]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let list = run(&["conform", "--list"]);
    assert_eq!(list.status, 0, "{list:?}");
    let ids: Vec<_> =
        list.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(ids.len() > 50, "{ids:?}");
    let lines: Vec<_> = ended.out.lines().collect();
    assert_eq!(lines.len(), ids.len() + 1, "{}", ended.out);
    for (line, id) in lines.iter().zip(&ids) {
        let words: Vec<_> = line.split_whitespace().take(2).collect();
        assert!(["pass", "skipped"].contains(&words[0]) && words[1] == *id, "{line}");
    }
    let summary = lines[ids.len()];
    assert!(summary.contains(" 0 failed") && summary.contains(" passed"), "{summary}");
}

#[test]
fn a_failed_check_ends_in_1_and_is_named() {
    let folder = folder();
    let socket = folder.path().join("a.sock").display().to_string();
    let _server = served(&socket, &["--generation", "v1"]);
    let device = format!("vfio-user:{socket}");
    let ended = run(&["conform", &device, "--json", "--only", "1.flags", "--only", "2"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let objects = objects(&ended.out);
    let verdicts: Vec<_> =
        objects.iter().map(|it| (it["check"].as_str(), it["verdict"].as_str())).collect();
    assert_eq!(
        verdicts,
        [
            (Some("1.flags"), Some("fail")),
            (Some("2.initial"), Some("skipped")),
            (Some("2.reset"), Some("skipped")),
            (None, None),
        ]
    );
    assert_eq!(objects[0]["rule"], 1);
    assert!(objects[0]["saw"].as_str().is_some_and(|saw| saw.contains("ENOTTY")));
    let summary = &objects[3]["summary"];
    assert_eq!(summary["device"], device.as_str());
    assert_eq!((&summary["passed"], &summary["failed"]), (&0.into(), &1.into()));
    assert_eq!(summary["failures"][0], "1.flags");
}

/// Skipped is not passed.
#[test]
fn a_device_of_which_nothing_was_found_out_does_not_end_in_0() {
    let folder = folder();
    let socket = folder.path().join("a.sock").display().to_string();
    let _server = served(&socket, &["--generation", "v1"]);
    let ended = run(&["conform", &format!("vfio-user:{socket}"), "--only", "4"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.out.contains(" 0 failed") && ended.out.contains("nothing was found"));
}

#[test]
fn a_server_that_dies_in_the_middle_costs_one_check_and_the_rest_says_why() {
    let folder = folder();
    let socket = folder.path().join("a.sock").display().to_string();
    // Enough to save for the checks to take a while.
    let server = stage::serve(socket.as_ref(), &["--memory", "16M"]).process;
    let device = format!("vfio-user:{socket}");
    let mut conform = Process::start(&["conform", &device, "--json"]);
    drop(conform.line());
    server.signal(Signal::KILL);
    let status = conform.wait(stage::LONGEST);
    assert_eq!(status, Some(1), "{}", conform.err());
    let objects = objects(&conform.out());
    let failed = objects.iter().position(|object| object["verdict"] == "fail");
    let failed = failed.unwrap_or_else(|| panic!("{objects:?}"));
    let rest = &objects[failed + 1..objects.len() - 1];
    assert!(!rest.is_empty());
    for object in rest {
        assert_eq!(object["verdict"], "skipped", "{object}");
        assert!(object["saw"].as_str().is_some_and(|saw| saw.contains("lost in")));
    }
}

#[test]
fn nonsense_is_a_usage_error_with_the_remedy() {
    for (arguments, says) in [
        (&["conform"][..], "DEVICE"),
        (&["conform", "--list", "--only", "99"], "an id of --list"),
        (&["conform", "vfio-user:/a", "--only", "4.nothing"], "4.nothing"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.err.contains(says), "{ended:?}");
    }
    // Nothing is destroyed by reading about it.
    let help = run(&["conform", "--help"]);
    assert!(help.out.contains("DESTROYS"), "{help:?}");
}

#[test]
fn whoever_listens_without_speaking_is_not_waited_for() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let _silent = UnixListener::bind(&socket).expect("a socket");
    let ended = run(&["conform", &format!("vfio-user:{}", socket.display())]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("does not answer"), "{ended:?}");
}

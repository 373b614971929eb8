//! The command as people use it: arguments, output, exit statuses.

mod stage;

use stage::{Server, run, serve};

use serde_json::Value;
use states::chart;
use states::v2::Capabilities;

#[test]
fn states_shows_the_tables_of_the_library() {
    for capabilities in Capabilities::EVERY {
        let set = capabilities.to_string();
        let table = run(&["states", "--capabilities", &set]);
        assert_eq!((table.status, table.out), (0, chart::table(capabilities)));
        let diagram = run(&["states", "--capabilities", &set, "--format", "mermaid"]);
        assert_eq!((diagram.status, diagram.out), (0, chart::mermaid(capabilities)));
    }
    let json = run(&["states", "--json"]).json();
    assert_eq!(json["capabilities"], 7);
    assert_eq!(json["states"].as_array().map(Vec::len), Some(7));
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    for arguments in [
        &["states", "--capabilities", "2"][..],
        &["demo", "--devices", "0"],
        &["demo", "--p2p", "--devices", "1"],
        &["demo", "--inject", "typhoon"],
        &["serve"],
        &["probe", "/tmp/x"],
        &["explode"],
        &[],
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status, 2, "{arguments:?}: {}", ended.err);
        assert!(ended.out.is_empty(), "{arguments:?}: {}", ended.out);
        assert!(!ended.err.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["guest", "ctl", "--help"]] {
        let ended = run(arguments);
        assert_eq!((ended.status, ended.err), (0, String::new()), "{arguments:?}");
    }
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let usage = run(&["states", "--json", "--capabilities", "2"]);
    assert_eq!(usage.status, 2);
    assert_eq!(usage.json()["error"]["code"], "usage");
    let missing = run(&["probe", "vfio-user:/nonexistent/socket", "--json"]);
    assert_eq!(missing.status, 1);
    let json = missing.json();
    let text = json["error"]["text"].as_str().expect("a text");
    assert!(text.contains("/nonexistent/socket"), "{text}");
    assert_eq!(missing.err, format!("vfio-migrate: {text}\n"));
}

#[test]
fn help_states_the_defaults() {
    let help = run(&["demo", "--help"]).out;
    for default in ["2", "7", "512M", "64M", "300", "fail", "1"] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}: {help}");
    }
    let help = run(&["serve", "--help"]).out;
    for default in ["accel", "7", "64M", "64K"] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}: {help}");
    }
}

#[test]
fn nobody_reading_the_output_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .arg("states")
        .stdout(writer)
        .status()
        .expect("a status");
    assert!(status.success(), "{status}");
}

#[test]
fn a_probe_tells_what_a_migration_will_do() {
    let folder = stage::folder();
    for set in ["1", "3", "5", "7"] {
        let socket = folder.path().join(format!("{set}.sock"));
        let server =
            serve(&socket, &["--memory", "16M", "--capabilities", set, "--json"]);
        assert_eq!(server.ready["ready"]["capabilities"].to_string(), set);
        let device = format!("vfio-user:{}", socket.display());
        let json = run(&["probe", &device, "--json"]).json();
        assert_eq!(json["identity"]["capabilities"].to_string(), set);
        assert_eq!(json["state"], "RUNNING");
        let bar2 = json["regions"].as_array().expect("regions").iter();
        let bar2 = bar2.clone().find(|region| region["name"] == "BAR2").expect("BAR2");
        assert_eq!(bar2["bytes"], 16 << 20);
        assert_eq!(bar2["mapped"][0]["bytes"], 64 << 10);
        let said =
            |key: &str, word: &str| json["migration"][key].to_string().contains(word);
        assert_eq!(said("will", "pre-copy"), set == "5" || set == "7");
        assert_eq!(said("will_not", "without P2P"), set == "1" || set == "5");
        // A second question finds the device as it was.
        let text = run(&["probe", &device]);
        assert_eq!(text.status, 0, "{}", text.err);
        assert!(
            text.out.contains("RUNNING") && text.out.contains("MSI-X"),
            "{}",
            text.out
        );
    }
}

#[test]
fn a_server_that_ends_leaves_no_socket_behind() {
    use std::os::unix::fs::PermissionsExt;
    let folder = stage::folder();
    let socket = folder.path().join("a.sock");
    let mut server: Server = serve(&socket, &["--memory", "16M"]);
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(server.process.end(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_device_that_cannot_be_is_refused_with_the_reason() {
    let folder = stage::folder();
    let socket = folder.path().join("a.sock");
    let path = socket.to_str().expect("text");
    for (option, value, word) in [
        ("--memory", "17M", "power of two"),
        ("--memory", "8M", "16 MiB"),
        ("--mapped-window", "1", "4096"),
    ] {
        let ended = run(&["serve", "--socket", path, option, value]);
        assert_eq!(ended.status, 1);
        assert!(ended.err.contains(word), "{}", ended.err);
        assert!(!socket.exists());
    }
    let ended = run(&["serve", "--socket", "/nonexistent/folder/a.sock"]);
    assert_eq!(ended.status, 1);
    assert!(ended.err.contains("folder does not exist"), "{}", ended.err);
}

#[test]
fn a_log_file_shows_what_a_device_was_asked() {
    let folder = stage::folder();
    let log = folder.path().join("log");
    let ended = run(&["states", "--log", log.to_str().expect("text")]);
    assert_eq!((ended.status, ended.err), (0, String::new()));
    assert!(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ends")));
    let ended = run(&["states", "--log", "/nonexistent/folder/log", "--json"]);
    assert_eq!(ended.status, 1);
    let json: Value = ended.json();
    assert!(json["error"]["text"].to_string().contains("/nonexistent/folder/log"));
}

//! Two guests by hand, as in the README: refusals, cancelling, and processes that die.

mod stage;

use stage::{Guest, Machine, report};

use serde_json::{Value, json};

/// Refuses a migration between the two, with `word` in the reason and the source
/// running.
fn refused(source: &Machine<'_>, destination: &Machine<'_>, word: &str) {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), source);
    let there = Guest::receive(folder.path(), destination);
    let ended = here.ctl(&["migrate", "--to", there.place()]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "refused", "{report}");
    let error = report["error"].as_str().unwrap_or_default();
    assert!(error.contains(word), "{word}: {error}");
    assert_eq!(here.state(), "running");
    assert!(here.works());
}

#[test]
fn another_memory_size_is_refused_with_the_source_running() {
    let (small, large) =
        (Machine::default(), Machine { memory: "64M", ..Machine::default() });
    refused(&small, &large, "memory");
}

#[test]
fn another_number_of_devices_is_refused_with_the_source_running() {
    let (one, two) = (Machine::default(), Machine { devices: 2, ..Machine::default() });
    refused(&one, &two, "device");
}

#[test]
fn another_model_is_refused_with_the_source_running() {
    let other = Machine { device: &["--mapped-window", "128K"], ..Machine::default() };
    refused(&Machine::default(), &other, "model");
}

#[test]
fn another_capability_set_of_the_same_model_is_accepted() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &Machine::default());
    let simple = Machine { device: &["--capabilities", "1"], ..Machine::default() };
    let there = Guest::receive(folder.path(), &simple);
    let ended = here.ctl(&["migrate", "--to", there.place(), "--downtime-limit", "2000"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(there.works());
}

#[test]
fn a_port_where_nothing_listens_is_refused_with_the_source_running() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &Machine::default());
    // Bound and closed: nobody listens there now.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let ended = here.ctl(&["migrate", "--to", &format!("tcp:127.0.0.1:{port}")]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains(&port.to_string()), "{ended:?}");
    assert_eq!(here.state(), "running");
    assert!(here.works());
}

#[test]
fn the_walk_through_moves_the_guest_and_commands_obey_the_token() {
    let folder = stage::folder();
    let machine = Machine { devices: 2, ..Machine::default() };
    let mut here = Guest::run(folder.path(), &machine);
    let mut there = Guest::receive(folder.path(), &machine);
    assert_eq!(there.state(), "waiting");
    let ended = here.ctl(&["migrate", "--to", there.place(), "--downtime-limit", "2000"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "completed");
    assert!(report["verified"].is_null(), "nothing was compared: {report}");
    assert_eq!(here.state(), "moved");
    there.becomes("running");
    for command in [
        &["resume"][..],
        &["pause"],
        &["cancel"],
        &["quit"],
        &["migrate", "--to", there.place()],
    ] {
        let ended = here.ctl(command);
        assert_eq!(ended.status, 1, "{command:?}: {ended:?}");
        let json = ended.json();
        let refused = json["error"]["code"] == "refused" || json["outcome"] == "refused";
        assert!(refused, "{command:?}: {ended:?}");
    }
    assert!(there.works());
    here.outlives_a_signal("moved");
    assert_eq!(here.ctl(&["quit", "--discard"]).status, 0);
    assert_eq!(here.process.wait(stage::LONGEST), Some(0));
    assert!(!here.control.exists());
    // A guest that runs here, and only here, ends like any process.
    assert_eq!(there.process.end(), Some(0));
    assert!(!there.control.exists());
}

#[test]
fn a_signal_ends_a_destination_that_waits_and_removes_its_socket() {
    let folder = stage::folder();
    let mut there = Guest::receive(folder.path(), &Machine::default());
    assert!(there.control.exists());
    assert_eq!(there.process.end(), Some(0));
    assert!(!there.control.exists());
}

#[test]
fn a_paused_guest_arrives_paused_and_has_no_downtime() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &Machine::default());
    let there = Guest::receive(folder.path(), &Machine::default());
    assert_eq!(here.ctl(&["pause"]).status, 0);
    assert_eq!(here.state(), "paused");
    let ended = here.ctl(&["migrate", "--to", there.place()]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let report = ended.json();
    assert!(report["downtime_ms"].is_null(), "{report}");
    there.becomes("paused");
    assert_eq!(there.ctl(&["resume"]).status, 0);
    assert!(there.works());
}

#[test]
fn a_guest_moves_over_unix_sockets_where_a_dead_one_listened_before() {
    let folder = stage::folder();
    let link = folder.path().join("link");
    drop(std::os::unix::net::UnixListener::bind(&link).expect("a socket"));
    let here = Guest::run(folder.path(), &Machine::default());
    let from = format!("unix:{}", link.display());
    let there = Guest::receive_at(folder.path(), &from, &Machine::default());
    let to = there.place().to_owned();
    let ended = here.ctl(&["migrate", "--to", &to, "--downtime-limit=2000"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    there.becomes("running");
    assert!(there.works());
}

#[test]
fn a_migration_that_is_too_slow_is_made_faster_while_it_runs() {
    let folder = stage::folder();
    let mut here = Guest::run(folder.path(), &Machine::default());
    let there = Guest::receive(folder.path(), &Machine::default());
    let none = here.ctl(&["set-rate", "1M"]);
    assert_eq!(none.json()["error"]["code"], "refused", "{none:?}");
    let began = std::time::Instant::now();
    // 32 MiB at this rate would take more than a minute.
    let slow = ["guest", "ctl", here.control.to_str().expect("text"), "migrate", "--to"];
    let slow = [&slow[..], &[there.place(), "--rate=512K", "--downtime-limit=2000"]];
    let mut migration = stage::Process::start(&slow.concat());
    migration.notes("precopy");
    assert_eq!(here.state(), "migrating");
    assert_eq!(here.ctl(&["set-rate", "none"]).status, 0);
    assert_eq!(migration.wait(stage::LONGEST), Some(0), "{}", migration.err());
    assert!(began.elapsed() < std::time::Duration::from_secs(40));
    there.becomes("running");
    here.outlives_a_signal("moved");
}

/// A migration that cannot come to its end by itself.
fn endless() -> Value {
    json!({ "downtime_limit_ms": 0, "max_time_s": 300 })
}

#[test]
fn a_cancelled_migration_leaves_the_source_running() {
    let folder = stage::folder();
    let mut here = Guest::run(folder.path(), &Machine::default());
    let there = Guest::receive(folder.path(), &Machine::default());
    let mut migration = here.begin(there.place(), endless());
    here.outlives_a_signal("migrating");
    assert_eq!(here.ctl(&["cancel"]).status, 0);
    let report = report(&mut migration);
    assert_eq!(report["outcome"], "cancelled", "{report}");
    assert_eq!(here.state(), "running");
    assert!(here.works());
}

#[test]
fn a_migration_that_does_not_converge_gives_up_with_the_shortfall() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &Machine::default());
    let there = Guest::receive(folder.path(), &Machine::default());
    let ended = here.ctl(&[
        "migrate",
        "--to",
        there.place(),
        "--downtime-limit=0",
        "--max-time=1",
    ]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "failed", "{report}");
    assert!(report["error"].to_string().contains("converge"), "{report}");
    assert!(here.works());
}

#[test]
fn a_destination_killed_before_the_commit_leaves_the_source_running() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &Machine::default());
    let mut there = Guest::receive(folder.path(), &Machine::default());
    let mut migration = here.begin(there.place(), endless());
    there.process.kill();
    let report = report(&mut migration);
    assert_eq!(report["outcome"], "failed", "{report}");
    assert_eq!(report["recovery"], "source-resumed", "{report}");
    assert_eq!(here.state(), "running");
    assert!(here.works());
}

#[test]
fn a_source_killed_before_prepared_makes_the_destination_discard_and_say_so() {
    let folder = stage::folder();
    let mut here = Guest::run(folder.path(), &Machine::default());
    let mut there = Guest::receive(folder.path(), &Machine::default());
    let _migration = here.begin(there.place(), endless());
    here.process.kill();
    // It ends, or stays to be asked: it never runs.
    let status = there.process.wait(stage::LONGEST);
    assert_eq!(status, Some(1), "{}", there.process.out());
    let err = there.process.err();
    assert!(err.contains("discard") || err.contains("thrown away"), "{err}");
}

#[test]
fn a_device_server_killed_in_precopy_is_named() {
    let folder = stage::folder();
    let mut here = Guest::run(folder.path(), &Machine::default());
    let there = Guest::receive(folder.path(), &Machine::default());
    let mut migration = here.begin(there.place(), endless());
    here.servers[0].process.kill();
    let report = report(&mut migration);
    assert_eq!(report["outcome"], "failed", "{report}");
    assert_eq!(report["recovery"], "device-lost", "{report}");
    assert_ne!(report["lost_devices"], json!([]), "{report}");
    let status = here.ctl(&["status"]).json();
    let blocker = status["status"]["blockers"][0].as_str().unwrap_or_default();
    assert!(blocker.contains("accel0 did not come back"), "{status}");
    let again = here.ctl(&["migrate", "--to", there.place()]);
    assert_eq!(again.status, 1, "{again:?}");
    assert!(again.out.contains("accel0"), "{again:?}");
}

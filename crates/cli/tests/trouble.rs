//! What goes wrong around the tools: each says what and what to do, the devices work
//! on, and no half of a file lies anywhere.

mod stage;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use stage::alone::{Alone, run_with};
use stage::{Ended, Process, run};

/// What the devices of these tests hold.
const FULL: usize = 3 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// What is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// Whether a command failed with all of the words, in text and as JSON.
fn failed(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.starts_with("vfio-migrate: ") || ended.err.contains("\nvfio"));
    for word in words {
        assert!(ended.err.contains(word), "no {word:?} in {}", ended.err);
    }
}

/// A scene with one device that holds something, and a folder for files.
struct Scene {
    _folder: tempfile::TempDir,
    device: Alone,
    files: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let folder = stage::folder();
        let device = Alone::filled(folder.path(), "a", FULL);
        let files = folder.path().join("files");
        std::fs::create_dir(&files).expect("a folder");
        Scene { _folder: folder, device, files }
    }

    /// Saves where that does not work; the device works on, holding what it held.
    fn save_in_vain(&self, output: &Path, words: &[&str]) {
        let before = self.device.holds();
        let files = names(&self.files);
        failed(&run(&["save", &self.device.uri, "--output", text(output)]), words);
        assert_eq!(names(&self.files), files);
        assert_eq!(self.device.state(), "RUNNING");
        assert_eq!(self.device.holds(), before);
    }

    /// Restores what cannot be; the device is not touched.
    fn restore_in_vain(&self, input: &Path, words: &[&str]) {
        let before = self.device.holds();
        failed(&run(&["restore", &self.device.uri, "--input", text(input)]), words);
        assert_eq!(self.device.state(), "RUNNING");
        assert_eq!(self.device.holds(), before);
    }

    fn saved(&self) -> Vec<u8> {
        let file = self.files.join("good");
        let saved = run(&["save", &self.device.uri, "--output", text(&file)]);
        assert_eq!(saved.status, 0, "{saved:?}");
        let bytes = std::fs::read(&file).expect("a file");
        std::fs::remove_file(&file).expect("ours");
        bytes
    }
}

#[test]
fn a_full_disk_leaves_no_half_of_a_file_and_the_device_running() {
    let scene = Scene::new();
    scene.save_in_vain(Path::new("/dev/full"), &["/dev/full", "No space left", "free"]);
}

/// A file system of 1 MiB, for as long as this lives.
struct Tiny(PathBuf);

impl Tiny {
    /// None where this process may not mount.
    fn mount(at: &Path) -> Option<Tiny> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1M,mode=0777", "tiny"])
            .arg(at)
            .output();
        mounted.is_ok_and(|done| done.status.success()).then(|| Tiny(at.to_owned()))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_small_disk_that_fills_up_on_the_way_keeps_nothing() {
    let scene = Scene::new();
    let Some(_tiny) = Tiny::mount(&scene.files) else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    let output = scene.files.join("a.vfm");
    scene.save_in_vain(&output, &["a.vfm", "No space left", "free"]);
}

#[test]
fn an_output_that_exists_is_not_written_over_without_a_word() {
    let scene = Scene::new();
    let output = scene.files.join("a.vfm");
    std::fs::write(&output, "precious").expect("a file");
    scene.save_in_vain(&output, &["a.vfm", "--replace"]);
    assert_eq!(std::fs::read(&output).expect("the file"), b"precious");
    // A failure on the way to replace it leaves it, too.
    let missing = "vfio-user:/nonexistent/a.sock";
    let output = text(&output);
    failed(&run(&["save", missing, "--output", output, "--replace"]), &[missing]);
    assert_eq!(std::fs::read(output).expect("the file"), b"precious");
    let replaced = run(&["save", &scene.device.uri, "--output", output, "--replace"]);
    assert_eq!(replaced.status, 0, "{replaced:?}");
    assert_eq!(names(&scene.files), ["a.vfm"]);
    assert!(std::fs::read(output).expect("the file").len() > FULL);
}

#[test]
fn a_server_s_socket_is_never_replaced_by_a_file() {
    let scene = Scene::new();
    let socket = scene._folder.path().join("a.sock");
    let save = ["save", &scene.device.uri, "--output", text(&socket), "--replace"];
    failed(&run(&save), &["a.sock", "no file"]);
    assert_eq!(scene.device.state(), "RUNNING");
}

#[test]
fn standard_output_by_another_name_is_the_file_and_nothing_else() {
    let scene = Scene::new();
    let good = scene.saved();
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let output = scene.files.join("a.vfm");
        let stdout = std::fs::File::create(&output).expect("a file");
        let status = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
            .args(["save", &scene.device.uri, "--output", name])
            .stdout(stdout)
            .status();
        assert_eq!(status.expect("the command starts").code(), Some(0), "{name}");
        let saved = std::fs::metadata(&output).expect("the file").len();
        assert_eq!(saved, good.len() as u64, "{name}");
        let decoded = run(&["decode", text(&output)]);
        assert_eq!(decoded.status, 0, "{name}: {}", decoded.err);
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nobody() {
    let scene = Scene::new();
    let output = scene.files.join("a.vfm");
    for log in [&["-vv"][..], &["-vv", "--log", "/dev/full"]] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let status = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
            .args(["save", &scene.device.uri, "--output", text(&output), "--replace"])
            .args(log)
            .stdout(std::process::Stdio::null())
            .stderr(full.expect("a device"))
            .status();
        assert_eq!(status.expect("the command starts").code(), Some(0), "{log:?}");
        assert_eq!(scene.device.state(), "RUNNING");
    }
    assert_eq!(run(&["decode", text(&output)]).status, 0);
}

#[test]
fn a_report_that_cannot_be_told_is_not_taken_for_a_file_that_was_not_saved() {
    let scene = Scene::new();
    let output = scene.files.join("a.vfm");
    let full = std::fs::File::options().write(true).open("/dev/full");
    let ended = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(["save", &scene.device.uri, "--output", text(&output)])
        .stdout(full.expect("a device"))
        .output()
        .expect("the command starts");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    let says = "all of it is done, and only the report of it is lost: cannot write to \
                standard output";
    assert!(told.contains(says), "{told}");
    assert_eq!(run(&["decode", text(&output)]).status, 0);
}

#[test]
fn somebody_else_who_listens_there_is_not_told_apart_from_a_receiver() {
    let scene = Scene::new();
    let folder = stage::folder();
    // A server of a device closes the connection: this is no vfio-user.
    let other = Alone::empty(folder.path(), "other");
    let place = other.uri.replace("vfio-user:", "unix:");
    let listens = format!("does a `vfio-migrate receive` listen at {place}?");
    failed(&run(&["send", &scene.device.uri, "--to", &place]), &[&listens]);
    assert_eq!(scene.device.state(), "RUNNING");
    assert_eq!(other.state(), "RUNNING");
}

#[test]
fn a_device_that_is_named_twice_is_a_mistake_that_is_told_at_once() {
    let scene = Scene::new();
    let uri = &scene.device.uri;
    let other = uri.replace("/a.sock", "/./a.sock");
    let output = scene.files.join("a.vfm");
    let output = text(&output);
    let link = format!("unix:{}", scene.files.join("link").display());
    for command in [
        &["save", uri, &other, "--output", output][..],
        &["restore", uri, &other, "--input", output],
        &["send", uri, &other, "--to", &link],
        &["receive", uri, &other, "--from", &link],
        &["start", uri, &other],
        &["guest", "run", "--device", uri, "--device", &other, "--control", output],
    ] {
        let ended = run(command);
        assert_eq!(ended.status, 2, "{command:?}: {ended:?}");
        assert!(ended.err.contains("a.sock is named twice"), "{}", ended.err);
    }
    assert_eq!(names(&scene.files), [""; 0]);
    assert_eq!(scene.device.state(), "RUNNING");
}

#[test]
fn an_output_that_cannot_be_is_named() {
    let scene = Scene::new();
    let nowhere = scene.files.join("none/a.vfm");
    scene.save_in_vain(&nowhere, &["none/a.vfm", "No such file or directory"]);
    scene.save_in_vain(&scene.files, &["files", "directory"]);
}

#[test]
fn an_input_that_is_no_file_of_ours_is_named() {
    let scene = Scene::new();
    let input = scene.files.join("none.vfm");
    scene.restore_in_vain(&input, &["none.vfm", "No such file or directory"]);
    scene.restore_in_vain(&scene.files, &["files", "directory"]);
    let input = scene.files.join("other");
    std::fs::write(&input, "").expect("a file");
    scene.restore_in_vain(&input, &["other", "is empty"]);
    std::fs::write(&input, vec![b'x'; 4096]).expect("a file");
    scene.restore_in_vain(&input, &["other", "is not a vfio-migrate stream"]);
}

#[test]
fn an_input_that_is_cut_short_or_damaged_is_refused_before_a_device_is_touched() {
    let scene = Scene::new();
    let good = scene.saved();
    let input = scene.files.join("bad.vfm");
    for length in [63, 64, 100, good.len() / 2, good.len() - 1] {
        std::fs::write(&input, &good[..length]).expect("a file");
        scene.restore_in_vain(&input, &["bad.vfm", "byte"]);
    }
    for at in [3, 70, 200, good.len() / 2, good.len() - 3] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&input, bad).expect("a file");
        scene.restore_in_vain(&input, &["bad.vfm", "byte"]);
    }
}

#[test]
fn a_damaged_stream_that_cannot_be_read_twice_leaves_a_fresh_device() {
    let scene = Scene::new();
    let good = scene.saved();
    let folder = stage::folder();
    let fresh = Alone::empty(folder.path(), "fresh");
    let before = fresh.holds();
    let restore = ["restore", &fresh.uri, "--input", "-"];
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    for bad in [&bad[..], &good[..good.len() / 2], &good[..good.len() - 1], b""] {
        failed(&run_with(&restore, bad), &["standard input", "byte"]);
        assert_eq!(fresh.state(), "RUNNING");
        assert_eq!(fresh.holds()["crc32c"], before["crc32c"]);
    }
    assert_eq!(run_with(&restore, &good).status, 0);
}

#[test]
fn a_device_that_is_not_there_is_named_and_no_file_is_made() {
    let scene = Scene::new();
    let output = scene.files.join("a.vfm");
    let missing = "vfio-user:/nonexistent/a.sock";
    let words = &["/nonexistent/a.sock", "vfio-migrate serve"];
    failed(&run(&["save", missing, "--output", text(&output)]), words);
    failed(&run(&["send", missing, "--to", "tcp:127.0.0.1:1"]), words);
    failed(&run(&["start", missing]), words);
    assert_eq!(names(&scene.files), [""; 0]);
    let good = scene.saved();
    std::fs::write(&output, good).expect("a file");
    failed(&run(&["restore", missing, "--input", text(&output)]), words);
}

#[test]
fn a_place_that_cannot_be_is_named() {
    let scene = Scene::new();
    let uri = &scene.device.uri;
    let place = format!("unix:{}", scene.files.join("link").display());
    failed(&run(&["send", uri, "--to", &place]), &[&place, "start the destination"]);
    assert_eq!(scene.device.state(), "RUNNING");
    let mut first = Process::start(&["receive", uri, "--from", &place]);
    first.line();
    failed(&run(&["receive", uri, "--from", &place]), &[&place, "in use"]);
    assert_eq!(first.end(), Some(1));
    let nowhere = format!("unix:{}", scene.files.join("none/link").display());
    failed(&run(&["receive", uri, "--from", &nowhere]), &[&nowhere, "No such file"]);
    assert_eq!(names(&scene.files), [""; 0]);
}

/// The command, as a user who may not do everything: itself, or by way of setpriv(1)
/// where this process is root. None where that does not work.
fn unprivileged(arguments: &[&str]) -> Option<Ended> {
    if !geteuid().is_root() {
        return Some(run(arguments));
    }
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let tried = Command::new("setpriv").args(nobody).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        return None;
    }
    let command = [&nobody[..], &[env!("CARGO_BIN_EXE_vfio-migrate")], arguments];
    let mut process = Process::start_other("setpriv", &command.concat());
    let status = process.wait(stage::LONGEST).expect("it ends");
    Some(Ended { status, out: process.out(), err: process.err() })
}

#[test]
fn what_a_user_may_not_do_is_said() {
    let scene = Scene::new();
    let input = scene.files.join("a.vfm");
    std::fs::write(&input, scene.saved()).expect("a file");
    let mode = |path: &Path, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("ours");
    };
    // Everybody may look, and nobody may touch.
    mode(scene._folder.path(), 0o755);
    mode(&scene.files, 0o555);
    mode(&input, 0o000);
    let socket = scene.files.join("b.sock");
    let link = format!("unix:{}", scene.files.join("link").display());
    let serve = ["serve", "--memory", "16M", "--socket", text(&socket)];
    let Some(served) = unprivileged(&serve) else {
        eprintln!("skipped: this process is root, and setpriv(1) does not work here");
        return;
    };
    failed(&served, &[text(&socket), "Permission denied", "another folder"]);
    // Devices of their own: ours are ours alone.
    let uri = &scene.device.uri;
    if geteuid().is_root() {
        let probed = unprivileged(&["probe", uri]).expect("as before");
        failed(&probed, &[uri, "Permission denied", "another user's"]);
        mode(&scene._folder.path().join("a.sock"), 0o666);
    }
    let may_not = |arguments: &[&str], words: &[&str]| {
        let ended = unprivileged(arguments).expect("as before");
        failed(&ended, &[words, &["Permission denied"]].concat());
    };
    let output = scene.files.join("new.vfm");
    may_not(&["save", uri, "--output", text(&output)], &["new.vfm"]);
    may_not(&["restore", uri, "--input", text(&input)], &["a.vfm"]);
    may_not(&["receive", uri, "--from", &link], &["link"]);
    assert_eq!(names(&scene.files), ["a.vfm"]);
    assert_eq!(scene.device.state(), "RUNNING");
    mode(&scene.files, 0o755);
}

//! Files that are written whole or not at all, and what says why not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::fs;
use std::io::{IoSlice, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use port::{Archive, ChannelError, Receive, Transmit};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use vfio_migrate_store::{FileError, SavedFile, open, open_unless};

fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn send(file: &mut SavedFile, bytes: &[u8]) -> Result<(), ChannelError> {
    let (one, two) = bytes.split_at(bytes.len() / 3);
    file.send(&[IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)])
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_half_written_file_has_the_final_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vfm");
    let bytes = pattern(3_000_000);
    let mut file = SavedFile::create(&path, false).unwrap();
    send(&mut file, &bytes).unwrap();
    assert_eq!(file.written(), 3_000_000);
    assert!(!path.exists());
    file.commit().unwrap();
    drop(file);
    assert_eq!(names(folder.path()), ["a.vfm"]);
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_save_that_ended_leaves_its_rest_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = SavedFile::create(&folder.path().join("a.vfm"), false).unwrap();
    send(&mut file, b"half").unwrap();
    drop(file);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn an_output_that_exists_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vfm");
    fs::write(&path, b"precious").unwrap();
    let error = SavedFile::create(&path, false).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("a.vfm exists: name another output"), "{told}");
    assert_eq!(names(folder.path()), ["a.vfm"]);

    // One that appears meanwhile is not written over either.
    fs::remove_file(&path).unwrap();
    let mut file = SavedFile::create(&path, false).unwrap();
    send(&mut file, b"new").unwrap();
    fs::write(&path, b"precious").unwrap();
    let error = file.commit().unwrap_err();
    assert!(error.to_string().contains("a.vfm exists"), "{error}");
    drop(file);
    assert_eq!(names(folder.path()), ["a.vfm"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    // Where that is wanted, the old one is there until the new one is whole.
    let mut file = SavedFile::create(&path, true).unwrap();
    send(&mut file, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_link_is_replaced_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    fs::write(&real, b"old").unwrap();
    symlink(&real, &link).unwrap();
    assert!(matches!(SavedFile::create(&link, false), Err(FileError::Exists { .. })));
    let mut file = SavedFile::create(&link, true).unwrap();
    send(&mut file, b"new").unwrap();
    file.commit().unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(&real).unwrap(), b"new");
}

#[test]
fn a_full_disk_is_not_noticed() {
    let mut file = SavedFile::create(Path::new("/dev/full"), false).unwrap();
    let error = send(&mut file, b"anything").unwrap_err();
    let told = text(&error);
    assert!(
        told.starts_with("cannot write /dev/full at byte 0 (no room for it"),
        "{told}"
    );
    assert!(told.contains("No space left on device"), "{told}");
    drop(file);
    assert!(Path::new("/dev/full").exists());
}

#[test]
fn what_is_no_regular_file_is_renamed_over() {
    let mut file = SavedFile::create(Path::new("/dev/null"), false).unwrap();
    send(&mut file, b"anything").unwrap();
    file.commit().unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_socket_that_somebody_listens_at_is_renamed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let _server = std::os::unix::net::UnixListener::bind(&path).unwrap();
    for replace in [false, true] {
        let error = SavedFile::create(&path, replace).unwrap_err();
        assert!(text(&error).contains("a.sock is no file"), "{}", text(&error));
    }
    // One that appears meanwhile stays as well.
    let path = folder.path().join("b.sock");
    let mut file = SavedFile::create(&path, true).unwrap();
    send(&mut file, b"new").unwrap();
    let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = file.commit().unwrap_err();
    assert!(text(&error).contains("b.sock is no file"), "{}", text(&error));
    drop(file);
    drop(server);
    assert_eq!(names(folder.path()), ["a.sock", "b.sock"]);
    assert!(!fs::metadata(&path).unwrap().is_file());
}

#[test]
fn a_file_that_is_open_already_is_written_over_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, b"precious").unwrap();
    let log = fs::File::options().append(true).open(&path).unwrap();
    let error = SavedFile::create(Path::new(&path_of(&log)), true).unwrap_err();
    assert!(text(&error).contains("name the file itself"), "{}", text(&error));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_place_that_cannot_be_written_to_is_not_named() {
    let folder = tempfile::tempdir().unwrap();
    for (path, says) in [
        (folder.path().join("none/a.vfm"), "none/a.vfm (check the path)"),
        (folder.path().to_owned(), "(name a file in it)"),
        (folder.path().join("a.vfm/"), "a.vfm/ (name a file in it)"),
        (Path::new("/").to_owned(), "create"),
    ] {
        let error = SavedFile::create(&path, true).unwrap_err();
        assert!(text(&error).contains(says), "{says}: {}", text(&error));
    }
    let error = open(&folder.path().join("none")).unwrap_err();
    assert!(text(&error).contains("none (check the path)"), "{}", text(&error));
    assert!(open(folder.path()).is_err());
}

#[test]
fn a_file_of_another_user_is_not_named() {
    // Root may do everything: the question is asked as somebody else, where that works.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("closed");
    fs::create_dir(&inner).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o700)).unwrap();
    let asked = std::env::current_exe().unwrap();
    // The test binary as nobody, if nobody may run it: a copy that everybody may.
    let copy = folder.path().join("asked");
    fs::copy(asked, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::os::unix::process::CommandExt::uid(&mut Command::new(&copy), 65534)
        .args(["--exact", "asked_as_nobody", "--ignored", "--nocapture"])
        .env("CLOSED", &inner)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
}

#[test]
#[ignore = "run by a_file_of_another_user_is_not_named"]
fn asked_as_nobody() {
    let closed = std::env::var_os("CLOSED").unwrap();
    let error = SavedFile::create(&Path::new(&closed).join("a.vfm"), false).unwrap_err();
    let told = text(&error);
    assert!(told.contains("closed/a.vfm (not permitted to this user"), "{told}");
    let error = open(&Path::new(&closed).join("a.vfm")).unwrap_err();
    assert!(text(&error).contains("not permitted"), "{}", text(&error));
}

#[test]
fn a_small_disk_that_is_full_keeps_a_half_written_file() {
    // A disk of its own takes a mount, which takes root; `/dev/full` does without.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=64k none \"$DISK\" && echo mounted && exec \"$0\" \
                 --exact asked_on_a_small_disk --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", mount])
        .arg(std::env::current_exe().unwrap())
        .env("DISK", folder.path())
        .output();
    let Ok(output) = output else { return };
    let told = String::from_utf8_lossy(&output.stdout);
    if told.contains("mounted") {
        assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
    }
}

#[test]
#[ignore = "run by a_small_disk_that_is_full_keeps_a_half_written_file"]
fn asked_on_a_small_disk() {
    let disk = std::env::var_os("DISK").unwrap();
    let disk = Path::new(&disk);
    let path = disk.join("a.vfm");
    fs::write(&path, b"precious").unwrap();
    let mut file = SavedFile::create(&path, true).unwrap();
    let error = send(&mut file, &pattern(1 << 20)).unwrap_err();
    let (told, written) = (text(&error), file.written());
    assert!(0 < written && written < 64 << 10);
    assert!(told.contains(&format!("a.vfm at byte {written} (no room for it")), "{told}");
    drop(file);
    assert_eq!(names(disk), ["a.vfm"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_file_that_ends_early_is_read_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vfm");
    fs::write(&path, pattern(1000)).unwrap();
    let mut file = open(&path).unwrap();
    assert!(file.is_regular());
    file.receive(&mut [0; 990]).unwrap();
    let error = file.receive(&mut [0; 11]).unwrap_err();
    assert!(error.to_string().contains("a.vfm ends early, at byte 1000"), "{error}");
    assert!(matches!(file.receive(&mut [0]), Err(ChannelError::Closed)));
    file.rewind().unwrap();
    assert_eq!(file.offset(), 0);
    let mut all = vec![0; 1000];
    file.receive(&mut all).unwrap();
    assert_eq!((all, file.offset()), (pattern(1000), 1000));
    assert!(matches!(file.receive(&mut [0]), Err(ChannelError::Closed)));
}

#[test]
fn what_is_read_in_pieces_is_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vfm");
    let bytes = pattern(2_000_003);
    fs::write(&path, &bytes).unwrap();
    let mut file = open(&path).unwrap();
    let mut read = Vec::new();
    for size in [1, 24, 300_000, 7, 262_144, 262_143, 500_000].into_iter().cycle() {
        let size = size.min(bytes.len() - read.len());
        if size == 0 {
            break;
        }
        let mut piece = vec![0; size];
        file.receive(&mut piece).unwrap();
        read.extend(piece);
    }
    assert!(read == bytes);
}

/// Both ends of a pipe, as paths.
fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().unwrap()
}

fn path_of(fd: &impl std::os::fd::AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[test]
fn a_pipe_that_nobody_reads_is_waited_for_without_end() {
    let (mut reader, writer) = pipe();
    let mut file = SavedFile::create(Path::new(&path_of(&writer)), false).unwrap();
    drop(writer);
    file.set_deadline(Duration::from_millis(50));
    let bytes = pattern(1 << 20);
    let error = send(&mut file, &bytes).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut(50)), "{error}");
    // With somebody who reads, all of it goes through.
    let mut head = vec![0; file.written() as usize];
    reader.read_exact(&mut head).unwrap();
    file.set_deadline(Duration::from_secs(20));
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    send(&mut file, &bytes).unwrap();
    file.commit().unwrap();
    drop(file);
    assert!(reading.join().unwrap() == bytes);
}

#[test]
fn a_pipe_that_stays_silent_is_waited_for_without_end() {
    let (reader, mut writer) = pipe();
    let mut file = open(Path::new(&path_of(&reader))).unwrap();
    assert!(!file.is_regular() && file.rewind().is_err());
    file.set_deadline(Duration::from_millis(50));
    writer.write_all(b"hel").unwrap();
    let error = file.receive(&mut [0; 5]).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut(50)), "{error}");
    drop((reader, writer));
    assert!(matches!(file.receive(&mut [0]), Err(ChannelError::Closed)));
}

#[test]
fn a_reader_that_is_gone_kills_the_process() {
    let (reader, writer) = pipe();
    let mut file = SavedFile::create(Path::new(&path_of(&writer)), false).unwrap();
    drop(reader);
    let error = send(&mut file, b"anything").unwrap_err();
    assert!(text(&error).contains("whoever read it is gone"), "{}", text(&error));
}

/// A pipe with a name, which nobody has opened.
fn fifo(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

/// Sets the flag while something waits in another thread, which has 30 s otherwise.
fn cancelled<T: Send>(wait: impl FnOnce(&Arc<AtomicBool>) -> T + Send) -> T {
    let cancel = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let result = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&cancel));
        cancel.store(true, Ordering::Release);
        waiting.join().unwrap()
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    result
}

#[test]
fn whoever_waits_for_a_pipe_does_not_hear_that_it_is_cancelled() {
    let (reader, writer) = pipe();
    let heard = cancelled(|cancel| {
        let mut file = open_unless(Path::new(&path_of(&reader)), cancel).unwrap();
        file.receive(&mut [0; 5])
    });
    assert!(matches!(heard, Err(ChannelError::Cancelled)), "{heard:?}");
    let sent = cancelled(|cancel| {
        let path = path_of(&writer);
        let mut file = SavedFile::create_unless(Path::new(&path), false, cancel);
        // Where the flag was set before the pipe was open.
        let Ok(file) = &mut file else { return Err(ChannelError::Cancelled) };
        send(file, &pattern(1 << 20))
    });
    assert!(matches!(sent, Err(ChannelError::Cancelled)), "{sent:?}");
}

#[test]
fn a_named_pipe_with_nobody_at_the_other_end_is_waited_for_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let created = cancelled(|cancel| SavedFile::create_unless(&path, false, cancel));
    assert!(matches!(created, Err(FileError::Cancelled)), "{created:?}");
    let heard = cancelled(|cancel| {
        let mut file = open_unless(&path, cancel).unwrap();
        file.receive(&mut [0; 5])
    });
    assert!(matches!(heard, Err(ChannelError::Cancelled)), "{heard:?}");
    let mut file = open(&path).unwrap();
    file.set_deadline(Duration::from_millis(50));
    let heard = file.receive(&mut [0; 5]);
    assert!(matches!(heard, Err(ChannelError::TimedOut(50))), "{heard:?}");
}

#[test]
fn whoever_comes_late_to_a_named_pipe_misses_something() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let bytes = pattern(300_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = SavedFile::create(&path, false).unwrap();
            send(&mut file, &bytes).unwrap();
            file.commit().unwrap();
        });
        let mut file = open(&path).unwrap();
        let mut read = vec![0; bytes.len()];
        file.receive(&mut read).unwrap();
        assert!(read == bytes);
        assert!(matches!(file.receive(&mut [0]), Err(ChannelError::Closed)));
    });
}

#[test]
fn a_link_to_nowhere_or_a_socket_is_refused_without_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("a.vfm");
    symlink("missing/b.vfm", &link).unwrap();
    for replace in [false, true] {
        let error = text(&SavedFile::create(&link, replace).unwrap_err());
        assert!(error.contains("a link that leads nowhere: remove it"), "{error}");
    }
    assert_eq!(names(folder.path()), ["a.vfm"]);
    let socket = folder.path().join("a.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = text(&open(&socket).unwrap_err());
    assert!(error.contains("a.sock (a socket, and no file: name what"), "{error}");
}

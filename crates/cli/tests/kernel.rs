//! Devices of the kernel, on a machine that has none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
            .args(arguments)
            .output()
            .unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// No machine has so many.
const NODE: &str = "vfio:/dev/vfio/devices/vfio99999";

#[test]
fn a_device_that_is_not_there_is_told_with_the_remedy_and_status_1() {
    let (status, told) = run(&["probe", NODE]);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("there is no /dev/vfio"), "{told}");
    assert!(told.contains("modprobe") || told.contains("by its group"), "{told}");
    for place in ["ffff:ff:1f.7", "00000000-0000-0000-0000-000000000000"] {
        let (status, told) = run(&["probe", &format!("vfio:{place}")]);
        assert_eq!(status, Some(1), "{told}");
        assert!(told.contains(&format!("there is no device {place}")), "{told}");
    }
}

#[test]
fn what_is_no_device_of_the_kernels_is_a_matter_of_usage() {
    for place in ["vfio:", "vfio:vfio0", "vfio:/run/a.sock", "vfio:0000:00:00.9"] {
        let (status, told) = run(&["probe", place]);
        assert_eq!(status, Some(2), "{told}");
        assert!(told.contains("the UUID of a mediated device"), "{told}");
    }
}

#[test]
fn a_guest_says_why_it_takes_none_of_the_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.sock");
    let control = control.to_str().unwrap();
    let (status, told) = run(&["guest", "run", "--control", control, "--device", NODE]);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("one of the kernel's"), "{told}");
}

#[test]
fn what_a_launcher_hands_in_is_looked_at_before_it_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("launcher.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let launcher = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let parts = [IoSlice::new(&[0])];
        sys::socket::send_with_fds(&socket, &parts, &[null.as_fd()], false).unwrap();
    });
    let (status, told) = run(&["probe", &format!("vfio:unix:{}", path.display())]);
    launcher.join().unwrap();
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("are of no use") && told.contains("os error 25"), "{told}");
}

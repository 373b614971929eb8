//! `probe` of a kernel device, and of none.

use std::fs;

use abi::v2::DeviceState;
use control::Transport;

use super::command::{run, words};
use super::port::Port;
use super::{Checked, Stop};
use crate::{expect, said};

/// Bytes of mtty's data: a header, and for every line its registers and FIFO.
pub(crate) fn bytes(lines: u32) -> u64 {
    24 + 36 * u64::from(lines)
}

fn check(lines: u32) -> Checked {
    let port = Port::new(lines)?;
    let said = run(&["probe", &port.uri()])?;
    let found = said.well()?;
    let text = found.to_string();
    if found["state"] != "RUNNING" {
        return Err(Stop::Fail(format!("its state is {}", found["state"])));
    }
    let capabilities = found["identity"]["capabilities"].as_u64().unwrap_or(0);
    expect("capabilities", capabilities, 7)?;
    let size = found["stop_copy_bytes"].as_u64().unwrap_or(0);
    expect("bytes of data", size, bytes(lines))?;
    let group = port.group()?;
    for needed in ["mtty", "will", group.as_str()] {
        if !text.contains(needed) {
            return Err(Stop::Fail(format!("it says nothing of {needed}: {text}")));
        }
    }
    Ok(format!("RUNNING, capabilities 7, {size} bytes, group {group}"))
}

pub(super) fn check_one() -> Checked {
    check(1)
}

pub(super) fn check_two() -> Checked {
    check(2)
}

/// What is not there is said, with what to do.
pub(super) fn check_nothing() -> Checked {
    let uri = "vfio:ffffffff-0000-4000-8000-0123456789ab";
    let refused = run(&["probe", uri])?.refused("ffffffff")?;
    let by_path = run(&["probe", "vfio:/dev/vfio/4242"])?.refused("/dev/vfio/4242")?;
    Ok(format!("{refused} / {by_path}"))
}

/// An open port is busy for everybody else, and stays as it is.
pub(super) fn check_busy() -> Checked {
    let port = Port::new(1)?;
    let device = super::uart::open(&port)?;
    let contents = super::uart::put(&device, 1, 0x21)?;
    let refused = run(&["probe", &port.uri()])?.refused("busy")?;
    super::uart::take("after that", &device, &contents)?;
    Ok(refused)
}

/// The state that another one left is told, not assumed and not reset.
pub(super) fn check_stopped() -> Checked {
    let port = Port::new(1)?;
    let device = super::uart::open(&port)?;
    let stop = device.set_migration_state(DeviceState::STOP, None);
    stop.map_err(said("STOP"))?;
    drop(device);
    let found = run(&["probe", &port.uri()])?;
    let state = words(&found.well()?["state"]);
    if state != "STOP" {
        return Err(Stop::Fail(format!("it was left in STOP, and is {state}")));
    }
    run(&["start", &port.uri()])?.well()?;
    let again = run(&["probe", &port.uri()])?;
    if again.well()?["state"] != "RUNNING" {
        return Err(Stop::Fail("`start` did not start it".to_owned()));
    }
    Ok("STOP, and RUNNING after `start`".to_owned())
}

/// What the kernel itself says of a device, where it says it.
pub(super) fn check_debugfs() -> Checked {
    const ROOT: &str = "/sys/kernel/debug";
    use rustix::mount::{MountFlags, mount};
    if mount("debugfs", ROOT, "debugfs", MountFlags::empty(), None).is_err() {
        return Err(Stop::Skip("this kernel has no debugfs".to_owned()));
    }
    let port = Port::new(2)?;
    let folder = format!("{ROOT}/vfio/{}/migration", port.uuid());
    let read = |name: &str| fs::read_to_string(format!("{folder}/{name}"));
    // The features do not depend on whether anybody has it open; the state does.
    let Ok(features) = read("features") else {
        return Err(Stop::Skip("this kernel has no VFIO_DEBUGFS".to_owned()));
    };
    let device = super::uart::open(&port)?;
    let mut states = Vec::new();
    for (target, name) in [(DeviceState::STOP, "STOP"), (DeviceState::RUNNING, "RUNNING")]
    {
        device.set_migration_state(target, None).map_err(said(name))?;
        let state = read("state").map_err(said(&folder))?;
        if state.trim() != name {
            return Err(Stop::Fail(format!("it is in {name}, and debugfs has {state}")));
        }
        states.push(name);
    }
    for feature in ["stop-copy", "p2p", "pre-copy"] {
        if !features.contains(feature) {
            return Err(Stop::Fail(format!("no {feature} among {features}")));
        }
    }
    let features: Vec<_> = features.split_whitespace().collect();
    Ok(format!("{}; {}", features.join(" "), states.join(", ")))
}

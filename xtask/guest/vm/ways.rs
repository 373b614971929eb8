//! The ways to a device: by its group, by itself, and by descriptors handed in.

use std::ffi::CString;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use abi::group::Extension;
use control::{DmaTarget, Transport};
use dirty::IovaRange;
use sys::SharedMemory;
use sys::socket::{Listener, send_with_fds};
use sys::vfio::container;

use super::command::run;
use super::port::Port;
use super::{Checked, Stop, uart};
use crate::{said, same};

fn file(path: &str) -> Result<File, String> {
    File::options().read(true).write(true).open(path).map_err(said(path))
}

/// By each way in turn the same device, with the same contents.
pub(super) fn check_each() -> Checked {
    let port = Port::new(2)?;
    let Some(cdev) = port.cdev() else {
        return Err(Stop::Skip("this kernel has no VFIO_DEVICE_CDEV".to_owned()));
    };
    let contents = uart::put(&uart::open(&port)?, 2, 0x31)?;
    let data = uart::data(&uart::open(&port)?)?;
    let uri = port.uri();
    let mut seen = Vec::new();
    for (number, way) in [
        format!("{uri}?by=group"),
        format!("{uri}?by=cdev"),
        format!("vfio:/dev/vfio/devices/{cdev}"),
        format!("vfio:/dev/vfio/{}", port.group()?),
    ]
    .iter()
    .enumerate()
    {
        let saved = run(&["save", "--output", &format!("/tmp/way-{number}"), way])?;
        seen.push(super::command::words(&saved.well()?["devices"][0]["crc32c"]));
    }
    seen.dedup();
    if seen.len() != 1 {
        return Err(Stop::Fail(format!("other data by other ways: {seen:?}")));
    }
    let device = uart::open(&port)?;
    same("its data", &uart::data(&device)?, &data)?;
    uart::take("after that", &device, &contents)?;
    Ok(format!("group and {cdev}: the same data"))
}

/// While it is open one way, the other way is refused, with the reason.
pub(super) fn check_mixed() -> Checked {
    let port = Port::new(1)?;
    if port.cdev().is_none() {
        return Err(Stop::Skip("this kernel has no VFIO_DEVICE_CDEV".to_owned()));
    }
    let mut reasons = Vec::new();
    for (first, second) in [("cdev", "group"), ("group", "cdev")] {
        let place = format!("{}?by={first}", port.uuid());
        let place = place.parse().map_err(said("its place"))?;
        let device = host::Host::open(&place, host::HostOptions::default());
        let device = device.map_err(said(first))?;
        let other = format!("{}?by={second}", port.uri());
        reasons.push(run(&["probe", &other])?.refused("busy")?);
        drop(device);
    }
    Ok(reasons.join(" / "))
}

/// A privileged process opens it, and hands the descriptor to one that may not.
pub(super) fn check_launcher() -> Checked {
    let port = Port::new(1)?;
    let vfio = file("/dev/vfio/vfio")?;
    let group = file(&format!("/dev/vfio/{}", port.group()?))?;
    container::join(&group, &vfio).map_err(said("SET_CONTAINER"))?;
    container::set_iommu(&vfio, Extension::TYPE1V2_IOMMU.0).map_err(said("SET_IOMMU"))?;
    let name = CString::new(port.uuid()).map_err(said("its name"))?;
    let device = container::device(&group, &name).map_err(said("GET_DEVICE_FD"))?;
    let found = hand(&[device], "/tmp/launcher.sock")?;
    drop((group, vfio));
    let by_cdev = match port.cdev() {
        None => "no cdev here".to_owned(),
        Some(cdev) => {
            let device = file(&format!("/dev/vfio/devices/{cdev}"))?.into();
            let iommu = file("/dev/iommu")?.into();
            hand(&[device, iommu], "/tmp/launcher2.sock")?;
            format!("{cdev} with /dev/iommu")
        }
    };
    Ok(format!("{found}; {by_cdev}"))
}

/// Hands descriptors to a `probe`, which finds a device that works.
fn hand(fds: &[OwnedFd], socket: &str) -> Result<String, String> {
    let listener = Listener::bind(Path::new(socket)).map_err(said(socket))?;
    thread::scope(|scope| {
        let launcher = scope.spawn(move || {
            let client = listener.accept().map_err(said("accept"))?;
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let byte = [IoSlice::new(&[0])];
            send_with_fds(&client, &byte, &fds, false)
                .map_err(said("hand over"))
                .map(drop)
        });
        let probed = run(&["probe", &format!("vfio:unix:{socket}")]);
        // Nobody waits for a client that did not come.
        let _ = sys::socket::connect(Path::new(socket));
        let handed = launcher.join().map_err(|_| "the launcher".to_owned())?;
        let probed = probed?;
        let found = probed.well()?;
        handed?;
        if found["state"] != "RUNNING" {
            return Err(format!(
                "the device that was handed in is in {}",
                found["state"]
            ));
        }
        Ok("a device that was handed in works".to_owned())
    })
}

/// Memory that the device may reach, by whatever way it was opened.
pub(super) fn check_memory() -> Checked {
    let port = Port::new(1)?;
    let device = uart::open(&port)?;
    let memory = SharedMemory::create("guest", 1 << 20).map_err(said("make memory"))?;
    let range =
        |start: u64, bytes: u64| IovaRange::new(start, bytes).map_err(said("the range"));
    let all = range(0x10_0000, 1 << 20)?;
    let target = || DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    device.dma_map(all, target()).map_err(said("map"))?;
    if let Ok(()) = device.dma_map(all, target()) {
        return Err(Stop::Fail("the same addresses were mapped twice".to_owned()));
    }
    device.dma_unmap(all).map_err(said("unmap"))?;
    device.dma_map(all, target()).map_err(said("map again"))?;
    device.dma_unmap(all).map_err(said("unmap again"))?;
    let way = device.about().way;
    Ok(format!("mapped, refused twice, unmapped, by {way:?}"))
}

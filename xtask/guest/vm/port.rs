//! Ports of mtty: mediated devices, made and removed through sysfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Checked;
use crate::{expect, said};

/// What kinds there are.
pub(crate) const TYPES: &str = "/sys/devices/virtual/mtty/mtty/mdev_supported_types";

/// Every port gets a UUID that no other had.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A port, which is removed in the end.
#[derive(Debug)]
pub(crate) struct Port {
    uuid: String,
}

impl Port {
    /// Makes one with `lines` serial lines, 1 or 2.
    pub(crate) fn new(lines: u32) -> Result<Port, String> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let uuid = format!("{number:08x}-0000-4000-8000-0123456789ab");
        let create = format!("{TYPES}/mtty-{lines}/create");
        fs::write(&create, &uuid).map_err(said(create))?;
        Ok(Port { uuid })
    }

    /// Its name.
    pub(crate) fn uuid(&self) -> &str {
        &self.uuid
    }

    /// What our command calls it.
    pub(crate) fn uri(&self) -> String {
        format!("vfio:{}", self.uuid)
    }

    /// Its folder in sysfs.
    pub(crate) fn folder(&self) -> PathBuf {
        PathBuf::from("/sys/bus/mdev/devices").join(&self.uuid)
    }

    /// The number of its group.
    pub(crate) fn group(&self) -> Result<String, String> {
        let link = fs::read_link(self.folder().join("iommu_group"));
        let link = link.map_err(said("its group"))?;
        Ok(link.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// The name of its device in `/dev/vfio/devices`, where the kernel has such.
    pub(crate) fn cdev(&self) -> Option<String> {
        let entries = fs::read_dir(self.folder().join("vfio-dev")).ok()?;
        let names =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // Every kernel counts its devices so; not every one makes nodes of them.
        let mut there =
            names.filter(|name| Path::new("/dev/vfio/devices").join(name).exists());
        there.next()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = fs::write(self.folder().join("remove"), "1");
    }
}

/// They come and go.
pub(super) fn check() -> Checked {
    let available = || -> Result<u32, String> {
        let path = format!("{TYPES}/mtty-2/available_instances");
        let text = fs::read_to_string(&path).map_err(said(&path))?;
        text.trim().parse().map_err(said(path))
    };
    let before = available()?;
    let port = Port::new(2)?;
    expect("ports left", available()?, before - 1)?;
    let group = port.group()?;
    fs::metadata(format!("/dev/vfio/{group}")).map_err(said("/dev/vfio"))?;
    let cdev = port.cdev();
    drop(port);
    expect("ports left", available()?, before)?;
    let cdev = cdev.unwrap_or_else(|| "no device of its own".to_owned());
    Ok(format!("{before} of two lines, group {group}, {cdev}"))
}

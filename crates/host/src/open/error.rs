//! Why a device is not opened, and what to do about it.

use std::io;
use std::path::PathBuf;

use control::TransportError;
use thiserror::Error;

use crate::place::Way;

/// A device is not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No container at all.
    #[error("there is no {}", path.display())]
    NoVfio {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// This user may not.
    #[error("no permission to open {}", path.display())]
    Permission {
        /// What.
        path: PathBuf,
    },
    /// No device of that address or UUID.
    #[error("there is no device {device}: no {}", looked.display())]
    NotThere {
        /// The device.
        device: String,
        /// Where it was looked for.
        looked: PathBuf,
    },
    /// The driver is none of VFIO's.
    #[error("{device} is not bound to a driver of VFIO, {}", bound_to(driver.as_deref()))]
    NotBound {
        /// The device.
        device: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Nothing isolates it.
    #[error("{device} is in no IOMMU group")]
    NoGroup {
        /// The device.
        device: String,
    },
    /// A group, and not which of its devices.
    #[error("{group} has the devices {}", devices.join(", "))]
    Which {
        /// The group.
        group: String,
        /// Its devices.
        devices: Vec<String>,
    },
    /// Others of its group have drivers of the host's.
    #[error("group {group} is not viable: {}", in_its_way(others))]
    NotViable {
        /// The group.
        group: String,
        /// The devices that are in the way, with their drivers.
        others: Vec<String>,
    },
    /// The kernel refuses to give it away.
    #[error("{device} is not isolated from others")]
    NotIsolated {
        /// The device.
        device: String,
    },
    /// A driver of VFIO has it, and its group's node is not here.
    #[error("there is no {}, the group of {device}", path.display())]
    NoGroupNode {
        /// The node.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// Somebody has it.
    #[error("{} is busy", path.display())]
    Busy {
        /// What.
        path: PathBuf,
        /// Which way it was opened.
        way: Way,
    },
    /// The kernel has no such way.
    #[error("there is no {}", path.display())]
    NoCdev {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel has no iommufd.
    #[error("there is no {}", path.display())]
    NoIommufd {
        /// What was looked for.
        path: PathBuf,
    },
    /// The container cannot be what is needed.
    #[error("the container has no IOMMU of type1, version 2")]
    NoType1,
    /// The kernel does not know a call.
    #[error("the kernel{} does not know how to {operation}", release(kernel.as_deref()))]
    OldKernel {
        /// What was asked.
        operation: &'static str,
        /// Its release.
        kernel: Option<String>,
    },
    /// Descriptors that were handed in are not what they should be.
    #[error("the descriptors that were handed in are of no use: {operation}")]
    Handed {
        /// What was asked.
        operation: &'static str,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// A launcher that hands nothing in.
    #[error("the launcher at {} hands in no device: {what}", path.display())]
    Launcher {
        /// Its socket.
        path: PathBuf,
        /// What was wrong.
        what: &'static str,
        /// Why, where known.
        #[source]
        source: Option<io::Error>,
    },
    /// The kernel did not come back.
    #[error("the kernel does not answer")]
    Unanswered {
        /// What was asked, and for how long.
        #[source]
        source: TransportError,
    },
    /// Anything else.
    #[error("{device}: {operation}")]
    Call {
        /// The device.
        device: String,
        /// What was asked.
        operation: &'static str,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

fn bound_to(driver: Option<&str>) -> String {
    driver.map_or("but to none".to_owned(), |driver| format!("but to {driver}"))
}

fn in_its_way(others: &[String]) -> String {
    match others {
        [] => "a device of it has a driver of the host's".to_owned(),
        others => format!("in the way are {}", others.join(", ")),
    }
}

fn release(kernel: Option<&str>) -> String {
    kernel.map_or(String::new(), |release| format!(" {release}"))
}

impl OpenError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            OpenError::NoVfio { .. } => {
                "load the modules (`modprobe vfio-pci`, or the driver of the device with \
                 migration, and vfio_iommu_type1); a kernel without CONFIG_VFIO cannot"
            }
            OpenError::Permission { .. } => {
                "be root, or have root give the node to your user (`chown`, a udev rule) \
                 and raise the limit of locked memory (`ulimit -l`), or let a launcher \
                 hand the descriptors in (vfio:unix:PATH)"
            }
            OpenError::NotThere { .. } => {
                "look into /sys/bus/pci/devices and /sys/bus/mdev/devices; a mediated \
                 device is made by writing a UUID to the `create` of its type"
            }
            OpenError::NotBound { .. } => {
                "unbind it from its driver, write the name of the driver of VFIO with \
                 migration for it (vfio-pci has none) to its `driver_override`, and its \
                 address to /sys/bus/pci/drivers_probe"
            }
            OpenError::NoGroup { .. } => {
                "enable the IOMMU, in the firmware and by intel_iommu=on or amd_iommu=on \
                 on the kernel's command line"
            }
            OpenError::Which { .. } => "choose one with ?device=NAME behind the group",
            OpenError::NotViable { .. } => {
                "bind every device of the group to a driver of VFIO, or to none"
            }
            OpenError::NotIsolated { .. } => {
                "another process has a device of its group, or the IOMMU does not remap \
                 interrupts: end that process, or enable interrupt remapping in the \
                 firmware (allow_unsafe_interrupts=1, of iommufd or vfio_iommu_type1, is \
                 for guests that are trusted)"
            }
            OpenError::NoGroupNode { .. } => {
                "a driver of VFIO has the device, so the node is missing here alone: give \
                 this container the node, or, where the kernel has no groups \
                 (CONFIG_VFIO_GROUP), take ?by=cdev"
            }
            OpenError::Busy { way: Way::Group, .. } => {
                "a group is opened once: a VMM, or another command, has it, or one of its \
                 devices is open by cdev, and the two ways exclude each other"
            }
            OpenError::Busy { way: Way::Cdev, .. } => {
                "a VMM, or another command, has it, or its group is open, and the two \
                 ways exclude each other"
            }
            OpenError::NoCdev { .. } => {
                "a kernel without CONFIG_VFIO_DEVICE_CDEV has no such nodes (Debian's do \
                 not): name the device by its PCI address or UUID, and it is opened by \
                 its group"
            }
            OpenError::NoIommufd { .. } => {
                "load the module iommufd, or go by the group: ?by=group behind the \
                 device's PCI address or UUID"
            }
            OpenError::NoType1 => {
                "load the module vfio_iommu_type1 (its version 2 is the only one that \
                 tracks dirty pages)"
            }
            OpenError::OldKernel { .. } => {
                "migration needs Linux 5.18, devices by cdev Linux 6.6"
            }
            OpenError::Handed { .. } => {
                "a launcher hands in a descriptor of a device of VFIO, and where that is \
                 a cdev that it has not bound, one of /dev/iommu"
            }
            OpenError::Launcher { .. } => {
                "it has to send one message with one descriptor (a device) or two (a \
                 cdev, /dev/iommu) to whoever connects"
            }
            OpenError::Unanswered { .. } => {
                "look into the kernel's log; a device whose driver hangs needs a reboot"
            }
            OpenError::Call { .. } => "look into the kernel's log",
        }
    }
}

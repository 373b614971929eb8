//! What the system says of a device, in sysfs.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use port::Model;

use crate::place::{Place, Target, Way};

/// Where the system shows its devices; elsewhere in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { dev: "/dev".into(), sys: "/sys".into(), proc: "/proc".into() }
    }
}

impl Roots {
    /// The release of the running kernel, such as `6.12.107-amd64`.
    pub fn release(&self) -> Option<String> {
        let text = fs::read_to_string(self.proc.join("sys/kernel/osrelease")).ok()?;
        Some(text.trim().to_owned())
    }
}

/// How a device was reached, and what the system says of it. Whatever is not known (a
/// device that was handed in says nothing) is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The name on its bus: a PCI address, a UUID.
    pub name: Option<String>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The number of its IOMMU group.
    pub group: Option<String>,
    /// Its name under `/dev/vfio/devices`, Linux 6.1 and later (where that way exists).
    pub cdev: Option<String>,
    /// Which way it was opened; `None` where it was handed in.
    pub way: Option<Way>,
    /// Whether it is a mediated device, which its driver makes up.
    pub mediated: bool,
    /// Of a mediated device the type, such as `mtty-2`.
    pub mediated_type: Option<String>,
    /// The release of the kernel.
    pub kernel: Option<String>,
}

impl About {
    /// Of a device of which nothing is known.
    fn nothing(roots: &Roots) -> About {
        About {
            name: None,
            driver: None,
            group: None,
            cdev: None,
            way: None,
            mediated: false,
            mediated_type: None,
            kernel: roots.release(),
        }
    }

    /// Of a descriptor that somebody handed in: newer kernels say which device it
    /// is of.
    pub(crate) fn handed_in(roots: &Roots, device: BorrowedFd<'_>) -> About {
        let fd = device.as_raw_fd().to_string();
        let info = fs::read_to_string(roots.proc.join("self/fdinfo").join(fd));
        let path = info.as_ref().ok().and_then(|info| {
            let path = info.lines().find_map(|line| line.strip_prefix(FDINFO))?;
            Path::new(path.trim()).strip_prefix("/sys").ok()
        });
        match path {
            Some(path) => About::nothing(roots).at(&roots.sys.join(path)),
            None => About::nothing(roots),
        }
    }

    /// What a folder of sysfs says of a device.
    fn at(self, path: &Path) -> About {
        let real = fs::canonicalize(path);
        let name = real.as_deref().unwrap_or(path).file_name();
        About {
            name: name.map(|name| name.to_string_lossy().into_owned()),
            driver: link(&path.join("driver")),
            group: link(&path.join("iommu_group")),
            cdev: names(&path.join("vfio-dev")).into_iter().next(),
            mediated: link(&path.join("subsystem")).as_deref() == Some("mdev"),
            mediated_type: link(&path.join("mdev_type")),
            ..self
        }
    }

    /// Which of our models it is, where one of them saves the same data as its driver:
    /// what a device of the kernel itself does not say.
    pub fn model(&self) -> Option<Model> {
        let model = match (self.driver.as_deref()?, self.mediated_type.as_deref()?) {
            ("mtty", "mtty-1") => "uart-1",
            ("mtty", "mtty-2") => "uart-2",
            _ => return None,
        };
        // Version 1.0 of its data, in every kernel from 6.7 on.
        Some(Model { name: model.to_owned(), data_version: 1 })
    }

    /// Whether the kernel is older than `major.minor`; `None` where that is not known.
    pub fn kernel_older_than(&self, major: u32, minor: u32) -> Option<bool> {
        let release = self.kernel.as_ref()?;
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let found = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(found < (major, minor))
    }

    /// What to do about a device that turned out not to migrate: whether its driver or the
    /// kernel is to blame.
    pub fn without_migration(&self) -> String {
        if let (Some(true), Some(kernel)) = (self.kernel_older_than(5, 18), &self.kernel)
        {
            return format!(
                "Linux {kernel} is too old: migration of devices came with 5.18"
            );
        }
        match self.driver.as_deref() {
            Some("vfio-pci") => {
                "vfio-pci itself cannot migrate anything: bind the driver \
                                 that the device's vendor has for it, such as \
                                 mlx5_vfio_pci"
                    .to_owned()
            }
            Some(driver) => format!(
                "the driver {driver} cannot migrate this device: a newer kernel, or \
                 newer firmware of the device, may"
            ),
            None => "its driver cannot migrate it".to_owned(),
        }
    }

    /// Why what the device holds is gone when this process closes it, `None` where it is
    /// not known to be: the kernel resets PCI devices at their last close, while the
    /// drivers of mediated devices decide for themselves, and a launcher that handed
    /// descriptors in may keep its own.
    pub fn forgets(&self) -> Option<&'static str> {
        (self.way.is_some() && !self.mediated).then_some(
            "the kernel resets it when its last descriptor is closed, and what it holds \
             is gone with this process",
        )
    }
}

/// What stands before the path of a device in the kernel's notes on its descriptor.
const FDINFO: &str = "vfio-device-syspath:";

/// What is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The device itself, looked for here.
    Device(PathBuf),
    /// The name of the group's device: there are these.
    Choice(Vec<String>),
}

impl Place {
    /// Looks a device up. What is not a matter of sysfs (a launcher) is not looked for.
    pub(crate) fn look_up(&self, roots: &Roots) -> Result<About, Missing> {
        let nothing = About::nothing(roots);
        let path = match &self.target {
            Target::Launcher(_) => return Ok(nothing),
            Target::Pci(name) => roots.sys.join("bus/pci/devices").join(name),
            Target::Mdev(name) => roots.sys.join("bus/mdev/devices").join(name),
            Target::Cdev(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                let class = roots.sys.join("class/vfio-dev").join(name);
                match fs::canonicalize(class.join("device")) {
                    Ok(path) => path,
                    // Whether there is such a node is for open(2) to say.
                    Err(_) => {
                        let cdev = Some(name.to_string_lossy().into_owned());
                        return Ok(About { cdev, ..nothing });
                    }
                }
            }
            Target::Group(path, device) => {
                let number = path.file_name().unwrap_or(path.as_os_str());
                let devices =
                    roots.sys.join("kernel/iommu_groups").join(number).join("devices");
                let names = names(&devices);
                let name = match (device, names.as_slice()) {
                    (Some(device), _) if names.contains(device) => device,
                    (None, [only]) => only,
                    _ => return Err(Missing::Choice(names)),
                };
                devices.join(name)
            }
        };
        if !path.exists() {
            return Err(Missing::Device(path));
        }
        Ok(nothing.at(&path))
    }
}

/// The devices of a group that keep it from being used: those with a driver that is
/// none of VFIO's.
pub(crate) fn in_the_way(roots: &Roots, group: &str) -> Vec<String> {
    let devices = roots.sys.join("kernel/iommu_groups").join(group).join("devices");
    let in_the_way = |name: String| {
        let path = devices.join(&name);
        let driver = link(&path.join("driver"))?;
        let harmless = driver.contains("vfio")
            || path.join("vfio-dev").exists()
            // The kernel does not mind these.
            || matches!(driver.as_str(), "pci-stub" | "pcieport");
        (!harmless).then(|| format!("{name} ({driver})"))
    };
    names(&devices).into_iter().filter_map(in_the_way).collect()
}

/// The last part of where a link leads.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// What a folder holds, sorted; nothing where there is none.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

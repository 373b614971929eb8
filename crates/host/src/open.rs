//! Opening a device, and what goes wrong with it.

mod error;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use abi::errno::Errno;
use abi::group::{API_VERSION, Extension, GroupFlags};

pub use self::error::OpenError;
use crate::about::{About, Missing, Roots, in_the_way};
use crate::device::{Deadlines, Descriptors, Host, errno};
use crate::kernel::{Kernel, Linux, Space};
use crate::launcher::handed_over;
use crate::place::{Place, Target, Way};
use crate::workers::Workers;

/// How a device is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// What people call it in this process; by its place where this is `None`.
    pub name: Option<String>,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// Where the system shows its devices.
    pub roots: Roots,
    /// By cdev: maps by the IOMMU's smallest pages, so that a write makes no more dirty
    /// than one of them. That costs memory for page tables, and misses in the IOMMU's
    /// cache; without it, a write makes as much dirty as happens to lie together, up to
    /// 1 GiB. By group it changes nothing.
    pub small_pages: bool,
}

impl Host {
    /// Opens a device. Nothing of it is changed: no reset, no change of state. (A kernel
    /// may reset a device by itself when it is first opened.)
    ///
    /// An address or a UUID is opened by cdev where the system has that, and else by its
    /// group.
    ///
    /// # Errors
    /// What is missing or in the way; [`OpenError::remedy`] says what to do.
    pub fn open(place: &Place, options: HostOptions) -> Result<Host, OpenError> {
        Host::open_with(Arc::new(Linux), place, options)
    }

    /// Takes over descriptors that somebody privileged opened: a device's, and for a cdev
    /// that is not bound yet the one of `/dev/iommu`.
    ///
    /// One that is bound already, and one without an iommufd, stays as it is: whoever
    /// bound it maps its memory too, and [`dma_map`](control::Transport::dma_map) is
    /// refused with ENOTTY.
    ///
    /// # Errors
    /// When they are not what they should be.
    pub fn from_fds(
        device: OwnedFd,
        iommu: Option<OwnedFd>,
        options: HostOptions,
    ) -> Result<Host, OpenError> {
        Host::from_fds_with(Arc::new(Linux), device, iommu, options)
    }

    pub(crate) fn open_with(
        kernel: Arc<dyn Kernel>,
        place: &Place,
        options: HostOptions,
    ) -> Result<Host, OpenError> {
        if let Target::Launcher(path) = &place.target {
            let (device, iommu) = handed_over(path, options.deadlines.slow)?;
            let name = options.name.or_else(|| Some(place.short()));
            return Host::from_fds_with(
                kernel,
                device,
                iommu,
                HostOptions { name, ..options },
            );
        }
        let about = place.look_up(&options.roots).map_err(|missing| {
            let (device, vfio) = (place.plain(), options.roots.dev.join("vfio"));
            match (missing, &place.target) {
                (_, Target::Group(..)) if !vfio.exists() => {
                    OpenError::NoVfio { path: vfio }
                }
                (Missing::Device(looked), _) => OpenError::NotThere { device, looked },
                (Missing::Choice(devices), _) if devices.is_empty() => {
                    OpenError::NotThere { looked: device.clone().into(), device }
                }
                (Missing::Choice(devices), _) => {
                    OpenError::Which { group: device, devices }
                }
            }
        })?;
        bound(place, &about)?;
        let way = way(place, &about, &options.roots);
        let name = options.name.unwrap_or_else(|| place.short());
        let opening = Opening {
            kernel,
            place: place.clone(),
            about: About { way: Some(way), ..about },
            roots: options.roots,
            small_pages: options.small_pages,
        };
        opened(name, options.deadlines, move || {
            let descriptors = match way {
                Way::Group => opening.by_group()?,
                Way::Cdev => opening.by_cdev()?,
            };
            Ok((opening.about, descriptors))
        })
    }

    pub(crate) fn from_fds_with(
        kernel: Arc<dyn Kernel>,
        device: OwnedFd,
        iommu: Option<OwnedFd>,
        options: HostOptions,
    ) -> Result<Host, OpenError> {
        let name = options.name.unwrap_or_else(|| "handed in".to_owned());
        let about = About::handed_in(&options.roots, device.as_fd());
        opened(name, options.deadlines, move || {
            let handed = |operation, source| OpenError::Handed { operation, source };
            let space = match (kernel.info(device.as_fd()), iommu) {
                (Ok(_), _) => None,
                (Err(error), Some(iommu)) if errno(&error) == Errno::EINVAL => {
                    let id = kernel.bind(device.as_fd(), iommu.as_fd());
                    let id = id.map_err(|error| {
                        handed("bind the device to the iommufd", error)
                    })?;
                    let space = kernel
                        .ioas(iommu)
                        .map_err(|error| handed("make an address space", error))?;
                    attach(&*kernel, device.as_fd(), id, &*space, options.small_pages)
                        .map_err(|error| handed("attach the device", error))?;
                    Some(Arc::from(space))
                }
                (Err(error), _) => return Err(handed("ask for the device", error)),
            };
            Ok((about, Descriptors { space, device, group: None, kernel }))
        })
    }
}

/// Attaches a device, by its id in the iommufd, to an address space: through a page table
/// of its own where its IOMMU tracks dirty pages, since that cannot be had later without
/// mapping everything anew.
fn attach(
    kernel: &dyn Kernel,
    device: BorrowedFd<'_>,
    id: u32,
    space: &dyn Space,
    small_pages: bool,
) -> io::Result<()> {
    if small_pages {
        space.use_small_pages()?;
    }
    // Mediated devices have no IOMMU, older kernels and others no tracking.
    match space.make_page_table(id) {
        Ok(table) => match kernel.attach(device, table) {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, "attached without a page table that tracks");
                space.drop_page_table()?;
            }
        },
        Err(error) => tracing::debug!(%error, "no page table that tracks"),
    }
    space.ioas_id().map_or(Ok(()), |ioas| kernel.attach(device, ioas))
}

/// Opens in a thread that may be given up.
fn opened(
    name: String,
    deadlines: Deadlines,
    open: impl FnOnce() -> Result<(About, Descriptors), OpenError> + Send + 'static,
) -> Result<Host, OpenError> {
    let workers = Workers::new(&name);
    let opened = workers.run("open", deadlines.slow, open);
    let (about, descriptors) =
        opened.map_err(|source| OpenError::Unanswered { source })??;
    tracing::debug!(device = name, ?about, "opened");
    Ok(Host::new(name, about, deadlines, workers, descriptors))
}

/// Whether a driver of VFIO has the device, as far as the system says.
fn by_vfio(about: &About) -> bool {
    about.cdev.is_some()
        || about.mediated
        || about.driver.as_ref().is_some_and(|driver| driver.contains("vfio"))
}

fn bound(place: &Place, about: &About) -> Result<(), OpenError> {
    match place.target {
        Target::Pci(_) if !by_vfio(about) => Err(OpenError::NotBound {
            device: place.plain(),
            driver: about.driver.clone(),
        }),
        _ => Ok(()),
    }
}

fn way(place: &Place, about: &About, roots: &Roots) -> Way {
    match (&place.target, place.way) {
        (Target::Cdev(_), _) => Way::Cdev,
        (Target::Group(..), _) => Way::Group,
        (_, Some(way)) => way,
        _ => {
            let node = |cdev: &String| roots.dev.join("vfio/devices").join(cdev);
            let cdev = about.cdev.as_ref().is_some_and(|cdev| node(cdev).exists());
            match cdev && roots.dev.join("iommu").exists() {
                true => Way::Cdev,
                false => Way::Group,
            }
        }
    }
}

/// One device that is being opened.
struct Opening {
    kernel: Arc<dyn Kernel>,
    place: Place,
    about: About,
    roots: Roots,
    small_pages: bool,
}

impl Opening {
    fn by_group(&self) -> Result<Descriptors, OpenError> {
        let kernel = &self.kernel;
        let path = self.roots.dev.join("vfio/vfio");
        let container = kernel.open(&path).map_err(|error| match errno(&error) {
            Errno::EACCES | Errno::EPERM => OpenError::Permission { path },
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => OpenError::NoVfio { path },
            _ => self.failed("open the container", error),
        })?;
        let version = kernel.api_version(container.as_fd());
        match version {
            Ok(API_VERSION) => {}
            Ok(_) => return Err(self.old("use the container")),
            Err(error) => return Err(self.failed("ask the container", error)),
        }
        let type1 = Extension::TYPE1V2_IOMMU.0;
        if kernel.check_extension(container.as_fd(), type1).unwrap_or(0) <= 0 {
            return Err(OpenError::NoType1);
        }
        let group = self.open_group()?;
        let status = kernel
            .group_status(group.as_fd())
            .map_err(|error| self.failed("ask the group", error))?;
        if !GroupFlags::from_bits_retain(status.flags).contains(GroupFlags::VIABLE) {
            let group = self.about.group.clone().unwrap_or_default();
            let others = in_the_way(&self.roots, &group);
            return Err(OpenError::NotViable { group, others });
        }
        kernel
            .join(group.as_fd(), container.as_fd())
            .map_err(|error| self.failed("put the group into a container", error))?;
        kernel.set_iommu(container.as_fd(), type1).map_err(|error| {
            match errno(&error) {
                Errno::ENODEV => OpenError::NoType1,
                Errno::EPERM => self.not_isolated(),
                _ => self.failed("have the container use type1", error),
            }
        })?;
        let name = self.about.name.clone().unwrap_or_else(|| self.place.plain());
        let not_bound = || OpenError::NotBound {
            device: name.clone(),
            driver: self.about.driver.clone(),
        };
        let text = CString::new(name.clone()).map_err(|_| not_bound())?;
        let device =
            kernel.device(group.as_fd(), &text).map_err(|error| match errno(&error) {
                Errno::ENODEV => not_bound(),
                Errno::EBUSY => {
                    OpenError::Busy { path: name.as_str().into(), way: Way::Group }
                }
                _ => self.failed("open the device", error),
            })?;
        let space = Some(Arc::from(kernel.container(container)));
        Ok(Descriptors { space, device, group: Some(group), kernel: Arc::clone(kernel) })
    }

    fn open_group(&self) -> Result<OwnedFd, OpenError> {
        let path = match (&self.place.target, &self.about.group) {
            (Target::Group(path, _), _) => path.clone(),
            (_, Some(group)) => self.roots.dev.join("vfio").join(group),
            (_, None) => {
                return Err(OpenError::NoGroup { device: self.place.plain() });
            }
        };
        self.kernel.open(&path).map_err(|error| match errno(&error) {
            Errno::EACCES | Errno::EPERM => OpenError::Permission { path },
            Errno::EBUSY => OpenError::Busy { path, way: Way::Group },
            Errno::ENOENT if by_vfio(&self.about) => {
                OpenError::NoGroupNode { path, device: self.place.plain() }
            }
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => OpenError::NotBound {
                device: self.place.plain(),
                driver: self.about.driver.clone(),
            },
            _ => self.failed("open the group", error),
        })
    }

    fn by_cdev(&self) -> Result<Descriptors, OpenError> {
        let kernel = &self.kernel;
        let path = match (&self.place.target, &self.about.cdev) {
            (Target::Cdev(path), _) => path.clone(),
            (_, Some(cdev)) => self.roots.dev.join("vfio/devices").join(cdev),
            (_, None) => self.roots.dev.join("vfio/devices"),
        };
        let device = kernel.open(&path).map_err(|error| match errno(&error) {
            Errno::EACCES | Errno::EPERM => OpenError::Permission { path: path.clone() },
            Errno::EBUSY => OpenError::Busy { path: path.clone(), way: Way::Cdev },
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::EISDIR => {
                // Without the folder's parent there is nothing of VFIO at all.
                let vfio = self.roots.dev.join("vfio");
                match vfio.exists() {
                    true => OpenError::NoCdev { path: path.clone() },
                    false => OpenError::NoVfio { path: vfio },
                }
            }
            _ => self.failed("open the device", error),
        })?;
        let node = self.roots.dev.join("iommu");
        let iommu = kernel.open(&node).map_err(|error| match errno(&error) {
            Errno::EACCES | Errno::EPERM => OpenError::Permission { path: node.clone() },
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
                OpenError::NoIommufd { path: node.clone() }
            }
            _ => self.failed("open the iommufd", error),
        })?;
        let id = kernel.bind(device.as_fd(), iommu.as_fd()).map_err(|error| {
            match errno(&error) {
                // A second file of a node can be opened, and this is what it cannot do.
                Errno::EBUSY | Errno::EINVAL => OpenError::Busy { path, way: Way::Cdev },
                Errno::EPERM => self.not_isolated(),
                Errno::ENOTTY => self.old("bind a device to an iommufd"),
                _ => self.failed("bind the device to the iommufd", error),
            }
        })?;
        let space = kernel
            .ioas(iommu)
            .map_err(|error| self.failed("make an address space", error))?;
        attach(&**kernel, device.as_fd(), id, &*space, self.small_pages)
            .map_err(|error| self.failed("attach the device", error))?;
        let space = Some(Arc::from(space));
        Ok(Descriptors { space, device, group: None, kernel: Arc::clone(kernel) })
    }

    /// The DMA of its group is another's, or its interrupts reach everybody.
    fn not_isolated(&self) -> OpenError {
        let group = self.about.group.clone().unwrap_or_default();
        let others = in_the_way(&self.roots, &group);
        match others.is_empty() {
            true => OpenError::NotIsolated { device: self.place.plain() },
            false => OpenError::NotViable { group, others },
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> OpenError {
        OpenError::Call { device: self.place.plain(), operation, source }
    }

    fn old(&self, operation: &'static str) -> OpenError {
        OpenError::OldKernel { operation, kernel: self.about.kernel.clone() }
    }
}

//! Finding a device and opening it, and everything that a user will meet.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use abi::errno::Errno;
use control::{ProbeError, Transport, open_any};
use port::{Device, Model};
use tempfile::TempDir;

use super::fake::{Fake, SOON, options};
use crate::{Deadlines, Host, HostOptions, OpenError, Place, Roots, Way};

const PCI: &str = "0000:01:00.3";
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A system with a virtual function in group 7, beside a network card, and a mediated
/// device in group 9.
struct System {
    folder: TempDir,
    fake: Fake,
}

impl System {
    fn new() -> System {
        let system = System { folder: tempfile::tempdir().unwrap(), fake: Fake::new() };
        system.device("pci", PCI, "mlx5_vfio_pci", "7", Some("vfio3"));
        system.device("pci", "0000:01:00.0", "mlx5_core", "7", None);
        system.device("mdev", UUID, "mtty", "9", Some("vfio4"));
        system.link(&format!("sys/devices/{UUID}/mdev_type"), "sys/types/mtty-2");
        system.folder("dev/vfio");
        system
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path)
    }

    fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        let from = self.path(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        symlink(self.path(to), from).unwrap();
    }

    fn device(
        &self,
        bus: &str,
        name: &str,
        driver: &str,
        group: &str,
        vfio: Option<&str>,
    ) {
        let device = format!("sys/devices/{name}");
        self.folder(&device);
        self.link(&format!("sys/bus/{bus}/devices/{name}"), &device);
        self.link(&format!("{device}/subsystem"), &format!("sys/bus/{bus}"));
        if !driver.is_empty() {
            let driver = format!("sys/bus/{bus}/drivers/{driver}");
            self.folder(&driver);
            self.link(&format!("{device}/driver"), &driver);
        }
        if !group.is_empty() {
            let folder = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{folder}/devices/{name}"), &device);
            self.link(&format!("{device}/iommu_group"), &folder);
        }
        if let Some(vfio) = vfio {
            self.folder(&format!("{device}/vfio-dev/{vfio}"));
            self.link(&format!("sys/class/vfio-dev/{vfio}/device"), &device);
        }
    }

    fn roots(&self) -> Roots {
        Roots { dev: self.path("dev"), sys: self.path("sys"), proc: self.path("proc") }
    }

    fn open(&self, place: &str) -> Result<Host, OpenError> {
        let place: Place = place.parse().unwrap();
        let options = HostOptions { roots: self.roots(), name: None, ..options() };
        Host::open_with(Arc::new(self.fake.clone()), &place, options)
    }

    /// What it fails with, told to the user.
    fn fails(&self, place: &str) -> (OpenError, String) {
        let error = self.open(place).map(drop).unwrap_err();
        let told = format!("{error}; {}", error.remedy());
        (error, told)
    }

    fn with_cdevs(&self) {
        self.folder("dev/vfio/devices");
        for node in ["vfio/devices/vfio3", "vfio/devices/vfio4", "iommu"] {
            fs::write(self.path("dev").join(node), "").unwrap();
        }
    }
}

#[test]
fn an_address_or_a_uuid_is_opened_by_its_group_where_there_is_no_other_way() {
    for (place, group) in [(PCI, "7"), (UUID, "9")] {
        let system = System::new();
        let host = system.open(place).unwrap();
        assert_eq!(host.name(), place);
        let about = host.about();
        assert_eq!(about.way, Some(Way::Group));
        assert_eq!(about.group.as_deref(), Some(group));
        assert_eq!(about.name.as_deref(), Some(place));
        assert_eq!(about.mediated, place == UUID);
        assert_eq!(about.forgets().is_some(), place == PCI);
        assert!(system.fake.was_asked(&format!("device {place}")));
        assert!(system.fake.was_asked("set_iommu 3"), "the only one that tracks");
        let device = open_any(Arc::new(host)).unwrap();
        // Streams of two ports do not fit one, which the ids do not tell.
        let model = Model { name: "uart-2".to_owned(), data_version: 1 };
        assert_eq!(device.identity().model, (place == UUID).then_some(model));
        drop(device);
        assert!(!system.fake.was_asked("reset"));
        assert!(!system.fake.was_asked("set_state"));
        assert!(system.fake.closed("device") && system.fake.closed("node"));
    }
}

#[test]
fn where_there_are_nodes_and_an_iommufd_the_group_is_left_alone() {
    let system = System::new();
    system.with_cdevs();
    for place in [PCI, "/dev/vfio/devices/vfio3"] {
        let host = system.open(place).unwrap();
        assert_eq!(host.about().way, Some(Way::Cdev));
        assert_eq!(host.about().driver.as_deref(), Some("mlx5_vfio_pci"));
        assert!(host.about().forgets().is_some());
    }
    let host = system.open("/dev/vfio/devices/vfio4").unwrap();
    assert!(host.about().mediated && host.about().forgets().is_none());
    assert!(system.fake.was_asked("bind") && system.fake.was_asked("attach 2"));
    assert!(!system.fake.was_asked("group_status"));
    let host = system.open(&format!("{PCI}?by=group")).unwrap();
    assert_eq!(host.about().way, Some(Way::Group));
    // Without an iommufd the node is of no use.
    fs::remove_file(system.path("dev/iommu")).unwrap();
    assert_eq!(system.open(PCI).unwrap().about().way, Some(Way::Group));
}

#[test]
fn a_machine_without_vfio_is_told_what_to_load() {
    let system = System::new();
    system.fake.script().fails.insert("vfio", Errno::ENOENT);
    let (error, told) = system.fails(PCI);
    assert!(matches!(error, OpenError::NoVfio { .. }), "{told}");
    assert!(told.contains("modprobe"), "{told}");
    fs::remove_dir(system.path("dev/vfio")).unwrap();
    system.fake.script().fails.insert("vfio0", Errno::ENOENT);
    for place in ["/dev/vfio/devices/vfio0", "/dev/vfio/1", "/dev/vfio/1?device=uuid"] {
        let (error, told) = system.fails(place);
        assert!(matches!(error, OpenError::NoVfio { .. }), "{told}");
    }
}

#[test]
fn a_user_without_the_right_is_told_of_which_node() {
    for (node, place) in [
        ("vfio", PCI),
        ("7", PCI),
        ("vfio3", "0000:01:00.3?by=cdev"),
        ("iommu", "0000:01:00.3?by=cdev"),
    ] {
        let system = System::new();
        system.fake.script().fails.insert(node, Errno::EACCES);
        let (error, told) = system.fails(place);
        assert!(matches!(error, OpenError::Permission { .. }), "{told}");
        assert!(told.contains(&format!("/{node}; ")) && told.contains("chown"), "{told}");
    }
}

#[test]
fn a_device_that_is_not_there_is_told_by_where_it_was_looked_for() {
    let system = System::new();
    for place in ["0000:02:00.0", "00000000-0000-0000-0000-000000000000", "/dev/vfio/88"]
    {
        let (error, told) = system.fails(place);
        assert!(matches!(error, OpenError::NotThere { .. }), "{told}");
        assert!(told.contains("mdev/devices"), "{told}");
    }
}

#[test]
fn a_device_with_a_driver_of_the_hosts_is_told_by_its_driver() {
    let system = System::new();
    let (error, told) = system.fails("0000:01:00.0");
    assert!(matches!(error, OpenError::NotBound { .. }), "{told}");
    assert!(told.contains("but to mlx5_core") && told.contains("driver_override"));
    system.device("pci", "0000:03:00.0", "", "8", None);
    let (_, told) = system.fails("0000:03:00.0");
    assert!(told.contains("but to none"), "{told}");
    // Where sysfs does not know, the kernel does.
    system.fake.script().fails.insert("device", Errno::ENODEV);
    let (error, told) = system.fails(PCI);
    assert!(matches!(error, OpenError::NotBound { .. }), "{told}");
}

#[test]
fn a_device_without_a_group_is_told_of_the_iommu() {
    let system = System::new();
    system.device("pci", "0000:03:00.0", "vfio-pci", "", Some("vfio5"));
    let (error, told) = system.fails("0000:03:00.0");
    assert!(matches!(error, OpenError::NoGroup { .. }), "{told}");
    assert!(told.contains("intel_iommu=on"), "{told}");
}

#[test]
fn a_group_that_is_not_viable_names_who_is_in_the_way() {
    let system = System::new();
    system.fake.script().group_flags = 0;
    let (error, told) = system.fails(PCI);
    assert!(matches!(error, OpenError::NotViable { .. }), "{told}");
    assert!(told.contains("0000:01:00.0 (mlx5_core)"), "{told}");
    assert!(!told.contains(&format!("{PCI} (")), "it is in nobody's way: {told}");
}

/// By cdev the kernel says no more than EPERM.
#[test]
fn a_device_that_is_not_isolated_is_told_by_who_is_in_the_way_or_what_to_enable() {
    let system = System::new();
    system.with_cdevs();
    system.fake.script().fails.insert("bind", Errno::EPERM);
    let (_, told) = system.fails(PCI);
    assert!(told.contains("0000:01:00.0 (mlx5_core)"), "{told}");
    let (error, told) = system.fails(UUID);
    assert!(matches!(error, OpenError::NotIsolated { .. }), "{told}");
    assert!(told.contains("interrupt remapping"), "{told}");
    system.fake.script().fails.insert("set_iommu", Errno::EPERM);
    let (_, told) = system.fails(&format!("{UUID}?by=group"));
    assert!(told.contains("interrupt remapping"), "{told}");
}

/// A container that was given /dev/vfio/vfio alone.
#[test]
fn a_device_whose_group_is_not_here_is_not_told_to_have_the_wrong_driver() {
    let system = System::new();
    system.fake.script().fails.insert("7", Errno::ENOENT);
    let (_, told) = system.fails(PCI);
    assert!(told.contains("dev/vfio/7, the group of 0000:01:00.3"), "{told}");
    assert!(told.contains("give this container the node"), "{told}");
}

#[test]
fn a_group_of_several_devices_asks_which() {
    let system = System::new();
    let (error, told) = system.fails("/dev/vfio/7");
    assert!(matches!(error, OpenError::Which { .. }), "{told}");
    assert!(told.contains(PCI) && told.contains("?device=NAME"), "{told}");
    let (error, told) = system.fails("/dev/vfio/7?device=0000:01:00.9");
    assert!(matches!(error, OpenError::Which { .. }), "{told}");
    system.open(&format!("/dev/vfio/7?device={PCI}")).unwrap();
    let host = system.open("/dev/vfio/9").unwrap();
    assert!(host.about().mediated, "the only one is meant");
}

/// Another process has it, or it is open the other way.
#[test]
fn a_device_that_somebody_has_is_told_to_be_busy_whichever_way() {
    let system = System::new();
    system.fake.script().fails.insert("7", Errno::EBUSY);
    let (error, told) = system.fails(PCI);
    assert!(matches!(error, OpenError::Busy { way: Way::Group, .. }), "{told}");
    assert!(told.contains("open by cdev"), "{told}");
    system.fake.script().fails.clear();
    // Its group is open; or another file of its node is bound (RAN on 7.3.4).
    for errno in [Errno::EBUSY, Errno::EINVAL] {
        system.fake.script().fails.insert("bind", errno);
        let (error, told) = system.fails("0000:01:00.3?by=cdev");
        assert!(matches!(error, OpenError::Busy { way: Way::Cdev, .. }), "{told}");
        assert!(told.contains("its group is open"), "{told}");
    }
}

#[test]
fn a_kernel_without_cdev_or_iommufd_says_which_way_is_left() {
    let system = System::new();
    system.fake.script().fails.insert("vfio3", Errno::ENOENT);
    let (error, told) = system.fails("0000:01:00.3?by=cdev");
    assert!(matches!(error, OpenError::NoCdev { .. }), "{told}");
    assert!(told.contains("CONFIG_VFIO_DEVICE_CDEV"), "{told}");
    system.fake.script().fails.clear();
    system.fake.script().fails.insert("iommu", Errno::ENOENT);
    let (error, told) = system.fails("0000:01:00.3?by=cdev");
    assert!(matches!(error, OpenError::NoIommufd { .. }), "{told}");
    assert!(told.contains("?by=group"), "{told}");
}

#[test]
fn a_kernel_that_is_too_old_is_told_so_with_its_release() {
    let system = System::new();
    system.folder("proc/sys/kernel");
    fs::write(system.path("proc/sys/kernel/osrelease"), "5.10.0-28-amd64\n").unwrap();
    let host = system.open(PCI).unwrap();
    assert_eq!(host.about().kernel_older_than(5, 18), Some(true));
    assert_eq!(host.about().kernel_older_than(5, 10), Some(false));
    assert!(host.about().without_migration().contains("came with 5.18"));
    system.fake.script().fails.insert("bind", Errno::ENOTTY);
    let (error, told) = system.fails("0000:01:00.3?by=cdev");
    assert!(matches!(error, OpenError::OldKernel { .. }), "{told}");
    assert!(told.contains("5.10.0-28-amd64") && told.contains("5.18"), "{told}");
    system.fake.script().fails.clear();
    system.fake.script().fails.insert("check_extension", Errno::EINVAL);
    let (error, told) = system.fails(PCI);
    assert!(matches!(error, OpenError::NoType1), "{told}");
    assert!(told.contains("vfio_iommu_type1"), "{told}");
}

#[test]
fn a_driver_without_migration_is_told_apart_from_one_that_should_have_it() {
    let system = System::new();
    system.fake.script().capabilities = 0;
    let host = system.open(PCI).unwrap();
    let told = host.about().without_migration();
    assert!(told.contains("mlx5_vfio_pci cannot migrate this device"), "{told}");
    let refused = open_any(Arc::new(host)).unwrap_err();
    assert!(matches!(refused, ProbeError::NotMigratable { .. }), "{refused}");
    assert!(!system.fake.was_asked("reset"));

    system.device("pci", "0000:05:00.0", "vfio-pci", "12", Some("vfio6"));
    let host = system.open("0000:05:00.0").unwrap();
    let told = host.about().without_migration();
    assert!(told.contains("bind the driver that the device's vendor has"), "{told}");
}

/// The driver opens, and waits for its firmware.
#[test]
fn a_driver_that_hangs_while_it_opens_does_not_hang_the_command() {
    let system = System::new();
    let _go_on = system.fake.hang("device");
    let place: Place = PCI.parse().unwrap();
    let deadlines = Deadlines { slow: Duration::from_millis(50), ..Default::default() };
    let options =
        HostOptions { roots: system.roots(), deadlines, ..HostOptions::default() };
    let error = Host::open_with(Arc::new(system.fake.clone()), &place, options);
    assert!(matches!(error, Err(OpenError::Unanswered { .. })));
}

#[test]
fn any_other_answer_is_told_with_its_errno() {
    for call in ["api_version", "group_status", "join", "set_iommu", "device"] {
        let system = System::new();
        system.fake.script().fails.insert(call, Errno::ENOMEM);
        let error = system.open(PCI).map(drop).unwrap_err();
        let OpenError::Call { source, .. } = &error else { panic!("{call}: {error}") };
        assert_eq!(source.raw_os_error(), Some(Errno::ENOMEM.0));
        assert!(system.fake.closed("node"), "{call}: nothing stays open");
    }
}

/// Newer kernels say so.
#[test]
fn a_device_that_was_handed_in_is_known_by_what_its_descriptor_says() {
    let system = System::new();
    let (device, _end) = UnixStream::pair().unwrap();
    system.folder("proc/self/fdinfo");
    let note = format!("flags: 02\nvfio-device-syspath: /sys/devices/{UUID}\n");
    let fd = device.as_raw_fd().to_string();
    fs::write(system.path("proc/self/fdinfo").join(fd), note).unwrap();
    let options = HostOptions { roots: system.roots(), ..options() };
    let kernel = Arc::new(system.fake.clone());
    let host = Host::from_fds_with(kernel, device.into(), None, options).unwrap();
    assert_eq!(host.about().name.as_deref(), Some(UUID));
    assert_eq!(host.about().model().map(|model| model.name).as_deref(), Some("uart-2"));
    assert_eq!(host.about().way, None);
}

/// Sends `fds` with `bytes` to the first who connects.
fn launch(path: &Path, bytes: &'static [u8], fds: usize) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        let fds: Vec<_> = (0..fds).map(|_| one.as_fd()).collect();
        if !bytes.is_empty() {
            let parts = [std::io::IoSlice::new(bytes)];
            sys::socket::send_with_fds(&socket, &parts, &fds, false).unwrap();
        }
    })
}

#[test]
fn a_launcher_hands_a_device_in_and_whoever_runs_needs_no_rights() {
    let system = System::new();
    let path = system.path("launcher.sock");
    let place = format!("unix:{}", path.display());
    // Bound and attached already, or by its group.
    let launcher = launch(&path, &[0], 1);
    let host = system.open(&place).unwrap();
    launcher.join().unwrap();
    assert_eq!((host.name(), host.about().way), ("launcher", None));
    assert!(!system.fake.was_asked("bind") && !system.fake.was_asked("open"));
    // Not bound yet: it answers to nothing.
    fs::remove_file(&path).unwrap();
    system.fake.script().fails.insert("info", Errno::EINVAL);
    let launcher = launch(&path, &[0], 2);
    let host = system.open(&place).unwrap();
    launcher.join().unwrap();
    assert!(system.fake.was_asked("bind") && system.fake.was_asked("attach 2"));
    host.device_info().unwrap();
    // Not bound, and nothing to bind it to.
    fs::remove_file(&path).unwrap();
    system.fake.script().fails.insert("info", Errno::EINVAL);
    let launcher = launch(&path, &[0], 1);
    let (error, told) = system.fails(&place);
    launcher.join().unwrap();
    assert!(matches!(error, OpenError::Handed { .. }), "{told}");
}

#[test]
fn a_launcher_that_takes_no_connection_does_not_hang_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("launcher");
    let _listener = sys::socket::Listener::bind(&path).unwrap();
    // Until the next one would have to wait: a listener of ours has 16 wait for their
    // turn, and the kernel takes one more.
    let (tell, told) = std::sync::mpsc::channel();
    let there = path.clone();
    std::thread::spawn(move || {
        let waiting: Vec<_> =
            (0..17).map(|_| sys::socket::connect(&there).unwrap()).collect();
        tell.send(waiting).unwrap();
    });
    let _waiting = told.recv_timeout(SOON).unwrap();
    let place: Place = format!("unix:{}", path.display()).parse().unwrap();
    let deadlines = Deadlines { slow: Duration::from_millis(20), ..Default::default() };
    let options = HostOptions { deadlines, ..options() };
    let error = Host::open(&place, options).map(drop).unwrap_err();
    assert!(error.to_string().contains("it takes no connection"), "{error}");
}

#[test]
fn a_launcher_that_hands_nothing_or_too_much_in_is_told_what_to_send() {
    for (bytes, fds) in [(&b""[..], 0), (&b"\0"[..], 0), (&b"\0"[..], 3)] {
        let system = System::new();
        let path = system.path("launcher.sock");
        let launcher = launch(&path, bytes, fds);
        let (error, told) = system.fails(&format!("unix:{}", path.display()));
        launcher.join().unwrap();
        assert!(matches!(error, OpenError::Launcher { .. }), "{told}");
        assert!(told.contains("one message"), "{told}");
    }
    let system = System::new();
    let (error, _) = system.fails("unix:/nonexistent/launcher.sock");
    assert!(matches!(error, OpenError::Launcher { .. }));
}

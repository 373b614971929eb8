//! Debian's kernel, and mtty built for it.
//!
//! The sample is not part of Debian's packages of modules, so it is built of the source
//! of the same version against the headers, as any module outside the tree.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Booted, needs};
use crate::machine::apt::{Apt, Suites};
use crate::machine::kernel::{Kernel, numbers};
use crate::machine::{failed, make_folder, remove};
use crate::{Failure, Outcome, process};

/// The series that Debian 12 has as security update and Debian 13 as its own kernel.
const SERIES: &str = "6.12";

/// What the guest loads, in this order, before mtty.
const MODULES: [&str; 6] = [
    "virt/lib/irqbypass",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
    "drivers/vfio/mdev/mdev",
];

/// Headers that programs are compiled with, by their places in the source.
pub(super) const HEADERS: [&str; 3] = ["vfio.h", "iommufd.h", "pci_regs.h"];
/// Where they are in it.
pub(super) const UAPI: &str = "include/uapi/linux";
/// In the folder of mtty: the release that it was built for. It comes last.
const STAMP: &str = "built";
/// The sample, and where it is in the source.
const SAMPLE: &str = "samples/vfio-mdev/mtty.c";

/// Finds all of it in the cache, or makes what is missing.
///
/// # Errors
///
/// When it cannot be fetched or does not build.
pub(super) fn find(cache: &Path) -> Result<Booted, Failure> {
    let (tree, mtty) = (cache.join("debian"), cache.join("mtty"));
    let mut kernel = Kernel::in_tree(&tree, &MODULES);
    if kernel.is_err() {
        // First: one for another kernel is not to be found beside the new one.
        remove(&mtty)?;
        fetch(cache, &tree)?;
        kernel = Kernel::in_tree(&tree, &MODULES);
    }
    let mut kernel = kernel.map_err(|lacks| {
        Failure::Failed(format!("Debian's kernel has no {lacks}: {}", tree.display()))
    })?;
    let built = fs::read_to_string(mtty.join(STAMP)).ok();
    if built.as_deref() != Some(kernel.release.as_str()) {
        build(&tree, &kernel.release, &mtty)?;
    }
    kernel.modules.push(("modules/mtty.ko".to_owned(), mtty.join("mtty.ko")));
    Ok(Booted { kernel, headers: mtty.join("include") })
}

/// Unpacks kernel, headers and source of one version.
fn fetch(cache: &Path, tree: &Path) -> Outcome {
    println!("== fetch: kernel {SERIES}, headers and source into {}", cache.display());
    let start = std::time::Instant::now();
    let apt = Apt::new(&cache.join("apt"), Suites::Own)?;
    let names = apt.names(&format!("linux-headers-{SERIES}."))?;
    let release = newest(&names).ok_or_else(|| {
        Failure::Failed(format!(
            "the package sources of this machine have no kernel of the {SERIES} series: \
             Debian 12 has it among its security updates, Debian 13 in its main suite"
        ))
    })?;
    let image = format!("linux-image-{release}-amd64");
    let unsigned = format!("{image}-unsigned");
    let signed = !apt.names(&image)?.iter().all(|name| *name != image);
    let version = apt.field(&format!("linux-headers-{release}-amd64"), "Version")?;
    let packages = [
        if signed { image } else { unsigned },
        format!("linux-headers-{release}-amd64"),
        format!("linux-headers-{release}-common"),
        format!("linux-kbuild-{release}"),
        format!("linux-source-{SERIES}={version}"),
    ];
    apt.packages(&packages, tree)?;
    println!("== fetch: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The newest release that has headers of the plain flavour: the others have no mediated
/// devices.
fn newest(names: &[String]) -> Option<&str> {
    let releases = names.iter().filter_map(|name| {
        let release = name.strip_prefix("linux-headers-")?.strip_suffix("-amd64")?;
        let flavour = ["-cloud", "-rt"].iter().any(|flavour| release.ends_with(flavour));
        (!flavour).then_some(release)
    });
    releases.max_by_key(|release| numbers(release))
}

/// Builds mtty.ko, and puts the headers of the interface beside it.
fn build(tree: &Path, release: &str, into: &Path) -> Outcome {
    let headers = tree.join("usr/src").join(format!("linux-headers-{release}"));
    let compiler = compiler(&headers)?;
    needs::programs(&[("make", "make"), (&compiler, &compiler), ("xz", "xz-utils")])?;
    remove(into)?;
    make_folder(into)?;
    unpack(&tree.join(format!("usr/src/linux-source-{SERIES}.tar.xz")), into)?;
    relocate(&headers, tree)?;
    let makefile = into.join("Makefile");
    fs::write(&makefile, "obj-m += mtty.o\n")
        .map_err(|error| failed("write", &makefile, &error))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&headers).arg(format!("M={}", into.display()));
    // Without it the tool that writes type information would be needed, too.
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "--silent", "modules"]);
    process::step("mtty.ko", &mut make)?;
    // Nothing of what a killed run leaves here is taken for whole.
    let stamp = into.join(STAMP);
    fs::write(&stamp, release).map_err(|error| failed("write", &stamp, &error))
}

/// Takes the sample and the headers out of the source.
fn unpack(source: &Path, into: &Path) -> Outcome {
    let top = format!("linux-source-{SERIES}");
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(source).arg("-C").arg(into).arg("--strip-components=1");
    tar.arg(format!("{top}/{SAMPLE}"));
    for name in HEADERS {
        tar.arg(format!("{top}/{UAPI}/{name}"));
    }
    process::output(&mut tar)?;
    keep(into, into)?;
    let (from, to) = (into.join(SAMPLE), into.join("mtty.c"));
    fs::rename(&from, &to).map_err(|error| failed("move", &from, &error))
}

/// Puts the headers of a source where the C compiler looks for them.
pub(super) fn keep(source: &Path, into: &Path) -> Outcome {
    let folder = into.join("include/linux");
    make_folder(&folder)?;
    for name in HEADERS {
        let from = source.join(UAPI).join(name);
        fs::copy(&from, folder.join(name))
            .map_err(|error| failed("copy", &from, &error))?;
    }
    Ok(())
}

/// The compiler that the headers ask for.
fn compiler(headers: &Path) -> Result<String, Failure> {
    let path = headers.join(".kernelvariables");
    let text =
        fs::read_to_string(&path).map_err(|error| failed("read", &path, &error))?;
    // `override CROSS_COMPILE...`, `override CC = $(CROSS_COMPILE)gcc-12`
    text.split_whitespace()
        .find_map(|word| word.rsplit(')').next().filter(|word| word.starts_with("gcc-")))
        .map(str::to_owned)
        .ok_or_else(|| Failure::Failed(format!("{} names no compiler", path.display())))
}

/// The headers name each other by the places where they would have been installed, or
/// where they were the last time.
fn relocate(headers: &Path, tree: &Path) -> Outcome {
    const INSTALLED: &str = "/usr/src/";
    let path = headers.join("Makefile");
    let text =
        fs::read_to_string(&path).map_err(|error| failed("read", &path, &error))?;
    let mut moved = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(INSTALLED) {
        let before = &rest[..at];
        let word = before.rfind(char::is_whitespace).map_or(0, |space| space + 1);
        moved.push_str(&before[..word]);
        moved.push_str(&tree.display().to_string());
        moved.push_str(INSTALLED);
        rest = &rest[at + INSTALLED.len()..];
    }
    moved.push_str(rest);
    // Whoever is killed over it leaves the old one.
    let fresh = headers.join("Makefile.fresh");
    fs::write(&fresh, moved).map_err(|error| failed("write", &fresh, &error))?;
    fs::rename(&fresh, &path).map_err(|error| failed("write", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::{newest, relocate};

    #[test]
    fn headers_that_were_moved_name_their_new_place() {
        let folder = tempfile::tempdir().unwrap();
        let headers = folder.path().join("usr/src/linux-headers-x");
        std::fs::create_dir_all(&headers).unwrap();
        let makefile = headers.join("Makefile");
        std::fs::write(&makefile, "include /usr/src/linux-headers-common/M\n").unwrap();
        for tree in ["/first/tree", "/second"] {
            relocate(&headers, std::path::Path::new(tree)).unwrap();
            let text = std::fs::read_to_string(&makefile).unwrap();
            assert_eq!(text, format!("include {tree}/usr/src/linux-headers-common/M\n"));
        }
    }

    #[test]
    fn kernel_without_mediated_devices_is_not_taken() {
        let names = [
            "linux-headers-6.12-amd64",
            "linux-headers-6.12.107+deb12-amd64",
            "linux-headers-6.12.99+deb12-amd64",
            "linux-headers-6.12.117+deb12-cloud-amd64",
            "linux-headers-6.12.117+deb12-rt-amd64",
            "linux-headers-6.12.117+deb12-common",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names), Some("6.12.107+deb12"));
        assert_eq!(newest(&names[4..]), None);
    }
}

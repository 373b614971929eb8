//! A kernel for the guest, installed or unpacked.

use std::fs;
use std::path::{Path, PathBuf};

/// A kernel for the guest.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What it calls itself.
    pub(crate) release: String,
    /// The image.
    pub(crate) image: PathBuf,
    /// Its modules that the guest needs, by their place in the guest.
    pub(crate) modules: Vec<(String, PathBuf)>,
}

impl Kernel {
    /// The newest one below a folder that can be read and has these modules, named by
    /// their places under `kernel/`.
    ///
    /// # Errors
    ///
    /// What it lacks.
    pub(crate) fn in_tree(root: &Path, modules: &[&str]) -> Result<Kernel, String> {
        let names: Vec<_> = modules.iter().map(|place| name(place)).collect();
        let all = format!("{} as modules beside it", names.join(" and "));
        let mut versions: Vec<String> = fs::read_dir(root.join("boot"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .collect();
        versions.sort_by_key(|version| numbers(version));
        versions
            .iter()
            .rev()
            .find_map(|version| Kernel::of_version(root, version, modules))
            .ok_or(all)
    }

    fn of_version(root: &Path, version: &str, modules: &[&str]) -> Option<Kernel> {
        let image = root.join("boot").join(format!("vmlinuz-{version}"));
        fs::File::open(&image).ok()?;
        let libraries = ["usr/lib/modules", "lib/modules"];
        let modules = modules.iter().map(|place| {
            libraries.iter().find_map(|library| {
                let folder = root.join(library).join(version).join("kernel");
                ["ko", "ko.xz", "ko.zst"].iter().find_map(|suffix| {
                    let path = folder.join(format!("{place}.{suffix}"));
                    let file = format!("modules/{}.{suffix}", name(place));
                    path.exists().then_some((file, path))
                })
            })
        });
        let modules = modules.collect::<Option<_>>()?;
        Some(Kernel { release: version.to_owned(), image, modules })
    }
}

/// The name of the module at a place.
fn name(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or(place)
}

/// The numbers of a version, so that 6.12 is newer than 6.2.
pub(crate) fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Kernel, numbers};

    #[test]
    fn newest_kernel_with_all_modules_is_taken() {
        let modules = ["drivers/uio/uio", "drivers/uio/uio_pci_generic"];
        assert!(numbers("6.12.107+deb13-amd64") > numbers("6.2.9-amd64"));
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        };
        let find = || Kernel::in_tree(root.path(), &modules);
        make("boot/vmlinuz-6.12.1-x");
        make("boot/vmlinuz-6.2.9-x");
        make("boot/initrd.img-7.0-x");
        make("usr/lib/modules/6.12.1-x/kernel/drivers/uio/uio.ko.xz");
        assert!(find().unwrap_err().contains("uio_pci_generic"));
        make("lib/modules/6.2.9-x/kernel/drivers/uio/uio.ko");
        make("lib/modules/6.2.9-x/kernel/drivers/uio/uio_pci_generic.ko");
        assert_eq!(find().unwrap().release, "6.2.9-x");
        make("usr/lib/modules/6.12.1-x/kernel/drivers/uio/uio_pci_generic.ko.zst");
        let new = find().unwrap();
        assert!(new.image.ends_with("vmlinuz-6.12.1-x"));
        assert_eq!(new.modules[1].0, "modules/uio_pci_generic.ko.zst");
    }
}

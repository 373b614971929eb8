//! What the test is made of besides ourselves: a QEMU and a kernel, installed or
//! fetched.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetch::Apt;
use crate::{Failure, process};

/// Before this version QEMU's DMA by message is broken: the count in the header has 32
/// bits where the protocol has 64, so data land 4 bytes off.
const QEMU_OLDEST: [u32; 2] = [11, 1];

const PROGRAM: &str = "qemu-system-x86_64";

/// What the guest loads, in `kernel/drivers/uio` of the modules.
const MODULES: [&str; 2] = ["uio", "uio_pci_generic"];

/// A QEMU that can be run.
#[derive(Debug)]
pub(super) struct Qemu {
    /// The words before its arguments.
    words: Vec<String>,
    /// As it says itself.
    pub(super) version: String,
}

/// A kernel for the guest.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The image.
    pub(super) image: PathBuf,
    /// Its modules that the guest needs, by their place in the guest.
    pub(super) modules: Vec<(String, PathBuf)>,
}

/// Finds both, and fetches what is missing where that is wanted.
///
/// # Errors
///
/// What is missing and how to get it, or why it could not be fetched.
pub(super) fn find(cache: &Path, fetch: bool) -> Result<(Qemu, Kernel), Failure> {
    let (at_qemu, at_kernel) = (cache.join("qemu"), cache.join("kernel"));
    let mut qemu = Qemu::installed()
        .or_else(|installed| Qemu::unpacked(&at_qemu).map_err(|_| installed));
    let mut kernel = Kernel::installed()
        .or_else(|installed| Kernel::in_tree(&at_kernel).map_err(|_| installed));
    if fetch && (qemu.is_err() || kernel.is_err()) {
        println!("== fetch: into {}", cache.display());
        let start = std::time::Instant::now();
        let apt = Apt::new(&cache.join("apt"))?;
        if qemu.is_err() {
            apt.qemu(&at_qemu)?;
            qemu = Qemu::unpacked(&at_qemu);
        }
        if kernel.is_err() {
            apt.kernel(&at_kernel)?;
            kernel = Kernel::in_tree(&at_kernel);
        }
        println!("== fetch: {:.1} s", start.elapsed().as_secs_f64());
    }
    match (qemu, kernel) {
        (Ok(qemu), Ok(kernel)) => Ok((qemu, kernel)),
        (qemu, kernel) => {
            let missing: Vec<_> = qemu.err().into_iter().chain(kernel.err()).collect();
            Err(Failure::Failed(format!(
                "{}\nremedy: install it, or let `cargo xtask qemu-test --fetch` unpack \
                 it under {} (about 250 MB; nothing is installed)",
                missing.join("\n"),
                cache.display()
            )))
        }
    }
}

impl Qemu {
    /// The one on the search path.
    fn installed() -> Result<Qemu, String> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&paths).any(|folder| folder.join(PROGRAM).exists());
        if !found {
            return Err(format!("missing: {PROGRAM} {} or newer", oldest()));
        }
        Qemu::new(vec![PROGRAM.to_owned()])
    }

    /// One that was unpacked with its libraries and its loader.
    fn unpacked(root: &Path) -> Result<Qemu, String> {
        let at = |name: &str| root.join(name).display().to_string();
        let mut words = vec![at("usr/lib64/ld-linux-x86-64.so.2")];
        words.extend(["--library-path".to_owned(), at("usr/lib/x86_64-linux-gnu")]);
        words.push(at("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            words.extend(["-L".to_owned(), at(firmware)]);
        }
        Qemu::new(words)
    }

    /// Asks it for its version, and whether that will do.
    fn new(words: Vec<String>) -> Result<Qemu, String> {
        let mut qemu = Qemu { words, version: String::new() };
        let said = process::output(qemu.command().arg("--version"))
            .map_err(|_| format!("{PROGRAM} cannot be run"))?;
        let version =
            version(&said).ok_or_else(|| format!("{PROGRAM} says no version: {said}"))?;
        if version < QEMU_OLDEST {
            return Err(format!(
                "{PROGRAM} is {}.{}, and must be {} or newer: before, vfio-user's DMA \
                 by message puts data 4 bytes off",
                version[0],
                version[1],
                oldest()
            ));
        }
        qemu.version = said.lines().next().unwrap_or_default().to_owned();
        Ok(qemu)
    }

    /// Its command, without arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }
}

fn oldest() -> String {
    format!("{}.{}", QEMU_OLDEST[0], QEMU_OLDEST[1])
}

/// The first two numbers of "QEMU emulator version 11.1.3 (...)".
fn version(said: &str) -> Option<[u32; 2]> {
    let number = said.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut parts = number.split('.');
    Some([parts.next()?.parse().ok()?, parts.next()?.parse().ok()?])
}

impl Kernel {
    /// The newest one of this machine that can be read and has the modules.
    fn installed() -> Result<Kernel, String> {
        Kernel::in_tree(Path::new("/")).map_err(|reason| {
            format!("missing: a kernel for the guest, /boot/vmlinuz-* with {reason}")
        })
    }

    /// The newest one below a folder.
    fn in_tree(root: &Path) -> Result<Kernel, String> {
        let all = format!("{} as modules beside it", MODULES.join(" and "));
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
            .find_map(|version| Kernel::of_version(root, version))
            .ok_or(all)
    }

    fn of_version(root: &Path, version: &str) -> Option<Kernel> {
        let image = root.join("boot").join(format!("vmlinuz-{version}"));
        fs::File::open(&image).ok()?;
        let libraries = ["usr/lib/modules", "lib/modules"];
        let modules = MODULES.iter().map(|name| {
            libraries.iter().find_map(|library| {
                let folder = root.join(library).join(version).join("kernel/drivers/uio");
                ["ko", "ko.xz", "ko.zst"].iter().find_map(|suffix| {
                    let file = format!("{name}.{suffix}");
                    let path = folder.join(&file);
                    path.exists().then(|| (format!("modules/{file}"), path))
                })
            })
        });
        Some(Kernel { modules: modules.collect::<Option<_>>()?, image })
    }
}

/// The numbers of a version, so that 6.12 is newer than 6.2.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Kernel, QEMU_OLDEST, numbers, version};

    #[test]
    fn qemu_with_broken_dma_is_not_taken() {
        let said = |number| format!("QEMU emulator version {number} (Debian 1:x)\nmore");
        for (number, good) in [
            ("11.1.3", true),
            ("11.1", true),
            ("12.0.50", true),
            ("11.0.3", false),
            ("10.2.1", false),
            ("9.9", false),
        ] {
            let found = version(&said(number)).unwrap();
            assert_eq!(found >= QEMU_OLDEST, good, "{number}");
        }
        assert_eq!(version("QEMU emulator"), None);
        assert_eq!(version("version x.y"), None);
    }

    #[test]
    fn newest_kernel_with_all_modules_is_taken() {
        assert!(numbers("6.12.107+deb13-amd64") > numbers("6.2.9-amd64"));
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        };
        make("boot/vmlinuz-6.12.1-x");
        make("boot/vmlinuz-6.2.9-x");
        make("boot/initrd.img-7.0-x");
        make("usr/lib/modules/6.12.1-x/kernel/drivers/uio/uio.ko.xz");
        assert!(Kernel::in_tree(root.path()).unwrap_err().contains("uio_pci_generic"));
        make("lib/modules/6.2.9-x/kernel/drivers/uio/uio.ko");
        make("lib/modules/6.2.9-x/kernel/drivers/uio/uio_pci_generic.ko");
        let old = Kernel::in_tree(root.path()).unwrap();
        assert!(old.image.ends_with("vmlinuz-6.2.9-x"));
        make("usr/lib/modules/6.12.1-x/kernel/drivers/uio/uio_pci_generic.ko.zst");
        let new = Kernel::in_tree(root.path()).unwrap();
        assert!(new.image.ends_with("vmlinuz-6.12.1-x"));
        assert_eq!(new.modules[1].0, "modules/uio_pci_generic.ko.zst");
    }
}

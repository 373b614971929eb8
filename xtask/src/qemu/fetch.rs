//! Gets what is missing, by package name, into `target/`: nothing is installed.
//!
//! apt works on folders of its own here: an empty status file makes it find every
//! library that a program needs, and the lists of packages are those of newer suites of
//! the machine's own archive. The packages are unpacked, never configured; QEMU is run
//! through the loader that came with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::{Origin, SUITES};
use crate::{Failure, Outcome, process};

/// The package of QEMU.
const QEMU: &str = "qemu-system-x86";
/// The package that depends on the newest kernel for virtual machines, the smallest one.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Fetches packages into a folder.
pub(super) struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Reads the lists of the newer suites.
    ///
    /// # Errors
    ///
    /// When the machine has no archive to get them from, or that has no such suites.
    pub(super) fn new(folder: &Path) -> Result<Apt, Failure> {
        let origin = Origin::find(Path::new("/etc/apt")).ok_or_else(|| {
            Failure::failed(
                "there is nothing to fetch from: no source with packages of `main` in \
                 /etc/apt/sources.list or /etc/apt/sources.list.d",
            )
        })?;
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            make_folder(&folder.join(part))?;
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| failed("write", &path, &error))
        };
        write("sources/newer.sources", &origin.paragraph())?;
        write("status", "")?;
        let at = |name: &str| folder.join(name).display().to_string();
        let options = [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={}", at("sources")),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            // Nobody else has these folders: no other user, no lock.
            "APT::Sandbox::User=".to_owned(),
            "Debug::NoLocking=1".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            // Only the packages, not their descriptions in other tongues.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // A server that does not answer is not waited for.
            "Acquire::http::Timeout=30".to_owned(),
            "Acquire::https::Timeout=30".to_owned(),
            "Acquire::Retries=1".to_owned(),
        ];
        let options = options.into_iter().map(|option| format!("-o{option}")).collect();
        let apt = Apt { folder: folder.to_path_buf(), options };
        process::output(apt.command("apt-get").args(["-qq", "update"])).map_err(
            |failure| {
                let Failure::Failed(text) = failure else { return failure };
                Failure::Failed(format!(
                    "{text}\nthe archive of this machine's sources may have no {}",
                    SUITES.join(" and ")
                ))
            },
        )?;
        Ok(apt)
    }

    /// Unpacks QEMU and every library it needs into `into`.
    ///
    /// # Errors
    ///
    /// When a package is not there, or cannot be unpacked.
    pub(super) fn qemu(&self, into: &Path) -> Outcome {
        let newest = SUITES[SUITES.len() - 1];
        process::output(
            self.command("apt-get")
                .args(["-qq", "install", "--yes", "--no-install-recommends"])
                .args(["--download-only", "-t", newest, QEMU]),
        )?;
        self.unpack(&self.folder.join("cache/archives"), into)
    }

    /// Unpacks the kernel and its modules into `into`.
    ///
    /// # Errors
    ///
    /// As [`Apt::qemu`].
    pub(super) fn kernel(&self, into: &Path) -> Outcome {
        let depends =
            process::output(self.command("apt-cache").args(["depends", KERNEL]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .map(|rest| format!("linux-image-{}", rest.trim()))
            .ok_or_else(|| Failure::Failed(format!("{KERNEL} names no kernel")))?;
        let folder = self.folder.join("kernel");
        make_folder(&folder)?;
        let mut download = self.command("apt-get");
        download.current_dir(&folder).args(["-qq", "download", &package]);
        process::output(&mut download)?;
        self.unpack(&folder, into)
    }

    /// Unpacks every package of a folder; `into` is there only when all of it is.
    fn unpack(&self, packages: &Path, into: &Path) -> Outcome {
        let fresh = self.folder.join("fresh");
        remove(&fresh)?;
        make_folder(&fresh)?;
        let mut count = 0;
        let entries =
            fs::read_dir(packages).map_err(|error| failed("read", packages, &error))?;
        for entry in entries.flatten() {
            if entry.path().extension().is_some_and(|suffix| suffix == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                process::output(unpack.arg("-x").arg(entry.path()).arg(&fresh))?;
                count += 1;
            }
        }
        if count == 0 {
            return Err(Failure::Failed(format!("no package in {}", packages.display())));
        }
        remove(into)?;
        fs::rename(&fresh, into).map_err(|error| failed("make", into, &error))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Lists and packages are not needed any more; what cannot go now goes later.
        let _ = remove(&self.folder);
    }
}

pub(super) fn make_folder(path: &Path) -> Outcome {
    fs::create_dir_all(path).map_err(|error| failed("make", path, &error))
}

fn remove(path: &Path) -> Outcome {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", path, &error))
        }
        _ => Ok(()),
    }
}

pub(super) fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
}

//! Gets what is missing, by package name, into `target/`: nothing is installed.
//!
//! apt works on folders of its own here: an empty status file makes it find every
//! library that a program needs, and the lists of packages are fetched beside them. The
//! packages are unpacked, never configured; QEMU is run through the loader that came
//! with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::{Origin, SUITES};
use super::{failed, make_folder, remove};
use crate::{Failure, Outcome, process};

/// The package of QEMU.
const QEMU: &str = "qemu-system-x86";

/// Where packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suites {
    /// All that the machine's own sources name.
    Own,
    /// Newer suites of the machine's own archive.
    Newer,
}

/// Fetches packages into a folder.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    suites: Suites,
    options: Vec<String>,
}

impl Apt {
    /// Reads the lists of packages.
    ///
    /// # Errors
    ///
    /// When the machine has no archive to get them from, or that has no such suites.
    pub(crate) fn new(folder: &Path, suites: Suites) -> Result<Apt, Failure> {
        needed()?;
        // What a run left that was killed is of no known state.
        remove(folder)?;
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            make_folder(&folder.join(part))?;
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| failed("write", &path, &error))
        };
        write("status", "")?;
        let at = |name: &str| folder.join(name).display().to_string();
        let mut options = vec![
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
        if suites == Suites::Newer {
            let origin = Origin::find(Path::new("/etc/apt")).ok_or_else(|| {
                Failure::failed(
                    "there is nothing to fetch from: no source with packages of `main` \
                     in /etc/apt/sources.list or /etc/apt/sources.list.d",
                )
            })?;
            write("sources/newer.sources", &origin.paragraph())?;
            options.extend([
                "Dir::Etc::SourceList=/dev/null".to_owned(),
                format!("Dir::Etc::SourceParts={}", at("sources")),
                "Dir::Etc::Preferences=/dev/null".to_owned(),
                "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            ]);
        }
        let options = options.into_iter().map(|option| format!("-o{option}")).collect();
        let apt = Apt { folder: folder.to_path_buf(), suites, options };
        let said = apt.update().map_err(|failure| match (failure, suites) {
            (Failure::Failed(text), Suites::Newer) => Failure::Failed(format!(
                "{text}\nthe archive of this machine's sources may have no {}",
                SUITES.join(" and ")
            )),
            (failure, _) => failure,
        })?;
        // To apt a server that cannot be reached is no error, but a warning.
        if apt.names("")?.is_empty() {
            return Err(Failure::Failed(format!(
                "no list of packages could be fetched, so that nothing can be: {}\n\
                 remedy: a network, or a mirror that this machine reaches, in \
                 /etc/apt/sources.list or /etc/apt/sources.list.d",
                if said.is_empty() { "apt has no source" } else { said.as_str() }
            )));
        }
        Ok(apt)
    }

    /// Fetches the lists of packages, and returns what apt warns of.
    fn update(&self) -> Result<String, Failure> {
        let mut update = self.command("apt-get");
        let done = update.args(["-qq", "update"]).output().map_err(|error| {
            Failure::Failed(format!("cannot run `apt-get update`: {error}"))
        })?;
        let said = String::from_utf8_lossy(&done.stderr).trim_end().to_owned();
        match done.status.success() {
            true => Ok(said),
            false => Err(Failure::Failed(format!("`apt-get update` failed: {said}"))),
        }
    }

    /// Unpacks QEMU and every library it needs into `into`.
    ///
    /// # Errors
    ///
    /// When a package is not there, or cannot be unpacked.
    pub(crate) fn qemu(&self, into: &Path) -> Outcome {
        let mut words = vec!["install", "--yes", "--no-install-recommends"];
        words.push("--download-only");
        if self.suites == Suites::Newer {
            words.extend(["-t", SUITES[SUITES.len() - 1]]);
        }
        words.push(QEMU);
        self.get(&words)?;
        self.unpack(&self.folder.join("cache/archives"), into)
    }

    /// Unpacks packages, and not what they depend on, into `into`.
    ///
    /// # Errors
    ///
    /// As [`Apt::qemu`].
    pub(crate) fn packages(&self, packages: &[String], into: &Path) -> Outcome {
        let folder = self.folder.join("packages");
        remove(&folder)?;
        make_folder(&folder)?;
        let mut download = self.command("apt-get");
        download.current_dir(&folder).args(["-qq", "download"]).args(packages);
        process::output(&mut download)?;
        self.unpack(&folder, into)
    }

    /// The names of all packages that start like this.
    ///
    /// # Errors
    ///
    /// When apt cannot tell.
    pub(crate) fn names(&self, start: &str) -> Result<Vec<String>, Failure> {
        let text = process::output(self.command("apt-cache").args(["pkgnames", start]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// What the newest version of a package says of itself: `Version`, `Depends`...
    ///
    /// # Errors
    ///
    /// When there is no such package, or it says nothing of the kind.
    pub(crate) fn field(&self, package: &str, name: &str) -> Result<String, Failure> {
        let mut show = self.command("apt-cache");
        let text = process::output(show.args(["show", "--no-all-versions", package]))?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
            .ok_or_else(|| Failure::Failed(format!("{package} has no field {name}")))
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

    fn get(&self, words: &[&str]) -> Outcome {
        process::output(self.command("apt-get").arg("-qq").args(words)).map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// Whether packages can be fetched and unpacked here at all.
fn needed() -> Outcome {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        Command::new(program).arg("--version").output().map_err(|error| {
            Failure::Failed(format!(
                "cannot run {program}: {error}\nwhat is missing here is fetched as \
                 packages of Debian\nremedy: run this on Debian or in a container of \
                 it, or bring target/vm-test or target/qemu-test from such a machine"
            ))
        })?;
    }
    Ok(())
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Lists and packages are not needed any more; what cannot go now goes later.
        let _ = remove(&self.folder);
    }
}

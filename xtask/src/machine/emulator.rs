//! QEMU, installed or unpacked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use crate::{Failure, process};

const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU that can be run.
#[derive(Debug)]
pub(crate) struct Qemu {
    /// The words before its arguments.
    words: Vec<String>,
    /// Where its modules are, if not where it was built for.
    modules: Option<PathBuf>,
    /// As it says itself.
    pub(crate) version: String,
}

/// The oldest one that will do, and why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oldest {
    /// The first two numbers of its version.
    pub(crate) version: [u32; 2],
    /// What is wrong with those before it.
    pub(crate) reason: &'static str,
}

impl Qemu {
    /// The one on the search path, or else one of the folders where they were unpacked.
    ///
    /// # Errors
    ///
    /// What is wrong with the one on the search path.
    pub(crate) fn find(oldest: Oldest, unpacked: &[&Path]) -> Result<Qemu, String> {
        Qemu::installed(oldest).or_else(|error| {
            let mut found = unpacked.iter().map(|root| Qemu::unpacked(oldest, root));
            found.find_map(Result::ok).ok_or(error)
        })
    }

    /// Unpacks it with all it needs.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched, or what was fetched will not do.
    pub(crate) fn fetch(oldest: Oldest, apt: &Apt, into: &Path) -> Result<Qemu, Failure> {
        apt.qemu(into)?;
        Qemu::unpacked(oldest, into).map_err(Failure::Failed)
    }

    /// The one on the search path.
    fn installed(oldest: Oldest) -> Result<Qemu, String> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&paths).any(|folder| folder.join(PROGRAM).exists());
        if !found {
            return Err(format!("missing: {PROGRAM} {oldest} or newer"));
        }
        Qemu::new(oldest, vec![PROGRAM.to_owned()], None)
    }

    /// One that was unpacked with its libraries and its loader.
    fn unpacked(oldest: Oldest, root: &Path) -> Result<Qemu, String> {
        let at = |name: &str| root.join(name).display().to_string();
        // Before Debian 13 some libraries lie outside of usr, and the loader with them.
        let loader = ["usr/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"];
        let loader = loader.into_iter().find(|loader| root.join(loader).exists());
        let mut words = vec![at(loader.unwrap_or_default())];
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(at);
        words.extend(["--library-path".to_owned(), libraries.join(":")]);
        words.push(at("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            words.extend(["-L".to_owned(), at(firmware)]);
        }
        let modules = root.join("usr/lib/x86_64-linux-gnu/qemu");
        Qemu::new(oldest, words, Some(modules))
    }

    /// Asks it for its version, and whether that will do.
    fn new(
        oldest: Oldest,
        words: Vec<String>,
        modules: Option<PathBuf>,
    ) -> Result<Qemu, String> {
        let mut qemu = Qemu { words, modules, version: String::new() };
        let said = process::output(qemu.command().arg("--version"))
            .map_err(|failure| format!("{PROGRAM} cannot be run: {}", failure.text()))?;
        let version =
            version(&said).ok_or_else(|| format!("{PROGRAM} says no version: {said}"))?;
        if version < oldest.version {
            return Err(format!(
                "{PROGRAM} is {}.{}, and must be {oldest} or newer: {}",
                version[0], version[1], oldest.reason
            ));
        }
        qemu.version = said.lines().next().unwrap_or_default().to_owned();
        Ok(qemu)
    }

    /// Its command, without arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        if let Some(modules) = &self.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command
    }
}

impl std::fmt::Display for Oldest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.version[0], self.version[1])
    }
}

/// The first two numbers of "QEMU emulator version 11.1.3 (...)".
fn version(said: &str) -> Option<[u32; 2]> {
    let number = said.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut parts = number.split('.');
    Some([parts.next()?.parse().ok()?, parts.next()?.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn qemu_with_broken_dma_is_not_taken() {
        let oldest = [11, 1];
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
            assert_eq!(found >= oldest, good, "{number}");
        }
        assert_eq!(version("QEMU emulator"), None);
        assert_eq!(version("version x.y"), None);
    }
}

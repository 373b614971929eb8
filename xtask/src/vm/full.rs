//! A kernel with what Debian leaves out, built of the newest source that can be had.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use super::{Booted, debian, needs};
use crate::machine::apt::{Apt, Suites};
use crate::machine::kernel::{Kernel, numbers};
use crate::machine::{failed, make_folder, remove};
use crate::{Failure, Outcome, process};

/// What is switched on. It decides what is in the cache, with the source.
const CONFIG: &str = include_str!("full.config");

/// The first that has all of it, as numbers.
const OLDEST: [u64; 2] = [6, 12];

/// In the cache: what it was built with, and what it calls itself. It comes last.
const STAMP: &str = "built";

/// What building it takes: a file, and its package.
const NEEDS: [(&str, &str); 8] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// Finds it in the cache, or builds it.
///
/// # Errors
///
/// When there is no source, or it does not build.
pub(super) fn find(root: &Path, cache: &Path) -> Result<Booted, Failure> {
    let folder = cache.join("full");
    let stamp = folder.join(STAMP);
    let known = || {
        let text = fs::read_to_string(&stamp).ok()?;
        let (release, config) = text.split_once('\n')?;
        (config == CONFIG).then(|| release.to_owned())
    };
    if known().is_none() {
        build(root, cache, &folder)?;
    }
    let release = known()
        .ok_or_else(|| Failure::Failed(format!("{} was not written", stamp.display())))?;
    let image = folder.join("bzImage");
    let kernel = Kernel { release, image, modules: Vec::new() };
    Ok(Booted { kernel, headers: folder.join("include") })
}

fn build(root: &Path, cache: &Path, folder: &Path) -> Outcome {
    needs::programs(&NEEDS)?;
    let tree = folder.join("tree");
    // A tree is there only whole; one that a killed run was building goes on from there.
    if !tree.exists() {
        remove(folder)?;
        make_folder(folder)?;
        unpack(cache, folder, &tree)?;
    }
    compile(root, folder, &tree).map_err(|failure| {
        Failure::Failed(format!(
            "{}\nremedy: remove {} to begin with fresh source",
            failure.text(),
            folder.display()
        ))
    })?;
    // 2 GB that nobody needs any more. Half a tree is not taken for one.
    let gone = folder.join("gone");
    remove(&gone)?;
    fs::rename(&tree, &gone).map_err(|error| failed("move", &tree, &error))?;
    remove(&gone)
}

/// Makes the image of a tree, its headers, and last its stamp.
fn compile(root: &Path, folder: &Path, tree: &Path) -> Outcome {
    let stamp = folder.join(STAMP);
    // Not there while what it speaks of is written.
    fs::remove_file(&stamp)
        .or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .map_err(|error| failed("remove", &stamp, &error))?;
    let config = root.join("xtask/src/vm/full.config");
    let make = |words: &[&str]| {
        let mut command = Command::new("make");
        command.current_dir(tree).arg("--silent").args(words);
        command
    };
    let all = format!("KCONFIG_ALLCONFIG={}", config.display());
    process::step("kernel options", &mut make(&[&all, "allnoconfig"]))?;
    obeyed(tree)?;
    let jobs = available_parallelism().map_or(1, usize::from);
    let jobs = format!("-j{jobs}");
    process::step("kernel", &mut make(&[&jobs, "bzImage"]))?;
    let release = process::output(&mut make(&["kernelrelease"]))?;
    let (from, to) = (tree.join("arch/x86/boot/bzImage"), folder.join("bzImage"));
    fs::copy(&from, &to).map_err(|error| failed("copy", &from, &error))?;
    debian::keep(tree, folder)?;
    fs::write(&stamp, format!("{release}\n{CONFIG}"))
        .map_err(|error| failed("write", &stamp, &error))
}

/// Gets the newest source.
fn unpack(cache: &Path, folder: &Path, tree: &Path) -> Outcome {
    let at = cache.join("apt-full");
    // A machine whose archive has no newer suites has its own.
    let apt = Apt::new(&at, Suites::Newer).or_else(|_| Apt::new(&at, Suites::Own))?;
    let names = apt.names("linux-source-")?;
    let name = newest(&names).ok_or_else(|| {
        Failure::failed(
            "there is no kernel source of 6.12 or newer: neither the machine's package \
             sources nor the newer suites of its archive have a linux-source-*",
        )
    })?;
    println!("== fetch: {name} into {}", folder.display());
    let package = folder.join("package");
    apt.packages(&[name.to_owned()], &package)?;
    let fresh = folder.join("fresh");
    make_folder(&fresh)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(package.join(format!("usr/src/{name}.tar.xz")));
    tar.args(["--strip-components=1", "-C"]).arg(&fresh);
    process::output(&mut tar)?;
    fs::rename(&fresh, tree).map_err(|error| failed("make", tree, &error))?;
    remove(&package)
}

fn newest(names: &[String]) -> Option<&str> {
    let with_numbers = names.iter().filter_map(|name| {
        let version = numbers(name.strip_prefix("linux-source-")?);
        (version.as_slice() >= OLDEST.as_slice()).then_some((version, name))
    });
    with_numbers.max().map(|(_, name)| name.as_str())
}

/// Whether every option that was asked for is there: one that needs another one is
/// dropped in silence.
fn obeyed(tree: &Path) -> Outcome {
    let path = tree.join(".config");
    let text =
        fs::read_to_string(&path).map_err(|error| failed("read", &path, &error))?;
    let dropped: Vec<_> = CONFIG
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|wanted| !text.lines().any(|line| line == *wanted))
        .collect();
    if dropped.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "this source does not know, or not without more: {}",
        dropped.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn kernel_of_yesterday_is_not_built() {
        let names = ["linux-source-6.1", "linux-source-6.12", "linux-source-6.9"];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names), Some("linux-source-6.12"));
        assert_eq!(newest(&names[..1]), None);
        let names = ["linux-source-7.2", "linux-source-6.12", "linux-source-10.0"];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names), Some("linux-source-10.0"));
    }
}

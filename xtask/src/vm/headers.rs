//! The room `abi` against the headers of the kernel, by a C compiler.
//!
//! The guest's program knows every size, offset and number of `abi` and the C name of
//! it, and writes a C program that prints what the headers have under that name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::needs;
use crate::machine::failed;
use crate::machine::report::Report;
use crate::{Failure, Outcome, process};

/// Compares them, and adds the check `abi` to the report.
///
/// # Errors
///
/// When there is no C compiler.
pub(super) fn compare(
    program: &Path,
    headers: &Path,
    folder: &Path,
    report: &mut Report,
) -> Outcome {
    needs::programs(&[("cc", "gcc"), ("/usr/include/stdio.h", "libc6-dev")])?;
    let said = theirs(program, headers, folder).and_then(|theirs| {
        let ours = process::output(Command::new(program).arg("--abi"))?;
        Ok(difference(&ours, &theirs))
    });
    report.row("abi", said.map_err(Failure::text).and_then(|found| found));
    Ok(())
}

/// What the headers say.
fn theirs(program: &Path, headers: &Path, folder: &Path) -> Result<String, Failure> {
    let text = process::output(Command::new(program).arg("--abi-in-c"))?;
    let (source, built) = (folder.join("abi.c"), folder.join("abi"));
    fs::write(&source, text).map_err(|error| failed("write", &source, &error))?;
    let mut compiler = Command::new("cc");
    // The headers are those of the source, and programs get them without these words.
    compiler.args(["-D__user=", "-D__counted_by(member)=", "-I"]).arg(headers);
    compiler.arg("-o").arg(&built).arg(&source);
    process::output(&mut compiler)?;
    process::output(&mut Command::new(&built))
}

/// Both as lines `NAME VALUE`; a name that the headers do not know yet is `NAME -`.
fn difference(ours: &str, theirs: &str) -> Result<String, String> {
    let table = |text: &'_ str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let (ours, theirs) = (table(ours), table(theirs));
    let (mut equal, mut newer, mut wrong) = (0, Vec::new(), Vec::new());
    for (name, value) in &ours {
        match theirs.get(name).map(String::as_str) {
            Some("-") => newer.push(name.as_str()),
            Some(other) if other == value => equal += 1,
            Some(other) => wrong.push(format!("{name} is {value}, and in C {other}")),
            None => wrong.push(format!("{name} was not printed")),
        }
    }
    if equal == 0 {
        wrong.push("nothing was compared".to_owned());
    }
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let mut text = format!("{equal} sizes, offsets and numbers as in its headers");
    if !newer.is_empty() {
        // Of a structure that has grown its fields say the same as its size.
        let names: Vec<_> = newer.iter().filter(|name| !name.contains('(')).collect();
        text.push_str(&format!(", {} not in them yet, as {names:?}", newer.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn number_that_differs_from_the_kernel_is_found() {
        let ours = "A 1\nsizeof(struct b) 8\nC 3";
        assert_eq!(
            difference(ours, "A 1\nsizeof(struct b) 8\nC -"),
            Ok("2 sizes, offsets and numbers as in its headers, 1 not in them yet, as \
                [\"C\"]"
                .to_owned())
        );
        let wrong = difference(ours, "A 1\nsizeof(struct b) 16").unwrap_err();
        assert_eq!(wrong, "C was not printed; sizeof(struct b) is 8, and in C 16");
        assert!(difference("", "").is_err());
        assert!(difference("A 1", "A -").is_err());
    }
}

//! `cargo xtask commits`: every commit of a range builds and passes by itself (law 10).
//!
//! ```text
//! target/commits        a worktree of our own, detached, at one commit after the other
//! target/commits-build  what all of them build into, so that each builds its change only
//! target/commits.log    what the commit in hand printed
//! ```
//!
//! The user's tree and index are never touched. The worktree is removed at the end and
//! on failure; one that a killed run left behind is removed at the next start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask commits [--check-only] BASE..HEAD
       cargo xtask commits [--check-only] --all

Checks out every commit after BASE up to HEAD, oldest first, into a worktree under
target/, and runs `cargo check --workspace --all-targets` and the tests on it (nextest,
or `cargo test` where it is missing). Prints a line a commit and stops at the first that
fails, with its output.

  --all         every commit up to HEAD, the first one included
  --check-only  no tests

Exit status 1 if a commit fails, and if the range is unknown or holds no commit.
";

/// Runs the command.
///
/// # Errors
///
/// When the range makes no sense or a commit fails.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let check_only = arguments.flag("--check-only");
    let all = arguments.flag("--all");
    let names = arguments.names()?;
    let root = process::root();
    let range = match names.as_slice() {
        [] if all => Range { base: None, head: resolve(&root, "HEAD")? },
        [range] if !all => Range::parse(&root, range)?,
        _ => return Err(Failure::Usage("one range, BASE..HEAD, is needed".into())),
    };
    try_range(&root, &range, check_only)
}

fn try_range(root: &Path, range: &Range, check_only: bool) -> Outcome {
    let commits = range.commits(root)?;
    println!("commits, oldest first: {}", commits.len());
    let tree = Worktree::add(root, &commits[0])?;
    let result = commits.iter().enumerate().try_for_each(|(index, commit)| {
        let place = format!("{:>3}/{}", index + 1, commits.len());
        tree.try_commit(&place, commit, check_only)
    });
    tree.remove()?;
    result
}

struct Range {
    /// Not included; none means that the first commit of all is included.
    base: Option<String>,
    head: String,
}

impl Range {
    fn parse(root: &Path, text: &str) -> Result<Self, Failure> {
        let (base, head) = split_range(text)?;
        Ok(Self { base: Some(resolve(root, base)?), head: resolve(root, head)? })
    }

    fn commits(&self, root: &Path) -> Result<Vec<String>, Failure> {
        let mut list = git(root, &["rev-list", "--reverse", "--topo-order"]);
        list.arg(&self.head);
        if let Some(base) = &self.base {
            list.arg(format!("^{base}"));
        }
        let commits: Vec<String> =
            process::output(&mut list)?.lines().map(str::to_owned).collect();
        if commits.is_empty() {
            return Err(Failure::failed(
                "the range holds no commit: nothing was checked",
            ));
        }
        Ok(commits)
    }
}

fn split_range(text: &str) -> Result<(&str, &str), Failure> {
    match text.split_once("..") {
        Some((base, head))
            if !base.is_empty() && !head.is_empty() && !head.starts_with('.') =>
        {
            Ok((base, head))
        }
        _ => Err(Failure::Usage(format!("`{text}` is no range BASE..HEAD"))),
    }
}

fn git(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(words);
    // Set inside a git hook, where they would lead to the user's tree.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    command
}

fn resolve(root: &Path, revision: &str) -> Result<String, Failure> {
    let commit = format!("{revision}^{{commit}}");
    let words = ["rev-parse", "--verify", "--quiet", "--end-of-options", &commit];
    process::output(&mut git(root, &words))
        .map_err(|_| Failure::Failed(format!("`{revision}` is no commit that git knows")))
}

/// Our own checkout, removed when dropped.
struct Worktree {
    root: PathBuf,
    folder: PathBuf,
    removed: bool,
}

impl Worktree {
    fn add(root: &Path, commit: &str) -> Result<Self, Failure> {
        let target = root.join("target");
        let cannot = |error: io::Error| {
            Failure::Failed(format!("cannot create {}: {error}", target.display()))
        };
        fs::create_dir_all(&target).map_err(cannot)?;
        let mut tree = Self {
            root: root.to_owned(),
            folder: target.join("commits"),
            removed: false,
        };
        tree.clear()?;
        let mut add = git(root, &["worktree", "add", "--quiet", "--force", "--detach"]);
        tree.removed = true;
        process::output(add.arg(&tree.folder).arg(commit))?;
        tree.removed = false;
        Ok(tree)
    }

    /// Builds and tests one commit, and prints its line.
    fn try_commit(&self, place: &str, commit: &str, check_only: bool) -> Outcome {
        process::output(&mut git(
            &self.folder,
            &["checkout", "--quiet", "--force", "--detach", commit],
        ))?;
        process::output(&mut git(&self.folder, &["clean", "-ffdq"]))?;
        let title = ["show", "--no-patch", "--format=%h %s", commit];
        let title = process::output(&mut git(&self.folder, &title))?;
        let start = Instant::now();
        let failed = |what: &str| {
            println!("{place} FAILED {title}");
            Err(Failure::Failed(format!("{title}: {what}")))
        };
        // Without this, cargo would find the workspace that the worktree lies in.
        if !self.folder.join("Cargo.toml").is_file() {
            return failed("the commit has no Cargo.toml");
        }
        let check: &[&str] = &["check", "--workspace", "--all-targets"];
        let mut steps = vec![check];
        if !check_only {
            steps.push(if process::has_nextest(&self.root) {
                &["nextest", "run", "--workspace", "--no-tests=pass"]
            } else {
                &["test", "--workspace"]
            });
        }
        for step in steps {
            let log = self.root.join("target/commits.log");
            if !self.cargo_succeeds(step, &log)? {
                println!("{}", fs::read_to_string(&log).unwrap_or_default().trim_end());
                return failed(&format!("`cargo {}` failed", step.join(" ")));
            }
        }
        println!("{place} ok {:6.1} s  {title}", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn cargo_succeeds(&self, words: &[&str], log: &Path) -> Result<bool, Failure> {
        let failed = |error: io::Error| {
            Failure::Failed(format!("cannot run cargo {}: {error}", words.join(" ")))
        };
        let output = File::create(log).map_err(failed)?;
        let mut cargo = process::cargo(&self.folder);
        cargo.args(words).env("CARGO_TARGET_DIR", self.root.join("target/commits-build"));
        cargo.stdout(output.try_clone().map_err(failed)?).stderr(output);
        Ok(cargo.status().map_err(failed)?.success())
    }

    fn remove(mut self) -> Outcome {
        self.clear()
    }

    /// Removes the folder and git's record of it, whether or not they are there.
    fn clear(&mut self) -> Outcome {
        self.removed = true;
        if self.folder.exists() {
            let words = ["worktree", "remove", "--force", "--force"];
            if process::output(git(&self.root, &words).arg(&self.folder)).is_err() {
                // No worktree of this repository, or half of one.
                fs::remove_dir_all(&self.folder).map_err(|error| {
                    Failure::Failed(format!("{}: {error}", self.folder.display()))
                })?;
            }
        }
        process::output(&mut git(&self.root, &["worktree", "prune"])).map(drop)
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        if !self.removed
            && let Err(Failure::Failed(text) | Failure::Usage(text)) = self.clear()
        {
            eprintln!("the worktree is left behind: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of its own with a workspace of one crate.
    struct Repository(tempfile::TempDir);

    impl Repository {
        fn new() -> Self {
            let repository = Self(tempfile::tempdir().expect("a folder can be made"));
            repository.git(&["init", "--quiet"]);
            let manifest =
                "[package]\nname = \"tiny\"\nedition = \"2024\"\n[workspace]\n";
            repository.write("Cargo.toml", manifest);
            repository.write(".gitignore", "/target\n");
            repository
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn git(&self, words: &[&str]) {
            let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
            process::output(git(self.path(), &who).args(words)).expect("git succeeds");
        }

        fn write(&self, file: &str, text: &str) {
            let file = self.path().join(file);
            fs::create_dir_all(file.parent().expect("it is below the folder"))
                .expect("a folder can be made");
            fs::write(file, text).expect("a file can be written");
        }

        fn commit(&self, library: &str, title: &str) {
            self.write("src/lib.rs", library);
            self.git(&["add", "."]);
            self.git(&["commit", "--quiet", "--message", title]);
        }

        fn try_all(&self, check_only: bool) -> Outcome {
            let head = resolve(self.path(), "HEAD")?;
            let result = try_range(self.path(), &Range { base: None, head }, check_only);
            assert!(!self.path().join("target/commits").exists(), "left behind");
            result
        }
    }

    const FAILING_TEST: &str = "#[test]\nfn fails() {\n    assert!(false);\n}\n";

    #[test]
    fn commit_broken_in_the_middle_is_named_though_the_last_one_is_sound() {
        let repository = Repository::new();
        repository.commit("pub fn one() {}\n", "sound");
        repository.commit("pub fn one( {}\n", "does not build");
        repository.commit("pub fn two() {}\n", "sound again");
        let Err(Failure::Failed(text)) = repository.try_all(true) else {
            panic!("a broken commit was not seen");
        };
        assert!(text.contains("does not build"), "{text}");
        let range = Range::parse(repository.path(), "HEAD~1..HEAD").expect("it is one");
        assert_eq!(try_range(repository.path(), &range, true), Ok(()));
    }

    #[test]
    fn commit_whose_test_fails_is_named_and_the_tree_of_the_user_is_left_alone() {
        let repository = Repository::new();
        repository.commit("pub fn one() {}\n", "sound");
        repository.commit(FAILING_TEST, "does not pass");
        repository.write("src/lib.rs", "work in hand");
        assert_eq!(repository.try_all(true), Ok(()));
        let Err(Failure::Failed(text)) = repository.try_all(false) else {
            panic!("a failing test was not seen");
        };
        assert!(text.contains("does not pass"), "{text}");
        let mine = fs::read_to_string(repository.path().join("src/lib.rs"));
        assert_eq!(mine.expect("the file is there"), "work in hand");
    }

    #[test]
    fn worktree_that_a_killed_run_left_is_replaced() {
        let repository = Repository::new();
        repository.commit("pub fn one() {}\n", "sound");
        let words = ["worktree", "add", "--quiet", "--detach", "target/commits"];
        repository.git(&words);
        assert_eq!(repository.try_all(true), Ok(()));
        repository.write("target/commits/half/of/one", "");
        assert_eq!(repository.try_all(true), Ok(()));
    }

    #[test]
    fn range_without_a_commit_is_no_success() {
        let repository = Repository::new();
        repository.commit("pub fn one() {}\n", "sound");
        let range = Range::parse(repository.path(), "HEAD..HEAD").expect("it is one");
        let result = try_range(repository.path(), &range, true);
        assert!(matches!(result, Err(Failure::Failed(_))));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "HEAD", "..", "main..", "..HEAD", "main...HEAD"] {
            assert!(matches!(split_range(text), Err(Failure::Usage(_))), "{text}");
        }
        assert_eq!(split_range("v0.1..HEAD~2"), Ok(("v0.1", "HEAD~2")));
    }

    #[test]
    fn unknown_revision_is_named() {
        let repository = Repository::new();
        let Err(Failure::Failed(text)) = resolve(repository.path(), "nowhere") else {
            panic!("an unknown revision was resolved");
        };
        assert!(text.contains("nowhere"), "{text}");
    }
}

//! The man pages and the shell completions, made from the arguments themselves.
//!
//! [`all`] renders them, `cargo xtask gen` writes them under `docs/`, and a test fails
//! where the files there are not what would be written. They hold no date and nothing
//! of the machine, so that they change only when the arguments do.
//!
//! ```text
//! docs/man/vfio-migrate.1            the command, and what goes for every subcommand
//! docs/man/vfio-migrate-decode.1     one page a subcommand
//! docs/completions/vfio-migrate.bash, _vfio-migrate (zsh), vfio-migrate.fish
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::Cli;

/// What the command is called.
const NAME: &str = "vfio-migrate";

/// What people type, by page: commands that work as they stand, given the devices.
pub const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "vfio-migrate",
        &[
            "vfio-migrate demo",
            "vfio-migrate serve --socket /tmp/a.sock",
            "vfio-migrate probe vfio-user:/tmp/a.sock",
        ],
    ),
    (
        "vfio-migrate-demo",
        &[
            "vfio-migrate demo",
            "vfio-migrate demo --devices 4 --p2p --channels 2 --json",
            "vfio-migrate demo --inject page",
        ],
    ),
    ("vfio-migrate-serve", &["vfio-migrate serve --model accel --socket /tmp/a.sock"]),
    ("vfio-migrate-probe", &["vfio-migrate probe vfio-user:/tmp/a.sock --json"]),
    (
        "vfio-migrate-compat",
        &[
            "vfio-migrate compat vfio-user:/tmp/a.sock vfio-user:/tmp/b.sock",
            "vfio-migrate compat a.vfm vfio-user:/tmp/b.sock --json",
        ],
    ),
    (
        "vfio-migrate-conform",
        &[
            "vfio-migrate conform --list",
            "vfio-migrate conform vfio-user:/tmp/a.sock",
            "vfio-migrate conform vfio-user:/tmp/a.sock --only 4 --only 21.truncated",
        ],
    ),
    (
        "vfio-migrate-dirty",
        &[
            "vfio-migrate dirty vfio-user:/tmp/a.sock",
            "vfio-migrate dirty vfio-user:/tmp/a.sock --duration 5s --picture heat.svg",
        ],
    ),
    (
        "vfio-migrate-guest",
        &[
            "vfio-migrate guest run --device vfio-user:/tmp/a.sock --control /tmp/c.sock",
            "vfio-migrate guest ctl /tmp/c.sock status",
            "vfio-migrate guest ctl /tmp/c.sock migrate --to tcp:192.0.2.1:7600",
        ],
    ),
    (
        "vfio-migrate-guest-receive",
        &["vfio-migrate guest receive --from tcp:192.0.2.1:7600 \
           --device vfio-user:/tmp/b.sock --control /tmp/d.sock"],
    ),
    ("vfio-migrate-save", &["vfio-migrate save vfio-user:/tmp/a.sock --output a.vfm"]),
    (
        "vfio-migrate-restore",
        &["vfio-migrate restore vfio-user:/tmp/b.sock --input a.vfm --start"],
    ),
    (
        "vfio-migrate-send",
        &["vfio-migrate send vfio-user:/tmp/a.sock --to tcp:192.0.2.1:7600"],
    ),
    (
        "vfio-migrate-receive",
        &["vfio-migrate receive vfio-user:/tmp/b.sock --from tcp:192.0.2.1:7600"],
    ),
    ("vfio-migrate-start", &["vfio-migrate start vfio-user:/tmp/b.sock"]),
    (
        "vfio-migrate-decode",
        &[
            "vfio-migrate decode a.vfm",
            "vfio-migrate decode a.vfm --summary",
            "vfio-migrate decode - --json",
        ],
    ),
    (
        "vfio-migrate-states",
        &["vfio-migrate states --capabilities 3", "vfio-migrate states --format dot"],
    ),
];

/// Every page and every completion: its path under `docs/`, and what is in it.
///
/// # Errors
///
/// None that is known: everything is written into memory.
pub fn all() -> io::Result<Vec<(String, String)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let whole = Whole::of(&command);
    add(&command, &whole, &mut pages)?;
    for (shell, file) in [
        (Shell::Bash, "vfio-migrate.bash"),
        (Shell::Zsh, "_vfio-migrate"),
        (Shell::Fish, "vfio-migrate.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut visible(&Cli::command()), NAME, &mut script);
        pages.push((format!("completions/{file}"), text(script)?));
    }
    Ok(pages)
}

/// Where the files under `docs` are not what [`all`] renders: the path of each, and what
/// belongs there, which is nothing where a page has no command any more.
///
/// # Errors
///
/// A folder or file that is there and cannot be read.
pub fn differences(docs: &Path) -> io::Result<Vec<(String, Option<String>)>> {
    let mut there = BTreeMap::new();
    for folder in ["man", "completions"] {
        let entries = match fs::read_dir(docs.join(folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            there.insert(format!("{folder}/{name}"), fs::read(entry.path())?);
        }
    }
    let mut differences = Vec::new();
    for (path, contents) in all()? {
        if there.remove(&path).as_deref() != Some(contents.as_bytes()) {
            differences.push((path, Some(contents)));
        }
    }
    differences.extend(there.into_keys().map(|path| (path, None)));
    Ok(differences)
}

/// What goes for every page.
struct Whole {
    version: String,
    /// The sections that the command's help ends with: title and text.
    sections: Vec<(String, String)>,
    /// The names of all pages, in order.
    names: Vec<String>,
}

impl Whole {
    fn of(command: &Command) -> Self {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let sections = after.lines().filter_map(|line| line.split_once(": "));
        let mut names = Vec::new();
        collect(command, &mut names);
        Self {
            version: command.get_version().unwrap_or_default().to_owned(),
            sections: sections
                .map(|(title, text)| (title.to_uppercase(), text.to_owned()))
                .collect(),
            names,
        }
    }
}

/// The command without what is hidden in it, which a shell would offer all the same.
fn visible(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let empty = Command::new(command.get_name().to_owned())
        .version(command.get_version().unwrap_or_default().to_owned())
        .args(arguments.cloned())
        .subcommands(shown(command).map(visible));
    match command.get_about() {
        Some(about) => empty.about(about.clone()),
        None => empty,
    }
}

fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn collect(command: &Command, names: &mut Vec<String>) {
    names.push(page_name(command));
    shown(command).for_each(|sub| collect(sub, names));
}

/// Adds the page of a command and those of its subcommands.
fn add(
    command: &Command,
    whole: &Whole,
    pages: &mut Vec<(String, String)>,
) -> io::Result<()> {
    let name = page_name(command);
    pages.push((format!("man/{name}.1"), page(command, &name, whole)?));
    shown(command).try_for_each(|sub| add(sub, whole, pages))
}

fn page(command: &Command, name: &str, whole: &Whole) -> io::Result<String> {
    let subcommands = shown(command).next().is_some();
    let man = Man::new(command.clone().disable_help_subcommand(true))
        .title(name.to_uppercase())
        .source(format!("{NAME} {}", whole.version))
        .manual("Live migration of VFIO devices");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    if name != NAME && command.get_after_help().is_some() {
        man.render_extra_section(&mut page)?;
    }
    own(name, whole).to_writer(&mut page)?;
    Ok(once(&text(page)?))
}

/// The sections that are not made from the arguments.
fn own(name: &str, whole: &Whole) -> Roff {
    let mut roff = Roff::default();
    for (title, text) in &whole.sections {
        // Of the others, the main page tells.
        let status = title == "EXIT STATUS";
        if name != NAME && !status {
            continue;
        }
        roff.control("SH", [title.as_str()]);
        if !status {
            roff.text([roman(text)]);
            continue;
        }
        for item in text.trim_end_matches('.').split("; ") {
            let (number, meaning) = item.split_once(' ').unwrap_or((item, ""));
            roff.control("TP", []);
            roff.text([bold(number)]);
            roff.text([roman(meaning)]);
        }
    }
    let examples = EXAMPLES.iter().find(|(page, _)| *page == name);
    if let Some((_, lines)) = examples {
        roff.control("SH", ["EXAMPLES"]);
        roff.control("nf", []);
        for line in *lines {
            roff.text([roman(*line)]);
        }
        roff.control("fi", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    let related = related(name, &whole.names);
    let last = related.len().saturating_sub(1);
    for (n, other) in related.into_iter().enumerate() {
        let comma = if n == last { "(1)" } else { "(1)," };
        roff.text([bold(other), roman(comma)]);
    }
    roff
}

/// A page's parent, siblings and children.
fn related<'a>(name: &str, names: &'a [String]) -> Vec<&'a str> {
    let parent_of =
        |name: &str| names.iter().filter(|n| is_under(name, n)).max_by_key(|n| n.len());
    let parent = parent_of(name);
    names
        .iter()
        .filter(|other| *other != name)
        .filter(|other| {
            let theirs = parent_of(other).map(String::as_str);
            Some(*other) == parent
                || theirs == Some(name)
                || theirs == parent.map(String::as_str)
        })
        .map(String::as_str)
        .collect()
}

fn is_under(name: &str, parent: &str) -> bool {
    name.strip_prefix(parent).is_some_and(|rest| rest.starts_with('-'))
}

/// Each part of a page comes with the same two lines of macros: once is enough. No line
/// ends in spaces.
fn once(page: &str) -> String {
    let mut lines = Vec::new();
    for line in page.lines() {
        let line = line.trim_end();
        let macros = line.starts_with(".ie ") || line.starts_with(".el ");
        if !(macros && lines.contains(&line)) {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

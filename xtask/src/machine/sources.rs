//! Where this machine gets its packages from: the one thing that must come from it, as
//! no address of any archive is written down here.
//!
//! Both forms that apt reads are understood: paragraphs (`*.sources`) and lines
//! (`*.list`). The first source with binary packages of `main` that is not the archive
//! of security updates is taken.

use std::fs;
use std::path::Path;

/// The newer suites that have what the test needs: the stable one for libraries and
/// kernel, its backports for QEMU.
pub(crate) const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// A source of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The address of the archive.
    uri: String,
    /// Whose signature it bears: a file or a fingerprint. apt's own keys otherwise.
    signed_by: Option<String>,
}

impl Origin {
    /// Looks through a configuration folder, `/etc/apt` on a machine.
    pub(crate) fn find(folder: &Path) -> Option<Origin> {
        let mut files = vec![folder.join("sources.list")];
        let mut parts: Vec<_> = fs::read_dir(folder.join("sources.list.d"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        parts.sort();
        files.extend(parts);
        files.iter().find_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "sources" => from_paragraphs(&text),
                "list" => from_lines(&text),
                _ => None,
            }
        })
    }

    /// The paragraph that names the newer suites of the same archive.
    pub(crate) fn paragraph(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
            self.uri,
            SUITES.join(" ")
        );
        if let Some(signed_by) = &self.signed_by {
            text.push_str(&format!("Signed-By: {signed_by}\n"));
        }
        text
    }
}

/// Whether suites and components are those of a plain archive.
fn is_plain(suites: &[&str], components: &[&str]) -> bool {
    components.contains(&"main") && !suites.iter().any(|suite| suite.contains("security"))
}

fn from_paragraphs(text: &str) -> Option<Origin> {
    text.split("\n\n").find_map(|paragraph| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let words = |name: &str| field(name).unwrap_or_default();
        let (suites, components) = (words("Suites"), words("Components"));
        let suites: Vec<_> = suites.split_whitespace().collect();
        let components: Vec<_> = components.split_whitespace().collect();
        let usable = is_plain(&suites, &components)
            && words("Types").split_whitespace().any(|kind| kind == "deb")
            && words("Enabled") != "no";
        let uri = words("URIs").split_whitespace().next()?.to_owned();
        usable.then(|| Origin { uri, signed_by: field("Signed-By") })
    })
}

fn from_lines(text: &str) -> Option<Origin> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let components: Vec<_> = words.collect();
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        is_plain(&[suite], &components).then(|| Origin { uri: uri.to_owned(), signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::{Origin, from_lines, from_paragraphs};

    #[test]
    fn machines_own_archive_is_found_in_paragraphs() {
        let text = "Types: deb\nURIs: http://archive.invalid/security\n\
                    Suites: old-security\nComponents: main\n\n\
                    Types: deb\nEnabled: no\nURIs: http://off.invalid/\nSuites: old\n\
                    Components: main\n\n\
                    Types: deb-src\nURIs: http://source.invalid/\nSuites: old\n\
                    Components: main\n\n\
                    Types: deb deb-src\n# a remark\nURIs: http://archive.invalid/debian\n\
                    Suites: old old-updates\nComponents: main contrib\n\
                    Signed-By: /keys/archive.gpg\n";
        let found = from_paragraphs(text).unwrap();
        assert_eq!(
            found.paragraph(),
            "Types: deb\nURIs: http://archive.invalid/debian\n\
             Suites: trixie trixie-backports\nComponents: main\n\
             Signed-By: /keys/archive.gpg\n"
        );
        assert_eq!(from_paragraphs("Types: deb\nURIs: http://a.invalid\n"), None);
        assert_eq!(from_paragraphs(""), None);
    }

    #[test]
    fn machines_own_archive_is_found_in_lines() {
        let text = "# deb http://remark.invalid old main\n\
                    deb-src http://source.invalid old main\n\
                    deb http://archive.invalid/ old-security main\n\
                    deb http://other.invalid/ old nonsense\n\
                    deb [arch=amd64 signed-by=/keys/a.gpg] http://a.invalid/ old main\n";
        let signed_by = Some("/keys/a.gpg".to_owned());
        let uri = "http://a.invalid/".to_owned();
        assert_eq!(from_lines(text), Some(Origin { uri, signed_by }));
        let plain = from_lines("deb  http://b.invalid/ old main").unwrap();
        assert!(!plain.paragraph().contains("Signed-By"));
        assert_eq!(from_lines("deb [broken http://b.invalid/ old main"), None);
    }

    #[test]
    fn machine_without_sources_has_no_archive() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Origin::find(folder.path()), None);
        let parts = folder.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        let source = "Types: deb\nURIs: http://a.invalid\nSuites: s\nComponents: main\n";
        std::fs::write(parts.join("x.sources.disabled"), source).unwrap();
        assert_eq!(Origin::find(folder.path()), None);
        std::fs::write(parts.join("x.sources"), source).unwrap();
        assert!(Origin::find(folder.path()).is_some());
    }
}

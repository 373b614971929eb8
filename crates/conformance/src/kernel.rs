//! Which kernel it is, for what some of them have to be spared.

use std::fmt;

/// The version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// Major, minor, and the number in the stable series.
    numbers: [u32; 3],
    /// Not that version yet.
    candidate: bool,
}

impl Release {
    /// This version.
    pub fn new(major: u32, minor: u32, stable: u32) -> Release {
        Release { numbers: [major, minor, stable], candidate: false }
    }

    /// Reads what `uname -r` says, such as `6.12.95+deb12-amd64`. What is not a number is
    /// the end.
    pub fn parse(text: &str) -> Option<Release> {
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for (at, number) in numbers.iter_mut().enumerate() {
            let Some(part) = parts.next() else { break };
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            match part[..digits].parse() {
                Ok(value) => *number = value,
                Err(_) if at > 1 => break,
                Err(_) => return None,
            }
            if digits < part.len() {
                break;
            }
        }
        Some(Release { numbers, candidate: text.contains("-rc") })
    }

    /// The kernel that this process runs on.
    pub fn running() -> Option<Release> {
        Release::parse(rustix::system::uname().release().to_str().ok()?)
    }

    /// Whether a request from STOP_COPY to PRE_COPY may never end in this kernel, with the
    /// device locked: `vfio_mig_get_next_state()` looped from 6.2 until 7.2, and in the
    /// 6.12 series until 6.12.96. Other series may be mended, and are not tried.
    pub(crate) fn may_loop(self) -> bool {
        let [major, minor, stable] = self.numbers;
        let mended = match (major, minor) {
            // Of its candidates some are older than the mend.
            (7, 2) => !self.candidate,
            (6, 12) => stable >= 96,
            later => later > (7, 2),
        };
        !mended
    }

    /// Whether a feature that is not there may be EINVAL: until 6.18 it was, where a driver
    /// has no features of its own.
    pub(crate) fn says_einval_for_unknown(self) -> bool {
        self < Release::new(6, 18, 0)
    }
}

/// Whether a driver uses, at a write to a resume session that is over, what it has freed:
/// virtio's, in every kernel up to 7.3 at least.
pub(crate) fn dies_of_stale_writes(driver: &str) -> bool {
    matches!(driver, "virtio_vfio_pci" | "virtio-vfio-pci")
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, stable] = self.numbers;
        write!(f, "{major}.{minor}.{stable}")?;
        f.write_str(if self.candidate { "-rc" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::Release;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (text, expected) in [
            ("6.12.95+deb12-amd64", Some(Release::new(6, 12, 95))),
            ("7.3.4", Some(Release::new(7, 3, 4))),
            ("6.1.0-18-amd64", Some(Release::new(6, 1, 0))),
            ("7.2-rc1", Some(Release::new(7, 2, 0))),
            ("7.3.y", Some(Release::new(7, 3, 0))),
            ("linux", None),
            ("", None),
        ] {
            let release = Release::parse(text);
            let plain = release.map(|it| Release { candidate: false, ..it });
            assert_eq!(plain, expected, "{text}");
        }
    }

    #[test]
    fn no_kernel_that_hangs_is_asked_the_question_it_hangs_at() {
        for (text, loops) in [
            ("6.1.0", true),
            ("6.12.95+deb12-amd64", true),
            ("6.12.96", false),
            ("6.12.117+deb12-amd64", false),
            ("6.13.200", true),
            ("6.18.30", true),
            ("7.1.9", true),
            ("7.2.0-rc1", true),
            ("7.2-rc7-amd64", true),
            ("7.2.0", false),
            ("7.3.0-rc1", false),
            ("7.3.4", false),
            ("8.0.0", false),
        ] {
            let release = Release::parse(text).expect("a release");
            assert_eq!(release.may_loop(), loops, "{text}");
        }
    }
}

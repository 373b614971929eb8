//! The guest's file system: an archive in the `newc` form of cpio, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` describes it.

/// The bytes of an archive that is being put together.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    /// Adds an empty folder.
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, &[]);
    }

    /// Adds a file that can be read and run. Its folder comes before it.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        // inode, mode, owner, group, links, time, size, 2 x device, 2 x of the file,
        // length of the name with its 0, checksum (none in this form).
        let size = u32::try_from(content.len()).expect("nothing here is over 4 GiB");
        let name_size = name.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Header with name, and content, each end at a multiple of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn archive_that_the_kernel_cannot_read_boots_nothing() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.file("init", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        // Header of 110 bytes, name with its 0, up to a multiple of 4.
        assert!(text.starts_with(
            "07070100000001000041ed00000000000000000000000200000000000000000000000000000000\
             00000000000000000000000400000000dev\0"
        ));
        let second = (110 + 4_usize).next_multiple_of(4);
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!(&text[second + 54..second + 62], "00000005");
        let content = (second + 110 + 5).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 8], b"hello\0\0\0");
        assert!(text[content + 8..].starts_with("070701"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}

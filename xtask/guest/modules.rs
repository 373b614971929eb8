//! Modules of the kernel, where they are not built in.

use std::fs::File;

use crate::said;

/// `MODULE_INIT_COMPRESSED_FILE`: the kernel decompresses (Linux 5.17).
const COMPRESSED: i32 = 4;

/// Loads those that are there, in this order.
pub(crate) fn load(names: &[&str]) -> Result<(), String> {
    for name in names {
        for (suffix, flags) in [("", 0), (".xz", COMPRESSED), (".zst", COMPRESSED)] {
            let path = format!("/modules/{name}.ko{suffix}");
            let Ok(file) = File::open(&path) else { continue };
            rustix::system::finit_module(&file, c"", flags).map_err(said(path))?;
        }
    }
    Ok(())
}

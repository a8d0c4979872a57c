//! The plugin is `utm.c`; this crate compiles it for the tests, as its README tells everybody else to.

use std::{io, path::Path, process::Command};

/// Compiles `source`, a file of this plugin's folder, with strict warnings and `flags`.
///
/// # Errors
/// There is no compiler, or it refuses: its words.
pub fn compile(source: &str, flags: &[&str], output: &Path) -> io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let result = Command::new("cc")
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(flags)
        .arg("-I")
        .arg(here.join("../abi/include"))
        .arg("-o")
        .arg(output)
        .arg(here.join(source))
        .output()?;
    if result.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("cc refuses {source}:\n{}", String::from_utf8_lossy(&result.stderr))))
    }
}

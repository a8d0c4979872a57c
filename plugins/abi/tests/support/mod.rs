//! Runs the system's C and C++ compilers.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles `source` with `compiler` and strict warnings, and returns `output` in the folder for the tests' files.
///
/// # Panics
/// If it does not compile, with what the compiler says.
pub fn compile(compiler: &str, flags: &[&str], source: &Path, output: &str) -> PathBuf {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(output);
    let result = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} cannot be run: {error}"));
    assert!(
        result.status.success(),
        "{compiler} refuses {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&result.stderr)
    );
    output
}

/// This crate's folder.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

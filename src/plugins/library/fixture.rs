//! Plugins for tests, compiled from C when they are needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A compiled file, there until this is dropped.
pub(in crate::plugins) struct Fixture {
    _folder: TempDir,
    pub path: PathBuf,
}

/// `tests/fixtures/plugins/replaceable.c` with some of its parts replaced: names of macros, and C.
pub(in crate::plugins) fn plugin(parts: &[(&str, &str)]) -> Fixture {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("tests/fixtures/plugins/replaceable.c")).unwrap();
    let defines = parts.iter().map(|(name, value)| format!("-D{name}={value}"));
    compile(&source, &defines.chain(["-shared".to_owned()]).collect::<Vec<_>>())
}

/// Any C, compiled with `flags`.
pub(in crate::plugins) fn compile(source: &str, flags: &[String]) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.so");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/abi/include");
    let mut compiler = Command::new("cc")
        .args(["-x", "c", "-fPIC", "-Wall", "-Werror", "-I"])
        .arg(include)
        .args(flags)
        .arg("-o")
        .arg(&path)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C compiler, `cc`");
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "cc refuses {flags:?}");
    Fixture { _folder: folder, path }
}

/// `text` as a C string.
pub(in crate::plugins) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

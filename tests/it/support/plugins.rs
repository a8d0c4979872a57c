//! Plugins for tests: compiled here, from C by `cc`, dropped into an engine's folder as people do it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles `tests/fixtures/plugins/pilot.c`, a plugin that does what its events tell it to, into `folder`.
pub fn pilot(folder: &Path, name: &str, version: &str, flags: &[&str]) -> PathBuf {
    let library = folder.join(format!("{name}-{version}{}.so", flags.concat()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plugins/pilot.c");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
        .arg(format!("-DNAME=\"{name}\""))
        .arg(format!("-DVERSION=\"{version}\""))
        .args(flags)
        .arg(source)
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// The folder of plugins of an engine whose files are in `home`.
pub fn folder(home: &Path) -> PathBuf {
    let folder = home.join("data/plugins");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Copies `library` into the folder as `cp` does: the file that is there is overwritten in place.
pub fn copy_in(library: &Path, home: &Path, file: &str) {
    copy_bytes_in(&fs::read(library).unwrap(), home, file);
}

/// Writes `bytes` into the folder in two steps, so that a half-written file is there to be seen.
pub fn copy_bytes_in(bytes: &[u8], home: &Path, file: &str) {
    let mut target = fs::OpenOptions::new();
    let mut target = target.write(true).create(true).truncate(true).open(folder(home).join(file)).unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    target.write_all(first).unwrap();
    target.sync_data().unwrap();
    target.write_all(second).unwrap();
}

/// Moves `bytes` into the folder whole, as a careful deployment does.
pub fn move_in(bytes: &[u8], home: &Path, file: &str) {
    let temporary = folder(home).join(format!(".{file}.part"));
    fs::write(&temporary, bytes).unwrap();
    fs::rename(&temporary, folder(home).join(file)).unwrap();
}

/// Builds the library of a Rust plugin of this workspace, beside the binary under test.
pub fn built(package: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_ingestion-engine")).parent().unwrap();
    let target = folder.parent().unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--package", package, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("debug").join(format!("lib{}.so", package.replace('-', "_")))
}

/// Builds the crate in `folder` that `plugins new` made, with the versions that the engine is built with: they are here.
pub fn scaffolded(folder: &Path) -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(engine.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    // Shared with the test of the crate itself, which has built the same dependencies.
    let target = engine.join("target/scaffold");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--offline", "--target-dir"])
        .arg(&target)
        .current_dir(folder)
        .env("RUSTFLAGS", "-D warnings")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let name = folder.file_name().unwrap().to_str().unwrap();
    target.join("release").join(format!("lib{name}.so"))
}

/// Compiles the sample in C into `folder`.
pub fn utm(folder: &Path) -> PathBuf {
    let library = folder.join("utm.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/plugins/utm_c/utm.c");
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/plugins/abi/include");
    let flags = ["-std=c11", "-shared", "-fPIC", include, "-o"];
    let compiled = Command::new("cc").args(flags).arg(&library).arg(source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

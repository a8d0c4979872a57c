//! Which files are taken, and what is left behind of those that are not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Home {
    root: tempfile::TempDir,
    folder: Folder,
}

fn home(allow: &[&str]) -> Home {
    let root = tempfile::tempdir().unwrap();
    let allow = allow.iter().map(ToString::to_string).collect();
    let folder = Folder::open(root.path().join("plugins"), root.path().join("state/libraries"), allow).unwrap();
    Home { root, folder }
}

impl Home {
    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.dir().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn copies(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path().join("state/libraries")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// `printf abc | sha256sum`
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn a_file_is_copied_under_its_sum_and_read_only() {
    let home = home(&[]);
    home.put("a.so", b"abc");
    let copied = home.folder.take("a.so").unwrap();
    assert_eq!(copied.sha256, ABC);
    assert_eq!(fs::read(&copied.path).unwrap(), b"abc");
    assert_eq!(fs::metadata(&copied.path).unwrap().permissions().mode() & 0o777, 0o500);
    assert_eq!(copied.stamp.unwrap(), home.folder.scan().unwrap()["a.so"]);
    // The same bytes again, over the copy that may be mapped: it stays the same file.
    let inode = fs::metadata(&copied.path).unwrap().ino();
    home.put("b.so", b"abc");
    assert_eq!(home.folder.take("b.so").unwrap().path, copied.path);
    assert_eq!(fs::metadata(&copied.path).unwrap().ino(), inode);
    assert_eq!(home.copies(), [format!("{ABC}.so")]);
}

#[test]
fn hidden_and_other_files_do_not_count() {
    let home = home(&[]);
    for name in ["a.so", ".a.so", ".so", "a.so.1", "a.txt", "a.so~", ".a.so.x8Gh"] {
        home.put(name, b"");
    }
    symlink("nowhere", home.folder.dir().join("broken.so")).unwrap();
    assert_eq!(home.folder.scan().unwrap().into_keys().collect::<Vec<_>>(), ["a.so"]);
}

#[test]
fn what_others_may_write_is_refused() {
    let home = home(&[]);
    let path = home.put("a.so", b"abc");
    for mode in [0o666, 0o664, 0o646] {
        Home::mode(&path, mode);
        let error = home.folder.take("a.so").unwrap_err().to_string();
        assert!(error.contains("may be written by others") && error.contains("chmod go-w"), "{error}");
    }
    Home::mode(&path, 0o644);
    home.folder.take("a.so").unwrap();
    Home::mode(home.folder.dir(), 0o777);
    assert!(home.folder.scan().unwrap_err().to_string().contains("may be written by others (mode 0777)"));
    Home::mode(home.folder.dir(), 0o755);
    home.folder.scan().unwrap();
}

#[test]
fn a_stranger_s_file_is_refused() {
    let mut home = home(&[]);
    let path = home.put("a.so", b"abc");
    // Seen by an engine that runs as somebody else, which is all that can be shown without being root.
    if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
        home.folder.user = 999;
        let error = home.folder.take("a.so").unwrap_err().to_string();
        assert!(error.contains("belongs to user 12345") && error.contains("engine's user (999)"), "{error}");
    }
}

#[test]
fn links_may_not_leave_the_folder() {
    let home = home(&[]);
    let outside = home.root.path().join("outside.so");
    fs::write(&outside, b"abc").unwrap();
    symlink(&outside, home.folder.dir().join("out.so")).unwrap();
    let error = home.folder.take("out.so").unwrap_err().to_string();
    assert!(error.contains("outside of the folder"), "{error}");
    // As Kubernetes mounts a ConfigMap.
    fs::create_dir(home.folder.dir().join("..2026")).unwrap();
    home.put("..2026/a.so", b"abc");
    symlink("..2026", home.folder.dir().join("..data")).unwrap();
    symlink("..data/a.so", home.folder.dir().join("in.so")).unwrap();
    assert_eq!(home.folder.take("in.so").unwrap().sha256, ABC);
}

#[test]
fn only_regular_files_of_a_bearable_size_are_read() {
    let home = home(&[]);
    fs::create_dir(home.folder.dir().join("dir.so")).unwrap();
    assert!(home.folder.take("dir.so").unwrap_err().to_string().contains("not a regular file"));
    // A sparse file: no disk is used.
    File::create(home.folder.dir().join("big.so")).unwrap().set_len(MOST_BYTES + 1).unwrap();
    assert!(home.folder.take("big.so").unwrap_err().to_string().contains("at most"));
    assert!(matches!(home.folder.take("gone.so"), Err(FolderError::Io { .. })));
    assert!(home.copies().is_empty());
}

#[test]
fn only_listed_sums_are_taken_when_there_is_a_list() {
    let home = home(&[ABC]);
    home.put("a.so", b"abc");
    home.put("b.so", b"abd");
    home.folder.take("a.so").unwrap();
    let error = home.folder.take("b.so").unwrap_err().to_string();
    assert!(error.contains("plugins.allow does not list"), "{error}");
    assert_eq!(home.copies(), [format!("{ABC}.so")]);
}

#[test]
fn copies_that_nobody_refers_to_are_removed() {
    let home = home(&[]);
    home.put("a.so", b"abc");
    home.put("b.so", b"b");
    home.folder.take("a.so").unwrap();
    home.folder.take("b.so").unwrap();
    fs::write(home.root.path().join("state/libraries/.copy-1"), b"half").unwrap();
    home.folder.forget_copies(&BTreeSet::from([ABC]));
    assert_eq!(home.copies(), [format!("{ABC}.so")]);
}

//! A disk that loses its power: see `tests/power_loss/shim.c` for what survives and why.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    fs::{self, File},
    hash::{Hash, Hasher},
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use super::engine::Setup;

/// What the kernel writes back by itself comes in blocks of this size.
const BLOCK: usize = 4096;

/// A folder under the shim, and its image.
pub struct Disk {
    home: PathBuf,
}

/// What survives of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    /// Nothing: the worst case.
    Lost,
    /// Any of its blocks, names and sizes, drawn by this seed: the kernel writes back whatever it likes.
    Torn(u64),
}

impl Unsynced {
    fn survives(self, what: impl Hash) -> bool {
        let Self::Torn(seed) = self else { return false };
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        hasher.finish() & 1 == 1
    }
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File(String),
    Folder(String),
    Link(String),
}

impl Entry {
    /// An inode, or the target of a link.
    fn key(&self) -> &str {
        let (Self::File(key) | Self::Folder(key) | Self::Link(key)) = self;
        key
    }
}

impl Disk {
    /// A disk in `home`, empty.
    pub fn new(home: &Path) -> Self {
        let disk = Self { home: home.to_owned() };
        fs::create_dir_all(disk.tree()).unwrap();
        compile("tests/power_loss/shim.c", &disk.shim());
        disk.settle();
        disk
    }

    /// Where its files are.
    pub fn tree(&self) -> PathBuf {
        self.home.join("tree")
    }

    fn image(&self) -> PathBuf {
        self.home.join("image")
    }

    fn shim(&self) -> PathBuf {
        self.home.join("power_loss.so")
    }

    /// What a process needs to be on this disk.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("LD_PRELOAD", self.shim().display().to_string()),
            ("POWER_LOSS_TREE", self.tree().display().to_string()),
            ("POWER_LOSS_IMAGE", self.image().display().to_string()),
        ]
    }

    /// An engine whose files are on this disk. Its configuration is there already, durably.
    pub fn setup(&self) -> Setup {
        self.environment().into_iter().fold(Setup::new(&self.tree()), |setup, (name, value)| setup.env(name, value))
    }

    /// Everything that is there now becomes durable.
    pub fn settle(&self) {
        let image = self.image();
        if image.exists() {
            fs::remove_dir_all(&image).unwrap();
        }
        for folder in ["files", "folders", "held", "loaded"] {
            fs::create_dir_all(image.join(folder)).unwrap();
        }
        for (key, path) in walk(&self.tree()) {
            if path.is_dir() {
                let mut text = Vec::new();
                for (name, entry) in list(&path) {
                    let kind = match &entry {
                        Entry::File(_) => "F",
                        Entry::Folder(_) => "D",
                        Entry::Link(_) => "L",
                    };
                    for part in [kind, entry.key(), &name] {
                        text.extend_from_slice(part.as_bytes());
                        text.push(0);
                    }
                }
                fs::write(image.join("folders").join(key), text).unwrap();
            } else {
                fs::copy(path, image.join("files").join(key)).unwrap();
            }
        }
    }

    /// Whether the shim is in a process.
    pub fn has(&self, pid: u32) -> bool {
        self.image().join("loaded").join(pid.to_string()).exists()
    }

    /// The power went when the processes ended: the tree becomes what the disk has of it.
    pub fn lose_power(&self, unsynced: Unsynced) {
        let unmodelled = fs::read_to_string(self.image().join("unmodelled")).unwrap_or_default();
        assert_eq!(unmodelled, "", "made durable in a way that the shim does not model");
        let live = walk(&self.tree());
        let after = self.home.join("after");
        self.rebuild(&key_of(&self.tree()), &after, &live, unsynced);
        fs::remove_dir_all(self.tree()).unwrap();
        fs::rename(after, self.tree()).unwrap();
        self.settle();
    }

    fn rebuild(&self, folder: &str, to: &Path, live: &HashMap<String, PathBuf>, unsynced: Unsynced) {
        fs::create_dir(to).unwrap();
        let durable = self.entries(folder);
        let now = live.get(folder).map(|path| list(path)).unwrap_or_default();
        let names = durable.keys().chain(now.keys().filter(|name| !durable.contains_key(*name)));
        for name in names {
            let entry = match (durable.get(name), now.get(name)) {
                // Drawn once for each inode: a rename happens at both of its names or at none.
                (_, Some(new)) if unsynced.survives(new.key()) => Some(new),
                (Some(old), None) if unsynced.survives(old.key()) => None,
                (old, _) => old,
            };
            let path = to.join(name);
            match entry {
                Some(Entry::Folder(key)) => self.rebuild(key, &path, live, unsynced),
                Some(Entry::File(key)) => self.rebuild_file(key, &path, live.get(key), unsynced),
                Some(Entry::Link(target)) => symlink(target, path).unwrap(),
                None => {}
            }
        }
    }

    fn rebuild_file(&self, key: &str, to: &Path, live: Option<&PathBuf>, unsynced: Unsynced) {
        let durable = self.image().join("files").join(key);
        if durable.exists() {
            fs::copy(&durable, to).unwrap();
        } else {
            File::create(to).unwrap();
        }
        let (Unsynced::Torn(_), Some(live)) = (unsynced, live) else { return };
        let now = fs::read(live).unwrap();
        let mut then = fs::read(to).unwrap();
        if unsynced.survives((key, "size")) {
            then.resize(now.len(), 0);
        }
        for (index, block) in then.chunks_mut(BLOCK).enumerate() {
            let new = now.get(index * BLOCK..).unwrap_or_default();
            if unsynced.survives((key, index)) {
                let length = block.len().min(new.len());
                block[..length].copy_from_slice(&new[..length]);
            }
        }
        let file = File::create(to).unwrap();
        file.write_all_at(&then, 0).unwrap();
    }

    /// The durable entries of a folder.
    fn entries(&self, folder: &str) -> BTreeMap<String, Entry> {
        let text = fs::read_to_string(self.image().join("folders").join(folder)).unwrap_or_default();
        let parts: Vec<&str> = text.split_terminator('\0').collect();
        let entry = |part: &[&str]| {
            let key = part[1].to_owned();
            let entry = match part[0] {
                "F" => Entry::File(key),
                "D" => Entry::Folder(key),
                _ => Entry::Link(key),
            };
            (part[2].to_owned(), entry)
        };
        parts.chunks_exact(3).map(entry).collect()
    }
}

/// Compiles a library for `LD_PRELOAD`.
pub fn compile(source: &str, library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let flags = ["-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"];
    let compiled = Command::new("cc").args(flags).arg(library).arg(source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

/// As the shim knows an inode: numbers are used again, so the time of birth belongs to it.
fn key_of(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).unwrap();
    let born = metadata.created().unwrap().duration_since(UNIX_EPOCH).unwrap();
    format!("{}-{}.{:09}", metadata.ino(), born.as_secs(), born.subsec_nanos())
}

fn list(folder: &Path) -> BTreeMap<String, Entry> {
    let entry = |entry: fs::DirEntry| {
        let (name, path, kind) = (entry.file_name().into_string().unwrap(), entry.path(), entry.file_type().unwrap());
        if kind.is_symlink() {
            let target = fs::read_link(path).unwrap().into_os_string().into_string().unwrap();
            return Some((name, Entry::Link(target)));
        }
        if kind.is_dir() {
            return Some((name, Entry::Folder(key_of(&path))));
        }
        kind.is_file().then(|| (name, Entry::File(key_of(&path))))
    };
    fs::read_dir(folder).unwrap().filter_map(|found| entry(found.unwrap())).collect()
}

/// Every folder and file below `root`, itself included, by its key.
fn walk(root: &Path) -> HashMap<String, PathBuf> {
    let mut all = HashMap::from([(key_of(root), root.to_owned())]);
    for (name, entry) in list(root) {
        let path = root.join(name);
        match entry {
            Entry::Folder(_) => all.extend(walk(&path)),
            Entry::File(key) => {
                all.insert(key, path);
            }
            Entry::Link(_) => {}
        }
    }
    all
}

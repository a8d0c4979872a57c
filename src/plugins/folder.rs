//! The folder that people drop libraries into, and the private copies that are loaded in their place.
//!
//! ```text
//! <plugins.dir>/purchase.so --read once, hashed--> <state>/libraries/.copy-<pid> --fsync, rename--> <sha256>.so
//! ```
//!
//! - A file in the folder is only ever read. The loader is given the copy, so that a library that is overwritten in place
//!   does not change under the code that runs from it, and nobody runs what changed after it was summed.
//! - **Who may put code into the engine's process**: the folder, and every file in it, must belong to the engine's user or
//!   to root and not be writable by group or others. Either is refused otherwise: a folder that others may write to lets
//!   them swap a file between two looks.
//! - A symbolic link counts as what it leads to, and must lead to a place inside the folder (Kubernetes mounts files as
//!   such links). One that leads elsewhere is refused: the owner of that place would decide what is loaded.
//! - A file that changes while it is read is not taken; its next event tries again.
//!
//! What it is not: it knows nothing of plugins, only of files, and it does not watch (`watch`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Suffix of the files that count.
pub const SUFFIX: &str = ".so";

/// Largest library. The largest known ones, with everything linked in and debug information, have some 100 MB.
pub const MOST_BYTES: u64 = 256 << 20;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Why the folder, or a file in it, is not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Others could put a library there.
    #[error("{} {problem}: whoever can write there can run code in the engine; mend it with: {mend}", path.display())]
    Unsafe {
        /// The folder or the file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// The command that mends it.
        mend: String,
    },
    /// It is no regular file in the folder.
    #[error("{} {problem}", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
    /// It is larger than [`MOST_BYTES`].
    #[error("{} has {size} bytes, and a library may have at most {MOST_BYTES}; strip it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Its sum is not in `plugins.allow`.
    #[error("{} has the SHA-256 sum {sha256}, which plugins.allow does not list", path.display())]
    NotAllowed {
        /// The file.
        path: PathBuf,
        /// Its sum.
        sha256: String,
    },
    /// Somebody writes to it.
    #[error("{} is still being written", path.display())]
    BeingWritten {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FolderError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the file is expected to be all right at its next event.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::BeingWritten { .. })
    }
}

/// What tells one state of a file from another without reading it. Owner and mode are in it so that `chmod` is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    modified: (i64, i64),
    inode: (u64, u64),
    owner: u32,
    mode: u32,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
            owner: metadata.uid(),
            mode: metadata.mode(),
        }
    }
}

/// A private copy of a file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its sum, hexadecimal.
    pub sha256: String,
    /// Where it is.
    pub path: PathBuf,
    /// The state of the file that was read; none when the copy is older than the file.
    pub stamp: Option<Stamp>,
}

/// The folder and its copies.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    copies: PathBuf,
    allow: BTreeSet<String>,
    user: u32,
}

impl Folder {
    /// `dir` is watched by people, `copies` is the engine's own. An empty `allow` allows every sum. Creates both.
    ///
    /// # Errors
    /// The system refused; or others may write to `dir` ([`FolderError::Unsafe`]) is only said by [`Self::scan`].
    pub fn open(dir: PathBuf, copies: PathBuf, allow: BTreeSet<String>) -> Result<Self, FolderError> {
        let private = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|source| FolderError::io("create", path, source))
        };
        private(&copies, 0o700)?;
        private(&dir, 0o755)?;
        let user = rustix::process::geteuid().as_raw();
        Ok(Self { dir, copies, allow, user })
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the copy of the library with this sum is, if there is one.
    pub fn copy(&self, sha256: &str) -> PathBuf {
        self.copies.join(format!("{sha256}{SUFFIX}"))
    }

    /// Whether the library with this sum may be loaded.
    pub fn allows(&self, sha256: &str) -> bool {
        self.allow.is_empty() || self.allow.contains(sha256)
    }

    /// The libraries in the folder by name, each with its state. Says nothing of whether they may be loaded.
    ///
    /// # Errors
    /// The folder is missing, cannot be read, or others may write to it.
    pub fn scan(&self) -> Result<BTreeMap<String, Stamp>, FolderError> {
        let metadata = fs::metadata(&self.dir).map_err(|source| FolderError::io("look at", &self.dir, source))?;
        self.belongs(&self.dir, &metadata)?;
        let failed = |source| FolderError::io("list", &self.dir, source);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let Some(name) = entry.map_err(failed)?.file_name().to_str().map(str::to_owned) else { continue };
            if !is_library(&name) {
                continue;
            }
            // What a link leads to; a broken one, or a file that has just gone, is not there.
            if let Ok(metadata) = fs::metadata(self.dir.join(&name)) {
                found.insert(name, Stamp::of(&metadata));
            }
        }
        Ok(found)
    }

    /// Copies the file `name` to a private place, and sums it.
    ///
    /// # Errors
    /// [`FolderError`]; the folder and the copies are as before.
    pub fn take(&self, name: &str) -> Result<Copied, FolderError> {
        let path = self.dir.join(name);
        let (mut file, before) = self.open_file(&path)?;
        let temporary = self.copies.join(format!(".copy-{}", std::process::id()));
        let copied = self.fill(&path, &mut file, &before, &temporary);
        // Left over from a start that was killed, or from the error just found.
        if copied.is_err() {
            drop(fs::remove_file(&temporary));
        }
        copied
    }

    /// Removes copies that nobody refers to. Only before anything was loaded: a copy that was ever loaded stays mapped.
    pub fn forget_copies(&self, keep: &BTreeSet<&str>) {
        let Ok(entries) = fs::read_dir(&self.copies) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let kept = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).is_some_and(|sum| keep.contains(sum));
            if !kept && let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an unused copy of a plugin");
            }
        }
    }

    /// Opens what `path` leads to, after a look at where that is and whose it is.
    fn open_file(&self, path: &Path) -> Result<(File, Metadata), FolderError> {
        let failed = |action| move |source| FolderError::io(action, path, source);
        let dir = fs::canonicalize(&self.dir).map_err(failed("look at"))?;
        let real = fs::canonicalize(path).map_err(failed("open"))?;
        if !real.starts_with(&dir) {
            let problem = "is a link to a place outside of the folder; put the file itself there";
            return Err(FolderError::NotAFile { path: path.to_owned(), problem });
        }
        // The link was resolved: one that has come since is not followed. Not blocking, as it may be a pipe.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = flags.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        if !metadata.is_file() {
            return Err(FolderError::NotAFile { path: path.to_owned(), problem: "is not a regular file" });
        }
        self.belongs(path, &metadata)?;
        if metadata.size() > MOST_BYTES {
            return Err(FolderError::TooLarge { path: path.to_owned(), size: metadata.size() });
        }
        Ok((file, metadata))
    }

    fn fill(&self, path: &Path, file: &mut File, before: &Metadata, temporary: &Path) -> Result<Copied, FolderError> {
        let reading = |source| FolderError::io("read", path, source);
        let writing = |source| FolderError::io("write a copy of it to", temporary, source);
        let being_written = || FolderError::BeingWritten { path: path.to_owned() };
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(writing(error)),
            _ => {}
        }
        // Executable for the loader, and not writable, so that nobody changes it by mistake.
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o500).open(temporary).map_err(writing)?;
        let (mut hasher, mut buffer, mut size) = (Sha256::new(), vec![0; CHUNK], 0_u64);
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading(error)),
            };
            size += read as u64;
            if size > before.size() {
                return Err(being_written());
            }
            let chunk = buffer.get(..read).unwrap_or_default();
            hasher.update(chunk);
            copy.write_all(chunk).map_err(writing)?;
        }
        let stamp = Stamp::of(before);
        if size != before.size() || Stamp::of(&file.metadata().map_err(reading)?) != stamp {
            return Err(being_written());
        }
        let sha256 = hexadecimal(&hasher.finalize());
        if !self.allows(&sha256) {
            return Err(FolderError::NotAllowed { path: path.to_owned(), sha256 });
        }
        let target = self.copy(&sha256);
        if target.exists() {
            // The same bytes, and maybe mapped: it stays as it is.
            fs::remove_file(temporary).map_err(writing)?;
        } else {
            copy.sync_all().map_err(writing)?;
            fs::rename(temporary, &target).map_err(writing)?;
            File::open(&self.copies).and_then(|folder| folder.sync_all()).map_err(writing)?;
        }
        Ok(Copied { sha256, path: target, stamp: Some(stamp) })
    }

    fn belongs(&self, path: &Path, metadata: &Metadata) -> Result<(), FolderError> {
        let owner = metadata.uid();
        if owner != self.user && owner != 0 {
            return Err(FolderError::Unsafe {
                path: path.to_owned(),
                problem: format!("belongs to user {owner}, who is neither root nor the engine's user ({})", self.user),
                mend: format!("chown {} {}", self.user, path.display()),
            });
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(FolderError::Unsafe {
                path: path.to_owned(),
                problem: format!("may be written by others (mode {:04o})", metadata.mode() & 0o7777),
                mend: format!("chmod go-w {}", path.display()),
            });
        }
        Ok(())
    }
}

/// Whether a file of this name counts: not hidden (`rsync` and others write to such names first), and named `*.so`.
pub fn is_library(name: &str) -> bool {
    !name.starts_with('.') && name.len() > SUFFIX.len() && name.ends_with(SUFFIX)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

//! One process per folder: `flock` on a file in it. The kernel's lock decides and goes with the process, however that
//! ends; the text in the file only says who it is.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

const FILE: &str = "LOCK";

/// How often a held lock is tried again while there is patience. `flock` has no time-out of its own.
const RETRY: Duration = Duration::from_millis(50);

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process (or another handle of this one) has it.
    #[error("{} is in use by another process ({holder}); stop that one, or use a folder of its own", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// What the holder wrote into the lock file: its pid and start time.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot lock {}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Exclusive use of a folder until dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks `folder` (created when missing) for this process, waiting up to `patience` for a holder that is about to
    /// end. Blocks meanwhile.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder.
    pub fn acquire(folder: &Path, patience: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { folder: folder.to_owned(), source };
        create_folder(folder).map_err(failed)?;
        let path = folder.join(FILE);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let deadline = Instant::now() + patience;
        let mut said = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    if !std::mem::replace(&mut said, true) {
                        let holder = holder(&mut file);
                        tracing::warn!(folder = %folder.display(), holder, ?patience, "waiting for the lock of a folder");
                    }
                    thread::sleep(RETRY);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(LockError::Held { folder: folder.to_owned(), holder: holder(&mut file) });
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        let text = format!("pid {}\nsince {}\n", std::process::id(), jiff::Timestamp::now());
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// What the holder wrote. Whatever cannot be read is left out: the refusal stands without it.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let readable = file.rewind().and_then(|()| file.read_to_string(&mut holder)).is_ok() && !holder.trim().is_empty();
    if readable { holder.trim().replace('\n', ", ") } else { "unknown".to_owned() }
}

/// Creates `folder` and the folders above it that are missing, durably: what is synced in a folder is lost when the
/// folder's own name is.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    create_folder(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_second_holder_is_told_who_is_first() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("made when missing");
        let first = FolderLock::acquire(&folder, Duration::ZERO).unwrap();
        let error = FolderLock::acquire(&folder, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        FolderLock::acquire(&folder, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_holder_that_ends_in_time_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let first = FolderLock::acquire(home.path(), Duration::ZERO).unwrap();
        let folder = home.path().to_owned();
        let second = thread::spawn(move || FolderLock::acquire(&folder, Duration::from_secs(60)).map(drop));
        drop(first);
        second.join().unwrap().unwrap();
    }
}

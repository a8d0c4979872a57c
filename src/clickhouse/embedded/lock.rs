//! The lock of a data folder: one process per folder, and whoever comes second is told who is there.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// How often a held lock is tried again. flock has no time-out of its own.
const RETRY: Duration = Duration::from_millis(50);

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process keeps it.
    #[error("{} is in use by {holder}", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// The holder: its pid and, if it can be found out, its name.
        holder: String,
    },
    /// The lock file could not be used.
    #[error("the lock file {} cannot be used", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Holds the folder until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct PathLock {
    _file: File,
}

impl PathLock {
    /// Locks `folder`, waiting up to `patience` for a holder that may be about to exit.
    pub(super) fn acquire(folder: &Path, patience: Duration) -> Result<Self, LockError> {
        let path = folder.join("engine.lock");
        let failed = |source: std::io::Error| LockError::Io { path: path.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(RETRY),
                Err(Errno::WOULDBLOCK) => {
                    let mut pid = String::new();
                    file.read_to_string(&mut pid).map_err(failed)?;
                    return Err(LockError::Held { path: folder.to_owned(), holder: describe(pid.trim()) });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        // Only for the message of whoever comes second; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn describe(pid: &str) -> String {
    if pid.is_empty() {
        return "another process".to_owned();
    }
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = PathLock::acquire(folder.path(), Duration::ZERO).unwrap();
        let error = PathLock::acquire(folder.path(), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        PathLock::acquire(folder.path(), Duration::ZERO).unwrap();
    }
}

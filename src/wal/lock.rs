//! One engine per folder: `flock` on a file in it. The kernel's lock decides and goes with the process, however that
//! ends; the text in the file only says who it is.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

const FILE: &str = "LOCK";

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process (or another handle of this one) has it.
    #[error("{folder} is in use by another engine ({holder}); stop that one, or give this one a folder of its own")]
    Held {
        /// The folder.
        folder: PathBuf,
        /// What the holder wrote into the lock file: its pid and start time.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot lock {folder}")]
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
    /// Locks `folder` (created when missing) for this process, or says at once who has it.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join(FILE);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Whatever cannot be read is left out: the refusal stands without it.
                let readable = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if readable { holder.trim().replace('\n', ", ") } else { "unknown".to_owned() };
                return Err(LockError::Held { folder: folder.to_owned(), holder });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        let text = format!("pid {}\nsince {}\n", std::process::id(), jiff::Timestamp::now());
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

//! One error enum for each thing that can be asked of the log.

use std::{io, path::PathBuf, sync::Arc};

use crate::folder_lock::LockError;

/// Why a log did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another engine has the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A setting that cannot work.
    #[error("write-ahead log setting {name}: {reason}")]
    Setting {
        /// Name of the field of [`super::Settings`].
        name: &'static str,
        /// What it must be.
        reason: String,
    },
    /// The folder was written by a newer engine.
    #[error("the write-ahead log's meta file has format version {found}, this engine knows versions up to {known}")]
    Version {
        /// Version on disk.
        found: u8,
        /// Newest version that this engine reads.
        known: u8,
    },
    /// The file system refused.
    #[error("write-ahead log: {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is only to be read, and needs to be mended first.
    #[error(
        "the write-ahead log in {} cannot be read without changing it: {what}; start the engine, which mends it, and ask again",
        path.display()
    )]
    Unread {
        /// The log's folder.
        path: PathBuf,
        /// What is to be mended.
        what: &'static str,
    },
    /// The storage engine refused, and its files could not be salvaged either.
    #[error("write-ahead log: the storage engine does not open")]
    Store(#[source] StoreError),
}

impl OpenError {
    /// Whether its file system is full: with some space it opens.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::Store(error) => error.no_space().is_some(),
            _ => false,
        }
    }
}

/// Why an append was not taken. Nothing of it is in the log, with one exception: [`AppendError::Poisoned`], after which
/// it is unknown.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The log's files have reached their quota.
    #[error("the write-ahead log uses {used} of the {quota} bytes of disk it may use")]
    DiskQuota {
        /// Bytes used.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// The file system has less free space than must stay free.
    #[error("the write-ahead log's file system has {free} bytes free, {reserve} must stay free")]
    DiskReserve {
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The file system ran full during the commit.
    #[error("no space left for the write-ahead log")]
    NoSpace(#[source] Arc<io::Error>),
    /// A request with the same idempotency key was answered, and is in the log: this one is to be answered the same.
    #[error("a request with this idempotency key was answered before")]
    Answered(Arc<super::Answered>),
    /// A write or fsync failed, or the storage engine broke: nothing more is accepted until the process restarts.
    #[error("the write-ahead log is poisoned: {reason}")]
    Poisoned {
        /// What broke.
        reason: String,
    },
    /// The log was closed.
    #[error("the write-ahead log is closed")]
    Closed,
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log was closed; what was not read waits on disk.
    #[error("the write-ahead log is closed")]
    Closed,
    /// The log is poisoned (see [`AppendError::Poisoned`]).
    #[error("the write-ahead log is poisoned: {reason}")]
    Poisoned {
        /// What broke.
        reason: String,
    },
    /// Not now: nothing is lost, the same call may work after a pause.
    #[error("the write-ahead log cannot be read now")]
    Unavailable(#[source] StoreError),
}

/// Why a clean close failed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The log was poisoned before or while closing.
    #[error("the write-ahead log is poisoned: {reason}")]
    Poisoned {
        /// What broke.
        reason: String,
    },
    /// The marks (next sequence, done through) could not be written: the next open re-delivers a little.
    #[error("the write-ahead log's marks could not be written")]
    Marks(#[source] io::Error),
}

/// Why a named state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The name is not a plain file name.
    #[error("\"{name}\" cannot be the name of a state")]
    Name {
        /// The name.
        name: String,
    },
    /// The stored bytes fail their checksum.
    #[error("the stored state \"{name}\" is damaged")]
    Damaged {
        /// The name.
        name: String,
    },
    /// The file system refused.
    #[error("state \"{name}\": {action}")]
    Io {
        /// The name.
        name: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The log was closed, so the folder may belong to another engine by now.
    #[error("the write-ahead log is closed")]
    Closed,
}

impl StateError {
    /// The error of a file system that is full.
    pub(super) fn full(&self) -> Option<io::Error> {
        let Self::Io { source, .. } = self else { return None };
        is_full(source).then(|| io::Error::new(source.kind(), source.to_string()))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What the storage engine (sled) or the files below it said.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// sled's own error.
    #[error("sled")]
    Sled(#[source] sled::Error),
    /// sled panicked; the text is its message.
    #[error("sled panicked: {0}")]
    Panicked(String),
    /// Files beside sled.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// The error of a file system that is full, which is waited out; every other one is not.
    pub(super) fn no_space(&self) -> Option<io::Error> {
        let (Self::Sled(sled::Error::Io(source)) | Self::Io { source, .. }) = self else { return None };
        is_full(source).then(|| io::Error::new(source.kind(), source.to_string()))
    }
}

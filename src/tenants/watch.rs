//! Takes the tenants' file again when it changes.
//!
//! - The file is looked at twice a second: one `stat`, which also sees what no event tells of (a mounted secret whose link
//!   changes, NFS). It is read once two looks in a row have found it the same, so that a file that is just being written is
//!   left to its writer; `ingestion-engine tenants` and `keys` replace it in one step.
//! - A file that is wrong changes nothing: the tenants stay as they were, and health and log say why until it is right.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{Description, Tenants};
use crate::{health::Component, metrics::Metrics};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The state of the file at `path`; none when there is no such file.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?,
        };
        Ok(Some(Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

/// Reads the file, or says in words what is wrong with it.
pub type Read = Arc<dyn Fn() -> Result<Vec<Description>, String> + Send + Sync>;

/// The file and who is told of it.
pub struct Watch {
    /// The file.
    pub path: PathBuf,
    /// Its state when the tenants of now were read from it.
    pub taken: Option<Stamp>,
    /// Reads it.
    pub read: Read,
    /// Takes what was read.
    pub tenants: Tenants,
    /// Tells whether the file is as it should be.
    pub health: Component,
    /// Counts files that are not.
    pub metrics: Arc<Metrics>,
}

impl Watch {
    /// Watches until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut before = self.taken;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let path = self.path.clone();
            let looked = tokio::task::spawn_blocking(move || Stamp::of(&path)).await;
            match looked.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                Ok(now) if now == self.taken => before = now,
                // Not read before it has come to rest.
                Ok(now) if now != before => before = now,
                Ok(Some(now)) => self.take(now).await,
                Ok(None) => {
                    self.taken = None;
                    self.refuse(&format!("{} is gone", self.path.display()));
                }
                Err(error) => self.refuse(&format!("{} cannot be looked at: {error}", self.path.display())),
            }
        }
    }

    async fn take(&mut self, now: Stamp) {
        let (read, path, tenants) = (Arc::clone(&self.read), self.path.clone(), self.tenants.clone());
        // All of it off the async threads: with a hundred thousand tenants also the change of sets takes its time.
        let taken = tokio::task::spawn_blocking(move || {
            let read = read();
            // What was written while it was read is for the next look.
            let is_same = Stamp::of(&path).ok().flatten() == Some(now);
            is_same.then(|| read.map(|list| tenants.replace(list)))
        });
        let taken = taken.await.unwrap_or_else(|panic| Some(Err(format!("reading it failed: {panic}"))));
        let Some(taken) = taken else { return };
        self.taken = Some(now);
        match taken {
            Ok(()) => {
                let set = self.tenants.current();
                tracing::info!(tenants = set.len(), keys = set.keys(), "took the tenants' file again");
                self.health.up();
            }
            Err(reason) => self.refuse(&reason),
        }
    }

    fn refuse(&self, reason: &str) {
        let reason = format!("the tenants stay as they were: {reason}");
        // Said once, and again only when it is something else.
        if self.health.current().and_then(|report| report.reason).as_deref() != Some(&reason) {
            self.metrics.error("tenants");
            tracing::warn!(reason, "the tenants' file was not taken");
            self.health.degraded(reason);
        }
    }
}

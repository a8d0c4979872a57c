//! What cannot be delivered is kept, with its bytes and the reason, and counted: nothing is dropped.
//!
//! ```text
//! relay, source, sink, reprocess --keep--> file, fsynced --deliver--> table dead_letters --replay--> the front, again
//!                                          (this node)                (held, for retention)
//! ```
//!
//! - A letter is on this node's disk before its original is let go of. From there it goes into the table, at once or as soon
//!   as ClickHouse can be reached, and the file is removed. A letter has a name that follows from where it stood, so one that
//!   is kept or delivered twice is one.
//! - The files are bounded by `dead_letters.max_bytes`. At the bound nothing more is kept and whoever has something to keep
//!   waits: only an outage of ClickHouse fills them. The letters in the table are bounded by the same figure; at that bound
//!   the oldest of the tenant that has most of them are removed, and counted. Both are announced in `/health` from
//!   [`ANNOUNCE`] of it on.
//! - `ingestion-engine dead-letters` lists, shows, replays and drops them ([`commands`]).

pub mod commands;
mod deliver;
mod letter;
pub mod replay;
mod spool;
pub(crate) mod store;
mod tell;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

pub(crate) use deliver::{hold, run as deliver};
pub use letter::{About, DeadLetter, Form, Letter, MessageLine, Stage};
use spool::Spool;
use tell::Telling;

use crate::{ids::WalId, metrics::Metrics};

/// The share of the size cap from which `/health` warns.
pub const ANNOUNCE: f64 = 0.8;

/// How long letters are kept, and how much of them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From when something could not be delivered; never longer than its event would have been stored.
    pub retention: Duration,
    /// Most bytes: of the files of a node, and of the letters in the table.
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { retention: Duration::from_hours(30 * 24), max_bytes: 1 << 30 }
    }
}

/// The dead letters of this node. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    spool: Arc<Spool>,
    limits: Limits,
    metrics: Arc<Metrics>,
    telling: Arc<Telling>,
}

impl DeadLetters {
    /// Uses `folder`, which is made when the first letter arrives.
    pub fn new(folder: PathBuf, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { spool: Arc::new(Spool::new(folder, limits.max_bytes)), limits, metrics, telling: Arc::default() }
    }

    /// Keeps `letters` durably, all or, after an error, perhaps some of them. Blocking: one append and one fsync.
    ///
    /// # Errors
    /// The file system's error, or [`io::ErrorKind::StorageFull`] at the size cap; the caller must then keep the originals
    /// where they are and try again.
    pub fn keep(&self, letters: &[DeadLetter<'_>]) -> io::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let now = Timestamp::now();
        let kept: Vec<Letter> = letters.iter().map(|letter| Letter::of(letter, now, self.limits.retention)).collect();
        self.spool.append(&kept)?;
        self.metrics.dead_letters.inc_by(kept.len() as u64);
        self.telling.kept(&kept);
        Ok(())
    }

    /// The letters of ClickHouse's refusals on this node's disk, by where their rows entered. Blocking.
    pub(crate) fn refused_rows(&self) -> io::Result<Vec<(WalId, u64, u32)>> {
        let letters = self.spool.letters()?;
        let refused = letters.into_iter().filter(|letter| letter.stage == Stage::Sink);
        Ok(refused.map(|letter| (letter.wal_id, letter.wal_seq, letter.wal_ordinal)).collect())
    }
}

/// The letters in the files of `folder`. Blocking; beside an engine that works there.
///
/// # Errors
/// The file system's error.
pub fn read_files(folder: &Path) -> io::Result<Vec<Letter>> {
    spool::letters(folder)
}

//! The write-ahead log: what a 2xx means is written here.
//!
//! # What it promises
//! - [`Wal::append`] returns after the append is on disk (`fdatasync`, with [`Durability::Fsync`]), whole or not at all.
//! - Whatever was acknowledged is read back after kill -9, power loss, a full disk, or a restart, until
//!   [`Wal::truncate_through`] gives it free.
//! - A sequence number is never given out twice in one folder, even when every record in it is gone.
//! - Damage is never passed over in silence: it is counted, named by sequence, and the bytes are kept.
//!
//! # Layout
//! ```text
//! wal/LOCK                  one engine at a time
//! wal/meta                  marks: committed, done, reserved sequences (two slots, written in turn)
//! wal/state/<name>          small values of the log's consumer
//! wal/state/months          events by tenant and month, of tenants that have an allowance (see `tally`)
//! wal/state/books           what became of every tenant's events (see `books`)
//! wal/window/<ordinal>      ids of events of a generation, for as long as resends are recognised (see `window`)
//! wal/log/<ordinal>/        a generation: one sled database, at most some 128 MiB
//!     key    u64 big-endian, sequence of the frame's first record
//!     value  a frame: one or more records, each with its own header and checksum (see `record`)
//! wal-damaged/              what was damaged, for the operator, and LOST, which names what is lost until it is seen (see `losses`)
//! ```
//!
//! # Operation
//! One thread writes. It takes whatever waits, puts it into one batch, flushes, syncs, and answers all (group commit).
//! Appends are committed first in, first out, whosever they are, and the reader gives them in that order: there are no lanes.
//! What one tenant can put before another's is bounded outside, by its quota and its share of the requests in flight.
//! The reader is fed from the last 32 MiB in memory; further behind, it reads small ranges from disk.
//!
//! The log is a row of *generations*: when the present database is large enough, it is sealed and the next one begun;
//! when every record of one is done, its folder is deleted. Nothing is ever removed from inside a database.
//!
//! # Why generations
//! With one database for everything, a file that an outage let grow never shrank again when the records were removed
//! one by one (400 MB of records: 672 MB of file, still 672 MB when all were gone, and after the next start), so a disk
//! quota would not have recovered; the removals cost as much as the appends and need space on a full disk; and a start
//! read everything. A folder that is deleted gives its space back at once, damage stays within one generation, a start
//! opens only the generation that was being written, and memory is bounded by a generation and not by the backlog.
//!
//! # Why these sled settings
//! - Segments of at least 8 MiB: a value (sled: a whole leaf page, up to 17 values and in the worst case 20) larger
//!   than a quarter of a segment goes to a file under `blobs/`, which sled never syncs. A quarter of 8 MiB is 20 times
//!   100 kB, more than the largest record of one row. Should a blob appear all the same, it is synced before the answer.
//! - `flush()` uses `sync_file_range`, which does not reach the disk's cache; `fdatasync` on our own descriptor does.
//! - No flusher thread: the writer flushes, and sees the error.
//!
//! # What it is not
//! Not a queue for many consumers (there is one reader), not a replicated log, not a store to look things up in: what
//! [`Wal::find`] does for a person reads all that may hold the event.

#[doc(hidden)]
pub mod bench;
mod books;
mod care;
mod disk;
mod error;
mod find;
mod frames;
mod generation;
mod holdings;
mod housekeeper;
mod losses;
mod meta;
mod packer;
mod reader;
mod record;
mod recover;
mod salvage;
mod seqset;
mod shared;
mod state;
mod tail;
mod tally;
#[cfg(test)]
mod tests;
mod verify;
mod window;
mod writer;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::{
    books::{Account, Intake, Opening},
    error::{AppendError, CloseError, OpenError, ReadError, StateError, StoreError},
    find::{Findings, InLog, Sought},
    holdings::Holdings,
    packer::{Chunk, Codec, Packer},
    reader::Reader,
    record::{DamagedRecord, Record, rows},
    window::{Answer, AnswerKey, Answered},
};
use self::{
    disk::{Device, System},
    generation::Engine,
    housekeeper::Housekeeper,
    recover::{Recovered, recover},
    shared::Shared,
    writer::{Command, Writer},
};
use crate::{
    health::Component,
    ids::{TenantId, WalId, WalSeq},
    metrics::Metrics,
    month::Month,
    urgent,
};

/// When an append counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After `fdatasync`: it survives a power loss. One sync is shared by everything that waits, so under load the cost
    /// is latency (about a millisecond on an SSD) more than throughput.
    #[default]
    Fsync,
    /// When the kernel has it: it survives a crash of the engine, not one of the machine. The operator's choice.
    Os,
}

impl Durability {
    /// As it is configured and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
        }
    }
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The log's folder; damaged bytes go to its sibling `<dir>-damaged`.
    pub dir: PathBuf,
    /// Appends are refused while the log's files have this many bytes.
    pub max_disk_bytes: u64,
    /// Health is degraded from this share of the quota on (0 to 1).
    pub warn_disk_ratio: f64,
    /// Appends are refused while the file system has fewer free bytes.
    pub min_free_bytes: u64,
    /// sled's segment size: a power of two, 8 or 16 MiB. A database that exists keeps its own.
    pub segment_bytes: usize,
    /// sled's page cache, bytes, for each open database (at most two or three are).
    pub cache_bytes: u64,
    /// When an append counts as durable.
    pub durability: Durability,
    /// How long an event's id is remembered, so that a resend is recognised; zero: not at all.
    pub dedup_span: Duration,
    /// How many ids are remembered at most, 40 bytes of memory each; zero: none.
    pub dedup_ids: usize,
    /// How long an open waits for whoever has the folder: a command that reads a log that is stopped, or an engine that ends.
    pub lock_patience: Duration,
}

impl Settings {
    /// The defaults, for `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            max_disk_bytes: 10 << 30,
            warn_disk_ratio: 0.8,
            min_free_bytes: 512 << 20,
            segment_bytes: 8 << 20,
            cache_bytes: 8 << 20,
            durability: Durability::Fsync,
            dedup_span: Duration::from_mins(15),
            dedup_ids: 5_000_000,
            // A process that this one starts has the lock's descriptor too until it runs its program.
            lock_patience: Duration::from_secs(5),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn aside(&self) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push("-damaged");
        self.dir.with_file_name(name)
    }

    fn engine(&self) -> Engine {
        Engine { segment_bytes: self.segment_bytes, cache_bytes: self.cache_bytes }
    }

    /// When a generation is full. Small beside the quota, so that the quota is given back in small steps; large beside
    /// the cost of beginning one (some milliseconds).
    fn generation_bytes(&self) -> u64 {
        (self.max_disk_bytes / 16).clamp(self.segment_bytes as u64, 128 << 20)
    }

    fn check(&self) -> Result<(), OpenError> {
        let wrong = |name, reason: &str| Err(OpenError::Setting { name, reason: reason.to_owned() });
        if !self.segment_bytes.is_power_of_two() || !(8 << 20..=16 << 20).contains(&self.segment_bytes) {
            return wrong("segment_bytes", "must be 8 or 16 MiB");
        }
        if self.max_disk_bytes < 4 * self.segment_bytes as u64 {
            return wrong("max_disk_bytes", "must be at least four times segment_bytes");
        }
        if !(0.0..=1.0).contains(&self.warn_disk_ratio) {
            return wrong("warn_disk_ratio", "must be between 0 and 1");
        }
        if self.dir.file_name().is_none() {
            return wrong("dir", "must end in a name");
        }
        Ok(())
    }
}

/// What is appended at once: the events of one request.
#[derive(Clone, Debug)]
pub struct Append {
    /// Whose events.
    pub tenant: TenantId,
    /// When the request was received, milliseconds since 1970.
    pub received_at_ms: i64,
    /// One record each, in order.
    pub chunks: Vec<Chunk>,
    /// Whether its events add to the tenant's count of the month ([`Wal::counted`]).
    pub counted: bool,
    /// To be kept, as durably as the events, for a repeat of the request.
    pub answer: Option<Answer>,
    /// Its events have been accepted before and are to be stored now: that their ids are known does not count.
    pub again: bool,
}

/// Where an append is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// This opening of the log.
    pub wal_id: WalId,
    /// Its first record.
    pub first: WalSeq,
    /// Its last record.
    pub last: WalSeq,
    /// Events of it that are not in it, because their tenant's events of the same ids were committed before.
    pub duplicates: u64,
}

/// The log in numbers. Records and events are those of generations not deleted yet: what was truncated leaves with its
/// generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records in it.
    pub records: u64,
    /// Events in it.
    pub events: u64,
    /// Bytes of its files, as last measured (at most a second ago).
    pub disk_bytes: u64,
    /// Free bytes on its file system, as last measured.
    pub free_bytes: u64,
    /// The sequence of the next record.
    pub next_seq: WalSeq,
    /// When the oldest record in it was received, milliseconds since 1970; nothing for an empty log.
    pub oldest_received_at_ms: Option<i64>,
}

/// The sending side; when the last clone of it is gone the writer ends.
struct Handle {
    commands: mpsc::Sender<Command>,
}

/// A handle of the log; clones share it.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

impl Wal {
    /// Opens the log in `settings.dir` (created when missing), takes the folder's lock, and recovers what is there.
    /// Blocks: call it on a thread that may.
    pub fn open(settings: Settings, health: Component, metrics: Arc<Metrics>) -> Result<(Self, Reader), OpenError> {
        Self::open_on(settings, health, metrics, Arc::new(System))
    }

    fn open_on(
        settings: Settings,
        health: Component,
        metrics: Arc<Metrics>,
        device: Arc<dyn Device>,
    ) -> Result<(Self, Reader), OpenError> {
        let Recovered { opened, lock, meta, marks, ordinal } = recover(&settings, &metrics)?;
        let next = opened.next;
        let shared = Arc::new(Shared::new(settings, health, metrics, device, opened));
        let (commands, queue) = mpsc::channel();
        let handle = Arc::new(Handle { commands });
        let reader = Reader::new(Arc::clone(&shared), Arc::downgrade(&handle));
        let spawn = |source| OpenError::Io { action: "start a thread for", path: shared.settings.dir.clone(), source };
        let now = Instant::now();
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            meta,
            marks,
            active: None,
            ordinal,
            next,
            housekeeper: Housekeeper::start().map_err(spawn)?,
            unsealed: Vec::new(),
            no_space: None,
            last_care: now,
            last_marks: now,
            last_commit: now,
            since_care: 0,
            lock,
        };
        match writer.begin() {
            Ok(()) => writer.measure(true),
            // A full disk is waited out here too: what is in the log can be read and sent meanwhile.
            Err(error) => match error.no_space() {
                Some(full) => {
                    writer.abandon(full);
                }
                None => return Err(OpenError::Store(error)),
            },
        }
        let thread = thread::Builder::new().name("wal-writer".to_owned());
        // Its own, and those through which the storage engine writes.
        urgent::threads_named("sled-io");
        let run = move || {
            urgent::this_thread();
            writer.run(&queue);
        };
        thread.spawn(run).map_err(spawn)?;
        Ok((Self { shared, handle }, reader))
    }

    /// The id of this opening.
    pub fn wal_id(&self) -> WalId {
        self.shared.wal_id
    }

    /// What an acknowledged append survives.
    pub fn durability(&self) -> Durability {
        self.shared.settings.durability
    }

    /// Whether an append would be taken now. Cheap: an uncontended read lock.
    pub fn accepting(&self) -> Result<(), AppendError> {
        self.shared.accepting()
    }

    /// Appends, and returns when it is durable: all of it or nothing. What waits is not bounded here; bound the
    /// requests in flight. When the future is dropped the append may or may not happen, whole either way.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let received = append.chunks.iter().map(|chunk| u64::from(chunk.event_count)).sum();
        self.append_of(append, Intake { received, ..Intake::default() }).await
    }

    /// The same for what is left of a request of which other events were rejected or dropped.
    pub async fn append_of(&self, append: Append, intake: Intake) -> Result<Appended, AppendError> {
        if let Err(refusal) = self.accepting() {
            self.shared.metrics.wal_refused.inc();
            return Err(refusal);
        }
        let (reply, answer) = oneshot::channel();
        self.handle.commands.send(Command::Append(append, intake, reply)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Enters a request of `tenant` in the books of which nothing is to be appended. Durable with the next commit, or a
    /// second later.
    pub fn note(&self, tenant: TenantId, intake: Intake) {
        self.shared.books.lock().note(tenant, intake, 0);
    }

    /// What to say when the writer is not there any more.
    fn gone(&self) -> AppendError {
        self.shared.poison_reason().map_or(AppendError::Closed, |reason| AppendError::Poisoned { reason })
    }

    /// Gives every record up to `seq` free. Never blocks; the files go when a whole generation is free.
    pub fn truncate_through(&self, seq: WalSeq) {
        let before = self.shared.done.fetch_max(seq.0, Relaxed);
        // One reminder for each batch of truncations is enough, and a writer that ended needs none.
        if before < seq.0 && !self.shared.reminded.swap(true, Relaxed) {
            self.handle.commands.send(Command::Care).ok();
        }
    }

    /// The highest sequence given to [`Wal::truncate_through`], earlier openings included (about a second of them may
    /// be forgotten in a power loss).
    pub fn done_through(&self) -> Option<WalSeq> {
        match self.shared.done.load(Relaxed) {
            0 => None,
            done => Some(WalSeq(done)),
        }
    }

    /// Saves `value` under `name` (letters, digits, `-`, `_`), durable before it returns, in a file of its own.
    pub async fn save_state(&self, name: &'static str, value: Vec<u8>) -> Result<(), StateError> {
        if matches!(self.accepting(), Err(AppendError::Closed)) {
            return Err(StateError::Closed);
        }
        let shared = Arc::clone(&self.shared);
        let saved = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = shared.saving.lock();
            state::save(&shared.settings.dir, name, &value)
        });
        saved.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(StateError::Io { name: name.to_owned(), action: "write", source })
        })
    }

    /// What was saved under `name`, by this opening or an earlier one. Blocks for one small read.
    pub fn load_state(&self, name: &'static str) -> Result<Option<Vec<u8>>, StateError> {
        state::load(&self.shared.settings.dir, name)
    }

    /// Events of `tenant` received in `month` and ever committed to this folder, of the appends that were to be counted.
    /// Survives whatever the records survive (see `tally`).
    pub fn counted(&self, tenant: TenantId, month: Month) -> u64 {
        self.shared.tally.lock().count(tenant, month)
    }

    /// The name under which the answer to a request of `tenant` with the idempotency key `text` is kept.
    pub fn answer_key(&self, tenant: TenantId, text: &[u8]) -> AnswerKey {
        self.shared.window.lock().answer_key(tenant, text)
    }

    /// What was answered under `key` within the last ten minutes, across restarts.
    pub fn answered(&self, key: AnswerKey) -> Option<Arc<Answered>> {
        self.shared.window.lock().answered(key)
    }

    /// Looks for an event in records and dedup window. Reads what is on disk: for a person who asks, one at a time.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn find(&self, sought: Sought) -> Result<Findings, ReadError> {
        let (shared, stop) = (Arc::clone(&self.shared), CancellationToken::new());
        let _ends_with_this_call = stop.clone().drop_guard();
        let looked = tokio::task::spawn_blocking(move || find::in_open_log(&shared, &sought, &stop)).await;
        let looked = looked.unwrap_or_else(|error| Err(StoreError::Panicked(error.to_string())));
        looked.map_err(ReadError::Unavailable)
    }

    /// Looks for an event in a log that no engine has open, under the folder's lock; none when there is no log. Blocking.
    ///
    /// # Errors
    /// [`OpenError::Lock`] when an engine has it, and what the file system says.
    pub fn find_in(settings: &Settings, sought: &Sought) -> Result<Option<Findings>, OpenError> {
        find::in_closed_log(settings, sought)
    }

    /// The books as of the last commit, and what of it the log still holds, counted record by record. Blocks: reads what
    /// waits in the log.
    ///
    /// # Errors
    /// The storage engine's.
    pub fn holdings(&self) -> Result<Holdings, StoreError> {
        holdings::count(&self.shared)
    }

    /// The same of a log that no engine has open; none when there is no log. Blocks. Changes nothing in its folder, which
    /// is locked meanwhile.
    ///
    /// # Errors
    /// [`OpenError::Lock`] when an engine has it, [`OpenError::Unread`] when an engine must open it first.
    pub fn holdings_in(settings: &Settings) -> Result<Option<Holdings>, OpenError> {
        holdings::in_closed_log(settings)
    }

    /// Has the books of a log that is not open begin anew with its next opening, with the records that wait then. For when
    /// nothing can be held against them any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget_books(settings: &Settings) -> io::Result<()> {
        let Ok(file) = state::path(&settings.dir, books::NAME) else { return Ok(()) };
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => file.parent().map_or(Ok(()), state::sync_folder),
        }
    }

    /// The log in numbers.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Cancelled when the log is poisoned: the process must then exit with an error, and be started again.
    pub fn poisoned(&self) -> CancellationToken {
        self.shared.poison.clone()
    }

    /// Commits what waits, writes the marks, and lets go of the folder. Other clones then answer that it is closed.
    pub async fn close(self) -> Result<(), CloseError> {
        let (reply, answer) = oneshot::channel();
        let poisoned = || self.shared.poison_reason().map_or(Ok(()), |reason| Err(CloseError::Poisoned { reason }));
        if self.handle.commands.send(Command::Close(reply)).is_err() {
            return poisoned();
        }
        answer.await.unwrap_or_else(|_| poisoned())
    }
}

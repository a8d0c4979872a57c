//! What the writer thread, the reader and the handles share.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Settings, Stats,
    books::Books,
    disk::Device,
    error::{AppendError, StoreError},
    generation::{Engine, FRAME_RECORDS, Generation, ends, open_engine},
    losses::{Losses, Notice, named, within},
    record::{Damage, claimed},
    salvage::{Salvaged, salvage},
    seqset::SeqSet,
    tail::Tail,
    tally::Tally,
    verify,
    window::Window,
};
use crate::{
    error_chain::chain,
    health::Component,
    ids::{WalId, WalSeq},
    metrics::Metrics,
};

/// How far the log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Every record up to here is committed (or was never given to anybody).
    pub committed: u64,
    /// Nothing more will come.
    pub closed: bool,
}

pub(super) struct Shared {
    pub settings: Settings,
    pub wal_id: WalId,
    pub health: Component,
    pub metrics: Arc<Metrics>,
    pub device: Arc<dyn Device>,
    /// Where the generations are.
    pub root: PathBuf,
    /// Where damaged bytes go.
    pub aside: PathBuf,
    /// Every record up to here may go.
    pub done: AtomicU64,
    pub next_seq: AtomicU64,
    pub disk_bytes: AtomicU64,
    pub free_bytes: AtomicU64,
    /// Oldest first; the last one is written.
    pub generations: RwLock<VecDeque<Arc<Generation>>>,
    pub tail: Mutex<Tail>,
    pub tally: Mutex<Tally>,
    pub books: Mutex<Books>,
    pub notice: Notice,
    /// Records behind this are being counted and stay, done or not.
    pub pin: Mutex<Option<u64>>,
    /// Held while a generation is salvaged.
    pub salvaging: Mutex<()>,
    /// Held while the log is counted.
    pub counting: Mutex<()>,
    pub window: Mutex<Window>,
    pub progress: watch::Sender<Progress>,
    gate: RwLock<Result<(), AppendError>>,
    pub poison: CancellationToken,
    reason: OnceLock<String>,
    /// Ordinal of the generation that the reader reads from disk; its database stays open.
    pub reading: AtomicU64,
    /// The writer was reminded of a truncation and has not looked yet.
    pub reminded: AtomicBool,
    /// Held while a state is saved.
    pub saving: Mutex<()>,
}

/// The parts that the opening finds out.
pub(super) struct Opened {
    pub wal_id: WalId,
    pub done: u64,
    pub next: u64,
    pub generations: VecDeque<Arc<Generation>>,
    pub tally: Tally,
    pub books: Books,
    pub notice: Notice,
    pub window: Window,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        health: Component,
        metrics: Arc<Metrics>,
        device: Arc<dyn Device>,
        opened: Opened,
    ) -> Self {
        let Opened { wal_id, done, next, generations, tally, books, notice, window } = opened;
        Self {
            root: settings.root(),
            aside: settings.aside(),
            settings,
            wal_id,
            health,
            metrics,
            device,
            done: AtomicU64::new(done),
            next_seq: AtomicU64::new(next),
            disk_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            generations: RwLock::new(generations),
            tail: Mutex::new(Tail::new(next)),
            tally: Mutex::new(tally),
            books: Mutex::new(books),
            notice,
            pin: Mutex::new(None),
            salvaging: Mutex::new(()),
            counting: Mutex::new(()),
            window: Mutex::new(window),
            progress: watch::Sender::new(Progress { committed: next - 1, closed: false }),
            gate: RwLock::new(Ok(())),
            poison: CancellationToken::new(),
            reason: OnceLock::new(),
            reading: AtomicU64::new(0),
            reminded: AtomicBool::new(false),
            saving: Mutex::new(()),
        }
    }

    /// Whether an append would be taken now.
    pub(super) fn accepting(&self) -> Result<(), AppendError> {
        match &*self.gate.read() {
            Ok(()) => Ok(()),
            Err(refusal) => Err(refusal.clone()),
        }
    }

    /// Every record up to here is done, and nobody is counting those behind.
    pub(super) fn done_and_counted(&self) -> u64 {
        let pin = self.pin.lock();
        let done = self.done.load(Relaxed);
        pin.map_or(done, |pin| done.min(pin))
    }

    /// Opens or shuts the gate; a poisoned log stays shut.
    pub(super) fn set_gate(&self, state: Result<(), AppendError>) {
        let mut gate = self.gate.write();
        if !matches!(*gate, Err(AppendError::Poisoned { .. })) {
            *gate = state;
        }
    }

    /// Nothing is durable any more: refuse everything until the process is restarted.
    pub(super) fn poison(&self, reason: &str) {
        let reason = self.reason.get_or_init(|| reason.to_owned()).clone();
        self.metrics.error("wal");
        tracing::error!(reason, "the write-ahead log is poisoned and accepts nothing more; the process must restart");
        self.health.down(format!("poisoned, the process must restart: {reason}"));
        self.set_gate(Err(AppendError::Poisoned { reason }));
        self.poison.cancel();
    }

    pub(super) fn poison_reason(&self) -> Option<String> {
        self.reason.get().cloned()
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats {
            disk_bytes: self.disk_bytes.load(Relaxed),
            free_bytes: self.free_bytes.load(Relaxed),
            next_seq: WalSeq(self.next_seq.load(Relaxed)),
            ..Stats::default()
        };
        let done = self.done.load(Relaxed);
        for generation in self.generations.read().iter().filter(|g| !g.is_empty() && g.last() > done) {
            stats.records += generation.records.load(Relaxed);
            stats.events += generation.events.load(Relaxed);
            stats.oldest_received_at_ms.get_or_insert(generation.received_at_ms.load(Relaxed));
        }
        stats
    }

    pub(super) fn engine(&self) -> Engine {
        self.settings.engine()
    }

    /// The database of `generation`, opened when it is not, and salvaged when it must be.
    pub(super) fn database(&self, generation: &Generation) -> Result<sled::Db, StoreError> {
        let mut slot = generation.db.lock();
        if let Some(db) = &*slot {
            return Ok(db.clone());
        }
        let from = generation.first.max(self.done.load(Relaxed) + 1);
        let check = Check { generation, engine: self.engine(), from, to: generation.last() };
        let db = if let Some(db) = check.open_whole()? {
            db
        } else {
            drop(slot);
            self.salvage(generation)?;
            slot = generation.db.lock();
            // Another thread may have found the damage too, and been quicker: opened a second time, the database would wait for
            // its own lock for ever.
            if let Some(db) = &*slot {
                return Ok(db.clone());
            }
            open_engine(&generation.dir, self.engine())?
        };
        *slot = Some(db.clone());
        Ok(db)
    }

    /// Rebuilds a sealed generation from its intact records; what is missing then is named and counted.
    pub(super) fn salvage(&self, generation: &Generation) -> Result<(), StoreError> {
        let _one_at_a_time = self.salvaging.lock();
        if generation.salvaged.load(Relaxed) {
            return Ok(());
        }
        let from = generation.first.max(self.done.load(Relaxed) + 1);
        let to = generation.last();
        let salvaged = salvage(generation, self.engine(), &self.aside, to)?;
        let losses = report(generation, salvaged, from, to, &self.metrics);
        self.notice.add(&losses.gaps);
        let mut books = self.books.lock();
        let known = books.through;
        books.lose(known, from - 1, &losses);
        drop(books);
        generation.seal().map_err(StoreError::io("seal a salvaged generation"))
    }

    /// Keeps the bytes of a damaged record, names it and counts it, once.
    pub(super) fn set_aside(&self, generation: &Generation, key: u64, damage: &Damage) {
        let name = format!("generation-{:020}-frame-{key}-byte-{}.record", generation.ordinal, damage.offset);
        let path = self.aside.join(name);
        if path.exists() {
            return;
        }
        let claim = claimed(&damage.bytes);
        if let Some(claim) = &claim {
            self.books.lock().damage(claim);
        }
        let named = claim.map(|claim| claim.seq).filter(|seq| (key..key + FRAME_RECORDS as u64).contains(seq));
        self.notice.add(&[(named.unwrap_or(key), named.unwrap_or(key))]);
        let kept = fs::create_dir_all(&self.aside).and_then(|()| fs::write(&path, &damage.bytes));
        self.metrics.wal_damaged_records.inc();
        self.metrics.error("wal");
        tracing::error!(
            frame = key,
            generation = generation.ordinal,
            reason = %damage.reason,
            kept = kept.is_ok().then(|| path.display().to_string()),
            "a record of the write-ahead log is damaged and was set aside; reading goes on after it"
        );
    }
}

/// A generation's files and what they must hold.
pub(super) struct Check<'a> {
    pub generation: &'a Generation,
    pub engine: Engine,
    pub from: u64,
    pub to: u64,
}

impl Check<'_> {
    /// Opens the database when its files are whole; nothing when they must be salvaged.
    pub(super) fn open_whole(&self) -> Result<Option<sled::Db>, StoreError> {
        let dir = &self.generation.dir;
        let segment = super::generation::stored_segment_bytes(dir);
        let Some(segment) = segment else { return Ok(self.damaged("its configuration file is damaged or missing")) };
        let walk = match verify::walk(&dir.join("db"), segment) {
            Ok(walk) => walk,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(self.damaged("its data file is missing"));
            }
            Err(source) => return Err(StoreError::Io { action: "read a generation's data file", source }),
        };
        if let Some(damage) = &walk.damage {
            return Ok(self.damaged(damage));
        }
        let expected = self.generation.lost.lock().missing(self.from, self.to);
        if let Some((first, last)) = expected.iter().find_map(|(a, b)| walk.valid.missing(*a, *b).first().copied()) {
            return Ok(self.damaged(&format!("records {first} to {last} are not found in their order")));
        }
        let opened = open_engine(dir, self.engine).and_then(|db| Ok((ends(&db)?, db)));
        match opened {
            Ok((ends, db)) => {
                let last = ends.map_or(0, |ends| ends.last.seq.0);
                if let Some((_, to)) = expected.last().filter(|(_, to)| last < *to) {
                    drop(db);
                    return Ok(self.damaged(&format!("the storage engine ends at record {last} of {to}")));
                }
                Ok(Some(db))
            }
            Err(error) if error.no_space().is_some() => Err(error),
            Err(error) => Ok(self.damaged(&chain(&error))),
        }
    }

    fn damaged(&self, why: &str) -> Option<sled::Db> {
        tracing::error!(
            generation = self.generation.ordinal,
            folder = %self.generation.dir.display(),
            reason = why,
            "files of the write-ahead log are damaged; intact records are salvaged from them"
        );
        None
    }
}

/// Says what a salvage saved and what of `from..=to` it did not; gives what is lost.
pub(super) fn report(generation: &Generation, salvaged: Salvaged, from: u64, to: u64, metrics: &Metrics) -> Losses {
    metrics.error("wal");
    let gaps = salvaged.found.missing(generation.first, to);
    let mut all = SeqSet::default();
    for (first, last) in &gaps {
        all.append_range(*first, *last);
    }
    // What was lost before is named and counted already.
    let before = std::mem::replace(&mut *generation.lost.lock(), all);
    let gaps = gaps.iter().filter(|(_, last)| *last >= from);
    let gaps: Vec<_> = gaps.flat_map(|(first, last)| before.missing(from.max(*first), *last)).collect();
    let lost: u64 = gaps.iter().map(|(first, last)| last - first + 1).sum();
    metrics.wal_damaged_records.inc_by(lost);
    tracing::error!(
        generation = generation.ordinal,
        damaged_files = %salvaged.aside.display(),
        lost_records = lost,
        lost_sequences = named(&gaps).join(", "),
        unknown_format = salvaged.unknown,
        "a generation of the write-ahead log was salvaged"
    );
    let Salvaged { claims, mut proven, .. } = salvaged;
    within(&gaps, &mut proven);
    Losses { gaps, claims, proven, waiting: Vec::new() }
}

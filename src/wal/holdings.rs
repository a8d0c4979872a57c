//! What is in the log, counted by reading it: for the ledger, which takes nobody's word for it.
//!
//! ```text
//! open log     its databases
//! closed log   generations that are in the saved books: their files, as bytes, as a salvage reads them
//!              the last one, after a kill, whose records are not: a copy in the folder for temporary files, opened as
//!              the next start will open it, and mended where it must be
//! ```
//! So whoever counts a closed log changes nothing in it, and needs it only while it reads.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use sled::IVec;
use tracing::subscriber::NoSubscriber;

use super::{
    Settings,
    books::{self, Account, Books, Opening},
    error::{OpenError, StateError, StoreError},
    generation::{Generation, beside, read_range},
    losses::{Losses, within},
    meta::{Marks, MetaFile},
    record::{Record, split_frame},
    recover::{self, close, look, missing_between, settle},
    salvage::{self, Piece, proven, search},
    seqset::SeqSet,
    shared::Shared,
    state,
};
use crate::{
    folder_lock::FolderLock,
    ids::{TenantId, WalId},
    metrics::Metrics,
};

/// An engine that ends just now, or another command, is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much is read at a time: it bounds memory.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 4 << 20;

/// The books at a cut, and what the log holds of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// What became of the events of each tenant.
    pub accounts: BTreeMap<TenantId, Account>,
    /// Which sequences these are, by id of the log.
    pub openings: Vec<Opening>,
    /// Records up to here are in the accounts.
    pub cut: u64,
    /// Records up to here have left the log for good.
    pub done: u64,
    /// Events in records behind `done`, up to the cut.
    pub events: BTreeMap<TenantId, u64>,
    /// Events that were lost before they were in the accounts, of which nobody knows whose they are.
    pub lost: u64,
    /// Of so many records among them it is not known how many events they held: each counts as one.
    pub vague: u64,
    /// Records that were lost while they were in the accounts.
    pub missing: u64,
    /// When the books were begun, milliseconds since 1970.
    pub since_ms: i64,
    /// Records that a closed log should hold and that cannot be read, first and last. (An open one names them itself.)
    pub unreadable: Vec<(u64, u64)>,
}

impl Holdings {
    fn of(books: &Books, done: u64) -> Self {
        Self {
            accounts: books.accounts.clone(),
            openings: books.openings.clone(),
            cut: books.through,
            done,
            lost: books.lost,
            vague: books.vague,
            missing: books.missing,
            since_ms: books.since_ms,
            ..Self::default()
        }
    }

    /// Whether a record is in the accounts and has left the log.
    pub fn has_left(&self, wal_id: WalId, seq: u64) -> bool {
        let holds = |opening: &Opening| opening.wal_id == wal_id && (opening.first..=opening.last).contains(&seq);
        seq <= self.done && self.openings.iter().any(holds)
    }
}

/// Keeps records behind `done` from going while it lives.
struct Pin<'a>(&'a Mutex<Option<u64>>);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

pub(super) fn count(shared: &Shared) -> Result<Holdings, StoreError> {
    let _one_at_a_time = shared.counting.lock();
    let done = {
        let mut pin = shared.pin.lock();
        let done = shared.done.load(Relaxed);
        *pin = Some(done);
        done
    };
    let _pin = Pin(&shared.pin);
    let mut holdings = { Holdings::of(&shared.books.lock(), done) };
    let generations: Vec<_> =
        shared.generations.read().iter().filter(|generation| generation.last() > done).cloned().collect();
    for generation in generations {
        add(shared, &generation, &mut holdings)?;
    }
    Ok(holdings)
}

fn add(shared: &Shared, generation: &Arc<Generation>, holdings: &mut Holdings) -> Result<(), StoreError> {
    let db = shared.database(generation)?;
    let mut next = generation.first.max(holdings.done + 1);
    let last = generation.last().min(holdings.cut);
    while next <= last {
        let range = read_range(&db, next, last, READ_RECORDS, READ_BYTES)?;
        for record in &range.records {
            *holdings.events.entry(record.tenant).or_default() += u64::from(record.event_count);
        }
        next = range.records.last().map_or(last, |record| record.seq.0) + 1;
    }
    drop(db);
    // As the reader leaves them: only what is read or written stays open.
    if generation.sealed.load(Relaxed) && shared.reading.load(Relaxed) != generation.ordinal {
        generation.close();
    }
    Ok(())
}

/// Counts the log in the folder of `settings`, which no engine has open; none when there is no log.
pub(super) fn in_closed_log(settings: &Settings) -> Result<Option<Holdings>, OpenError> {
    let failed = |action| {
        let path = settings.dir.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let unread = |what| OpenError::Unread { path: settings.dir.clone(), what };
    let root = settings.root();
    if !root.exists() {
        return Ok(None);
    }
    let _nobody_writes = FolderLock::acquire(&settings.dir, PATIENCE)?;
    let marks = MetaFile::peek(&settings.dir).map_err(failed("read the marks in"))?;
    let marks = marks.ok_or_else(|| unread("its marks are missing, damaged, or of a newer version"))?;
    if salvage::is_interrupted(&root).map_err(failed("list the generations in"))? {
        return Err(unread("a salvage in it was interrupted"));
    }
    let books = match state::load(&settings.dir, books::NAME) {
        Ok(Some(bytes)) => Books::decode(&bytes).ok_or_else(|| unread("its books are damaged"))?,
        Ok(None) => return Err(unread("it has no books yet")),
        Err(StateError::Io { source, .. }) => return Err(failed("read the books in")(source)),
        Err(_) => return Err(unread("its books are damaged")),
    };
    let mut closed = Closed {
        settings,
        root,
        marks,
        booked: books.through,
        books,
        events: BTreeMap::new(),
        losses: Losses::default(),
    };
    closed.read()?;
    let Closed { mut books, events, losses, booked, .. } = closed;
    books.end_at(marks.committed, marks.cumulative);
    books.lose(booked, marks.done, &losses);
    Ok(Some(Holdings { events, unreadable: losses.gaps, ..Holdings::of(&books, marks.done) }))
}

struct Closed<'a> {
    settings: &'a Settings,
    root: PathBuf,
    marks: Marks,
    /// Records up to here were in the books.
    booked: u64,
    books: Books,
    events: BTreeMap<TenantId, u64>,
    /// What cannot be read.
    losses: Losses,
}

impl Closed<'_> {
    fn read(&mut self) -> Result<(), OpenError> {
        let path = self.settings.dir.clone();
        let ordinals = recover::list(&self.root);
        let ordinals = ordinals.map_err(|source| OpenError::Io { action: "list the generations in", path, source })?;
        let mut there = BTreeMap::new();
        let oldest = self.marks.oldest;
        for ordinal in ordinals.iter().copied().filter(|ordinal| *ordinal >= oldest) {
            let generation = match Generation::from_seal(&self.root, ordinal) {
                Some(sealed) if sealed.last() <= self.booked => {
                    self.search(&sealed).map_err(OpenError::Store)?;
                    sealed
                }
                // What the engine would say of its own files is not to be said of a copy.
                _ => tracing::subscriber::with_default(NoSubscriber::new(), || self.look_at_copy(ordinal))?,
            };
            if !generation.is_empty() {
                there.insert(ordinal, (generation.first, generation.last()));
            }
        }
        let missing = missing_between(&there, &self.marks, &ordinals);
        self.losses.gaps.extend(missing.into_iter().map(|(_, first, last)| (first, last)));
        Ok(())
    }

    fn add(&mut self, record: &Record) {
        if record.seq.0 > self.marks.done {
            *self.events.entry(record.tenant).or_default() += u64::from(record.event_count);
        }
    }

    /// A generation of which everything is in the books.
    fn search(&mut self, generation: &Generation) -> Result<(), StoreError> {
        let (from, to) = (generation.first.max(self.marks.done + 1), generation.last());
        if from > to {
            return Ok(());
        }
        let (mut seen, mut claims) = (SeqSet::default(), Vec::new());
        search(&generation.dir, |piece| {
            match piece {
                Piece::Record(seq, bytes) if (generation.first..=to).contains(&seq) && !seen.contains(seq) => {
                    seen.insert(seq);
                    split_frame(&IVec::from(bytes)).iter().flatten().for_each(|record| self.add(record));
                }
                Piece::Damaged(claim) | Piece::Cut(claim) if (generation.first..=to).contains(&claim.seq) => {
                    claims.push(claim);
                }
                _ => {}
            }
            Ok(())
        })?;
        let lost = generation.lost.lock();
        let gaps = seen.missing(from, to).into_iter().flat_map(|(first, last)| lost.missing(first, last));
        let gaps: Vec<_> = gaps.collect();
        // As a salvage will find them.
        let mut proven = proven(&generation.dir, &seen, &mut claims)?;
        within(&gaps, &mut proven);
        self.losses.extend(Losses { gaps, proven, ..Losses::default() });
        Ok(())
    }

    /// One with records that are not, as the next open will find it.
    fn look_at_copy(&mut self, ordinal: u64) -> Result<Generation, OpenError> {
        let original = Generation::new(&self.root, ordinal, 0).dir;
        let copied = |source| OpenError::Io { action: "copy, to look at it,", path: original.clone(), source };
        let copy = Copy::of(&original).map_err(copied)?;
        let settings = Settings { dir: copy.log(), ..self.settings.clone() };
        let (root, marks, metrics) = (settings.root(), self.marks, Metrics::new());
        let mut losses = Losses::default();
        let generation = match Generation::from_seal(&root, ordinal) {
            Some(sealed) => sealed,
            None => settle(&settings, &root, ordinal, &marks, &metrics, &mut losses)?,
        };
        if !generation.is_empty() {
            let from = generation.first.max(marks.done.min(self.booked) + 1);
            let db = look(&settings, &generation, from, &marks, &metrics, &mut losses, |record| {
                self.books.add_found(record);
                self.add(record);
            })?;
            let from = generation.first.max(self.booked + 1);
            beside(&db, from, generation.last(), |value| self.books.add_value(value)).map_err(OpenError::Store)?;
            close(db)?;
        }
        generation.close();
        self.losses.extend(losses);
        Ok(generation)
    }
}

/// A copy of one generation, in a folder of a log's form, for as long as this lives.
struct Copy(PathBuf);

impl Copy {
    fn of(generation: &Path) -> io::Result<Self> {
        let name = format!("ingestion-engine-{}-{}", std::process::id(), uuid::Uuid::new_v4());
        let dir = std::env::temp_dir().join(name);
        // Other people's events.
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let copy = Self(dir);
        copy_files(generation, &copy.log().join("log").join(generation.file_name().unwrap_or_default()))?;
        Ok(copy)
    }

    fn log(&self) -> PathBuf {
        self.0.join("wal")
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What stays is in the folder for temporary files.
        fs::remove_dir_all(&self.0).ok();
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

//! Looks for one event in the log, for a person who asks where it is. Changes nothing.
//!
//! ```text
//! open log     full generations: their files, as bytes; the one that is written: its database, a few MiB at a time
//! closed log   all of them as bytes, under the folder's lock, so that nobody begins to write meanwhile
//! ```
//!
//! The bytes are searched as a salvage searches them, because a full generation whose database is opened may be repaired,
//! and because it is faster. A generation that was finished before the moment asked for is left out.
//!
//! An id that the dedup window still knows and that stands in no record any more was passed on, or is lost.

use std::{io, ops::RangeInclusive, path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

use serde::{Deserialize, Serialize};
use sled::IVec;
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    error::{OpenError, StateError, StoreError},
    generation::{Generation, guarded, read_range},
    meta::{Marks, MetaFile},
    record::{Record, rows, split_frame},
    recover,
    salvage::{Piece, search},
    seqset::SeqSet,
    shared::Shared,
    state,
    window::{SECRET, Window},
};
use crate::{
    folder_lock::FolderLock,
    ids::{EventId, TenantId, WalId, WalSeq},
    row::{self, Sighted},
};

/// Requests are committed in nearly the order in which they were received: a record that was received this much before its
/// predecessor is not expected.
const SLACK_MS: i64 = 60_000;
/// How much of the generation that is written is read at a time.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 4 << 20;
/// An engine that ends just now is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sought {
    /// The event.
    pub event: EventId,
    /// Only that tenant's; none: everybody's.
    pub tenant: Option<TenantId>,
    /// Tenants whose events of this id the dedup window is asked for: it knows none by the id alone.
    pub asked: Vec<TenantId>,
    /// Records that were received before that moment are not looked at, Unix milliseconds. The window's word goes further.
    pub since_ms: i64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Rows in records, in the order of the log.
    pub rows: Vec<InLog>,
    /// Who sent the id, and when it was committed, according to the dedup window: without those in `rows`.
    pub remembered: Vec<(TenantId, i64)>,
    /// When the oldest record in the log was received, Unix milliseconds; none in an empty log, and where it is not known.
    pub oldest_received_at_ms: Option<i64>,
}

/// A row of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InLog {
    /// The opening that wrote it.
    pub wal_id: WalId,
    /// The record.
    pub seq: WalSeq,
    /// The row in it.
    pub ordinal: u32,
    /// Whether what comes behind the log has acknowledged the record.
    pub passed_on: bool,
    /// What the row says.
    pub row: Sighted,
}

/// Looks through a log that is open in this process.
pub(super) fn in_open_log(shared: &Shared, sought: &Sought, stop: &CancellationToken) -> Result<Findings, StoreError> {
    let remembered = shared.window.lock().committed_at_ms(sought.event, &sought.asked);
    let mut looking = Looking::new(sought, remembered, stop.clone());
    let generations: Vec<_> = shared.generations.read().iter().cloned().collect();
    let began = |generation: &Generation| (!generation.is_empty()).then(|| generation.received_at_ms.load(Relaxed));
    for (index, generation) in generations.iter().enumerate() {
        if looking.is_too_old(generations.get(index + 1).and_then(|next| began(next))) {
            continue;
        }
        let last = generation.last();
        if !looking.read_open(generation, last)? && !generation.is_empty() {
            match looking.search(&generation.dir, generation.first..=last) {
                // Its folder may just have been deleted because everything in it was passed on.
                Err(error) if shared.generations.read().iter().any(|other| other.ordinal == generation.ordinal) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
    let done = shared.done.load(Relaxed);
    Ok(looking.finish(done, generations.first().and_then(|oldest| began(oldest))))
}

/// Looks through the log in the folder of `settings`, which no engine has open; none when there is no log.
pub(super) fn in_closed_log(settings: &Settings, sought: &Sought) -> Result<Option<Findings>, OpenError> {
    let failed = |action| {
        let path = settings.dir.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let root = settings.root();
    if !root.exists() {
        return Ok(None);
    }
    let _nobody_writes = FolderLock::acquire(&settings.dir, PATIENCE)?;
    let marks = MetaFile::peek(&settings.dir).map_err(failed("read the marks in"))?.unwrap_or_default();
    let Marks { done, oldest, .. } = marks;
    let remembered = remembered(settings, sought)?;
    let mut looking = Looking::new(sought, remembered, CancellationToken::new());
    let ordinals = recover::list(&root).map_err(failed("list the generations in"))?;
    let generations: Vec<_> = ordinals.into_iter().filter(|ordinal| *ordinal >= oldest).collect();
    let sealed: Vec<_> = generations.iter().map(|ordinal| Generation::from_seal(&root, *ordinal)).collect();
    let began = |generation: &Generation| generation.received_at_ms.load(Relaxed);
    for (index, (ordinal, seal)) in generations.iter().zip(&sealed).enumerate() {
        if looking.is_too_old(sealed.get(index + 1).and_then(Option::as_ref).map(began)) {
            continue;
        }
        let (dir, bounds) = match seal {
            Some(seal) => (seal.dir.clone(), seal.first..=seal.last()),
            // It was being written when the engine ended: what is whole in it is delivered at the next start.
            None => (Generation::new(&root, *ordinal, 0).dir, 0..=u64::MAX),
        };
        looking.search(&dir, bounds).map_err(OpenError::Store)?;
    }
    Ok(Some(looking.finish(done, sealed.first().and_then(Option::as_ref).map(began))))
}

/// What the files of the dedup window say. Ids of a generation without one stand in its records.
fn remembered(settings: &Settings, sought: &Sought) -> Result<Vec<(TenantId, i64)>, OpenError> {
    let failed = |source| OpenError::Io { action: "read the dedup window in", path: settings.dir.clone(), source };
    let secret = match state::load(&settings.dir, SECRET) {
        Ok(secret) => secret.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()),
        Err(StateError::Io { source, .. }) => return Err(failed(source)),
        Err(_) => None,
    };
    let Some(secret) = secret else { return Ok(Vec::new()) };
    let window = Window::new(settings, secret, jiff::Timestamp::now().as_millisecond());
    Ok(window.committed_at_ms_in(&window.files().map_err(failed)?, sought.event, &sought.asked))
}

struct Looking<'a> {
    sought: &'a Sought,
    since_ms: i64,
    stop: CancellationToken,
    findings: Findings,
    seen: SeqSet,
    raw: Vec<u8>,
}

impl<'a> Looking<'a> {
    fn new(sought: &'a Sought, remembered: Vec<(TenantId, i64)>, stop: CancellationToken) -> Self {
        // Where the window knows the moment, its record is looked for there.
        let known = remembered.iter().map(|(_, at_ms)| at_ms.saturating_sub(SLACK_MS)).min();
        let since_ms = known.unwrap_or(i64::MAX).min(sought.since_ms);
        let findings = Findings { remembered, ..Findings::default() };
        Self { sought, since_ms, stop, findings, seen: SeqSet::default(), raw: Vec::new() }
    }

    /// Whether a generation was finished before the moment asked for; `next` is when its successor began.
    fn is_too_old(&self, next: Option<i64>) -> bool {
        next.is_some_and(|next| next.saturating_add(SLACK_MS) < self.since_ms)
    }

    /// Reads a generation that is written, through its database; false once there is none to be had.
    fn read_open(&mut self, generation: &Generation, last: u64) -> Result<bool, StoreError> {
        let mut next = generation.first;
        while next <= last {
            self.go_on()?;
            if generation.sealed.load(Relaxed) {
                return Ok(false);
            }
            // For one piece only: whoever opens it next waits until nobody has it.
            let Some(db) = generation.db.lock().clone() else { return Ok(false) };
            let read = read_range(&db, next, last, READ_RECORDS, READ_BYTES);
            guarded(|| {
                drop(db);
                Ok(())
            })?;
            let records = read?.records;
            next = records.last().map_or(last, |record| record.seq.0) + 1;
            for record in &records {
                self.look_at(record);
            }
        }
        Ok(true)
    }

    fn search(&mut self, dir: &Path, bounds: RangeInclusive<u64>) -> Result<(), StoreError> {
        search(dir, |piece| {
            self.go_on()?;
            if let Piece::Record(seq, bytes) = piece
                && bounds.contains(&seq)
                && !self.seen.contains(seq)
            {
                for record in split_frame(&IVec::from(bytes)).iter().flatten() {
                    self.look_at(record);
                }
            }
            Ok(())
        })
    }

    fn go_on(&self) -> Result<(), StoreError> {
        let stopped = || StoreError::io("look for an event")(io::ErrorKind::Interrupted.into());
        if self.stop.is_cancelled() { Err(stopped()) } else { Ok(()) }
    }

    fn look_at(&mut self, record: &Record) {
        if self.seen.contains(record.seq.0) {
            return;
        }
        self.seen.insert(record.seq.0);
        let others = self.sought.tenant.is_some_and(|tenant| tenant != record.tenant);
        self.raw.clear();
        // A record that does not decompress is damaged: the reader names it.
        if others || record.received_at_ms < self.since_ms || record.decompress_into(&mut self.raw).is_err() {
            return;
        }
        for (ordinal, encoded) in (0_u32..).zip(rows(&self.raw).map_while(Result::ok)) {
            if row::event_id(encoded) == self.sought.event
                && let Ok(row) = row::decode(encoded)
            {
                let Record { wal_id, seq, .. } = *record;
                self.findings.rows.push(InLog { wal_id, seq, ordinal, passed_on: false, row: Sighted::of(&row) });
            }
        }
    }

    fn finish(self, done: u64, oldest_received_at_ms: Option<i64>) -> Findings {
        let Findings { mut rows, mut remembered, .. } = self.findings;
        for row in &mut rows {
            row.passed_on = row.seq.0 <= done;
        }
        rows.sort_by_key(|row| (row.seq, row.ordinal));
        remembered.retain(|(tenant, _)| rows.iter().all(|row| row.row.tenant_id != *tenant));
        Findings { rows, remembered, oldest_received_at_ms }
    }
}

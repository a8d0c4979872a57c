//! Opening a folder: lock it, read its marks, find its generations, and settle the one that was being written.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use rand::RngCore as _;
use uuid::Uuid;

use super::{
    Settings,
    books::{self, Books},
    error::{OpenError, StateError, StoreError},
    generation::{Ends, Generation, ends, guarded, open_engine, read_range},
    losses::{Losses, Notice},
    meta::{Found, Marks, MetaFile, VERSION},
    record::{Record, claimed},
    salvage,
    shared::{Check, Opened, report},
    state::{self, sync_folder},
    tally::{self, Tally},
    verify,
    window::{self, Rescan, Window},
};
use crate::{error_chain::chain, folder_lock::FolderLock, ids::WalId, metrics::Metrics, month::Month};

/// Sequences are reserved in the marks so many at a time: at 50,000 a second one sync in twenty seconds, and after a
/// power loss the next open skips at most so many of 2^64.
pub(super) const RESERVATION: u64 = 1 << 20;

pub(super) struct Recovered {
    pub opened: Opened,
    pub lock: FolderLock,
    pub meta: MetaFile,
    pub marks: Marks,
    /// Ordinal for the first new generation.
    pub ordinal: u64,
}

pub(super) fn recover(settings: &Settings, metrics: &Metrics) -> Result<Recovered, OpenError> {
    settings.check()?;
    let io = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    let lock = FolderLock::acquire(&settings.dir, settings.lock_patience)?;
    let root = settings.root();
    fs::create_dir_all(&root).map_err(io("create", &root))?;
    if let Some(parent) = settings.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_folder(parent).map_err(io("sync", parent))?;
    }
    let (mut meta, found) = MetaFile::open(&settings.dir).map_err(io("open the marks in", &settings.dir))?;
    sync_folder(&settings.dir).map_err(io("sync", &settings.dir))?;
    salvage::resume(&root).map_err(io("resume a salvage in", &root))?;
    let ordinals = list(&root).map_err(io("list", &root))?;
    let (mut marks, lost_marks) = marks_of(&found, &ordinals)?;
    let mut tally = tally_of(&settings.dir)?;
    let notice = Notice::open(settings.aside());
    let mut books = books_of(&settings.dir, marks.done, &notice)?;
    let (tallied_through, booked_through) = (tally.through(), books.through);
    let counted_through = tallied_through.min(booked_through);
    let mut losses = Losses::default();

    let mut generations = VecDeque::new();
    let mut cut = None;
    for &ordinal in &ordinals {
        if ordinal < marks.oldest {
            remove(&root, ordinal);
            continue;
        }
        let generation = match Generation::from_seal(&root, ordinal) {
            Some(sealed) => sealed,
            None if lost_marks => {
                cut = cut_off(&Generation::new(&root, ordinal, 0).dir)?;
                settle(settings, &root, ordinal, &marks, metrics, &mut losses)?
            }
            None => settle(settings, &root, ordinal, &marks, metrics, &mut losses)?,
        };
        if generation.is_empty() {
            tracing::info!(ordinal, "a generation of the write-ahead log holds nothing: it is removed");
            generation.close();
            remove(&root, ordinal);
            continue;
        }
        if generation.last() > counted_through {
            let from = generation.first.max(counted_through + 1);
            let db = look(settings, &generation, from, &marks, metrics, &mut losses, |record| {
                if record.seq.0 > tallied_through {
                    tally.add_record(record);
                }
                books.add_found(record);
            })?;
            let from = generation.first.max(booked_through + 1);
            super::generation::beside(&db, from, generation.last(), |value| books.add_value(value))
                .map_err(OpenError::Store)?;
            close(db)?;
        }
        generation.bytes.store(super::disk::folder_bytes(&generation.dir), Relaxed);
        generations.push_back(Arc::new(generation));
    }
    let window = window_of(settings, &generations, &marks, metrics, &mut losses)?;
    losses.gaps.extend(name_missing(settings, &mut generations, &marks, &ordinals, metrics));
    if !matches!(found, Found::Marks(_)) {
        let last = generations.back().map_or(0, |generation: &Arc<Generation>| generation.last());
        losses.gaps.extend(name_tail(last, cut, booked_through, metrics));
    }
    // What is done may go, once it is counted on disk.
    let seen = generations.back().map_or(0, |generation: &Arc<Generation>| generation.last());
    books.end_at(marks.committed, marks.cumulative);
    books.lose(booked_through, marks.done, &losses);
    marks.cumulative = books.sum(marks.cumulative);
    notice.add(&losses.gaps);
    if save_tally(&settings.dir, &mut tally, seen) && save_books(&settings.dir, &mut books) {
        while let Some(finished) = generations.pop_front_if(|generation| generation.last() <= marks.done) {
            finished.close();
            remove(&root, finished.ordinal);
        }
    }
    let last = generations.back().map_or(0, |generation: &Arc<Generation>| generation.last());
    let mut next = marks.reserved.max(last + 1).max(marks.committed + 1).max(marks.done + 1).max(1);
    // A record at or before these would not be counted after a crash.
    next = next.max(books.through + 1);
    if tally.is_begun() {
        next = next.max(tally.through() + 1);
    }
    if lost_marks {
        // Nobody knows how many more were given out.
        next += RESERVATION;
    }
    let highest = ordinals.last().copied().unwrap_or(0).max(marks.active);
    // A generation that never got a record leaves its number to the next: one that is nowhere means that records are lost.
    let unused = marks.active_first > marks.committed
        && generations.back().is_none_or(|generation| generation.ordinal < marks.active)
        && [marks.active, highest].iter().all(|ordinal| !Generation::new(&root, *ordinal, 0).dir.exists());
    let ordinal = if unused { marks.active } else { highest + 1 };
    marks.committed = marks.committed.max(last);
    marks.reserved = next + RESERVATION;
    marks.active = ordinal;
    marks.active_first = next;
    marks.oldest = generations.front().map_or(ordinal, |generation| generation.ordinal);
    meta.write(marks).and_then(|()| meta.sync()).map_err(io("write the marks in", &settings.dir))?;
    // Ids of openings are never reused: an emptied, restored or cloned folder must not look like the one before.
    let wal_id = WalId(Uuid::now_v7());
    let opened = Opened { wal_id, done: marks.done, next, generations, tally, books, notice, window };
    Ok(Recovered { opened, lock, meta, marks, ordinal })
}

/// Ordinals of the generations that have a folder, in order.
pub(super) fn list(root: &Path) -> std::io::Result<Vec<u64>> {
    let mut ordinals = Vec::new();
    for entry in fs::read_dir(root)? {
        if let Some(ordinal) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            ordinals.push(ordinal);
        }
    }
    ordinals.sort_unstable();
    Ok(ordinals)
}

fn remove(root: &Path, ordinal: u64) {
    let dir = Generation::new(root, ordinal, 0).dir;
    // What stays is tried again at the next open.
    if let Err(error) = fs::remove_dir_all(&dir) {
        tracing::warn!(folder = %dir.display(), %error, "a finished generation of the write-ahead log was not removed");
    }
}

/// The marks to go on from, and whether those on disk were lost.
fn marks_of(found: &Found, ordinals: &[u64]) -> Result<(Marks, bool), OpenError> {
    match found {
        Found::Marks(marks) => Ok((*marks, false)),
        Found::Version(found) => Err(OpenError::Version { found: *found, known: VERSION }),
        Found::Missing if ordinals.is_empty() => Ok((Marks::default(), false)),
        Found::Missing | Found::Damaged => {
            tracing::error!(
                "the write-ahead log's marks are damaged or missing: every record that is still on disk is delivered again"
            );
            Ok((Marks::default(), true))
        }
    }
}

/// Finds out what a generation without a seal holds (the process that wrote it did not end cleanly), and seals it.
pub(super) fn settle(
    settings: &Settings,
    root: &Path,
    ordinal: u64,
    marks: &Marks,
    metrics: &Metrics,
    losses: &mut Losses,
) -> Result<Generation, OpenError> {
    let engine = settings.engine();
    let known = ordinal == marks.active;
    let probe = Generation::new(root, ordinal, 0);
    let valid = super::generation::stored_segment_bytes(&probe.dir)
        .and_then(|segment| verify::walk(&probe.dir.join("db"), segment).ok())
        .map(|walk| walk.valid)
        .unwrap_or_default();
    // The marks know the active generation; of another one (its seal was lost) only its own records tell.
    let (first, committed) = if known {
        (marks.active_first, marks.committed)
    } else {
        (valid.first().unwrap_or(1), valid.last().unwrap_or(0))
    };
    let from = first.max(marks.done + 1);
    let generation = Generation::new(root, ordinal, first);
    // The marks on disk name a generation before its first record is written: a start that failed may have left it half-made.
    let is_new = (marks.active > 0 && ordinal >= marks.active) || !generation.dir.join("db").exists();
    let traces = || salvage::has_traces(&generation.dir).map_err(StoreError::io("read the files of a generation"));
    if is_new && from > committed && !traces().map_err(OpenError::Store)? {
        return Ok(generation);
    }
    let check = Check { generation: &generation, engine, from, to: committed };
    let whole = check.open_whole().map_err(OpenError::Store)?;
    let db = if let Some(db) = whole {
        db
    } else {
        let salvaged =
            salvage::salvage(&generation, engine, &settings.aside(), u64::MAX - 1).map_err(OpenError::Store)?;
        let to = committed.max(salvaged.found.last().unwrap_or(0));
        losses.extend(report(&generation, salvaged, from, to, metrics));
        generation.publish(to.max(generation.last()));
        open_engine(&generation.dir, engine).map_err(OpenError::Store)?
    };
    if let Some(Ends { first, last }) = ends(&db).map_err(OpenError::Store)? {
        generation.publish(last.seq.0.max(generation.last()));
        let events = (last.cumulative + u64::from(first.event_count)).saturating_sub(first.cumulative);
        generation.events.store(events, Relaxed);
        generation.records.store(last.seq.0 + 1 - first.seq.0, Relaxed);
        generation.received_at_ms.store(first.received_at_ms, Relaxed);
    }
    drop(db);
    generation.close();
    if !generation.is_empty() {
        generation.seal().map_err(StoreError::io("seal a generation")).map_err(OpenError::Store)?;
    }
    Ok(generation)
}

/// The counts as they were saved.
fn tally_of(dir: &Path) -> Result<Tally, OpenError> {
    let damaged = || {
        tracing::error!(
            "the write-ahead log's counts of events by month are damaged: they begin anew with the records that are still \
             in the log, so that tenants with an allowance may send more in this month"
        );
        Tally::anew()
    };
    match state::load(dir, tally::NAME) {
        Ok(Some(bytes)) => Ok(Tally::decode(&bytes).unwrap_or_else(damaged)),
        Ok(None) => Ok(Tally::default()),
        Err(StateError::Io { source, .. }) => {
            Err(OpenError::Io { action: "read the counts of events by month in", path: dir.to_owned(), source })
        }
        Err(_) => Ok(damaged()),
    }
}

/// Saves what was counted anew, through `seen`; says whether the counts on disk reach so far.
fn save_tally(dir: &Path, tally: &mut Tally, seen: u64) -> bool {
    if tally.is_saved_through(seen) {
        return true;
    }
    let bytes = tally.encode(seen, Month::of(jiff::Timestamp::now().as_millisecond()));
    match state::save(dir, tally::NAME, &bytes) {
        Ok(()) => tally.saved(seen),
        Err(error) => {
            tracing::error!(error = chain(&error), "the counts of events by month are not saved; it is tried again");
            return false;
        }
    }
    true
}

/// The books as they were saved.
fn books_of(dir: &Path, done: u64, notice: &Notice) -> Result<Books, OpenError> {
    let now = jiff::Timestamp::now();
    let damaged = || {
        tracing::error!(
            "the books of the write-ahead log are damaged: the ledger begins anew with the records that wait, and cannot tell \
             whether an event of before is missing"
        );
        if let Ok(file) = state::path(dir, books::NAME) {
            notice.add_books(&file, now);
        }
        Books::anew(done, now.as_millisecond())
    };
    match state::load(dir, books::NAME) {
        Ok(Some(bytes)) => Ok(Books::decode(&bytes).unwrap_or_else(damaged)),
        Ok(None) => Ok(Books::anew(done, now.as_millisecond())),
        Err(StateError::Io { source, .. }) => {
            Err(OpenError::Io { action: "read the books in", path: dir.to_owned(), source })
        }
        Err(_) => Ok(damaged()),
    }
}

/// Saves what was added to the books; says whether they are on disk.
fn save_books(dir: &Path, books: &mut Books) -> bool {
    if books.is_saved() {
        return true;
    }
    let (bytes, changes) = books.encode();
    match state::save(dir, books::NAME, &bytes) {
        Ok(()) => books.saved(changes),
        Err(error) => {
            tracing::error!(error = chain(&error), "the books are not saved; it is tried again");
            return false;
        }
    }
    true
}

/// How much of a generation is read at a time.
const RECOUNT_RECORDS: usize = 4096;
const RECOUNT_BYTES: usize = 4 << 20;

/// Shows every intact record of a generation from `from` on to `each`; gives its database.
pub(super) fn look(
    settings: &Settings,
    generation: &Generation,
    from: u64,
    marks: &Marks,
    metrics: &Metrics,
    losses: &mut Losses,
    mut each: impl FnMut(&Record),
) -> Result<sled::Db, OpenError> {
    let engine = settings.engine();
    let to = generation.last();
    let whole = Check { generation, engine, from, to }.open_whole().map_err(OpenError::Store)?;
    let db = if let Some(db) = whole {
        db
    } else {
        let salvaged = salvage::salvage(generation, engine, &settings.aside(), to).map_err(OpenError::Store)?;
        losses.extend(report(generation, salvaged, generation.first.max(marks.done + 1), to, metrics));
        generation.seal().map_err(StoreError::io("seal a salvaged generation")).map_err(OpenError::Store)?;
        open_engine(&generation.dir, engine).map_err(OpenError::Store)?
    };
    let mut next = from;
    while next <= to {
        let range = read_range(&db, next, to, RECOUNT_RECORDS, RECOUNT_BYTES).map_err(OpenError::Store)?;
        // A damaged record is named by the reader, which comes to it later.
        losses.waiting.extend(range.damaged.iter().filter_map(|(_, damage)| claimed(&damage.bytes)));
        range.records.iter().for_each(|record| each(record));
        next = range.records.last().map_or(to, |record| record.seq.0) + 1;
    }
    Ok(db)
}

/// Closes a database that was only looked at.
pub(super) fn close(db: sled::Db) -> Result<(), OpenError> {
    let dropped = guarded(|| {
        drop(db);
        Ok(())
    });
    dropped.map_err(OpenError::Store)
}

/// The dedup window as it was: from the files of full generations, and from the records of those that have none.
fn window_of(
    settings: &Settings,
    generations: &VecDeque<Arc<Generation>>,
    marks: &Marks,
    metrics: &Metrics,
    losses: &mut Losses,
) -> Result<Window, OpenError> {
    let failed = |action| {
        let path = settings.dir.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let folder = window::folder(&settings.dir);
    fs::create_dir_all(&folder).and_then(|()| sync_folder(&settings.dir)).map_err(failed("create a folder in"))?;
    let secret = window_secret(&settings.dir)?;
    let mut window = Window::new(settings, secret, jiff::Timestamp::now().as_millisecond());
    let mut segments = window.files().map_err(failed("read the dedup window in"))?;
    // From the newest on, until there are more ids than the window holds, or one began before it: what is older is out of it,
    // and has no file any more.
    let (mut ids, mut without_file) = (0, Vec::new());
    for generation in generations.iter().rev() {
        if ids > settings.dedup_ids || settings.dedup_ids == 0 {
            break;
        }
        if let Some(segment) = segments.get(&generation.ordinal) {
            ids += segment.len();
        } else {
            let mut rescan = Rescan::new(&window, generation.ordinal);
            let each = |record: &Record| rescan.record(record);
            let db = look(settings, generation, generation.first, marks, metrics, losses, each)?;
            super::generation::answers(&db, |value| rescan.answer(value)).map_err(OpenError::Store)?;
            close(db)?;
            let segment = rescan.finish();
            ids += segment.len();
            segments.insert(generation.ordinal, segment);
            without_file.push(generation.ordinal);
        }
        if generation.received_at_ms.load(Relaxed) < window.begins_at_ms() {
            break;
        }
    }
    window.restore(segments.into_values());
    // Before their records can go.
    for save in without_file.into_iter().filter_map(|ordinal| window.save(ordinal)) {
        if let Err(error) = save.run() {
            metrics.error("wal");
            tracing::error!(
                %error,
                "the dedup window is not saved: after a crash, resends of some events may be stored a second time"
            );
        }
    }
    for file in window.garbage() {
        // What stays is tried again at the next open.
        if let Err(error) = fs::remove_file(&file) {
            tracing::debug!(file = %file.display(), %error, "a file of the dedup window is not removed");
        }
    }
    Ok(window)
}

/// What makes ids of one tenant differ from those of another, made once for a folder.
fn window_secret(dir: &Path) -> Result<[u8; 32], OpenError> {
    let failed = |action, source| OpenError::Io { action, path: dir.to_owned(), source };
    match state::load(dir, window::SECRET) {
        Ok(Some(bytes)) if bytes.len() == 32 => {
            return Ok(bytes.try_into().unwrap_or_default());
        }
        Err(StateError::Io { source, .. }) => return Err(failed("read the secret of the dedup window in", source)),
        Ok(None) => {}
        _ => tracing::error!("the secret of the dedup window is damaged: it is made anew, and the window with it"),
    }
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    match state::save(dir, window::SECRET, &secret) {
        Err(StateError::Io { source, .. }) => Err(failed("write the secret of the dedup window in", source)),
        _ => Ok(secret),
    }
}

/// Generations whose whole folder is gone: ordinal, first and last record. `there` are the others, with the same.
pub(super) fn missing_between(
    there: &BTreeMap<u64, (u64, u64)>,
    marks: &Marks,
    ordinals: &[u64],
) -> Vec<(u64, u64, u64)> {
    let mut missing = Vec::new();
    if marks.oldest == 0 {
        return missing;
    }
    // Of several in a row nobody knows where one ended: all of it is the first one's.
    let mut named = marks.done;
    for ordinal in marks.oldest..=marks.active {
        if ordinals.contains(&ordinal) {
            continue;
        }
        let before = there.range(..ordinal).next_back().map_or(marks.done, |(_, (_, last))| *last);
        let after = there.range(ordinal..).next().map_or(marks.committed, |(_, (first, _))| first - 1);
        let first = before.max(named) + 1;
        if first <= after {
            missing.push((ordinal, first, after));
            named = after;
        }
    }
    missing
}

/// Names generations whose whole folder is gone, and puts an empty one in the place of each, which says what is lost with
/// it, so that it is said once; gives what is lost.
fn name_missing(
    settings: &Settings,
    generations: &mut VecDeque<Arc<Generation>>,
    marks: &Marks,
    ordinals: &[u64],
    metrics: &Metrics,
) -> Vec<(u64, u64)> {
    let there =
        generations.iter().map(|generation| (generation.ordinal, (generation.first, generation.last()))).collect();
    let missing = missing_between(&there, marks, ordinals);
    for &(ordinal, first, last) in &missing {
        metrics.error("wal");
        metrics.wal_damaged_records.inc_by(last + 1 - first);
        tracing::error!(
            generation = ordinal,
            first,
            last,
            "a generation of the write-ahead log is missing: its records are lost"
        );
        let stand_in = Generation::new(&settings.root(), ordinal, first);
        stand_in.lost.lock().append_range(first, last);
        stand_in.publish(last);
        let made = stand_in.create(settings.engine()).map(drop);
        stand_in.close();
        match made.and_then(|()| stand_in.seal().map_err(StoreError::io("seal it"))) {
            Ok(()) => {
                let place = generations.partition_point(|other| other.ordinal < ordinal);
                generations.insert(place, Arc::new(stand_in));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "nothing stands in its place: the next start will say and count the same again");
                // Not a generation without a seal, which would be taken for another kind of damage.
                fs::remove_dir_all(&stand_in.dir).ok();
            }
        }
    }
    missing.into_iter().map(|(_, first, last)| (first, last)).collect()
}

/// The record with which the files of a generation break off, if one does.
fn cut_off(dir: &Path) -> Result<Option<u64>, OpenError> {
    let mut cut: Option<u64> = None;
    let found = salvage::search(dir, |piece| {
        if let salvage::Piece::Cut(claim) = piece {
            cut = Some(cut.map_or(claim.seq, |other| other.min(claim.seq)));
        }
        Ok(())
    });
    found.map_err(OpenError::Store)?;
    Ok(cut)
}

/// Without the marks nobody knows how far the log went. Says what can be said of its end; gives what is lost for certain.
fn name_tail(last: u64, cut: Option<u64>, booked: u64, metrics: &Metrics) -> Option<(u64, u64)> {
    if let Some(seq) = cut.filter(|seq| *seq > last) {
        metrics.error("wal");
        tracing::error!(
            last_intact = last,
            cut_off = seq,
            "the write-ahead log breaks off in the middle of a record: it and any that came after it are gone; without the \
             marks it is not known how many there were, and whether they were acknowledged"
        );
    }
    // Generations go from the oldest on, so that nothing behind one that is there was done and removed.
    let lost = (last > 0 && last < booked).then_some((last + 1, booked));
    if let Some((first, last)) = lost {
        metrics.error("wal");
        metrics.wal_damaged_records.inc_by(last + 1 - first);
        tracing::error!(
            first,
            last,
            "the end of the write-ahead log is missing: records that are in its books are lost"
        );
    } else if last == 0 && booked > 0 {
        tracing::error!(
            booked,
            "none of the records in the books is in the write-ahead log: without the marks it is not known whether they were \
             passed on or are lost"
        );
    }
    lost
}

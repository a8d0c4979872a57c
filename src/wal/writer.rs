//! The one thread that writes: it takes whatever waits, commits it as one batch, and answers all.
//!
//! ```text
//! wait -> gather (all that is queued, up to 4 MiB) -> encode into frames -> insert or apply_batch -> flush -> blobs -> fdatasync
//!      -> marks (page cache) -> tail -> answers          then, at most four times a second: space, seals, deletions
//! ```

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Append, Appended, Durability, Intake,
    books::{self, Account, Books},
    disk::Point,
    error::{AppendError, CloseError, StoreError},
    frames::Frames,
    generation::{Active, Generation, guarded},
    housekeeper::Housekeeper,
    meta::{Marks, MetaFile},
    recover::RESERVATION,
    shared::{Progress, Shared},
};
use crate::{error_chain::chain, folder_lock::FolderLock, ids::TenantId};

/// A commit takes no more than this (but always one append): it bounds the wait of the first one in it.
const COMMIT_BYTES: usize = 4 << 20;
/// How often space, seals and deletions are looked after, at most.
const CARE: Duration = Duration::from_millis(250);
/// How often with nothing to do: the disk may fill from elsewhere.
const IDLE_CARE: Duration = Duration::from_secs(1);
/// And at the latest after so many committed bytes, so that a burst cannot run far past a limit.
const CARE_BYTES: u64 = 8 << 20;
/// How far the marks on disk may be behind.
const MARKS: Duration = Duration::from_secs(1);

pub(super) enum Command {
    Append(Append, Intake, Reply),
    /// Something was truncated: look after it.
    Care,
    /// Begin a new generation, so that the present one can be salvaged.
    Rotate(oneshot::Sender<()>),
    Close(oneshot::Sender<Result<(), CloseError>>),
}

pub(super) type Reply = oneshot::Sender<Result<Appended, AppendError>>;
type Waiting = (Append, Intake, Reply);
/// How many events of an append were committed before, or why nothing of it is to be committed.
type Admitted = Result<u64, AppendError>;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) meta: MetaFile,
    pub(super) marks: Marks,
    pub(super) active: Option<(Arc<Generation>, Active)>,
    pub(super) ordinal: u64,
    pub(super) next: u64,
    pub(super) housekeeper: Housekeeper,
    pub(super) unsealed: Vec<Arc<Generation>>,
    pub(super) no_space: Option<Arc<io::Error>>,
    pub(super) last_care: Instant,
    pub(super) last_marks: Instant,
    pub(super) last_commit: Instant,
    pub(super) since_care: u64,
    /// Released last, when nothing of this log touches the folder any more.
    pub(super) lock: FolderLock,
}

/// Why a commit failed.
enum Fault {
    NoSpace(io::Error),
    Broken(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error.no_space() {
            Some(full) => Self::NoSpace(full),
            None => Self::Broken(chain(&error)),
        }
    }
}

impl Writer {
    /// Runs until closed, poisoned, or every handle is gone.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        let mut batch = Vec::new();
        let mut closing = None;
        while closing.is_none() {
            let command = commands.recv_timeout(self.patience());
            let mut rotate = None;
            match command {
                Ok(Command::Append(append, intake, reply)) => batch.push((append, intake, reply)),
                Ok(Command::Rotate(reply)) => rotate = Some(reply),
                Ok(Command::Close(reply)) => closing = Some(Some(reply)),
                Ok(Command::Care) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => closing = Some(None),
            }
            let mut bytes = batch.iter().map(|(append, ..)| weight(append)).sum::<usize>();
            while bytes < COMMIT_BYTES && rotate.is_none() && closing.is_none() {
                match commands.try_recv() {
                    Ok(Command::Append(append, intake, reply)) => {
                        bytes += weight(&append);
                        batch.push((append, intake, reply));
                    }
                    Ok(Command::Care) => {}
                    Ok(Command::Rotate(reply)) => rotate = Some(reply),
                    Ok(Command::Close(reply)) => closing = Some(Some(reply)),
                    Err(_) => break,
                }
            }
            self.commit(&mut batch);
            if let Some(reply) = rotate {
                self.rotate();
                // The reader that asked may be gone.
                reply.send(()).ok();
            }
            self.care(Instant::now());
        }
        self.shared.set_gate(Err(AppendError::Closed));
        self.drain(commands, &mut batch);
        let result = self.end();
        if let Some(Some(reply)) = closing {
            reply.send(result).ok();
        }
    }

    /// Commits what was queued before the gate shut.
    fn drain(&mut self, commands: &mpsc::Receiver<Command>, batch: &mut Vec<Waiting>) {
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Append(append, intake, reply) => batch.push((append, intake, reply)),
                Command::Care => {}
                Command::Rotate(reply) => {
                    reply.send(()).ok();
                }
                Command::Close(reply) => {
                    reply.send(Ok(())).ok();
                }
            }
            if batch.iter().map(|(append, ..)| weight(append)).sum::<usize>() >= COMMIT_BYTES {
                self.commit(batch);
            }
        }
        self.commit(batch);
    }

    fn patience(&self) -> Duration {
        let pending = self.shared.accepting().is_err() || self.work_waits() || self.meta.is_unsynced();
        if pending { CARE } else { IDLE_CARE }
    }

    fn commit(&mut self, batch: &mut Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let admitted = self.admit(batch);
        let answer = match self.shared.poison_reason() {
            Some(reason) => Err(AppendError::Poisoned { reason }),
            None => self.write(batch, &admitted).map_err(|fault| match fault {
                Fault::NoSpace(error) => self.abandon(error),
                Fault::Broken(reason) => {
                    self.shared.poison(&reason);
                    AppendError::Poisoned { reason }
                }
            }),
        };
        if answer.is_err() {
            self.shared.window.lock().forget();
        }
        for (index, ((_, _, reply), admitted)) in batch.drain(..).zip(admitted).enumerate() {
            // A copy of a request is answered after the commit too: the first one may be part of it.
            let answer = match &answer {
                Ok(appended) => admitted.and_then(|duplicates| {
                    let appended = appended.get(index).copied().ok_or(AppendError::Closed)?;
                    Ok(Appended { duplicates, ..appended })
                }),
                Err(refusal) => Err(refusal.clone()),
            };
            // A client that went away is stored all the same.
            reply.send(answer).ok();
        }
    }

    /// Takes out of `batch` what was committed before; gives how many events of each append that were.
    fn admit(&self, batch: &mut [Waiting]) -> Vec<Admitted> {
        let mut window = self.shared.window.lock();
        window.evict();
        let admitted = batch.iter_mut().map(|(append, ..)| window.admit(append).inspect_err(|_| append.chunks.clear()));
        admitted.collect()
    }

    fn write(&mut self, batch: &[Waiting], admitted: &[Admitted]) -> Result<Vec<Appended>, Fault> {
        let noted = self.shared.books.lock().take_notes();
        self.write_with(batch, admitted, &noted).inspect_err(|_| self.shared.books.lock().failed(noted))
    }

    fn write_with(
        &mut self,
        batch: &[Waiting],
        admitted: &[Admitted],
        noted: &HashMap<TenantId, Account>,
    ) -> Result<Vec<Appended>, Fault> {
        let began = Instant::now();
        self.reserve(batch)?;
        let mut frames = Frames::new(self.shared.wal_id, self.next, self.marks.cumulative);
        let appended: Vec<Appended> = batch.iter().map(|(append, ..)| frames.add(append)).collect();
        frames.finish();
        for (key, value) in self.shared.window.lock().staged_answers() {
            frames.add_answer(&key, value);
        }
        let requests = || {
            batch.iter().zip(admitted).filter_map(|((append, intake, _), admitted)| {
                Some((append.tenant, *intake, *admitted.as_ref().ok()?, events(append)))
            })
        };
        let note = |books: &mut Books| {
            books.failed(noted.clone());
            requests().for_each(|(tenant, intake, duplicates, _)| books.note(tenant, intake, duplicates));
        };
        if frames.is_empty() {
            note(&mut self.shared.books.lock());
            return Ok(appended);
        }
        let beside = if frames.records.is_empty() { HashMap::new() } else { Books::beside(noted, requests()) };
        if !beside.is_empty() {
            frames.add_answer(&books::key(frames.next() - 1), books::value(&beside));
        }
        let counts = batch.iter().any(|(append, ..)| append.counted);
        if counts && !self.shared.tally.lock().is_begun() {
            // On disk before the first record that counts: without it an open would not count.
            self.save_tally().map_err(|error| match error.full() {
                Some(full) => Fault::NoSpace(full),
                None => Fault::Broken(chain(&error)),
            })?;
        }
        self.make_room()?;
        // From here on these sequences count as given out, whatever happens: bytes of a failed commit may be on disk.
        self.next = frames.next();
        self.shared.next_seq.store(self.next, Relaxed);
        let Some((generation, active)) = &mut self.active else {
            return Err(Fault::NoSpace(io::Error::from(io::ErrorKind::StorageFull)));
        };
        let device = &self.shared.device;
        guarded(|| {
            device.fault(Point::Apply).map_err(StoreError::io("apply"))?;
            frames.write_to(&active.db).map_err(StoreError::Sled)?;
            device.fault(Point::Flush).map_err(StoreError::io("flush"))?;
            active.db.flush().map_err(StoreError::Sled).map(|_| ())
        })?;
        if self.shared.settings.durability == Durability::Fsync {
            // Whatever a failed fsync is for, the pages may be marked clean without being on disk: never go on.
            let synced = active.sync_blobs().and_then(|()| device.sync(&active.file));
            synced.map_err(|error| Fault::Broken(format!("fsync failed: {error}")))?;
        }
        let generation = Arc::clone(generation);
        self.shared.window.lock().committed(generation.ordinal);
        if counts {
            let mut tally = self.shared.tally.lock();
            for (append, ..) in batch.iter().filter(|(append, ..)| append.counted) {
                tally.add(append.tenant, append.received_at_ms, events(append));
            }
        }
        self.publish(&generation, &frames, |books| {
            if frames.records.is_empty() {
                note(books);
            } else {
                books.committed(frames.records.iter().map(AsRef::as_ref), beside);
            }
        });
        self.shared.metrics.wal_commit.observe(began.elapsed().as_secs_f64());
        Ok(appended)
    }

    /// Shows a durable commit to everybody.
    fn publish(&mut self, generation: &Generation, frames: &Frames, enter: impl FnOnce(&mut Books)) {
        let committed = self.next - 1;
        self.marks.committed = committed;
        self.marks.cumulative = frames.cumulative();
        self.last_commit = Instant::now();
        self.write_marks();
        if generation.is_empty()
            && let Some(first) = frames.records.first()
        {
            generation.received_at_ms.store(first.received_at_ms, Relaxed);
        }
        generation.records.fetch_add(frames.records.len() as u64, Relaxed);
        generation.events.fetch_add(frames.events, Relaxed);
        generation.publish(committed);
        // What is in the books is there to be counted, and nobody has it from the log before it is in the books.
        enter(&mut self.shared.books.lock());
        {
            let mut tail = self.shared.tail.lock();
            for record in &frames.records {
                tail.push(Arc::clone(record));
            }
        }
        self.shared.progress.send_replace(Progress { committed, closed: false });
        self.shared.metrics.wal_committed.inc_by(frames.payload_bytes);
        self.shared.metrics.wal_commits.inc();
        self.since_care += frames.payload_bytes;
    }

    /// Makes sure, on disk, that the sequences of `batch` are never given out again.
    fn reserve(&mut self, batch: &[Waiting]) -> Result<(), Fault> {
        let needed = batch.iter().map(|(append, ..)| append.chunks.len() as u64).sum::<u64>();
        if self.next + needed < self.marks.reserved {
            return Ok(());
        }
        self.marks.reserved = self.next + needed + RESERVATION;
        let marks = self.marks;
        let reserved = self.meta.write(marks).and_then(|()| self.meta.sync());
        reserved.map_err(|error| Fault::Broken(format!("the marks cannot be written: {error}")))
    }

    /// A generation to write to: the present one, or a new one when it is full or there is none.
    fn make_room(&mut self) -> Result<(), Fault> {
        let full = |(_, active): &(_, Active)| {
            active.file.metadata().is_ok_and(|metadata| metadata.len() >= self.shared.settings.generation_bytes())
        };
        if self.active.as_ref().is_some_and(full) {
            self.retire();
        }
        if self.active.is_none() {
            self.begin()?;
        }
        Ok(())
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        self.shared.device.fault(Point::Create).map_err(StoreError::io("create"))?;
        let generation = Arc::new(Generation::new(&self.shared.root, self.ordinal, self.next));
        let active = generation.create(self.shared.engine())?;
        self.marks.active = self.ordinal;
        self.marks.active_first = self.next;
        let oldest = self.shared.generations.read().front().map_or(self.ordinal, |oldest| oldest.ordinal);
        self.marks.oldest = oldest;
        // Known on disk before the first record: only so can a later open say that one is missing.
        let marks = self.marks;
        self.meta.write(marks).and_then(|()| self.meta.sync()).map_err(StoreError::io("write the marks"))?;
        self.shared.generations.write().push_back(Arc::clone(&generation));
        self.ordinal += 1;
        self.active = Some((generation, active));
        Ok(())
    }

    /// Ends the present generation; what was committed to it stays readable.
    pub(super) fn retire(&mut self) {
        let Some((generation, active)) = self.active.take() else { return };
        if generation.is_empty() {
            self.discard(&generation, active);
            return;
        }
        // Failing that, an open adds more up.
        self.books_are_saved();
        self.save_window(generation.ordinal);
        if let Err(error) = generation.seal() {
            tracing::warn!(%error, generation = generation.ordinal, "a generation is not sealed yet; it is tried again");
            self.unsealed.push(Arc::clone(&generation));
        }
        // So that an open has at most the generation to count that was being written. Failing that, it counts more.
        self.tally_is_saved_through(generation.last());
        let reading = self.shared.reading.load(Relaxed) == generation.ordinal;
        self.housekeeper.run(move || {
            drop_quietly(active);
            if !reading {
                generation.close();
            }
            // Its last size was measured while it was written: some megabytes may have come since.
            generation.bytes.store(0, Relaxed);
        });
    }

    /// Gives up a generation that holds nothing.
    fn discard(&mut self, generation: &Arc<Generation>, active: Active) {
        self.shared.generations.write().retain(|other| other.ordinal != generation.ordinal);
        let generation = Arc::clone(generation);
        self.housekeeper.run(move || {
            drop_quietly(active);
            super::housekeeper::delete(&generation);
        });
    }

    fn rotate(&mut self) {
        if self.active.as_ref().is_some_and(|(generation, _)| !generation.is_empty()) {
            self.retire();
        }
    }

    /// After a full disk: the commit's bytes stay behind in a generation that ends before them.
    pub(super) fn abandon(&mut self, error: io::Error) -> AppendError {
        let error = Arc::new(error);
        self.shared.metrics.error("wal");
        tracing::error!(%error, "the write-ahead log's disk is full; appends are refused until there is space");
        self.retire();
        self.no_space = Some(Arc::clone(&error));
        let refusal = AppendError::NoSpace(error);
        self.shared.set_gate(Err(refusal.clone()));
        self.shared.health.down("the disk is full: appends are refused until there is space");
        refusal
    }

    /// After a full disk: tries to begin again. Gives whether the log can be written.
    pub(super) fn revive(&mut self) -> bool {
        if self.no_space.is_none() {
            return true;
        }
        // What was queued when the disk ran full may have begun a new generation already.
        let begun = if self.active.is_some() { Ok(()) } else { self.begin() };
        match begun {
            Ok(()) => {
                self.no_space = None;
                tracing::info!("the write-ahead log has space again");
                true
            }
            Err(error) => {
                if error.no_space().is_none() {
                    self.shared.poison(&chain(&error));
                }
                false
            }
        }
    }

    pub(super) fn write_marks(&mut self) {
        let marks = self.marks;
        if let Err(error) = self.meta.write(marks) {
            // The reservation is on disk, so this costs repeated deliveries after a crash, not correctness.
            self.shared.metrics.error("wal");
            tracing::warn!(%error, "the write-ahead log's marks were not written");
        }
    }

    pub(super) fn care_due(&self, now: Instant) -> bool {
        self.since_care >= CARE_BYTES || now.duration_since(self.last_care) >= CARE
    }

    pub(super) fn marks_due(&self, now: Instant) -> bool {
        now.duration_since(self.last_marks) >= MARKS
    }

    /// The clean end: everything synced and the marks exact.
    fn end(mut self) -> Result<(), CloseError> {
        self.retire();
        self.seal_rest();
        let open: Vec<Arc<Generation>> = self.shared.generations.read().iter().cloned().collect();
        self.housekeeper.finish();
        for generation in open {
            generation.close();
        }
        self.tally_is_saved_through(self.next - 1);
        self.books_are_saved();
        self.marks.done = self.shared.done.load(Relaxed);
        self.marks.reserved = self.next;
        self.marks.oldest = self.shared.generations.read().front().map_or(self.ordinal, |oldest| oldest.ordinal);
        let marks = self.marks;
        let written = self.meta.write(marks).and_then(|()| self.meta.sync()).map_err(CloseError::Marks);
        drop(self.lock);
        self.shared.progress.send_modify(|progress| progress.closed = true);
        if let Some(reason) = self.shared.poison_reason() {
            return Err(CloseError::Poisoned { reason });
        }
        self.shared.health.down("closed");
        written
    }
}

fn events(append: &Append) -> u64 {
    append.chunks.iter().map(|chunk| u64::from(chunk.event_count)).sum()
}

fn weight(append: &Append) -> usize {
    append.chunks.iter().map(|chunk| chunk.compressed.len() + super::record::HEADER_LEN).sum()
}

fn drop_quietly(active: Active) {
    // Dropping flushes, and may panic on a broken disk; what matters was synced or given up before.
    if let Err(error) = guarded(|| {
        drop(active);
        Ok(())
    }) {
        tracing::warn!(%error, "closing a generation of the write-ahead log failed");
    }
}

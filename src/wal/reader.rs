//! The one consumer: records in sequence order, from memory while it keeps up, from disk in small pieces when not.

use std::sync::{Arc, Weak, atomic::Ordering::Relaxed};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{
    Handle,
    error::{ReadError, StoreError},
    generation::{Generation, Range, read_range},
    record::Record,
    shared::{Progress, Shared},
    writer::Command,
};
use crate::ids::WalSeq;

/// One read from disk takes no more than this, whatever the caller would take: it bounds memory.
const DISK_READ_BYTES: usize = 4 << 20;

/// Reads the log. Obtained from [`super::Wal::open`]; there is one.
pub struct Reader {
    shared: Arc<Shared>,
    /// Weak: a reader alone does not keep the log open.
    handle: Weak<Handle>,
    progress: watch::Receiver<Progress>,
    cursor: u64,
    /// A read from disk that a cancelled call left behind, and the cursor it was for.
    pending: Option<(u64, JoinHandle<Result<DiskRead, StoreError>>)>,
}

/// What one read from disk gave.
struct DiskRead {
    records: Vec<Arc<Record>>,
    /// Where the next read begins; past gaps.
    next: u64,
    /// The generation that must be salvaged before this can be read.
    suspect: Option<Arc<Generation>>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, handle: Weak<Handle>) -> Self {
        let progress = shared.progress.subscribe();
        let cursor = shared.done.load(Relaxed) + 1;
        Self { shared, handle, progress, cursor, pending: None }
    }

    /// The next records in sequence order: at least one, at most `max_records`, and no more than one beyond
    /// `max_bytes` (encoded). Waits until there is one. A cancelled call loses nothing.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Arc<Record>>, ReadError> {
        loop {
            if let Some(reason) = self.shared.poison_reason() {
                return Err(ReadError::Poisoned { reason });
            }
            let Progress { committed, closed } = *self.progress.borrow_and_update();
            if closed {
                return Err(ReadError::Closed);
            }
            self.cursor = self.cursor.max(self.shared.done.load(Relaxed) + 1);
            if self.cursor > committed {
                let poison = self.shared.poison.clone();
                tokio::select! {
                    changed = self.progress.changed() => if changed.is_err() { return Err(ReadError::Closed) },
                    () = poison.cancelled() => {}
                }
                continue;
            }
            let recent = self.shared.tail.lock().take(self.cursor, max_records, max_bytes);
            let records = match recent {
                Some(records) => {
                    // An empty answer: what was committed is done already.
                    self.cursor = records.last().map_or(committed, |record| record.seq.0) + 1;
                    self.leave_disk();
                    records
                }
                None => self.read_disk(committed, max_records, max_bytes).await?,
            };
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Whether a record is there already that was not read yet: [`Reader::next`] then does not wait for an append.
    pub fn is_behind(&self) -> bool {
        // One that holds nothing begins behind what a crash has reserved, and ends before it.
        let generations = self.shared.generations.read();
        generations.iter().any(|generation| !generation.is_empty() && generation.last() >= self.cursor)
    }

    /// Reads again from `to` (or from the first record that was not truncated).
    pub fn rewind(&mut self, to: WalSeq) {
        self.cursor = to.0;
        self.pending = None;
    }

    async fn read_disk(
        &mut self,
        committed: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Arc<Record>>, ReadError> {
        let cursor = self.cursor;
        if self.pending.as_ref().is_some_and(|(at, _)| *at != cursor) {
            self.pending = None;
        }
        let (_, task) = self.pending.get_or_insert_with(|| {
            let shared = Arc::clone(&self.shared);
            let bytes = max_bytes.min(DISK_READ_BYTES);
            let read = move || read_generations(&shared, cursor, committed, max_records.max(1), bytes);
            (cursor, tokio::task::spawn_blocking(read))
        });
        let joined = task.await;
        self.pending = None;
        let read = joined.unwrap_or_else(|error| Err(StoreError::Panicked(error.to_string())));
        let read = read.map_err(ReadError::Unavailable)?;
        if let Some(suspect) = read.suspect {
            self.repair(suspect).await?;
            return Ok(Vec::new());
        }
        self.cursor = read.next;
        Ok(read.records)
    }

    /// Has a generation salvaged that the storage engine cannot read.
    async fn repair(&self, generation: Arc<Generation>) -> Result<(), ReadError> {
        if !generation.sealed.load(Relaxed) {
            let (reply, done) = oneshot::channel();
            let handle = self.handle.upgrade().ok_or(ReadError::Closed)?;
            handle.commands.send(Command::Rotate(reply)).map_err(|_| ReadError::Closed)?;
            done.await.map_err(|_| ReadError::Closed)?;
        }
        let shared = Arc::clone(&self.shared);
        let salvaged = tokio::task::spawn_blocking(move || shared.salvage(&generation)).await;
        let salvaged = salvaged.unwrap_or_else(|error| Err(StoreError::Panicked(error.to_string())));
        salvaged.map_err(ReadError::Unavailable)
    }

    /// Lets go of the database that was read, when the reader has caught up.
    fn leave_disk(&self) {
        if self.shared.reading.load(Relaxed) != 0 {
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || switch(&shared, 0));
        }
    }
}

/// Marks `ordinal` as being read (0 for none) and closes the one before, unless it is written.
fn switch(shared: &Shared, ordinal: u64) {
    let before = shared.reading.swap(ordinal, Relaxed);
    if before == ordinal || before == 0 {
        return;
    }
    let generation = shared.generations.read().iter().find(|generation| generation.ordinal == before).cloned();
    if let Some(generation) = generation.filter(|generation| generation.sealed.load(Relaxed)) {
        generation.close();
    }
}

fn read_generations(
    shared: &Shared,
    from: u64,
    committed: u64,
    max_records: usize,
    max_bytes: usize,
) -> Result<DiskRead, StoreError> {
    let generation = shared.generations.read().iter().find(|generation| generation.last() >= from).cloned();
    let Some(generation) = generation else {
        return Ok(DiskRead { records: Vec::new(), next: committed + 1, suspect: None });
    };
    switch(shared, generation.ordinal);
    let start = from.max(generation.first);
    let end = generation.last().min(committed);
    let read = shared.database(&generation).and_then(|db| read_range(&db, start, end, max_records, max_bytes));
    let Range { records, damaged } = match read {
        Ok(read) => read,
        Err(error) if error.no_space().is_some() || generation.salvaged.load(Relaxed) => return Err(error),
        Err(error) => {
            tracing::error!(
                generation = generation.ordinal,
                error = crate::error_chain::chain(&error),
                "reading the write-ahead log failed"
            );
            return Ok(DiskRead { records: Vec::new(), next: from, suspect: Some(generation) });
        }
    };
    for (key, damage) in &damaged {
        shared.set_aside(&generation, *key, damage);
    }
    // Nothing may be left out in silence: what the storage engine does not give is looked for in its files, once.
    let next = records.last().map_or(end, |record| record.seq.0) + 1;
    let whole = records.len() as u64 + generation.lost.lock().count(start, next - 1) == next - start;
    if !whole && damaged.is_empty() && !generation.salvaged.load(Relaxed) {
        return Ok(DiskRead { records: Vec::new(), next: from, suspect: Some(generation) });
    }
    Ok(DiskRead { records, next, suspect: None })
}

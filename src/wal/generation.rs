//! One generation of the log: a folder with a storage-engine database of its own, written until it is large enough,
//! then sealed, read while anybody is behind, and deleted whole.
//!
//! ```text
//! 00000000000000000007/db, conf, blobs/, snap.*   the database
//!                      SEAL                       first and last sequence, records, events, lost sequences, once written
//! ```

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use sled::IVec;

use super::{
    books,
    disk::Reserve,
    error::StoreError,
    record::{Damage, Record, split_frame},
    seqset::SeqSet,
    state::{sync_folder, write_atomically},
    window::ANSWER_KEY,
};

const SEAL: &str = "SEAL";
const SEAL_MAGIC: [u8; 8] = *b"IWSEAL01";

/// At most this many records share a frame, so that a reader finds the frame of a sequence by stepping back so far.
pub(super) const FRAME_RECORDS: usize = 64;

/// How the storage engine is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    pub segment_bytes: usize,
    pub cache_bytes: u64,
}

pub(super) struct Generation {
    pub ordinal: u64,
    pub dir: PathBuf,
    pub first: u64,
    /// The last sequence that readers may see; below `first` while there is none.
    last: AtomicU64,
    pub records: AtomicU64,
    pub events: AtomicU64,
    /// When its first record was received.
    pub received_at_ms: AtomicI64,
    /// Size of its files, as last looked.
    pub bytes: AtomicU64,
    pub sealed: AtomicBool,
    /// Its files were salvaged in this process: what is missing now is lost.
    pub salvaged: AtomicBool,
    /// Sequences that a salvage did not find, in this process or an earlier one: named then, and not again.
    pub lost: Mutex<SeqSet>,
    pub db: Mutex<Option<sled::Db>>,
}

impl Generation {
    pub(super) fn new(root: &Path, ordinal: u64, first: u64) -> Self {
        Self {
            ordinal,
            dir: root.join(format!("{ordinal:020}")),
            first,
            last: AtomicU64::new(first.saturating_sub(1)),
            records: AtomicU64::new(0),
            events: AtomicU64::new(0),
            received_at_ms: AtomicI64::new(0),
            bytes: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
            salvaged: AtomicBool::new(false),
            lost: Mutex::new(SeqSet::default()),
            db: Mutex::new(None),
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Shows everything up to `last` to readers.
    pub(super) fn publish(&self, last: u64) {
        self.last.store(last, Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last() < self.first
    }

    /// Creates the files of a new generation; returns when they are durable.
    pub(super) fn create(&self, engine: Engine) -> Result<Active, StoreError> {
        fs::create_dir_all(&self.dir).map_err(StoreError::io("create the folder of a generation"))?;
        // Without the reserve: a new one can wait for space.
        let db = try_open_engine(&self.dir, engine)?;
        guarded(|| db.flush().map_err(StoreError::Sled))?;
        let file = File::open(self.dir.join("db")).map_err(StoreError::io("open its data file"))?;
        let synced = file
            .sync_all()
            .and_then(|()| File::open(self.dir.join("conf"))?.sync_all())
            .and_then(|()| sync_folder(&self.dir))
            .and_then(|()| self.dir.parent().map_or(Ok(()), sync_folder));
        synced.map_err(StoreError::io("sync the folder of a generation"))?;
        *self.db.lock() = Some(db.clone());
        Ok(Active { db, file, blobs: self.dir.join("blobs"), synced_blobs: Vec::new() })
    }

    /// Lets go of the database; it is opened again when somebody reads.
    pub(super) fn close(&self) {
        let db = self.db.lock().take();
        // Dropping flushes and may panic when the disk is broken; everything committed was synced before.
        if let Err(error) = guarded(|| {
            drop(db);
            Ok(())
        }) {
            tracing::warn!(generation = self.ordinal, error = %error, "closing a generation of the write-ahead log failed");
        }
    }

    /// Writes down what it holds, so that a later open need not read it.
    pub(super) fn seal(&self) -> io::Result<()> {
        self.sealed.store(true, Relaxed);
        let mut bytes = SEAL_MAGIC.to_vec();
        for value in [
            self.first,
            self.last(),
            self.records.load(Relaxed),
            self.events.load(Relaxed),
            self.received_at_ms.load(Relaxed).cast_unsigned(),
        ] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        for (first, last) in self.lost.lock().ranges() {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write_atomically(&self.dir.join(SEAL), &bytes)
    }

    /// A generation as its seal describes it; nothing without a whole seal.
    pub(super) fn from_seal(root: &Path, ordinal: u64) -> Option<Self> {
        let bytes = fs::read(Self::new(root, ordinal, 0).dir.join(SEAL)).ok()?;
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if !body.starts_with(&SEAL_MAGIC) || crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut values =
            body.get(8..)?.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok()).map(u64::from_le_bytes);
        let generation = Self::new(root, ordinal, values.next()?);
        generation.publish(values.next()?);
        generation.records.store(values.next()?, Relaxed);
        generation.events.store(values.next()?, Relaxed);
        generation.received_at_ms.store(values.next()?.cast_signed(), Relaxed);
        while let (Some(first), Some(last)) = (values.next(), values.next()) {
            generation.lost.lock().append_range(first, last);
        }
        generation.sealed.store(true, Relaxed);
        Some(generation)
    }
}

/// The generation that is written.
pub(super) struct Active {
    pub db: sled::Db,
    /// A descriptor of our own on the data file: the storage engine writes with `sync_file_range`, which does not reach
    /// a disk's cache, so `fdatasync` on this follows.
    pub file: File,
    blobs: PathBuf,
    synced_blobs: Vec<std::ffi::OsString>,
}

impl Active {
    /// Syncs what the storage engine put into files of its own, which it never does itself. With records of the size
    /// that [`super::Packer`] makes there are none.
    pub(super) fn sync_blobs(&mut self) -> io::Result<()> {
        let mut new = Vec::new();
        for entry in fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            if !self.synced_blobs.contains(&name) {
                new.push(name);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        for name in &new {
            match File::open(self.blobs.join(name)) {
                Ok(file) => file.sync_all()?,
                // Replaced by a newer one already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.synced_blobs.append(&mut new);
        sync_folder(&self.blobs)
    }
}

/// Runs `work` on the storage engine; a panic inside becomes an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(StoreError::Panicked(text.unwrap_or_else(|| "no message".to_owned())))
    })
}

/// Opens the database in `dir`, which is two folders below that of the log; on a full disk with the space of the reserve.
pub(super) fn open_engine(dir: &Path, engine: Engine) -> Result<sled::Db, StoreError> {
    match try_open_engine(dir, engine) {
        Err(error)
            if error.no_space().is_some() && dir.ancestors().nth(2).is_some_and(|log| Reserve::of(log).give_up()) =>
        {
            tracing::warn!("the disk is full: the write-ahead log uses its reserve");
            try_open_engine(dir, engine)
        }
        result => result,
    }
}

fn try_open_engine(dir: &Path, engine: Engine) -> Result<sled::Db, StoreError> {
    // The storage engine locks its file and gives up at once when it is locked. Only this process can have it (the
    // folder is locked), as long as the engine's own threads finish with an earlier handle: wait for that.
    if let Ok(file) = File::open(dir.join("db")) {
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
        locked.map_err(|errno| StoreError::Io { action: "wait for the lock of a data file", source: errno.into() })?;
    }
    let config = sled::Config::new()
        .path(dir)
        .segment_size(stored_segment_bytes(dir).unwrap_or(engine.segment_bytes))
        .cache_capacity(engine.cache_bytes)
        .mode(sled::Mode::LowSpace)
        // No flusher thread: the writer decides when, and an error is then the writer's to see.
        .flush_every_ms(None);
    guarded(|| config.open().map_err(StoreError::Sled))
}

/// The segment size of an existing database, which cannot change.
pub(super) fn stored_segment_bytes(dir: &Path) -> Option<usize> {
    let conf = fs::read(dir.join("conf")).ok()?;
    let text = String::from_utf8_lossy(&conf);
    let size = text.lines().find_map(|line| line.strip_prefix("segment_size: "))?.parse::<usize>().ok()?;
    // Anything else is a damaged file, and the storage engine's to refuse.
    (size.is_power_of_two() && (256..=1 << 24).contains(&size)).then_some(size)
}

/// What a read of a range of sequences gives.
#[derive(Default)]
pub(super) struct Range {
    pub records: Vec<Arc<Record>>,
    /// With the key of the frame it is in.
    pub damaged: Vec<(u64, Damage)>,
}

/// Records from `from` to `to`, within both bounds but at least one frame, and what is damaged among them.
pub(super) fn read_range(
    db: &sled::Db,
    from: u64,
    to: u64,
    max_records: usize,
    max_bytes: usize,
) -> Result<Range, StoreError> {
    guarded(|| {
        let mut range = Range::default();
        let mut bytes = 0;
        let start = from.saturating_sub(FRAME_RECORDS as u64 - 1);
        for entry in db.range(start.to_be_bytes()..=to.to_be_bytes()) {
            let (key, frame) = entry.map_err(StoreError::Sled)?;
            for piece in split_frame(&frame) {
                match piece {
                    Ok(record) if (from..=to).contains(&record.seq.0) => {
                        if !range.records.is_empty() && (range.records.len() >= max_records || bytes >= max_bytes) {
                            return Ok(range);
                        }
                        bytes += record.encoded_len();
                        range.records.push(record);
                    }
                    Ok(_) => {}
                    Err(damage) => range.damaged.push((key_of(&key), damage)),
                }
            }
        }
        Ok(range)
    })
}

fn key_of(key: &IVec) -> u64 {
    key.as_ref().try_into().map_or(0, u64::from_be_bytes)
}

/// Gives every answer in a database to `each`.
pub(super) fn answers(db: &sled::Db, mut each: impl FnMut(&[u8])) -> Result<(), StoreError> {
    guarded(|| {
        for entry in db.range([ANSWER_KEY]..) {
            let (key, value) = entry.map_err(StoreError::Sled)?;
            if books::last_of(&key).is_none() {
                each(&value);
            }
        }
        Ok(())
    })
}

/// Gives every count beside records of `from..=to` in a database to `each`.
pub(super) fn beside(db: &sled::Db, from: u64, to: u64, mut each: impl FnMut(&[u8])) -> Result<(), StoreError> {
    guarded(|| {
        for entry in db.range(&books::key(from)[..]..) {
            let (key, value) = entry.map_err(StoreError::Sled)?;
            // Keys of answers are longer, and stand between.
            if books::last_of(&key).is_some_and(|last| (from..=to).contains(&last)) {
                each(&value);
            }
        }
        Ok(())
    })
}

/// The first and the last record of a database.
pub(super) struct Ends {
    pub first: Arc<Record>,
    pub last: Arc<Record>,
}

/// Looks up both ends.
pub(super) fn ends(db: &sled::Db) -> Result<Option<Ends>, StoreError> {
    guarded(|| {
        let records = |entry: Option<(IVec, IVec)>| {
            entry.map(|(_, frame)| split_frame(&frame).into_iter().flatten().collect::<Vec<_>>()).unwrap_or_default()
        };
        let first = db.range(..[ANSWER_KEY]).next().transpose();
        let first = records(first.map_err(StoreError::Sled)?);
        // Answers to requests stand behind the records.
        let last = db.range(..[ANSWER_KEY]).next_back().transpose();
        let last = records(last.map_err(StoreError::Sled)?);
        let both = first.first().cloned().zip(last.last().cloned());
        Ok(both.map(|(first, last)| Ends { first, last }))
    })
}

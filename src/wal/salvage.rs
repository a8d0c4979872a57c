//! Saves what is intact of a generation that the storage engine must not or cannot open.
//!
//! The raw files are searched for records (magic, length, checksum), whatever the storage engine's own structure says,
//! and every intact one that is still needed goes into a new database beside the old. Only when that is on disk do the
//! two change places: the damaged folder is moved to `<log folder>-damaged/`, where it stays for the operator. A crash
//! at any point leaves either the old folder, or the finished new one under its temporary name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use super::{
    error::StoreError,
    generation::{Engine, Generation, guarded, open_engine},
    record::{self, Claim, DamagedRecord, MAGIC},
    seqset::SeqSet,
    state::sync_folder,
};

/// Files are read in pieces of this size.
const WINDOW: usize = 4 << 20;
/// What a batch of found records has at least; it bounds memory.
const BATCH: usize = 4 << 20;

/// What a salvage found.
#[derive(Debug)]
pub(super) struct Salvaged {
    /// Where the damaged files are now.
    pub aside: PathBuf,
    /// Intact records.
    pub found: SeqSet,
    /// Headers of records that are not.
    pub claims: Vec<Claim>,
    /// Those of them that go on where an intact record ends.
    pub proven: Vec<Claim>,
    /// Bytes that begin like a record of another format version.
    pub unknown: u64,
}

/// The temporary name of the new folder.
fn temporary(dir: &Path) -> PathBuf {
    dir.with_extension("salvage")
}

/// Whether [`resume`] has something to do.
pub(super) fn is_interrupted(root: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(root)? {
        if entry?.path().extension().is_some_and(|extension| extension == "salvage") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends or undoes a salvage that a crash interrupted.
pub(super) fn resume(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "salvage") {
            let target = path.with_extension("");
            if target.exists() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::rename(&path, &target)?;
            }
            sync_folder(root)?;
        }
    }
    Ok(())
}

/// Rebuilds `generation` from the intact records up to `to` in its files.
pub(super) fn salvage(generation: &Generation, engine: Engine, aside: &Path, to: u64) -> Result<Salvaged, StoreError> {
    generation.close();
    let new = temporary(&generation.dir);
    if new.exists() {
        fs::remove_dir_all(&new).map_err(StoreError::io("remove an interrupted salvage"))?;
    }
    fs::create_dir_all(&new).map_err(StoreError::io("create a folder for salvaged records"))?;
    let mut target = Target {
        db: open_engine(&new, engine)?,
        batch: sled::Batch::default(),
        batched: 0,
        found: SeqSet::default(),
        unknown: 0,
        wanted: (generation.first, to),
    };
    let mut claims = Vec::new();
    search(&generation.dir, |piece| match piece {
        Piece::Record(seq, bytes) => target.take(seq, bytes),
        Piece::Unknown => {
            target.unknown += 1;
            Ok(())
        }
        Piece::Damaged(claim) | Piece::Cut(claim) => {
            if (generation.first..=to).contains(&claim.seq) {
                claims.push(claim);
            }
            Ok(())
        }
    })?;
    target.write()?;
    let proven = proven(&generation.dir, &target.found, &mut claims)?;
    let Target { db, found, unknown, .. } = target;
    guarded(|| {
        drop(db);
        Ok(())
    })?;
    let synced = File::open(new.join("db"))
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(new.join("conf"))?.sync_all())
        .and_then(|()| sync_folder(&new));
    synced.map_err(StoreError::io("sync salvaged records"))?;

    let stamp = jiff::Timestamp::now().as_millisecond();
    let place = aside.join(format!("generation-{:020}-{stamp}", generation.ordinal));
    let exchanged = fs::create_dir_all(aside)
        .and_then(|()| fs::rename(&generation.dir, &place))
        .and_then(|()| fs::rename(&new, &generation.dir))
        .and_then(|()| sync_folder(aside))
        .and_then(|()| generation.dir.parent().map_or(Ok(()), sync_folder));
    exchanged.map_err(StoreError::io("move a damaged generation aside"))?;
    generation.salvaged.store(true, Relaxed);
    Ok(Salvaged { aside: place, found, claims, proven, unknown })
}

/// Keeps those of `claims` whose records are not in `found`, in order and each once; gives those that go on where the intact
/// record before them ends, or the claim before that does.
pub(super) fn proven(dir: &Path, found: &SeqSet, claims: &mut Vec<Claim>) -> Result<Vec<Claim>, StoreError> {
    claims.retain(|claim| !found.contains(claim.seq));
    claims.sort_unstable();
    claims.dedup();
    let mut ends: BTreeMap<u64, Option<u64>> =
        claims.iter().filter_map(|claim| found.before(claim.seq)).map(|before| (before, None)).collect();
    if ends.is_empty() {
        return Ok(Vec::new());
    }
    search(dir, |piece| {
        if let Piece::Record(seq, bytes) = piece
            && let Some(end) = ends.get_mut(&seq)
        {
            *end = record::claimed(bytes).map(|record| record.cumulative);
        }
        Ok(())
    })?;
    let mut proven: Vec<Claim> = Vec::new();
    for claim in claims.iter() {
        let before = found.before(claim.seq).unwrap_or(0);
        let end = match proven.last().filter(|last| last.seq > before) {
            Some(last) if last.seq < claim.seq => Some(last.cumulative),
            Some(_) => None,
            None => ends.get(&before).copied().flatten(),
        };
        if end.is_some_and(|end| claim.follows(end)) {
            proven.push(*claim);
        }
    }
    Ok(proven)
}

/// Something in the raw files of a generation.
pub(super) enum Piece<'a> {
    /// An intact record and its sequence. The same one may come several times: the storage engine moves its pages.
    Record(u64, &'a [u8]),
    /// Bytes that begin like a record of another format version.
    Unknown,
    /// The header of a record that is not intact.
    Damaged(Claim),
    /// The header of a record that the end of its file cuts off.
    Cut(Claim),
}

/// Shows everything that is intact in the files of the generation in `dir` to `each`, in no order. Only reads.
pub(super) fn search(dir: &Path, mut each: impl FnMut(Piece<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let blobs = fs::read_dir(dir.join("blobs"));
    let blobs = blobs.map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
    for file in std::iter::once(dir.join("db")).chain(blobs.unwrap_or_default()) {
        match File::open(&file) {
            Ok(file) => search_file(file, &mut each)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::Io { action: "open a data file", source: error }),
        }
    }
    Ok(())
}

/// Whether anything in the files of the generation in `dir` looks like a record, intact or not.
pub(super) fn has_traces(dir: &Path) -> io::Result<bool> {
    let blobs = match fs::read_dir(dir.join("blobs")) {
        Ok(mut blobs) => blobs.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    let mut file = match File::open(dir.join("db")) {
        _ if blobs => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut window = Vec::with_capacity(WINDOW);
    loop {
        let more = (&mut file).take(WINDOW as u64).read_to_end(&mut window)?;
        if memchr::memmem::find(&window, &MAGIC).is_some() {
            return Ok(true);
        }
        if more == 0 {
            return Ok(false);
        }
        // The magic may begin in the last bytes.
        window.drain(..window.len().saturating_sub(MAGIC.len() - 1));
    }
}

/// Finds every intact record of `file`, a window at a time; a record that a window cuts is read again with the next.
fn search_file(mut file: File, each: &mut impl FnMut(Piece<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let mut window = Vec::with_capacity(WINDOW);
    loop {
        let more =
            (&mut file).take(WINDOW as u64).read_to_end(&mut window).map_err(StoreError::io("read a data file"))?;
        let end_of_file = more == 0;
        let used = scan(&window, end_of_file, each)?;
        window.drain(..used);
        if end_of_file {
            return Ok(());
        }
    }
}

/// Gives how many bytes need not be seen again.
fn scan(
    window: &[u8],
    end_of_file: bool,
    each: &mut impl FnMut(Piece<'_>) -> Result<(), StoreError>,
) -> Result<usize, StoreError> {
    let mut at = 0;
    while let Some(found) = window.get(at..).and_then(|rest| memchr::memmem::find(rest, &MAGIC)) {
        at += found;
        let bytes = window.get(at..).unwrap_or_default();
        match record::check(bytes) {
            Ok((seq, len)) => {
                each(Piece::Record(seq, bytes.get(..len).unwrap_or_default()))?;
                at += len;
            }
            // A damaged length may claim up to 64 MiB; then the window grows so far once, and no further.
            Err(DamagedRecord::Short { .. }) if !end_of_file => return Ok(at),
            Err(DamagedRecord::Short { .. }) => {
                if let Some(claim) = record::claimed(bytes) {
                    each(Piece::Cut(claim))?;
                }
                at += 1;
            }
            Err(DamagedRecord::Version(_)) => {
                each(Piece::Unknown)?;
                at += 1;
            }
            Err(_) => {
                if let Some(claim) = record::claimed(bytes) {
                    each(Piece::Damaged(claim))?;
                }
                at += 1;
            }
        }
    }
    // The magic may begin in the last three bytes.
    Ok(if end_of_file { window.len() } else { window.len().saturating_sub(MAGIC.len() - 1).max(at) })
}

struct Target {
    db: sled::Db,
    batch: sled::Batch,
    batched: usize,
    found: SeqSet,
    unknown: u64,
    wanted: (u64, u64),
}

impl Target {
    fn take(&mut self, seq: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if !(self.wanted.0..=self.wanted.1).contains(&seq) || self.found.contains(seq) {
            return Ok(());
        }
        self.found.insert(seq);
        self.batch.insert(&seq.to_be_bytes()[..], bytes);
        self.batched += bytes.len();
        if self.batched >= BATCH { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.batched = 0;
        let db = &self.db;
        guarded(|| {
            db.apply_batch(batch).map_err(StoreError::Sled)?;
            db.flush().map_err(StoreError::Sled).map(|_| ())
        })
    }
}

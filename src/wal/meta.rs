//! The marks of the log, apart from the records: two slots in one small file, written in turn.
//!
//! A slot is written after every commit without waiting for the disk (so it survives kill -9) and synced about once a
//! second and whenever more sequences are reserved (so that none repeats after a power loss). The slot with the higher
//! serial whose checksum holds counts. Writing in place needs no space, so it works on a full disk.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

const FILE: &str = "meta";
const MAGIC: [u8; 4] = *b"IWM1";
pub(super) const VERSION: u8 = 1;
/// One page each, so that no torn write reaches the other slot.
const SLOT: u64 = 4096;
const LEN: usize = 80;

/// What the log remembers of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Every record up to here may go; 0 for none.
    pub done: u64,
    /// Every record up to here was committed, as far as is known; 0 for none.
    pub committed: u64,
    /// Sequences below were perhaps given out. Exact after a clean close.
    pub reserved: u64,
    /// Events ever committed into this folder.
    pub cumulative: u64,
    /// Ordinal of the generation that is written.
    pub active: u64,
    /// The first sequence of that generation.
    pub active_first: u64,
    /// Ordinal of the oldest generation that is still needed.
    pub oldest: u64,
}

/// What was found on disk.
pub(super) enum Found {
    Marks(Marks),
    /// No file: a new folder.
    Missing,
    /// A file, and no slot in it holds.
    Damaged,
    /// Written by a newer engine.
    Version(u8),
}

pub(super) struct MetaFile {
    file: File,
    serial: u64,
    last: Option<Marks>,
    unsynced: bool,
}

impl MetaFile {
    /// The marks of the log in `dir`, without anything being made or changed.
    pub(super) fn peek(dir: &Path) -> io::Result<Option<Marks>> {
        let file = match File::open(dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        let newest = slots.into_iter().flatten().filter(|slot| slot.version == VERSION).max_by_key(|slot| slot.serial);
        Ok(newest.map(|slot| slot.marks))
    }

    pub(super) fn open(dir: &Path) -> io::Result<(Self, Found)> {
        let path = dir.join(FILE);
        let existed = path.exists();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        let newest = slots.iter().flatten().max_by_key(|slot| slot.serial).copied();
        let found = match newest {
            Some(slot) if slot.version != VERSION => Found::Version(slot.version),
            Some(slot) => Found::Marks(slot.marks),
            None if existed => Found::Damaged,
            None => Found::Missing,
        };
        if newest.is_none() {
            // Both pages get their blocks now, so that later writes need no space.
            file.write_all_at(&[0; 2 * 4096], 0)?;
            file.sync_all()?;
        }
        let last = newest.map(|slot| slot.marks);
        Ok((Self { file, serial: newest.map_or(0, |slot| slot.serial), last, unsynced: false }, found))
    }

    /// Writes `marks` when they changed, without waiting for the disk.
    pub(super) fn write(&mut self, marks: Marks) -> io::Result<()> {
        if self.last == Some(marks) {
            return Ok(());
        }
        self.serial += 1;
        self.file.write_all_at(&encode(self.serial, &marks), (self.serial % 2) * SLOT)?;
        self.last = Some(marks);
        self.unsynced = true;
        Ok(())
    }

    /// Waits until what was written is on disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.file.sync_data()?;
            self.unsynced = false;
        }
        Ok(())
    }

    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }
}

#[derive(Clone, Copy)]
struct Slot {
    version: u8,
    serial: u64,
    marks: Marks,
}

fn encode(serial: u64, marks: &Marks) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    let Marks { done, committed, reserved, cumulative, active, active_first, oldest } = *marks;
    for value in [serial, done, committed, reserved, cumulative, active, active_first, oldest] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.resize(LEN, 0);
    bytes
}

fn read_slot(file: &File, index: u64) -> io::Result<Option<Slot>> {
    let mut bytes = [0; LEN];
    match file.read_exact_at(&mut bytes, index * SLOT) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(decode(&bytes))
}

fn decode(bytes: &[u8; LEN]) -> Option<Slot> {
    let (body, rest) = bytes.split_at_checked(72)?;
    let checksum = u32::from_le_bytes(*rest.first_chunk::<4>()?);
    if body.get(..4)? != MAGIC || crc32c::crc32c(body) != checksum {
        return None;
    }
    let mut values = body.get(8..)?.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok()).map(u64::from_le_bytes);
    let mut value = || values.next();
    Some(Slot {
        version: *body.get(4)?,
        serial: value()?,
        marks: Marks {
            done: value()?,
            committed: value()?,
            reserved: value()?,
            cumulative: value()?,
            active: value()?,
            active_first: value()?,
            oldest: value()?,
        },
    })
}

//! The file's layout: what of it is written through the map, and the reading of what another process left.

use std::{
    fs, io,
    sync::atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering},
};

use jiff::Timestamp;

use super::{super::threads::Caller, Crash};

/// Entries in the table of callers.
pub(super) const CALLERS: u32 = 512;

/// Slots.
pub(super) const SLOTS: usize = 256;

/// Size of the file.
pub(super) const SIZE: usize = size_of::<Layout>();

const MAGIC: &[u8; 8] = b"INGCALLS";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const NAME: usize = 40;
const SHA256: usize = 64;

/// The file in memory. Atomics throughout: its bytes are the kernel's too.
#[repr(C)]
pub(super) struct Layout {
    /// Written before the file is mapped.
    header: [AtomicU8; HEADER],
    callers: [CallerEntry; CALLERS as usize],
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct CallerEntry {
    name_len: AtomicU32,
    name: [AtomicU8; NAME],
    sha256: [AtomicU8; SHA256],
    zero: [AtomicU8; 20],
}

/// A thread's slot, on a cache line of its own.
#[repr(C, align(64))]
pub(super) struct Slot {
    pub(super) caller: AtomicU32,
    pub(super) signal: AtomicU32,
    pub(super) at_ms: AtomicI64,
    zero: [AtomicU8; 48],
}

const _: () = assert!(size_of::<CallerEntry>() == 128 && size_of::<Slot>() == 64 && SIZE == 64 + 512 * 128 + 256 * 64);

impl Layout {
    pub(super) fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)
    }

    /// Writes `caller` into the entry `number`, which no slot names now.
    pub(super) fn name(&self, number: u32, caller: &Caller) {
        let Some(entry) = (number as usize).checked_sub(1).and_then(|index| self.callers.get(index)) else { return };
        let name = caller.plugin.as_bytes();
        let name = name.get(..NAME).unwrap_or(name);
        // Nameless while it is half written.
        entry.name_len.store(0, Ordering::SeqCst);
        for (to, from) in entry.name.iter().zip(name) {
            to.store(*from, Ordering::Relaxed);
        }
        for (to, from) in entry.sha256.iter().zip(caller.sha256.as_bytes()) {
            to.store(*from, Ordering::Relaxed);
        }
        // At most NAME.
        entry.name_len.store(u32::try_from(name.len()).unwrap_or(0), Ordering::Release);
    }
}

impl Slot {
    /// Marks the slot: its thread got `signal` while in call. Keeps the first mark: what comes after it (`abort` after a
    /// stack overflow) only carries it out. Async-signal-safe.
    pub(super) fn mark(&self, signal: u32, now_ms: i64) {
        if self.caller.load(Ordering::Relaxed) != 0 && self.signal.load(Ordering::Relaxed) == 0 {
            self.at_ms.store(now_ms, Ordering::Relaxed);
            self.signal.store(signal, Ordering::Release);
        }
    }

    pub(super) fn clear(&self) {
        self.caller.store(0, Ordering::Release);
        self.signal.store(0, Ordering::Release);
    }
}

/// The process that a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// When it began, clock ticks since boot: ids are used again.
    began: u64,
    boot: [u8; 16],
}

impl Owner {
    pub(super) fn this_process() -> io::Result<Self> {
        let pid = std::process::id();
        let began =
            began(pid)?.ok_or_else(|| io::Error::other("/proc/self/stat does not say when the process began"))?;
        Ok(Self { pid, began, boot: boot()? })
    }

    /// Whether it still runs, as far as this process can see.
    pub(super) fn runs(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && began(self.pid).is_ok_and(|began| began == Some(self.began))
    }
}

fn boot() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(uuid::Uuid::try_parse(text.trim()).map_err(io::Error::other)?.into_bytes())
}

fn began(pid: u32) -> io::Result<Option<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything; the start is the 22nd field.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // One that has ended and that its parent has not asked about yet.
    if fields.starts_with(['Z', 'X']) {
        return Ok(None);
    }
    Ok(fields.split(' ').nth(19).and_then(|ticks| ticks.parse().ok()))
}

/// A file without callers and calls.
pub(super) fn empty(owner: &Owner) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&owner.pid.to_le_bytes());
    bytes.extend_from_slice(&owner.began.to_le_bytes());
    bytes.extend_from_slice(&owner.boot);
    bytes.resize(SIZE, 0);
    bytes
}

/// What a process left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) owner: Owner,
    /// In order of time.
    pub(super) crashes: Vec<Crash>,
}

/// Reads a whole file. Nothing in it is trusted: whatever wrote it may have crashed because it wrote at random.
pub(super) fn read(bytes: &[u8]) -> Result<Found, &'static str> {
    if bytes.len() != SIZE {
        return Err("its size is not that of crash slots");
    }
    let problem = "it ends too early";
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(problem)?;
    if magic != MAGIC {
        return Err("it does not begin as crash slots do");
    }
    let (version, rest) = rest.split_first_chunk().ok_or(problem)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err("it has another version");
    }
    let (pid, rest) = rest.split_first_chunk().ok_or(problem)?;
    let (began, rest) = rest.split_first_chunk().ok_or(problem)?;
    let boot = *rest.first_chunk().ok_or(problem)?;
    let owner = Owner { pid: u32::from_le_bytes(*pid), began: u64::from_le_bytes(*began), boot };

    let (callers, slots) = bytes
        .get(HEADER..)
        .and_then(|rest| rest.split_at_checked(CALLERS as usize * size_of::<CallerEntry>()))
        .ok_or(problem)?;
    let callers: Vec<Option<(String, String)>> = callers.chunks_exact(size_of::<CallerEntry>()).map(caller).collect();
    let mut crashes: Vec<Crash> =
        slots.chunks_exact(size_of::<Slot>()).filter_map(|slot| crash(slot, &callers)).collect();
    crashes.sort_by_key(|crash| crash.at);
    Ok(Found { owner, crashes })
}

fn caller(entry: &[u8]) -> Option<(String, String)> {
    let (name_len, rest) = entry.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(NAME)?;
    let name = name.get(..u32::from_le_bytes(*name_len) as usize)?;
    let sha256 = rest.get(..SHA256)?;
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
    if name.is_empty() || !name.iter().chain(sha256).all(plain) {
        return None;
    }
    Some((String::from_utf8(name.to_vec()).ok()?, String::from_utf8(sha256.to_vec()).ok()?))
}

fn crash(slot: &[u8], callers: &[Option<(String, String)>]) -> Option<Crash> {
    let (number, rest) = slot.split_first_chunk()?;
    let (signal, rest) = rest.split_first_chunk()?;
    let at_ms = rest.first_chunk()?;
    let signal = i32::from_le_bytes(*signal);
    if signal == 0 {
        return None;
    }
    let index = (u32::from_le_bytes(*number) as usize).checked_sub(1)?;
    let (plugin, sha256) = callers.get(index)?.clone()?;
    let at = Timestamp::from_millisecond(i64::from_le_bytes(*at_ms)).ok()?;
    Some(Crash { plugin, sha256, signal, at })
}

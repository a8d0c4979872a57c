//! The log's books: by tenant, how many events were received and what became of them up to and with the log, as of a
//! sequence. What the ledger holds against what is found further on.
//!
//! # How
//! The front says of each request how many events it held, how many were rejected and how many a plugin dropped
//! ([`Intake`]); the writer knows which it had before and which it committed. A commit's records are the count of what was
//! committed (each says whose it is and how many events it holds). What they do not say is written beside them in the same
//! batch, in one value, and only when there is something: a request like any other costs nothing.
//!
//! ```text
//! key    0xFF | last sequence of the commit: u64 big-endian        (9 bytes; keys of answers have 17)
//! value  "IWB1" | CRC32C of the entries | 36 zero bytes | ff ff ff ff | tenant: 16 bytes, received, rejected, dropped,
//!        duplicates: u64 | ...
//! ```
//! (At the place of the four `ff` an engine that knows only answers reads the length of one, and finds the value too short.)
//!
//! Like the counts of events by month (see `tally`), the books are saved as of a sequence in one small file
//! (`state/books`, replaced whole and synced) before a generation with later records goes, whenever one is full, and at the
//! end. An open reads the file and adds the records and values behind its sequence.
//!
//! A request of which nothing is committed (all rejected, dropped or duplicate) waits for the next commit with records, or
//! for a second in which there is none: then the file is saved. A crash before that loses it: what was received and what
//! became of it, both, so that the books stay balanced.
//!
//! # Damage
//! Values of a generation that had to be salvaged are lost in the same balanced way. Records that are lost and were in the
//! books are missing further on, and of their tenant: that is what the ledger is for. How many events those held that were
//! not in the books yet is said by the sum in the next intact record, or in the marks; whose they were by the header of a
//! damaged record, where one is left (see `losses`). What a header tells is entered as received and as damaged, and what it tells of
//! a record that was in the books as damaged, so that it is not missing as well. The rest is lost, and nobody's. Where there is
//! no sum to begin with (books of an earlier version, or begun anew) a lost record counts as one event, at least. When the
//! file itself is damaged, the books begin anew with the records that wait.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{
    losses::Losses,
    record::{Claim, Record},
    window::ANSWER_KEY,
};
use crate::ids::{TenantId, WalId};

/// The name under which the books are saved.
pub(super) const NAME: &str = "books";
/// What begins a value beside records.
const MAGIC: &[u8; 4] = b"IWB1";
/// What begins the file. That of the first version began like a value, and knew no sum.
const FILE_MAGIC: &[u8; 4] = b"IWB2";
const VALUE_HEAD: usize = 48;
const ENTRY: usize = 16 + 4 * 8;
const ACCOUNT: usize = 16 + 6 * 8;
const OPENING: usize = 16 + 8 + 8;
/// In the place of a sum that nobody has said.
const NO_SUM: u64 = u64::MAX;
const FILE_HEAD: usize = 4 + 6 * 8 + 4 + 4;
const FILE_HEAD_1: usize = 4 + 4 * 8 + 4 + 4;

/// What the front counted of one request, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// All that were in it.
    pub received: u64,
    /// Refused, each with a reason.
    pub rejected: u64,
    /// Not wanted by a plugin.
    pub dropped: u64,
}

/// What became of one tenant's events, up to and with the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// In requests that were taken, or of which every event was refused.
    pub received: u64,
    /// Refused, each with a reason.
    pub rejected: u64,
    /// Not wanted by a plugin.
    pub dropped: u64,
    /// Committed before, by an event of the same id.
    pub duplicates: u64,
    /// Committed to the log.
    pub appended: u64,
    /// In records that were found damaged and set aside.
    pub damaged: u64,
}

impl Account {
    /// What `intake` and the writer say of one request. `received` is what is not in records: of a front that counts
    /// rightly the sum of the other three.
    fn beside(intake: Intake, duplicates: u64, appended: u64) -> Self {
        let Intake { received, rejected, dropped } = intake;
        Self { received: received.wrapping_sub(appended), rejected, dropped, duplicates, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        // Wrapping, because a difference may be negative where the front has miscounted.
        self.received = self.received.wrapping_add(other.received);
        self.rejected += other.rejected;
        self.dropped += other.dropped;
        self.duplicates += other.duplicates;
        self.appended += other.appended;
        self.damaged += other.damaged;
    }
}

/// Sequences that were given out under one id of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The id.
    pub wal_id: WalId,
    /// The first record in the books.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// Records that are not there, between two that are.
#[derive(Clone, Copy, Debug)]
struct Hole {
    after: u64,
    before: u64,
    /// Events up to and with `after`.
    base: u64,
    /// Events in what is not there.
    events: u64,
}

/// The books, and how far they are on disk. The writer's thread makes all changes but notes.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    pub(super) accounts: BTreeMap<TenantId, Account>,
    pub(super) openings: Vec<Opening>,
    /// Every record up to here is in the accounts.
    pub(super) through: u64,
    /// Events of this folder up to and with that record; nothing where nobody has said it.
    cumulative: Option<u64>,
    /// When they were begun.
    pub(super) since_ms: i64,
    /// Events that were lost before they were in the books: nobody knows whose.
    pub(super) lost: u64,
    /// Of so many records among them it is not known how many events they held: each counts as one.
    pub(super) vague: u64,
    /// Records that were lost while they were in the books.
    pub(super) missing: u64,
    /// Where records that an open has read do not go on where the one before ends.
    holes: Vec<Hole>,
    /// Of requests of which nothing was committed, and not on disk yet.
    notes: HashMap<TenantId, Account>,
    /// Something is in them that no record says and no commit carries.
    urgent: bool,
    /// How often they were changed, and how much of that is on disk.
    changes: u64,
    saved: u64,
}

impl Books {
    /// Books that begin behind `through`. To be saved before the first record: without a file they would begin once more
    /// after a crash.
    pub(super) fn anew(through: u64, now_ms: i64) -> Self {
        Self { through, since_ms: now_ms, changes: 1, ..Self::default() }
    }

    /// Whether the file says all of this but notes.
    pub(super) fn is_saved(&self) -> bool {
        self.changes == self.saved
    }

    /// Whether something waits for its way to the disk that no commit may carry.
    pub(super) fn has_notes(&self) -> bool {
        self.urgent || !self.notes.is_empty()
    }

    /// Notes a request of which nothing is to be committed.
    pub(super) fn note(&mut self, tenant: TenantId, intake: Intake, duplicates: u64) {
        self.notes.entry(tenant).or_default().add(Account::beside(intake, duplicates, 0));
    }

    /// What is to be written beside the records of a commit: of these requests (tenant, intake, duplicates, events in
    /// records) and of `noted`.
    pub(super) fn beside(
        noted: &HashMap<TenantId, Account>,
        requests: impl Iterator<Item = (TenantId, Intake, u64, u64)>,
    ) -> HashMap<TenantId, Account> {
        let mut staged = noted.clone();
        for (tenant, intake, duplicates, appended) in requests {
            let beside = Account::beside(intake, duplicates, appended);
            if beside != Account::default() {
                staged.entry(tenant).or_default().add(beside);
            }
        }
        staged
    }

    /// The commit is on disk.
    pub(super) fn committed<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
        beside: HashMap<TenantId, Account>,
    ) {
        for record in records {
            self.add_record(record);
        }
        self.add_all(beside);
    }

    /// Takes the notes, to be written with a commit.
    pub(super) fn take_notes(&mut self) -> HashMap<TenantId, Account> {
        std::mem::take(&mut self.notes)
    }

    /// The commit failed: those noted before are still to come. (Those of its own requests were refused.)
    pub(super) fn failed(&mut self, noted: HashMap<TenantId, Account>) {
        for (tenant, account) in noted {
            self.notes.entry(tenant).or_default().add(account);
        }
    }

    fn add_all(&mut self, beside: HashMap<TenantId, Account>) {
        for (tenant, account) in beside {
            self.accounts.entry(tenant).or_default().add(account);
            self.changes += 1;
        }
    }

    /// Takes a record into the books that an open has read, the next that is there.
    pub(super) fn add_found(&mut self, record: &Record) {
        if record.seq.0 > self.through {
            self.go_on(record.seq.0, record.cumulative.saturating_sub(record.event_count.into()));
            self.add_record(record);
        }
    }

    /// The last record that was committed, according to the marks, and the events up to and with it.
    pub(super) fn end_at(&mut self, committed: u64, cumulative: u64) {
        if committed > self.through {
            self.go_on(committed + 1, cumulative);
        }
    }

    /// What is there next is `before`, and stands after so many events.
    fn go_on(&mut self, before: u64, cumulative: u64) {
        if let Some(base) = self.cumulative.filter(|base| *base < cumulative) {
            self.holes.push(Hole { after: self.through, before, base, events: cumulative - base });
        }
    }

    /// The sum on which the next record is to be built: that of the marks, unless the books know of more.
    pub(super) fn sum(&mut self, marked: u64) -> u64 {
        let sum = self.cumulative.map_or(marked, |known| known.max(marked));
        if self.cumulative != Some(sum) {
            self.cumulative = Some(sum);
            self.changes += 1;
        }
        sum
    }

    /// Takes a record into the books; one that is in them already changes nothing.
    pub(super) fn add_record(&mut self, record: &Record) {
        let (seq, events) = (record.seq.0, u64::from(record.event_count));
        if seq <= self.through {
            return;
        }
        self.through = seq;
        self.cumulative = Some(record.cumulative);
        self.changes += 1;
        let account = self.accounts.entry(record.tenant).or_default();
        account.received = account.received.wrapping_add(events);
        account.appended += events;
        match self.openings.last_mut() {
            Some(opening) if opening.wal_id == record.wal_id => opening.last = seq,
            _ => self.openings.push(Opening { wal_id: record.wal_id, first: seq, last: seq }),
        }
    }

    /// Takes in what stood beside records, read at an open.
    pub(super) fn add_value(&mut self, value: &[u8]) {
        match read_value(value) {
            Some(beside) => self.add_all(beside),
            None => tracing::error!("a count beside records of the write-ahead log is damaged; it is left out"),
        }
    }

    /// Says what is lost; records up to `known` were in the books before this open, and those up to `done` had left the log.
    pub(super) fn lose(&mut self, known: u64, done: u64, losses: &Losses) {
        let Losses { gaps, claims, proven, waiting } = losses;
        let mut holes = std::mem::take(&mut self.holes);
        // What is done is nobody's loss; how much of a hole that reaches across that is, nobody knows.
        holes.retain(|hole| hole.after >= done || hole.before <= done + 1);
        for (first, last) in gaps {
            let from = (*first).max(known + 1);
            let unknown = (*last + 1).saturating_sub(from);
            self.missing += *last + 1 - first - unknown;
            if unknown > 0 && !holes.iter().any(|hole| hole.after < *last && from < hole.before) {
                self.lost += unknown;
                self.vague += unknown;
            }
        }
        for claim in proven.iter().filter(|claim| claim.seq <= known) {
            self.damage(claim);
        }
        let mut claims: Vec<(&Claim, bool)> = claims.iter().map(|claim| (claim, false)).collect();
        claims.extend(waiting.iter().map(|claim| (claim, true)));
        claims.sort_unstable();
        for hole in &holes {
            let left = self.fill(hole, &claims, done);
            if hole.after >= done {
                self.lost += left;
            }
        }
        if !gaps.is_empty() || !holes.is_empty() {
            self.urgent = true;
            self.changes += 1;
        }
    }

    /// Enters those events of a hole of which headers say whose they are; gives how many are left. `claims`, in order, are
    /// of records that are gone, or wait to be set aside.
    fn fill(&mut self, hole: &Hole, claims: &[(&Claim, bool)], done: u64) -> u64 {
        let (mut at, end) = (hole.base, hole.base + hole.events);
        for (claim, waits) in claims.iter().filter(|(claim, _)| (hole.after + 1..hole.before).contains(&claim.seq)) {
            let Some(account) = self.accounts.get_mut(&claim.tenant) else { continue };
            if !claim.follows(at) || claim.cumulative > end {
                continue;
            }
            at = claim.cumulative;
            account.received = account.received.wrapping_add(claim.events);
            account.appended += claim.events;
            if claim.seq > done && !waits {
                account.damaged += claim.events;
            }
        }
        end - at
    }

    /// Says that a record was damaged, if it was one that is in the books.
    pub(super) fn damage(&mut self, claim: &Claim) {
        let of_it = |o: &Opening| o.wal_id == claim.wal_id && (o.first..=o.last).contains(&claim.seq);
        let known = self.openings.iter().any(of_it);
        if let Some(account) = self.accounts.get_mut(&claim.tenant).filter(|_| known) {
            account.damaged += claim.events;
            self.urgent = true;
            self.changes += 1;
        }
    }

    /// The file's content, with the notes, which need not be written elsewhere then; and what to say when it is on disk.
    pub(super) fn encode(&mut self) -> (Vec<u8>, u64) {
        let notes = std::mem::take(&mut self.notes);
        self.add_all(notes);
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(FILE_HEAD + self.openings.len() * OPENING + self.accounts.len() * ACCOUNT);
        bytes.extend_from_slice(FILE_MAGIC);
        bytes.extend_from_slice(&self.through.to_le_bytes());
        bytes.extend_from_slice(&self.since_ms.to_le_bytes());
        for value in [self.lost, self.missing, self.vague, self.cumulative.unwrap_or(NO_SUM)] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&count(self.openings.len()));
        bytes.extend_from_slice(&count(self.accounts.len()));
        for Opening { wal_id, first, last } in &self.openings {
            bytes.extend_from_slice(wal_id.0.as_bytes());
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
        }
        for (tenant, account) in &self.accounts {
            let Account { received, rejected, dropped, duplicates, appended, damaged } = *account;
            bytes.extend_from_slice(tenant.0.as_bytes());
            for value in [received, rejected, dropped, duplicates, appended, damaged] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        (bytes, self.changes)
    }

    /// What [`Books::encode`] gave is on disk.
    pub(super) fn saved(&mut self, changes: u64) {
        self.saved = self.saved.max(changes);
        self.urgent &= self.changes != self.saved;
    }

    /// What a file says; nothing when it says nothing that this engine knows.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let first_version = magic == MAGIC;
        if !first_version && magic != FILE_MAGIC {
            return None;
        }
        let (mut head, rest) = rest.split_at_checked(if first_version { FILE_HEAD_1 } else { FILE_HEAD } - 4)?;
        let mut books = Self {
            through: u64::from_le_bytes(take(&mut head)?),
            since_ms: i64::from_le_bytes(take(&mut head)?),
            lost: u64::from_le_bytes(take(&mut head)?),
            missing: u64::from_le_bytes(take(&mut head)?),
            ..Self::default()
        };
        if first_version {
            books.vague = books.lost;
        } else {
            books.vague = u64::from_le_bytes(take(&mut head)?);
            books.cumulative = Some(u64::from_le_bytes(take(&mut head)?)).filter(|sum| *sum != NO_SUM);
        }
        let openings = usize::try_from(u32::from_le_bytes(take(&mut head)?)).ok()?;
        let accounts = usize::try_from(u32::from_le_bytes(take(&mut head)?)).ok()?;
        let (openings, rest) = rest.split_at_checked(openings.checked_mul(OPENING)?)?;
        for mut opening in openings.chunks_exact(OPENING) {
            let wal_id = WalId(Uuid::from_bytes(take(&mut opening)?));
            let (first, last) = (u64::from_le_bytes(take(&mut opening)?), u64::from_le_bytes(take(&mut opening)?));
            books.openings.push(Opening { wal_id, first, last });
        }
        if rest.len() != accounts.checked_mul(ACCOUNT)? {
            return None;
        }
        for mut account in rest.chunks_exact(ACCOUNT) {
            let tenant = TenantId(Uuid::from_bytes(take(&mut account)?));
            let mut next = || Some(u64::from_le_bytes(take(&mut account)?));
            let account = Account {
                received: next()?,
                rejected: next()?,
                dropped: next()?,
                duplicates: next()?,
                appended: next()?,
                damaged: next()?,
            };
            books.accounts.insert(tenant, account);
        }
        Some(books)
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

/// The key of the value beside records, the last of which is `last`.
pub(super) fn key(last: u64) -> [u8; 9] {
    let mut key = [ANSWER_KEY; 9];
    if let Some(rest) = key.last_chunk_mut::<8>() {
        *rest = last.to_be_bytes();
    }
    key
}

/// The sequence in a key, if it is one of these.
pub(super) fn last_of(key: &[u8]) -> Option<u64> {
    let rest: &[u8; 9] = key.try_into().ok()?;
    rest.last_chunk::<8>().map(|seq| u64::from_be_bytes(*seq))
}

/// The value beside records.
pub(super) fn value(beside: &HashMap<TenantId, Account>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(VALUE_HEAD + beside.len() * ENTRY);
    bytes.extend_from_slice(MAGIC);
    bytes.resize(VALUE_HEAD - 4, 0);
    bytes.extend_from_slice(&[0xFF; 4]);
    for (tenant, account) in beside {
        bytes.extend_from_slice(tenant.0.as_bytes());
        for value in [account.received, account.rejected, account.dropped, account.duplicates] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
    let checksum = crc32c::crc32c(bytes.get(VALUE_HEAD..).unwrap_or_default());
    if let Some(place) = bytes.get_mut(4..8) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

fn read_value(bytes: &[u8]) -> Option<HashMap<TenantId, Account>> {
    let (head, entries) = bytes.split_first_chunk::<VALUE_HEAD>()?;
    let mut checksum = head.strip_prefix(MAGIC)?;
    if u32::from_le_bytes(take(&mut checksum)?) != crc32c::crc32c(entries) || entries.len() % ENTRY != 0 {
        return None;
    }
    let mut beside = HashMap::new();
    for mut entry in entries.chunks_exact(ENTRY) {
        let tenant = TenantId(Uuid::from_bytes(take(&mut entry)?));
        let mut next = || Some(u64::from_le_bytes(take(&mut entry)?));
        let (received, rejected, dropped, duplicates) = (next()?, next()?, next()?, next()?);
        beside.insert(tenant, Account { received, rejected, dropped, duplicates, ..Account::default() });
    }
    Some(beside)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    fn tenant(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    #[test]
    fn what_is_saved_reads_back_with_the_notes() {
        let mut books = Books::anew(7, 99);
        books.note(tenant(1), Intake { received: 5, rejected: 3, dropped: 2 }, 0);
        let account = Account { received: 10, appended: 10, damaged: 1, ..Account::default() };
        books.accounts.insert(tenant(2), account);
        books.openings.push(Opening { wal_id: WalId(Uuid::from_u128(8)), first: 8, last: 9 });
        (books.lost, books.missing, books.vague, books.cumulative) = (3, 2, 1, Some(50));
        let (bytes, _) = books.encode();
        let read = Books::decode(&bytes).unwrap();
        assert_eq!((read.through, read.since_ms, read.lost, read.missing), (7, 99, 3, 2));
        assert_eq!((read.vague, read.cumulative), (1, Some(50)));
        assert_eq!(read.openings, books.openings);
        let noted = Account { received: 5, rejected: 3, dropped: 2, ..Account::default() };
        assert_eq!(read.accounts, [(tenant(1), noted), (tenant(2), account)].into());
        assert!(read.is_saved() && !read.has_notes() && !books.has_notes());
        // The first version had neither: a lost record was one event at least.
        let first = [&MAGIC[..], &bytes[4..36], &bytes[52..]].concat();
        let read = Books::decode(&first).unwrap();
        assert_eq!((read.accounts.len(), read.lost, read.vague, read.cumulative), (2, 3, 3, None));
        for wrong in [&bytes[..bytes.len() - 1], &bytes[1..], b"", b"IWB1", b"IWB2"] {
            assert!(Books::decode(wrong).is_none());
        }
    }

    #[test]
    fn a_commit_carries_what_its_records_do_not_say() {
        let mut books = Books::default();
        let plain = Intake { received: 4, ..Intake::default() };
        let noted = books.take_notes();
        assert!(Books::beside(&noted, [(tenant(1), plain, 0, 4)].into_iter()).is_empty(), "nothing to be written");
        books.note(tenant(2), Intake { received: 2, rejected: 2, dropped: 0 }, 0);
        let mixed = Intake { received: 10, rejected: 1, dropped: 2 };
        let noted = books.take_notes();
        let staged = Books::beside(&noted, [(tenant(1), plain, 0, 4), (tenant(1), mixed, 3, 4)].into_iter());
        let beside = Account { received: 6, rejected: 1, dropped: 2, duplicates: 3, ..Account::default() };
        let noted = Account { received: 2, rejected: 2, ..Account::default() };
        assert_eq!(staged, [(tenant(1), beside), (tenant(2), noted)].into());
        assert_eq!(read_value(&value(&staged)), Some(staged));
        assert_eq!(last_of(&key(77)), Some(77));
        assert_eq!(last_of(&[ANSWER_KEY; 17]), None);
        let mut damaged = value(&HashMap::from([(tenant(1), beside)]));
        damaged[60] ^= 1;
        assert_eq!(read_value(&damaged), None);
    }
}

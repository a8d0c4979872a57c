//! The dedup window: ids of events that were committed lately, and answers to requests that carried an idempotency key.
//!
//! # How
//! The writer's thread asks the window about every event before it commits: one whose tenant has sent its id before is left
//! out of the commit and counted. Because one thread commits, a concurrent copy is either in a later commit, and then finds
//! the id, or in the same one, and then is answered after the same fsync. The ids of a commit that fails are forgotten.
//!
//! # What is durable
//! The ids are in the records: they are written in the same batch and survive whatever these survive. When a generation is
//! full its ids are also written to a file of their own, so that they outlive its records; an open decompresses at most the
//! generation that was being written, and then writes its file. Answers are written in the same batch, under keys that no record has.
//!
//! ```text
//! wal/window/<ordinal>   "IWW1" | CRC32C of the rest | secret's mark: u64
//!                        | commits: u32 | at: i64, ids: u32 | ...  | ids: 16 bytes each
//!                        | answers: u32 | at: i64, key: 16 bytes, request: 16 bytes, duplicates: u32, length: u32, body | ...
//! wal/state/window       the secret: 32 random bytes
//! ```
//!
//! # An id of 16 bytes
//! The event's id XOR a mask of its tenant: the first half of SHA-256(secret, tenant). Within a tenant that is exact. Two
//! tenants' ids meet by chance as often as random ids of one tenant do, and not on purpose, because the secret is in no answer.
//!
//! # Time
//! Ages are measured on a clock that does not step while the process runs: a wall clock set forward by an hour must not
//! empty the window. Across a restart only the wall clock is there; an entry of the future then counts as new.
//!
//! # Limits
//! Both bounds are upper ones: [`Settings::dedup_span`] and [`Settings::dedup_ids`], whichever bites first. The files cost
//! 16 bytes an event. The nil id is no id. What was sent to another node is not known here: the sink looks for it
//! (`sink::resent`). Ids of records that were damaged stay known while their file does.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

// A hash for every event; whom its ids meet in a table is nobody's to choose: they are masked by a secret.
use hashbrown::HashSet;
use sha2::{Digest, Sha256};

use super::{
    Append, Settings,
    error::AppendError,
    packer::{Chunk, Packer},
    record::{DamagedRecord, Record, rows},
    state::write_atomically,
};
use crate::{
    ids::{EventId, TenantId},
    row,
};

/// The name under which the secret is saved.
pub(super) const SECRET: &str = "window";
/// Keys of answers begin with this byte, and those of records, big-endian numbers that no log reaches, do not.
pub(super) const ANSWER_KEY: u8 = 0xFF;
/// How long an answer is given again.
const ANSWER_SPAN: Duration = Duration::from_mins(10);
/// Most bytes of answers in memory; older ones are forgotten first.
const ANSWER_BYTES: usize = 64 << 20;
/// What an answer takes beside its body.
const ANSWER_OVERHEAD: usize = 160;
const MAGIC: &[u8; 4] = b"IWW1";

/// A request's idempotency key, as the log knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnswerKey(u128);

/// What is to be answered to a request with an idempotency key, now and again.
#[derive(Clone, Debug)]
pub struct Answer {
    /// From [`super::Wal::answer_key`].
    pub key: AnswerKey,
    /// Tells requests apart that share a key: a digest of the request.
    pub request: u128,
    /// Whatever the caller needs to answer again.
    pub body: Vec<u8>,
}

/// An answer that was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// [`Answer::request`] of the first request with the key.
    pub request: u128,
    /// How many of its events were duplicates.
    pub duplicates: u64,
    /// [`Answer::body`].
    pub body: Vec<u8>,
}

/// An answer in the window.
#[derive(Clone, Debug)]
struct Kept {
    at_ms: i64,
    key: AnswerKey,
    answered: Arc<Answered>,
}

impl Kept {
    fn weight(&self) -> usize {
        self.answered.body.len() + ANSWER_OVERHEAD
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at_ms.to_le_bytes());
        out.extend_from_slice(&self.key.0.to_le_bytes());
        out.extend_from_slice(&self.answered.request.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.answered.duplicates).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.answered.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.answered.body);
    }

    fn decode(input: &mut &[u8]) -> Option<Self> {
        let at_ms = i64::from_le_bytes(take(input)?);
        let key = AnswerKey(u128::from_le_bytes(take(input)?));
        let request = u128::from_le_bytes(take(input)?);
        let duplicates = u32::from_le_bytes(take(input)?).into();
        let len = usize::try_from(u32::from_le_bytes(take(input)?)).ok()?;
        let (body, rest) = input.split_at_checked(len)?;
        *input = rest;
        let answered = Arc::new(Answered { request, duplicates, body: body.to_vec() });
        Some(Self { at_ms, key, answered })
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

/// The ids and answers of one generation of the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    ordinal: u64,
    /// When, and how many ids.
    commits: Vec<(i64, u32)>,
    ids: Arc<Vec<u128>>,
    answers: Vec<Kept>,
    /// Of each, how many are out of the window.
    gone_commits: usize,
    gone_ids: usize,
    gone_answers: usize,
}

impl Segment {
    /// How many ids it has.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// When `id` was committed.
    fn committed_at_ms(&self, id: u128) -> Option<i64> {
        let place = self.ids.iter().rposition(|known| *known == id)?;
        let mut end = 0_usize;
        let commit = self.commits.iter().find(|(_, ids)| {
            end = end.saturating_add(usize::try_from(*ids).unwrap_or(usize::MAX));
            place < end
        });
        commit.map(|(at_ms, _)| *at_ms)
    }

    fn is_gone(&self) -> bool {
        self.gone_commits == self.commits.len() && self.gone_answers == self.answers.len()
    }

    /// All of its ids are out of the window: an answer that is not must not keep their memory.
    fn drop_ids(&mut self) {
        if !self.commits.is_empty() {
            (self.commits, self.ids) = Default::default();
            (self.gone_commits, self.gone_ids) = (0, 0);
        }
    }

    /// The file's content.
    fn encode(&self, mark: u64) -> Vec<u8> {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(32 + self.commits.len() * 12 + self.ids.len() * 16);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&mark.to_le_bytes());
        bytes.extend_from_slice(&count(self.commits.len()));
        for (at_ms, ids) in &self.commits {
            bytes.extend_from_slice(&at_ms.to_le_bytes());
            bytes.extend_from_slice(&ids.to_le_bytes());
        }
        for id in self.ids.iter() {
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes.extend_from_slice(&count(self.answers.len()));
        for answer in &self.answers {
            answer.encode(&mut bytes);
        }
        let checksum = crc32c::crc32c(bytes.get(8..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(4..8) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// What a file says; nothing when it is damaged or was written under another secret.
    fn decode(ordinal: u64, bytes: &[u8], mark: u64) -> Option<Self> {
        let mut input = bytes.strip_prefix(MAGIC)?;
        let checksum = u32::from_le_bytes(take(&mut input)?);
        if checksum != crc32c::crc32c(input) || u64::from_le_bytes(take(&mut input)?) != mark {
            return None;
        }
        let mut segment = Self { ordinal, ..Self::default() };
        let mut total = 0_usize;
        for _ in 0..u32::from_le_bytes(take(&mut input)?) {
            let commit = (i64::from_le_bytes(take(&mut input)?), u32::from_le_bytes(take(&mut input)?));
            total = total.checked_add(usize::try_from(commit.1).ok()?)?;
            segment.commits.push(commit);
        }
        let (ids, rest) = input.split_at_checked(total.checked_mul(16)?)?;
        let (ids, _) = ids.as_chunks::<16>();
        segment.ids = Arc::new(ids.iter().map(|id| u128::from_le_bytes(*id)).collect());
        input = rest;
        for _ in 0..u32::from_le_bytes(take(&mut input)?) {
            segment.answers.push(Kept::decode(&mut input)?);
        }
        input.is_empty().then_some(segment)
    }
}

/// A segment's file, to be written off the writer's thread.
pub(super) struct Save {
    path: PathBuf,
    segment: Segment,
    mark: u64,
}

impl Save {
    /// Writes it; returns when it is on disk.
    pub(super) fn run(&self) -> io::Result<()> {
        write_atomically(&self.path, &self.segment.encode(self.mark))
    }
}

/// The folder of the files.
pub(super) fn folder(dir: &Path) -> PathBuf {
    dir.join("window")
}

fn path(dir: &Path, ordinal: u64) -> PathBuf {
    folder(dir).join(format!("{ordinal:020}"))
}

/// What is known, and what the commit under way adds to it.
pub(super) struct Window {
    dir: PathBuf,
    span_ms: i64,
    most: usize,
    secret: [u8; 32],
    began: Instant,
    began_at_ms: i64,
    ids: HashSet<u128>,
    answers: HashMap<AnswerKey, Arc<Answered>>,
    answer_bytes: usize,
    /// Oldest first; the last one is written.
    segments: VecDeque<Segment>,
    /// Of the commit under way: to be forgotten when it fails.
    staged: Vec<u128>,
    staged_answers: Vec<Kept>,
    /// The commit of the newest id that had to go because there were too many.
    cut_at_ms: Option<i64>,
    /// Files that are not needed any more.
    garbage: Vec<PathBuf>,
}

impl Window {
    /// An empty window at `now_ms` by the wall clock.
    pub(super) fn new(settings: &Settings, secret: [u8; 32], now_ms: i64) -> Self {
        Self {
            dir: settings.dir.clone(),
            span_ms: i64::try_from(settings.dedup_span.as_millis()).unwrap_or(i64::MAX),
            most: settings.dedup_ids,
            secret,
            began: Instant::now(),
            began_at_ms: now_ms,
            ids: HashSet::new(),
            answers: HashMap::new(),
            answer_bytes: 0,
            segments: VecDeque::new(),
            staged: Vec::new(),
            staged_answers: Vec::new(),
            cut_at_ms: None,
            garbage: Vec::new(),
        }
    }

    fn watches(&self) -> bool {
        self.span_ms > 0 && self.most > 0
    }

    /// The wall clock when the process began, and what has passed since.
    pub(super) fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_at_ms.saturating_add(passed)
    }

    /// From when on an id is in the window.
    pub(super) fn begins_at_ms(&self) -> i64 {
        self.now_ms().saturating_sub(self.span_ms)
    }

    fn mark(&self) -> u64 {
        let digest = Sha256::digest(self.secret);
        digest.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }

    fn mask(&self, tenant: TenantId) -> u128 {
        half(Sha256::new().chain_update(self.secret).chain_update(tenant.0.as_bytes()))
    }

    pub(super) fn answer_key(&self, tenant: TenantId, text: &[u8]) -> AnswerKey {
        let digest = Sha256::new().chain_update(self.secret).chain_update(tenant.0.as_bytes()).chain_update(text);
        AnswerKey(half(digest))
    }

    /// What was answered under `key`, within the last ten minutes.
    pub(super) fn answered(&self, key: AnswerKey) -> Option<Arc<Answered>> {
        self.answers.get(&key).cloned()
    }

    /// When each of `tenants` committed an event of the id `event`, of those that the window knows. Looks through all of it
    /// only for an id that is there, which happens when a person asks.
    pub(super) fn committed_at_ms(&self, event: EventId, tenants: &[TenantId]) -> Vec<(TenantId, i64)> {
        let known = |id: &u128| self.ids.contains(id) && !self.staged.contains(id);
        self.named(event, tenants)
            .filter(|(_, id)| known(id))
            .filter_map(|(tenant, id)| {
                Some((tenant, self.segments.iter().rev().find_map(|segment| segment.committed_at_ms(id))?))
            })
            .collect()
    }

    /// The same of `segments` that nobody has taken in.
    pub(super) fn committed_at_ms_in(
        &self,
        segments: &BTreeMap<u64, Segment>,
        event: EventId,
        tenants: &[TenantId],
    ) -> Vec<(TenantId, i64)> {
        self.named(event, tenants)
            .filter_map(|(tenant, id)| {
                Some((tenant, segments.values().rev().find_map(|segment| segment.committed_at_ms(id))?))
            })
            .collect()
    }

    fn named(&self, event: EventId, tenants: &[TenantId]) -> impl Iterator<Item = (TenantId, u128)> {
        tenants.iter().map(move |tenant| (*tenant, event.0.as_u128() ^ self.mask(*tenant)))
    }

    /// Takes `append` into the commit under way, without the events that were committed before; gives how many these are.
    ///
    /// # Errors
    /// A request with the same idempotency key was answered: nothing of this one is to be committed.
    pub(super) fn admit(&mut self, append: &mut Append) -> Result<u64, AppendError> {
        if let Some(answer) = &append.answer
            && let Some(answered) = self.answered(answer.key)
        {
            return Err(AppendError::Answered(answered));
        }
        let mut duplicates = 0;
        if self.watches() {
            let mask = self.mask(append.tenant);
            let mut index = 0;
            while let Some(chunk) = append.chunks.get_mut(index) {
                let repeated = self.stage(chunk, mask);
                if repeated.is_empty() || append.again {
                    index += 1;
                    continue;
                }
                duplicates += repeated.len() as u64;
                match without(chunk, &repeated) {
                    Ok(rest) => {
                        let count = rest.len();
                        append.chunks.splice(index..=index, rest);
                        index += count;
                    }
                    // It was compressed a moment ago by this process; whole it is at least not lost.
                    Err(error) => {
                        tracing::error!(%error, "a request cannot be freed of its duplicates");
                        duplicates -= repeated.len() as u64;
                        index += 1;
                    }
                }
            }
        }
        if let Some(Answer { key, request, body }) = append.answer.take() {
            let answered = Arc::new(Answered { request, duplicates, body });
            self.answers.insert(key, Arc::clone(&answered));
            self.staged_answers.push(Kept { at_ms: self.now_ms(), key, answered });
        }
        Ok(duplicates)
    }

    /// Stages the ids of `chunk`; gives the places of the rows that are known already.
    fn stage(&mut self, chunk: &Chunk, mask: u128) -> Vec<usize> {
        let mut repeated = Vec::new();
        for (place, id) in chunk.ids.iter().enumerate().filter(|(_, id)| !id.0.is_nil()) {
            let id = id.0.as_u128() ^ mask;
            if self.ids.insert(id) {
                self.staged.push(id);
            } else {
                repeated.push(place);
            }
        }
        repeated
    }

    /// The answers of the commit under way, as they are to be written with it.
    pub(super) fn staged_answers(&self) -> impl Iterator<Item = ([u8; 17], Vec<u8>)> {
        self.staged_answers.iter().map(|kept| {
            let mut key = [ANSWER_KEY; 17];
            if let Some(rest) = key.last_chunk_mut::<16>() {
                *rest = kept.key.0.to_be_bytes();
            }
            let mut value = Vec::new();
            kept.encode(&mut value);
            (key, value)
        })
    }

    /// The commit under way is on disk, in the generation `ordinal`.
    pub(super) fn committed(&mut self, ordinal: u64) {
        if self.staged.is_empty() && self.staged_answers.is_empty() {
            return;
        }
        let now_ms = self.now_ms();
        if self.segments.back().is_none_or(|segment| segment.ordinal != ordinal) {
            self.segments.push_back(Segment { ordinal, ..Segment::default() });
        }
        let Some(segment) = self.segments.back_mut() else { return };
        if !self.staged.is_empty() {
            segment.commits.push((now_ms, u32::try_from(self.staged.len()).unwrap_or(u32::MAX)));
            Arc::make_mut(&mut segment.ids).append(&mut self.staged);
        }
        self.answer_bytes += self.staged_answers.iter().map(Kept::weight).sum::<usize>();
        segment.answers.append(&mut self.staged_answers);
    }

    /// The commit under way failed.
    pub(super) fn forget(&mut self) {
        for id in self.staged.drain(..) {
            self.ids.remove(&id);
        }
        for kept in self.staged_answers.drain(..) {
            self.answers.remove(&kept.key);
        }
    }

    /// What is to be saved of the generation `ordinal`, which is full.
    pub(super) fn save(&self, ordinal: u64) -> Option<Save> {
        let segment = self.segments.iter().rfind(|segment| segment.ordinal == ordinal && !segment.is_gone())?;
        Some(Save { path: path(&self.dir, ordinal), segment: segment.clone(), mark: self.mark() })
    }

    /// Lets go of what is too old or too much.
    pub(super) fn evict(&mut self) {
        let now_ms = self.now_ms();
        let ids_from = now_ms.saturating_sub(self.span_ms);
        let answers_from = now_ms.saturating_sub(i64::try_from(ANSWER_SPAN.as_millis()).unwrap_or(i64::MAX));
        // Ids and answers go in their own order each: an answer that stays must not keep the ids of everything after it.
        for segment in &mut self.segments {
            while let Some((at_ms, count)) = segment.commits.get(segment.gone_commits).copied() {
                let many = self.ids.len() > self.most;
                if at_ms >= ids_from && !many {
                    break;
                }
                if at_ms >= ids_from {
                    self.cut_at_ms = Some(at_ms);
                }
                let end = segment.gone_ids + usize::try_from(count).unwrap_or(usize::MAX);
                for id in segment.ids.get(segment.gone_ids..end).unwrap_or_default() {
                    self.ids.remove(id);
                }
                segment.gone_ids = end;
                segment.gone_commits += 1;
            }
            if segment.gone_commits < segment.commits.len() {
                break;
            }
            segment.drop_ids();
        }
        for segment in &mut self.segments {
            while let Some(kept) = segment.answers.get(segment.gone_answers) {
                if kept.at_ms >= answers_from && self.answer_bytes <= ANSWER_BYTES {
                    break;
                }
                self.answer_bytes -= kept.weight().min(self.answer_bytes);
                self.answers.remove(&kept.key);
                segment.gone_answers += 1;
            }
            if segment.gone_answers < segment.answers.len() {
                break;
            }
        }
        let written = self.segments.back().map(|segment| segment.ordinal);
        let (dir, garbage) = (&self.dir, &mut self.garbage);
        self.segments.retain(|segment| {
            let stays = !segment.is_gone() || Some(segment.ordinal) == written;
            if !stays {
                garbage.push(path(dir, segment.ordinal));
            }
            stays
        });
    }

    /// Gives files that are not needed any more, once.
    pub(super) fn garbage(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.garbage)
    }

    /// How many ids are known.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// How far back a resend is recognised.
    pub(super) fn spans(&self) -> Duration {
        let span_ms = if self.watches() { self.span_ms } else { 0 };
        let really = self.cut_at_ms.map_or(span_ms, |cut| span_ms.min(self.now_ms() - cut));
        Duration::from_millis(u64::try_from(really).unwrap_or(0))
    }

    /// Takes in what files and generations say, in their order. An id that was sent again after it had been forgotten counts
    /// from when it was sent last.
    pub(super) fn restore(&mut self, segments: impl DoubleEndedIterator<Item = Segment>) {
        for segment in segments.rev() {
            let restored = self.known_of(segment);
            self.segments.push_front(restored);
        }
        self.evict();
    }

    /// What of `segment` is not known from a later one.
    fn known_of(&mut self, segment: Segment) -> Segment {
        let now_ms = self.now_ms();
        let mut known = Segment { ordinal: segment.ordinal, ..Segment::default() };
        let mut fresh = Vec::with_capacity(segment.ids.len());
        let mut end = segment.ids.len();
        for (at_ms, count) in segment.commits.into_iter().rev() {
            if self.ids.len() > self.most {
                // Newer ones are too many already.
                break;
            }
            let start = end.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
            let before = fresh.len();
            let ids = segment.ids.get(start..end).unwrap_or_default();
            fresh.extend(ids.iter().rev().filter(|id| self.ids.insert(**id)));
            known.commits.push((at_ms.min(now_ms), u32::try_from(fresh.len() - before).unwrap_or(u32::MAX)));
            end = start;
        }
        fresh.reverse();
        known.commits.reverse();
        known.ids = Arc::new(fresh);
        for mut kept in segment.answers.into_iter().rev() {
            if let Entry::Vacant(place) = self.answers.entry(kept.key) {
                place.insert(Arc::clone(&kept.answered));
                kept.at_ms = kept.at_ms.min(now_ms);
                self.answer_bytes += kept.weight();
                known.answers.push(kept);
            }
        }
        known.answers.reverse();
        known
    }

    /// The files that there are, by generation; those that cannot be used are told and removed.
    pub(super) fn files(&self) -> io::Result<BTreeMap<u64, Segment>> {
        let mut found = BTreeMap::new();
        let entries = match fs::read_dir(folder(&self.dir)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let file = entry?.path();
            let ordinal = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(ordinal) = ordinal else { continue };
            match Segment::decode(ordinal, &fs::read(&file)?, self.mark()) {
                Some(segment) => {
                    found.insert(ordinal, segment);
                }
                None => tracing::error!(
                    file = %file.display(),
                    "a file of the dedup window is damaged: resends of events that it knew may be stored a second time"
                ),
            }
        }
        Ok(found)
    }
}

/// What the records and answers of a generation say, for want of a file.
pub(super) struct Rescan<'a> {
    window: &'a Window,
    segment: Segment,
    raw: Vec<u8>,
}

impl<'a> Rescan<'a> {
    pub(super) fn new(window: &'a Window, ordinal: u64) -> Self {
        Self { window, segment: Segment { ordinal, ..Segment::default() }, raw: Vec::new() }
    }

    /// A damaged record is named by the reader, which comes to it later.
    pub(super) fn record(&mut self, record: &Record) {
        if record.received_at_ms < self.window.begins_at_ms() {
            return;
        }
        self.raw.clear();
        if record.decompress_into(&mut self.raw).is_err() {
            return;
        }
        let mask = self.window.mask(record.tenant);
        let ids = Arc::make_mut(&mut self.segment.ids);
        let before = ids.len();
        let found = rows(&self.raw).map_while(Result::ok).map(row::event_id).filter(|id| !id.0.is_nil());
        ids.extend(found.map(|id| id.0.as_u128() ^ mask));
        self.segment.commits.push((record.received_at_ms, u32::try_from(ids.len() - before).unwrap_or(u32::MAX)));
    }

    pub(super) fn answer(&mut self, mut value: &[u8]) {
        self.segment.answers.extend(Kept::decode(&mut value));
    }

    pub(super) fn finish(mut self) -> Segment {
        self.segment.answers.sort_by_key(|kept| kept.at_ms);
        self.segment
    }
}

fn half(digest: Sha256) -> u128 {
    digest.finalize().first_chunk().map_or(0, |head| u128::from_le_bytes(*head))
}

/// The rows of `chunk` but those at `repeated`, which is in order.
fn without(chunk: &Chunk, repeated: &[usize]) -> Result<Vec<Chunk>, DamagedRecord> {
    if repeated.len() == chunk.ids.len() {
        return Ok(Vec::new());
    }
    let raw = chunk.decompress()?;
    let mut packer = Packer::new(chunk.codec);
    for (place, row) in rows(&raw).enumerate() {
        let row = row?;
        if repeated.binary_search(&place).is_err() {
            packer.push(row);
        }
    }
    Ok(packer.finish())
}

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

mod known;

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    fs, io, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use known::Known;
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

/// The ids and answers of one generation of the log, as its file has them.
#[derive(Debug, Default)]
pub(super) struct Segment {
    ordinal: u64,
    /// When, and how many ids.
    commits: Vec<(i64, u32)>,
    ids: Vec<u128>,
    answers: Vec<Kept>,
}

impl Segment {
    /// How many ids it has.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// When `id` was committed.
    fn committed_at_ms(&self, id: u128) -> Option<i64> {
        let place = self.ids.iter().rposition(|known| *known == id)?;
        commit_of(place, &self.commits)
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
        segment.ids = ids.iter().map(|id| u128::from_le_bytes(*id)).collect();
        input = rest;
        for _ in 0..u32::from_le_bytes(take(&mut input)?) {
            segment.answers.push(Kept::decode(&mut input)?);
        }
        input.is_empty().then_some(segment)
    }
}

/// When the id at `place` was committed: `commits` says of each when it was, and how many ids it has.
fn commit_of<'a>(place: usize, commits: impl IntoIterator<Item = &'a (i64, u32)>) -> Option<i64> {
    let mut end = 0_usize;
    let commit = commits.into_iter().find(|(_, ids)| {
        end = end.saturating_add(usize::try_from(*ids).unwrap_or(usize::MAX));
        place < end
    });
    commit.map(|(at_ms, _)| *at_ms)
}

/// The part of the window that one generation of the log makes up: its ids are as many of [`Window::ids`] as `commits` says.
#[derive(Debug, Default)]
struct Part {
    ordinal: u64,
    /// When, and how many ids. Those that are out of the window are gone.
    commits: VecDeque<(i64, u32)>,
    answers: VecDeque<Kept>,
}

impl Part {
    fn ids(&self) -> usize {
        self.commits.iter().map(|(_, ids)| usize::try_from(*ids).unwrap_or(usize::MAX)).sum()
    }

    fn is_gone(&self) -> bool {
        self.commits.is_empty() && self.answers.is_empty()
    }

    /// Its file's content, but for the checksum.
    fn encode<'a>(&self, ids: impl ExactSizeIterator<Item = &'a u128>, mark: u64) -> Vec<u8> {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(32 + self.commits.len() * 12 + ids.len() * 16);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&mark.to_le_bytes());
        bytes.extend_from_slice(&count(self.commits.len()));
        for (at_ms, ids) in &self.commits {
            bytes.extend_from_slice(&at_ms.to_le_bytes());
            bytes.extend_from_slice(&ids.to_le_bytes());
        }
        for id in ids {
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes.extend_from_slice(&count(self.answers.len()));
        for answer in &self.answers {
            answer.encode(&mut bytes);
        }
        bytes
    }
}

/// A generation's file, to be written off the writer's thread.
pub(super) struct Save {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Save {
    /// Writes it; returns when it is on disk.
    pub(super) fn run(mut self) -> io::Result<()> {
        let checksum = crc32c::crc32c(self.bytes.get(8..).unwrap_or_default());
        if let Some(place) = self.bytes.get_mut(4..8) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        write_atomically(&self.path, &self.bytes)
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
    /// Of all parts in their order, and then those of the commit under way.
    ids: Known,
    answers: HashMap<AnswerKey, Arc<Answered>>,
    answer_bytes: usize,
    /// Oldest first; the last one is written.
    parts: VecDeque<Part>,
    /// Of the commit under way, to be forgotten when it fails: the last so many ids, and answers.
    staged: usize,
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
            most: settings.dedup_ids.min(known::MOST),
            secret,
            began: Instant::now(),
            began_at_ms: now_ms,
            ids: Known::default(),
            answers: HashMap::new(),
            answer_bytes: 0,
            parts: VecDeque::new(),
            staged: 0,
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

    /// When each of `tenants` committed an event of the id `event`, of those that the window knows.
    pub(super) fn committed_at_ms(&self, event: EventId, tenants: &[TenantId]) -> Vec<(TenantId, i64)> {
        self.named(event, tenants).filter_map(|(tenant, id)| Some((tenant, self.committed_at(id)?))).collect()
    }

    fn committed_at(&self, id: u128) -> Option<i64> {
        // An id of the commit under way is behind all of these.
        commit_of(self.ids.position(id)?, self.parts.iter().flat_map(|part| &part.commits))
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
            if self.ids.push_back(id) {
                self.staged += 1;
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
        if self.staged == 0 && self.staged_answers.is_empty() {
            return;
        }
        let now_ms = self.now_ms();
        if self.parts.back().is_none_or(|part| part.ordinal != ordinal) {
            self.parts.push_back(Part { ordinal, ..Part::default() });
        }
        let Some(part) = self.parts.back_mut() else { return };
        if self.staged > 0 {
            part.commits.push_back((now_ms, u32::try_from(self.staged).unwrap_or(u32::MAX)));
            self.staged = 0;
        }
        self.answer_bytes += self.staged_answers.iter().map(Kept::weight).sum::<usize>();
        part.answers.extend(self.staged_answers.drain(..));
    }

    /// The commit under way failed.
    pub(super) fn forget(&mut self) {
        self.ids.drop_back(mem::take(&mut self.staged));
        for kept in self.staged_answers.drain(..) {
            self.answers.remove(&kept.key);
        }
    }

    /// What is to be saved of the generation `ordinal`, which is full.
    pub(super) fn save(&self, ordinal: u64) -> Option<Save> {
        let index = self.parts.iter().position(|part| part.ordinal == ordinal && !part.is_gone())?;
        let part = self.parts.get(index)?;
        let before: usize = self.parts.range(..index).map(Part::ids).sum();
        let bytes = part.encode(self.ids.range(before..before + part.ids()), self.mark());
        Some(Save { path: path(&self.dir, ordinal), bytes })
    }

    /// Lets go of what is too old or too much.
    pub(super) fn evict(&mut self) {
        let now_ms = self.now_ms();
        let ids_from = now_ms.saturating_sub(self.span_ms);
        let answers_from = now_ms.saturating_sub(i64::try_from(ANSWER_SPAN.as_millis()).unwrap_or(i64::MAX));
        // Ids and answers go in their own order each: an answer that stays must not keep the ids of everything after it.
        for part in &mut self.parts {
            while let Some((at_ms, count)) = part.commits.front_mut() {
                let all = usize::try_from(*count).unwrap_or(usize::MAX);
                let goes = if *at_ms < ids_from { all } else { all.min(self.ids.len().saturating_sub(self.most)) };
                if goes > 0 && *at_ms >= ids_from {
                    self.cut_at_ms = Some(*at_ms);
                }
                self.ids.drop_front(goes);
                if goes < all {
                    *count -= u32::try_from(goes).unwrap_or(*count);
                    break;
                }
                part.commits.pop_front();
            }
            if !part.commits.is_empty() {
                break;
            }
        }
        for part in &mut self.parts {
            let goes = |kept: &Kept, bytes: usize| kept.at_ms < answers_from || bytes > ANSWER_BYTES;
            while let Some(kept) = part.answers.pop_front_if(|kept| goes(kept, self.answer_bytes)) {
                self.answer_bytes -= kept.weight().min(self.answer_bytes);
                self.answers.remove(&kept.key);
            }
            if !part.answers.is_empty() {
                break;
            }
        }
        let written = self.parts.back().map(|part| part.ordinal);
        let (dir, garbage) = (&self.dir, &mut self.garbage);
        self.parts.retain(|part| {
            let stays = !part.is_gone() || Some(part.ordinal) == written;
            if !stays {
                garbage.push(path(dir, part.ordinal));
            }
            stays
        });
    }

    /// Gives files that are not needed any more, once.
    pub(super) fn garbage(&mut self) -> Vec<PathBuf> {
        mem::take(&mut self.garbage)
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
            let restored = self.part_of(segment);
            self.parts.push_front(restored);
        }
        self.evict();
    }

    /// What of `segment` is not known from a later one.
    fn part_of(&mut self, segment: Segment) -> Part {
        let now_ms = self.now_ms();
        let mut part = Part { ordinal: segment.ordinal, ..Part::default() };
        let mut end = segment.ids.len();
        for (at_ms, count) in segment.commits.into_iter().rev() {
            if self.ids.len() > self.most {
                // Newer ones are too many already.
                break;
            }
            let start = end.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
            let ids = segment.ids.get(start..end).unwrap_or_default();
            let before = self.ids.len();
            for id in ids.iter().rev() {
                self.ids.push_front(*id);
            }
            let fresh = self.ids.len() - before;
            part.commits.push_front((at_ms.min(now_ms), u32::try_from(fresh).unwrap_or(u32::MAX)));
            end = start;
        }
        for mut kept in segment.answers.into_iter().rev() {
            if let Entry::Vacant(place) = self.answers.entry(kept.key) {
                place.insert(Arc::clone(&kept.answered));
                kept.at_ms = kept.at_ms.min(now_ms);
                self.answer_bytes += kept.weight();
                part.answers.push_front(kept);
            }
        }
        part
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
        let ids = &mut self.segment.ids;
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

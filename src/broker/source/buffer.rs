//! What was read of one partition and not yet given out, and where its next range ends. No I/O and no clock.

use std::{collections::VecDeque, time::Instant};

use super::repeats::Marks;
use crate::{
    broker::{
        Carries,
        message::{self, Entry},
    },
    dead_letters::Form,
    error_chain::chain,
    ids::WalId,
    row::{self, Origin, Position},
    sink::source::{Part, RangeLimits},
};

/// One message, decoded.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) rows: usize,
    /// Rows as an insert has them.
    pub(super) body: Vec<u8>,
    /// Distinct expiries of the rows.
    expiries: Vec<u32>,
    /// Of each row: where it comes from, and where it ends in `body`.
    origins: Vec<(Origin, usize)>,
    pub(super) oldest_received_at_ms: i64,
    newest_received_at_ms: i64,
    arrived: Instant,
    letters: Vec<Letter>,
}

/// What is no row.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) offset: u64,
    /// Which row or line of the message, from 0.
    pub(super) line: usize,
    pub(super) reason: String,
    /// What `bytes` are.
    pub(super) form: Form,
    pub(super) bytes: Vec<u8>,
}

impl Letter {
    /// Memory that the letter takes, in bytes.
    fn size(&self) -> usize {
        size_of::<Self>() + self.reason.len() + self.bytes.len()
    }
}

impl Piece {
    /// Reads a message: every row on its own, so that a bad one costs no good one.
    pub(super) fn decode(
        carries: Carries,
        topic: &str,
        partition: u32,
        offset: u64,
        payload: Option<&[u8]>,
        arrived: Instant,
    ) -> Self {
        let mut piece = Self {
            offset,
            rows: 0,
            body: Vec::new(),
            expiries: Vec::new(),
            origins: Vec::new(),
            oldest_received_at_ms: i64::MAX,
            newest_received_at_ms: i64::MIN,
            arrived,
            letters: Vec::new(),
        };
        let Some(payload) = payload else {
            let reason = "the message has no value".to_owned();
            let form = match carries {
                Carries::Events => Form::Line,
                Carries::Parked => Form::ParkedLine,
            };
            piece.letters.push(Letter { offset, line: 0, reason, form, bytes: Vec::new() });
            return piece;
        };
        let mut position = Vec::new();
        Position { topic: topic.into(), partition, offset }.write_binary(&mut position);
        piece.body.reserve(message::insert_len(payload, position.len()));
        for (line, entry) in message::entries(payload) {
            if let Err((form, reason)) = piece.take(carries, entry, &position) {
                let (Entry::Row(bytes) | Entry::Line(bytes) | Entry::Rest(bytes)) = entry;
                piece.letters.push(Letter { offset, line, reason, form, bytes: bytes.to_vec() });
            }
        }
        piece
    }

    /// Appends a row as an insert has it; or says what it is instead, and why.
    fn take(&mut self, carries: Carries, entry: Entry<'_>, position: &[u8]) -> Result<(), (Form, String)> {
        let (received_at_ms, expires_at, origin) = match (entry, carries) {
            (Entry::Row(bytes), Carries::Events) => {
                let carried = row::read_carried(bytes).map_err(|error| (Form::TopicRow, chain(&error)))?;
                self.body.extend_from_slice(carried.columns);
                (carried.received_at_ms, carried.expires_at, carried.origin)
            }
            (Entry::Line(line), Carries::Events) => {
                let (event, origin) = row::read_json(line).map_err(|error| (Form::Line, chain(&error)))?;
                event.write_binary(&mut self.body);
                origin.write_binary(&mut self.body);
                (event.received_at_ms, event.expires_at, origin)
            }
            (Entry::Line(line), Carries::Parked) => {
                let (parked, origin) =
                    row::read_parked_json(line).map_err(|error| (Form::ParkedLine, chain(&error)))?;
                parked.write_binary(&mut self.body);
                origin.write_binary(&mut self.body);
                (parked.received_at_ms, parked.expires_at, origin)
            }
            (Entry::Row(_), Carries::Parked) => {
                return Err((Form::TopicRow, "a topic of parked events carries lines of JSON".to_owned()));
            }
            (Entry::Rest(_), _) => {
                return Err((Form::Rows, "the lengths of the message's rows do not add up".to_owned()));
            }
        };
        self.body.extend_from_slice(position);
        self.rows += 1;
        self.origins.push((origin, self.body.len()));
        self.oldest_received_at_ms = self.oldest_received_at_ms.min(received_at_ms);
        self.newest_received_at_ms = self.newest_received_at_ms.max(received_at_ms);
        if !self.expiries.contains(&expires_at) {
            self.expiries.push(expires_at);
        }
        Ok(())
    }

    /// A checksum of where its first row comes from.
    fn mark(&self) -> Option<u32> {
        let (Origin { wal_id, wal_seq, wal_ordinal, .. }, _) = self.origins.first()?;
        let mark = crc32c::crc32c(wal_id.0.as_bytes());
        let mark = crc32c::crc32c_append(mark, &wal_seq.to_le_bytes());
        Some(crc32c::crc32c_append(mark, &wal_ordinal.to_le_bytes()))
    }

    /// The logs that its rows come from: nearly always one.
    pub(super) fn wal_ids(&self) -> impl Iterator<Item = WalId> {
        let mut last = None;
        self.origins
            .iter()
            .map(|(origin, _)| origin.wal_id)
            .filter(move |wal_id| last.replace(*wal_id) != Some(*wal_id))
    }

    /// The rows that are new. Copies only if some are not, which is rare.
    fn new_rows(self, marks: &mut Marks) -> Part {
        let (mut start, mut rows) = (0, 0);
        let mut kept: Option<Vec<u8>> = None;
        for (origin, end) in &self.origins {
            if marks.is_new(origin) {
                rows += 1;
                if let Some(kept) = &mut kept {
                    kept.extend_from_slice(self.body.get(start..*end).unwrap_or_default());
                }
            } else if kept.is_none() {
                kept = self.body.get(..start).map(<[u8]>::to_vec);
            }
            start = *end;
        }
        Part { rows, body: kept.unwrap_or(self.body).into() }
    }

    /// Memory that the piece takes, in bytes.
    pub(super) fn size(&self) -> usize {
        self.body.len()
            + self.origins.len() * size_of::<(Origin, usize)>()
            + self.letters.iter().map(Letter::size).sum::<usize>()
            + size_of::<Self>()
    }
}

/// A range, ready to be recorded and given out.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) rows: usize,
    pub(super) parts: Vec<Part>,
    pub(super) oldest_received_at_ms: i64,
    pub(super) newest_received_at_ms: i64,
    pub(super) first_expiry: u32,
    /// It was recorded by an earlier owner of the partition.
    pub(super) replayed: bool,
    /// Rows that were read before, and are not in `parts`.
    pub(super) repeats: usize,
    /// Tells the range from one of the same offsets of a topic that was made anew.
    pub(super) mark: u32,
    /// The logs that its rows come from.
    pub(super) logs: Vec<WalId>,
    pub(super) letters: Vec<Letter>,
    /// What its pieces took, in bytes, to be given back when the range is committed.
    pub(super) size: usize,
}

/// The pieces at the front that the next range will hold, as far as it has come.
#[derive(Debug, Default)]
struct Forming {
    pieces: usize,
    rows: usize,
    bytes: usize,
    expiries: Vec<u32>,
    /// The next piece does not fit, or none can.
    full: bool,
}

/// Pieces of one partition in the order of their offsets.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    pieces: VecDeque<Piece>,
    rows: usize,
    size: usize,
    forming: Forming,
    /// The last offset of a range that was in flight when the partition was assigned: it must be formed again,
    /// whatever the limits are today.
    recorded: Option<u64>,
}

impl Buffer {
    pub(super) fn new(recorded: Option<u64>) -> Self {
        Self { recorded, ..Self::default() }
    }

    /// Adds what was read next. True when it makes a difference to whoever waits for a range: the range became
    /// complete, or its age begins to count.
    pub(super) fn push(&mut self, piece: Piece, limits: &RangeLimits) -> bool {
        let was_full = self.forming.full;
        let completes = self.recorded.is_some_and(|last| piece.offset >= last);
        self.rows += piece.rows;
        self.size += piece.size();
        self.pieces.push_back(piece);
        self.extend(limits);
        completes || self.pieces.len() == 1 || (self.forming.full && !was_full)
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Reading ahead further has no use: at least one more range is waiting behind the one that is forming.
    pub(super) fn is_ample(&self, limits: &RangeLimits) -> bool {
        self.recorded.is_none()
            && (self.rows >= limits.rows.saturating_mul(2) || self.size >= limits.bytes.saturating_mul(2))
    }

    /// Less than one range is buffered.
    pub(super) fn is_low(&self, limits: &RangeLimits) -> bool {
        self.rows < limits.rows && self.size < limits.bytes
    }

    pub(super) fn must_read_on(&self) -> bool {
        self.recorded.is_some()
    }

    /// How many pieces the next range has, once it is complete. `hurry` closes it early, for want of memory.
    pub(super) fn ready(&self, limits: &RangeLimits, now: Instant, hurry: bool) -> Option<usize> {
        let front = self.pieces.front()?;
        if let Some(last) = self.recorded {
            let complete = self.pieces.back().is_some_and(|piece| piece.offset >= last);
            // The whole range may be gone from the topic: then there is nothing to repeat.
            let count = self.pieces.partition_point(|piece| piece.offset <= last);
            if count > 0 {
                return complete.then_some(count);
            }
        }
        let old = now.saturating_duration_since(front.arrived) >= limits.age;
        (self.forming.full || old || hurry).then_some(self.forming.pieces.max(1))
    }

    /// Since when the oldest piece waits.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.pieces.front().map(|piece| piece.arrived)
    }

    /// When the oldest piece will have waited long enough, if nothing else closes its range before.
    pub(super) fn due(&self, limits: &RangeLimits) -> Option<Instant> {
        if self.recorded.is_some() {
            return None;
        }
        self.waits_since().map(|since| since + limits.age)
    }

    /// The first `count` pieces.
    pub(super) fn first(&self, count: usize) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().take(count)
    }

    /// Says which range was in flight, when that was not known at the beginning.
    pub(super) fn recorded(&mut self, last: u64) {
        self.recorded = Some(last);
    }

    /// Takes the first `count` pieces out as one block, without the rows that were read before.
    pub(super) fn take(&mut self, count: usize, limits: &RangeLimits, marks: &mut Marks) -> Option<Block> {
        let count = count.min(self.pieces.len());
        let first = self.pieces.front()?.offset;
        let mut block = Block {
            first,
            last: first,
            rows: 0,
            parts: Vec::with_capacity(count),
            oldest_received_at_ms: i64::MAX,
            newest_received_at_ms: i64::MIN,
            first_expiry: row::EXPIRES_NEVER,
            replayed: self.recorded.is_some_and(|last| last >= first),
            repeats: 0,
            mark: self.pieces.iter().find_map(Piece::mark).unwrap_or(0),
            logs: Vec::new(),
            letters: Vec::new(),
            size: 0,
        };
        let mut read = 0;
        for mut piece in self.pieces.drain(..count) {
            block.size += piece.size();
            block.last = piece.offset;
            read += piece.rows;
            for log in piece.wal_ids() {
                if !block.logs.contains(&log) {
                    block.logs.push(log);
                }
            }
            block.oldest_received_at_ms = block.oldest_received_at_ms.min(piece.oldest_received_at_ms);
            block.newest_received_at_ms = block.newest_received_at_ms.max(piece.newest_received_at_ms);
            block.first_expiry = piece.expiries.iter().copied().fold(block.first_expiry, u32::min);
            block.letters.append(&mut piece.letters);
            let part = piece.new_rows(marks);
            block.rows += part.rows;
            block.parts.push(part);
        }
        block.repeats = read - block.rows;
        self.rows -= read;
        self.size -= block.size;
        self.recorded = None;
        self.forming = Forming::default();
        self.extend(limits);
        Some(block)
    }

    /// Lets the forming range grow over the pieces behind it for as long as they fit.
    fn extend(&mut self, limits: &RangeLimits) {
        let forming = &mut self.forming;
        while !forming.full
            && let Some(piece) = self.pieces.get(forming.pieces)
        {
            let rows = forming.rows + piece.rows;
            let bytes = forming.bytes + piece.body.len();
            let new: Vec<u32> = piece.expiries.iter().copied().filter(|at| !forming.expiries.contains(at)).collect();
            let expiries = forming.expiries.len() + new.len();
            if forming.pieces > 0 && (rows > limits.rows || bytes > limits.bytes || expiries > limits.expiries) {
                forming.full = true;
                break;
            }
            forming.pieces += 1;
            forming.rows = rows;
            forming.bytes = bytes;
            forming.expiries.extend(new);
            forming.full = rows >= limits.rows || bytes >= limits.bytes;
        }
    }
}

#[cfg(test)]
mod tests;

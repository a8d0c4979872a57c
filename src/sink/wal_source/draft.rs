//! A range being formed: records go in whole, rows come out as the insert of their table has them.

use std::io;

use crate::{
    dead_letters::{About, DeadLetter, DeadLetters, Form, Stage},
    error_chain::chain,
    ids::{WalId, WalSeq},
    row::{self, Origin, Position, Row},
    sink::source::RangeLimits,
    wal::{self, Record},
};

/// Rows of one log, in the order of its records.
#[derive(Debug)]
pub(super) struct Draft {
    wal_id: WalId,
    first: WalSeq,
    last: WalSeq,
    events: Rows,
    parked: Rows,
    oldest_received_at_ms: i64,
    expiries: Vec<u32>,
}

/// Rows of one table, as an insert has them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) body: Vec<u8>,
}

impl Rows {
    fn mark(&self) -> (usize, usize) {
        (self.count, self.body.len())
    }

    fn go_back(&mut self, (count, bytes): (usize, usize)) {
        self.count = count;
        self.body.truncate(bytes);
    }
}

/// A range that is complete.
#[derive(Debug)]
pub(super) struct Formed {
    pub(super) wal_id: WalId,
    pub(super) first: WalSeq,
    pub(super) last: WalSeq,
    pub(super) events: Rows,
    pub(super) parked: Rows,
    pub(super) oldest_received_at_ms: i64,
    pub(super) first_expiry: u32,
    /// It was given out by an earlier process.
    pub(super) replayed: bool,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It is in the draft.
    Taken,
    /// It would pass a bound, or belongs to another log: it begins the next range.
    Refused,
}

impl Draft {
    /// A draft that begins with `record`.
    pub(super) fn beginning_with(record: &Record) -> Self {
        Self {
            wal_id: record.wal_id,
            first: record.seq,
            last: record.seq,
            events: Rows::default(),
            parked: Rows::default(),
            oldest_received_at_ms: record.received_at_ms,
            expiries: Vec::new(),
        }
    }

    /// Whether a bound is reached, so that nothing more needs to be waited for.
    pub(super) fn is_full(&self, limits: &RangeLimits) -> bool {
        self.rows() >= limits.rows || self.bytes() >= limits.bytes
    }

    fn rows(&self) -> usize {
        self.events.count + self.parked.count
    }

    fn bytes(&self) -> usize {
        self.events.body.len() + self.parked.body.len()
    }

    /// Adds every row of `record`, or none of it. A first record is always taken, whatever its size: records never
    /// split. `limits` of None: the bounds were decided before, by the process that formed this range first.
    ///
    /// # Errors
    /// A dead letter could not be kept; the draft is then as it was.
    pub(super) fn add(
        &mut self,
        record: &Record,
        limits: Option<&RangeLimits>,
        letters: &DeadLetters,
        scratch: &mut Vec<u8>,
    ) -> io::Result<Added> {
        let is_first = record.seq == self.first;
        if record.wal_id != self.wal_id {
            return Ok(Added::Refused);
        }
        let limits = limits.filter(|_| !is_first);
        if limits.is_some_and(|limits| self.rows() + record.event_count as usize > limits.rows) {
            return Ok(Added::Refused);
        }
        let before = (self.events.mark(), self.parked.mark(), self.expiries.len());
        let fits = self.append_rows(record, letters, scratch).map(|()| {
            limits.is_none_or(|limits| self.bytes() <= limits.bytes && self.expiries.len() <= limits.expiries)
        });
        if !matches!(fits, Ok(true)) {
            self.events.go_back(before.0);
            self.parked.go_back(before.1);
            self.expiries.truncate(before.2);
            return fits.map(|_does_not| Added::Refused);
        }
        self.last = record.seq;
        self.oldest_received_at_ms = self.oldest_received_at_ms.min(record.received_at_ms);
        Ok(Added::Taken)
    }

    fn append_rows(&mut self, record: &Record, letters: &DeadLetters, scratch: &mut Vec<u8>) -> io::Result<()> {
        scratch.clear();
        if let Err(error) = record.decompress_into(scratch) {
            return keep(letters, record, 0, &error, (Form::Record, record.payload()));
        }
        let relayed_at_ms = jiff::Timestamp::now().as_millisecond();
        let position = Position { topic: "wal".into(), partition: 0, offset: record.seq.0 };
        for (ordinal, encoded) in (0_u32..).zip(wal::rows(scratch)) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                // Lengths that do not add up: nothing tells where the next row begins.
                Err(error) => return keep(letters, record, ordinal, &error, (Form::Rows, scratch)),
            };
            let origin = Origin { wal_id: record.wal_id, wal_seq: record.seq.0, wal_ordinal: ordinal, relayed_at_ms };
            // Decoded as a whole, because one malformed row makes ClickHouse refuse all of the insert.
            let (rows, expires_at) = match row::decode(encoded) {
                Ok(Row::Event(event)) => (&mut self.events, event.expires_at),
                Ok(Row::Parked(parked)) => (&mut self.parked, parked.expires_at),
                Err(error) => {
                    keep(letters, record, ordinal, &error, (Form::Row, encoded))?;
                    continue;
                }
            };
            row::write_insert_row(encoded, &origin, &position, &mut rows.body).map_err(io::Error::other)?;
            rows.count += 1;
            if !self.expiries.contains(&expires_at) {
                self.expiries.push(expires_at);
            }
        }
        Ok(())
    }

    /// Closes the draft.
    pub(super) fn finish(self) -> Formed {
        let Self { wal_id, first, last, events, parked, oldest_received_at_ms, expiries } = self;
        let first_expiry = expiries.into_iter().min().unwrap_or(row::EXPIRES_NEVER);
        Formed { wal_id, first, last, events, parked, oldest_received_at_ms, first_expiry, replayed: false }
    }
}

fn keep(
    letters: &DeadLetters,
    record: &Record,
    ordinal: u32,
    error: &dyn std::error::Error,
    (form, bytes): (Form, &[u8]),
) -> io::Result<()> {
    letters.keep(&[DeadLetter {
        stage: Stage::Source,
        reason: chain(error),
        form,
        bytes,
        origin: Some((record.wal_id, record.seq.0, ordinal)),
        message: None,
        about: Some(About::of_record(
            record,
            if form == Form::Row { 1 } else { record.event_count.saturating_sub(ordinal) },
        )),
    }])
}

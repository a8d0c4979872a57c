//! A range being formed: records go in whole, rows come out as an insert has them.

use std::io;

use crate::{
    dead_letters::{DeadLetter, DeadLetters},
    ids::{WalId, WalSeq},
    row::{self, Origin, Position},
    sink::source::RangeLimits,
    wal::{self, Record},
};

/// Rows of one log, in the order of its records.
#[derive(Debug)]
pub(super) struct Draft {
    wal_id: WalId,
    first: WalSeq,
    last: WalSeq,
    rows: usize,
    body: Vec<u8>,
    oldest_received_at_ms: i64,
    expiries: Vec<u32>,
}

/// A range that is complete.
#[derive(Debug)]
pub(super) struct Formed {
    pub(super) wal_id: WalId,
    pub(super) first: WalSeq,
    pub(super) last: WalSeq,
    pub(super) rows: usize,
    pub(super) body: Vec<u8>,
    pub(super) oldest_received_at_ms: i64,
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
            rows: 0,
            body: Vec::new(),
            oldest_received_at_ms: record.received_at_ms,
            expiries: Vec::new(),
        }
    }

    /// Whether a bound is reached, so that nothing more needs to be waited for.
    pub(super) fn is_full(&self, limits: &RangeLimits) -> bool {
        self.rows >= limits.rows || self.body.len() >= limits.bytes
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
        if limits.is_some_and(|limits| self.rows + record.event_count as usize > limits.rows) {
            return Ok(Added::Refused);
        }
        let (rows, bytes, expiries) = (self.rows, self.body.len(), self.expiries.len());
        let fits = self.append_rows(record, letters, scratch).map(|()| {
            limits.is_none_or(|limits| self.body.len() <= limits.bytes && self.expiries.len() <= limits.expiries)
        });
        if !matches!(fits, Ok(true)) {
            self.rows = rows;
            self.body.truncate(bytes);
            self.expiries.truncate(expiries);
            return fits.map(|_does_not| Added::Refused);
        }
        self.last = record.seq;
        self.oldest_received_at_ms = self.oldest_received_at_ms.min(record.received_at_ms);
        Ok(Added::Taken)
    }

    fn append_rows(&mut self, record: &Record, letters: &DeadLetters, scratch: &mut Vec<u8>) -> io::Result<()> {
        scratch.clear();
        if let Err(error) = record.decompress_into(scratch) {
            return keep(letters, record, None, &error, record.payload());
        }
        let relayed_at_ms = jiff::Timestamp::now().as_millisecond();
        let position = Position { topic: "wal".into(), partition: 0, offset: record.seq.0 };
        for (ordinal, encoded) in (0_u32..).zip(wal::rows(scratch)) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                // Lengths that do not add up: nothing tells where the next row begins.
                Err(error) => return keep(letters, record, Some(ordinal), &error, scratch),
            };
            let origin = Origin { wal_id: record.wal_id, wal_seq: record.seq.0, wal_ordinal: ordinal, relayed_at_ms };
            // Decoded as a whole, because one malformed row makes ClickHouse refuse all of the insert.
            match row::decode(encoded) {
                Ok(row) => {
                    row::write_insert_row(encoded, &origin, &position, &mut self.body).map_err(io::Error::other)?;
                    if !self.expiries.contains(&row.expires_at) {
                        self.expiries.push(row.expires_at);
                    }
                    self.rows += 1;
                }
                Err(error) => keep(letters, record, Some(ordinal), &error, encoded)?,
            }
        }
        Ok(())
    }

    /// Closes the draft.
    pub(super) fn finish(self) -> Formed {
        let Self { wal_id, first, last, rows, body, oldest_received_at_ms, expiries: _ } = self;
        Formed { wal_id, first, last, rows, body, oldest_received_at_ms }
    }
}

fn keep(
    letters: &DeadLetters,
    record: &Record,
    ordinal: Option<u32>,
    error: &dyn std::error::Error,
    bytes: &[u8],
) -> io::Result<()> {
    let row = ordinal.map(|ordinal| format!(" row {ordinal}")).unwrap_or_default();
    let position = format!("log {} record {}{row}", record.wal_id, record.seq);
    letters.keep(&DeadLetter { stage: "source", reason: error.to_string(), position, bytes })
}

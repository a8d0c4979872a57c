//! A range being formed: records go in whole, rows come out by column, as the insert of their table has them.

use std::io;

use crate::{
    dead_letters::{About, DeadLetter, DeadLetters, Form, Stage},
    error_chain::chain,
    ids::{WalId, WalSeq},
    row::{self, BinaryError, Columns, Filler, Origin, Position, Table},
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

/// Rows of one table.
#[derive(Debug)]
struct Rows {
    columns: Filler,
    /// What they take one after the other, where they come from not counted.
    bytes: usize,
}

impl Rows {
    fn of(table: Table) -> Self {
        Self { columns: Filler::new(table), bytes: 0 }
    }
}

/// The rows of a record that can be decoded.
struct Decoded<'a> {
    rows: Vec<(u32, Table, &'a [u8])>,
    bytes: usize,
    /// Expiries that no row before has.
    expiries: Vec<u32>,
}

/// A range that is complete.
#[derive(Debug)]
pub(super) struct Formed {
    pub(super) wal_id: WalId,
    pub(super) first: WalSeq,
    pub(super) last: WalSeq,
    pub(super) events: (usize, Columns),
    pub(super) parked: (usize, Columns),
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
            events: Rows::of(Table::Events),
            parked: Rows::of(Table::Parked),
            oldest_received_at_ms: record.received_at_ms,
            expiries: Vec::new(),
        }
    }

    /// Whether a bound is reached, so that nothing more needs to be waited for.
    pub(super) fn is_full(&self, limits: &RangeLimits) -> bool {
        self.rows() >= limits.rows || self.bytes() >= limits.bytes
    }

    fn rows(&self) -> usize {
        self.events.columns.rows() + self.parked.columns.rows()
    }

    fn bytes(&self) -> usize {
        self.events.bytes + self.parked.bytes
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
        // All of a record is looked at before any of it is added: whatever is in the columns stays there.
        let decoded = self.decode(record, letters, scratch)?;
        let bytes = self.bytes() + decoded.bytes;
        let expiries = self.expiries.len() + decoded.expiries.len();
        if limits.is_some_and(|limits| bytes > limits.bytes || expiries > limits.expiries) {
            return Ok(Added::Refused);
        }
        self.append(record, decoded).map_err(io::Error::other)?;
        self.last = record.seq;
        self.oldest_received_at_ms = self.oldest_received_at_ms.min(record.received_at_ms);
        Ok(Added::Taken)
    }

    /// The rows of `record`; what is none becomes a dead letter. Decoded as a whole, because one malformed row makes ClickHouse
    /// refuse all of the insert.
    fn decode<'a>(&self, record: &Record, letters: &DeadLetters, scratch: &'a mut Vec<u8>) -> io::Result<Decoded<'a>> {
        let mut decoded = Decoded { rows: Vec::new(), bytes: 0, expiries: Vec::new() };
        scratch.clear();
        if let Err(error) = record.decompress_into(scratch) {
            keep(letters, record, 0, &error, (Form::Record, record.payload()))?;
            return Ok(decoded);
        }
        decoded.rows.reserve(record.event_count as usize);
        for (ordinal, encoded) in (0_u32..).zip(wal::rows(scratch)) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                // Lengths that do not add up: nothing tells where the next row begins.
                Err(error) => {
                    keep(letters, record, ordinal, &error, (Form::Rows, scratch))?;
                    break;
                }
            };
            let (table, expires_at) = match row::check(encoded) {
                Ok(row) => row,
                Err(error) => {
                    keep(letters, record, ordinal, &error, (Form::Row, encoded))?;
                    continue;
                }
            };
            decoded.rows.push((ordinal, table, encoded));
            decoded.bytes += encoded.len();
            if !self.expiries.contains(&expires_at) && !decoded.expiries.contains(&expires_at) {
                decoded.expiries.push(expires_at);
            }
        }
        Ok(decoded)
    }

    fn append(&mut self, record: &Record, decoded: Decoded<'_>) -> Result<(), BinaryError> {
        let relayed_at_ms = jiff::Timestamp::now().as_millisecond();
        let position = Position { topic: "wal".into(), partition: 0, offset: record.seq.0 };
        for (wal_ordinal, table, encoded) in decoded.rows {
            let rows = if table == Table::Events { &mut self.events } else { &mut self.parked };
            let origin = Origin { wal_id: record.wal_id, wal_seq: record.seq.0, wal_ordinal, relayed_at_ms };
            rows.columns.push(encoded, &origin, &position)?;
            rows.bytes += encoded.len();
        }
        self.expiries.extend(decoded.expiries);
        Ok(())
    }

    /// Closes the draft.
    pub(super) fn finish(self) -> Formed {
        let Self { wal_id, first, last, events, parked, oldest_received_at_ms, expiries } = self;
        let first_expiry = expiries.into_iter().min().unwrap_or(row::EXPIRES_NEVER);
        let [events, parked] = [events, parked].map(|rows| (rows.columns.rows(), rows.columns.finish()));
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

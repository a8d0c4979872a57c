//! What the sink reads from: ranges of rows, each of them one insert, in the order of their partition.
//!
//! There are two sources, the write-ahead log of this process and a consumer group of a broker. The sink sees neither:
//! it takes a [`Range`], stores it, and hands it back with [`Source::commit`].
//!
//! ```text
//! next() -> Range [first, last] of one partition -> insert under the range's token -> commit(range)
//! ```
//!
//! - A source gives out as many ranges of a partition at a time as it can form again: one of a topic's partition, two
//!   of the log. The ranges in flight are recorded durably before they are given out, so that a repeat has the same
//!   first and last row, hence the same token, and ClickHouse drops it as already seen.
//! - While nothing is committed a source holds what it has read within its bounds and reads no further.

use std::{fmt, future::Future, sync::Arc};

use bytes::Bytes;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    ids::WalId,
    row::{self, BinaryError, Columns, Piece, Table},
};

/// How much one range may hold, rows of all tables together. The first bound that is reached closes it.
#[derive(Clone, Debug)]
pub struct RangeLimits {
    /// Rows.
    pub rows: usize,
    /// Bytes of encoded rows.
    pub bytes: usize,
    /// How long the first row of a range waits for company.
    pub age: std::time::Duration,
    /// Distinct values of `expires_at`, each of which is a partition of the table: an insert that touches many makes
    /// as many parts.
    pub expiries: usize,
}

/// Which rows a range covers. Two ranges with the same id hold the same rows, whoever formed them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeId {
    /// The topic, or `wal/<wal id>` for the log: a sequence number means something only within its log.
    pub topic: String,
    /// Partition; 0 for the log.
    pub partition: u32,
    /// First offset, inclusive.
    pub first: u64,
    /// Last offset, inclusive.
    pub last: u64,
    /// A checksum of where the first row comes from: a topic that was deleted and made anew has the same offsets again. Not
    /// of the log, whose name says it.
    pub mark: Option<u32>,
}

impl fmt::Display for RangeId {
    /// The deduplication token: `topic:partition:first-last`, and `#mark` if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}-{}", self.topic, self.partition, self.first, self.last)?;
        self.mark.map_or(Ok(()), |mark| write!(f, "#{mark:08x}"))
    }
}

/// Rows of one table, in the form in which their source has them. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Rows {
    /// One after the other, as [`crate::row::write_insert_row`] encodes them.
    ByRow(Bytes),
    /// The same, as the messages of a topic brought them.
    InParts(Arc<[Part]>),
    /// As an insert carries them.
    ByColumn(Arc<Columns>),
}

/// Some of the rows that follow each other.
#[derive(Clone, Debug)]
pub struct Part {
    /// How many.
    pub rows: usize,
    /// One after the other.
    pub body: Bytes,
}

impl Rows {
    /// One after the other. Costs a copy if they are in parts or by column.
    pub fn by_row(&self) -> Bytes {
        self.first(usize::MAX)
    }

    /// The first rows one after the other: at least `least` of them if there are so many.
    pub fn first(&self, least: usize) -> Bytes {
        match self {
            Self::ByRow(body) => body.clone(),
            Self::InParts(parts) => {
                let mut before = 0;
                let first = parts.iter().take_while(|part| {
                    let wanted = before < least;
                    before += part.rows;
                    wanted
                });
                first.map(|part| &part.body[..]).collect::<Vec<_>>().concat().into()
            }
            Self::ByColumn(columns) => columns.by_row(least).into(),
        }
    }

    /// One block of an insert into `table`, in pieces.
    ///
    /// # Errors
    /// [`BinaryError`] when they are no rows of this table.
    pub fn native(&self, table: Table) -> Result<Vec<Piece>, BinaryError> {
        match self {
            Self::ByRow(body) => Ok(row::by_column(table, [&body[..]])?.native()),
            Self::InParts(parts) => Ok(row::by_column(table, parts.iter().map(|part| &part.body[..]))?.native()),
            Self::ByColumn(columns) => Ok(columns.native()),
        }
    }
}

impl Default for Rows {
    fn default() -> Self {
        Self::ByRow(Bytes::new())
    }
}

impl From<Bytes> for Rows {
    fn from(body: Bytes) -> Self {
        Self::ByRow(body)
    }
}

impl From<Vec<Part>> for Rows {
    fn from(parts: Vec<Part>) -> Self {
        Self::InParts(parts.into())
    }
}

impl From<Columns> for Rows {
    fn from(columns: Columns) -> Self {
        Self::ByColumn(Arc::new(columns))
    }
}

/// Rows of one table: one block of an insert.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Number of rows in `body`.
    pub rows: usize,
    /// The rows.
    pub body: Rows,
}

impl Block {
    /// The same, one row after the other.
    pub(super) fn by_row(&self) -> Self {
        Self { rows: self.rows, body: self.body.by_row().into() }
    }
}

/// What there is beside a range in its topic.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The logs that its rows come from: nearly always one.
    pub logs: Vec<WalId>,
    /// When the newest row was accepted, in Unix milliseconds.
    pub newest_received_at_ms: i64,
    /// How many partitions this member of the group has.
    pub partitions: usize,
}

/// A contiguous range of one partition, encoded as one block of an insert for each table that it has rows of.
#[derive(Debug)]
pub struct Range {
    /// Which rows these are.
    pub id: RangeId,
    /// Number of rows in `body`.
    pub rows: usize,
    /// Rows of `events`.
    pub body: Rows,
    /// Rows of `parked_events`: nearly always none.
    pub parked: Block,
    /// When the oldest row was accepted, in Unix milliseconds.
    pub oldest_received_at_ms: i64,
    /// When the first of the rows expires, in Unix seconds.
    pub first_expiry: u32,
    /// Whether the range was given out before, by this process or another: nobody knows whether it was stored.
    pub replayed: bool,
    /// Whether its rows are of an earlier opening of the log. If the log's folder is a copy (restored from a backup, cloned to
    /// a second machine), another process may have stored them, in ranges of its own.
    pub of_earlier_opening: bool,
    /// Nothing for the log: its own dedup window has seen every row.
    pub beside: Option<Beside>,
    /// The assignment under which the range was formed: 0 for the log, growing with every rebalance of a group.
    pub generation: u64,
    /// Cancelled when the partition is taken away: the insert is then somebody else's to repeat.
    pub revoked: CancellationToken,
}

impl Range {
    /// Rows of all tables.
    pub fn all_rows(&self) -> usize {
        self.rows + self.parked.rows
    }
}

/// Why a source cannot go on. Outages are not errors: a source waits for its broker by itself.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The log refused (poisoned or closed).
    #[error("the write-ahead log cannot be read")]
    Wal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The broker client failed for good.
    #[error("the broker cannot be read")]
    Broker(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where ranges come from.
pub trait Source: Send {
    /// Waits for the next range that may be stored beside those in flight. Cancel-safe: a range is never lost.
    fn next(&mut self) -> impl Future<Output = Result<Range, SourceError>> + Send;

    /// Says that every row of `range` is stored; ranges of one partition may be committed in any order. A range of a partition that has since been taken away is ignored.
    fn commit(&mut self, range: &Range) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Says that the insert of `range` was given up because it was revoked.
    fn abandon(&mut self, range: &Range) -> impl Future<Output = ()> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_parts_are_those_of_the_parts() {
        let part = |rows: usize, text: &'static str| Part { rows, body: Bytes::from_static(text.as_bytes()) };
        let rows = Rows::from(vec![part(2, "aabb"), part(0, ""), part(3, "ccddee"), part(1, "ff")]);
        for (least, expected) in
            [(0, ""), (1, "aabb"), (2, "aabb"), (3, "aabbccddee"), (5, "aabbccddee"), (6, "aabbccddeeff")]
        {
            assert_eq!(rows.first(least), expected, "{least}");
        }
        assert_eq!(rows.by_row(), "aabbccddeeff");
    }
}

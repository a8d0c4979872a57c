//! Which rows of a block does ClickHouse refuse?
//!
//! ```text
//! the block is refused, for its rows --> halves into a table that keeps nothing (ENGINE = Null): taken | refused --> halves ..
//! rows that are refused alone --> dead letters, on disk --> the block without them, under its own token
//! ```
//!
//! - The table of the trials has the columns and the constraints of the real one and no views, so that a trial stores
//!   nothing: what it says is the only thing that comes of it. Halves that were really inserted, each under a token of its
//!   own, would be rows twice when the cause is mended before a crash is, and the whole block is taken then.
//! - The rest goes in under the token of the whole range. A repeat after a crash leaves out what the dead letters have and
//!   has the same token, whatever ClickHouse says of these rows by then.
//! - A table of trials that a crash has left is used, and dropped, by the repeat of its range.
//! - It is the table's fault, and no row's, when nothing at all of a large block is taken: its columns were changed, say. Then
//!   the range waits, as for everything that an operator must mend, and no row becomes a dead letter.

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    insert::{insert_settings, statement},
    source::Block,
};
use crate::{
    clickhouse::{Client, Kind, QueryError, quote_identifier},
    ids::WalId,
    row::{self, BinaryError, Table},
};

/// Where a row entered.
pub(super) type Place = (WalId, u64, u32);

/// So many rows, one after the other and without one that is taken, raise the question whether it is the table.
const SUSPICIOUS: usize = 64;
/// So many others are asked then.
const SAMPLES: usize = 64;

/// Why refused rows could not be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum BisectError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the rows of the range cannot be read")]
    Rows(#[from] BinaryError),
    #[error("ClickHouse refuses every row for table {table}, so it is the table that must be mended: {reason}")]
    Table { table: &'static str, reason: QueryError },
}

/// A row that ClickHouse refuses.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) place: Place,
    /// What ClickHouse says of it.
    pub(super) reason: String,
    pub(super) bytes: Bytes,
}

struct Row {
    place: Place,
    start: usize,
    end: usize,
}

/// The table of the trials, and what it is to say.
struct Trial<'a> {
    client: &'a Client,
    table: &'static str,
    into: String,
    body: &'a Bytes,
    rows: &'a [Row],
}

/// The rows of `block` that `table`, of the name `name` and with the `columns`, does not take. `token` names the range.
pub(super) async fn refused(
    client: &Client,
    (name, table, columns): (&'static str, Table, &[&str]),
    block: &Block,
    token: &str,
) -> Result<Vec<Refused>, BisectError> {
    let rows = places(table, &block.body)?;
    let database = quote_identifier(client.database());
    let trial = format!("{name}_trial_{:08x}", crc32c::crc32c(token.as_bytes()));
    client.execute(&format!("CREATE TABLE IF NOT EXISTS {database}.{trial} AS {database}.{name} ENGINE = Null")).await?;
    let into = statement(client.database(), &trial, columns, &[]);
    let result = Trial { client, table: name, into, body: &block.body, rows: &rows }.bisect().await;
    client.execute(&format!("DROP TABLE IF EXISTS {database}.{trial}")).await?;
    result
}

impl Trial<'_> {
    async fn bisect(&self) -> Result<Vec<Refused>, BisectError> {
        let mut refused = Vec::new();
        let mut taken = false;
        // What is left to be asked, the first on top.
        let mut pieces = vec![(0, self.rows.len())];
        while let Some((first, last)) = pieces.pop() {
            let Some(reason) = self.refusal(first, last).await? else {
                taken = true;
                continue;
            };
            if last - first > 1 {
                let middle = first + (last - first) / 2;
                pieces.extend([(middle, last), (first, middle)]);
                continue;
            }
            if let Some(row) = self.rows.get(first) {
                let bytes = self.body.slice(row.start..row.end);
                refused.push(Refused { place: row.place, reason: reason.to_string(), bytes });
            }
            if refused.len() == SUSPICIOUS && !taken && self.rows.len() > SUSPICIOUS {
                self.is_about_rows(last, reason).await?;
            }
        }
        Ok(refused)
    }

    /// Why the rows from `first` to before `last` are refused, if they are.
    async fn refusal(&self, first: usize, last: usize) -> Result<Option<QueryError>, QueryError> {
        let (Some(begin), Some(end)) = (self.rows.get(first), self.rows.get(last.saturating_sub(1))) else {
            return Ok(None);
        };
        let body = self.body.slice(begin.start..end.end);
        // Never taken for a repeat: nothing is remembered of a table that keeps nothing.
        match self.client.insert(&self.into, &insert_settings(&"trial", last - first), body).await {
            Ok(()) => Ok(None),
            Err(error) if *error.kind() == Kind::Data => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// That some row from `first` on is taken.
    async fn is_about_rows(&self, first: usize, reason: QueryError) -> Result<(), BisectError> {
        let others = self.rows.len().saturating_sub(first);
        let step = others.div_ceil(SAMPLES).max(1);
        for sample in (first..self.rows.len()).step_by(step) {
            if self.refusal(sample, sample + 1).await?.is_none() {
                return Ok(());
            }
        }
        Err(BisectError::Table { table: self.table, reason })
    }
}

/// `block` without the rows that entered at `out`.
pub(super) fn without(block: &Block, table: Table, out: &HashSet<Place>) -> Result<Block, BinaryError> {
    let mut body = Vec::with_capacity(block.body.len());
    let mut rows = 0;
    for row in places(table, &block.body)?.iter().filter(|row| !out.contains(&row.place)) {
        body.extend_from_slice(block.body.get(row.start..row.end).unwrap_or_default());
        rows += 1;
    }
    Ok(Block { rows, body: Bytes::from(body) })
}

/// The logs that the rows of `block` entered at, and the first and the last of their records.
pub(super) fn span(block: &Block, table: Table) -> Result<(HashSet<WalId>, (u64, u64)), BinaryError> {
    let (mut wal_ids, mut first, mut last) = (HashSet::new(), u64::MAX, 0);
    for Row { place: (wal_id, wal_seq, _), .. } in places(table, &block.body)? {
        wal_ids.insert(wal_id);
        (first, last) = (wal_seq.min(first), wal_seq.max(last));
    }
    Ok((wal_ids, (first, last)))
}

fn places(table: Table, body: &[u8]) -> Result<Vec<Row>, BinaryError> {
    let (mut rows, mut input) = (Vec::new(), body);
    while !input.is_empty() {
        let start = body.len() - input.len();
        let (_, _, origin) = row::read_insert_origin(table, &mut input)?;
        let place = (origin.wal_id, origin.wal_seq, origin.wal_ordinal);
        rows.push(Row { place, start, end: body.len() - input.len() });
    }
    Ok(rows)
}

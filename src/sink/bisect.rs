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
//! - Before that it is asked whether it is the table that is wrong (its columns were changed, say): a row that was taken lately
//!   is tried. If it is refused too, and nothing of the block is taken, the range waits, as for everything that an operator must
//!   mend, and no row becomes a dead letter. If it is taken the table is well, however many rows of a block are refused. When
//!   nothing was stored yet since the start, a large block of which nothing is taken says that it is the table.

use bytes::Bytes;

use super::{
    insert::{insert_settings, statement},
    recount::{self, Row},
    source::Block,
};
use crate::{
    clickhouse::{Client, Kind, QueryError, quote_identifier},
    row::{BinaryError, Place, Table},
};

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

/// The table of the trials, and what it is to say.
struct Trial<'a> {
    client: &'a Client,
    table: Table,
    into: String,
    body: &'a Bytes,
    rows: &'a [Row],
    /// A row that the table has taken lately.
    sample: Option<&'a Bytes>,
}

/// The rows of `block` that `table` does not take. `token` names the range.
pub(super) async fn refused(
    client: &Client,
    table: Table,
    block: &Block,
    sample: Option<&Bytes>,
    token: &str,
) -> Result<Vec<Refused>, BisectError> {
    let rows = recount::read(table, &block.body)?.0;
    let database = quote_identifier(client.database());
    let name = table.name();
    let trial = format!("{name}_trial_{:08x}", crc32c::crc32c(token.as_bytes()));
    client
        .execute(&format!("CREATE TABLE IF NOT EXISTS {database}.{trial} AS {database}.{name} ENGINE = Null"))
        .await?;
    let into = statement(client.database(), &trial, table.columns(), &[]);
    let result = Trial { client, table, into, body: &block.body, rows: &rows, sample }.bisect().await;
    client.execute(&format!("DROP TABLE IF EXISTS {database}.{trial}")).await?;
    result
}

impl Trial<'_> {
    async fn bisect(&self) -> Result<Vec<Refused>, BisectError> {
        let mut refused = Vec::new();
        let sample = match self.sample {
            Some(sample) => Some(self.refusal_of(sample.clone(), 1).await?),
            None => None,
        };
        let mut taken = matches!(sample, Some(None));
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
                refused.push(Refused { place: row.place(), reason: reason.to_string(), bytes });
            }
            if refused.len() == SUSPICIOUS && !taken && self.rows.len() > SUSPICIOUS {
                self.is_about_rows(last, reason).await?;
                taken = true;
            }
        }
        match sample {
            Some(Some(reason)) if !taken => Err(BisectError::Table { table: self.table.name(), reason }),
            _ => Ok(refused),
        }
    }

    /// Why the rows from `first` to before `last` are refused, if they are.
    async fn refusal(&self, first: usize, last: usize) -> Result<Option<QueryError>, QueryError> {
        let (Some(begin), Some(end)) = (self.rows.get(first), self.rows.get(last.saturating_sub(1))) else {
            return Ok(None);
        };
        self.refusal_of(self.body.slice(begin.start..end.end), last - first).await
    }

    async fn refusal_of(&self, body: Bytes, rows: usize) -> Result<Option<QueryError>, QueryError> {
        // Never taken for a repeat: nothing is remembered of a table that keeps nothing.
        match self.client.insert(&self.into, &insert_settings(&"trial", rows), body).await {
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
        Err(BisectError::Table { table: self.table.name(), reason })
    }
}

//! After an insert whose outcome nobody knows: are its rows there?
//!
//! A repeat under the same token is dropped by ClickHouse when the token is logged, and a token can be logged while the part
//! that it stands for is missing (a crash between the two, a part that was lost to a damaged disk). So after a time-out, a
//! broken connection, or a takeover, the range is sent again under its token, and then its rows are counted by where they
//! come from. What is missing is put back:
//!
//! ```text
//! staging table like the table --> insert what is missing --> ATTACH PARTITION into the table --> drop the staging table
//! ```
//!
//! - Attached, and not inserted: an insert would reach the views, which have their rows. The repeat under the token has
//!   given each view whatever it lacked.
//! - A crash at any step is harmless: the next attempt counts first, and begins with an empty staging table.
//! - Replicated tables ([`Mend::Insert`]): a part attached on one replica needs others to fetch it by its checksum, and the
//!   staging table would have to be replicated too. There the missing rows are inserted under a token of their own, and
//!   the views count them a second time. Replication also makes the loss itself much less likely: token and part are
//!   committed in one transaction of the keeper.
//! - A row of which the same event was stored again later, outside of the dedup window, may have been merged into the
//!   other: it counts as missing, is put back, and is merged away again.

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    insert::{insert_block, insert_settings},
    source::Block,
};
use crate::{
    clickhouse::{Client, QueryError, quote_identifier, quote_text},
    ids::{EventId, TenantId, WalId},
    row::{self, BinaryError, Origin, Place, Table},
};

/// Why rows could not be counted or put back.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecountError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the rows of the range cannot be read")]
    Rows(#[from] BinaryError),
}

/// Rows of one table of a range, as they were inserted.
pub(super) struct Stored<'a> {
    pub(super) table: Table,
    pub(super) block: &'a Block,
    /// Names the range.
    pub(super) token: &'a str,
}

/// One row's identity and its place in the block.
pub(super) struct Row {
    pub(super) event: (TenantId, EventId),
    pub(super) received_at_ms: i64,
    pub(super) origin: Origin,
    pub(super) start: usize,
    pub(super) end: usize,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Partition {
    id: String,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Engine {
    engine: String,
}

/// What ClickHouse has.
#[derive(Default)]
pub(super) struct There {
    events: HashSet<(TenantId, EventId)>,
    rows: HashSet<Place>,
}

impl Row {
    pub(super) fn place(&self) -> Place {
        self.origin.place()
    }
}

impl There {
    /// Whether the row that entered at `place` is among them.
    pub(super) fn has_row(&self, place: Place) -> bool {
        self.rows.contains(&place)
    }

    /// Whether a row of `table` is among them.
    pub(super) fn has(&self, table: Table, row: &Row) -> bool {
        // Of two events of one id in one block ClickHouse keeps one.
        (table == Table::Events && self.events.contains(&row.event)) || self.has_row(row.place())
    }
}

/// How what is missing is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mend {
    Attach,
    Insert,
}

/// Counts the rows of `stored` in ClickHouse and puts back what is missing; gives how many rows that were.
pub(super) async fn mend(client: &Client, stored: &Stored<'_>) -> Result<usize, RecountError> {
    let Stored { table, block, token } = stored;
    let by_row = block.body.by_row();
    let (rows, received) = read(*table, &by_row)?;
    let there = there(client, *table, &rows, received).await?;
    let mut body = Vec::new();
    let mut missing = 0;
    for row in &rows {
        if !there.has(*table, row) {
            body.extend_from_slice(by_row.get(row.start..row.end).unwrap_or_default());
            missing += 1;
        }
    }
    if missing == 0 {
        return Ok(0);
    }
    tracing::error!(
        range = token,
        table = table.name(),
        missing,
        rows = rows.len(),
        "ClickHouse has lost rows of an insert; they are put back"
    );
    let missing_rows = Block { rows: missing, body: Bytes::from(body).into() };
    match how(client, table.name()).await? {
        Mend::Attach => attach(client, stored, &missing_rows).await?,
        Mend::Insert => {
            let settings = insert_settings(&format!("{token}#missing"), missing);
            insert_block::<RecountError>(client, table.name(), *table, &missing_rows, &settings).await?;
        }
    }
    Ok(missing)
}

/// The rows of a block, and when the first and the last of them were received.
pub(super) fn read(table: Table, body: &[u8]) -> Result<(Vec<Row>, (i64, i64)), BinaryError> {
    let (mut rows, mut received) = (Vec::new(), (i64::MAX, i64::MIN));
    let mut input = body;
    while !input.is_empty() {
        let start = body.len() - input.len();
        let (event, received_at_ms, origin) = row::read_insert_origin(table, &mut input)?;
        received = (received.0.min(received_at_ms), received.1.max(received_at_ms));
        rows.push(Row { event, received_at_ms, origin, start, end: body.len() - input.len() });
    }
    Ok((rows, received))
}

/// Which rows of the range's logs and time are in ClickHouse.
pub(super) async fn there(
    client: &Client,
    table: Table,
    rows: &[Row],
    received: (i64, i64),
) -> Result<There, RecountError> {
    let sql = format!(
        "SELECT tenant_id, event_id, wal_id, wal_seq, wal_ordinal, relayed_at FROM {}.{} WHERE {}",
        quote_identifier(client.database()),
        table.name(),
        of_rows(rows, received)
    );
    let answer = client.fetch_row_binary(&sql).await?;
    let mut input = &answer[..];
    let mut there = There::default();
    while !input.is_empty() {
        let (event, origin) = row::read_identity(&mut input)?;
        there.events.insert(event);
        there.rows.insert(origin.place());
    }
    Ok(there)
}

/// The condition that holds for what is stored of `rows`, and perhaps for some more of their logs.
pub(super) fn of_rows(rows: &[Row], (first_ms, last_ms): (i64, i64)) -> String {
    let wal_ids: HashSet<WalId> = rows.iter().map(|row| row.origin.wal_id).collect();
    let wal_ids: Vec<String> = wal_ids.iter().map(|wal_id| format!("'{wal_id}'")).collect();
    let seqs = || rows.iter().map(|row| row.origin.wal_seq);
    format!(
        "received_at BETWEEN fromUnixTimestamp64Milli({first_ms}, 'UTC') AND fromUnixTimestamp64Milli({last_ms}, 'UTC') \
         AND wal_id IN ({}) AND wal_seq BETWEEN {} AND {}",
        wal_ids.join(", "),
        seqs().min().unwrap_or(0),
        seqs().max().unwrap_or(0),
    )
}

async fn how(client: &Client, name: &str) -> Result<Mend, QueryError> {
    let (database, table) = (quote_text(client.database()), quote_text(name));
    let sql = format!("SELECT engine FROM system.tables WHERE database = {database} AND name = {table}");
    let engines = client.fetch::<Engine>(&sql).await?;
    let replicated =
        engines.iter().any(|Engine { engine }| engine.starts_with("Replicated") || engine.starts_with("Shared"));
    Ok(if replicated { Mend::Insert } else { Mend::Attach })
}

/// Puts rows into the table without its views.
async fn attach(client: &Client, stored: &Stored<'_>, missing: &Block) -> Result<(), RecountError> {
    let staging = format!("{}_missing_{:08x}", stored.table.name(), crc32c::crc32c(stored.token.as_bytes()));
    let database = quote_identifier(client.database());
    let (table, target) = (format!("{database}.{}", stored.table.name()), format!("{database}.{staging}"));
    client.execute(&format!("DROP TABLE IF EXISTS {target} SYNC")).await?;
    client.execute(&format!("CREATE TABLE {target} AS {table}")).await?;
    let settings = insert_settings(&stored.token, missing.rows);
    insert_block::<RecountError>(client, &staging, stored.table, missing, &settings).await?;
    let partitions = client
        .fetch::<Partition>(&format!(
            "SELECT DISTINCT partition_id AS id FROM system.parts WHERE active AND database = {} AND table = {}",
            quote_text(client.database()),
            quote_text(&staging)
        ))
        .await?;
    for Partition { id } in partitions {
        client.execute(&format!("ALTER TABLE {table} ATTACH PARTITION ID {} FROM {target}", quote_text(&id))).await?;
    }
    Ok(client.execute(&format!("DROP TABLE {target} SYNC")).await?)
}

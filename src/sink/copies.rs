//! What an earlier opening left in the log: has another process stored it?
//!
//! A log's folder may be a copy: restored from a backup, or cloned to a second machine. What the copy holds may be in
//! ClickHouse for long, stored by the process that went on with the other one, in ranges of its own, hence under other tokens,
//! or under tokens that ClickHouse has forgotten. So before the first insert of such a range its rows are looked for by where
//! they come from, and those that are there are left out of every attempt.
//!
//! A range that was in flight is most often there because this very process was ended between the insert and its commit, and
//! perhaps in the middle of the insert, before the views had their rows. Then it is sent again under its token, which gives the
//! views what they lack, for as long as the token is surely known: the rows came in one insert, and fewer inserts followed than
//! half of what the table remembers.
//!
//! A log that was not copied pays one query for each range that it had left when it was opened.

use std::collections::HashSet;

use serde::Deserialize;

use super::{
    recount::{self, RecountError, Row},
    source::Block,
};
use crate::{
    clickhouse::{Client, QueryError, quote_identifier, quote_text},
    row::{Place, Table},
};

#[derive(clickhouse::Row, Deserialize)]
struct Inserts {
    inserts: u64,
    newest_ms: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Window {
    entries: u64,
    seconds: u64,
    now_ms: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Since {
    parts: u64,
}

/// Adds the rows of `block` that are stored and must not be sent again to `places`.
pub(super) async fn look(
    client: &Client,
    table: Table,
    block: &Block,
    was_in_flight: bool,
    places: &mut HashSet<Place>,
) -> Result<(), RecountError> {
    if block.rows == 0 {
        return Ok(());
    }
    let (rows, received) = recount::read(table, &block.body.by_row())?;
    let there = recount::there(client, table, &rows, received).await?;
    let stored: Vec<&Row> = rows.iter().filter(|row| there.has(table, row)).collect();
    if stored.is_empty() || (was_in_flight && token_is_known(client, table.name(), &rows, received).await?) {
        return Ok(());
    }
    tracing::warn!(
        table = table.name(),
        rows = rows.len(),
        stored = stored.len(),
        "rows that this log still holds were stored by another process: its folder is a copy; they are left out"
    );
    places.extend(stored.iter().map(|row| row.place()));
    Ok(())
}

/// Whether the table still knows the token under which `rows` were inserted, as far as the rows that are there tell.
async fn token_is_known(client: &Client, name: &str, rows: &[Row], received: (i64, i64)) -> Result<bool, QueryError> {
    let table = format!("{}.{name}", quote_identifier(client.database()));
    let sql = format!(
        "SELECT uniqExact(inserted_at) AS inserts, toUnixTimestamp64Milli(max(inserted_at)) AS newest_ms FROM {table} WHERE {}",
        recount::of_rows(rows, received)
    );
    let Some(Inserts { inserts: 1, newest_ms }) = client.fetch::<Inserts>(&sql).await?.pop() else { return Ok(false) };
    let setting = |name: &str| format!("toUInt64OrZero(extract(create_table_query, '{name} = (\\\\d+)'))");
    let sql = format!(
        "SELECT {} AS entries, {} AS seconds, toUnixTimestamp64Milli(now64(3)) AS now_ms FROM system.tables \
         WHERE database = {} AND name = {}",
        setting("replicated_deduplication_window"),
        setting("replicated_deduplication_window_seconds"),
        quote_text(client.database()),
        quote_text(name)
    );
    let Some(Window { entries, seconds, now_ms }) = client.fetch::<Window>(&sql).await?.pop() else { return Ok(false) };
    let age = u64::try_from(now_ms.saturating_sub(newest_ms) / 1000).unwrap_or(0);
    if seconds > 0 && age >= seconds / 2 {
        return Ok(false);
    }
    // An insert takes one entry for each part that it makes.
    let sql = format!(
        "SELECT count() AS parts FROM (SELECT DISTINCT inserted_at, expires_at FROM {table} \
         WHERE received_at >= fromUnixTimestamp64Milli({}, 'UTC') AND inserted_at > fromUnixTimestamp64Milli({newest_ms}, 'UTC') \
         LIMIT {entries})",
        received.0
    );
    let parts = client.fetch::<Since>(&sql).await?.pop().map_or(0, |Since { parts }| parts);
    Ok(parts < entries / 2)
}

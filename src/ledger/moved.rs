//! Rows that get another expiry (`retention apply`): the ledger counts by expiry what was inserted, so it is told.

use std::fmt::Write as _;

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    clickhouse::{Client, QueryError, REWRITE_TIMEOUT, quote_identifier},
    ids::{TenantId, WalId},
};

#[derive(clickhouse::Row, Deserialize)]
struct Group {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    topic: String,
    partition: u32,
    before: u32,
    after: u32,
    last: u64,
    rows: u64,
}

/// Says that the rows of `table` for which `condition` holds expire at `after` (an expression) from now on. To be said before
/// they are changed, and again under the same `token` by whoever takes up what was broken off.
///
/// # Errors
/// [`QueryError`]: nobody knows whether it was said. Say it again.
pub(crate) async fn moved(
    client: &Client,
    table: &str,
    condition: &str,
    after: &str,
    token: &str,
) -> Result<(), QueryError> {
    // Of a parked event that has gone on both rows are counted, one against the other.
    let (source, only) = match table {
        "events" => ("events", ""),
        "parked_events" => ("parked", " AND released = 0"),
        _ => return Ok(()),
    };
    let database = quote_identifier(client.database());
    let from = if only.is_empty() { "" } else { "FINAL" };
    let sql = format!(
        "SELECT tenant_id, wal_id, toString(topic) AS topic, partition, toUInt32(expires_at) AS before, \
             toUInt32({after}) AS after, max(offset) AS last, count() AS rows \
         FROM {database}.{table} {from} WHERE ({condition}){only} \
         GROUP BY tenant_id, wal_id, topic, partition, before, after ORDER BY ALL"
    );
    let groups = client.fetch_within::<Group>(&sql, REWRITE_TIMEOUT).await?;
    let mut body = String::new();
    for Group { tenant_id, wal_id, topic, partition, before, after, last, rows } in &groups {
        let (tenant_id, wal_id, topic) =
            (TenantId(*tenant_id), WalId(*wal_id), serde_json::Value::from(topic.as_str()));
        for (expires_at, sign) in [(before, "-"), (after, "")] {
            // Writing to a String cannot fail.
            writeln!(
                body,
                "{{\"tenant_id\":\"{tenant_id}\",\"wal_id\":\"{wal_id}\",\"source\":\"{source}\",\"topic\":{topic},\
                 \"partition\":{partition},\"expires_at\":{expires_at},\"last\":{last},\"rows\":{sign}{rows}}}"
            )
            .unwrap_or(());
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    let sql = format!("INSERT INTO {database}.ledger_inserted FORMAT JSONEachRow");
    let rows = (2 * groups.len()).to_string();
    let settings = [
        ("async_insert", "0".to_owned()),
        ("insert_deduplicate", "1".to_owned()),
        ("insert_deduplication_token", token.to_owned()),
        // One block: the token is for all of it.
        ("max_insert_block_size", rows.clone()),
        ("min_insert_block_size_rows", rows),
        ("min_insert_block_size_bytes", "0".to_owned()),
    ];
    client.insert(&sql, &settings, body.into()).await
}

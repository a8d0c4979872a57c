//! Events that are in no table for a good reason, as they are said to ClickHouse (`ledger_gone`): each by where it entered,
//! so that whatever is said twice counts once.

use serde::Serialize;

use crate::{
    clickhouse::{Client, QueryError, quote_identifier},
    ids::TenantId,
    row::{Origin, Position, Row},
};

/// Why an event is in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// Its time was over when it arrived.
    Expired,
    /// Sent to another node as well, whose copy is stored.
    Duplicate,
    /// On request.
    Erased,
    /// A plugin did not want it when it was run again.
    Dropped,
    /// It became a dead letter. Whatever becomes of that: an event that is replayed is received anew.
    Dead,
}

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) tenant: TenantId,
    pub(crate) origin: Origin,
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) expires_at: u32,
    pub(crate) reason: Reason,
}

impl Gone {
    pub(crate) fn new(row: &Row<'_>, origin: &Origin, position: &Position<'_>, reason: Reason) -> Self {
        Self {
            tenant: row.tenant_id(),
            origin: origin.clone(),
            topic: position.topic.to_string(),
            partition: position.partition,
            offset: position.offset,
            expires_at: row.expires_at(),
            reason,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    tenant_id: TenantId,
    wal_id: crate::ids::WalId,
    wal_seq: u64,
    wal_ordinal: u32,
    topic: &'a str,
    partition: u32,
    offset: u64,
    expires_at: u32,
    reason: Reason,
    stored: u8,
}

/// Says that these events are in no table. Whoever repeats it says nothing new.
///
/// # Errors
/// [`QueryError`]: nobody knows whether it was said. Say it again.
pub(crate) async fn record(client: &Client, gone: &[Gone]) -> Result<(), QueryError> {
    if gone.is_empty() {
        return Ok(());
    }
    let mut body = Vec::with_capacity(gone.len() * 256);
    for Gone { tenant, origin, topic, partition, offset, expires_at, reason } in gone {
        let line = Line {
            tenant_id: *tenant,
            wal_id: origin.wal_id,
            wal_seq: origin.wal_seq,
            wal_ordinal: origin.wal_ordinal,
            topic,
            partition: *partition,
            offset: *offset,
            expires_at: *expires_at,
            reason: *reason,
            stored: 0,
        };
        // Numbers and short texts: writing them to memory cannot fail.
        if serde_json::to_writer(&mut body, &line).is_ok() {
            body.push(b'\n');
        }
    }
    let sql = format!("INSERT INTO {}.ledger_gone FORMAT JSONEachRow", quote_identifier(client.database()));
    // No token: the same events in other company are no repeat of an insert.
    let settings = [("async_insert", "0".to_owned()), ("insert_deduplicate", "0".to_owned())];
    client.insert(&sql, &settings, body.into()).await
}

/// The statement that says of the rows of `table` (`events` or `parked_events`) for which `condition` holds that they are
/// erased: to be run before they are deleted.
pub(crate) fn erased(database: &str, table: &str, condition: &str) -> String {
    if table == "dead_letters" {
        // Events that ended there, said anew: the later word counts.
        return format!(
            "INSERT INTO {database}.ledger_gone SETTINGS async_insert = 0, insert_deduplicate = 0 \
             SELECT * REPLACE ('erased' AS reason) FROM (SELECT * FROM {database}.ledger_gone FINAL \
             WHERE reason = 'dead' AND stored = 0 AND (\
                 (tenant_id, wal_id, wal_seq, wal_ordinal) IN \
                     (SELECT tenant_id, wal_id, wal_seq, wal_ordinal FROM {database}.dead_letters WHERE {condition}) \
                 OR (tenant_id, wal_id, wal_seq) IN (SELECT tenant_id, wal_id, wal_seq FROM {database}.dead_letters \
                     WHERE ({condition}) AND form IN ('record', 'rows'))))"
        );
    }
    // A parked event that has gone on is counted where it is now.
    let (from, waiting) = if table == "parked_events" { ("FINAL", " AND released = 0") } else { ("", "") };
    format!(
        "INSERT INTO {database}.ledger_gone \
         (tenant_id, wal_id, wal_seq, wal_ordinal, topic, partition, offset, expires_at, reason, stored) \
         SETTINGS async_insert = 0, insert_deduplicate = 0 \
         SELECT tenant_id, wal_id, wal_seq, wal_ordinal, topic, partition, offset, expires_at, 'erased', 1 \
         FROM {database}.{table} {from} WHERE ({condition}){waiting}"
    )
}

//! What ClickHouse says of an event. Only reads; tables that are not there yet are left out.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Question,
    letters::{Letter, known},
};
use crate::{
    clickhouse::{Client, quote_identifier, quote_text},
    erasure::Tombstone,
    ids::{TenantId, WalId},
    row::{Origin, Place, Sighted, sent_ids},
};

/// An index finds an event in the parts that have it; one from before the index is looked for in all of them.
const LIMIT: Duration = Duration::from_mins(5);
/// More copies of one event than that are not listed.
const MOST: usize = 1000;

/// The tables that are asked, as far as they are there.
const TABLES: [&str; 5] = ["events", "parked_events", "dead_letters", "erasures", "ledger_gone"];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InTables {
    /// Tables that were there to be asked.
    pub asked: BTreeSet<String>,
    /// Rows of `events`: each of them, also those that a merge would make one of.
    pub stored: Vec<InTable>,
    /// Rows of `parked_events`.
    pub parked: Vec<InTable>,
    /// Rows of `dead_letters`.
    pub letters: Vec<Letter>,
    /// What was erased of the tenants that matter here.
    pub tombstones: Vec<Tombstone>,
    /// Why rows that were met elsewhere are in no table.
    pub gone: Vec<Gone>,
}

/// A row of `events` or `parked_events`.
#[derive(Clone, Debug, PartialEq)]
pub struct InTable {
    /// What it says.
    pub row: Sighted,
    /// Where it entered.
    pub origin: Origin,
    /// Where the sink read it; none when that was a log.
    pub message: Option<(String, u32, u64)>,
    /// When it was inserted, Unix milliseconds.
    pub inserted_at_ms: i64,
    /// Of a parked row: it has been run through its plugin.
    pub released: bool,
}

/// An event that is in no table for a reason that the ledger knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Whose.
    pub tenant: TenantId,
    /// Where it entered.
    pub place: Place,
    /// As the ledger has it: `erased`, `expired`, `dropped`, `duplicate`, `dead`.
    pub reason: String,
    /// Unix seconds from which it, or the dead letter that it has become, would have gone by itself.
    pub expires_at: u32,
}

/// Both kinds of rows, as the queries below name their columns.
#[derive(clickhouse::Row, Deserialize)]
struct Found {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant: Uuid,
    received_ms: i64,
    expires_s: u32,
    user: String,
    anonymous: String,
    waits_for: String,
    why: String,
    sent: String,
    is_released: u8,
    #[serde(with = "clickhouse::serde::uuid")]
    log: Uuid,
    seq: u64,
    ordinal: u32,
    relayed_ms: i64,
    from_topic: String,
    from_partition: u32,
    from_offset: u64,
    inserted_ms: i64,
}

/// What both tables are asked for; the rest of the columns differs.
const COMMON: &str = "tenant_id AS tenant, toInt64(toUnixTimestamp64Milli(received_at)) AS received_ms, \
     toUInt32(toUnixTimestamp(expires_at)) AS expires_s";
const ORIGIN: &str = "wal_id AS log, toUInt64(wal_seq) AS seq, toUInt32(wal_ordinal) AS ordinal, \
     toInt64(toUnixTimestamp64Milli(relayed_at)) AS relayed_ms, toString(topic) AS from_topic, \
     toUInt32(partition) AS from_partition, toUInt64(offset) AS from_offset, \
     toInt64(toUnixTimestamp64Milli(inserted_at)) AS inserted_ms";

impl From<Found> for InTable {
    fn from(found: Found) -> Self {
        let parked = !found.waits_for.is_empty();
        let (user_id, anonymous_id) = if parked { sent_ids(&found.sent) } else { (found.user, found.anonymous) };
        let origin = Origin {
            wal_id: WalId(found.log),
            wal_seq: found.seq,
            wal_ordinal: found.ordinal,
            relayed_at_ms: found.relayed_ms,
        };
        let row = Sighted {
            tenant_id: TenantId(found.tenant),
            received_at_ms: found.received_ms,
            expires_at: found.expires_s,
            user_id,
            anonymous_id,
            parked: parked.then_some((found.waits_for, found.why)),
        };
        // A node without brokers names its log so.
        let is_log = found.from_topic == "wal" && found.from_partition == 0 && found.from_offset == found.seq;
        let message = (!is_log).then_some((found.from_topic, found.from_partition, found.from_offset));
        Self { row, origin, message, inserted_at_ms: found.inserted_ms, released: found.is_released == 1 }
    }
}

#[derive(clickhouse::Row, Deserialize)]
struct FoundLetter {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    letter: Uuid,
    received_ms: i64,
    died_ms: i64,
    at_stage: String,
    why: String,
    what: String,
    #[serde(with = "clickhouse::serde::uuid")]
    log: Uuid,
    seq: u64,
    ordinal: u32,
}

#[derive(clickhouse::Row, Deserialize)]
struct FoundGone {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    log: Uuid,
    seq: u64,
    ordinal: u32,
    why: String,
    expires_s: u32,
}

impl From<FoundGone> for Gone {
    fn from(found: FoundGone) -> Self {
        let place = (WalId(found.log), found.seq, found.ordinal);
        Self { tenant: TenantId(found.tenant), place, reason: found.why, expires_at: found.expires_s }
    }
}

/// Where the event was met elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Elsewhere {
    /// Whose it is: what was erased of them matters too.
    pub tenants: BTreeSet<TenantId>,
    /// Where its rows entered.
    pub places: BTreeSet<(TenantId, Place)>,
}

/// Asks for the event of `question`.
///
/// # Errors
/// ClickHouse's.
pub async fn ask(client: &Client, question: &Question, elsewhere: &Elsewhere) -> Result<InTables> {
    let database = quote_identifier(client.database());
    let names: Vec<String> = TABLES.iter().map(|name| quote_text(name)).collect();
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = {} AND name IN ({})",
        quote_text(client.database()),
        names.join(", ")
    );
    let asked: Vec<String> = client.fetch(&sql).await.context("looking for the tables")?;
    let mut found = InTables { asked: asked.into_iter().collect(), ..InTables::default() };
    let tenant = question.tenant.map_or_else(String::new, |tenant| format!(" AND tenant_id = '{tenant}'"));
    let of_event = format!("WHERE event_id = '{}'{tenant}", question.event);

    if found.asked.contains("events") {
        let sql = format!(
            "SELECT {COMMON}, user_id AS user, anonymous_id AS anonymous, '' AS waits_for, '' AS why, '' AS sent, \
             toUInt8(0) AS is_released, {ORIGIN} FROM {database}.events {of_event} ORDER BY inserted_ms LIMIT {MOST}"
        );
        let rows: Vec<Found> = client.fetch_within(&sql, LIMIT).await.context("table events")?;
        found.stored = rows.into_iter().map(InTable::from).collect();
    }
    if found.asked.contains("parked_events") {
        let sql = format!(
            "SELECT {COMMON}, '' AS user, '' AS anonymous, toString(plugin) AS waits_for, reason AS why, raw AS sent, \
             toUInt8(released) AS is_released, {ORIGIN} FROM {database}.parked_events {of_event} \
             ORDER BY inserted_ms LIMIT {MOST}"
        );
        let rows: Vec<Found> = client.fetch_within(&sql, LIMIT).await.context("table parked_events")?;
        found.parked = rows.into_iter().map(InTable::from).collect();
    }
    // Before the letters: one that it tells of was in their table by then.
    if found.asked.contains("ledger_gone") && !elsewhere.places.is_empty() {
        let places = elsewhere.places.iter().take(MOST);
        let places: Vec<String> = places
            .map(|(tenant, (log, seq, ordinal))| format!("(toUUID('{tenant}'), toUUID('{log}'), {seq}, {ordinal})"))
            .collect();
        let sql = format!(
            "SELECT tenant_id AS tenant, wal_id AS log, wal_seq AS seq, wal_ordinal AS ordinal, toString(reason) AS why, \
             toUInt32(toUnixTimestamp(expires_at)) AS expires_s \
             FROM {database}.ledger_gone FINAL WHERE (tenant_id, wal_id, wal_seq, wal_ordinal) IN ({})",
            places.join(", ")
        );
        let gone: Vec<FoundGone> = client.fetch(&sql).await.context("table ledger_gone")?;
        found.gone = gone.into_iter().map(Gone::from).collect();
    }
    if found.asked.contains("dead_letters") {
        // A letter has a row for everything that became of it.
        let sql = format!(
            "SELECT tenant_id AS tenant, letter_id AS letter, \
             toInt64(toUnixTimestamp64Milli(received_at)) AS received_ms, \
             toInt64(toUnixTimestamp64Milli(died_at)) AS died_ms, toString(stage) AS at_stage, reason AS why, \
             toString(state) AS what, wal_id AS log, wal_seq AS seq, wal_ordinal AS ordinal \
             FROM {database}.dead_letters FINAL {of_event} ORDER BY died_ms LIMIT {MOST}"
        );
        let rows: Vec<FoundLetter> = client.fetch_within(&sql, LIMIT).await.context("table dead_letters")?;
        found.letters = rows.into_iter().map(Letter::from).collect();
    }
    let rows = found.stored.iter().chain(&found.parked).map(|row| row.row.tenant_id);
    let tenants: BTreeSet<TenantId> = rows.chain(elsewhere.tenants.iter().copied()).chain(question.tenant).collect();
    if found.asked.contains("erasures") && !tenants.is_empty() {
        let tenants: Vec<String> = tenants.iter().map(|tenant| format!("'{tenant}'")).collect();
        let sql = format!(
            "SELECT id, tenant_id, user_id, anonymous_ids, toUnixTimestamp64Milli(before) AS before_ms \
             FROM {database}.erasures WHERE tenant_id IN ({}) ORDER BY id",
            tenants.join(", ")
        );
        found.tombstones = client.fetch(&sql).await.context("table erasures")?;
    }
    Ok(found)
}

impl From<FoundLetter> for Letter {
    fn from(found: FoundLetter) -> Self {
        let place = (WalId(found.log), found.seq, found.ordinal);
        Self {
            tenant: known(TenantId(found.tenant)),
            letter_id: found.letter.to_string(),
            accepted: (!found.log.is_nil()).then_some((found.received_ms, place)),
            died_at_ms: found.died_ms,
            stage: found.at_stage,
            reason: found.why,
            state: found.what,
            kept: "table dead_letters".to_owned(),
        }
    }
}

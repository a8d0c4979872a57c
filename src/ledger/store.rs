//! What ClickHouse is asked: by tenant, within the cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    broker::{Carries, Unread, UnreadRow},
    clickhouse::{Client, QueryError, REWRITE_TIMEOUT, quote_identifier, quote_text},
    ids::{TenantId, WalId},
    wal::{Holdings, Opening},
};

/// What was found of a tenant's events behind the log. Live: the retention is not over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Rows of `events` and unreleased ones of `parked_events` that were ever inserted: live ones, and the others.
    pub(super) inserted_live: i64,
    pub(super) inserted_over: i64,
    /// Live rows that are there.
    pub(super) stored: i64,
    pub(super) parked: i64,
    /// Rows that were there and were erased.
    pub(super) erased_stored_live: i64,
    pub(super) erased_stored_over: i64,
    /// Events that were never inserted, by reason.
    pub(super) left_erased: i64,
    pub(super) left_expired: i64,
    pub(super) left_dropped: i64,
    pub(super) left_duplicate: i64,
    pub(super) dead_lettered: i64,
    /// Unread in the topic.
    pub(super) in_broker: i64,
    pub(super) through_broker: bool,
    /// Those of them whose letter is in the table no more, though its time is not over.
    pub(super) letters_gone: i64,
    /// Most rows that later ones can have replaced.
    pub(super) may_be_replaced: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Count {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant_id: Uuid,
    kind: String,
    events: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Mark {
    partition: u32,
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    seq: u64,
    ordinal: u32,
}

struct Asked<'a> {
    client: &'a Client,
    database: String,
    /// The cut as a table: id of the log, first and last sequence that have left it.
    cut: String,
    /// Whether a row of `events` or `parked_events` is asked for: not if the topic has it as unread.
    is_read: String,
    /// The same for what was counted at an insert,
    insert_is_read: String,
    /// and for what is in no table.
    gone_is_read: String,
    /// The clock of all questions.
    now: String,
}

/// Counts what has left the log of `holdings`. `unread` is what the topics hold that is not stored yet; nothing without
/// brokers.
pub(super) async fn count(
    client: &Client,
    holdings: &Holdings,
    unread: Option<&[Unread]>,
    window: Duration,
) -> Result<BTreeMap<TenantId, Found>, QueryError> {
    let mut found: BTreeMap<TenantId, Found> = BTreeMap::new();
    if unread.is_some() {
        for tenant in holdings.accounts.keys() {
            found.entry(*tenant).or_default().through_broker = true;
        }
    }
    let Some(cut) = cut(&holdings.openings, holdings.done) else { return Ok(found) };
    let unread = unread.unwrap_or_default();
    let now = format!("toDateTime({}, 'UTC')", jiff::Timestamp::now().as_second());
    let Read { rows: is_read, inserts: insert_is_read, gone: gone_is_read } = read(unread, holdings);
    let database = quote_identifier(client.database());
    let asked = Asked { client, database, cut, is_read, insert_is_read, gone_is_read, now };
    for topic in unread {
        for (tenant, events) in asked.in_broker(topic, holdings).await? {
            found.entry(tenant).or_default().in_broker += events;
        }
    }
    for Count { tenant_id, kind, events } in asked.counts().await? {
        let found = found.entry(TenantId(tenant_id)).or_default();
        let place = match &*kind {
            "inserted live" => &mut found.inserted_live,
            "inserted over" => &mut found.inserted_over,
            "stored" => &mut found.stored,
            "parked" => &mut found.parked,
            "erased live" => &mut found.erased_stored_live,
            "erased over" => &mut found.erased_stored_over,
            "left erased" => &mut found.left_erased,
            "left expired" => &mut found.left_expired,
            "left dropped" => &mut found.left_dropped,
            "left duplicate" => &mut found.left_duplicate,
            "left dead" => &mut found.dead_lettered,
            "letters gone" => &mut found.letters_gone,
            _ => continue,
        };
        *place += events;
    }
    for (tenant, found) in &mut found {
        if found.inserted_live > found.stored + found.parked + found.erased_stored_live {
            found.may_be_replaced = asked.may_be_replaced(*tenant, window).await?;
        }
    }
    Ok(found)
}

/// The openings as far as they have left the log; nothing when none has.
fn cut(openings: &[Opening], done: u64) -> Option<String> {
    let rows: Vec<String> = openings
        .iter()
        .filter(|opening| opening.first <= done)
        .map(|Opening { wal_id, first, last }| format!("('{wal_id}', {first}, {})", (*last).min(done)))
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "(SELECT toUUID(o.1) AS wal_id, toUInt64(o.2) AS first, toUInt64(o.3) AS till \
             FROM (SELECT arrayJoin([{}]) AS o))",
            rows.join(", ")
        )
    })
}

/// By how much the clocks of a relay and of ClickHouse may differ.
const CLOCKS_MS: i64 = 10_000;

/// Conditions for rows that a sink has read and committed.
struct Read {
    rows: String,
    inserts: String,
    gone: String,
}

/// What lies before the offset that the sink reads next, and what lies behind it and yet cannot be of this topic: offsets begin
/// anew with a topic that was made anew, or a broker that came back empty. It was stored before what is unread was sent, or
/// entered before it.
fn read(unread: &[Unread], holdings: &Holdings) -> Read {
    let own: BTreeSet<WalId> = holdings.openings.iter().map(|opening| opening.wal_id).collect();
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let (mut names, mut ends, mut since, mut entered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for topic in unread {
        for (partition, next) in &topic.next {
            let since_ms = topic.since_ms.get(partition).copied().unwrap_or(now_ms).min(now_ms) - CLOCKS_MS;
            let rows = topic.rows.iter().filter(|row| row.partition == *partition && own.contains(&row.origin.wal_id));
            let first = rows.map(|row| row.origin.wal_seq).min().unwrap_or(u64::MAX);
            names.push(quote_text(&format!("{}/{partition}", topic.topic)));
            ends.push(format!("toUInt64({next})"));
            since.push(format!("toUInt32({})", (since_ms / 1000).max(0)));
            entered.push(format!("toUInt64({first})"));
        }
    }
    if names.is_empty() {
        let all = || "1".to_owned();
        return Read { rows: all(), inserts: all(), gone: all() };
    }
    let of = |values: &[String], otherwise: &str| {
        let name = "concat(toString(topic), '/', toString(partition))";
        format!("transform({name}, [{}], [{}], {otherwise})", names.join(", "), values.join(", "))
    };
    let end = of(&ends, &format!("toUInt64({})", u64::MAX));
    let (since, entered) = (of(&since, "toUInt32(0)"), of(&entered, "toUInt64(0)"));
    Read {
        rows: format!("(offset < {end} OR toUnixTimestamp(inserted_at) < {since})"),
        inserts: format!("(last < {end} OR toUnixTimestamp(written) < {since})"),
        gone: format!("(offset < {end} OR wal_seq < {entered})"),
    }
}

impl Asked<'_> {
    /// Events in the unread part of a topic that have left the log, by tenant: each once, however often a relay has sent it.
    async fn in_broker(&self, unread: &Unread, holdings: &Holdings) -> Result<BTreeMap<TenantId, i64>, QueryError> {
        let left_the_log = |row: &&UnreadRow| {
            holdings.openings.iter().any(|opening| {
                opening.wal_id == row.origin.wal_id
                    && (opening.first..=opening.last.min(holdings.done)).contains(&row.origin.wal_seq)
            })
        };
        let rows: Vec<&UnreadRow> = unread.rows.iter().filter(left_the_log).collect();
        let mut events = BTreeMap::new();
        let Some(first) = rows.iter().map(|row| row.origin.wal_seq).min() else { return Ok(events) };
        let mut marks = self.marks(unread, first).await?;
        for UnreadRow { partition, tenant, origin } in rows {
            let place = (origin.wal_seq, origin.wal_ordinal);
            let mark = marks.entry((*partition, origin.wal_id)).or_insert((0, 0));
            if place > *mark || *mark == (0, 0) {
                *mark = place;
                *events.entry(*tenant).or_default() += 1;
            }
        }
        Ok(events)
    }

    /// How far each partition of a topic was stored, by log: what a relay has sent again is at or below.
    async fn marks(&self, unread: &Unread, first: u64) -> Result<BTreeMap<(u32, WalId), (u64, u32)>, QueryError> {
        let Self { database, is_read, .. } = self;
        let table = match unread.carries {
            Carries::Events => "events",
            Carries::Parked => "parked_events",
        };
        let wal_ids: BTreeSet<String> = unread.rows.iter().map(|row| format!("'{}'", row.origin.wal_id)).collect();
        let wal_ids = wal_ids.into_iter().collect::<Vec<_>>().join(", ");
        let question = format!(
            "SELECT partition, wal_id, max((wal_seq, wal_ordinal)).1 AS seq, max((wal_seq, wal_ordinal)).2 AS ordinal \
             FROM {database}.{table} WHERE topic = {} AND wal_id IN ({wal_ids}) AND wal_seq >= {first} AND {is_read} \
             GROUP BY partition, wal_id",
            quote_text(&unread.topic)
        );
        let marks = self.client.fetch_within::<Mark>(&question, REWRITE_TIMEOUT).await?;
        let marks = marks.into_iter().map(|mark| ((mark.partition, WalId(mark.wal_id)), (mark.seq, mark.ordinal)));
        Ok(marks.collect())
    }

    async fn counts(&self) -> Result<Vec<Count>, QueryError> {
        let Self { database, cut, is_read, insert_is_read, gone_is_read, now, .. } = self;
        let questions = vec![
            format!(
                "SELECT tenant_id, if(expires_at > {now}, 'inserted live', 'inserted over') AS kind, \
                 sum(if(source = 'released', -rows, rows)) AS events \
                 FROM {database}.ledger_inserted AS t INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE if(topic = 'wal', last BETWEEN first AND till, {insert_is_read}) GROUP BY tenant_id, kind"
            ),
            // Of a topic, an insert may hold rows of records that have not left the log.
            format!(
                "SELECT tenant_id, 'inserted live' AS kind, -toInt64(count()) AS events \
                 FROM {database}.events AS t INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq > till AND topic != 'wal' AND {is_read} AND expires_at > {now} GROUP BY tenant_id"
            ),
            format!(
                "SELECT tenant_id, 'inserted live' AS kind, -toInt64(count()) AS events \
                 FROM (SELECT * FROM {database}.parked_events FINAL WHERE released = 0) AS t \
                 INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq > till AND topic != 'wal' AND {is_read} AND expires_at > {now} GROUP BY tenant_id"
            ),
            format!(
                "SELECT tenant_id, 'stored' AS kind, toInt64(count()) AS events \
                 FROM {database}.events AS t INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq BETWEEN first AND till AND {is_read} AND expires_at > {now} GROUP BY tenant_id"
            ),
            format!(
                "SELECT tenant_id, 'parked' AS kind, toInt64(count()) AS events \
                 FROM (SELECT * FROM {database}.parked_events FINAL WHERE released = 0 AND expires_at > {now}) AS t \
                 INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq BETWEEN first AND till AND {is_read} GROUP BY tenant_id"
            ),
            format!(
                "SELECT tenant_id, \
                 if(stored = 0, concat('left ', reason), if(expires_at > {now}, 'erased live', 'erased over')) AS kind, \
                 toInt64(count()) AS events \
                 FROM (SELECT * FROM {database}.ledger_gone FINAL) AS t INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq BETWEEN first AND till AND {gone_is_read} GROUP BY tenant_id, kind"
            ),
            // A letter that something became of keeps its row. Some stand for all that is left of a record.
            format!(
                "SELECT tenant_id, 'letters gone' AS kind, toInt64(count()) AS events \
                 FROM (SELECT * FROM {database}.ledger_gone FINAL \
                     WHERE reason = 'dead' AND stored = 0 AND expires_at > {now}) AS t \
                 INNER JOIN {cut} AS c ON t.wal_id = c.wal_id \
                 WHERE wal_seq BETWEEN first AND till AND {gone_is_read} \
                     AND (t.tenant_id, t.wal_id, wal_seq, wal_ordinal) NOT IN \
                         (SELECT tenant_id, wal_id, wal_seq, wal_ordinal FROM {database}.dead_letters) \
                     AND (t.tenant_id, t.wal_id, wal_seq) NOT IN \
                         (SELECT tenant_id, wal_id, wal_seq FROM {database}.dead_letters WHERE form IN ('record', 'rows')) \
                 GROUP BY tenant_id"
            ),
        ];
        let mut counts = Vec::new();
        for question in questions {
            counts.extend(self.client.fetch_within::<Count>(&question, REWRITE_TIMEOUT).await?);
        }
        Ok(counts)
    }

    /// Rows of `tenant` that can have replaced an earlier one of the same event: it has a time of its own, so far back that
    /// the first copy may have been received outside of the dedup window.
    async fn may_be_replaced(&self, tenant: TenantId, window: Duration) -> Result<i64, QueryError> {
        let Self { database, now, .. } = self;
        let late = match window.as_millis() {
            // Nothing is recognised: any row can be a repeat.
            0 => String::new(),
            window => format!(" AND timestamp < received_at - INTERVAL {window} MILLISECOND"),
        };
        let question = format!(
            "SELECT toInt64(count()) FROM {database}.events WHERE tenant_id = '{tenant}' AND expires_at > {now}{late}"
        );
        let counts = self.client.fetch_within::<i64>(&question, REWRITE_TIMEOUT).await?;
        Ok(counts.first().copied().unwrap_or(0))
    }
}

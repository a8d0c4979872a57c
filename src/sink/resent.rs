//! An event that was sent to two nodes: is its row the second one?
//!
//! A client that gets no answer sends again, and behind a load balancer another node may take it, whose dedup window has not
//! seen the first. Both rows are of one session, so they are in one partition, and its sink sees both:
//!
//! ```text
//! rows of one log only in the partition --> nothing to look for: that node's window has seen all of them
//! rows of several --> hash of (tenant, event id) seen before in the partition? --> ask ClickHouse --> leave out, count | keep
//! ```
//!
//! # Memory
//! Of each partition in which rows of several logs were met lately the hashes of its events are kept, 8 bytes each and 10 to
//! 20 in their table: those of the last two to four windows, and no more than `dedup.max_ids` in all partitions of the
//! member together. A hash that is known is no more than a suspicion: ClickHouse tells, of the events in question and of
//! no others. A log is new at every start of its node, so for a while after a start hashes are kept for one node too.
//!
//! # What is asked
//! With the first range of an assignment: of which logs the partition has rows that were received within two windows before the
//! range. If these are several, and when a second one comes later, their hashes are read, the newest first of too many. A
//! failed question forgets the partition, and the range, which waits, asks again from the beginning.
//!
//! # The decision
//! A row is left out if its event is stored from another place and the two were received within the window of each other; the
//! wall clock is not asked. It is kept if it is itself stored: its range is repeated then. One range of a partition is under
//! way at a time and the one before it is stored, so whoever repeats a range decides the same, whatever of it was stored
//! before: what it finds beyond the earlier ranges are rows of its own that were kept.
//!
//! # What this is not
//! It misses copies in different partitions (other session, or the topic grew in between), one that is parked while the other is
//! not, and those of a node whose log lags behind the others' by more than the window or `dedup.max_ids`. The nil id is no id.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    recount::{self, RecountError, Row},
    source::Range,
};
use crate::{
    clickhouse::{Client, QueryError, quote_identifier, quote_text},
    ids::{EventId, TenantId, WalId},
    row::{BinaryError, Place, Table},
};

/// How long a question may take: of millions of rows, on a server that has just come back.
const PATIENCE: Duration = Duration::from_mins(10);
/// So many ids are asked for at once: a statement is parsed up to 256 KiB.
const IDS_A_QUESTION: usize = 5000;
/// A log or a hash is remembered for so many windows: nodes do not deliver at the same pace.
const WINDOWS: i64 = 2;

/// How far the check goes.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Two rows of one event are one if they were received within this time of each other. 0: never.
    pub span: Duration,
    /// Most ids in memory.
    pub ids: usize,
}

type Event = (TenantId, EventId);

/// A row of ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    event: Event,
    place: Place,
    received_at_ms: i64,
}

/// What was seen of the partitions of one topic.
pub(super) struct Resent {
    client: Client,
    span_ms: i64,
    most: usize,
    partitions: Mutex<HashMap<u32, Partition>>,
}

/// What was seen of a partition under one assignment.
struct Partition {
    generation: u64,
    revoked: CancellationToken,
    logs: Logs,
    /// Kept only where rows of several logs come in.
    seen: Option<Seen>,
}

/// The logs whose rows came lately, each with the time of its last.
struct Logs(HashMap<WalId, i64>);

/// Hashes of events, in two halves: the newer one takes the place of the older when it is full or old.
struct Seen {
    seed: RandomState,
    newer: Hashes,
    older: Hashes,
    began_ms: i64,
}

type Hashes = HashSet<u64, BuildHasherDefault<Hashed>>;

/// The hash of what is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(clickhouse::Row, Deserialize)]
struct Log {
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    newest_ms: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Found {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    wal_seq: u64,
    wal_ordinal: u32,
    received_at_ms: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Id {
    #[serde(with = "clickhouse::serde::uuid")]
    tenant_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
}

impl Resent {
    pub(super) fn new(client: Client, window: Window) -> Self {
        let span_ms = i64::try_from(window.span.as_millis()).unwrap_or(i64::MAX / 4);
        Self { client, span_ms, most: window.ids, partitions: Mutex::default() }
    }

    /// Where the rows of `range` entered that are not to be stored, because another row of their event is.
    pub(super) async fn look(&self, range: &Range) -> Result<HashSet<Place>, RecountError> {
        let Some(beside) = range.beside.as_ref().filter(|_| self.span_ms > 0 && self.most > 0) else {
            return Ok(HashSet::new());
        };
        let (table, rows, body) = match range.rows {
            0 => (Table::Parked, range.parked.rows, &range.parked.body),
            rows => (Table::Events, rows, &range.body),
        };
        if rows == 0 {
            return Ok(HashSet::new());
        }
        // Taken out, and put back only when all went well.
        let mut partition = match self.taken(range) {
            Some(partition) => partition,
            None => self.met(range, table).await?,
        };
        let received_ms = (range.oldest_received_at_ms, beside.newest_received_at_ms);
        partition.logs.take(&beside.logs, received_ms, self.span_ms);
        let mut copies = HashSet::new();
        if partition.logs.are_several() {
            let most = (self.most / beside.partitions.max(1)).max(2);
            let seen = match partition.seen.take() {
                Some(seen) => seen,
                None => self.read(range, table, most).await?,
            };
            let (seen, rows, suspects) = examine(seen, table, body.by_row(), most, self.span_ms).await?;
            if !suspects.is_empty() {
                let stored = self.stored(table, &rows, &suspects).await?;
                copies = decide(&rows, &suspects, &stored, self.span_ms);
            }
            partition.seen = Some(seen);
        } else {
            partition.seen = None;
        }
        self.partitions.lock().insert(range.id.partition, partition);
        Ok(copies)
    }

    /// What was seen of the range's partition under its assignment.
    fn taken(&self, range: &Range) -> Option<Partition> {
        let mut partitions = self.partitions.lock();
        partitions.retain(|_, partition| !partition.revoked.is_cancelled());
        partitions.remove(&range.id.partition).filter(|partition| partition.generation == range.generation)
    }

    /// The rows of the range's partition before it, as far as they can be copies of its own.
    fn before(&self, range: &Range, table: Table, since_ms: i64) -> String {
        format!(
            "FROM {}.{} WHERE received_at >= fromUnixTimestamp64Milli({since_ms}, 'UTC') \
             AND topic = {} AND partition = {} AND offset < {}",
            quote_identifier(self.client.database()),
            table.name(),
            quote_text(&range.id.topic),
            range.id.partition,
            range.id.first
        )
    }

    fn since_ms(&self, range: &Range) -> i64 {
        range.oldest_received_at_ms.saturating_sub(self.span_ms.saturating_mul(WINDOWS)).max(0)
    }

    /// Takes up a partition.
    async fn met(&self, range: &Range, table: Table) -> Result<Partition, QueryError> {
        let sql = format!(
            "SELECT wal_id, toUnixTimestamp64Milli(max(received_at)) AS newest_ms {} GROUP BY wal_id",
            self.before(range, table, self.since_ms(range))
        );
        let logs = self.client.fetch_within::<Log>(&sql, PATIENCE).await?;
        Ok(Partition {
            generation: range.generation,
            revoked: range.revoked.clone(),
            logs: Logs::new(logs.into_iter().map(|log| (WalId(log.wal_id), log.newest_ms))),
            seen: None,
        })
    }

    /// The events that the partition had before `range`.
    async fn read(&self, range: &Range, table: Table, most: usize) -> Result<Seen, QueryError> {
        let since_ms = self.since_ms(range);
        // The second before which there are too many.
        let cut = format!(
            "SELECT toInt64(max(at)) FROM (SELECT intDiv(toUnixTimestamp64Milli(received_at), 1000) AS at, \
             sum(count()) OVER (ORDER BY at DESC) AS newer {} GROUP BY at) WHERE newer > {}",
            self.before(range, table, since_ms),
            most / 2
        );
        let cut = self.client.fetch_within::<i64>(&cut, PATIENCE).await?.first().copied().unwrap_or(0);
        let since_ms = since_ms.max((cut + 1) * 1000);
        let mut seen = Seen::new(range.oldest_received_at_ms);
        let ids = format!("SELECT tenant_id, event_id {}", self.before(range, table, since_ms));
        let take = |Id { tenant_id, event_id }| seen.was((TenantId(tenant_id), EventId(event_id)));
        self.client.fetch_each::<Id>(&ids, PATIENCE, take).await?;
        Ok(seen)
    }

    /// What is stored of `suspects`, which `rows` are of.
    async fn stored(&self, table: Table, rows: &[Row], suspects: &HashSet<Event>) -> Result<Vec<Stored>, QueryError> {
        let received = rows.iter().filter(|row| suspects.contains(&row.event)).map(|row| row.received_at_ms);
        let first_ms = received.clone().min().unwrap_or(0).saturating_sub(self.span_ms).max(0);
        let last_ms = received.max().unwrap_or(0).saturating_add(self.span_ms);
        let suspects: Vec<&Event> = suspects.iter().collect();
        let mut stored = Vec::new();
        for suspects in suspects.chunks(IDS_A_QUESTION) {
            let ids: Vec<String> = suspects.iter().map(|(_, event)| format!("'{event}'")).collect();
            let tenants: HashSet<TenantId> = suspects.iter().map(|(tenant, _)| *tenant).collect();
            let tenants: Vec<String> = tenants.into_iter().map(|tenant| format!("'{tenant}'")).collect();
            let sql = format!(
                "SELECT tenant_id, event_id, wal_id, wal_seq, wal_ordinal, \
                 toUnixTimestamp64Milli(received_at) AS received_at_ms FROM {}.{} WHERE received_at BETWEEN fromUnixTimestamp64Milli({first_ms}, 'UTC') \
                 AND fromUnixTimestamp64Milli({last_ms}, 'UTC') AND tenant_id IN ({}) AND event_id IN ({})",
                quote_identifier(self.client.database()),
                table.name(),
                tenants.join(", "),
                ids.join(", ")
            );
            self.client.fetch_each::<Found>(&sql, PATIENCE, |found| stored.push(found.into())).await?;
        }
        Ok(stored)
    }
}

impl From<Found> for Stored {
    fn from(found: Found) -> Self {
        let Found { tenant_id, event_id, wal_id, wal_seq, wal_ordinal, received_at_ms } = found;
        let event = (TenantId(tenant_id), EventId(event_id));
        Self { event, place: (WalId(wal_id), wal_seq, wal_ordinal), received_at_ms }
    }
}

impl Logs {
    fn new(last_ms: impl Iterator<Item = (WalId, i64)>) -> Self {
        Self(last_ms.collect())
    }

    /// Rows of `logs` come in, received between these times; forgets those whose rows did not come for long before.
    fn take(&mut self, logs: &[WalId], (oldest_ms, newest_ms): (i64, i64), span_ms: i64) {
        for log in logs {
            let last_ms = self.0.entry(*log).or_insert(newest_ms);
            *last_ms = newest_ms.max(*last_ms);
        }
        let since_ms = oldest_ms.saturating_sub(span_ms.saturating_mul(WINDOWS));
        self.0.retain(|_, last_ms| *last_ms >= since_ms);
    }

    fn are_several(&self) -> bool {
        self.0.len() > 1
    }
}

impl Seen {
    fn new(began_ms: i64) -> Self {
        Self { seed: RandomState::new(), newer: Hashes::default(), older: Hashes::default(), began_ms }
    }

    /// Takes in an event of an earlier time.
    fn was(&mut self, event: Event) {
        self.older.insert(self.seed.hash_one(event));
    }

    /// Takes in an event; false when it may have been there before.
    fn is_new(&mut self, event: Event) -> bool {
        let hash = self.seed.hash_one(event);
        // Into the newer half in any case: it may be kept, because the one that is known is too old.
        self.newer.insert(hash) && !self.older.contains(&hash)
    }

    /// Makes room for rows that were received at `received_at_ms`.
    fn turn(&mut self, received_at_ms: i64, most: usize, span_ms: i64) {
        let age_ms = received_at_ms.saturating_sub(self.began_ms);
        if self.newer.len() >= most / 2 || age_ms > span_ms.saturating_mul(WINDOWS) {
            self.older = std::mem::take(&mut self.newer);
            self.began_ms = received_at_ms;
        }
    }

    /// Takes in `rows`; gives the events that may have been there before.
    fn examine(&mut self, rows: &[Row], most: usize, span_ms: i64) -> HashSet<Event> {
        let mut suspects = HashSet::new();
        for row in rows.iter().filter(|row| !row.event.1.0.is_nil()) {
            self.turn(row.received_at_ms, most, span_ms);
            if !self.is_new(row.event) {
                suspects.insert(row.event);
            }
        }
        suspects
    }
}

/// Reads the rows of a block, which would hold an async thread for many milliseconds, and takes them into `seen`.
async fn examine(
    mut seen: Seen,
    table: Table,
    body: bytes::Bytes,
    most: usize,
    span_ms: i64,
) -> Result<(Seen, Vec<Row>, HashSet<Event>), BinaryError> {
    let examined = tokio::task::spawn_blocking(move || {
        let (rows, _) = recount::read(table, &body)?;
        let suspects = seen.examine(&rows, most, span_ms);
        Ok((seen, rows, suspects))
    });
    examined.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Where those of `rows` entered that are copies: `stored` is what ClickHouse has of the events `suspects`.
fn decide(rows: &[Row], suspects: &HashSet<Event>, stored: &[Stored], span_ms: i64) -> HashSet<Place> {
    let mut there: HashMap<Event, Vec<(Place, i64)>> = HashMap::new();
    for Stored { event, place, received_at_ms } in stored {
        there.entry(*event).or_default().push((*place, *received_at_ms));
    }
    let mut copies = HashSet::new();
    for row in rows.iter().filter(|row| suspects.contains(&row.event)) {
        let (there, place) = (there.entry(row.event).or_default(), row.place());
        if there.iter().any(|(stored, _)| *stored == place) {
            continue;
        }
        let near = |received_at_ms: i64| {
            i64::try_from(received_at_ms.abs_diff(row.received_at_ms)).is_ok_and(|apart| apart <= span_ms)
        };
        if there.iter().any(|(_, received_at_ms)| near(*received_at_ms)) {
            copies.insert(place);
        } else {
            there.push((place, row.received_at_ms));
        }
    }
    copies
}

#[cfg(test)]
mod tests;

//! What ClickHouse is asked about a partition, and told, by threads that may block.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokio::runtime::Handle;

use super::repeats::Place;
use crate::{
    broker::Carries,
    clickhouse::{Client, QueryError, quote_identifier, quote_text},
    ids::WalId,
};

/// ClickHouse as the memory of a consumer group.
#[derive(Clone)]
pub struct Recall {
    client: Client,
    runtime: Handle,
}

/// A range that was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What is asked of a log: rows that this partition had before an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) partition: u32,
    /// Rows before this offset count; `None`: the partition has no commit, so there are none.
    pub(super) before: Option<u64>,
    pub(super) wal_id: WalId,
    /// A repeat was received when its first copy was: nothing older needs to be looked at.
    pub(super) received_since_ms: i64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Recorded {
    partition: u32,
    last: u64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Mark {
    rows: u64,
    seq: u64,
    ordinal: u32,
}

impl Recall {
    /// Asks through `client`. Must be made within a Tokio runtime.
    pub fn new(client: Client) -> Self {
        Self { client, runtime: Handle::current() }
    }

    fn table(&self, name: &str) -> String {
        format!("{}.{name}", quote_identifier(self.client.database()))
    }

    /// The highest place that the partition had of a log.
    pub(super) fn mark(&self, topic: &str, carries: Carries, question: &Question) -> Result<Option<Place>, QueryError> {
        let Question { partition, before: Some(before), wal_id, received_since_ms } = question else { return Ok(None) };
        let table = self.table(match carries {
            Carries::Events => "events",
            Carries::Parked => "parked_events",
        });
        let sql = format!(
            "SELECT count() AS rows, max((wal_seq, wal_ordinal)).1 AS seq, max((wal_seq, wal_ordinal)).2 AS ordinal \
             FROM {table} WHERE topic = {} AND partition = {partition} AND wal_id = '{wal_id}' AND offset < {before} \
             AND received_at >= fromUnixTimestamp64Milli({received_since_ms}, 'UTC')",
            quote_text(topic)
        );
        let marks = self.runtime.block_on(self.client.fetch::<Mark>(&sql))?;
        Ok(marks.first().filter(|mark| mark.rows > 0).map(|mark| (mark.seq, mark.ordinal)))
    }

    /// The ranges that were recorded last of those that begin at these offsets, by partition.
    pub(super) fn in_flight(
        &self,
        topic: &str,
        group: &str,
        starts: &[(u32, u64)],
    ) -> Result<BTreeMap<u32, u64>, QueryError> {
        let list =
            starts.iter().map(|(partition, first)| format!("({partition}, {first})")).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT partition, argMax(r.last, r.version) AS last FROM {} AS r \
             WHERE topic = {} AND consumers = {} AND (partition, first) IN ({list}) GROUP BY partition",
            self.table("sink_ranges"),
            quote_text(topic),
            quote_text(group)
        );
        let recorded = self.runtime.block_on(self.client.fetch::<Recorded>(&sql))?;
        Ok(recorded.into_iter().map(|Recorded { partition, last }| (partition, last)).collect())
    }

    /// Records ranges that are about to be given out, durably, each with its version.
    pub(super) fn record(&self, topic: &str, group: &str, ranges: &[(u32, InFlight, u64)]) -> Result<(), QueryError> {
        let (topic, group) = (quote_text(topic), quote_text(group));
        let values = ranges.iter().map(|(partition, InFlight { first, last }, version)| {
            format!("({topic}, {group}, {partition}, {first}, {last}, {version})")
        });
        let sql = format!(
            "INSERT INTO {} (topic, consumers, partition, first, last, version) SETTINGS async_insert = 0 VALUES {}",
            self.table("sink_ranges"),
            values.collect::<Vec<_>>().join(", ")
        );
        self.runtime.block_on(self.client.execute(&sql))
    }
}

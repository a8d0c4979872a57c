-- What the ledger asks ClickHouse: how many rows were ever inserted, and which events are not there for a good reason.
--
-- Rows leave `events` (they expire, they are erased, a later repeat takes their place), so what is there does not say what
-- was inserted. This says it: one row for each insert, tenant, log and expiry, counted under the insert's own token. `last`
-- is the highest offset among the rows: a range of a partition is counted whole or not at all, and so a ledger can stop at
-- any range. `source` is `events`, `parked` or `released` (a parked event that has gone on). After a day the rows of one
-- tenant, log, partition and expiry become one. Names nobody, and stays.

CREATE TABLE IF NOT EXISTS ${database}.ledger_inserted ${on_cluster}
(
    tenant_id UUID,
    wal_id UUID,
    source LowCardinality(String),
    topic LowCardinality(String),
    partition UInt32,
    expires_at DateTime('UTC'),
    last UInt64,
    rows SimpleAggregateFunction(sum, Int64),
    written SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT now('UTC')
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (tenant_id, wal_id, source, topic, partition, expires_at, last)
TTL written + INTERVAL 1 DAY
    GROUP BY tenant_id, wal_id, source, topic, partition, expires_at
    SET rows = sum(rows), last = max(last), written = max(written)
SETTINGS ${settings};

CREATE MATERIALIZED VIEW IF NOT EXISTS ${database}.ledger_events_mv ${on_cluster}
TO ${database}.ledger_inserted AS
SELECT tenant_id, wal_id, 'events' AS source, topic, partition, expires_at, max(e.offset) AS last, toInt64(count()) AS rows
FROM ${database}.events AS e
GROUP BY tenant_id, wal_id, topic, partition, expires_at;

CREATE MATERIALIZED VIEW IF NOT EXISTS ${database}.ledger_parked_mv ${on_cluster}
TO ${database}.ledger_inserted AS
SELECT
    tenant_id,
    wal_id,
    if(released = 0, 'parked', 'released') AS source,
    topic,
    partition,
    expires_at,
    max(p.offset) AS last,
    toInt64(count()) AS rows
FROM ${database}.parked_events AS p
GROUP BY tenant_id, wal_id, source, topic, partition, expires_at;

-- Events that are in no table, each by where it entered, so that whatever is said twice counts once: `expired` (its time was
-- over when it arrived), `erased` (on request), `dropped` (by a plugin, when it was parked before), `dead` (a dead letter). `stored` = 1: it was in
-- a table before. No ids but the tenant's.

CREATE TABLE IF NOT EXISTS ${database}.ledger_gone ${on_cluster}
(
    tenant_id UUID,
    wal_id UUID,
    wal_seq UInt64 CODEC(Delta, ZSTD),
    wal_ordinal UInt32 CODEC(Delta, ZSTD),
    topic LowCardinality(String),
    partition UInt32,
    offset UInt64 CODEC(Delta, ZSTD),
    expires_at DateTime('UTC'),
    reason LowCardinality(String),
    stored UInt8
)
ENGINE = ${replicated}ReplacingMergeTree(stored)
ORDER BY (tenant_id, wal_id, wal_seq, wal_ordinal)
SETTINGS ${settings};

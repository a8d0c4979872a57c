-- Events a minute by tenant and type.
--
-- The target is not partitioned: its time is the sender's, and one insert of history would touch more partitions than
-- an insert may. Its rows are few and merge well. It has a deduplication window of its own, without which a repeated
-- insert would count twice here and once in `events`. It outlives the retention of the events: it names nobody.

CREATE TABLE IF NOT EXISTS ${database}.events_per_minute ${on_cluster}
(
    tenant_id UUID,
    type LowCardinality(String),
    minute DateTime('UTC'),
    events SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (tenant_id, type, minute)
SETTINGS ${settings};

CREATE MATERIALIZED VIEW IF NOT EXISTS ${database}.events_per_minute_mv ${on_cluster}
TO ${database}.events_per_minute AS
SELECT tenant_id, type, toStartOfMinute(timestamp) AS minute, count() AS events
FROM ${database}.events
GROUP BY tenant_id, type, minute;

-- To be read: one row a minute, whatever has been merged.
CREATE VIEW IF NOT EXISTS ${database}.events_by_minute ${on_cluster} AS
SELECT tenant_id, type, minute, sum(m.events) AS events
FROM ${database}.events_per_minute AS m
GROUP BY tenant_id, type, minute;

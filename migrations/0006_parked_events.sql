-- Events that could not be run through a plugin, as they were sent, until `plugins reprocess` runs them through it.
--
-- A row is never changed and never deleted but with its retention. When the event has gone on (into `events`, to the
-- dead letters, or nowhere because the plugin drops it), a second row with the same key says so: released = 1, raw
-- empty. ReplacingMergeTree keeps the row of the highest `released`, so it needs no mutation, and a repeat does no harm.
--
-- Sort key: by plugin, because that is how rows are read back; then where the row entered, which identifies it for
-- ever, so that nothing but a repeat of the same row is taken for one.
--
-- Partitions and expiry are those of `events`: a parked event leaves with its tenant's retention, in whole parts. Both
-- rows of one event have the same `expires_at` and `received_at`, so they meet in one partition.
--
-- `raw` is of any shape and compresses as one: ZSTD. Rows are few, and nobody waits for their insert.

CREATE TABLE IF NOT EXISTS ${database}.parked_events ${on_cluster}
(
    tenant_id UUID,
    event_id UUID,
    timestamp DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    expires_at DateTime('UTC'),
    plugin LowCardinality(String),
    type LowCardinality(String),
    reason String,
    raw String CODEC(ZSTD),
    wal_id UUID,
    wal_seq UInt64,
    wal_ordinal UInt32,
    relayed_at DateTime64(3, 'UTC'),
    topic LowCardinality(String),
    partition UInt32,
    offset UInt64,
    released UInt8 DEFAULT 0,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ${replicated}ReplacingMergeTree(released)
PARTITION BY if(expires_at = toDateTime(4294967295, 'UTC'), toYYYYMM(received_at), toYYYYMMDDhhmmss(expires_at))
ORDER BY (plugin, tenant_id, received_at, wal_id, wal_seq, wal_ordinal)
TTL expires_at
SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 600, min_bytes_for_wide_part = 134217728, ${settings};

-- To be read: what is parked now.
CREATE VIEW IF NOT EXISTS ${database}.parked ${on_cluster} AS
SELECT * EXCEPT released
FROM ${database}.parked_events
FINAL
WHERE released = 0;

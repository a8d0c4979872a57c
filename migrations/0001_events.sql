-- Every event, once.
--
-- Sort key: only values that a repeat of the same event carries again, so that the engine (and FINAL) recognises it;
-- `timestamp` in it is the sender's own. Its hour keeps a tenant's rows of one type in order of time without making
-- the key as long as the table.
--
-- Partitions: one per value of `expires_at`, which acceptance rounds up to the hour, day or month, so that a part
-- holds rows of one expiry and goes as a whole (ttl_only_drop_parts). 4294967295 means "keep": such rows are
-- partitioned by the month in which they were received. `timestamp` has no part in it: an import of decades of
-- history in one insert makes no more parts than any other.
--
-- Types: no codecs beyond the default LZ4, and `properties` as text. Measured with rows of 590 bytes: the JSON type
-- doubled the CPU of an insert (and made a query of two properties six times cheaper, 0.5 to 0.08 CPU seconds a
-- million rows); Delta and NONE codecs saved neither CPU nor space; ZSTD for properties saved a tenth of the space
-- for a tenth more CPU. Parts below 128 MiB (an insert makes such) keep their columns in one file instead of two each:
-- 10.3 to 8.8 CPU seconds a million rows, most of it file creation and fsync.

CREATE TABLE IF NOT EXISTS ${database}.events ${on_cluster}
(
    tenant_id UUID,
    event_id UUID,
    timestamp DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    expires_at DateTime('UTC'),
    type LowCardinality(String),
    session_id String,
    user_id String,
    anonymous_id String,
    url String,
    path String,
    referrer String,
    title String,
    user_agent LowCardinality(String),
    screen LowCardinality(String),
    locale LowCardinality(String),
    timezone LowCardinality(String),
    name LowCardinality(String),
    element LowCardinality(String),
    selector String,
    text String,
    x Nullable(Float64),
    y Nullable(Float64),
    depth Nullable(Float64),
    direction LowCardinality(String),
    load_time_ms Nullable(Float64),
    lcp Nullable(Float64),
    fid Nullable(Float64),
    inp Nullable(Float64),
    cls Nullable(Float64),
    ttfb Nullable(Float64),
    fcp Nullable(Float64),
    dom_content_loaded Nullable(Float64),
    load_complete Nullable(Float64),
    context String,
    properties String,
    wal_id UUID,
    wal_seq UInt64,
    wal_ordinal UInt32,
    relayed_at DateTime64(3, 'UTC'),
    topic LowCardinality(String),
    partition UInt32,
    offset UInt64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    INDEX event_id_bloom event_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ${replicated}ReplacingMergeTree
PARTITION BY if(expires_at = toDateTime(4294967295, 'UTC'), toYYYYMM(received_at), toYYYYMMDDhhmmss(expires_at))
ORDER BY (tenant_id, type, toStartOfHour(timestamp), event_id)
TTL expires_at
SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 600, min_bytes_for_wide_part = 134217728, ${settings};

-- What was erased on request, for as long as a copy may still be on its way; and which sinks know of it.
--
-- A tombstone: rows of the tenant (all of them, or those of one person) that were received before a moment must never be
-- stored again, whatever a log, a topic or parked events still hold. Sinks read the tombstones before their first insert
-- and every few seconds; `kept_until` is longer than the topic's retention. Leaves in whole parts.

CREATE TABLE IF NOT EXISTS ${database}.erasures ${on_cluster}
(
    id UUID,
    tenant_id UUID,
    user_id String,
    anonymous_ids Array(String),
    before DateTime64(3, 'UTC'),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    kept_until DateTime('UTC')
)
ENGINE = ${replicated}MergeTree
PARTITION BY toYYYYMM(kept_until)
ORDER BY (tenant_id, id)
TTL kept_until
SETTINGS ttl_only_drop_parts = 1, ${settings};

-- What sinks say: that they are there, which tombstones they apply from now on (only those that are new to them), and
-- that they have stopped. One that has said nothing for a while inserts nothing either: it would first have to read the
-- tombstones.

CREATE TABLE IF NOT EXISTS ${database}.sink_reports ${on_cluster}
(
    sink UUID,
    at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    applies Array(UUID),
    stopped UInt8
)
ENGINE = ${replicated}MergeTree
PARTITION BY toYYYYMMDD(at)
ORDER BY (sink, at)
TTL toDateTime(at) + INTERVAL 1 DAY
SETTINGS ttl_only_drop_parts = 1, ${settings};

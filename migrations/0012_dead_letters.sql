-- What could not be stored: the original bytes, and why. A letter is written again under its id when something becomes of
-- it, with a higher `version` and without its bytes, so the table is read with FINAL, and a letter that a node delivers a
-- second time does not come back to life.
--
-- `state`: held, replayed (sent again, through the front), dropped (by an operator), removed (the size cap bit).
-- `form` says what the bytes are. Where they do not say whose they are, `tenant_id` is the highest UUID; `event_id` is nil
-- where they do not say which event they are.

CREATE TABLE IF NOT EXISTS ${database}.dead_letters ${on_cluster}
(
    letter_id UUID,
    tenant_id UUID,
    event_id UUID,
    state LowCardinality(String),
    version UInt64,
    died_at DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    expires_at DateTime('UTC'),
    stage LowCardinality(String),
    reason String,
    form LowCardinality(String),
    bytes String,
    size UInt64,
    user_id String,
    anonymous_id String,
    wal_id UUID,
    wal_seq UInt64,
    wal_ordinal UInt32,
    topic LowCardinality(String),
    partition UInt32,
    offset UInt64,
    line UInt32
)
ENGINE = ${replicated}ReplacingMergeTree(version)
ORDER BY (tenant_id, letter_id)
TTL expires_at
SETTINGS ${settings};

-- For brokers that drop the metadata of a consumer group's commits: which range of a partition is in flight, recorded before
-- its insert, so that whoever reads the partition next forms the same range again. Where the broker keeps metadata, nothing
-- is written here. `version` grows with the assignment and within it: the record of a member that was expelled loses.

CREATE TABLE IF NOT EXISTS ${database}.sink_ranges ${on_cluster}
(
    topic String,
    consumers String,
    partition UInt32,
    first UInt64,
    last UInt64,
    version UInt64,
    recorded_at DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = ${replicated}ReplacingMergeTree(version)
ORDER BY (topic, consumers, partition)
TTL recorded_at + INTERVAL 90 DAY
SETTINGS ${settings};

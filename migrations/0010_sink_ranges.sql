-- For brokers that drop the metadata of a consumer group's commits: which range of a partition is in flight, recorded before
-- its insert, so that whoever reads the partition next forms the same range again. Where the broker keeps metadata, nothing
-- is written here. One range of a partition begins at its committed offset, so that is what it is looked up by: a range that
-- was recorded after it, by a member that then could not commit, does not hide it. `version` grows with the assignment and
-- within it: of two ranges that begin at one offset, that of a member that was expelled loses.

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
ORDER BY (topic, consumers, partition, first)
TTL recorded_at + INTERVAL 30 DAY
SETTINGS ${settings};

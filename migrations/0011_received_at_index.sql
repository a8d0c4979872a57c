-- Rows of a moment are looked up by when they were received, which nearly follows the order of the parts: what a sink stored
-- before it was ended, and what it read before. Parts that are there already get the index with their next merge.

ALTER TABLE ${database}.events ${on_cluster}
    ADD INDEX IF NOT EXISTS received_at_range received_at TYPE minmax GRANULARITY 1;

ALTER TABLE ${database}.parked_events ${on_cluster}
    ADD INDEX IF NOT EXISTS received_at_range received_at TYPE minmax GRANULARITY 1;

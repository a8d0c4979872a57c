-- The events with repeats of an event id removed that came outside of the deduplication windows: exact, and slower
-- than `events`, because it merges while it reads.
CREATE VIEW IF NOT EXISTS ${database}.events_unique ${on_cluster} AS
SELECT *
FROM ${database}.events
FINAL;

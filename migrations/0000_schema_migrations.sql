-- How these files work
--
-- They are compiled into the engine and applied in the order of their numbers, at start and by
-- `ingestion-engine migrate`. A statement ends with a semicolon at the end of a line. Every statement is repeated
-- after a crash at the wrong moment and run by several nodes at once, so it must bear both: IF NOT EXISTS and the
-- like. A file that has been released never changes, its comments included: the next change is the next file.
--
--   ${database}    the database, quoted
--   ${on_cluster}  ON CLUSTER '...' when a cluster is configured, else nothing
--   ${replicated}  Replicated when a cluster is configured, else nothing: an engine's prefix
--   ${settings}    deduplication window, and on the embedded engine fsync: on every table that an insert reaches
--
-- This file is the exception: it is run at every start before all others and is not recorded.

CREATE DATABASE IF NOT EXISTS ${database} ${on_cluster};

CREATE TABLE IF NOT EXISTS ${database}.schema_migrations ${on_cluster}
(
    version UInt32,
    file String,
    statement UInt32,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ${replicated}MergeTree
ORDER BY (version, statement)
SETTINGS ${settings};

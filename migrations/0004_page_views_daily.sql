-- Page views and unique sessions by path and day (UTC). Without a session the user counts, else the anonymous id, else
-- the view itself, as in the choice of a partition.
--
-- The target is not partitioned: its time is the sender's, and one insert of history would touch more partitions than
-- an insert may. Its rows are few and merge well. It has a deduplication window of its own, without which a repeated
-- insert would count twice here and once in `events`. It outlives the retention of the events: it names nobody.

CREATE TABLE IF NOT EXISTS ${database}.page_views_daily ${on_cluster}
(
    tenant_id UUID,
    path String,
    day Date,
    views SimpleAggregateFunction(sum, UInt64),
    sessions AggregateFunction(uniq, String)
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (tenant_id, path, day)
SETTINGS ${settings};

CREATE MATERIALIZED VIEW IF NOT EXISTS ${database}.page_views_daily_mv ${on_cluster}
TO ${database}.page_views_daily AS
SELECT
    tenant_id,
    path,
    toDate(timestamp) AS day,
    count() AS views,
    uniqState(multiIf(
        session_id != '', session_id,
        user_id != '', user_id,
        anonymous_id != '', anonymous_id,
        toString(event_id))) AS sessions
FROM ${database}.events
WHERE type = 'pageview'
GROUP BY tenant_id, path, day;

-- To be read: one row a day and path.
CREATE VIEW IF NOT EXISTS ${database}.page_views_by_day ${on_cluster} AS
SELECT tenant_id, path, day, sum(v.views) AS views, uniqMerge(v.sessions) AS sessions
FROM ${database}.page_views_daily AS v
GROUP BY tenant_id, path, day;

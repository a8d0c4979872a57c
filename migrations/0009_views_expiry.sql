-- How long the views' aggregates are kept after they were last added to: counts by the minute for 90 days, those by the
-- day for two years. They name nobody and outlive the retention of the events; without an end they would grow for ever.
--
-- Counted from the last insert and not from the time of the events, which is the sender's: history that is imported
-- today would leave the views with the next merge. `written` fills itself, the views know nothing of it; it is in no
-- sort key, and the latest one counts.
--
-- The tables are not partitioned (see 0003), so their rows leave within merges, one by one, and not as parts. Rows that
-- were there before count from the next merge; nothing is rewritten now.

ALTER TABLE ${database}.events_per_minute ${on_cluster}
    ADD COLUMN IF NOT EXISTS written SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT now('UTC');

ALTER TABLE ${database}.events_per_minute ${on_cluster}
    MODIFY TTL written + INTERVAL 90 DAY
    SETTINGS materialize_ttl_after_modify = 0;

ALTER TABLE ${database}.page_views_daily ${on_cluster}
    ADD COLUMN IF NOT EXISTS written SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT now('UTC');

ALTER TABLE ${database}.page_views_daily ${on_cluster}
    MODIFY TTL written + INTERVAL 2 YEAR
    SETTINGS materialize_ttl_after_modify = 0;

ALTER TABLE ${database}.web_vitals_daily ${on_cluster}
    ADD COLUMN IF NOT EXISTS written SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT now('UTC');

ALTER TABLE ${database}.web_vitals_daily ${on_cluster}
    MODIFY TTL written + INTERVAL 2 YEAR
    SETTINGS materialize_ttl_after_modify = 0;

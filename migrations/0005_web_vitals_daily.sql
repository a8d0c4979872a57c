-- Web vitals by path and day (UTC): quantiles 0.5, 0.75, 0.9 and 0.99 of each, milliseconds except cls.
--
-- The target is not partitioned: its time is the sender's, and one insert of history would touch more partitions than
-- an insert may. Its rows are few and merge well. It has a deduplication window of its own, without which a repeated
-- insert would count twice here and once in `events`. It outlives the retention of the events: it names nobody.

CREATE TABLE IF NOT EXISTS ${database}.web_vitals_daily ${on_cluster}
(
    tenant_id UUID,
    path String,
    day Date,
    samples SimpleAggregateFunction(sum, UInt64),
    lcp AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64)),
    inp AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64)),
    fid AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64)),
    cls AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64)),
    ttfb AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64)),
    fcp AggregateFunction(quantilesTDigest(0.5, 0.75, 0.9, 0.99), Nullable(Float64))
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (tenant_id, path, day)
SETTINGS ${settings};

CREATE MATERIALIZED VIEW IF NOT EXISTS ${database}.web_vitals_daily_mv ${on_cluster}
TO ${database}.web_vitals_daily AS
SELECT
    tenant_id,
    path,
    toDate(timestamp) AS day,
    count() AS samples,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.lcp) AS lcp,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.inp) AS inp,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.fid) AS fid,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.cls) AS cls,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.ttfb) AS ttfb,
    quantilesTDigestState(0.5, 0.75, 0.9, 0.99)(e.fcp) AS fcp
FROM ${database}.events AS e
WHERE type = 'performance'
GROUP BY tenant_id, path, day;

-- To be read: one row a day and path; NaN where no sample had the measure.
CREATE VIEW IF NOT EXISTS ${database}.web_vitals_by_day ${on_cluster} AS
SELECT
    tenant_id,
    path,
    day,
    sum(w.samples) AS samples,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.lcp) AS lcp,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.inp) AS inp,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.fid) AS fid,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.cls) AS cls,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.ttfb) AS ttfb,
    quantilesTDigestMerge(0.5, 0.75, 0.9, 0.99)(w.fcp) AS fcp
FROM ${database}.web_vitals_daily AS w
GROUP BY tenant_id, path, day;

-- To be read: who was there, and when. Plain views over `events_unique`; they store nothing, and see nothing of a tenant
-- whose rows are gone. A condition on `tenant_id` reaches the sort key of `events`.

-- Events of somebody. `person` is the user, or the anonymous id of one who has not said who they are.
CREATE VIEW IF NOT EXISTS ${database}.person_events ${on_cluster} AS
SELECT *, if(user_id != '', user_id, anonymous_id) AS person
FROM ${database}.events_unique
WHERE user_id != '' OR anonymous_id != '';

-- One row for each person and day (UTC) on which they were there.
CREATE VIEW IF NOT EXISTS ${database}.activity ${on_cluster} AS
SELECT tenant_id, person, toDate(timestamp) AS day, count() AS events
FROM ${database}.person_events
GROUP BY tenant_id, person, day;

-- One row for each session. `referrer` and `entry_path` are those of its first event.
CREATE VIEW IF NOT EXISTS ${database}.sessions ${on_cluster} AS
SELECT
    tenant_id,
    session_id,
    min(timestamp) AS started,
    max(timestamp) AS ended,
    dateDiff('second', started, ended) AS seconds,
    count() AS events,
    countIf(type = 'pageview') AS views,
    argMin(path, timestamp) AS entry_path,
    argMin(referrer, timestamp) AS referrer,
    max(if(user_id != '', user_id, anonymous_id)) AS person
FROM ${database}.events_unique
WHERE session_id != ''
GROUP BY tenant_id, session_id;

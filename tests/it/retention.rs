//! How long rows stay: what a tenant's retention makes of them, how they leave, and how it is changed afterwards.

mod apply;

use std::collections::BTreeSet;

use ingestion_engine::{event::Retention, row::EXPIRES_NEVER};
use serde_json::json;

use crate::support::{
    clickhouse as support_clickhouse,
    engine::{ClickHouse, Engine, Setup, eventually, tenant_section},
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The id of the tenant of that number.
fn id(number: u32) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

/// A tenant called `tenant-<number>` with the key `key-<number>`.
fn section(number: u32, retention: &str) -> String {
    let settings = format!("name = \"tenant-{number}\"\nretention = \"{retention}\"");
    tenant_section(&id(number), &[&format!("key-{number}")], &settings)
}

/// Sends `events` page views of the tenant of that number.
fn send(engine: &Engine, number: u32, events: usize) {
    let body = json!(vec![json!({"type": "pageview", "path": "/"}); events]).to_string();
    let answer = engine.post(&format!("Bearer key-{number}"), &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Rows of the tenant of that number, put into `events` as they would stand there if they had been received `age`
/// seconds ago by a tenant of that retention.
fn put(clickhouse: &ClickHouse, number: u32, rows: usize, age: i64, retention: Retention) {
    let expires_at = retention.expires_at_sql();
    clickhouse.query(&format!(
        "INSERT INTO overwatch.events (tenant_id, event_id, timestamp, received_at, expires_at, type, path) \
         SELECT '{}', generateUUIDv4(number), received_at, received_at, {expires_at}, 'pageview', '/old' \
         FROM (SELECT number, toDateTime64(now() - {age}, 3, 'UTC') AS received_at FROM numbers({rows}))",
        id(number)
    ));
}

/// Active parts of `events`: partition, name and rows.
fn parts(clickhouse: &ClickHouse) -> BTreeSet<String> {
    let sql = "SELECT concat(partition, ' ', name, ' ', toString(rows)) FROM system.parts \
               WHERE database = 'overwatch' AND table = 'events' AND active";
    clickhouse.query(sql).lines().map(str::to_owned).collect()
}

#[test]
fn rows_leave_in_whole_parts_and_those_of_other_tiers_stay() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let free = tenant_section(&id(1), &["key-1"], "tier = \"free\"");
    let paid = tenant_section(&id(2), &["key-2"], "tier = \"paid\"");
    std::fs::write(setup.tenants_file(), free + &paid).unwrap();
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    for _ in 0..10 {
        send(&engine, 1, 10);
        send(&engine, 2, 10);
    }
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "200");
    let of_both =
        "SELECT count() FROM (SELECT _partition_id FROM overwatch.events GROUP BY 1 HAVING uniq(tenant_id) > 1)";
    assert_eq!(clickhouse.number(of_both), 0, "partitions are of one expiry");
    let wrong = format!(
        "SELECT countIf(expires_at != if(tenant_id = '{}', {}, {})) FROM overwatch.events",
        id(1),
        Retention::Seconds(DAY).expires_at_sql(),
        Retention::Seconds(90 * DAY).expires_at_sql()
    );
    assert_eq!(clickhouse.number(&wrong), 0);

    // Of every part that is there, whether its rows are past their time is looked at anew at the end of this time, which
    // the migration sets to 600 s: a bucket's parts are gone 10 minutes after its end plus the time of the drop itself,
    // well within an hour. Nothing here can wait for that.
    clickhouse.query("ALTER TABLE overwatch.events MODIFY SETTING merge_with_ttl_timeout = 1");
    clickhouse.query("SYSTEM STOP MERGES overwatch.events");
    let stay = parts(&clickhouse);
    // A bucket that ended an hour ago, one of yesterday, and one of 90 days.
    put(&clickhouse, 1, 30, 26 * HOUR, Retention::Seconds(DAY));
    put(&clickhouse, 1, 30, 50 * HOUR, Retention::Seconds(DAY));
    put(&clickhouse, 2, 30, 92 * DAY, Retention::Seconds(90 * DAY));
    assert_eq!(parts(&clickhouse).len(), stay.len() + 3);
    let views = clickhouse.query("SELECT sum(events) FROM overwatch.events_by_minute");
    clickhouse.query("SYSTEM START MERGES overwatch.events");
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "200");
    // Sent rows of one tier are of one hour or two, and may have been merged meanwhile; they are the same rows.
    let rows = |parts: &BTreeSet<String>| -> u64 {
        parts.iter().map(|part| part.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(rows(&parts(&clickhouse)), rows(&stay));
    assert_eq!(clickhouse.number("SELECT countIf(path = '/old') FROM overwatch.events"), 0);
    assert_eq!(clickhouse.number("SELECT count() FROM system.mutations WHERE database = 'overwatch'"), 0);
    assert_eq!(clickhouse.query("SELECT sum(events) FROM overwatch.events_by_minute"), views);
}

#[test]
fn fifty_retentions_in_one_go() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    // 1 to 16 hours and 8 to 24 days: buckets of an hour and of a day; then months, and for ever.
    let hours = (1..=16).map(|hours| (format!("{hours}h"), Retention::Seconds(hours * HOUR)));
    let days = (8..=24).map(|days| (format!("{days}d"), Retention::Seconds(days * DAY)));
    let months = (0..16).map(|n| (format!("{}d", 400 + 31 * n), Retention::Seconds((400 + 31 * n) * DAY)));
    let all: Vec<_> = hours.chain(days).chain(months).chain([("keep".to_owned(), Retention::Keep)]).collect();
    assert_eq!(all.len(), 50);
    let sections: Vec<_> = (0..).zip(&all).map(|(number, (text, _))| section(number, text)).collect();
    std::fs::write(setup.tenants_file(), sections.concat()).unwrap();
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    for _ in 0..2 {
        for number in 0..50 {
            send(&engine, number, 5);
        }
    }
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "500");
    for (number, (text, retention)) in (0..).zip(&all) {
        let sql = format!(
            "SELECT concat(toString(count()), ' ', toString(countIf(expires_at != {}))) FROM overwatch.events \
             WHERE tenant_id = '{}'",
            retention.expires_at_sql(),
            id(number)
        );
        assert_eq!(clickhouse.query(&sql), "10 0", "{text}");
    }
    // An insert touches at most 20 partitions (`sink::wal::fifty_expiries_make_ranges_of_at_most_twenty`), so there were more
    // of them than the 500 rows need.
    eventually("the inserts are counted", || engine.metric("ingestion_sink_inserts_total") >= 3);
    let partitions = clickhouse.number("SELECT uniqExact(_partition_id) FROM overwatch.events");
    assert!(partitions >= 50, "{partitions}");
}

#[tokio::test]
async fn clickhouse_and_the_engine_compute_the_same_expiry() {
    let clickhouse = support_clickhouse::ClickHouse::start().await;
    let client = clickhouse.client();
    // Around the ends of hours, days, months, years and leap days; and all over the time that the columns hold.
    let edges = [0, 951_782_400, 1_709_164_800, 1_709_251_200, 1_772_323_200, 1_798_761_600, 4_107_542_400];
    let near = [-DAY, -HOUR, -1, 0, 1, HOUR, DAY];
    let around = |edge: i64| near.map(|near| (edge + near) * 1000);
    let edges = edges.into_iter().flat_map(around).flat_map(|ms| [ms - 1, ms, ms + 1]);
    let spread = (0..2000).map(|n: i64| n * 2_134_567_891 % 4_291_747_200_000);
    let received: Vec<i64> = edges.chain(spread).filter(|ms| *ms >= 0).collect();
    let list: Vec<_> = received.iter().map(ToString::to_string).collect();
    let spans = [1, HOUR, DAY, 7 * DAY, 7 * DAY + 1, 8 * DAY, 90 * DAY, 366 * DAY, 367 * DAY, 730 * DAY, 25_000 * DAY];
    for retention in spans.map(Retention::Seconds).into_iter().chain([Retention::Keep]) {
        let sql = format!(
            "SELECT toUInt32({}) FROM (SELECT fromUnixTimestamp64Milli(toInt64(arrayJoin([{}])), 'UTC') AS received_at)",
            retention.expires_at_sql(),
            list.join(", ")
        );
        let computed = client.fetch::<u32>(&sql).await.unwrap();
        assert_eq!(computed.len(), received.len());
        for (ms, computed) in received.iter().zip(computed) {
            assert_eq!(computed, retention.expires_at(*ms), "{retention:?} from {ms}");
            assert!(retention != Retention::Keep || computed == EXPIRES_NEVER);
        }
    }
}

//! What one insert leaves in the tables.

use ingestion_engine::row::{
    EVENT_COLUMNS, EXPIRES_NEVER, EventRow, Json, ORIGIN_COLUMNS, POSITION_COLUMNS, Piece, Table, Text,
};

use super::{Running, assert_stored_once};
use crate::support::{
    clickhouse::{ClickHouse, DATABASE, number, texts},
    eventually,
    rows::{FAR, NOW_MS, event, range},
};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// 2105-12-31T23:59:59.999Z, the end of the last year that the columns hold.
const END_OF_2105_MS: i64 = 4_291_747_199_999;

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap()
}

async fn store_all(running: &Running, ranges: usize) {
    eventually("every range is committed", || async { running.committed() == ranges }).await;
}

#[tokio::test]
async fn a_range_is_one_block_and_one_part_of_each_table_partition() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    client.execute("SYSTEM STOP MERGES").await.unwrap();
    // More rows than the engine's own block size (65,409) and three expiries.
    let events = (0..90_000).map(|number| EventRow { expires_at: FAR + 3600 * small(number % 3), ..event(number) });
    let running = Running::start(client.clone(), [range(0, 0, events)]);
    store_all(&running, 1).await;
    let parts = "SELECT concat(partition, ' ', toString(rows)) FROM system.parts \
                 WHERE database = 'over-watch' AND table = 'events' AND active ORDER BY 1";
    let expected = ["21000101000000 30000", "21000101010000 30000", "21000101020000 30000"];
    assert_eq!(texts(&client, parts).await, expected);
    let others = "SELECT max(c) FROM (SELECT count() c FROM system.parts WHERE database = 'over-watch' \
                  AND table IN ('events_per_minute', 'page_views_daily', 'web_vitals_daily') GROUP BY table)";
    assert_eq!(number(&client, others).await, 1);
    assert_stored_once(&client, 90_000).await;
    assert_eq!((running.metrics.sink_rows.get(), running.metrics.sink_pending_rows.get()), (90_000, 0));
    running.stop().await;
}

#[tokio::test]
async fn rows_sent_by_column_are_those_sent_by_row() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    // So many that a column of numbers is a piece of its own. Every column once with a value and once without; texts beyond
    // 127 and 16,383 bytes, where their lengths grow.
    let events = (0..10_000).map(|number| {
        let text = |salt: u64, most: u64| {
            let letters = usize::try_from((number * 7919 + salt) % most).unwrap();
            Text("añ€".chars().cycle().take(letters).collect::<String>().into())
        };
        let value = |salt: u64| (number % (2 + salt) != 0).then(|| f64::from(small(number)) / 3.0 - 500.0);
        let long = if number == 17 { 30_000 } else { 300 };
        EventRow {
            user_id: text(1, 40),
            anonymous_id: text(2, 20),
            url: text(3, long),
            referrer: text(4, 150),
            title: text(5, 20),
            user_agent: text(6, 129),
            screen: text(7, 9),
            locale: text(8, 3),
            timezone: text(9, 12),
            name: text(10, 1000),
            element: text(11, 5),
            selector: text(12, 50),
            text: text(13, 50),
            direction: text(14, 2),
            x: value(0),
            y: value(1),
            depth: value(2),
            load_time_ms: value(3),
            lcp: value(4),
            fid: value(5),
            inp: value(6),
            cls: value(7),
            ttfb: value(8),
            fcp: value(9),
            dom_content_loaded: value(10),
            load_complete: value(11),
            context: Json::from(r#"{"a":1}"#),
            ..event(number)
        }
    });
    let range = range(0, 0, events);
    let columns = [EVENT_COLUMNS, ORIGIN_COLUMNS, POSITION_COLUMNS].concat().join(", ");
    let native = range.body.native(Table::Events).unwrap();
    for (table, format, body) in [
        ("by_row", "RowBinary", range.body.by_row()),
        ("by_column", "Native", native.into_iter().flat_map(Piece::into_parts).flatten().collect()),
    ] {
        client
            .execute(&format!("CREATE TABLE `{DATABASE}`.{table} AS `{DATABASE}`.events ENGINE = Memory"))
            .await
            .unwrap();
        let into = format!("INSERT INTO `{DATABASE}`.{table} ({columns}) FORMAT {format}");
        client.insert(&into, &[], body).await.unwrap();
    }
    for (one, other) in [("by_row", "by_column"), ("by_column", "by_row")] {
        let missing = format!(
            "SELECT count() FROM (SELECT {columns} FROM `{DATABASE}`.{one} EXCEPT SELECT {columns} FROM `{DATABASE}`.{other})"
        );
        assert_eq!(number(&client, &missing).await, 0, "in {one} and not in {other}");
        assert_eq!(number(&client, &format!("SELECT count() FROM `{DATABASE}`.{one}")).await, 10_000);
    }
}

#[tokio::test]
async fn the_same_token_twice_stores_rows_and_views_once() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let make =
        || range(3, 100, (0..4000).map(|number| EventRow { expires_at: FAR + small(number % 2), ..event(number) }));
    for _ in 0..2 {
        let running = Running::start(client.clone(), [make()]);
        store_all(&running, 1).await;
        running.stop().await;
    }
    assert_stored_once(&client, 4000).await;
    // Not by luck: another token stores the same rows again.
    let running = Running::start(client.clone(), [range(3, 101, (0..4000).map(event))]);
    store_all(&running, 1).await;
    assert_eq!(number(&client, "SELECT sum(events) FROM {db}.events_by_minute").await, 8000);
    assert_eq!(number(&client, "SELECT count() FROM {db}.events_unique").await, 4000);
    running.stop().await;
}

#[tokio::test]
async fn one_range_may_hold_every_day_of_the_past_and_the_last_one_of_the_future() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    // Every day from 1970 on for 57 years, and the last millisecond that there is.
    let days = (0..57 * 365).map(|day| day * DAY_MS).chain([END_OF_2105_MS]);
    let events = days.zip(0..).map(|(timestamp_ms, number)| EventRow { timestamp_ms, ..event(number) });
    let running = Running::start(client.clone(), [range(0, 0, events)]);
    store_all(&running, 1).await;
    assert_stored_once(&client, 57 * 365 + 1).await;
    let minutes =
        "SELECT toString(minute) FROM {db}.events_by_minute WHERE minute < '1970-01-02' OR minute > '2030-01-01'";
    let mut minutes = texts(&client, minutes).await;
    minutes.sort();
    assert_eq!(minutes, ["1970-01-01 00:00:00", "2105-12-31 23:59:00"]);
    let hour = "SELECT toString(toStartOfHour(max(timestamp))) FROM {db}.events";
    assert_eq!(texts(&client, hour).await, ["2105-12-31 23:00:00"]);
    running.stop().await;
}

#[tokio::test]
async fn rows_to_keep_are_partitioned_by_the_month_of_their_arrival() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let months = [NOW_MS, NOW_MS - 62 * DAY_MS];
    let events = (0..10).map(|number| EventRow {
        expires_at: EXPIRES_NEVER,
        received_at_ms: months[usize::try_from(number).unwrap() % 2],
        timestamp_ms: 5 * DAY_MS * i64::try_from(number).unwrap(),
        ..event(number)
    });
    let running = Running::start(client.clone(), [range(0, 0, events)]);
    store_all(&running, 1).await;
    let partitions = "SELECT DISTINCT partition FROM system.parts \
                      WHERE database = 'over-watch' AND table = 'events' AND active ORDER BY 1";
    assert_eq!(texts(&client, partitions).await, ["202607", "202609"]);
    client.execute(&format!("OPTIMIZE TABLE `{DATABASE}`.events FINAL")).await.unwrap();
    assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 10);
    running.stop().await;
}

#[tokio::test]
async fn expired_parts_go_and_the_others_stay() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let events = (0..90).map(|number| EventRow {
        // The first of them ended in 2001; such a row is stored like any other first.
        expires_at: [1_000_000_800, FAR, EXPIRES_NEVER][usize::try_from(number).unwrap() % 3],
        ..event(number)
    });
    let running = Running::start(client.clone(), [range(0, 0, events)]);
    store_all(&running, 1).await;
    client.execute(&format!("OPTIMIZE TABLE `{DATABASE}`.events FINAL")).await.unwrap();
    let left = "SELECT toString(expires_at) FROM {db}.events GROUP BY expires_at HAVING count() = 30 ORDER BY 1";
    eventually("the expired part is gone", || async { number(&client, "SELECT count() FROM {db}.events").await == 60 })
        .await;
    assert_eq!(texts(&client, left).await, ["2100-01-01 00:00:00", "2106-02-07 06:28:15"]);
    running.stop().await;
}

#[tokio::test]
async fn rows_whose_time_was_over_on_arrival_are_counted_and_not_stored() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let over = 1_700_000_000;
    let expiry = |number: u64| if number.is_multiple_of(4) { over } else { FAR };
    let mut mixed = range(0, 0, (0..100).map(|number| EventRow { expires_at: expiry(number), ..event(number) }));
    mixed.first_expiry = over;
    let mut all = range(1, 0, (200..210).map(|number| EventRow { expires_at: over, ..event(number) }));
    all.first_expiry = over;
    let running = Running::start(client.clone(), [mixed, all]);
    store_all(&running, 2).await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 75);
    assert_eq!(number(&client, "SELECT sum(events) FROM {db}.events_by_minute").await, 75);
    assert_eq!((running.metrics.sink_rows.get(), running.metrics.sink_inserts.get()), (75, 1));
    let text = running.metrics.render();
    assert!(text.contains("ingestion_sink_left_out_total{reason=\"expired\"} 35"), "{text}");
    running.stop().await;
}

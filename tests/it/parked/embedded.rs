//! On one node: two inserts of one range.

use ingestion_engine::{row::ParkedRow, sink::source::Source};

use super::{
    append, assert_mixed_stored_once, encode_event, encode_parked, limits, mixed, open_log, parked, store, wal_source,
};
use crate::support::{
    clickhouse::{ClickHouse, DATABASE, number, texts},
    engine::{Setup, eventually as eventually_blocking},
    eventually,
    rows::FAR,
};

#[tokio::test]
async fn a_range_holds_both_kinds_and_its_limits_count_both() {
    let home = tempfile::tempdir().unwrap();
    let (wal, reader) = open_log(&home.path().join("wal"));
    for n in 0..6 {
        append(&wal, mixed(n * 10)).await;
    }
    let mut source = wal_source(&wal, reader, home.path(), limits(25));
    for _ in 0..3 {
        let range = source.next().await.unwrap();
        assert_eq!((range.rows, range.parked.rows, range.all_rows()), (10, 10, 20), "two records of ten rows fit");
        source.commit(&range).await.unwrap();
    }
    append(&wal, [encode_event(0), encode_event(1)]).await;
    let range = source.next().await.unwrap();
    assert_eq!((range.rows, range.parked.rows), (2, 0));
    assert!(range.parked.body.by_row().is_empty());
    source.commit(&range).await.unwrap();
    // Expiries of parked rows count like those of others.
    for n in 0..30 {
        append(&wal, [encode_parked(&ParkedRow { expires_at: FAR + n, ..parked(n.into()) })]).await;
    }
    drop(source);
    wal.close().await.unwrap();
    let (wal, reader) = open_log(&home.path().join("wal"));
    let mut source = wal_source(&wal, reader, home.path(), limits(1000));
    // What the age had closed before is repeated first; none of the ranges is wider than twenty expiries.
    let mut rows = 0;
    while rows < 30 {
        let range = source.next().await.unwrap();
        assert!(range.parked.rows <= 20 && range.rows == 0, "{range:?}");
        rows += range.parked.rows;
        source.commit(&range).await.unwrap();
    }
    drop(source);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn both_kinds_are_stored_once_through_a_crash_of_clickhouse_and_of_the_sink() {
    let mut clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let home = tempfile::tempdir().unwrap();
    let total = 20_000;
    let (wal, reader) = open_log(&home.path().join("wal"));
    for n in 0..total / 10 {
        append(&wal, mixed(n * 10)).await;
    }
    let storing = super::Storing::start(wal_source(&wal, reader, home.path(), limits(1000)), client.clone());
    let metrics = storing.metrics.clone();
    eventually("some rows are parked", || async { metrics.sink_parked_rows.get() > 1000 }).await;
    clickhouse.kill();
    storing.task.abort();
    assert!(storing.task.await.unwrap_err().is_cancelled());
    wal.close().await.unwrap();
    clickhouse.launch().await;
    store(home.path(), &client, []).await;
    assert_mixed_stored_once(&client, total).await;
}

#[tokio::test]
async fn parked_rows_leave_with_the_retention_of_their_tenant() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let home = tempfile::tempdir().unwrap();
    let row = |number| ParkedRow {
        // The first of them ended in 2001.
        expires_at: [1_000_000_800, FAR, u32::MAX][usize::try_from(number % 3).unwrap()],
        ..parked(number)
    };
    store(home.path(), &client, [(0..90).map(|number| encode_parked(&row(number))).collect()]).await;
    let partitions = "SELECT DISTINCT partition FROM system.parts \
                      WHERE database = 'over-watch' AND table = 'parked_events' AND active AND rows > 0 ORDER BY 1";
    client.execute(&format!("OPTIMIZE TABLE `{DATABASE}`.parked_events FINAL")).await.unwrap();
    eventually("the expired part is gone", || async {
        number(&client, "SELECT count() FROM {db}.parked_events").await == 60
    })
    .await;
    assert_eq!(texts(&client, partitions).await, ["202609", "21000101000000"]);
}

#[test]
fn an_engine_that_is_killed_stores_what_its_log_had_parked_once() {
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (wal, reader) = open_log(&home.path().join("data/wal"));
        drop(reader);
        for n in 0..3000 {
            append(&wal, mixed(n * 10)).await;
        }
        wal.close().await.unwrap();
    });
    // The smallest ranges that there are, so that the kill comes between many inserts.
    let setup = Setup::new(home.path()).config("[sink]\nmax_rows = 1000");
    let mut engine = setup.start();
    eventually_blocking("something is parked", || engine.metric("ingestion_sink_parked_rows_total") > 1000);
    engine.kill();
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.parked", "15000");
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "15000");
    assert_eq!(clickhouse.number("SELECT count() FROM overwatch.parked_events"), 15_000, "without FINAL, too");
    assert_eq!(clickhouse.number("SELECT uniqExact(wal_id, wal_seq, wal_ordinal) FROM overwatch.parked"), 15_000);
}

//! ClickHouse goes away, comes back, refuses: every row is stored once in the end, and health says why it is not yet.

use std::sync::Arc;

use ingestion_engine::{
    clickhouse::{Compression, MIGRATIONS, Migrator},
    dead_letters::{DeadLetter, DeadLetters, Form, Limits, Stage},
    health::State,
    ids::WalId,
    sink::source::Range,
};
use uuid::Uuid;

use super::{Running, assert_stored_once};
use crate::support::{
    clickhouse::{ClickHouse, DATABASE, client, number, template},
    eventually,
    rows::{event, range},
};

#[tokio::test]
async fn clickhouse_killed_in_the_middle_of_inserts_has_every_row_once() {
    let mut clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    // Large enough that each kill hits inserts that are running; partitions 0 and 1 are stored side by side.
    let ranges: Vec<_> =
        (0..24_u64).map(|n| range(u32::from(n % 2 == 1), n * 4000, (n * 4000..(n + 1) * 4000).map(event))).collect();
    let running = Running::start(client.clone(), ranges);
    for progress in [3, 9, 15] {
        eventually("some ranges are committed", || async { running.committed() >= progress }).await;
        clickhouse.kill();
        eventually("health says so", || async { running.health.current().unwrap().state == State::Down }).await;
        assert!(running.reason().contains("cannot be reached"), "{}", running.reason());
        clickhouse.launch().await;
    }
    eventually("every range is committed", || async { running.committed() == 24 }).await;
    assert_eq!(running.health.current().unwrap().state, State::Up);
    assert_stored_once(&client, 96_000).await;
    running.stop().await;
}

#[tokio::test]
async fn a_view_that_fails_is_named_and_nothing_doubles_when_it_is_gone() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    for sql in [
        "CREATE TABLE {db}.poison (x UInt8) ENGINE = MergeTree ORDER BY x",
        "CREATE MATERIALIZED VIEW {db}.poison_mv TO {db}.poison AS \
         SELECT throwIf(type = 'custom', 'no custom events here') AS x FROM {db}.events",
    ] {
        client.execute(&sql.replace("{db}", &format!("`{DATABASE}`"))).await.unwrap();
    }
    let ranges = (0..4).map(|n| range(n, 0, (u64::from(n) * 100..u64::from(n + 1) * 100).map(event)));
    let running = Running::start(client.clone(), ranges);
    eventually("health names the view", || async { running.reason().contains("poison_mv") }).await;
    assert_eq!(running.health.current().unwrap().state, State::Degraded);
    assert!(running.reason().contains("no custom events here"), "{}", running.reason());
    assert!(running.reason().contains("range events:"), "{}", running.reason());
    assert_eq!(running.committed(), 0);

    client.execute(&format!("DROP TABLE `{DATABASE}`.poison_mv")).await.unwrap();
    eventually("everything flows", || async { running.committed() == 4 }).await;
    assert_stored_once(&client, 400).await;
    assert_eq!(running.health.current().unwrap().state, State::Up);
    running.stop().await;
}

#[tokio::test]
async fn lost_tables_are_reported_as_such_and_their_return_is_enough() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.client();
    let running = Running::start(client.clone(), [range(0, 0, (0..100).map(event))]);
    eventually("health says what is missing", || async { running.reason().contains("ingestion-engine migrate") }).await;
    assert_eq!(running.health.current().unwrap().state, State::Down);
    clickhouse.migrated().await;
    eventually("the range is committed", || async { running.committed() == 1 }).await;
    assert_stored_once(&client, 100).await;
    running.stop().await;
}

#[tokio::test]
async fn a_range_that_is_no_rows_waits_and_others_flow() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let mut torn = range(0, 0, (0..100).map(event));
    let body = torn.body.by_row();
    torn.body = body.slice(..body.len() - 5).into();
    let running = Running::start(client.clone(), [torn, range(1, 0, (100..200).map(event))]);
    eventually("the other partition is committed", || async { running.committed() == 1 }).await;
    eventually("health names the range", || async { running.reason().contains("range events:0:0-99") }).await;
    assert!(running.reason().contains("row ends inside column offset"), "{}", running.reason());
    assert_eq!(running.health.current().unwrap().state, State::Degraded);
    assert_stored_once(&client, 100).await;
    running.stop().await;
}

#[tokio::test]
async fn a_revoked_range_is_given_up_and_its_new_owner_stores_it_once() {
    let mut clickhouse = ClickHouse::absent();
    let ours = range(0, 0, (0..100).map(event));
    let revoked = ours.revoked.clone();
    let running = Running::start(clickhouse.client(), [ours]);
    eventually("the insert fails", || async { running.health.current().unwrap().state == State::Down }).await;
    revoked.cancel();
    eventually("the range is given up", || async { running.log.abandoned.lock().len() == 1 }).await;
    assert_eq!((running.committed(), running.metrics.sink_pending_rows.get()), (0, 0));
    assert_eq!(running.health.current().unwrap().state, State::Up);
    running.stop().await;

    clickhouse.launch().await;
    let client = clickhouse.migrated().await;
    let running = Running::start(client.clone(), [range(0, 0, (0..100).map(event))]);
    eventually("the new owner stores it", || async { running.committed() == 1 }).await;
    assert_stored_once(&client, 100).await;
    running.stop().await;
}

#[tokio::test]
async fn stopping_finishes_a_running_insert_and_leaves_one_that_waits() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let running = Running::start(client.clone(), [range(0, 0, (0..60_000).map(event)), range(0, 60_000, [event(0)])]);
    eventually("the first is taken", || async { running.metrics.sink_pending_rows.get() == 60_000 }).await;
    let log = running.log.clone();
    running.stop().await;
    assert_eq!(log.committed.lock().len(), 1, "the running one, and no other");
    assert_stored_once(&client, 60_000).await;

    let running = Running::start(ClickHouse::absent().client(), [range(0, 0, [event(0)])]);
    eventually("the insert fails", || async { running.health.current().unwrap().state == State::Down }).await;
    let log = running.log.clone();
    running.stop().await;
    assert_eq!(log.committed.lock().len() + log.abandoned.lock().len(), 0);
}

#[tokio::test]
async fn compressed_inserts_store_the_same() {
    let clickhouse = ClickHouse::start().await;
    let plain = clickhouse.migrated().await;
    let compressing = client(&format!("http://127.0.0.1:{}", clickhouse.port()), Compression::Lz4);
    let running = Running::start(compressing, [range(0, 0, (0..20_000).map(event))]);
    eventually("the range is committed", || async { running.committed() == 1 }).await;
    assert_stored_once(&plain, 20_000).await;
    assert_eq!(
        number(&plain, "SELECT countIf(JSONExtractFloat(properties, 'price') = 12.5) FROM {db}.events").await,
        20_000
    );
    running.stop().await;
}

#[tokio::test]
async fn a_clickhouse_that_comes_back_empty_is_filled_only_once_its_views_are_there() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    client.execute(&format!("DROP DATABASE `{DATABASE}` SYNC")).await.unwrap();
    let running = Running::start(client.clone(), [range(0, 0, (0..100).map(event))]);
    eventually("health says what is missing", || async { running.reason().contains("is missing") }).await;
    // As another node would leave it if it stopped half-way: the table is there, the views are not.
    Migrator::with_migrations(client.clone(), template(), MIGRATIONS[..2].to_vec()).apply().await.unwrap();
    eventually("health names the views", || async { running.reason().contains("0003_events_per_minute.sql") }).await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 0);
    clickhouse.migrated().await;
    eventually("the range is committed", || async { running.committed() == 1 }).await;
    assert_stored_once(&client, 100).await;
    running.stop().await;
}

#[tokio::test]
async fn what_an_earlier_process_made_a_dead_letter_of_is_left_out_of_the_repeat() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let letters = |range: &Range, rows: &[u64]| {
        let home = tempfile::tempdir().unwrap();
        let letters = DeadLetters::new(home.path().join("letters"), Limits::default(), Arc::default());
        for row in rows {
            let letter = DeadLetter {
                stage: Stage::Sink,
                reason: "refused".to_owned(),
                form: Form::Event,
                bytes: b"",
                origin: Some((WalId(Uuid::from_u128(7)), range.id.first + row, 0)),
                message: None,
                about: None,
            };
            letters.keep(&[letter]).unwrap();
        }
        (home, letters)
    };
    // The cause is gone by now: ClickHouse would take them. One range was stored without them, the other not yet.
    for (place, stored_before) in [(0_u64, false), (1, true)] {
        let of = || range(0, place * 100, (place * 100..(place + 1) * 100).map(event));
        let (_home, letters) = letters(&of(), &[3, 50]);
        if stored_before {
            let running = Running::start(client.clone(), [of()]);
            eventually("it is stored", || async { running.committed() == 1 }).await;
            running.stop().await;
            client
                .execute(&format!(
                    "ALTER TABLE `{DATABASE}`.events DELETE WHERE wal_seq IN (103, 150) SETTINGS mutations_sync = 2"
                ))
                .await
                .unwrap();
        }
        let running = Running::start_with_letters(client.clone(), [Range { replayed: true, ..of() }], letters);
        eventually("it is committed", || async { running.committed() == 1 }).await;
        running.stop().await;
        let there =
            format!("SELECT count() FROM {{db}}.events WHERE wal_seq BETWEEN {} AND {}", place * 100, place * 100 + 99);
        assert_eq!(number(&client, &there).await, 98, "range {place}");
    }
}

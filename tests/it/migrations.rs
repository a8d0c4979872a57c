//! The schema against the real engine.

use ingestion_engine::{
    clickhouse::{MIGRATIONS, MigrateError, Migration, Migrator, Mode, Template, wait_and_migrate},
    health::{Health, State},
    row::{EVENT_COLUMNS, ORIGIN_COLUMNS, PARKED_COLUMNS, POSITION_COLUMNS},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    clickhouse::{ClickHouse, DATABASE, number, template, texts},
    eventually,
};

const RECORDS: &str = "SELECT count() FROM {db}.schema_migrations";

fn all_files() -> Vec<&'static str> {
    MIGRATIONS.iter().map(|migration| migration.file).collect()
}

#[tokio::test]
async fn the_schema_is_applied_once_and_verified() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.client();
    let migrator = Migrator::new(client.clone(), template());
    let missing = migrator.verify().await.unwrap_err().to_string();
    assert!(missing.contains("0001_events.sql, 0002_events_unique.sql"), "{missing}");

    assert_eq!(migrator.apply().await.unwrap(), all_files());
    let records = number(&client, RECORDS).await;
    assert_eq!(migrator.apply().await.unwrap(), Vec::<&str>::new());
    migrator.verify().await.unwrap();
    assert_eq!(number(&client, RECORDS).await, records);

    // Every table that an insert reaches syncs it and remembers its token.
    let sql = "SELECT create_table_query FROM system.tables \
               WHERE database = 'over-watch' AND engine LIKE '%MergeTree' AND name NOT LIKE '.%'";
    let tables = texts(&client, sql).await;
    assert_eq!(tables.len(), 12, "{tables:?}");
    for table in tables {
        assert!(table.contains("fsync_after_insert = 1") && table.contains("old_parts_lifetime = 480"), "{table}");
        assert!(table.contains("non_replicated_deduplication_window = 10000"), "{table}");
    }
}

#[tokio::test]
async fn the_tables_have_the_columns_that_rows_have() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    for (table, columns, more) in [
        ("events", EVENT_COLUMNS, &["inserted_at"][..]),
        ("parked_events", PARKED_COLUMNS, &["released", "inserted_at"]),
    ] {
        let sql = format!(
            "SELECT name FROM system.columns WHERE database = 'over-watch' AND table = '{table}' ORDER BY position"
        );
        let expected: Vec<_> =
            columns.iter().chain(ORIGIN_COLUMNS).chain(POSITION_COLUMNS).chain(more).copied().collect();
        assert_eq!(texts(&client, &sql).await, expected);
    }
}

#[tokio::test]
async fn a_crash_between_two_statements_is_made_good() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let migrator = Migrator::new(client.clone(), template());
    let records = number(&client, RECORDS).await;
    // The statement ran and the crash came before its record, for every statement of the third file.
    for first_lost in 1..=3 {
        let lost = format!(
            "ALTER TABLE `{DATABASE}`.schema_migrations DELETE WHERE version > 3 OR version = 3 AND statement >= {first_lost} \
             SETTINGS mutations_sync = 2"
        );
        client.execute(&lost).await.unwrap();
        let missing = migrator.verify().await.unwrap_err();
        assert!(matches!(missing, MigrateError::Missing { .. }), "{missing}");
        assert_eq!(migrator.apply().await.unwrap(), all_files()[2..].to_vec());
        assert_eq!(number(&client, RECORDS).await, records);
    }
}

#[tokio::test]
async fn two_nodes_may_start_at_once() {
    let clickhouse = ClickHouse::start().await;
    let migrators: Vec<_> = (0..4).map(|_| Migrator::new(clickhouse.client(), template())).collect();
    let applied = futures_util::future::join_all(migrators.iter().map(Migrator::apply)).await;
    for result in applied {
        result.unwrap();
    }
    migrators[0].verify().await.unwrap();
}

#[tokio::test]
async fn a_changed_file_and_a_newer_schema_are_refused_by_name() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;

    let mut changed = MIGRATIONS.to_vec();
    changed[1] = Migration { sql: "SELECT 1;\n", ..changed[1].clone() };
    let changed = Migrator::with_migrations(client.clone(), template(), changed);
    for refused in [changed.apply().await.map(drop), changed.verify().await] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, MigrateError::Changed { file, .. } if file == "0002_events_unique.sql"), "{error}");
    }

    let older = Migrator::with_migrations(client.clone(), template(), MIGRATIONS[..3].to_vec());
    let error = older.apply().await.unwrap_err();
    assert!(error.to_string().contains("0004_page_views_daily.sql, 0005_web_vitals_daily.sql"), "{error}");

    // No waiting mends it: the caller is told.
    let component = Health::default().component("clickhouse");
    let result = wait_and_migrate(&client, &changed, Mode::Auto, &component, &CancellationToken::new()).await;
    assert!(matches!(result, Err(MigrateError::Changed { .. })), "{result:?}");
    assert_eq!(component.current().unwrap().state, State::Down);
}

#[tokio::test]
async fn a_failed_statement_is_named_and_what_ran_before_stays() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.client();
    let sql = "CREATE TABLE IF NOT EXISTS ${database}.a (x UInt8) ENGINE = ${replicated}MergeTree ORDER BY x;\n\
               -- the second\nCREATE TABLE IF NOT EXISTS ${database}.b (x Nothing2) ENGINE = MergeTree ORDER BY x;\n";
    let broken = vec![Migration { version: 1, file: "0001_broken.sql", sql }];
    let plain = Template { embedded: false, ..template() };
    let error = Migrator::with_migrations(client.clone(), plain, broken).apply().await.unwrap_err();
    assert!(error.to_string().starts_with("0001_broken.sql, statement 2: Code: 50"), "{error}");
    assert_eq!(number(&client, RECORDS).await, 1);
}

#[tokio::test]
async fn clickhouse_may_come_later() {
    let mut clickhouse = ClickHouse::absent();
    let client = clickhouse.client();
    let health = Health::default();
    let component = health.component("clickhouse");
    let waiting = tokio::spawn({
        let (client, component) = (client.clone(), component.clone());
        async move {
            let migrator = Migrator::new(client.clone(), template());
            wait_and_migrate(&client, &migrator, Mode::Auto, &component, &CancellationToken::new()).await
        }
    });
    let state = || component.current().unwrap().state;
    eventually("health says that ClickHouse is away", || async { state() == State::Down }).await;
    let reason = component.current().unwrap().reason.unwrap();
    assert!(reason.contains("cannot be reached"), "{reason}");

    clickhouse.launch().await;
    waiting.await.unwrap().unwrap();
    assert_eq!(state(), State::Up);
    Migrator::new(client, template()).verify().await.unwrap();
}

#[tokio::test]
async fn verify_waits_for_somebody_elses_migration_and_changes_nothing() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.client();
    let component = Health::default().component("clickhouse");
    let cancel = CancellationToken::new();
    let waiting = tokio::spawn({
        let (client, component, cancel) = (client.clone(), component.clone(), cancel.clone());
        async move {
            let migrator = Migrator::new(client.clone(), template());
            wait_and_migrate(&client, &migrator, Mode::Verify, &component, &cancel).await
        }
    });
    let reason = || component.current().unwrap().reason.unwrap_or_default();
    eventually("health names what is missing", || async { reason().contains("0005_web_vitals_daily.sql") }).await;
    assert_eq!(number(&client, "SELECT count() FROM system.databases WHERE name = 'over-watch'").await, 0);
    clickhouse.migrated().await;
    waiting.await.unwrap().unwrap();
    assert_eq!(component.current().unwrap().state, State::Up);
}

#[tokio::test]
async fn every_statement_is_valid_for_a_cluster_too() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.client();
    let cluster = Template { cluster: Some("main".into()), embedded: false, ..template() };
    let mut creations = 0;
    for migration in MIGRATIONS {
        for statement in migration.sql.split(";\n").filter(|statement| statement.contains("CREATE")) {
            let statement = cluster.render(statement);
            let creation = &statement[statement.find("CREATE").unwrap()..];
            assert!(creation.contains("ON CLUSTER 'main'"), "{creation}");
            assert!(!creation.contains("MergeTree") || creation.contains("ENGINE = Replicated"), "{creation}");
            // The embedded engine has no cluster to run it on, but the whole grammar.
            client.execute(&format!("EXPLAIN AST {creation}")).await.unwrap();
            creations += 1;
        }
    }
    assert_eq!(creations, 24);
}

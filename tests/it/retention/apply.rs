//! `ingestion-engine retention apply`.

use ingestion_engine::event::Retention;
use serde_json::{Value, json};

use super::{DAY, HOUR, id, put, section, send};
use crate::support::{
    engine::{ClickHouse, Setup},
    process::ToEnd,
};

/// Changes the tenants' file: tenant 1 has `retention`, tenant 2 keeps its 90 days.
fn write(setup: &Setup, retention: &str) {
    std::fs::write(setup.tenants_file(), section(1, retention) + &section(2, "90d")).unwrap();
}

/// The report of a run for tenant 1.
fn apply(setup: &Setup) -> Value {
    let output = setup.command("retention apply tenant-1 --json").to_end();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Rows of tenant 1 in `table`, their ids, and how many have another expiry than that of `retention`.
fn state(clickhouse: &ClickHouse, table: &str, retention: Retention) -> String {
    clickhouse.query(&format!(
        "SELECT concat(toString(count()), ' ', toString(uniqExact(event_id)), ' ', toString(countIf(expires_at != {}))) \
         FROM overwatch.{table} WHERE tenant_id = '{}'",
        retention.expires_at_sql(),
        id(1)
    ))
}

/// Everything of tenant 2, and the sums of the views.
fn untouched(clickhouse: &ClickHouse) -> (String, String) {
    let other = format!(
        "SELECT count(), groupBitXor(sipHash64(event_id, expires_at)) FROM overwatch.events WHERE tenant_id = '{}'",
        id(2)
    );
    let views = "SELECT (SELECT sum(events) FROM overwatch.events_by_minute), \
                 (SELECT sum(views) FROM overwatch.page_views_by_day)";
    (clickhouse.query(&other), clickhouse.query(views))
}

/// Names of copies that are left.
fn copies(clickhouse: &ClickHouse) -> String {
    clickhouse.query("SELECT name FROM system.tables WHERE database = 'overwatch' AND name LIKE 'retention%'")
}

const FREE: Retention = Retention::Seconds(DAY);
const PAID: Retention = Retention::Seconds(90 * DAY);

#[test]
fn a_tenants_stored_rows_get_its_new_retention() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    write(&setup, "90d");
    let mut engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.schema_migrations WHERE version = 9", "6");
    // As a plugin's table is made; it is filled by a view of `events`, which must not see the rows a second time.
    clickhouse.query(
        "CREATE TABLE overwatch.plugin_p_t (tenant_id UUID, event_id UUID, received_at DateTime64(3, 'UTC'), \
             expires_at DateTime('UTC'), `the path` String) ENGINE = ReplacingMergeTree \
         PARTITION BY if(expires_at = toDateTime(4294967295, 'UTC'), toYYYYMM(received_at), toYYYYMMDDhhmmss(expires_at)) \
         ORDER BY (`tenant_id`, `the path`, `event_id`) TTL expires_at SETTINGS ttl_only_drop_parts = 1",
    );
    clickhouse.query(
        "CREATE MATERIALIZED VIEW overwatch.plugin_p_t_mv TO overwatch.plugin_p_t AS \
         SELECT tenant_id, event_id, received_at, expires_at, path AS `the path` FROM overwatch.events",
    );
    send(&engine, 1, 20);
    send(&engine, 2, 20);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "40");
    for number in [1, 2] {
        put(&clickhouse, number, 30, 3 * HOUR, PAID);
        put(&clickhouse, number, 40, 10 * DAY, PAID);
    }
    // Waiting for a plugin for three hours, one of them released since; and for ten days.
    for (age, released) in [(3 * HOUR, 0), (3 * HOUR, 1), (10 * DAY, 0)] {
        clickhouse.query(&format!(
            "INSERT INTO overwatch.parked_events (tenant_id, event_id, received_at, expires_at, plugin, released) \
             SELECT '{}', toUUID('00000000-0000-0000-0000-0000000000ff'), received_at, {}, 'p', {released} \
             FROM (SELECT toDateTime64(toStartOfHour(now()) - {age}, 3, 'UTC') AS received_at)",
            id(1),
            PAID.expires_at_sql()
        ));
    }
    assert_eq!(state(&clickhouse, "events", PAID), "90 90 0");
    let before = untouched(&clickhouse);

    write(&setup, "24h");
    let report = apply(&setup);
    let events =
        json!({"table": "events", "rewritten": 50, "dropped": 40, "kept_until": report["tables"][0]["kept_until"]});
    assert_eq!(report["tables"][0], events, "{report}");
    assert_eq!(report["tables"][1]["table"], "parked_events");
    assert_eq!(report["tables"][1]["dropped"], 1);
    assert_eq!((&report["tables"][2]["rewritten"], &report["tables"][2]["dropped"]), (&json!(50), &json!(40)));
    assert_eq!(state(&clickhouse, "plugin_p_t", FREE), "50 50 0");
    assert_eq!((&report["tenant"], &report["retention"]), (&json!(id(1)), &json!("1d")));
    assert_eq!(state(&clickhouse, "events", FREE), "50 50 0");
    assert_eq!(clickhouse.number("SELECT count() FROM overwatch.parked"), 0, "what was released stays so");
    assert_eq!(state(&clickhouse, "parked_events FINAL", FREE), "1 1 0");
    assert_eq!((untouched(&clickhouse), copies(&clickhouse)), (before.clone(), String::new()));
    assert_eq!(apply(&setup)["tables"], json!([]), "nothing is left to do");

    // Without an engine it starts ClickHouse for itself.
    write(&setup, "keep");
    assert!(engine.terminate().success());
    let report = apply(&setup);
    assert_eq!((&report["tables"][0]["rewritten"], &report["tables"][0]["kept_until"]), (&json!(50), &json!("never")));
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    for table in ["events", "plugin_p_t"] {
        assert_eq!(state(&clickhouse, table, Retention::Keep), "50 50 0");
    }
    assert_eq!((untouched(&clickhouse), copies(&clickhouse)), (before, String::new()));
}

#[test]
fn a_run_that_ended_at_any_step_is_finished_by_the_next() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    write(&setup, "24h");
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.schema_migrations WHERE version = 9", "6");
    // More than one partition, before and after.
    put(&clickhouse, 1, 20, 10, FREE);
    put(&clickhouse, 1, 20, 3 * HOUR, FREE);
    put(&clickhouse, 1, 20, 20 * HOUR, FREE);
    put(&clickhouse, 2, 20, 3 * HOUR, PAID);
    // Events that wait for a plugin and are released while a run is not finished.
    let received = clickhouse.number("SELECT toUnixTimestamp(now() - 7200)");
    let park = |event: u32, released: u8, retention: Retention| {
        clickhouse.query(&format!(
            "INSERT INTO overwatch.parked_events (tenant_id, event_id, received_at, expires_at, plugin, wal_seq, released) \
             SELECT '{}', generateUUIDv4(), received_at, {}, 'p', {event}, {released} \
             FROM (SELECT toDateTime64({received}, 3, 'UTC') AS received_at)",
            id(1),
            retention.expires_at_sql()
        ));
    };
    let mut rows = 60;
    let (mut old, mut new) = ((FREE, "24h"), (PAID, "90d"));
    for step in 1..=5 {
        write(&setup, new.1);
        park(step, 0, old.0);
        let output = setup.command(&format!("retention apply tenant-1 --stop-after {step}")).to_end();
        assert_eq!(output.status.code(), Some(3), "step {step}: {output:?}");
        assert_ne!(copies(&clickhouse), "", "step {step}");
        // What is in a complete copy only would be erased from nowhere, and come back.
        if step == 3 {
            let output = setup.command("tenants purge tenant-1").to_end();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && said.contains("was not finished: run it again first"), "{said}");
        }
        // Received before the first run, stored after it: it came out of the log late.
        put(&clickhouse, 1, 1, 2 * HOUR, old.0);
        park(step, 1, old.0);
        rows += 1;
        let before = untouched(&clickhouse);
        apply(&setup);
        assert_eq!(state(&clickhouse, "events", new.0), format!("{rows} {rows} 0"), "step {step}");
        assert_eq!((untouched(&clickhouse), copies(&clickhouse)), (before, String::new()), "step {step}");
        assert_eq!(clickhouse.number("SELECT count() FROM overwatch.parked"), 0, "step {step}");
        let parked = state(&clickhouse, "parked_events FINAL", new.0);
        assert!(parked.starts_with(&format!("{step} ")) && parked.ends_with(" 0"), "step {step}: {parked}");
        (old, new) = (new, old);
    }
    // Released after the copy of what was parked was complete.
    park(6, 0, Retention::Keep);
    let output = setup.command("retention apply tenant-1 --stop-after 3").to_end();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(copies(&clickhouse).ends_with("_parked_events"));
    park(6, 1, Retention::Keep);
    apply(&setup);
    assert_eq!(clickhouse.number("SELECT count() FROM overwatch.parked"), 0);
    let parked = state(&clickhouse, "parked_events FINAL", old.0);
    assert!(parked.starts_with("6 ") && parked.ends_with(" 0"), "{parked}");

    // A tenant whose retention has changed again since: the unfinished run is finished, then the new one is done.
    write(&setup, new.1);
    let output = setup.command("retention apply tenant-1 --stop-after 4").to_end();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    write(&setup, "keep");
    apply(&setup);
    assert_eq!(state(&clickhouse, "events", Retention::Keep), format!("{rows} {rows} 0"));
}

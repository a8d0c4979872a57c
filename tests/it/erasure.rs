//! Erasure on request: what was accepted before it is nowhere to be read after it, wherever it was.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, ONE, Setup, TWO, eventually},
        process::ToEnd,
        proxy::Proxy,
        tansu::Tansu,
    },
};

/// Sends an event for each pair of a user id and an anonymous id.
fn send(engine: &Engine, key: &str, people: &[(&str, &str)]) {
    let event = |(user, anonymous): &(&str, &str)| json!({"type": "pageview", "path": "/", "user_id": user, "anonymous_id": anonymous, "session_id": "s"});
    let events: Vec<Value> = people.iter().map(event).collect();
    let answer = engine.post(&format!("Bearer {key}"), &[], json!(events).to_string().as_bytes());
    assert_eq!(
        (answer.status, answer.json()["events_accepted"].as_u64()),
        (200, Some(people.len() as u64)),
        "{answer:?}"
    );
}

/// Runs the command and returns its report.
fn report(setup: &Setup, words: &str) -> Value {
    let output = setup.command(&format!("{words} --json")).to_end();
    assert!(output.status.success(), "{words}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn removed(report: &Value, table: &str) -> u64 {
    let tables = report["removed"].as_array().unwrap();
    tables.iter().filter(|removed| removed["table"] == table).map(|removed| removed["rows"].as_u64().unwrap()).sum()
}

/// Last digit of the tenant, user and anonymous id of every row.
const PEOPLE: &str = "SELECT concat(right(toString(tenant_id), 1), ' ', user_id, ' ', anonymous_id) AS who \
                      FROM overwatch.events ORDER BY who";

#[test]
fn one_person_is_erased_by_user_and_anonymous_id_and_nobody_else() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() > 0 FROM overwatch.schema_migrations WHERE version = 9", "1");
    // As the tables of plugins are made: one with the person in it, one that only says which events its rows are of, and
    // sums that name nobody.
    for (name, columns, select) in [
        ("people", "user_id String, anonymous_id String", "user_id, anonymous_id"),
        ("amounts", "event_id UUID, amount Float64", "event_id, 1.5 AS amount"),
        ("sums", "events UInt64", "toUInt64(1) AS events"),
    ] {
        clickhouse.query(&format!(
            "CREATE TABLE overwatch.plugin_{name} (tenant_id UUID, {columns}) ENGINE = MergeTree ORDER BY tenant_id"
        ));
        clickhouse.query(&format!(
            "CREATE MATERIALIZED VIEW overwatch.plugin_{name}_mv TO overwatch.plugin_{name} AS \
             SELECT tenant_id, {select} FROM overwatch.events"
        ));
    }
    // The person before and after they gave their name; another who shares their device; others.
    send(
        &engine,
        "one",
        &[("", "device"), ("ann", "device"), ("ann", ""), ("bob", "device"), ("", "other"), ("bob", "")],
    );
    send(&engine, "two", &[("ann", "device"), ("", "device")]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "8");

    let erased = report(&setup, "erase --tenant first --user ann");
    assert_eq!((removed(&erased, "events"), &erased["sinks_confirmed"]), (3, &json!(1)), "{erased}");
    assert_eq!(erased["anonymous_ids"], json!(["device", "ann"]));
    assert_eq!((removed(&erased, "plugin_people"), removed(&erased, "plugin_amounts")), (3, 3), "{erased}");
    for (table, rows) in [("people", 5), ("amounts", 5), ("sums", 8)] {
        assert_eq!(clickhouse.number(&format!("SELECT count() FROM overwatch.plugin_{table}")), rows, "{table}");
    }
    let rest = "1  other\n1 bob \n1 bob device\n2  device\n2 ann device";
    assert_eq!(clickhouse.query(PEOPLE), rest);
    let places: Vec<&str> =
        erased["remains"].as_array().unwrap().iter().map(|left| left["place"].as_str().unwrap()).collect();
    for place in ["the tombstone", "write-ahead logs", "table events_per_minute", "table plugin_sums"] {
        assert!(places.contains(&place), "{place} is missing in {places:?}");
    }
    assert!(!places.contains(&"the broker's topics"), "there is no broker: {places:?}");

    // What they send from now on is theirs to be kept; and a further run finds it.
    send(&engine, "one", &[("ann", "")]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "6");
    let again = report(&setup, "erase --tenant first --user ann");
    assert_eq!(
        (removed(&again, "events"), &again["anonymous_ids"]),
        (1, &json!(["ann", "device"])),
        "as the first run knew"
    );
    assert_eq!(clickhouse.query(PEOPLE), rest);

    let purged = report(&setup, "tenants purge first");
    assert_eq!((removed(&purged, "plugin_sums"), removed(&purged, "plugin_amounts")), (7, 3), "{purged}");
    assert_eq!(clickhouse.query(PEOPLE), "2  device\n2 ann device");

    let output = setup.command("erase --user ann").to_end();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--tenant"), "{output:?}");
    let text = setup.command(&format!("erase --tenant {TWO} --user nobody")).to_end().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("nothing: no table held such a row") && text.contains("Remains:"), "{text}");
}

#[test]
fn a_tenant_is_purged_from_every_table_under_load() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let stop = AtomicBool::new(false);
    let erased = thread::scope(|scope| {
        let senders: Vec<_> = ["one", "two"]
            .map(|key| {
                scope.spawn({
                    let (engine, stop) = (&engine, &stop);
                    move || {
                        let mut sent = 0_u64;
                        while !stop.load(Ordering::Relaxed) {
                            send(engine, key, &[("u", ""), ("v", "")]);
                            sent += 2;
                        }
                        sent
                    }
                })
            })
            .into();
        let command = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            clickhouse.wait_for("SELECT count() > 0 FROM overwatch.events WHERE tenant_id = toUUID('00000000-0000-0000-0000-000000000001')", "1");
            report(&setup, "tenants purge first")
        }));
        stop.store(true, Ordering::Relaxed);
        let sent: Vec<u64> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        (command.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), sent)
    });
    let (erased, sent) = erased;
    assert!(removed(&erased, "events") > 0, "{erased}");
    clickhouse
        .wait_for(&format!("SELECT count() FROM overwatch.events WHERE tenant_id = '{TWO}'"), &sent[1].to_string());
    // Everything sent before is gone, everything sent after it is there: the sink has read all that came before `two` too.
    let before = erased["before"].as_str().unwrap();
    let of = |condition: &str| {
        clickhouse.number(&format!("SELECT count() FROM overwatch.events WHERE tenant_id = '{ONE}' AND {condition}"))
    };
    assert_eq!(of(&format!("received_at <= parseDateTime64BestEffort('{before}', 3, 'UTC')")), 0);
    // What comes after is theirs to be kept. (How much came before cannot be known: it was on its way meanwhile.)
    eventually("the log is empty", || engine.metric_or_zero("ingestion_wal_records") == 0);
    let stored = of("1");
    assert!(stored + removed(&erased, "events") <= sent[0], "{stored} stored, {erased}");
    send(&engine, "one", &[("u", ""), ("v", "")]);
    eventually("a later event is stored", || of("1") == stored + 2);
    assert_eq!(
        clickhouse.number(&format!("SELECT sum(events) FROM overwatch.events_by_minute WHERE tenant_id = '{TWO}'")),
        sent[1]
    );
}

#[test]
fn what_is_still_in_the_log_never_becomes_a_row() {
    let server = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let database = Server::start(&server.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", database.port);
    let proxy = Proxy::start(([127, 0, 0, 1], database.port).into());
    proxy.cut();
    Setup::of_two_tenants(home.path());
    let behind = || setup_at(home.path(), &format!("http://{}", proxy.address()));
    let engine = behind().start();
    send(&engine, "one", &[("ann", ""), ("bob", ""), ("bob", "")]);
    send(&engine, "two", &[("ann", "")]);

    // ClickHouse is there for the command, and not yet for the engine.
    let direct = setup_at(home.path(), &url);
    let erased = report(&direct, "erase --tenant first --user ann");
    assert_eq!((erased["removed"].as_array().unwrap().len(), &erased["sinks_confirmed"]), (0, &json!(0)), "{erased}");
    let mut engine = engine;
    engine.kill();
    let engine = behind().start();
    proxy.mend();
    let clickhouse = ClickHouse::at(&url);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "3");
    assert_eq!(clickhouse.query(PEOPLE), "1 bob \n1 bob \n2 ann");
    eventually("it is counted", || engine.metric_or_zero("ingestion_sink_left_out_total{reason=\"erased\"}") == 1);
    eventually("the log is empty", || engine.metric_or_zero("ingestion_wal_records") == 0);
}

/// The same engine with another ClickHouse.
fn setup_at(home: &Path, url: &str) -> Setup {
    Setup::new(home).env("INGESTION_CLICKHOUSE_URL", url)
}

#[test]
fn what_is_still_in_the_topic_never_becomes_a_row() {
    let broker = Tansu::start();
    let server = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let database = Server::start(&server.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", database.port);
    Setup::of_two_tenants(home.path());
    let with = |roles: &str| setup_at(home.path(), &url).broker(&broker.brokers()).env("INGESTION_ROLES", roles);
    let mut api = with("api").start();
    send(&api, "one", &[("ann", ""), ("bob", "")]);
    send(&api, "two", &[("ann", "")]);
    eventually("all is in the topic", || api.metric_or_zero("ingestion_relay_events_total") == 3);
    api.terminate();

    let erased = report(&with("sink"), "tenants purge first");
    assert!(erased["remains"].to_string().contains("the broker's topics"), "{erased}");
    let sink = with("sink").start();
    let clickhouse = ClickHouse::at(&url);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    assert_eq!(clickhouse.query(PEOPLE), "2 ann");
    eventually("they are counted", || sink.metric_or_zero("ingestion_sink_left_out_total{reason=\"erased\"}") == 2);
}

//! What cannot be stored is kept, shown, sent again or given up, and holds up nothing else.

use std::{fs, path::Path, sync::Arc};

use ingestion_engine::{
    dead_letters::{DeadLetter, DeadLetters, Form, Limits, MessageLine, Stage, read_files},
    metrics::Metrics,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, TENANT, eventually},
        tansu::Tansu,
    },
};

const NO_EVIL: &str = "ALTER TABLE overwatch.events ADD CONSTRAINT no_evil CHECK name != 'evil'";

/// Events of which those at the places in `evil` are called so.
fn events(range: std::ops::Range<usize>, evil: &[usize]) -> Value {
    let name = |place| if evil.contains(&place) { "evil" } else { "good" };
    let event = |place| json!({"id": id(place), "type": "custom", "name": name(place), "user_id": format!("user-{place}")});
    range.map(event).collect()
}

fn id(place: usize) -> Uuid {
    Uuid::from_u128(0x7000_8000_0000_0000_0000 + place as u128)
}

fn send(engine: &Engine, range: std::ops::Range<usize>, evil: &[usize]) {
    let (count, answer) = (range.len(), engine.ingest(events(range, evil).to_string()));
    assert_eq!((answer.status, answer.json()["events_accepted"].as_u64()), (200, Some(count as u64)), "{answer:?}");
}

/// Every row of `events` is one event, and the views have counted it once.
fn is_stored_once(clickhouse: &ClickHouse, events: usize) {
    let rows = "SELECT concat(toString(count()), ' ', toString(uniqExact(tenant_id, event_id))) FROM overwatch.events";
    clickhouse.wait_for(rows, &format!("{events} {events}"));
    clickhouse.wait_for("SELECT sum(events) FROM overwatch.events_per_minute", &events.to_string());
}

fn held(clickhouse: &ClickHouse, letters: usize) {
    let count = "SELECT count() FROM overwatch.dead_letters FINAL WHERE state = 'held'";
    clickhouse.wait_for(count, &letters.to_string());
}

/// Runs a command that succeeds; what it prints.
fn command(setup: &Setup, words: &str) -> String {
    let output = setup.command(words).output().unwrap();
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn list(setup: &Setup, words: &str) -> Vec<Value> {
    serde_json::from_str(&command(setup, &format!("dead-letters list --json {words}"))).unwrap()
}

#[test]
fn rows_that_clickhouse_refuses_are_found_among_ten_thousand_and_can_be_sent_again() {
    let home = tempfile::tempdir().unwrap();
    // Large ranges: the refused rows stand in the middle of others.
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"2s\"\n[limits]\nevents_per_request = 10000");
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    clickhouse.query(NO_EVIL);
    let evil = [0, 4_999, 5_000, 9_999];
    send(&engine, 0..10_000, &evil);
    is_stored_once(&clickhouse, 9_996);
    held(&clickhouse, 4);
    eventually("the log goes on", || engine.metric("ingestion_wal_events") == 0);
    eventually("health is up", || engine.get("/health").json()["status"] == "up");
    assert_eq!(engine.metric("ingestion_dead_letters_total"), 4);
    assert_eq!(clickhouse.query("SELECT count() FROM system.tables WHERE name LIKE '%trial%'"), "0", "tidied up");

    let letters = list(&setup, "--reason NO_EVIL");
    let mut dead: Vec<&str> = letters.iter().map(|letter| letter["event_id"].as_str().unwrap()).collect();
    dead.sort_unstable();
    assert_eq!(dead, evil.map(|place| id(place).to_string()));
    for letter in &letters {
        assert_eq!((&letter["tenant_id"], &letter["stage"], &letter["form"]), (&json!(TENANT), &json!("sink"), &json!("event")));
        assert!(letter["entered"]["seq"].is_u64() && letter["message"]["topic"] == "wal", "{letter}");
    }
    assert_eq!(list(&setup, "--tenant 00000000-0000-0000-0000-00000000000f"), [] as [Value; 0]);
    assert_eq!(list(&setup, "--until 1h"), [] as [Value; 0]);
    let table = command(&setup, "dead-letters list --since 1h --limit 2");
    assert!(table.contains("REASON") && table.contains("no_evil") && table.contains("2 more"), "{table}");
    let shown = command(&setup, &format!("dead-letters show {}", letters[0]["letter_id"].as_str().unwrap()));
    assert!(shown.contains("\"name\": \"evil\"") && shown.contains("base64"), "{shown}");

    // The cause is still there: they are taken by the front, and refused again.
    command(&setup, "dead-letters replay --all");
    eventually("they have died again", || engine.metric("ingestion_dead_letters_total") == 8);
    held(&clickhouse, 4);
    is_stored_once(&clickhouse, 9_996);

    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_evil");
    // The front knows the events from the attempt before; an id is free again once its event has died.
    let summary = command(&setup, "dead-letters replay --all --json");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["replayed"], &summary["held"]), (&json!(4), &json!(0)), "{summary}");
    is_stored_once(&clickhouse, 10_000);
    held(&clickhouse, 0);
    assert_eq!(list(&setup, "--all-states").len(), 8);
    assert_eq!(clickhouse.query("SELECT count() FROM overwatch.dead_letters FINAL WHERE bytes != ''"), "0");
    // Again is nothing.
    let summary: Value = serde_json::from_str(&command(&setup, "dead-letters replay --all --json")).unwrap();
    assert_eq!((&summary["replayed"], &summary["stored"]), (&json!(0), &json!(0)), "{summary}");
    is_stored_once(&clickhouse, 10_000);
}

//! `trace`: an event is found wherever it is, with the real parts, and a place that is away hides no other.

use std::{path::Path, sync::Arc, time::Duration};

use ingestion_engine::dead_letters::{About, DeadLetter, DeadLetters, Form, Limits, Stage};
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, ONE, Setup, TWO, eventually},
        plugins::{copy_in, pilot},
        process::ToEnd,
        proxy::Proxy,
        tansu::Tansu,
    },
};

/// Sends events of these ids.
fn send(engine: &Engine, key: &str, ids: &[Uuid]) {
    let event = |id: &Uuid| json!({"id": id, "type": "custom", "name": "n", "user_id": "ann"});
    let events: Vec<Value> = ids.iter().map(event).collect();
    let answer = engine.post(&format!("Bearer {key}"), &[], json!(events).to_string().as_bytes());
    assert_eq!((answer.status, answer.json()["events_accepted"].as_u64()), (200, Some(ids.len() as u64)), "{answer:?}");
}

/// Runs the command; gives its exit code, what it says, and its complaints.
fn run(setup: &Setup, words: &str) -> (i32, String, String) {
    let output = setup.command(&format!("trace {words}")).to_end();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The report, which must say that the event was found.
fn traced(setup: &Setup, words: &str) -> Value {
    let (code, report, errors) = run(setup, &format!("{words} --json"));
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report} {errors}"));
    assert_eq!((code, &report["found"]), (0, &json!(true)), "{report}");
    report
}

/// State and stages of the one tenant that has sent the event.
fn journey(report: &Value) -> (String, Vec<String>) {
    let tenants = report["tenants"].as_array().unwrap();
    assert_eq!(tenants.len(), 1, "{report}");
    let stages = tenants[0]["steps"].as_array().unwrap().iter();
    let times: Vec<Timestamp> = stages.clone().map(|step| step["at"].as_str().unwrap().parse().unwrap()).collect();
    assert!(times.is_sorted() && times.last().unwrap() <= &Timestamp::now(), "{report}");
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    (word(&tenants[0]["state"]), stages.map(|step| word(&step["stage"])).collect())
}

fn not_asked(report: &Value) -> Vec<&str> {
    report["not_asked"].as_array().unwrap().iter().map(|place| place["place"].as_str().unwrap()).collect()
}

fn is(journey: &(String, Vec<String>), state: &str, stages: &[&str]) {
    assert_eq!(
        (journey.0.as_str(), journey.1.iter().map(String::as_str).collect::<Vec<_>>()),
        (state, stages.to_vec())
    );
}

/// The same engine with another ClickHouse.
fn setup_at(home: &Path, url: &str) -> Setup {
    Setup::new(home).env("INGESTION_CLICKHOUSE_URL", url)
}

#[test]
fn an_event_is_in_the_log_while_clickhouse_is_away_and_then_in_its_table() {
    let (server, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = Server::start(&server.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", database.port);
    let proxy = Proxy::start(([127, 0, 0, 1], database.port).into());
    proxy.cut();
    Setup::of_two_tenants(home.path());
    let behind = setup_at(home.path(), &format!("http://{}", proxy.address()));
    let mut engine = behind.start();
    let (event, other) = (Uuid::now_v7(), Uuid::now_v7());
    send(&engine, "one", &[other, event]);

    let id = event.to_string();
    let report = traced(&behind, &id);
    is(&journey(&report), "in_log", &["accepted"]);
    assert_eq!(not_asked(&report), ["ClickHouse"]);
    let of = &report["tenants"][0];
    assert_eq!((&of["tenant_id"], &of["name"], &of["steps"][0]["ordinal"]), (&json!(ONE), &json!("first"), &json!(1)));
    let (code, text, _) = run(&behind, &id);
    assert_eq!(code, 0);
    for part in ["of tenant first", "accepted", "row 1", "now: in this node's write-ahead log, waits for ClickHouse"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    // The engine that has the log is gone: it is looked at on disk, and left as it is.
    engine.kill();
    is(&journey(&traced(&behind, &id)), "in_log", &["accepted"]);
    let direct = setup_at(home.path(), &url);
    let report = traced(&direct, &id);
    is(&journey(&report), "in_log", &["accepted"]);
    assert!(not_asked(&report).is_empty(), "a database without tables is no trouble: {report}");

    let mut engine = behind.start();
    proxy.mend();
    let clickhouse = ClickHouse::at(&url);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "2");
    let report = traced(&behind, &id);
    is(&journey(&report), "stored", &["accepted", "stored"]);
    assert!(report["tenants"][0]["now"].as_str().unwrap().contains("kept until"), "{report}");

    // Frozen, it says nothing, and the log still knows that it has passed the event on.
    eventually("the log lets go of it", || engine.metric_or_zero("ingestion_wal_records") == 0);
    database.signal(Signal::STOP);
    let report = traced(&behind, &id);
    is(&journey(&report), "passed_on", &["accepted"]);
    assert_eq!(not_asked(&report), ["ClickHouse"]);
    database.signal(Signal::CONT);
    engine.terminate();
    is(&journey(&traced(&behind, &id)), "stored", &["accepted", "stored"]);
}

#[test]
fn two_tenants_may_have_sent_one_id_and_one_tenant_twice() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path()).env("INGESTION_DEDUP_WINDOW", "0s");
    let mut engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() > 0 FROM overwatch.schema_migrations WHERE version = 11", "1");
    clickhouse.stop_merges();
    let event = Uuid::now_v7();
    send(&engine, "one", &[event]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    send(&engine, "one", &[event]);
    send(&engine, "two", &[event]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "3");
    let report = traced(&setup, &event.to_string());
    let tenants: Vec<_> = report["tenants"].as_array().unwrap().iter().map(|of| &of["tenant_id"]).collect();
    assert_eq!(tenants, [&json!(ONE), &json!(TWO)]);
    let report = traced(&setup, &format!("{event} --tenant first"));
    is(&journey(&report), "stored", &["accepted", "stored", "accepted", "stored"]);
    assert!(report["tenants"][0]["now"].as_str().unwrap().contains("in 2 rows"), "{report}");
    is(&journey(&traced(&setup, &format!("{event} --tenant {TWO}"))), "stored", &["accepted", "stored"]);

    // With the engine stopped the command starts its ClickHouse for itself.
    engine.terminate();
    let report = traced(&setup, &format!("{event} --tenant {TWO}"));
    is(&journey(&report), "stored", &["accepted", "stored"]);
    assert!(not_asked(&report).is_empty(), "{report}");
}

#[test]
fn an_event_is_found_in_the_topic_by_partition_and_offset() {
    let broker = Tansu::start();
    let (server, home, others) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = Server::start(&server.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", database.port);
    Setup::of_two_tenants(home.path());
    let with = |roles: &str| setup_at(home.path(), &url).broker(&broker.brokers()).env("INGESTION_ROLES", roles);
    let mut api = with("api").start();
    let events: Vec<Uuid> = (0..200).map(|_| Uuid::now_v7()).collect();
    for batch in events.chunks(10) {
        send(&api, "one", batch);
    }
    eventually("all is in the topic", || api.metric_or_zero("ingestion_relay_events_total") == 200);

    // The first, the last, and one between; and nothing of it depends on the log that they came through.
    Setup::of_two_tenants(others.path());
    let elsewhere = setup_at(others.path(), &url).broker(&broker.brokers());
    for event in [events[0], events[99], events[199]] {
        let report = traced(&elsewhere, &event.to_string());
        is(&journey(&report), "in_topic", &["accepted", "relayed"]);
        let step = &report["tenants"][0]["steps"][1];
        assert_eq!(step["topic"], "overwatch.events");
        assert!(step["partition"].is_u64() && step["offset"].is_u64(), "{report}");
    }
    let id = events[199].to_string();
    let (code, text, _) = run(&elsewhere, &format!("{} --since 1h", Uuid::now_v7()));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("topic overwatch.events, there is no topic overwatch.events.parked"), "{text}");

    // A node that knows no ClickHouse does not say that the event is not there.
    let report = traced(&Setup::new(others.path()).broker(&broker.brokers()).env("INGESTION_ROLES", "api"), &id);
    is(&journey(&report), "in_topic", &["accepted", "relayed"]);
    assert_eq!(not_asked(&report), ["ClickHouse"]);
    // What was sent before the moment asked for is not looked at; what came after it is.
    let between = Timestamp::now();
    let late = Uuid::now_v7();
    send(&api, "one", &[late]);
    eventually("it is in the topic too", || api.metric_or_zero("ingestion_relay_events_total") == 201);
    is(&journey(&traced(&elsewhere, &format!("{late} --since {between}"))), "in_topic", &["accepted", "relayed"]);
    let (code, text, _) = run(&elsewhere, &format!("{id} --since {between}"));
    assert_eq!(code, 1, "{text}");

    // A broker that is frozen hides nothing of the log.
    broker.freeze();
    let report = traced(&with("api"), &id);
    is(&journey(&report), "passed_on", &["accepted"]);
    assert_eq!(not_asked(&report), ["broker"]);
    broker.thaw();

    api.terminate();
    let sink = with("sink").start();
    let clickhouse = ClickHouse::at(&url);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "201");
    let report = traced(&with("sink"), &id);
    is(&journey(&report), "stored", &["accepted", "relayed", "stored"]);
    // The row tells the same of its way as the topic did.
    let report_of_row = traced(&elsewhere.env("INGESTION_REDPANDA_BROKERS", ""), &id);
    assert_eq!(report["tenants"][0]["steps"], report_of_row["tenants"][0]["steps"]);
    drop(sink);
}

#[test]
fn a_parked_event_is_followed_through_its_plugin() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    let setup = Setup::of_two_tenants(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let plugins = |words: &str| {
        let (status, text) = setup.run(&format!("plugins {words}"));
        assert!(status.success(), "{text}");
    };
    plugins("quarantine pilot --reason testing");
    let event = Uuid::now_v7();
    let body = json!({"id": event, "type": "pilot", "plan": "pro", "do": ""}).to_string();
    assert_eq!(engine.post("Bearer one", &[], body.as_bytes()).json()["events_parked"], 1);
    clickhouse.wait_for("SELECT count() FROM overwatch.parked", "1");
    let report = traced(&setup, &event.to_string());
    is(&journey(&report), "parked", &["accepted", "parked"]);
    assert_eq!(report["tenants"][0]["steps"][1]["reason"], "quarantined: testing");
    assert!(report["tenants"][0]["now"].as_str().unwrap().contains("plugins reprocess pilot"), "{report}");
    plugins("resume pilot");
    plugins("reprocess pilot");
    let (state, mut stages) = journey(&traced(&setup, &event.to_string()));
    stages.sort();
    is(&(state, stages), "stored", &["accepted", "parked", "released", "stored"]);
}

#[test]
fn what_was_erased_and_what_is_a_dead_letter_is_told() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path());
    let mut engine = setup.start();
    let clickhouse = engine.clickhouse();
    let (erased, dead, on_disk) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    send(&engine, "two", &[erased]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    let (status, text) = setup.run(&format!("erase --tenant {TWO} --user ann"));
    assert!(status.success(), "{text}");
    let report = traced(&setup, &erased.to_string());
    let (state, stages) = journey(&report);
    // The log's own files still hold the record, which is how it is known whose it was.
    is(&(state, stages), "erased", &["accepted", "erased"]);

    // Of one event, and not of those that the table has taken: it would be the table that is wrong.
    let refuse = format!("ALTER TABLE overwatch.events ADD CONSTRAINT no_ann CHECK event_id != '{dead}'");
    clickhouse.query(&refuse);
    send(&engine, "one", &[dead]);
    clickhouse.wait_for("SELECT count() FROM overwatch.dead_letters", "1");
    let report = traced(&setup, &dead.to_string());
    is(&journey(&report), "dead_letter", &["accepted", "dead_letter"]);
    assert!(report["tenants"][0]["now"].as_str().unwrap().contains("no_ann"), "{report}");
    // The log's files still tell of the record, and the ledger that it became a letter.
    let by_hand = Uuid::now_v7();
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_ann");
    clickhouse.query(&refuse.replace(&dead.to_string(), &by_hand.to_string()));
    send(&engine, "one", &[by_hand]);
    let letter = format!("event_id = '{by_hand}'");
    clickhouse.wait_for(&format!("SELECT count() FROM overwatch.dead_letters WHERE {letter}"), "1");
    eventually("the log lets go of it", || engine.metric_or_zero("ingestion_wal_records") == 0);
    clickhouse.wait_for("SELECT count() FROM overwatch.ledger_gone WHERE reason = 'dead'", "2");
    clickhouse.query(&format!("DELETE FROM overwatch.dead_letters WHERE {letter}"));
    let (code, text, _) = run(&setup, &by_hand.to_string());
    assert!(code == 1 && text.contains("its letter is in no place any more"), "{code} {text}");
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_ann");
    let (status, text) = setup.run("dead-letters replay --tenant first");
    assert!(status.success(), "{text}");
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    let (state, mut stages) = journey(&traced(&setup, &dead.to_string()));
    stages.dedup();
    is(&(state, stages), "stored", &["accepted", "dead_letter", "accepted", "stored"]);

    engine.terminate();
    let folder = home.path().join("data/dead-letters");
    let limits = Limits { retention: Duration::from_hours(1), max_bytes: 1 << 20 };
    let about = About { tenant_id: Some(ONE.parse().unwrap()), event_id: on_disk, ..About::default() };
    let letter = DeadLetter {
        stage: Stage::Relay,
        reason: "too large".to_owned(),
        form: Form::Line,
        bytes: b"{}",
        origin: None,
        message: None,
        about: Some(about),
    };
    DeadLetters::new(folder, limits, Arc::default()).keep(&[letter]).unwrap();
    let report = traced(&setup, &format!("{on_disk} --tenant first"));
    is(&journey(&report), "dead_letter", &["dead_letter"]);
    assert!(report["tenants"][0]["now"].as_str().unwrap().contains("too large"), "{report}");
    assert_eq!(run(&setup, &format!("{on_disk} --tenant {TWO}")).0, 1, "it is not theirs");
}

#[test]
fn an_event_whose_row_was_deleted_by_hand_is_said_to_be_missing() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path());
    let mut engine = setup.start();
    let clickhouse = engine.clickhouse();
    let (deleted, erased) = (Uuid::now_v7(), Uuid::now_v7());
    send(&engine, "one", &[deleted]);
    send(&engine, "two", &[erased]);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "2");
    clickhouse.query(&format!("DELETE FROM overwatch.events WHERE event_id = '{deleted}'"));
    let (status, text) = setup.run(&format!("erase --tenant {TWO} --user ann"));
    assert!(status.success(), "{text}");
    eventually("the log lets go of it", || engine.metric_or_zero("ingestion_wal_records") == 0);
    for stopped in [false, true] {
        if stopped {
            engine.terminate();
        }
        let (code, report, errors) = run(&setup, &format!("{deleted} --json"));
        let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report} {errors}"));
        assert_eq!(code, 1, "{report}");
        is(&journey(&report), "missing", &["accepted"]);
        assert!(report["tenants"][0]["now"].as_str().unwrap().contains("deleted by hand, or is lost"), "{report}");
        let (_, report, _) = run(&setup, &format!("{erased} --json"));
        let report: Value = serde_json::from_str(&report).unwrap();
        let now = report["tenants"][0]["now"].as_str().unwrap();
        assert!(now.contains("erased by") || now.contains("unless one of the 1 erasures"), "{report}");
    }
}

#[test]
fn an_id_that_is_nowhere_and_one_that_is_none() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::of_two_tenants(home.path());
    let old = Timestamp::now().checked_sub(SignedDuration::from_hours(30)).unwrap();
    let old = uuid::Timestamp::from_unix(uuid::NoContext, u64::try_from(old.as_second()).unwrap(), 0);
    let unknown = Uuid::new_v7(old);
    // Nothing was ever started here, and nothing is begun for the question.
    let (code, text, errors) = run(&setup, &unknown.to_string());
    assert_eq!(code, 1, "{text} {errors}");
    for part in
        ["was found nowhere", "nothing was ever stored", "write-ahead log: there is none", "broker: none is configured"]
    {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!home.path().join("data/clickhouse").exists() && !home.path().join("data/wal").exists());

    let engine = setup.start();
    eventually("all tables are there", || engine.is_up());
    send(&engine, "one", &[Uuid::now_v7()]);
    let (code, report, _) = run(&setup, &format!("{unknown} --json --since 2h"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &report["found"], &report["tenants"]), (1, &json!(false), &json!([])));
    let searched = report["searched"].to_string();
    for part in
        ["of the engine that runs", "records received since", "events, ledger_gone, parked_events", "dead-letters"]
    {
        assert!(searched.contains(part), "{part} is missing in {searched}");
    }
    assert!(report["hints"].to_string().contains("By its id it was made at"), "{report}");

    for (words, code, part) in [
        ("no-id", 64, "an event's id is a UUID"),
        (&format!("{unknown} --since yesterday"), 64, "give a span"),
        (&format!("{unknown} --since 2999-01-01T00:00:00Z"), 64, "still to come"),
        (&format!("{unknown} --tenant nobody"), 64, "there is no tenant \"nobody\""),
    ] {
        let (ended, _, errors) = run(&setup, words);
        assert!(ended == code && errors.contains(part), "{words}: {ended} {errors}");
    }
}

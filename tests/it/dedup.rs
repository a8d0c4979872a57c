//! What is sent again is stored once: events by their ids, requests by their `Idempotency-Key`.

mod nodes;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::engine::{Answer, Engine, KEY, Setup, TENANT, tenant_section};

const OTHER: &str = "11111111-1111-1111-1111-111111111111";
const OTHER_KEY: &str = "another-secret";

fn events(ids: &[Uuid]) -> Value {
    ids.iter().map(|id| json!({"id": id, "type": "pageview", "path": "/p", "session_id": "s"})).collect()
}

fn ids(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::now_v7()).collect()
}

/// `events_accepted` and `duplicates` of an answer that is a 200.
fn counts(answer: &Answer) -> (u64, u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    (json["events_accepted"].as_u64().unwrap(), json["duplicates"].as_u64().unwrap_or(0))
}

#[test]
fn an_event_that_is_sent_again_is_acknowledged_and_stored_once_also_after_kill_9() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let mut engine = setup.start();
    let (first, second) = (ids(10), ids(10));
    assert_eq!(counts(&engine.ingest(events(&first).to_string())), (10, 0));
    let answer = engine.ingest(events(&first).to_string());
    assert_eq!(counts(&answer), (10, 10));
    assert_eq!(answer.json()["status"], "success");
    let mixed: Vec<Uuid> = first.iter().chain(&second).copied().collect();
    assert_eq!(counts(&engine.ingest(events(&mixed).to_string())), (20, 10));
    let twice = [mixed[0], mixed[0]];
    assert_eq!(counts(&engine.ingest(events(&twice).to_string())), (2, 2));
    assert_eq!(engine.metric("ingestion_events_total{outcome=\"accepted\",code=\"\"}"), 20);
    assert_eq!(engine.metric("ingestion_events_total{outcome=\"duplicate\",code=\"\"}"), 22);
    engine.clickhouse();
    engine.kill();

    let engine = setup.start();
    assert_eq!(counts(&engine.ingest(events(&mixed).to_string())), (20, 20));
    engine.clickhouse().wait_for_events_once(20);
}

#[test]
fn the_ids_of_one_tenant_are_nothing_to_another() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let sections = [tenant_section(TENANT, &[KEY], ""), tenant_section(OTHER, &[OTHER_KEY], "")];
    std::fs::write(setup.tenants_file(), sections.concat()).unwrap();
    let engine = setup.start();
    let body = events(&ids(5)).to_string();
    let key = [("idempotency-key", "k")];
    for (tenant, secret) in [(TENANT, KEY), (OTHER, OTHER_KEY)] {
        let answer = engine.post(&format!("Bearer {tenant}:{secret}"), &key, body.as_bytes());
        assert_eq!((counts(&answer), answer.header("idempotent-replayed")), ((5, 0), ""));
    }
    let rows = "SELECT uniqExact(tenant_id, event_id) FROM overwatch.events";
    engine.clickhouse().wait_for(rows, "10");
}

#[test]
fn with_the_window_switched_off_a_resend_is_stored_again() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).config("[dedup]\nwindow = \"0s\"").start();
    let body = events(&ids(5)).to_string();
    for _ in 0..2 {
        assert_eq!(counts(&engine.ingest(&body)), (5, 0));
    }
    engine.clickhouse().wait_for("SELECT sum(events) FROM overwatch.events_per_minute", "10");
}

/// An answer but for how long it took.
fn answered(answer: &Answer) -> Value {
    let mut json = answer.json();
    assert!(json.as_object_mut().unwrap().remove("ingest_latency_ms").is_some(), "{answer:?}");
    json
}

fn post(engine: &Engine, key: &str, body: &Value) -> Answer {
    let authorization = format!("Bearer {TENANT}:{KEY}");
    engine.post(&authorization, &[("idempotency-key", key)], body.to_string().as_bytes())
}

#[test]
fn an_idempotency_key_gets_its_answer_again_also_after_kill_9() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let mut engine = setup.start();
    // Without ids of their own, the key is all that tells a repeat from a second visit.
    let visit = json!([{"type": "pageview", "path": "/p"}, {"type": "nonsense"}]);
    let first = post(&engine, "visit-1", &visit);
    assert_eq!((first.status, first.header("idempotent-replayed")), (200, ""));
    let again = post(&engine, "visit-1", &visit);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"));
    assert_eq!(answered(&again), answered(&first));
    assert_eq!(again.json()["events_rejected"], 1);
    assert_ne!(post(&engine, "visit-2", &visit).json()["batch_id"], first.json()["batch_id"]);

    let known = events(&ids(3));
    engine.ingest(known.to_string());
    let repeated = post(&engine, "known", &known);
    assert_eq!(counts(&repeated), (3, 3));
    engine.clickhouse();
    engine.kill();

    let engine = setup.start();
    assert_eq!(answered(&post(&engine, "visit-1", &visit)), answered(&first));
    assert_eq!(answered(&post(&engine, "known", &known)), answered(&repeated));
    engine.clickhouse().wait_for_events_once(5);
}

#[test]
fn copies_of_a_request_at_the_same_time_have_one_effect_and_one_answer() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).start();
    let visit = json!([{"type": "pageview", "path": "/p"}]);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8).map(|_| scope.spawn(|| post(&engine, "visit", &visit))).collect();
        sent.into_iter().map(|sent| sent.join().unwrap().json()).collect()
    });
    let batch = |answer: &Value| answer["batch_id"].clone();
    assert!(answers.iter().all(|answer| batch(answer) == batch(&answers[0])), "{answers:?}");
    engine.clickhouse().wait_for_events_once(1);
}

#[test]
fn a_key_of_another_request_or_no_key_at_all_is_refused_and_a_refused_request_is_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).start();
    let visit = json!([{"type": "pageview", "path": "/p"}]);
    let code = |answer: Answer| (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned());
    assert_eq!(post(&engine, "k", &visit).status, 200);
    let other = json!([{"type": "pageview", "path": "/another"}]);
    assert_eq!(code(post(&engine, "k", &other)), (422, "idempotency_key_reused".to_owned()));
    for wrong in ["", "two words", &"x".repeat(256)] {
        assert_eq!(code(post(&engine, wrong, &visit)), (400, "idempotency_key_invalid".to_owned()), "{wrong:?}");
    }
    assert_eq!(code(post(&engine, "bad", &json!([{"type": "nonsense"}]))), (400, "all_events_rejected".to_owned()));
    assert_eq!(post(&engine, "bad", &visit).status, 200, "nothing was done under this key yet");
    engine.clickhouse().wait_for_events_once(2);
}

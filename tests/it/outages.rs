//! Through the real broker, and what happens while it is away.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use uuid::Uuid;

use crate::support::{
    engine::{Setup, eventually},
    load::Load,
    proxy::Proxy,
    tansu::{Tansu, free_port},
};

/// How long an outage lasts under load.
const OUTAGE: Duration = Duration::from_secs(10);

#[test]
fn an_event_goes_through_the_broker_into_clickhouse() {
    let home = tempfile::tempdir().unwrap();
    let broker = Tansu::start();
    let engine = Setup::new(home.path()).broker(&broker.brokers()).start();
    let ids: Vec<Uuid> = (0..300).map(|_| Uuid::now_v7()).collect();
    let events: Vec<_> = ids
        .iter()
        .map(|id| json!({"id": id, "type": "pageview", "path": "/", "session_id": format!("s{}", id.as_u128() % 7), "n": "a\nb"}))
        .collect();
    assert_eq!(engine.ingest(json!({ "events": events }).to_string()).status, 200);
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count(), uniqExact(event_id) FROM overwatch.events", "300\t300");
    assert_eq!(
        clickhouse.query("SELECT DISTINCT topic, properties FROM overwatch.events"),
        "overwatch.events\t{\"n\":\"a\\\\nb\"}"
    );
    assert_eq!(
        clickhouse
            .number("SELECT max(c) FROM (SELECT uniqExact(partition) AS c FROM overwatch.events GROUP BY session_id)"),
        1,
        "a session stays in one partition"
    );
    assert!(clickhouse.number("SELECT uniqExact(partition) FROM overwatch.events") > 1);
    assert_eq!(clickhouse.number("SELECT uniqExact(wal_seq, wal_ordinal) FROM overwatch.events"), 300);
    clickhouse.wait_for("SELECT sum(events) FROM overwatch.events_per_minute", "300");
    clickhouse.wait_for("SELECT sum(views) FROM overwatch.page_views_daily", "300");
    eventually("the log lets go of what the broker has", || engine.metric("ingestion_wal_records") == 0);
    for component in ["wal", "relay", "clickhouse", "sink"] {
        eventually(component, || engine.component(component)["state"] == "up");
    }
}

#[test]
fn a_frozen_broker_delays_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let broker = Tansu::start();
    let engine = Setup::new(home.path()).broker(&broker.brokers()).start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(50);
    broker.freeze();
    through_an_outage(&load);
    broker.thaw();
    load.wait_for_requests(50);
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    sent.wait_until_stored(&clickhouse);
    eventually("the log is empty again", || engine.metric("ingestion_wal_records") == 0);
}

#[test]
fn a_broker_that_is_cut_off_shows_in_health_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (broker, proxy) = behind_proxy();
    let engine = Setup::new(home.path()).broker(&proxy.address().to_string()).start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(50);
    eventually("the relay is up", || engine.component("relay")["state"] == "up");
    proxy.cut();
    through_an_outage(&load);
    let report = engine.component("relay");
    assert!(report["state"] != "up" && report["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{report}");
    assert_eq!(engine.get("/health/ready").status, 200, "ready means: can accept durably");
    proxy.mend();
    load.wait_for_requests(50);
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    sent.wait_until_stored(&clickhouse);
    eventually("health clears by itself", || engine.component("relay")["state"] == "up");
    drop(broker);
}

#[test]
fn a_broker_that_comes_late_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let (broker, proxy) = behind_proxy();
    proxy.cut();
    let engine = Setup::new(home.path()).broker(&proxy.address().to_string()).start();
    assert_eq!(engine.ingest(r#"{"type":"custom","name":"early"}"#).status, 200);
    eventually("health names the broker", || engine.component("relay")["state"] != "up");
    proxy.mend();
    engine.clickhouse().wait_for("SELECT name FROM overwatch.events", "early");
    drop(broker);
}

#[test]
fn roles_apart_make_one_pipeline() {
    let (api_home, sink_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Tansu::start();
    let api = Setup::new(api_home.path()).broker(&broker.brokers()).env("INGESTION_ROLES", "api").start();
    let sink = Setup::new(sink_home.path()).broker(&broker.brokers()).env("INGESTION_ROLES", "sink").start();
    assert_eq!(api.ingest(r#"{"type":"custom","name":"far"}"#).status, 200);
    sink.clickhouse().wait_for("SELECT name FROM overwatch.events", "far");
    eventually("a sink is ready once it has started", || sink.get("/health/ready").status == 200);
    assert_eq!(sink.ingest("[]").status, 404, "a sink takes no events");
}

/// A broker that tells its clients to come to the proxy in front of it.
fn behind_proxy() -> (Tansu, Proxy) {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Proxy::start(listen);
    (Tansu::start_on(listen, proxy.address()), proxy)
}

/// Requests go on being acknowledged while time passes.
fn through_an_outage(load: &Load) {
    let end = Instant::now() + OUTAGE;
    while Instant::now() < end {
        // The outage is the time itself: there is no condition to wait for.
        thread::sleep(Duration::from_millis(500));
        load.wait_for_requests(1);
    }
}

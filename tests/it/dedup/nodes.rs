//! What a client sends to one node and then to another, behind one broker, is stored once: the sink of its partition sees
//! both.

use std::{path::Path, thread, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{counts, ids};
use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, eventually},
        fault_proxy::Trap,
        process::ToEnd,
        rig::{Kind, Rig},
        tansu::Tansu,
    },
};

/// Visits of as many sessions as there are ids, so that they go to all partitions.
fn visits(ids: &[Uuid]) -> Value {
    ids.iter().map(|id| json!({"id": id, "type": "pageview", "path": "/p", "session_id": id})).collect()
}

/// Sends the same visits to all `engines` at once, in requests of 50; none of them knows of the others.
fn send(engines: &[&Engine], ids: &[Uuid]) {
    thread::scope(|scope| {
        for engine in engines {
            scope.spawn(|| {
                for ids in ids.chunks(50) {
                    let answer = engine.ingest(visits(ids).to_string());
                    assert_eq!(counts(&answer), (ids.len() as u64, 0), "its own view");
                }
            });
        }
    });
}

fn left_out(engine: &Engine) -> u64 {
    engine.metric_or_zero("ingestion_sink_left_out_total{reason=\"duplicate\"}")
}

/// The node's ledger once nothing is on its way; it balances.
fn ledger(setup: &Setup) -> Value {
    let mut total = Value::Null;
    eventually("the ledger balances with nothing on its way", || {
        let output = setup.command("ledger --json").to_end();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        total = report["total"].clone();
        report["balanced"] == true && total["in_wal"] == 0 && total["in_broker"] == 0
    });
    total
}

/// What the ledgers say together of these terms.
fn together(ledgers: &[Value], term: &str) -> u64 {
    ledgers.iter().map(|total| total[term].as_u64().unwrap()).sum()
}

struct Nodes {
    server: Server,
    broker: Tansu,
    dedup: &'static str,
}

impl Nodes {
    fn new(home: &Path, dedup: &'static str) -> Self {
        Self { server: Server::start(&home.join("clickhouse")), broker: Tansu::start(), dedup }
    }

    fn node(&self, home: &Path) -> Setup {
        Setup::new(home)
            .broker(&self.broker.brokers())
            .config("[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"\n[sink]\nmax_age = \"50ms\"")
            .config(self.dedup)
            .env("INGESTION_CLICKHOUSE_URL", self.server.url())
    }

    fn clickhouse(&self) -> ClickHouse {
        let clickhouse = ClickHouse::at(&self.server.url());
        eventually("the tables are there", || {
            clickhouse.try_query("SELECT 1 FROM overwatch.ledger_gone LIMIT 1").is_ok()
        });
        clickhouse.stop_merges();
        clickhouse
    }
}

#[test]
fn what_was_sent_to_two_nodes_is_stored_once_also_by_sinks_that_have_just_started() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let nodes = Nodes::new(one.path(), "");
    // One sink: of two that leave together this broker keeps one as the leader of its group, for ever.
    let (one, two) = (nodes.node(one.path()), nodes.node(two.path()).env("INGESTION_ROLES", "api"));
    let (mut a, b) = (one.start(), two.start());
    let clickhouse = nodes.clickhouse();
    let (first, second) = (ids(1000), ids(500));
    send(&[&a, &b], &first);
    clickhouse.wait_for_events_once(1000);
    eventually("the copies are counted", || left_out(&a) == 1000);

    // What was stored before they started, only ClickHouse knows.
    send(&[&a], &second);
    clickhouse.wait_for_events_once(1500);
    assert!(a.terminate().success());
    a = one.start();
    send(&[&b], &second);
    eventually("the copies are counted", || left_out(&a) == 500);
    // Others pass.
    send(&[&b], &ids(100));
    clickhouse.wait_for_events_once(1600);

    let ledgers = [ledger(&one), ledger(&two)];
    assert_eq!(together(&ledgers, "received"), 3100, "{ledgers:?}");
    assert_eq!(together(&ledgers, "duplicate"), 1500, "{ledgers:?}");
    assert_eq!(together(&ledgers, "stored"), 1600, "{ledgers:?}");
    // The row is the other node's, and this one finds it.
    let output = two.command(&format!("trace {} --json", second[0])).to_end();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["found"], &report["tenants"][0]["state"]), (&json!(true), &json!("stored")), "{report:#}");
}

#[test]
fn what_was_sent_to_two_nodes_is_stored_once_by_sinks_that_die_between_insert_and_commit() {
    let home = tempfile::tempdir().unwrap();
    let rig = Rig::start(Kind::Relay);
    let setup = |name: &str| {
        let folder = home.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        Setup::new(&folder).config("[sink]\nmax_age = \"50ms\"")
    };
    let other = rig.relay(setup("other"));
    let b = other.start();
    let mut sink = rig.sink(setup("0"));
    let clickhouse = rig.clickhouse();
    eventually("the tables are there", || clickhouse.try_query("SELECT 1 FROM overwatch.ledger_gone LIMIT 1").is_ok());
    clickhouse.stop_merges();
    let mut sent = ids(100);
    send(&[&rig.engine, &b], &sent);
    clickhouse.wait_for_events_once(100);
    for round in 1..=3 {
        rig.proxy().kill_at(Trap::InsertAnswer, sink.pid());
        let more = ids(200);
        // The next one comes into the group while this one dies.
        let next = thread::scope(|scope| {
            let next = scope.spawn(|| rig.sink(setup(&round.to_string())));
            send(&[&rig.engine, &b], &more);
            next.join().unwrap()
        });
        sink.wait_for_end();
        sink = next;
        sent.extend(more);
        clickhouse.wait_for_events_once(sent.len());
    }
    let ledgers = [ledger(rig.setup()), ledger(&other)];
    assert_eq!(together(&ledgers, "duplicate"), 700, "{ledgers:?}");
    assert_eq!(together(&ledgers, "stored"), 700, "{ledgers:?}");
}

#[test]
fn what_was_sent_to_another_node_after_the_window_is_stored() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let nodes = Nodes::new(one.path(), "[dedup]\nwindow = \"2s\"");
    let (one, two) = (nodes.node(one.path()), nodes.node(two.path()));
    let (a, b) = (one.start(), two.start());
    let clickhouse = nodes.clickhouse();
    let ids = ids(50);
    send(&[&a, &b], &ids);
    clickhouse.wait_for_events_once(50);
    thread::sleep(Duration::from_millis(2500));
    send(&[&b], &ids);
    let rows = "SELECT concat(toString(count()), ' ', toString(uniqExact(event_id))) FROM overwatch.events";
    clickhouse.wait_for(rows, "100 50");
    eventually("the copies within the window are counted", || left_out(&a) + left_out(&b) == 50);
    let ledgers = [ledger(&one), ledger(&two)];
    assert_eq!((together(&ledgers, "duplicate"), together(&ledgers, "stored")), (50, 100), "{ledgers:?}");
}

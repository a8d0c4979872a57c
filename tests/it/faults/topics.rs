//! What can become of a topic: it grows, and it forgets.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use rdkafka::mocking::MockCluster;
use serde_json::json;
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Setup, eventually},
        fault_proxy::{Fault, FaultProxy},
        growing::Growing,
        load::{Load, Sent},
        tansu::{Tansu, free_port},
    },
};

const TOPIC: &str = "overwatch.events";

#[test]
fn a_topic_that_grows_while_there_is_a_backlog_loses_and_doubles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Growing::start(listen, 4);
    let broker = Tansu::start_on(listen, proxy.address());
    let setup = Setup::new(home.path())
        .config("[redpanda.properties]\n\"topic.metadata.refresh.interval.ms\" = \"1000\"")
        .broker(&broker.brokers())
        .env("INGESTION_REDPANDA_PARTITIONS", "8");
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    eventually("events arrive", || engine.metric("ingestion_sink_rows_total") > 0);
    // In the topic, and nobody has heard of it: it will be sent again.
    proxy.swallow(true);
    eventually("answers are swallowed", || proxy.swallowed() > 0);
    load.wait_for_requests(40);
    engine.kill();
    let mut sent = load.stop();
    proxy.swallow(false);
    proxy.show(8);

    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    sent.resend(&engine);
    let load = Load::start(&engine);
    load.wait_for_requests(40);
    let more = load.stop();
    assert_eq!((&more.refused, more.broken), (&Vec::new(), 0), "accepted throughout");
    sent.acknowledged.extend(more.acknowledged);
    sent.is_stored_once(&clickhouse);
    assert!(engine.metric("ingestion_source_repeats_total") > 0, "what was sent again was known");
    assert_eq!(clickhouse.number("SELECT uniqExact(partition) FROM overwatch.events"), 8, "all of them are in use");
}

#[test]
fn a_topic_that_grows_under_a_running_engine_loses_and_doubles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Growing::start(listen, 2);
    let broker = Tansu::start_on(listen, proxy.address());
    let engine = Setup::new(home.path())
        .config("[redpanda.properties]\n\"topic.metadata.refresh.interval.ms\" = \"1000\"")
        .broker(&broker.brokers())
        .start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    // On a fast machine the requests are answered before the relay has met the topic: then it would never see it grow.
    eventually("events go through the two partitions", || engine.metric("ingestion_relay_events_total") > 0);
    broker.freeze();
    load.wait_for_requests(40);
    proxy.show(4);
    broker.thaw();
    let used = "SELECT uniqExact(partition) FROM overwatch.events";
    eventually("the new partitions are used", || clickhouse.try_query(used).is_ok_and(|count| count == "4"));
    load.wait_for_requests(20);
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    sent.is_stored_once(&clickhouse);
    assert!(engine.metric("ingestion_relay_repartitions_total") >= 1);
}

/// The mock keeps 5 MB of a partition: what comes while ClickHouse is away pushes out what was not read.
#[test]
fn records_that_expired_before_they_were_read_are_counted_and_shown_and_the_rest_is_stored_once() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("clickhouse"));
    let proxy = FaultProxy::start(server.port);
    let engine = Setup::new(home.path())
        .broker(&cluster.bootstrap_servers())
        .config("[sink]\nmax_age = \"50ms\"\nmax_rows = 1000\nmax_bytes = \"2MiB\"")
        .config("[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"\n\"queued.max.messages.kbytes\" = \"1024\"")
        .env("INGESTION_REDPANDA_PARTITIONS", "1")
        .env("INGESTION_REDPANDA_BATCH_SIZE", "10")
        .env("INGESTION_CLICKHOUSE_URL", proxy.url())
        .start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    let clickhouse = ClickHouse::at(&server.url());
    clickhouse.stop_merges();
    let load = Load::start_with(&engine, Duration::from_millis(50));
    load.wait_for_requests(20);
    let mut sent = load.stop();
    sent.is_stored_once(&clickhouse);
    proxy.set(Fault::Answer(500, None, "away"));
    let before = sent.acknowledged.len() as u64;
    for _ in 0..80 {
        // Random text, which does not compress.
        let ids: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
        let noise = || (0..1500).map(|_| Uuid::new_v4().simple().to_string()).collect::<String>();
        let event = |id| json!({"id": id, "type": "custom", "name": "large", "session_id": "s", "noise": noise()});
        let events: Vec<_> = ids.iter().map(event).collect();
        assert_eq!(engine.ingest(json!(events).to_string()).status, 200);
        sent.acknowledged.extend(ids);
    }
    eventually("the broker has taken all", || engine.metric("ingestion_wal_records") == 0);
    proxy.set(Fault::None);
    eventually("the gap is counted", || engine.metric("ingestion_source_gap_offsets_total") > 0);
    let report = engine.component("broker");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(report["state"] != "up" && reason.contains("offsets of partition 0"), "{report}");
    engine.wait_for_log("records are lost to the topic's retention");

    // What comes after is stored, and what is stored is stored once.
    let load = Load::start_with(&engine, Duration::from_millis(50));
    load.wait_for_requests(20);
    let after = load.stop();
    after.wait_until_stored(&clickhouse);
    sent.acknowledged.extend(after.acknowledged);
    let ids = clickhouse.query("SELECT event_id FROM overwatch.events FORMAT TSV");
    let rows: Vec<Uuid> = ids.lines().map(|id| id.parse().unwrap()).collect();
    let stored: HashSet<Uuid> = rows.iter().copied().collect();
    assert_eq!(rows.len(), stored.len(), "no event twice");
    assert!(stored.is_subset(&sent.acknowledged) && (stored.len() as u64) > before);
    // No more events are missing than messages were counted, times what a message holds.
    let missing = (sent.acknowledged.len() - stored.len()) as u64;
    let gap = engine.metric("ingestion_source_gap_offsets_total");
    assert!(missing > 0 && missing <= gap * 10, "{missing} events are missing, {gap} offsets were counted");
    let all = Sent { acknowledged: stored, ..Sent::default() };
    all.is_stored_once(&clickhouse);
}

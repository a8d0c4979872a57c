//! Through a broker: a topic of their own, for as long as there are any.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ingestion_engine::{
    broker::{self, Settings},
    health::State,
    row::{self, ParkedRow},
};
use rdkafka::{
    ClientConfig, Message,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::Consumer,
};

use super::{Storing, append, encode_event, encode_parked, limits, mixed, parked};
use crate::{
    broker::rig::{Log, PATIENCE, Reading, assert_topic_holds, eventually, read_topic, reader, settings},
    support::{
        clickhouse::{ClickHouse, number},
        engine::Setup,
        rows::event,
        tansu::Tansu,
    },
};

async fn exists(settings: &Settings) -> bool {
    broker::exists(&settings.parked()).await.unwrap()
}

/// The parked rows that the topic of `settings` holds, as any reader sees them, once there are `count`.
async fn read_parked(settings: &Settings, count: usize) -> Vec<ParkedRow<'static>> {
    let (brokers, topic) = (settings.brokers.clone(), settings.parked_topic());
    tokio::task::spawn_blocking(move || {
        let consumer = reader(&brokers, &topic, 1);
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        assert_eq!(metadata.topics()[0].partitions().len(), 1, "one partition");
        let deadline = Instant::now() + PATIENCE;
        let mut rows = Vec::new();
        while rows.len() < count {
            assert!(Instant::now() < deadline, "in vain read the topic: {} rows", rows.len());
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
            for line in message.payload().unwrap().split(|byte| *byte == b'\n') {
                let (row, _) = row::read_parked_json(line).unwrap();
                let ParkedRow { tenant_id, event_id, timestamp_ms, received_at_ms, expires_at, .. } = row;
                let [plugin, kind, reason, raw] =
                    [row.plugin, row.kind, row.reason, row.raw].map(|text| row::Text(text.0.into_owned().into()));
                rows.push(ParkedRow {
                    tenant_id,
                    event_id,
                    timestamp_ms,
                    received_at_ms,
                    expires_at,
                    plugin,
                    kind,
                    reason,
                    raw,
                });
            }
        }
        rows
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_rows_take_their_own_topic_and_never_the_public_one() {
    let broker = Tansu::start();
    let settings = settings(&broker.brokers(), 3);
    let (mut log, relay) = Log::relayed(settings.clone());
    log.append(5, 20, 10).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    assert!(!exists(&settings).await, "a node that parks nothing needs no topic");

    for n in 0..50 {
        append(&log.wal, mixed(n * 10)).await;
    }
    log.events.extend((0..500).step_by(2).map(|number| event(number).event_id));
    eventually("all is acknowledged", || log.is_drained()).await;
    assert_eq!(log.metrics.relay_events.get(), 600);
    // Reading fails on a line that is not an event, so this also says that nothing else is there.
    assert_topic_holds(&broker.brokers(), 3, &log.events).await;
    let seen = read_topic(&broker.brokers(), 3, |seen| seen.iter().map(|m| m.rows.len()).sum::<usize>() >= 350).await;
    let held: BTreeSet<_> = seen.iter().flat_map(|message| message.rows.iter().map(|row| row.1)).collect();
    let rows = read_parked(&settings, 250).await;
    let expected: Vec<_> = (0..500).skip(1).step_by(2).map(parked).collect();
    assert_eq!(rows, expected, "every one once, in the order of the log, as it was sent");
    assert!(rows.iter().all(|row| !held.contains(&row.event_id)));

    // And from there into their table.
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let events = Reading::start(settings.clone(), limits(1000));
    let parked_events = Reading::start(settings.parked(), limits(1000));
    let events = Storing::start(events.source, client.clone());
    let parked_events = Storing::start(parked_events.source, client.clone());
    let (stored, parked_metrics) = (events.metrics.clone(), parked_events.metrics.clone());
    eventually("everything is stored", || {
        (stored.sink_rows.get(), parked_metrics.sink_parked_rows.get()) == (350, 250)
    })
    .await;
    assert_eq!((stored.sink_parked_rows.get(), parked_metrics.sink_rows.get()), (0, 0));
    let strangers = "SELECT count() FROM {db}.events WHERE event_id IN (SELECT event_id FROM {db}.parked)";
    assert_eq!(number(&client, strangers).await, 0);
    let position = "SELECT count() FROM {db}.parked WHERE topic = 'events.parked' AND partition = 0";
    assert_eq!(number(&client, position).await, 250);
    events.stop().await;
    parked_events.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_waited_for_and_health_says_which() {
    let broker = Tansu::start();
    let made = settings(&broker.brokers(), 3);
    let (mut first, relay) = Log::relayed(made.clone());
    first.append(1, 1, 1).await;
    eventually("the main topic is there", || first.is_drained()).await;
    relay.stop().await;

    let settings = Settings { create_topic: false, ..made };
    let (mut log, relay) = Log::relayed(settings.clone());
    log.append(5, 20, 10).await;
    eventually("events need no other topic", || log.is_drained()).await;
    eventually("health is up", || log.state("broker").0 == State::Up).await;
    append(&log.wal, [encode_parked(&parked(1))]).await;
    append(&log.wal, [encode_event(2)]).await;
    eventually("health says it", || {
        let (state, reason) = log.state("broker");
        state == State::Down && reason.contains("topic events.parked does not exist") && reason.contains("1 partition")
    })
    .await;
    assert!(!log.is_drained());
    assert!(!exists(&settings).await);

    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", broker.brokers()).create().unwrap();
    let topic = NewTopic::new("events.parked", 1, TopicReplication::Fixed(1));
    for made in admin.create_topics([&topic], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    eventually("all is acknowledged", || log.is_drained()).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    assert_eq!(read_parked(&settings, 1).await, [parked(1)]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_is_replaced_keeps_both_topics_in_order() {
    let broker = Tansu::start();
    let settings = settings(&broker.brokers(), 3);
    let (mut log, relay) = Log::relayed(settings.clone());
    append(&log.wal, mixed(0)).await;
    eventually("both topics are there", || log.is_drained()).await;
    broker.freeze();
    for n in 1..100 {
        append(&log.wal, mixed(n * 10)).await;
    }
    eventually("health tells of it", || log.state("broker").0 == State::Down).await;
    assert!(!log.is_drained(), "nothing leaves the log before both topics have it");
    broker.thaw();
    eventually("all is acknowledged", || log.is_drained()).await;
    log.events.extend((0..1000).step_by(2).map(|number| event(number).event_id));
    assert_topic_holds(&broker.brokers(), 3, &log.events).await;
    let mut seen = BTreeMap::new();
    for (place, row) in read_parked(&settings, 500).await.into_iter().enumerate() {
        seen.entry(row.event_id).or_insert(place);
    }
    assert_eq!(seen.len(), 500);
    assert!(seen.values().is_sorted(), "first copies are in the order of the log");
    relay.stop().await;
}

#[test]
fn a_node_stores_what_others_have_parked_once_their_topic_is_there() {
    let broker = Tansu::start();
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).broker(&broker.brokers()).start();
    let clickhouse = engine.clickhouse();
    engine.ingest(br#"{"type":"pageview","path":"/"}"#);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    assert!(engine.component("parked_broker").is_null(), "no consumer before there is a topic");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let other = Settings { topic: "overwatch.events".into(), ..settings(&broker.brokers(), 4) };
        let (log, relay) = Log::relayed(other);
        for n in 0..20 {
            append(&log.wal, mixed(n * 10)).await;
        }
        eventually("all is acknowledged", || log.is_drained()).await;
        relay.stop().await;
    });
    clickhouse.wait_for("SELECT count() FROM overwatch.parked", "100");
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "101");
    assert_eq!(engine.metric("ingestion_sink_parked_rows_total"), 100);
    assert!(!engine.component("parked_broker").is_null());
}

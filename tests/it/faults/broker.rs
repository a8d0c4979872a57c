//! The broker's side: relays that send again, sinks that come and go.

use std::{
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message,
    message::{OwnedHeaders, OwnedMessage},
    producer::{BaseProducer, BaseRecord, Producer},
};

use ingestion_engine::broker;

use crate::{
    broker::rig::reader,
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, DEADLINE, Engine, Setup, eventually, signal},
        load::Load,
        tansu::Tansu,
    },
};

const TOPIC: &str = "overwatch.events";
const PARTITIONS: i32 = 4;

/// The first `rows` rows of the topic, as messages.
fn messages(broker: &Tansu, rows: usize) -> Vec<OwnedMessage> {
    let consumer = reader(&broker.brokers(), TOPIC, PARTITIONS);
    let deadline = Instant::now() + DEADLINE;
    let (mut read, mut messages) = (0, Vec::new());
    while read < rows {
        assert!(Instant::now() < deadline, "in vain read the topic: {read} rows of {rows}");
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        read += broker::message::entries(message.payload().unwrap()).count();
        messages.push(message.detach());
    }
    messages
}

/// Sends `messages` once more, each into its partition, as a relay does whose acknowledgements were lost.
fn send_again(broker: &Tansu, messages: &[OwnedMessage]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker.brokers()).set("acks", "all").create().unwrap();
    for message in messages {
        let record = BaseRecord::<(), [u8]>::to(TOPIC)
            .partition(message.partition())
            .payload(message.payload().unwrap())
            .headers(message.headers().map_or_else(OwnedHeaders::new, Clone::clone));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(DEADLINE).unwrap();
}

#[test]
fn what_a_relay_sends_again_is_dropped_also_by_a_sink_that_has_just_started() {
    let home = tempfile::tempdir().unwrap();
    let broker = Tansu::start();
    let setup = Setup::new(home.path()).broker(&broker.brokers());
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    let sent = load.stop();
    sent.is_stored_once(&engine.clickhouse());
    let rows = sent.acknowledged.len();
    let messages = messages(&broker, rows);

    let repeats = |engine: &Engine| engine.metric("ingestion_source_repeats_total");
    send_again(&broker, &messages);
    eventually("the repeats are dropped", || repeats(&engine) == rows as u64);
    assert!(engine.terminate().success());

    // Which of them were read before, only ClickHouse knows now.
    let engine = setup.start();
    engine.clickhouse().stop_merges();
    send_again(&broker, &messages);
    eventually("the repeats are dropped", || repeats(&engine) == rows as u64);
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    let mut all = load.stop();
    all.acknowledged.extend(sent.acknowledged);
    all.is_stored_once(&engine.clickhouse());
}

#[test]
fn sinks_that_join_leave_die_and_hang_lose_and_double_nothing() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Tansu::start();
    let server = Server::start(&home.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", server.port);
    let clickhouse = ClickHouse::at(&url);
    let setup = |folder| {
        Setup::new(folder)
            .broker(&broker.brokers())
            // A sink that says nothing for so long is taken for dead.
            .config("[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"")
            .env("INGESTION_CLICKHOUSE_URL", &url)
    };
    let engine = setup(home.path()).start();
    eventually("the tables are there", || clickhouse.try_query("SELECT count() FROM overwatch.sink_ranges").is_ok());
    clickhouse.stop_merges();
    let load = Load::start(&engine);
    for end in ["leave", "die", "hang"] {
        let mut second = setup(other.path()).env("INGESTION_ROLES", "sink").start();
        eventually("the second sink has a part of the work", || second.metric("ingestion_sink_rows_total") > 0);
        match end {
            "leave" => assert!(second.terminate().success()),
            "die" => second.kill(),
            _ => {
                signal(second.pid(), "STOP");
                // Its partitions are taken over; then it goes on where it stood.
                thread::sleep(Duration::from_secs(9));
                signal(second.pid(), "CONT");
                thread::sleep(Duration::from_secs(3));
                assert!(second.terminate().success());
            }
        }
        load.wait_for_requests(20);
    }
    let sent = load.stop();
    assert_eq!((sent.refused.clone(), sent.broken), (Vec::new(), 0), "accepted throughout");
    sent.is_stored_once(&clickhouse);
}

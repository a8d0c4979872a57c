//! The whole engine against librdkafka's mock cluster: three brokers in this process that answer with any error, lose their
//! leaders, go away and come back, and take their time.
//!
//! The mock keeps 5 MB of a partition and drops the oldest, so the load is gentle. It does not look at the sequences of an
//! idempotent producer (only at those of transactions): when it refuses one request it takes the next one that is on its way,
//! which a broker does not. So batches follow each other slowly, and what was overtaken all the same, in the topic as it lies
//! there, is not the engine's loss.

use std::{collections::HashSet, time::Duration};

use rdkafka::{
    mocking::{MockCluster, MockCoordinator},
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error},
};
use uuid::Uuid;

use crate::{
    broker::rig::{deduplicated, read_partitions, until_held},
    support::{
        engine::{ClickHouse, Engine, Setup, eventually},
        load::Load,
    },
};

const TOPIC: &str = "overwatch.events";
const PARTITIONS: i32 = 4;
const BROKERS: i32 = 3;
const REST: Duration = Duration::from_millis(100);

struct Rig {
    load: Load,
    clickhouse: ClickHouse,
    engine: Engine,
    cluster: MockCluster<'static, DefaultProducerContext>,
    _home: tempfile::TempDir,
}

/// An engine under load whose events arrive.
fn rig() -> Rig {
    let cluster = MockCluster::new(BROKERS).unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, BROKERS).unwrap();
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path())
        .broker(&cluster.bootstrap_servers())
        .config("[sink]\nmax_age = \"50ms\"\n[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"")
        .config("\"linger.ms\" = \"700\"")
        .start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let load = Load::start_with(&engine, REST);
    let rig = Rig { load, clickhouse, engine, cluster, _home: home };
    rig.arrives("before any fault");
    rig
}

impl Rig {
    /// What is sent from now on goes all the way.
    fn arrives(&self, when: &str) {
        self.load.wait_for_requests(4);
        for series in ["ingestion_relay_events_total", "ingestion_sink_rows_total"] {
            let target = self.engine.metric(series) + 20;
            eventually(&format!("events arrive {when} ({series})"), || self.engine.metric(series) >= target);
        }
    }

    /// The next requests of a kind are answered with `error`, on every connection.
    fn meets(&self, api: Api, error: Error) {
        eprintln!("{api:?}: {error:?}");
        self.cluster.request_errors(api, &[error; 4]);
        self.arrives(&format!("after {error:?} to {api:?}"));
        // Of a kind that is seldom sent some may be left.
        self.cluster.clear_request_errors(api);
    }

    /// Accepted throughout; stored once; nothing was skipped; health is up by itself.
    fn ends_well(self) {
        let mut sent = self.load.stop();
        assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
        let overtaken = overtaken(&self.cluster.bootstrap_servers(), sent.acknowledged());
        eprintln!("{} events were overtaken in the topic", overtaken.len());
        sent.leave_out(&overtaken);
        sent.is_stored_once(&self.clickhouse);
        assert_eq!(self.engine.metric("ingestion_source_gap_offsets_total"), 0);
        assert_eq!(self.engine.metric_or_zero("ingestion_dead_letters_total"), 0);
        eventually("health clears by itself", || self.engine.get("/health").json()["status"] == "up");
    }
}

/// Those of `acknowledged` that a reader of the topic drops as repeats, because a later row of their log came first.
fn overtaken(brokers: &str, acknowledged: &HashSet<Uuid>) -> HashSet<Uuid> {
    let seen = read_partitions(brokers, TOPIC, PARTITIONS, until_held(acknowledged.len()));
    let kept: HashSet<Uuid> = deduplicated(&seen).0.into_iter().map(|event| event.0).collect();
    acknowledged.difference(&kept).copied().collect()
}

/// Not among them: those by which a broker says that a message is too large (it then goes to the dead letters), and
/// `DUPLICATE_SEQUENCE_NUMBER`, by which it says that it has the message: the mock has not.
#[test]
fn every_error_to_a_produce_request_is_outlived() {
    let rig = rig();
    for error in [
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
        Error::RD_KAFKA_RESP_ERR_INVALID_MSG,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Error::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Error::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION,
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
    ] {
        rig.meets(Api::Produce, error);
    }
    rig.ends_well();
}

#[test]
fn every_fatal_error_to_a_produce_request_is_outlived() {
    let rig = rig();
    for error in [
        Error::RD_KAFKA_RESP_ERR_UNKNOWN,
        Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        Error::RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
        Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        Error::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
        Error::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
        Error::RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT,
        Error::RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
        Error::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
        Error::RD_KAFKA_RESP_ERR_INVALID_RECORD,
        Error::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
        Error::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
        Error::RD_KAFKA_RESP_ERR_INVALID_REQUEST,
    ] {
        let before = rig.engine.metric("ingestion_relay_rebuilds_total");
        rig.meets(Api::Produce, error);
        eprintln!("rebuilt {} times", rig.engine.metric("ingestion_relay_rebuilds_total") - before);
    }
    rig.ends_well();
}

#[test]
fn every_error_to_a_fetch_request_is_outlived() {
    let rig = rig();
    for error in [
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN,
        Error::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
        Error::RD_KAFKA_RESP_ERR_INVALID_MSG,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Error::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Error::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        Error::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
        Error::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
    ] {
        rig.meets(Api::Fetch, error);
    }
    rig.ends_well();
}

#[test]
fn every_error_to_a_commit_is_outlived() {
    let rig = rig();
    for error in [
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Error::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
        Error::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Error::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        Error::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        Error::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        Error::RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
        Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        Error::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        Error::RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
    ] {
        rig.meets(Api::OffsetCommit, error);
    }
    rig.ends_well();
}

#[test]
fn every_error_of_the_group_is_outlived() {
    let rig = rig();
    // A heartbeat that fails makes the member join again, and that meets the errors of joining.
    let join_again = || rig.cluster.request_errors(Api::Heartbeat, &[Error::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    for error in [
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
        Error::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Error::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        Error::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        Error::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        Error::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN,
    ] {
        for api in [Api::JoinGroup, Api::SyncGroup, Api::OffsetFetch, Api::FindCoordinator, Api::Heartbeat] {
            rig.cluster.request_errors(api, &[error; 2]);
            join_again();
            rig.arrives(&format!("after {error:?} to {api:?}"));
            rig.cluster.clear_request_errors(api);
            rig.cluster.clear_request_errors(Api::Heartbeat);
        }
    }
    rig.ends_well();
}

/// Not a partition without any leader: the mock itself does not survive a fetch from one.
#[test]
fn leaders_and_coordinators_that_move_and_brokers_that_go_lose_nothing() {
    let rig = rig();
    let group = "ingestion-engine".to_owned();
    for round in 0..BROKERS {
        for partition in 0..PARTITIONS {
            rig.cluster.partition_leader(TOPIC, partition, Some(1 + (partition + round) % BROKERS)).unwrap();
        }
        rig.cluster.coordinator(MockCoordinator::Group(group.clone()), 1 + round).unwrap();
        rig.arrives("after the leaders have moved");
        // One broker goes, and what it led goes to another.
        let (gone, next) = (1 + round, 1 + (round + 1) % BROKERS);
        rig.cluster.broker_down(gone).unwrap();
        for partition in 0..PARTITIONS {
            rig.cluster.partition_leader(TOPIC, partition, Some(next)).unwrap();
        }
        rig.cluster.coordinator(MockCoordinator::Group(group.clone()), next).unwrap();
        rig.arrives("while a broker is away");
        rig.cluster.broker_up(gone).unwrap();
    }
    rig.ends_well();
}

#[test]
fn all_brokers_that_go_and_come_back_lose_nothing() {
    let rig = rig();
    for _ in 0..2 {
        for broker in 1..=BROKERS {
            rig.cluster.broker_down(broker).unwrap();
        }
        eventually("health names the brokers", || rig.engine.component("relay")["state"] == "down");
        assert_eq!(rig.engine.get("/health/ready").status, 200, "ready means: can accept durably");
        rig.load.wait_for_requests(100);
        for broker in 1..=BROKERS {
            rig.cluster.broker_up(broker).unwrap();
        }
        rig.arrives("after all brokers were away");
    }
    rig.ends_well();
}

#[test]
fn brokers_with_round_trips_of_two_seconds_lose_nothing() {
    let rig = rig();
    for broker in 1..=BROKERS {
        rig.cluster.broker_round_trip_time(broker, Duration::from_secs(2)).unwrap();
    }
    for _ in 0..3 {
        rig.arrives("at two seconds a round trip");
    }
    assert_eq!(rig.engine.metric("ingestion_relay_rebuilds_total"), 0, "slow is not broken");
    for broker in 1..=BROKERS {
        rig.cluster.broker_round_trip_time(broker, Duration::ZERO).unwrap();
    }
    rig.arrives("at full speed again");
    rig.ends_well();
}

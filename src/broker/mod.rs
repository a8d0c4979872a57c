//! Redpanda or Kafka, through librdkafka: what the relay writes to and the sink of a cluster reads from.
//!
//! ```text
//! key -> partitioner::partition -> producer (relay) -> topic -> consumer group -> source::KafkaSource -> sink
//!                                                   topic::watch: made, checked, counted
//! ```
//!
//! # What the engine relies on
//! - A topic keeps what it acknowledged: replication, `min.insync.replicas` and retention are set when the engine makes
//!   the topic, and an existing topic that is weaker is reported in health, by setting.
//! - One session's events share a partition (murmur2, as Kafka's own producers compute it). When the number of
//!   partitions is raised, new records go by the new number: a session may then move to another partition, and events
//!   from before and after the change can be read in either order. Within one partition order holds. A record that
//!   was already sent in part keeps the number under which it was first sent for as long as this process lives.
//! - Properties of the operator pass through to librdkafka, except those on which the guarantees rest
//!   ([`PROTECTED_PROPERTIES`]).
//!
//! # What this is not
//! It is no general Kafka client: one topic of events and one of parked events, a group for each, rows of this engine.

mod context;
pub mod find;
pub mod message;
pub mod partitioner;
pub mod source;
mod status;
mod topic;
mod unread;

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError};
use thiserror::Error;

pub(crate) use context::ClientEvents;
pub use message::Format;
pub(crate) use status::{Severity, Status};
pub use topic::exists;
pub(crate) use topic::{TopicWatch, watch};
pub(crate) use unread::{Unread, UnreadRow, unread};

/// Room that a message's headers and framing take beside its rows.
pub(crate) const MESSAGE_OVERHEAD: usize = 512;

/// Properties that the operator cannot change, because a guarantee rests on each of them; aliases included.
pub const PROTECTED_PROPERTIES: &[&str] = &[
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "message.send.max.retries",
    "retries",
    "queuing.strategy",
    "transactional.id",
    "message.max.bytes",
    "compression.type",
    "compression.codec",
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.protocol",
    "group.remote.assignor",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "isolation.level",
    "check.crcs",
];

/// Which part of the memory for events is allowed for parked events on top: one partition and no hurry.
const PARKED_BUFFER_PART: usize = 8;

/// What a topic carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carries {
    /// Events, for everybody.
    #[default]
    Events,
    /// Parked events, for the sinks of this engine.
    Parked,
}

impl Carries {
    /// As a metric is labelled.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Parked => "parked",
        }
    }
}

/// How to reach the broker and what to expect of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// The topic that carries the rows.
    pub topic: String,
    /// Which rows these are.
    pub carries: Carries,
    /// Partitions of the topic when the engine makes it.
    pub partitions: u32,
    /// Copies of each partition, when the engine makes the topic; less is reported.
    pub replication_factor: u32,
    /// Copies that must be in sync for an acknowledgement; less is reported.
    pub min_insync_replicas: u32,
    /// How long the topic keeps a record; less is reported. The sink must be back within this time.
    pub retention: Duration,
    /// Make the topic when it does not exist.
    pub create_topic: bool,
    /// Most rows in one message. One message is never split between two inserts.
    pub batch_size: usize,
    /// How rows are written into the topic of events; both are read.
    pub format: Format,
    /// Most bytes of one message, headers included. A row above it goes to the dead letters.
    pub max_message_bytes: usize,
    /// `none`, `lz4`, `zstd`, `snappy` or `gzip`.
    pub compression: String,
    /// Most bytes of messages that wait for their acknowledgement.
    pub in_flight_bytes: usize,
    /// How long messages in flight may take to be acknowledged when the relay is told to stop.
    pub drain: Duration,
    /// The sink's consumer group.
    pub group: String,
    /// Most bytes of rows that the source holds in memory, ranges given out included. Ranges are closed early when it is
    /// reached.
    pub buffer_bytes: usize,
    /// Most ranges under way at a time: those that the sink inserts side by side, and one that is ready when it is done with
    /// one of them.
    pub ranges_under_way: usize,
    /// How long a rebalance waits for an insert under way to end before the partition is given up.
    pub revoke_wait: Duration,
    /// Further properties of librdkafka (SASL, TLS, tuning), for producer and consumer.
    pub properties: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            topic: "events".into(),
            carries: Carries::Events,
            partitions: 6,
            replication_factor: 3,
            min_insync_replicas: 2,
            retention: Duration::from_hours(14 * 24),
            create_topic: true,
            batch_size: 1000,
            format: Format::Binary,
            // Kafka's own default limit is 1,048,588 bytes for a compressed batch.
            max_message_bytes: 1_000_000,
            compression: "lz4".into(),
            in_flight_bytes: 64 << 20,
            drain: Duration::from_secs(10),
            group: "ingestion-engine".into(),
            buffer_bytes: 256 << 20,
            ranges_under_way: 3,
            revoke_wait: Duration::from_secs(20),
            properties: BTreeMap::new(),
        }
    }
}

/// Why a client of the broker cannot be made. An absent broker is no error: clients wait for it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// librdkafka refuses the configuration.
    #[error("the broker client's configuration is refused")]
    Configuration(#[source] KafkaError),
    /// A thread could not be started.
    #[error("a thread of the broker client cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Settings {
    /// Refuses what librdkafka would refuse, before anything is started.
    ///
    /// # Errors
    /// [`BrokerError::Configuration`] with librdkafka's own words.
    pub fn check(&self) -> Result<(), BrokerError> {
        for config in [self.producer_config(), self.consumer_config()] {
            config.create_native_config().map_err(BrokerError::Configuration)?;
        }
        Ok(())
    }

    /// Name of the topic of parked events.
    pub fn parked_topic(&self) -> String {
        format!("{}.parked", self.topic)
    }

    /// The settings of the topic of parked events: one partition, because they are few and their order is that of the
    /// log; a group of its own, because members of one group must read the same topics.
    #[must_use]
    pub fn parked(&self) -> Self {
        Self {
            topic: self.parked_topic(),
            carries: Carries::Parked,
            partitions: 1,
            group: format!("{}-parked", self.group),
            buffer_bytes: self.buffer_bytes / PARKED_BUFFER_PART,
            ..self.clone()
        }
    }

    /// Properties of the operator that are not applied, because a guarantee rests on them.
    pub fn refused_properties(&self) -> Vec<&str> {
        self.properties.keys().map(String::as_str).filter(|name| PROTECTED_PROPERTIES.contains(name)).collect()
    }

    /// What every client of the broker has in common, the operator's properties included.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Lines reach tracing, which filters them; librdkafka makes debug lines only for the operator's "debug" property.
        let debug = self.properties.contains_key("debug");
        config.set_log_level(if debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        // An outage ends within seconds of the broker's return, not after librdkafka's ten.
        config.set("reconnect.backoff.ms", "100").set("reconnect.backoff.max.ms", "2000");
        // Idle connections that a broker or a load balancer closes are no news.
        config.set("log.connection.close", "false");
        // A new partition is read and written soon after it is made (default: five minutes).
        config.set("topic.metadata.refresh.interval.ms", "30000");
        for (name, value) in &self.properties {
            if !PROTECTED_PROPERTIES.contains(&name.as_str()) {
                config.set(name, value);
            }
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// The relay's producer: no message is given up, none overtakes another.
    pub(crate) fn producer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        let defaults = [
            // Messages of one partition that become ready together share a request. Each costs a round of librdkafka and of
            // the broker: with 5 ms instead a million events cost 0.5 CPU seconds more.
            ("linger.ms", "25".to_owned()),
            // The relay itself bounds what is in flight, by bytes; these only must not bite first.
            ("queue.buffering.max.messages", "0".to_owned()),
            ("queue.buffering.max.kbytes", (self.in_flight_bytes / 512).clamp(1 << 10, 2_000_000).to_string()),
        ];
        for (name, value) in defaults {
            if !self.properties.contains_key(name) {
                config.set(name, value);
            }
        }
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            .set("message.timeout.ms", "0")
            .set("compression.type", &self.compression)
            .set("message.max.bytes", self.max_message_bytes.to_string());
        config
    }

    /// The source's consumer: nothing is committed, stored or reset unless the source says so.
    pub(crate) fn consumer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        let defaults = [
            ("fetch.wait.max.ms", "100"),
            // A node that died is replaced after this time. Heartbeats come from a thread of their own, so that a busy
            // node is not taken for a dead one.
            ("session.timeout.ms", "10000"),
            // What librdkafka reads ahead comes on top of the source's own buffer, so it is kept small, and looked at
            // again soon when it was full.
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.queue.backoff.ms", "20"),
        ];
        for (name, value) in defaults {
            if !self.properties.contains_key(name) {
                config.set(name, value);
            }
        }
        config
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "false")
            .set("auto.offset.reset", "error")
            .set("partition.assignment.strategy", "range")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true");
        config
    }
}

#[cfg(test)]
mod tests;

//! A log with a relay, a source with a stand-in for the sink, and what a reader of the topic sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ingestion_engine::{
    broker::{Carries, Settings, message, source::KafkaSource},
    dead_letters::{DeadLetters, Letter, Limits, read_files},
    health::{Health, State},
    ids::{EventId, TenantId, WalId, WalSeq},
    metrics::{CarriesLabels, Metrics},
    relay::{Relay, RelayError},
    row::{self, EventRow},
    sink::source::{Range, RangeLimits, Source},
    wal::{Append, Codec, Packer, Settings as WalSettings, Wal},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long anything may take that should take a moment: brokers are waited for, and two cores are shared.
pub const PATIENCE: Duration = Duration::from_mins(2);

pub const TOPIC: &str = "events";

/// Looks again until `condition` holds; fails with `what` when it does not in time.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Log lines of a test that fails are shown with it.
pub fn show_logs() {
    let levels = std::env::var("RUST_LOG").unwrap_or_else(|_| "ingestion_engine=debug".into());
    // A second test in this process finds it installed.
    tracing_subscriber::fmt().with_env_filter(levels).with_test_writer().try_init().ok();
}

pub fn settings(brokers: &str, partitions: u32) -> Settings {
    show_logs();
    let mut properties = BTreeMap::new();
    // The mock cluster holds a rebalance open for about a session when a member has left.
    properties.insert("session.timeout.ms".to_owned(), "6000".to_owned());
    if let Ok(debug) = std::env::var("KAFKA_DEBUG") {
        properties.insert("debug".to_owned(), debug);
    }
    Settings {
        brokers: brokers.into(),
        topic: TOPIC.into(),
        partitions,
        replication_factor: 1,
        min_insync_replicas: 1,
        group: "sink".into(),
        drain: Duration::from_secs(5),
        revoke_wait: Duration::from_secs(30),
        properties,
        ..Settings::default()
    }
}

pub fn limits(rows: usize, age: Duration) -> RangeLimits {
    RangeLimits { rows, bytes: 4 << 20, age, expiries: 20 }
}

/// A log in a temporary folder, and what was appended to it.
pub struct Log {
    pub home: TempDir,
    pub wal: Wal,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    /// Every event appended.
    pub events: BTreeSet<EventId>,
    tenant: TenantId,
}

/// A relay at work.
pub struct Running {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), RelayError>>,
}

impl Running {
    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Log {
    /// A new log, with the relay for `settings` at work.
    pub fn relayed(settings: Settings) -> (Self, Running) {
        let home = TempDir::new().unwrap();
        let metrics = Arc::new(Metrics::new());
        let health = Health::default();
        let wal_settings = WalSettings { min_free_bytes: 1 << 20, ..WalSettings::new(home.path().join("wal")) };
        let (wal, reader) = Wal::open(wal_settings, health.component("wal"), metrics.clone()).unwrap();
        let relay = Relay::new(
            settings,
            reader,
            wal.clone(),
            letters(&home, &metrics),
            health.component("broker"),
            metrics.clone(),
        );
        let cancel = CancellationToken::new();
        let task = tokio::spawn(relay.run(cancel.clone()));
        let tenant = TenantId(Uuid::now_v7());
        (Self { home, wal, metrics, health, events: BTreeSet::new(), tenant }, Running { cancel, task })
    }

    /// Appends one record of `rows` events over `sessions` sessions, each with `text`.
    pub async fn append_text(&mut self, rows: usize, sessions: usize, text: &str) {
        let mut packer = Packer::new(Codec::Lz4);
        let mut encoded = Vec::new();
        for number in 0..rows {
            let id = EventId(Uuid::now_v7());
            self.events.insert(id);
            let session = format!("session-{}", (self.events.len() + number) % sessions);
            let mut event = EventRow::new(self.tenant, id, "custom");
            event.session_id = session.as_str().into();
            event.received_at_ms = 1_795_000_000_000;
            event.timestamp_ms = 1_795_000_000_000;
            event.text = text.into();
            encoded.clear();
            row::encode(&event, &mut encoded);
            packer.push(&encoded);
        }
        let append = Append {
            tenant: self.tenant,
            received_at_ms: 1_795_000_000_000,
            chunks: packer.finish(),
            counted: false,
            answer: None,
            again: false,
        };
        self.wal.append(append).await.unwrap();
    }

    pub async fn append(&mut self, records: usize, rows: usize, sessions: usize) {
        for _ in 0..records {
            self.append_text(rows, sessions, "what was said").await;
        }
    }

    /// Everything appended has left the log.
    pub fn is_drained(&self) -> bool {
        self.wal.done_through().map_or(0, |seq| seq.0) + 1 >= self.wal.stats().next_seq.0
    }

    pub fn state(&self, component: &str) -> (State, String) {
        let report = self.health.snapshot()[component].clone();
        (report.state, report.reason.unwrap_or_default())
    }

    pub fn dead_letters(&self) -> Vec<Letter> {
        read_files(&self.home.path().join("dead-letters")).unwrap()
    }
}

fn letters(home: &TempDir, metrics: &Arc<Metrics>) -> DeadLetters {
    DeadLetters::new(home.path().join("dead-letters"), Limits::default(), metrics.clone())
}

/// Label of what a source of events shows.
pub const EVENTS: CarriesLabels = CarriesLabels { carries: "events" };

/// A source with its own metrics and health.
pub struct Reading {
    pub source: KafkaSource,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub home: TempDir,
}

impl Reading {
    pub fn start(settings: Settings, limits: RangeLimits) -> Self {
        let home = TempDir::new().unwrap();
        let metrics = Arc::new(Metrics::new());
        let health = Health::default();
        let dead_letters = letters(&home, &metrics);
        let component = health.component("source");
        let source = KafkaSource::new(settings, limits, dead_letters, None, component, metrics.clone()).unwrap();
        Self { source, metrics, health, home }
    }

    pub fn state(&self) -> (State, String) {
        let report = self.health.snapshot()["source"].clone();
        (report.state, report.reason.unwrap_or_default())
    }

    /// How many partitions the group has given to it.
    pub fn partitions(&self) -> i64 {
        self.metrics.source_partitions.get_or_create(&EVENTS).get()
    }

    pub async fn next(&mut self) -> Range {
        tokio::time::timeout(PATIENCE, self.source.next()).await.expect("in vain waited for a range").unwrap()
    }

    /// Takes and commits ranges until every event of `expected` was in one. Fails when one came twice, unless `repeats`.
    pub async fn store(&mut self, expected: &BTreeSet<EventId>, repeats: bool) -> Vec<Range> {
        self.store_rest(expected, &mut BTreeSet::new(), repeats).await
    }

    /// The same when some of them are `stored`, to which the others are added.
    pub async fn store_rest(
        &mut self,
        expected: &BTreeSet<EventId>,
        stored: &mut BTreeSet<EventId>,
        repeats: bool,
    ) -> Vec<Range> {
        let mut ranges = Vec::new();
        while !expected.is_subset(stored) {
            let range = self.next().await;
            for row in rows(&range) {
                assert!(stored.insert(row.event) || repeats, "{} came twice, in {}", row.event, range.id);
            }
            self.source.commit(&range).await.unwrap();
            ranges.push(range);
        }
        ranges
    }
}

/// What a test wants of a row of an insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub event: EventId,
    pub wal_id: WalId,
    pub seq: WalSeq,
    pub ordinal: u32,
    pub topic: String,
    pub partition: u32,
    pub offset: u64,
}

/// Decodes the rows of a range, to the last byte.
pub fn rows(range: &Range) -> Vec<Row> {
    let body = range.body.by_row();
    let mut input: &[u8] = &body;
    let mut rows = Vec::new();
    while !input.is_empty() {
        let event = EventRow::read_binary(&mut input).unwrap().event_id;
        let mut take = |count: usize| {
            let (head, tail) = input.split_at(count);
            input = tail;
            head
        };
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let wal_id = WalId(Uuid::from_u64_pair(number(take(8)), number(take(8))));
        let seq = WalSeq(number(take(8)));
        let ordinal = u32::from_le_bytes(take(4).try_into().unwrap());
        take(8);
        let length = usize::from(take(1)[0]);
        let topic = String::from_utf8(take(length).to_vec()).unwrap();
        let partition = u32::from_le_bytes(take(4).try_into().unwrap());
        let offset = number(take(8));
        assert_eq!((topic.as_str(), partition), (range.id.topic.as_str(), range.id.partition));
        assert!((range.id.first..=range.id.last).contains(&offset), "{offset} outside of {}", range.id);
        rows.push(Row { event, wal_id, seq, ordinal, topic, partition, offset });
    }
    assert_eq!(rows.len(), range.rows);
    rows
}

/// A message of the topic as any consumer sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub wal_id: WalId,
    /// Its rows, each with its record's sequence and its ordinal there.
    pub rows: Vec<((u64, u32), EventId)>,
    /// As any reader of JSON lines understands it.
    pub is_json: bool,
}

/// Reads the whole topic, from the beginning, until `enough` of it was seen.
pub async fn read_topic(brokers: &str, partitions: i32, enough: impl FnMut(&[Seen]) -> bool + Send) -> Vec<Seen> {
    tokio::task::block_in_place(|| read_partitions(brokers, TOPIC, partitions, enough))
}

/// Reads partitions of a topic from their beginning, in no group.
pub fn reader(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader of the test")
        .set("enable.auto.commit", "false")
        // Where librdkafka goes, too, when it asks for the beginning and the question fails.
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    consumer
}

/// The same of any topic. Blocks.
pub fn read_partitions(
    brokers: &str,
    topic: &str,
    partitions: i32,
    mut enough: impl FnMut(&[Seen]) -> bool,
) -> Vec<Seen> {
    let consumer = reader(brokers, topic, partitions);
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !enough(&seen) {
        let of = |partition: i32| seen.iter().filter(|message| message.partition == partition).count();
        let counts = || (0..partitions).map(of).collect::<Vec<_>>();
        assert!(Instant::now() < deadline, "in vain read the topic: messages of its partitions: {:?}", counts());
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let headers: BTreeMap<String, String> = message
            .headers()
            .unwrap()
            .iter()
            .map(|header| (header.key.to_owned(), String::from_utf8(header.value.unwrap().to_vec()).unwrap()))
            .collect();
        assert!(message.key().is_none());
        let entries = message::entries(message.payload().unwrap());
        let parts: Vec<_> = entries.map(|(_, entry)| entry.decode(Carries::Events).unwrap()).collect();
        let rows: Vec<_> =
            parts.iter().map(|(row, origin)| ((origin.wal_seq, origin.wal_ordinal), row.event_id())).collect();
        let found = Seen {
            partition: message.partition(),
            offset: message.offset(),
            wal_id: WalId(headers["wal_id"].parse().unwrap()),
            rows,
            is_json: serde_json::Deserializer::from_slice(message.payload().unwrap())
                .into_iter::<serde_json::Value>()
                .all(|line| line.is_ok_and(|line| line.is_object())),
        };
        assert_eq!(headers["rows"], found.rows.len().to_string());
        let first = (headers["wal_seq"].parse().unwrap(), headers["wal_ordinal"].parse().unwrap());
        assert_eq!(found.rows[0].0, first);
        for (_, origin) in &parts {
            assert_eq!(origin.wal_id, found.wal_id);
        }
        seen.push(found);
    }
    seen
}

/// The events that a reader of the topic has who drops, per partition and log, what is not above its mark. Because it
/// drops what came too late, an event is missing here when a later one of its partition came before it.
pub fn deduplicated(seen: &[Seen]) -> (Vec<EventId>, usize) {
    let mut marks: BTreeMap<(i32, WalId), (u64, u32)> = BTreeMap::new();
    let mut offsets: BTreeMap<i32, i64> = BTreeMap::new();
    let (mut events, mut dropped) = (Vec::new(), 0);
    for message in seen {
        let before = offsets.insert(message.partition, message.offset);
        assert!(before.is_none_or(|before| before < message.offset));
        assert!(message.rows.is_sorted_by(|a, b| a.0 < b.0));
        let mark = marks.entry((message.partition, message.wal_id)).or_default();
        for (place, event) in &message.rows {
            // Sequences begin at 1, so nothing stands at the first mark.
            if place <= mark {
                dropped += 1;
            } else {
                *mark = *place;
                events.push(*event);
            }
        }
    }
    (events, dropped)
}

/// What has read enough once so many events were seen.
pub fn until_held(events: usize) -> impl FnMut(&[Seen]) -> bool + Send {
    let mut held = BTreeSet::new();
    let mut looked = 0;
    move |seen| {
        for message in &seen[looked..] {
            held.extend(message.rows.iter().map(|(_, event)| *event));
        }
        looked = seen.len();
        held.len() >= events
    }
}

/// Asserts that the topic holds every event of `expected`, once and in order for a reader that drops duplicates.
pub async fn assert_topic_holds(brokers: &str, partitions: i32, expected: &BTreeSet<EventId>) -> usize {
    let seen = read_topic(brokers, partitions, until_held(expected.len())).await;
    let (events, dropped) = deduplicated(&seen);
    assert_eq!(events.len(), expected.len(), "an event is there twice, or came after a later one");
    assert!(events.iter().copied().collect::<BTreeSet<_>>() == *expected);
    dropped
}

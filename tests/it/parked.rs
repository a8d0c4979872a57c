//! Parked events: from the log into their table, and back through their plugin, each once.

mod broker;
mod embedded;
mod reprocess;

use std::{path::Path, sync::Arc, time::Duration};

use ingestion_engine::{
    clickhouse::Client,
    dead_letters::{DeadLetters, Limits},
    health::Health,
    ids::EventId,
    metrics::Metrics,
    row::{self, ParkedRow, Text},
    sink::{Settings, Sink, source::RangeLimits, source::Source, wal_source::WalSource},
    wal::{self, Append, Codec, Packer, Reader, Wal},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{
    clickhouse::number,
    eventually,
    rows::{FAR, NOW_MS, event},
};

/// The plugin that could not be used.
const PLUGIN: &str = "redact";

/// What the sender of the `number`th parked event wrote: with white space that is to stay, and for every third without id.
fn raw(number: u64) -> String {
    let id = parked_id(number).0;
    let id = if number.is_multiple_of(3) { String::new() } else { format!("\"id\": \"{id}\", ") };
    format!("{{ {id}\"type\":\t\"custom\", \"name\":\"n{number}\", \"text\":\"\\u00e9 'quoted' \\\\ €\"}}\n")
}

fn parked_id(number: u64) -> EventId {
    EventId(Uuid::from_u128(0x7fff_8000_0000_0000_0000 + u128::from(number)))
}

/// The `number`th parked event: of the tenants, and of the moments, that events have.
fn parked(number: u64) -> ParkedRow<'static> {
    ParkedRow {
        tenant_id: event(number).tenant_id,
        event_id: parked_id(number),
        timestamp_ms: NOW_MS,
        received_at_ms: NOW_MS,
        expires_at: FAR,
        plugin: PLUGIN.into(),
        kind: "custom".into(),
        reason: "quarantined: it's broken".into(),
        raw: Text(raw(number).into()),
    }
}

fn encode_parked(row: &ParkedRow<'_>) -> Vec<u8> {
    let mut encoded = Vec::new();
    row::encode_parked(row, &mut encoded);
    encoded
}

fn encode_event(number: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    row::encode(&event(number), &mut encoded);
    encoded
}

/// A request of ten rows from `first` on, of which every other is parked.
fn mixed(first: u64) -> Vec<Vec<u8>> {
    let row =
        |number: u64| if number.is_multiple_of(2) { encode_event(number) } else { encode_parked(&parked(number)) };
    (first..first + 10).map(row).collect()
}

async fn append(wal: &Wal, rows: impl IntoIterator<Item = Vec<u8>>) {
    let mut packer = Packer::new(Codec::Lz4);
    for row in rows {
        packer.push(&row);
    }
    let append = Append {
        tenant: event(0).tenant_id,
        received_at_ms: NOW_MS,
        chunks: packer.finish(),
        counted: false,
        answer: None,
        again: false,
    };
    wal.append(append).await.unwrap();
}

fn open_log(folder: &Path) -> (Wal, Reader) {
    let health = Health::default().component("wal");
    // These tests send events of the same ids again.
    let settings = wal::Settings { min_free_bytes: 1 << 20, dedup_ids: 0, ..wal::Settings::new(folder.to_owned()) };
    Wal::open(settings, health, Arc::new(Metrics::new())).unwrap()
}

fn limits(rows: usize) -> RangeLimits {
    RangeLimits { rows, bytes: 32 << 20, age: Duration::from_millis(20), expiries: 20 }
}

fn wal_source(wal: &Wal, reader: Reader, home: &Path, limits: RangeLimits) -> WalSource {
    let metrics = Arc::new(Metrics::new());
    let letters = DeadLetters::new(home.join("dead-letters"), Limits::default(), metrics.clone());
    let health = Health::default().component("source");
    WalSource::open(wal.clone(), reader, limits, letters, health, metrics).unwrap()
}

/// A sink at work.
struct Storing {
    task: tokio::task::JoinHandle<()>,
    cancel: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Storing {
    fn start(source: impl Source + 'static, client: Client) -> Self {
        let (cancel, metrics) = (CancellationToken::new(), Arc::new(Metrics::new()));
        let settings = Settings { retry_longest: Duration::from_millis(500), ..Settings::default() };
        let health = Health::default().component("sink");
        let folder = tempfile::tempdir().unwrap().path().join("dead-letters");
        let letters = DeadLetters::new(folder, Limits::default(), metrics.clone());
        let run = Sink::new(source, client, letters, settings, health, metrics.clone()).run(cancel.clone());
        Self { task: tokio::spawn(async { run.await.unwrap() }), cancel, metrics }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// Appends `rows`, a request each, to a log in `home`, and stores everything that is in it.
async fn store(home: &Path, client: &Client, requests: impl IntoIterator<Item = Vec<Vec<u8>>>) {
    let (wal, reader) = open_log(&home.join("wal"));
    for rows in requests {
        append(&wal, rows).await;
    }
    let last = wal.stats().next_seq.0 - 1;
    let storing = Storing::start(wal_source(&wal, reader, home, limits(1000)), client.clone());
    eventually("the log is done", || async { wal.done_through().is_some_and(|done| done.0 == last) }).await;
    storing.stop().await;
    wal.close().await.unwrap();
}

/// Fails unless the tables hold the first `count` rows of [`mixed`] requests, each once and whole.
async fn assert_mixed_stored_once(client: &Client, count: u64) {
    let half = count / 2;
    assert_eq!(number(client, "SELECT count() FROM {db}.events").await, half);
    assert_eq!(number(client, "SELECT uniqExact(event_id) FROM {db}.events").await, half);
    assert_eq!(number(client, "SELECT sum(events) FROM {db}.events_by_minute").await, half);
    assert_eq!(number(client, "SELECT count() FROM {db}.parked_events").await, half);
    assert_eq!(number(client, "SELECT count() FROM {db}.parked").await, half);
    assert_eq!(number(client, "SELECT uniqExact(wal_id, wal_seq, wal_ordinal) FROM {db}.parked").await, half);
    let whole = "SELECT count() FROM {db}.parked WHERE plugin = 'redact' AND type = 'custom' AND expires_at = 4102444800 \
                 AND reason = 'quarantined: it\\'s broken' AND received_at = fromUnixTimestamp64Milli(1790000000000) \
                 AND wal_ordinal % 2 = 1 AND endsWith(raw, '\\\\u00e9 \\'quoted\\' \\\\\\\\ €\"}\\n')";
    assert_eq!(number(client, whole).await, half);
    let strangers = "SELECT count() FROM {db}.events WHERE event_id IN (SELECT event_id FROM {db}.parked_events)";
    assert_eq!(number(client, strangers).await, 0, "a parked event is in events");
}

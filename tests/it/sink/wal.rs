//! The log as the sink's source: ranges, restarts, and the way from the log into the tables.

use std::{fs, path::Path, sync::Arc, time::Duration};

use ingestion_engine::{
    dead_letters::{DeadLetters, Limits, read_files},
    health::Health,
    metrics::Metrics,
    row::{self, EventRow},
    sink::{
        source::{Range, RangeLimits, Source},
        wal_source::WalSource,
    },
    wal::{Append, Codec, Packer, Reader, Settings, Wal},
};
use tempfile::TempDir;

use super::{assert_stored_once, run};
use crate::support::{
    clickhouse::{ClickHouse, number, texts},
    eventually,
    rows::{FAR, NOW_MS, event},
};

/// A log in a folder of its own, and its source.
struct Node {
    wal: Wal,
    source: WalSource,
    metrics: Arc<Metrics>,
}

fn limits(rows: usize) -> RangeLimits {
    RangeLimits { rows, bytes: 32 << 20, age: Duration::from_millis(20), expiries: 20 }
}

fn open_log(home: &Path) -> (Wal, Reader) {
    let health = Health::default().component("wal");
    Wal::open(Settings::new(home.join("wal")), health, Arc::new(Metrics::new())).unwrap()
}

fn open(home: &Path, limits: RangeLimits) -> Node {
    let (wal, reader) = open_log(home);
    Node::over(wal, reader, home, limits)
}

/// Appends one request: one record, as long as it is small.
async fn append<'a>(wal: &Wal, events: impl IntoIterator<Item = EventRow<'a>>) {
    let encode = |event| {
        let mut encoded = Vec::new();
        row::encode(&event, &mut encoded);
        encoded
    };
    append_rows(wal, events.into_iter().map(encode)).await;
}

async fn append_rows(wal: &Wal, rows: impl IntoIterator<Item = Vec<u8>>) {
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

impl Node {
    fn over(wal: Wal, reader: Reader, home: &Path, limits: RangeLimits) -> Self {
        let metrics = Arc::new(Metrics::new());
        let letters = DeadLetters::new(home.join("dead-letters"), Limits::default(), metrics.clone());
        let health = Health::default().component("source");
        let source = WalSource::open(wal.clone(), reader, limits, letters, health, metrics.clone()).unwrap();
        Self { wal, source, metrics }
    }

    async fn commit_next(&mut self) -> Range {
        let range = self.source.next().await.unwrap();
        self.source.commit(&range).await.unwrap();
        range
    }

    async fn close(self) {
        drop(self.source);
        self.wal.close().await.unwrap();
    }
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn records_stay_whole_and_ranges_keep_within_their_rows() {
    let home = home();
    let mut node = open(home.path(), limits(100));
    for n in 0..10 {
        append(&node.wal, (n * 30..(n + 1) * 30).map(event)).await;
    }
    let mut rows = Vec::new();
    let mut next = None;
    while rows.iter().sum::<usize>() < 300 {
        let range = node.commit_next().await;
        assert_eq!(next.unwrap_or(range.id.first), range.id.first, "no record is left out");
        next = Some(range.id.last + 1);
        assert_eq!(range.id.to_string(), format!("wal/{}:0:{}-{}", node.wal.wal_id(), range.id.first, range.id.last));
        rows.push(range.rows);
    }
    // The age may close a range early; no range is larger than three records.
    assert!(rows.iter().all(|rows| rows % 30 == 0 && *rows <= 90), "{rows:?}");
    assert_eq!(node.metrics.source_events.get(), 300);
    node.close().await;
}

#[tokio::test]
async fn fifty_expiries_make_ranges_of_at_most_twenty() {
    let home = home();
    // Filled before it is read, so that it is the expiries and not the age that close a range.
    let (wal, reader) = open_log(home.path());
    for n in 0..50 {
        let expires_at = FAR + 3600 * u32::try_from(n).unwrap();
        append(&wal, (0..2).map(|k| EventRow { expires_at, ..event(2 * n + k) })).await;
    }
    let mut node = Node::over(wal, reader, home.path(), limits(1_000_000));
    let mut records = Vec::new();
    while records.iter().sum::<u64>() < 50 {
        let range = node.commit_next().await;
        records.push(range.id.last - range.id.first + 1);
    }
    assert_eq!(records, [20, 20, 10]);
    node.close().await;
}

#[tokio::test]
async fn a_range_never_spans_two_openings_of_the_log() {
    let home = home();
    let (wal, _reader) = open_log(home.path());
    let first = wal.wal_id();
    append(&wal, (0..10).map(event)).await;
    wal.close().await.unwrap();
    let mut node = open(home.path(), limits(1_000_000));
    append(&node.wal, (10..30).map(event)).await;
    let (old, new) = (node.commit_next().await, node.commit_next().await);
    assert_eq!((old.id.topic, old.rows), (format!("wal/{first}"), 10));
    assert_eq!((new.id.topic, new.rows), (format!("wal/{}", node.wal.wal_id()), 20));
    node.close().await;
}

#[tokio::test]
async fn a_restart_repeats_the_ranges_in_flight_whatever_the_limits_are_then() {
    let home = home();
    let mut node = open(home.path(), limits(90));
    for n in 0..10 {
        append(&node.wal, (n * 30..(n + 1) * 30).map(event)).await;
    }
    let first = node.source.next().await.unwrap();
    let second = node.source.next().await.unwrap();
    assert_eq!(second.id.first, first.id.last + 1);
    // Stored before the one in front of it: the log may not be truncated yet.
    node.source.commit(&second).await.unwrap();
    assert!(node.wal.done_through().is_none_or(|done| done.0 < first.id.first));
    node.close().await;

    let mut node = open(home.path(), limits(30));
    for expected in [&first, &second] {
        let repeated = node.source.next().await.unwrap();
        assert_eq!((&repeated.id, repeated.rows), (&expected.id, expected.rows));
    }
    node.source.commit(&first).await.unwrap();
    node.close().await;

    // The first is gone from the log by now, and its place in the list with it.
    let mut node = open(home.path(), limits(30));
    let repeated = node.source.next().await.unwrap();
    assert_eq!((&repeated.id, repeated.rows), (&second.id, second.rows));
    let next = node.source.next().await.unwrap();
    assert_eq!((next.id.first, next.rows), (second.id.last + 1, 30));
    node.source.commit(&repeated).await.unwrap();
    assert_eq!(node.wal.done_through().unwrap().0, second.id.last);
    // Given up and given out again, in its place.
    node.source.abandon(&next).await;
    assert_eq!(node.source.next().await.unwrap().id, next.id);
    node.close().await;
}

#[tokio::test]
async fn what_was_committed_is_not_repeated_even_if_the_log_forgot_its_mark() {
    let home = home();
    let mut node = open(home.path(), limits(30));
    for n in 0..3 {
        append(&node.wal, (n * 30..(n + 1) * 30).map(event)).await;
    }
    let first = node.source.next().await.unwrap();
    // A disk as a power loss leaves it: the log as it is now, the source's record as it is one commit later.
    let lost_power = tempfile::tempdir().unwrap();
    copy(&home.path().join("wal"), &lost_power.path().join("wal"));
    node.source.commit(&first).await.unwrap();
    let second = node.source.next().await.unwrap();
    let state = Path::new("wal/state/sink");
    fs::copy(home.path().join(state), lost_power.path().join(state)).unwrap();
    node.close().await;

    let mut node = open(lost_power.path(), limits(1000));
    let repeated = node.source.next().await.unwrap();
    assert_eq!((repeated.id, repeated.rows), (second.id, 30));
    node.close().await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_row_that_is_none_becomes_a_dead_letter_and_the_others_are_stored() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let home = home();
    let node = open(home.path(), limits(1000));
    let mut good = Vec::new();
    row::encode(&event(1), &mut good);
    let unknown_layout = [&[99], &good[1..]].concat();
    // Of another event: one of the same id would be taken for sent again.
    let mut torn = Vec::new();
    row::encode(&event(2), &mut torn);
    torn.truncate(torn.len() - 3);
    append_rows(&node.wal, [unknown_layout, good, torn]).await;
    // A record of nothing else is committed without an insert.
    append_rows(&node.wal, [vec![]]).await;

    let Node { wal, source, metrics } = node;
    let last = wal.stats().next_seq.0 - 1;
    let (task, cancel, _health, sink_metrics) = run(source, client.clone());
    eventually("the log is done", || async { wal.done_through().is_some_and(|done| done.0 == last) }).await;
    assert_stored_once(&client, 1).await;
    assert_eq!((metrics.dead_letters.get(), sink_metrics.sink_rows.get()), (3, 1));
    // The row in between keeps its place in the record.
    assert_eq!(number(&client, "SELECT toUInt64(any(wal_ordinal)) FROM {db}.events").await, 1);
    cancel.cancel();
    task.await.unwrap().unwrap();
    wal.close().await.unwrap();
    let letters = read_files(&home.path().join("dead-letters")).unwrap();
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert!(
        reasons[0].contains("row layout 99 is unknown") && reasons[1].contains("ends inside column"),
        "{reasons:?}"
    );
    assert_eq!(letters.iter().map(|letter| letter.wal_ordinal).collect::<Vec<_>>(), [0, 2, 0]);
}

#[tokio::test]
async fn everything_in_the_log_is_stored_once_through_crashes_of_both_sides() {
    let mut clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let home = home();
    let total = 40_000_u64;
    let (wal, reader) = open_log(home.path());
    drop(reader);
    for n in 0..total / 200 {
        append(&wal, (n * 200..(n + 1) * 200).map(event)).await;
    }
    wal.close().await.unwrap();

    for round in 1..=3_u64 {
        let Node { wal, source, .. } = open(home.path(), limits(2000));
        let (task, _cancel, health, _) = run(source, client.clone());
        let stored = || number(&client, "SELECT count() FROM {db}.events");
        eventually("some rows are stored", || async { stored().await >= round * 4000 }).await;
        // The sink dies with an insert somewhere on its way; ClickHouse in the second round too.
        if round == 2 {
            clickhouse.kill();
            eventually("the insert fails", || async { health.current().unwrap().reason.is_some() }).await;
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        wal.close().await.unwrap();
        if round == 2 {
            clickhouse.launch().await;
        }
    }

    let Node { wal, source, metrics: _ } = open(home.path(), limits(2000));
    let last = wal.stats().next_seq.0 - 1;
    let (task, cancel, ..) = run(source, client.clone());
    eventually("the log is done", || async { wal.done_through().is_some_and(|done| done.0 == last) }).await;
    assert_stored_once(&client, total).await;
    let provenance =
        "SELECT uniqExact(wal_id, wal_seq, wal_ordinal) FROM {db}.events WHERE topic = 'wal' AND offset = wal_seq";
    assert_eq!(number(&client, provenance).await, total);
    let lag = "SELECT toString(min(relayed_at) >= '2026-01-01' AND min(inserted_at) >= '2026-01-01') FROM {db}.events";
    assert_eq!(texts(&client, lag).await, ["1"]);
    cancel.cancel();
    task.await.unwrap().unwrap();
    wal.close().await.unwrap();
}

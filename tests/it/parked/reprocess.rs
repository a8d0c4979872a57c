//! Parked events go on, each once, whatever stops a run and wherever.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc};

use ingestion_engine::{
    clickhouse::Client,
    dead_letters::{self, DeadLetters, Limits, read_files},
    erasure::Erasures,
    event::{Acceptance, Types, read},
    metrics::Metrics,
    plugins::reprocess::{Batch, Outcome, Progress, Reprocess, ReprocessError, Rerun, Step, Summary},
    row::{self, EventRow, ParkedRow, Text},
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{PLUGIN, encode_parked, parked, raw, store};
use crate::support::{
    clickhouse::{ClickHouse, number, texts},
    rows::{FAR, event},
};

/// Stands in for the plugins, which are others' tests: reads the event as the engine does, and does what it asks for.
#[derive(Clone, Default)]
struct Asked {
    events: Arc<Mutex<u64>>,
}

impl Rerun for Asked {
    async fn rerun(&self, batch: Batch) -> Vec<Outcome> {
        *self.events.lock() += batch.events.len() as u64;
        let acceptance = Acceptance {
            tenant_id: batch.tenant_id,
            received_at_ms: batch.received_at_ms,
            expires_at: batch.expires_at,
            event_bytes: 256 << 10,
            oldest_ms: 0,
            latest_ms: i64::MAX,
        };
        let outcome = |raw: &str| {
            if raw.contains("\"drop\"") {
                return Outcome::Dropped;
            }
            if raw.contains("\"wait\"") {
                return Outcome::Waits { plugin: "other".into(), reason: "it panicked: no".into() };
            }
            match read(raw, &acceptance, &Types::default()) {
                Ok(row) => {
                    let mut encoded = Vec::new();
                    row::encode(&row, &mut encoded);
                    Outcome::Accepted(encoded)
                }
                Err((_, error)) => Outcome::Rejected { code: error.code.as_str().into(), detail: error.to_string() },
            }
        };
        batch.events.iter().map(|event| outcome(&event.raw)).collect()
    }
}

struct Rig {
    clickhouse: ClickHouse,
    client: Client,
    home: TempDir,
    metrics: Arc<Metrics>,
    asked: Asked,
    reprocess: Reprocess<Asked>,
}

impl Rig {
    async fn new() -> Self {
        let clickhouse = ClickHouse::start().await;
        let client = clickhouse.migrated().await;
        let home = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let letters = DeadLetters::new(home.path().join("letters"), Limits::default(), metrics.clone());
        let asked = Asked::default();
        let reprocess =
            Reprocess::new(client.clone(), Erasures::new(client.clone()), asked.clone(), letters, metrics.clone());
        Self { clickhouse, client, home, metrics, asked, reprocess }
    }

    /// Parks rows, in requests of a hundred.
    async fn park(&self, rows: impl IntoIterator<Item = ParkedRow<'static>>) {
        let encoded: Vec<_> = rows.into_iter().map(|row| encode_parked(&row)).collect();
        store(self.home.path(), &self.client, encoded.chunks(100).map(<[_]>::to_vec)).await;
    }

    async fn run(&self) -> Result<Summary, ReprocessError> {
        self.reprocess.run(PLUGIN, |_| ControlFlow::Continue(())).await
    }

    async fn number(&self, sql: &str) -> u64 {
        number(&self.client, sql).await
    }

    /// Fails unless the events are there, each once, in the table and in the views, with what they had when they were parked.
    async fn assert_stored_once(&self, events: u64) {
        assert_eq!(self.number("SELECT count() FROM {db}.events").await, events);
        assert_eq!(self.number("SELECT uniqExact(event_id) FROM {db}.events").await, events);
        assert_eq!(self.number("SELECT uniqExact(wal_id, wal_seq, wal_ordinal) FROM {db}.events").await, events);
        assert_eq!(self.number("SELECT sum(events) FROM {db}.events_by_minute").await, events);
        let as_parked = "SELECT count() FROM {db}.events AS e JOIN (SELECT * FROM {db}.parked_events FINAL) AS p \
             ON e.wal_id = p.wal_id AND e.wal_seq = p.wal_seq AND e.wal_ordinal = p.wal_ordinal \
             WHERE (e.tenant_id, e.event_id, e.timestamp, e.received_at, e.expires_at, e.type, e.relayed_at, e.topic, \
                    e.partition, e.offset) \
                 = (p.tenant_id, p.event_id, p.timestamp, p.received_at, p.expires_at, p.type, p.relayed_at, p.topic, \
                    p.partition, p.offset) AND endsWith(e.properties, '\\\\\\\\ €\"}')";
        assert_eq!(self.number(as_parked).await, events);
    }
}

fn other_raw(number: u64, json: &str) -> ParkedRow<'static> {
    ParkedRow { raw: Text(json.to_owned().into()), ..parked(number) }
}

#[tokio::test]
async fn parked_events_go_on_once_and_each_to_its_end() {
    let rig = Rig::new().await;
    // Else the expired row is gone before anybody can skip it.
    rig.client.execute("SYSTEM STOP MERGES").await.unwrap();
    rig.park((0..250).map(parked)).await;
    rig.park([
        other_raw(300, r#"{"type":"custom","name":"drop","x":"drop"}"#),
        other_raw(301, r#"{"type":"custom","half":"#),
        other_raw(302, r#"{"type":"custom"}"#),
    ])
    .await;
    // Of another plugin, and over: neither is touched. A row that is over when it arrives is not stored; this one has been.
    rig.park([ParkedRow { plugin: "other".into(), ..parked(400) }]).await;
    let over = "INSERT INTO `over-watch`.parked_events SELECT * REPLACE ('redact' AS plugin, generateUUIDv4() AS event_id, \
                toDateTime(1000000800, 'UTC') AS expires_at) FROM (SELECT * FROM `over-watch`.parked_events WHERE plugin = 'other')";
    rig.client.execute(over).await.unwrap();

    let summary = rig.run().await.unwrap();
    assert_eq!(summary, Summary { stored: 250, rejected: 2, dropped: 1, erased: 0, skipped: 1, left: 0 });
    rig.assert_stored_once(250).await;
    assert_eq!(texts(&rig.client, "SELECT toString(plugin) FROM {db}.parked ORDER BY 1").await, ["other", "redact"]);
    let letters = read_files(&rig.home.path().join("letters")).unwrap();
    let letter = letters.iter().find(|letter| letter.bytes == br#"{"type":"custom"}"#).unwrap();
    assert!(letter.reason.contains("a custom event needs"), "{letter:?}");
    assert_eq!((letter.stage, letter.form), (dead_letters::Stage::Reprocess, dead_letters::Form::Sent));
    assert!(!letter.event_id.0.is_nil() && !letter.wal_id.0.is_nil(), "{letter:?}");
    let text = rig.metrics.render();
    assert!(text.contains("ingestion_reprocessed_events_total{outcome=\"stored\"} 250"), "{text}");

    // Released rows hold no event any more, and a second run finds nothing.
    assert_eq!(rig.number("SELECT count() FROM {db}.parked_events WHERE released = 1 AND raw = ''").await, 253);
    assert_eq!(rig.run().await.unwrap(), Summary { skipped: 1, ..Summary::default() });
    rig.assert_stored_once(250).await;
    rig.client.execute("SYSTEM START MERGES").await.unwrap();
    rig.client.execute("OPTIMIZE TABLE `over-watch`.parked_events FINAL").await.unwrap();
    assert_eq!(rig.number("SELECT count() FROM {db}.parked_events WHERE released = 0 AND expires_at > now()").await, 1);
}

#[tokio::test]
async fn a_run_that_is_stopped_anywhere_doubles_and_loses_nothing() {
    let rig = Rig::new().await;
    // Three pages, with events of three tenants and two expiries between them.
    let row =
        |number: u64| ParkedRow { expires_at: FAR + 3600 * u32::from(number.is_multiple_of(2)), ..parked(number) };
    rig.park((0..2500).map(row)).await;
    let mut stops: VecDeque<Step> =
        [Step::Run, Step::Stored, Step::Stored, Step::Released, Step::Run, Step::Stored, Step::Released].into();
    let mut stopped = 0;
    let summary = loop {
        let next = stops.pop_front();
        // Stopped between two steps, as a crash would: nothing of this run is remembered.
        let run = rig.reprocess.run(PLUGIN, |Progress { step, .. }| match next {
            Some(stop) if stop == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        match run.await {
            Ok(summary) => break summary,
            Err(ReprocessError::Stopped) => stopped += 1,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(stopped, 7);
    assert_eq!(summary.left, 0);
    rig.assert_stored_once(2500).await;
    assert_eq!(rig.number("SELECT count() FROM {db}.parked").await, 0);
    // Stopped after it was stored, a page is not run again: 2500, and once more each page that was stopped before that.
    assert!(*rig.asked.events.lock() <= 2500 + 2 * 1000, "{}", rig.asked.events.lock());
}

#[tokio::test]
async fn a_run_that_is_dropped_anywhere_doubles_and_loses_nothing() {
    let rig = Rig::new().await;
    rig.park((0..2500).map(parked)).await;
    let mut dropped = 0;
    for polls in 1.. {
        // Whatever it waits for when it has been woken so often: a query, an insert on its way, the plugins.
        let mut run = std::pin::pin!(rig.run());
        let mut left = polls * 4;
        let ended = std::future::poll_fn(|context| {
            left -= 1;
            match run.as_mut().poll(context) {
                std::task::Poll::Ready(ended) => std::task::Poll::Ready(Some(ended)),
                std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                std::task::Poll::Pending => std::task::Poll::Pending,
            }
        })
        .await;
        match ended {
            Some(ended) => {
                assert_eq!(ended.unwrap().left, 0);
                break;
            }
            None => dropped += 1,
        }
    }
    assert!(dropped > 3, "{dropped}");
    rig.assert_stored_once(2500).await;
    assert_eq!(rig.number("SELECT count() FROM {db}.parked").await, 0);
}

#[tokio::test]
async fn a_clickhouse_that_dies_under_a_run_is_gone_on_with() {
    let mut rig = Rig::new().await;
    rig.park((0..1500).map(parked)).await;
    let clickhouse = &mut rig.clickhouse;
    let mut steps = 0;
    let failed = rig
        .reprocess
        .run(PLUGIN, |Progress { step, .. }| {
            steps += 1;
            // The first page is stored and not released.
            if step == Step::Stored && steps == 2 {
                clickhouse.kill();
            }
            ControlFlow::Continue(())
        })
        .await
        .unwrap_err();
    assert!(failed.to_string().contains("marking parked events as released failed"), "{failed}");
    rig.clickhouse.launch().await;
    let summary = rig.run().await.unwrap();
    assert_eq!((summary.stored, summary.left), (1500, 0));
    rig.assert_stored_once(1500).await;
}

#[tokio::test]
async fn a_plugin_that_cannot_take_an_event_ends_the_run_and_keeps_the_page() {
    let rig = Rig::new().await;
    rig.park((0..10).map(parked)).await;
    rig.park([other_raw(20, r#"{"type":"custom","name":"x","y":"wait"}"#)]).await;
    let error = rig.run().await.unwrap_err();
    assert_eq!(error.to_string(), "the events stay parked, because of plugin \"other\": it panicked: no");
    assert_eq!(rig.number("SELECT count() FROM {db}.events").await, 0);
    assert_eq!(rig.number("SELECT count() FROM {db}.parked").await, 11);
}

#[tokio::test]
async fn one_run_of_a_plugin_at_a_time() {
    let rig = Rig::new().await;
    rig.park((0..10).map(parked)).await;
    let other = rig.reprocess.run("other", |_| ControlFlow::Continue(()));
    let (first, second, other) = tokio::join!(rig.run(), rig.run(), other);
    assert_eq!(first.unwrap().stored, 10);
    assert!(matches!(second, Err(ReprocessError::Busy { .. })), "{second:?}");
    assert_eq!(other.unwrap(), Summary::default());
    // The turn is given back.
    assert_eq!(rig.run().await.unwrap(), Summary::default());
}

#[tokio::test]
async fn two_parked_events_with_one_id_become_one_row_and_neither_comes_back() {
    let rig = Rig::new().await;
    let twice = |number: u64| ParkedRow { event_id: parked(1).event_id, raw: Text(raw(1).into()), ..parked(number) };
    rig.park([twice(1), twice(1), parked(2)]).await;
    // One of them was sent before the plugin failed, too: that row in `events` is another, and not this one.
    let ParkedRow { tenant_id, event_id, .. } = parked(2);
    let sent_before = EventRow { tenant_id, event_id, kind: "custom".into(), ..event(0) };
    let mut encoded = Vec::new();
    row::encode(&sent_before, &mut encoded);
    store(rig.home.path(), &rig.client, [vec![encoded]]).await;
    let stopped = rig.reprocess.run(PLUGIN, |Progress { step, .. }| match step {
        Step::Stored => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped.await, Err(ReprocessError::Stopped)));
    let before = rig.number("SELECT count() FROM {db}.events").await;
    assert_eq!(*rig.asked.events.lock(), 3);
    let summary = rig.run().await.unwrap();
    assert_eq!((summary.stored, summary.left), (3, 0));
    assert_eq!(*rig.asked.events.lock(), 3, "what is stored is not run again");
    assert_eq!(rig.number("SELECT count() FROM {db}.events").await, before);
    assert_eq!(rig.number("SELECT count() FROM {db}.events_unique").await, 2);
}

#[tokio::test]
async fn what_was_erased_is_not_brought_back() {
    let rig = Rig::new().await;
    rig.park((0..10).map(parked)).await;
    rig.park([
        other_raw(20, r#"{"type":"custom","name":"n","user_id":"gone"}"#),
        other_raw(21, r#"{"type":"custom","name":"n","user_id":"stays"}"#),
    ])
    .await;
    // As the command writes it, which then deletes the rows; here they are still there, as for a run that has just read them.
    let tombstone = "INSERT INTO `over-watch`.erasures (id, tenant_id, user_id, before, kept_until) \
                     SELECT DISTINCT generateUUIDv4(), tenant_id, 'gone', toDateTime64('2105-01-01 00:00:00', 3, 'UTC'), \
                     now() + 1000 \
                     FROM `over-watch`.parked_events";
    rig.client.execute(tombstone).await.unwrap();
    let summary = rig.run().await.unwrap();
    assert_eq!(summary, Summary { stored: 11, erased: 1, ..Summary::default() });
    assert_eq!(rig.number("SELECT count() FROM {db}.events").await, 11);
    assert_eq!(rig.number("SELECT count() FROM {db}.events WHERE user_id = 'gone'").await, 0);
    assert_eq!(rig.number("SELECT count() FROM {db}.events WHERE user_id = 'stays'").await, 1);
}

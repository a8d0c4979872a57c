//! The sink against the real engine: what is in the table, and in the views, after whatever happens to ClickHouse.

mod outages;
mod tables;
mod wal;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use ingestion_engine::{
    clickhouse::{Client, Mode},
    dead_letters::{self, DeadLetters},
    health::{Component, Health},
    metrics::Metrics,
    plugins::tables::Tables,
    sink::{
        Settings, Sink, SinkError,
        source::{Range, RangeId, Source, SourceError},
    },
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::clickhouse::{number, template};

/// A source of ranges made beforehand: at most one of a partition at a time, like any source.
struct Prepared {
    waiting: VecDeque<Range>,
    in_flight: HashSet<u32>,
    log: Arc<Log>,
}

/// What a sink did with its ranges.
#[derive(Default)]
struct Log {
    committed: Mutex<Vec<RangeId>>,
    abandoned: Mutex<Vec<RangeId>>,
}

impl Source for Prepared {
    async fn next(&mut self) -> Result<Range, SourceError> {
        let free = self.waiting.iter().position(|range| !self.in_flight.contains(&range.id.partition));
        match free.and_then(|at| self.waiting.remove(at)) {
            Some(range) => {
                self.in_flight.insert(range.id.partition);
                Ok(range)
            }
            None => std::future::pending().await,
        }
    }

    async fn commit(&mut self, range: &Range) -> Result<(), SourceError> {
        self.in_flight.remove(&range.id.partition);
        self.log.committed.lock().push(range.id.clone());
        Ok(())
    }

    async fn abandon(&mut self, range: &Range) {
        self.in_flight.remove(&range.id.partition);
        self.log.abandoned.lock().push(range.id.clone());
    }
}

/// A sink that works on prepared ranges.
pub(crate) struct Running {
    task: JoinHandle<Result<(), SinkError>>,
    cancel: CancellationToken,
    log: Arc<Log>,
    health: Component,
    metrics: Arc<Metrics>,
}

impl Running {
    fn start(client: Client, ranges: impl IntoIterator<Item = Range>) -> Self {
        let log = Arc::<Log>::default();
        let source = Prepared { waiting: ranges.into_iter().collect(), in_flight: HashSet::new(), log: log.clone() };
        let (task, cancel, health, metrics) = run(source, client);
        Self { task, cancel, log, health, metrics }
    }

    pub(crate) fn start_with_tables(
        client: Client,
        ranges: impl IntoIterator<Item = Range>,
        tables: Tables,
        mode: Mode,
    ) -> Self {
        let log = Arc::<Log>::default();
        let source = Prepared { waiting: ranges.into_iter().collect(), in_flight: HashSet::new(), log: log.clone() };
        let (task, cancel, health, metrics) =
            run_with(source, client, |sink| sink.with_tables(tables, template(), mode));
        Self { task, cancel, log, health, metrics }
    }

    fn start_with_letters(client: Client, ranges: impl IntoIterator<Item = Range>, letters: DeadLetters) -> Self {
        let log = Arc::<Log>::default();
        let source = Prepared { waiting: ranges.into_iter().collect(), in_flight: HashSet::new(), log: log.clone() };
        let (task, cancel, health, metrics) = run_from(source, client, letters, |sink| sink);
        Self { task, cancel, log, health, metrics }
    }

    pub(crate) fn committed(&self) -> usize {
        self.log.committed.lock().len()
    }

    pub(crate) fn reason(&self) -> String {
        self.health.current().unwrap().reason.unwrap_or_default()
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

type Parts = (JoinHandle<Result<(), SinkError>>, CancellationToken, Component, Arc<Metrics>);

fn run(source: impl Source + 'static, client: Client) -> Parts {
    run_with(source, client, |sink| sink)
}

fn run_with<S: Source + 'static>(source: S, client: Client, with: impl FnOnce(Sink<S>) -> Sink<S>) -> Parts {
    // Made when the first letter comes.
    let folder = tempfile::tempdir().unwrap().path().join("dead-letters");
    let letters = DeadLetters::new(folder, dead_letters::Limits::default(), Arc::default());
    run_from(source, client, letters, with)
}

fn run_from<S: Source + 'static>(
    source: S,
    client: Client,
    letters: DeadLetters,
    with: impl FnOnce(Sink<S>) -> Sink<S>,
) -> Parts {
    let (cancel, metrics) = (CancellationToken::new(), Arc::new(Metrics::new()));
    let health = Health::default().component("sink");
    let settings = Settings { retry_longest: Duration::from_millis(500), ..Settings::default() };
    let sink = Sink::new(source, client, letters, settings, health.clone(), metrics.clone());
    let sink = with(sink);
    (tokio::spawn(sink.run(cancel.clone())), cancel, health, metrics)
}

/// Fails unless exactly `rows` rows are in the table, without FINAL, and the views count the same.
async fn assert_stored_once(client: &Client, rows: u64) {
    assert_eq!(number(client, "SELECT count() FROM {db}.events").await, rows, "rows");
    assert_eq!(number(client, "SELECT uniqExact(tenant_id, event_id) FROM {db}.events").await, rows, "events");
    assert_eq!(number(client, "SELECT sum(events) FROM {db}.events_by_minute").await, rows, "events_per_minute");
    for (kind, sql) in [
        ("pageview", "SELECT sum(views) FROM {db}.page_views_by_day"),
        ("performance", "SELECT sum(samples) FROM {db}.web_vitals_by_day"),
    ] {
        let expected = number(client, &format!("SELECT count() FROM {{db}}.events WHERE type = '{kind}'")).await;
        assert_eq!(number(client, sql).await, expected, "{kind}");
    }
}

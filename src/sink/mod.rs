//! The sink: ranges of rows into ClickHouse, each of them once.
//!
//! ```text
//! Source::next -> range -> one INSERT, one block, under the range's token -> Source::commit
//!                            | fails: wait, the same bytes under the same token again, without end
//! ```
//!
//! - A range with parked events is two inserts, into `events` and then into `parked_events`, each under the range's token;
//!   it is committed after both, and a repeat repeats both.
//! - A range is inserted until ClickHouse says yes. Whatever the error, nothing is dropped and nothing is skipped; only
//!   its partition waits, and `/health` says for what. A repeat is recognised by its token, in `events` and in the
//!   target of every view.
//! - Rows that ClickHouse refuses for what they hold are found among the others and become dead letters (`bisect`); the
//!   others are stored.
//! - Ranges are inserted side by side, up to [`Settings::inserts_in_flight`]. Which of them may be, is the source's
//!   business: it gives out a range when its insert may begin.
//! - A range whose partition is taken away is given up at once: its new owner repeats it.
//! - On shutdown nothing new is taken, a running insert or commit may finish within [`Settings::drain`], and one that is
//!   waiting for its next attempt is left where it came from.
//! - Rows of an event that was sent to another node as well are left out, and counted (`resent`).
//! - Rows whose time is over and rows that were erased on request are left out, and counted.

mod arrival;
mod bisect;
mod copies;
mod insert;
mod recount;
mod report;
mod resent;
pub mod source;
pub mod wal_source;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clickhouse::{Client, Mode, Template},
    dead_letters::DeadLetters,
    erasure::Erasures,
    health::Component,
    metrics::Metrics,
    plugins::tables::Tables,
};
pub(crate) use arrival::rest;
use insert::{Gate, Inserter, Outcome};
pub(crate) use insert::{insert_settings, statement as insert_statement};
use report::Report;
pub use resent::Window;
use source::{Range, RangeId, Source, SourceError};

/// How often the lag is measured: about as often as anybody reads it.
const MEASURE_LAG: Duration = Duration::from_secs(1);

/// How the sink works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Inserts at a time; at least 1.
    pub inserts_in_flight: usize,
    /// Pause after the first failed attempt; doubles with each, with jitter.
    pub retry_first: Duration,
    /// Longest pause between attempts.
    pub retry_longest: Duration,
    /// On shutdown, how long running inserts and commits may take to finish.
    pub drain: Duration,
    /// Whether the lag of this sink is shown as the node's: of two sinks in one process one may.
    pub shows_lag: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            inserts_in_flight: 2,
            retry_first: Duration::from_millis(100),
            // Longer would only delay the recovery: an attempt that is refused costs nobody anything.
            retry_longest: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            shows_lag: true,
        }
    }
}

/// Why the sink stopped by itself.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The source cannot go on.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An insert's task panicked.
    #[error("an insert task failed")]
    Task(#[from] JoinError),
}

/// Moves ranges from a source into ClickHouse.
pub struct Sink<S> {
    source: S,
    inserter: Arc<Inserter>,
    settings: Settings,
    metrics: Arc<Metrics>,
    report: Report,
    /// The ranges that are being inserted, and when the oldest row of each was accepted.
    pending: Vec<(RangeId, i64)>,
}

impl<S: Source> Sink<S> {
    /// A sink of `source`; [`Sink::run`] starts it. The tables must be there: [`crate::clickhouse::wait_and_migrate`].
    pub fn new(
        source: S,
        client: Client,
        letters: DeadLetters,
        settings: Settings,
        health: Component,
        metrics: Arc<Metrics>,
    ) -> Self {
        let report = Report::new(health, client.database());
        let inserter = Inserter::new(client, letters, settings.clone(), report.clone(), metrics.clone());
        Self { source, inserter: Arc::new(inserter), settings, metrics, report, pending: Vec::new() }
    }

    /// Inserts nothing before the tables of plugins stand, and makes them if `mode` allows it; `template` says how.
    #[must_use]
    pub fn with_tables(self, tables: Tables, template: Template, mode: Mode) -> Self {
        self.inserter.guard(Gate { tables, template, mode });
        self
    }

    /// Leaves out the rows of events that were sent to another node as well within `window`.
    #[must_use]
    pub fn with_window(self, window: Window) -> Self {
        self.inserter.compare(window);
        self
    }

    /// Leaves out the rows that `erasures` names, and inserts nothing while those cannot be read.
    #[must_use]
    pub fn with_erasures(self, erasures: Erasures) -> Self {
        self.inserter.apply(erasures);
        self
    }

    /// Works until `cancel`, then finishes what is running.
    ///
    /// # Errors
    /// [`SinkError`] when the source fails for good. Errors of ClickHouse are waited out.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), SinkError> {
        self.report.started();
        let mut inserts = JoinSet::new();
        let most = self.settings.inserts_in_flight.max(1);
        let mut measure = tokio::time::interval(MEASURE_LAG);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = measure.tick(), if self.settings.shows_lag => self.measure_lag(),
                Some(done) = inserts.join_next() => {
                    let late = late(&cancel, self.settings.drain);
                    tokio::select! {
                        finished = self.finish(done?) => finished?,
                        () = late => break,
                    }
                }
                range = self.source.next(), if inserts.len() < most => self.start(range?, &mut inserts, &cancel),
            }
        }
        self.drain(inserts).await
    }

    fn measure_lag(&self) {
        let oldest = self.pending.iter().map(|(_, received_at_ms)| *received_at_ms).min();
        let lag = oldest.map_or(0, |oldest| Timestamp::now().as_millisecond().saturating_sub(oldest));
        self.metrics.sink_lag.set(Duration::from_millis(u64::try_from(lag).unwrap_or(0)).as_secs_f64());
    }

    fn start(&mut self, range: Range, inserts: &mut JoinSet<(Range, Outcome)>, stop: &CancellationToken) {
        self.metrics.sink_pending_rows.inc_by(count(range.all_rows()));
        self.pending.push((range.id.clone(), range.oldest_received_at_ms));
        let (inserter, stop) = (self.inserter.clone(), stop.clone());
        inserts.spawn(async move {
            let outcome = inserter.store(&range, &stop).await;
            (range, outcome)
        });
    }

    async fn finish(&mut self, (range, outcome): (Range, Outcome)) -> Result<(), SinkError> {
        self.metrics.sink_pending_rows.dec_by(count(range.all_rows()));
        self.pending.retain(|(id, _)| *id != range.id);
        match outcome {
            Outcome::Stored => self.source.commit(&range).await?,
            Outcome::Revoked => self.source.abandon(&range).await,
            Outcome::Stopped => {}
        }
        Ok(())
    }

    async fn drain(mut self, mut inserts: JoinSet<(Range, Outcome)>) -> Result<(), SinkError> {
        let deadline = Instant::now() + self.settings.drain;
        while let Ok(Some(done)) = timeout_at(deadline, inserts.join_next()).await {
            match timeout_at(deadline, self.finish(done?)).await {
                Ok(finished) => finished?,
                Err(_elapsed) => break,
            }
        }
        if !inserts.is_empty() {
            tracing::warn!(
                inserts = inserts.len(),
                "stopped with inserts running; they are repeated at the next start"
            );
        }
        Ok(())
    }
}

/// Resolves when what runs at a shutdown has had its time: a commit to a broker that is away waits for long, and is repeated
/// with its range.
async fn late(cancel: &CancellationToken, drain: Duration) {
    cancel.cancelled().await;
    tokio::time::sleep(drain).await;
}

/// Rows as a gauge counts them.
fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

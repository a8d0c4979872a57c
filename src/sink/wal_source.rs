//! The write-ahead log as a source, for nodes without brokers: partition 0 of this log, offsets its sequence numbers.
//!
//! ```text
//! Reader -> Former (task): whole records into a range -> ready -> state file: "in flight" -> given out -> inserted
//!                                                                                              commit -> truncate
//! ```
//!
//! - The ranges in flight are on disk (`state/sink` of the log) before they are given out. After a crash the same
//!   records form the same ranges with the same tokens, whatever the limits are by then. If one had been stored,
//!   ClickHouse drops the repeat; if it had been committed too, its records are gone, or what is left of them is
//!   dropped in the same way. Ranges follow each other, so the list also says that everything before it is done.
//! - Two ranges are in flight, the log is truncated in order, and one more is read and encoded meanwhile; then nothing
//!   more is read: that is all that is in memory, however long ClickHouse is away.
//! - A range never spans two openings of the log, and a record never two ranges.
//! - What an earlier opening left is cut into ranges by its content alone, not by time: two copies of one log, on two
//!   machines at once, form the same ranges, and ClickHouse drops one of the two. What a copy has stored in other ranges
//!   is looked for before the insert (see [`super::copies`]).
//! - A row that cannot be decoded goes to the dead letters before the range that would hold it is given out. A repeat
//!   after a crash keeps it again, under the same name.

mod draft;
mod former;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{draft::Formed, former::Former};
use super::source::{Block, Range, RangeId, RangeLimits, Source, SourceError};
use crate::{
    dead_letters::DeadLetters,
    error_chain::chain,
    health::Component,
    ids::{WalId, WalSeq},
    metrics::Metrics,
    wal::{Reader, StateError, Wal},
};

/// Pause before the file system is asked again: its disk is full or away, and no hurry helps.
const RETRY: Duration = Duration::from_secs(1);

/// Name of the state file in the log's folder.
const STATE: &str = "sink";

/// Ranges given out at a time. An insert is mostly the work of one thread of ClickHouse: two took 40 % less time than
/// one after the other on two cores, and more would only share these.
const IN_FLIGHT: usize = 2;

/// A range that was given out, as it is recorded before the insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InFlight {
    wal_id: WalId,
    first: WalSeq,
    last: WalSeq,
}

/// Whether ranges were given out by an earlier process that may not be committed.
///
/// # Errors
/// [`SourceError::Wal`] when what was recorded cannot be read.
pub fn has_ranges_in_flight(wal: &Wal) -> Result<bool, SourceError> {
    // Nobody knows: there may be.
    let Some(ranges) = recorded(wal)? else { return Ok(true) };
    let done = wal.done_through().map_or(0, |seq| seq.0);
    Ok(ranges.iter().any(|range| range.last.0 > done))
}

/// The ranges that were given out by an earlier process; nothing when what was recorded is damaged.
fn recorded(wal: &Wal) -> Result<Option<VecDeque<InFlight>>, SourceError> {
    match wal.load_state(STATE) {
        Ok(Some(bytes)) => serde_json::from_slice(&bytes).map(Some).map_err(failed),
        Ok(None) => Ok(Some(VecDeque::new())),
        Err(StateError::Damaged { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Ranges of this process's own log.
pub struct WalSource {
    wal: Wal,
    ranges: mpsc::Receiver<Formed>,
    former: JoinHandle<Result<(), SourceError>>,
    health: Component,
    metrics: Arc<Metrics>,
    /// Taken from the former, not yet given out.
    ready: Option<(InFlight, Range)>,
    /// Recording what is ready. Never dropped half-way: an older list written after a newer one would forget a range.
    recording: Option<JoinHandle<Result<(), SourceError>>>,
    /// Given out before, and given up: to be given out again.
    again: VecDeque<Range>,
    /// Given out, in the order of the log. A committed one stays until those before it are committed too.
    given: VecDeque<Given>,
}

struct Given {
    range: InFlight,
    committed: bool,
}

impl WalSource {
    /// A source of `wal` through its `reader`, beginning with the ranges that were in flight when the log was last used.
    /// Blocking: reads a small file. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// [`SourceError::Wal`] when the recorded ranges cannot be read.
    pub fn open(
        wal: Wal,
        reader: Reader,
        limits: RangeLimits,
        letters: DeadLetters,
        health: Component,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SourceError> {
        let replay = recorded(&wal)?.unwrap_or_else(|| {
            metrics.error("source");
            // As of a log that is a copy: all that an earlier opening has left is looked for before its insert.
            tracing::error!(
                file = "state/sink",
                "which ranges were on their way to ClickHouse is not known, its record is damaged: of what is left in the log \
                 only what is not stored is inserted"
            );
            VecDeque::new()
        });
        if let Some(in_flight) = replay.front() {
            // What came before was committed: that is durable here, while the log's own mark may lag behind.
            wal.truncate_through(WalSeq(in_flight.first.0.saturating_sub(1)));
        }
        health.up();
        let (own, ahead) = (wal.wal_id(), VecDeque::new());
        let former = Former { reader, own, limits, letters, metrics: metrics.clone(), ahead, replay };
        let (sender, ranges) = mpsc::channel(1);
        let former = tokio::spawn(former.run(sender));
        Ok(Self {
            wal,
            ranges,
            former,
            health,
            metrics,
            ready: None,
            recording: None,
            again: VecDeque::new(),
            given: VecDeque::new(),
        })
    }

    /// The next range of the former, or why there is none.
    async fn formed(&mut self) -> Result<(InFlight, Range), SourceError> {
        match self.ranges.recv().await {
            Some(formed) => Ok(give_out(formed, self.wal.wal_id())),
            None => match (&mut self.former).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => Err(failed(std::io::Error::other("the former of ranges ended"))),
                Err(panicked) => Err(failed(panicked)),
            },
        }
    }

    /// Adds `next` to the ranges that a restart repeats. Cancel-safe.
    async fn record(&mut self, next: InFlight) -> Result<(), SourceError> {
        let (wal, health, metrics) = (&self.wal, &self.health, &self.metrics);
        let list = self.given.iter().map(|given| given.range).chain([next]);
        let task = self
            .recording
            .get_or_insert_with(|| tokio::spawn(save(wal.clone(), list.collect(), health.clone(), metrics.clone())));
        let saved = task.await;
        self.recording = None;
        saved.map_err(failed)?
    }
}

/// Saves the ranges in flight; waits while the file system refuses.
async fn save(wal: Wal, in_flight: Vec<InFlight>, health: Component, metrics: Arc<Metrics>) -> Result<(), SourceError> {
    let bytes = serde_json::to_vec(&in_flight).map_err(failed)?;
    loop {
        match wal.save_state(STATE, bytes.clone()).await {
            Err(error @ StateError::Io { .. }) => {
                metrics.error("source");
                health
                    .down(format!("the ranges in flight cannot be recorded, so nothing is stored: {}", chain(&error)));
                tokio::time::sleep(RETRY).await;
            }
            result => {
                health.up();
                return result.map_err(failed);
            }
        }
    }
}

impl Source for WalSource {
    async fn next(&mut self) -> Result<Range, SourceError> {
        if let Some(range) = self.again.pop_front() {
            return Ok(range);
        }
        if self.given.len() >= IN_FLIGHT {
            // The next one follows a commit, and whoever commits drops this future first.
            return std::future::pending().await;
        }
        // Whatever is awaited here may be dropped: what has been taken stays in `ready`, and its recording goes on.
        if self.ready.is_none() {
            self.ready = Some(self.formed().await?);
        }
        if let Some((in_flight, _)) = self.ready {
            self.record(in_flight).await?;
        }
        match self.ready.take() {
            Some((range, given_out)) => {
                self.given.push_back(Given { range, committed: false });
                Ok(given_out)
            }
            None => std::future::pending().await,
        }
    }

    async fn commit(&mut self, range: &Range) -> Result<(), SourceError> {
        for given in self.given.iter_mut().filter(|given| given.range.first.0 == range.id.first) {
            given.committed = true;
        }
        while let Some(given) = self.given.pop_front_if(|given| given.committed) {
            self.wal.truncate_through(given.range.last);
        }
        Ok(())
    }

    async fn abandon(&mut self, range: &Range) {
        // Nobody else reads this log: it stays ours, in its place, and is given out again.
        let (id, revoked) = (range.id.clone(), CancellationToken::new());
        let (body, parked) = (range.body.clone(), range.parked.clone());
        self.again.push_back(Range { id, body, parked, revoked, replayed: true, beside: None, ..*range });
    }
}

impl Drop for WalSource {
    fn drop(&mut self) {
        self.former.abort();
    }
}

fn give_out(formed: Formed, own: WalId) -> (InFlight, Range) {
    let Formed { wal_id, first, last, events, parked, oldest_received_at_ms, first_expiry, replayed } = formed;
    let id = RangeId { topic: format!("wal/{wal_id}"), partition: 0, first: first.0, last: last.0, mark: None };
    let revoked = CancellationToken::new();
    let parked = Block { rows: parked.0, body: parked.1.into() };
    let (rows, body) = (events.0, events.1.into());
    let of_earlier_opening = wal_id != own;
    let range = Range {
        id,
        rows,
        body,
        parked,
        oldest_received_at_ms,
        first_expiry,
        replayed,
        of_earlier_opening,
        beside: None,
        generation: 0,
        revoked,
    };
    (InFlight { wal_id, first, last }, range)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SourceError {
    SourceError::Wal(error.into())
}

//! The write-ahead log as a source, for nodes without brokers: partition 0 of this log, offsets its sequence numbers.
//!
//! ```text
//! Reader -> Former (task): whole records into a range -> ready -> state file: "in flight" -> given out -> inserted
//!                                                                                              commit -> truncate
//! ```
//!
//! - The range in flight is on disk (`state/sink` of the log) before it is given out. After a crash the same records
//!   form the same range with the same token, whatever the limits are by then. If it had been stored, ClickHouse drops
//!   the repeat; if it had been committed too, its records are gone, or what is left of them is dropped in the same way.
//!   Ranges follow each other, so the record also says that everything before it is done.
//! - While a range is being inserted the next one is read and encoded, and then nothing more: two ranges and one read
//!   are all that is in memory, however long ClickHouse is away.
//! - A range never spans two openings of the log, and a record never two ranges.
//! - A row that cannot be decoded goes to the dead letters before the range that would hold it is given out. A repeat
//!   after a crash keeps it a second time.

mod draft;
mod former;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{draft::Formed, former::Former};
use super::source::{Range, RangeId, RangeLimits, Source, SourceError};
use crate::{
    dead_letters::DeadLetters,
    ids::{WalId, WalSeq},
    metrics::Metrics,
    wal::{Reader, StateError, Wal},
};

/// Pause before the file system is asked again: its disk is full or away, and no hurry helps.
const RETRY: Duration = Duration::from_secs(1);

/// Name of the state file in the log's folder.
const STATE: &str = "sink";

/// The range that was given out last, as it is recorded before the insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InFlight {
    wal_id: WalId,
    first: WalSeq,
    last: WalSeq,
}

/// Ranges of this process's own log.
pub struct WalSource {
    wal: Wal,
    ranges: mpsc::Receiver<Formed>,
    former: JoinHandle<Result<(), SourceError>>,
    metrics: Arc<Metrics>,
    /// Taken from the former, not yet given out.
    ready: Option<(InFlight, Range)>,
    /// Given out, not yet committed.
    in_flight: Option<InFlight>,
}

impl WalSource {
    /// A source of `wal` through its `reader`, beginning with the range that was in flight when the log was last used.
    /// Blocking: reads a small file. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// [`SourceError::Wal`] when the recorded range cannot be read: without it a repeat could not be recognised.
    pub fn open(
        wal: Wal,
        reader: Reader,
        limits: RangeLimits,
        letters: DeadLetters,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SourceError> {
        let state = wal.load_state(STATE).map_err(failed)?;
        let replay = state.map(|bytes| serde_json::from_slice::<InFlight>(&bytes)).transpose().map_err(failed)?;
        if let Some(in_flight) = replay {
            // What came before was committed: that is durable here, while the log's own mark may lag behind.
            wal.truncate_through(WalSeq(in_flight.first.0.saturating_sub(1)));
        }
        let former = Former { reader, limits, letters, metrics: metrics.clone(), ahead: VecDeque::new(), replay };
        let (sender, ranges) = mpsc::channel(1);
        let former = tokio::spawn(former.run(sender));
        Ok(Self { wal, ranges, former, metrics, ready: None, in_flight: None })
    }

    /// The next range of the former, or why there is none.
    async fn formed(&mut self) -> Result<(InFlight, Range), SourceError> {
        match self.ranges.recv().await {
            Some(formed) => Ok(give_out(formed)),
            None => match (&mut self.former).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => Err(failed(std::io::Error::other("the former of ranges ended"))),
                Err(panicked) => Err(failed(panicked)),
            },
        }
    }

    /// Makes the range the one that a restart repeats; waits while the file system refuses.
    async fn record(&self, in_flight: InFlight) -> Result<(), SourceError> {
        let bytes = serde_json::to_vec(&in_flight).map_err(failed)?;
        loop {
            match self.wal.save_state(STATE, bytes.clone()).await {
                Err(error @ StateError::Io { .. }) => {
                    self.metrics.error("source");
                    tracing::error!(%error, "cannot record the range in flight; the sink waits");
                    tokio::time::sleep(RETRY).await;
                }
                result => return result.map_err(failed),
            }
        }
    }
}

impl Source for WalSource {
    async fn next(&mut self) -> Result<Range, SourceError> {
        if self.in_flight.is_some() {
            // One partition, one range: the next follows the commit, and whoever commits drops this future first.
            return std::future::pending().await;
        }
        // Whatever is awaited here may be dropped: what has been taken stays in `ready`, and recording it twice is
        // the same as once.
        if self.ready.is_none() {
            self.ready = Some(self.formed().await?);
        }
        if let Some((in_flight, _)) = &self.ready {
            self.record(*in_flight).await?;
        }
        match self.ready.take() {
            Some((in_flight, range)) => {
                self.in_flight = Some(in_flight);
                Ok(range)
            }
            None => std::future::pending().await,
        }
    }

    async fn commit(&mut self, range: &Range) -> Result<(), SourceError> {
        self.wal.truncate_through(WalSeq(range.id.last));
        self.in_flight = None;
        Ok(())
    }

    async fn abandon(&mut self, range: &Range) {
        // Nobody else reads this log: it stays ours and is given out again.
        if let Some(in_flight) = self.in_flight.take() {
            let (id, body, revoked) = (range.id.clone(), range.body.clone(), CancellationToken::new());
            self.ready = Some((in_flight, Range { id, body, revoked, ..*range }));
        }
    }
}

impl Drop for WalSource {
    fn drop(&mut self) {
        self.former.abort();
    }
}

fn give_out(formed: Formed) -> (InFlight, Range) {
    let Formed { wal_id, first, last, rows, body, oldest_received_at_ms } = formed;
    let id = RangeId { topic: format!("wal/{wal_id}"), partition: 0, first: first.0, last: last.0 };
    let revoked = CancellationToken::new();
    let range = Range { id, rows, body: Bytes::from(body), oldest_received_at_ms, generation: 0, revoked };
    (InFlight { wal_id, first, last }, range)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SourceError {
    SourceError::Wal(error.into())
}

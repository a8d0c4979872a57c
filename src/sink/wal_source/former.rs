//! The task that forms ranges ahead: reads records, encodes them off the async threads, hands over one range at a time.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    InFlight, RETRY,
    draft::{Added, Draft, Formed},
    failed,
};
use crate::{
    dead_letters::DeadLetters,
    ids::WalId,
    metrics::Metrics,
    sink::source::{RangeLimits, SourceError},
    wal::{ReadError, Reader, Record},
};

/// Records and compressed bytes of one read. Bounds what a single step of encoding holds beside the range itself: about
/// ten times as much decompressed, some 20 ms of work.
const READ_RECORDS: usize = 1024;
const READ_BYTES: usize = 1 << 20;

/// How long a record that is on disk may take to be read before its range goes on without it.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Former {
    pub(super) reader: Reader,
    /// This opening of the log.
    pub(super) own: WalId,
    pub(super) limits: RangeLimits,
    pub(super) letters: DeadLetters,
    pub(super) metrics: Arc<Metrics>,
    /// Read and in no range yet.
    pub(super) ahead: VecDeque<Arc<Record>>,
    /// The ranges that were in flight when the process ended, in order.
    pub(super) replay: VecDeque<InFlight>,
}

/// One step of encoding, moved to a blocking thread and back.
struct Step {
    draft: Draft,
    records: VecDeque<Arc<Record>>,
    scratch: Vec<u8>,
    closed: bool,
    failed: Option<io::Error>,
}

impl Former {
    /// Forms ranges until nobody takes them or the log cannot be read.
    pub(super) async fn run(mut self, ranges: mpsc::Sender<Formed>) -> Result<(), SourceError> {
        // The place comes first: one range waits ready, and the next is not begun before it is taken.
        while let Ok(place) = ranges.reserve().await {
            place.send(self.form().await?);
        }
        Ok(())
    }

    async fn form(&mut self) -> Result<Formed, SourceError> {
        let first = loop {
            if let Some(record) = self.ahead.front() {
                break record.clone();
            }
            self.read(None).await?;
        };
        // Nothing stands before the ranges in flight: that was committed. Those before which the log has been truncated
        // were too.
        while self.replay.pop_front_if(|old| old.wal_id != first.wal_id || old.last < first.seq).is_some() {}
        let replay = self.replay.pop_front();
        // What an earlier opening left is all there: it is cut by its content, so that a copy of the log is cut alike.
        let left = first.wal_id != self.own;
        let deadline = Instant::now() + if left { self.limits.age.max(PATIENCE) } else { self.limits.age };
        let mut draft = Draft::beginning_with(&first);
        loop {
            let step = self.encode(draft, replay).await?;
            draft = step.draft;
            self.ahead = step.records;
            if let Some(error) = step.failed {
                self.metrics.error("source");
                tracing::error!(%error, "cannot keep a dead letter; the log waits");
                tokio::time::sleep(RETRY).await;
            } else if step.closed || (left && !self.reader.is_behind()) || !self.read(Some(deadline)).await? {
                break;
            }
        }
        let formed = draft.finish();
        // A repeat carries the name that it had, so that its token is the same even if some of its records are gone
        // (they were removed after the commit, or damaged).
        Ok(match replay {
            Some(old) => Formed { first: old.first, last: old.last, replayed: true, ..formed },
            None => formed,
        })
    }

    /// Reads more; false when the deadline came first. Waits while the log cannot be read.
    async fn read(&mut self, deadline: Option<Instant>) -> Result<bool, SourceError> {
        let next = self.reader.next(READ_RECORDS, READ_BYTES);
        let records = match deadline {
            None => next.await,
            Some(deadline) => match timeout_at(deadline, next).await {
                Ok(records) => records,
                Err(_elapsed) => return Ok(false),
            },
        };
        match records {
            Ok(records) => {
                let events = records.iter().map(|record| u64::from(record.event_count)).sum();
                self.metrics.source_events.inc_by(events);
                self.ahead.extend(records);
            }
            Err(error @ ReadError::Unavailable(_)) => {
                self.metrics.error("source");
                tracing::error!(error = &error as &dyn std::error::Error, "cannot read the log; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(true)
    }

    /// Encodes what was read, up to the bounds.
    async fn encode(&mut self, draft: Draft, replay: Option<InFlight>) -> Result<Step, SourceError> {
        let records = std::mem::take(&mut self.ahead);
        let (limits, letters) = (self.limits.clone(), self.letters.clone());
        let mut step = Step { draft, records, scratch: Vec::new(), closed: false, failed: None };
        tokio::task::spawn_blocking(move || {
            step.run(&limits, replay, &letters);
            step
        })
        .await
        .map_err(failed)
    }
}

impl Step {
    fn run(&mut self, limits: &RangeLimits, replay: Option<InFlight>, letters: &DeadLetters) {
        while let Some(record) = self.records.front() {
            if replay.is_some_and(|old| record.seq > old.last) {
                self.closed = true;
                return;
            }
            let bounds = if replay.is_some() { None } else { Some(limits) };
            match self.draft.add(record, bounds, letters, &mut self.scratch) {
                Ok(Added::Taken) => {
                    let last = record.seq;
                    self.records.pop_front();
                    if replay.map_or_else(|| self.draft.is_full(limits), |old| last == old.last) {
                        self.closed = true;
                        return;
                    }
                }
                Ok(Added::Refused) => {
                    self.closed = true;
                    return;
                }
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
    }
}

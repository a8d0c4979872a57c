//! The topic as the sink reads it: ranges of each partition, recorded with the group before they are given out.
//!
//! ```text
//! polling thread:  poll -> decode -> buffer of the partition          (pauses partitions whose buffer is full)
//! committer:       buffer -> range -> commit (first, "last in flight") -> next()
//!                  commit(range) -> commit (last + 1)
//! ```
//!
//! # Operation
//! - At most one range of a partition is under way, and of all partitions no more than the sink has use for: what it could
//!   not take yet grows. The first and last offset of a range are recorded in the metadata of the group's commit before the
//!   sink gets it. Whoever is assigned the partition next, this process after a restart or another, reads the metadata and
//!   forms the very same range first: same rows, same token, and ClickHouse drops the repeat.
//! - The polling thread never waits for the sink. While nothing can be stored, partitions are paused at the bound of
//!   their buffers and the member stays in its group.
//! - When partitions are taken away, their ranges are revoked and the rebalance waits, for a bounded time, until the sink
//!   has let go of them. Commits are sent under the assignment that they belong to, or not at all.
//! - An offset that the broker no longer has never resets silently: the gap is counted, shown in health, and reading goes
//!   on from the earliest offset left. A partition without any commit is read from its beginning. (A broker forgets the
//!   commits of a group that was away for `offsets.retention.minutes`, 7 days by default: then all that the topic still
//!   holds is read again.)
//! - A broker may drop that metadata. Then the range is recorded in ClickHouse (`sink_ranges`), where it goes anyway, before it
//!   is committed and given out, and asked for there at the next assignment.
//! - A row that a relay sent again is dropped: what is at or below the mark of its log was read from this partition before.
//!   The mark of a log that is new to an assignment is asked of ClickHouse.
//! - A member that has no partition stores nothing: that is shown, and whether anybody stores what waits (`idle`).
//! - A line that is no row goes to the dead letters before its offset passes; the other rows of its message go on. A
//!   crash in between writes the same letter twice.
//!
//! # What this is not
//! It does not insert, and it knows nothing of ids that clients give.

mod buffer;
mod commit;
mod idle;
mod marker;
#[cfg(test)]
mod model;
mod poll;
mod recall;
mod repeats;
mod state;

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
};

use rdkafka::{consumer::BaseConsumer, topic_partition_list::TopicPartitionListElem};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::recall::Recall;
use self::{
    commit::Committer,
    idle::Share,
    poll::{Poller, SourceContext},
    state::{Shared, State},
};
use super::{BrokerError, ClientEvents, Settings, Status};
use crate::{
    dead_letters::DeadLetters,
    health::Component,
    metrics::{CarriesLabels, Metrics},
    sink::source::{Range, RangeLimits, Source, SourceError},
};

/// A consumer group's member as a source of ranges.
pub struct KafkaSource {
    shared: Arc<Shared>,
    /// Resolves when the polling thread has left the group.
    left: oneshot::Receiver<()>,
    cancel: CancellationToken,
}

impl KafkaSource {
    /// Joins the group in the background. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`BrokerError`] when the configuration is refused; an absent broker is waited for.
    pub fn new(
        settings: Settings,
        limits: RangeLimits,
        dead_letters: DeadLetters,
        recall: Option<Recall>,
        health: Component,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        let status = Arc::new(Status::new(health));
        let cancel = CancellationToken::new();
        let topic = super::watch(&settings, status.clone(), cancel.clone())?;
        let config = settings.consumer_config();
        let shared = Arc::new(Shared {
            settings,
            limits,
            dead_letters,
            status: status.clone(),
            metrics,
            recall,
            state: parking_lot::Mutex::new(State::default()),
            changed: parking_lot::Condvar::new(),
            ready: Notify::new(),
            gate: parking_lot::Mutex::default(),
        });
        let context = SourceContext { events: ClientEvents::new(status), shared: shared.clone() };
        let consumer: Arc<BaseConsumer<SourceContext>> =
            Arc::new(config.create_with_context(context).map_err(BrokerError::Configuration)?);
        let committer = Committer::new(shared.clone(), consumer.clone());
        let (share, shared_out) = watch::channel(Share::default());
        let partitions = CarriesLabels { carries: shared.settings.carries.as_str() };
        let partitions = shared.metrics.source_partitions.get_or_create_owned(&partitions);
        tokio::spawn({
            let idle = idle::Idle::new(shared.clone(), topic.partitions.clone(), shared_out);
            let cancel = cancel.clone();
            async move { cancel.run_until_cancelled(idle.watch()).await }
        });
        let mut poller = Poller {
            shared: shared.clone(),
            consumer,
            topic,
            subscribed: false,
            gap_due: false,
            gap_shown_until: None,
            refused: false,
            partitions,
            share,
        };
        let (tell_left, left) = oneshot::channel();
        thread::Builder::new()
            .name("source-poll".into())
            .spawn(move || {
                let committer = thread::Builder::new().name("source-commit".into()).spawn(move || committer.run());
                match committer {
                    Ok(committer) => {
                        poller.run();
                        if committer.join().is_err() {
                            tracing::error!("the committing thread panicked");
                        }
                    }
                    Err(error) => tracing::error!(%error, "the committing thread cannot be started"),
                }
                // Dropping the consumer leaves the group, on this thread, which serves the last rebalance.
                drop(poller);
                if tell_left.send(()).is_err() {
                    tracing::debug!("the group is left, and nobody waited for it");
                }
            })
            .map_err(BrokerError::Thread)?;
        Ok(Self { shared, left, cancel })
    }

    /// Leaves the group and waits until it is left, for at most [`Settings::drain`]: a broker that is away may keep a
    /// commit waiting for long. Ranges that are given out and not committed stay recorded: the next owner of their
    /// partitions gets them first.
    pub async fn close(mut self) {
        self.begin_close();
        let budget = self.shared.settings.drain;
        if tokio::time::timeout(budget, &mut self.left).await.is_err() {
            tracing::warn!("the group could not be left in time; the broker will notice that this member is gone");
        }
    }

    fn begin_close(&self) {
        self.cancel.cancel();
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for KafkaSource {
    /// Leaves the group in the background.
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl Source for KafkaSource {
    async fn next(&mut self) -> Result<Range, SourceError> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if let Some(error) = &state.failed {
                    return Err(SourceError::Broker(Box::new(error.clone())));
                }
                if let Some(range) = state.ready.pop_front() {
                    return Ok(range);
                }
            }
            // One permit is kept for a notification between the look and the wait.
            self.shared.ready.notified().await;
        }
    }

    async fn commit(&mut self, range: &Range) -> Result<(), SourceError> {
        let told = self.shared.state.lock().done(range);
        self.shared.changed.notify_all();
        if let Some(told) = told {
            // Dropped without an answer: the partition was taken away, and its next owner repeats the range.
            drop(told.await);
        }
        Ok(())
    }

    async fn abandon(&mut self, range: &Range) {
        self.shared.state.lock().abandon(range);
        self.shared.changed.notify_all();
    }
}

/// The metadata of a commit. rdkafka panics on bytes that are not UTF-8, which another program may have written.
fn metadata_of<'a>(element: &'a TopicPartitionListElem<'_>) -> &'a str {
    panic::catch_unwind(AssertUnwindSafe(|| element.metadata())).unwrap_or_default()
}

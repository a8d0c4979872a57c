//! The thread that polls librdkafka, and nothing else: it never waits for the sink, so that the member stays in its
//! group however long ClickHouse is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use rdkafka::{
    ClientContext, Message, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use tokio::sync::watch;

use super::{
    buffer::Piece,
    idle::Share,
    marker,
    state::{Recorded, Shared},
};
use crate::{
    broker::{ClientEvents, Severity, TopicWatch},
    error_chain::chain,
};

/// How long one poll waits: the longest that a paused partition waits to be read again.
const POLL: Duration = Duration::from_millis(50);
/// How long the broker may take to answer one question during a rebalance or after an offset was out of range.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long all questions after gaps may take together: a member that does not poll for `max.poll.interval.ms`, five minutes,
/// is put out of its group. A partition that was not asked in time is refused again, and asked then.
const LOOK_TIMEOUT: Duration = Duration::from_mins(1);
/// How often the committed offsets are asked for before the assignment is given back.
const ASK_TIMES: u32 = 3;
/// Lost offsets stay in health for this long, so that somebody sees them; the counter stays for good.
const GAP_SHOWN: Duration = Duration::from_hours(24);

/// librdkafka's callbacks: all of them run on the polling thread.
pub(super) struct SourceContext {
    pub(super) events: ClientEvents,
    pub(super) shared: Arc<Shared>,
}

impl ClientContext for SourceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ConsumerContext for SourceContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let ids: Vec<u32> =
            list.elements().iter().filter_map(|element| u32::try_from(element.partition()).ok()).collect();
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list, &ids);
        } else {
            tracing::info!(partitions = ?ids, "partitions are taken away");
            self.shared.revoke(&ids);
            self.shared.state.lock().is_member = false;
            if let Err(error) = consumer.unassign() {
                tracing::error!(error = chain(&error), "partitions could not be given back");
            }
        }
    }
}

impl SourceContext {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList, ids: &[u32]) {
        let started = Instant::now();
        let committed = (0..ASK_TIMES).find_map(|_| match consumer.committed_offsets(list.clone(), ASK_TIMEOUT) {
            Ok(committed) if committed.elements().iter().all(|element| element.error().is_ok()) => Some(committed),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(error = chain(&error), "committed offsets cannot be read");
                None
            }
        });
        let Some(committed) = committed else {
            // Without the commits nobody knows where to go on: give the partitions back and join again.
            tracing::warn!(partitions = ?ids, "committed offsets cannot be read, joining the group again");
            self.shared.state.lock().join_again = true;
            if let Err(error) = consumer.assign(&TopicPartitionList::new()) {
                tracing::error!(error = chain(&error), "an assignment could not be declined");
            }
            return;
        };
        let mut starts = TopicPartitionList::with_capacity(ids.len());
        let mut taken = Vec::with_capacity(ids.len());
        for element in committed.elements() {
            let Ok(id) = u32::try_from(element.partition()) else { continue };
            let next = match element.offset() {
                Offset::Offset(offset) => u64::try_from(offset).ok(),
                _ => None,
            };
            let metadata = super::metadata_of(&element);
            let recorded = match next {
                Some(_) if !marker::is_kept(metadata) && self.shared.recall.is_some() => Recorded::Unknown,
                next => next.and_then(|next| marker::read(metadata, next)).map_or(Recorded::None, Recorded::Last),
            };
            taken.push((id, next, recorded));
            let start = next.and_then(|next| i64::try_from(next).ok()).map_or(Offset::Beginning, Offset::Offset);
            if let Err(error) = starts.add_partition_offset(element.topic(), element.partition(), start) {
                tracing::error!(error = chain(&error), partition = id, "a start offset is refused");
            }
        }
        tracing::info!(partitions = ?taken, took = ?started.elapsed(), "partitions are assigned (id, next, in flight)");
        self.shared.state.lock().assign(taken);
        if let Err(error) = consumer.assign(&starts).and_then(|()| consumer.resume(&starts)) {
            tracing::error!(error = chain(&error), "an assignment could not be taken up");
            self.shared.state.lock().join_again = true;
        }
    }
}

pub(super) struct Poller {
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Arc<BaseConsumer<SourceContext>>,
    pub(super) topic: TopicWatch,
    pub(super) subscribed: bool,
    /// An offset that was due was refused, and nothing was done about it yet.
    pub(super) gap_due: bool,
    pub(super) gap_shown_until: Option<Instant>,
    /// The topic could not be read; cleared by the next message.
    pub(super) refused: bool,
    /// How many partitions this member has, as a metric.
    pub(super) partitions: Gauge,
    pub(super) share: watch::Sender<Share>,
}

impl Poller {
    /// Polls until the source is closed. Blocking.
    pub(super) fn run(&mut self) {
        // A message borrows the client while `self` is changed.
        let consumer = self.consumer.clone();
        loop {
            {
                let mut state = self.shared.state.lock();
                if state.closing {
                    self.partitions.set(0);
                    return;
                }
                if std::mem::take(&mut state.join_again) {
                    state.is_member = false;
                    drop(state);
                    self.consumer.unsubscribe();
                    self.subscribed = false;
                }
            }
            // A topic that does not exist yet cannot be subscribed to without noise.
            if !self.subscribed && *self.topic.partitions.borrow() > 0 {
                match self.consumer.subscribe(&[&self.shared.settings.topic]) {
                    Ok(()) => self.subscribed = true,
                    Err(error) => tracing::error!(error = chain(&error), "cannot subscribe to the topic"),
                }
            }
            // Of an answer that refuses the offsets of many partitions there is an error for each: one look is for all.
            let patience = if self.gap_due { Duration::ZERO } else { POLL };
            match consumer.poll(patience) {
                Some(Ok(message)) => {
                    let (Ok(id), Ok(offset)) = (u32::try_from(message.partition()), u64::try_from(message.offset()))
                    else {
                        continue;
                    };
                    self.take(id, offset, message.payload());
                }
                Some(Err(error)) => {
                    self.fail(&error);
                    continue;
                }
                None => {}
            }
            if std::mem::take(&mut self.gap_due) {
                self.find_gaps();
            }
            self.balance();
            self.show_share();
            if self.gap_shown_until.is_some_and(|until| Instant::now() >= until) {
                self.gap_shown_until = None;
                self.shared.status.clear("gap");
            }
        }
    }

    fn take(&mut self, id: u32, offset: u64, payload: Option<&[u8]>) {
        let shared = self.shared.clone();
        let piece = Piece::decode(shared.settings.carries, &shared.settings.topic, id, offset, payload, Instant::now());
        let rows = piece.rows as u64;
        if std::mem::take(&mut self.refused) {
            shared.status.clear("reading");
        }
        let pushed = shared.state.lock().push(id, piece, &shared.limits);
        if let Some(wake) = pushed {
            shared.metrics.source_messages.inc();
            shared.metrics.source_events.inc_by(rows);
            if wake {
                shared.changed.notify_all();
            }
        }
    }

    /// Shows how many partitions this member has, and tells whoever looks after there being none.
    fn show_share(&mut self) {
        let share = {
            let state = self.shared.state.lock();
            Share { is_member: state.is_member, partitions: state.partitions.len() }
        };
        if self.share.send_if_modified(|shown| std::mem::replace(shown, share) != share) {
            self.partitions.set(i64::try_from(share.partitions).unwrap_or(i64::MAX));
        }
    }

    fn balance(&self) {
        let (pause, resume) = self.shared.state.lock().balance(&self.shared.limits, self.shared.settings.buffer_bytes);
        for (ids, what) in [(pause, "pause"), (resume, "resume")] {
            if ids.is_empty() {
                continue;
            }
            let list = self.list(&ids);
            // For want of memory ranges close early: the committer may have work now.
            self.shared.changed.notify_all();
            let done = if what == "pause" { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
            if let Err(error) = done {
                tracing::warn!(error = chain(&error), partitions = ?ids, what, "reading could not be paused or resumed");
            }
        }
    }

    fn list(&self, ids: &[u32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(ids.len());
        for id in ids.iter().filter_map(|id| i32::try_from(*id).ok()) {
            list.add_partition(&self.shared.settings.topic, id);
        }
        list
    }

    fn fail(&mut self, error: &KafkaError) {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            tracing::error!(error = chain(error), "the consumer failed for good");
            self.shared.state.lock().failed = Some(error.clone());
            self.shared.ready.notify_one();
            return;
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => self.gap_due = true,
            Some(
                code @ (RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::BadMessage),
            ) => {
                self.refused = true;
                self.shared.metrics.error("source");
                self.shared.status.set("reading", Severity::Down, format!("the topic cannot be read: {code}"));
            }
            // Outages of all kinds: librdkafka tries again by itself, and health hears of them as events.
            _ => tracing::debug!(error = chain(error), "the consumer reports an error"),
        }
    }

    /// Waits until librdkafka has stopped what it read before the last assignment. It aborts the process when a partition
    /// that is being stopped is taken out of the assignment once more, by the next of these or by a rebalance (librdkafka
    /// issue 5573, mended after 2.15.0).
    ///
    /// Its main thread serves one queue in order: the first question is answered after the stops, which an assignment has
    /// put before it, and the second after what the stops have put there when they were done.
    fn wait_for_stops(&self) -> Result<(), KafkaError> {
        for _ in 0..2 {
            self.consumer.assignment()?;
        }
        Ok(())
    }

    /// An offset that was due is not there. Names what is lost and goes on from what is left.
    fn find_gaps(&mut self) {
        let positions: Vec<(u32, Option<u64>)> =
            self.shared.state.lock().partitions.iter().map(|(id, partition)| (*id, partition.next)).collect();
        if positions.is_empty() {
            // They were taken away meanwhile.
            return;
        }
        let mut gaps = Vec::new();
        let mut starts = TopicPartitionList::with_capacity(positions.len());
        let started = Instant::now();
        for (id, next) in positions {
            let Ok(partition) = i32::try_from(id) else { continue };
            let patience = LOOK_TIMEOUT.saturating_sub(started.elapsed()).min(ASK_TIMEOUT);
            let marks = self.consumer.fetch_watermarks(&self.shared.settings.topic, partition, patience);
            let (resume, lost) = match marks {
                Ok((low, high)) => resume_at(next, low, high),
                Err(error) => {
                    tracing::debug!(error = chain(&error), partition, "watermarks cannot be read");
                    (next, 0)
                }
            };
            if lost > 0 {
                gaps.push(format!("{lost} offsets of partition {id}"));
                self.shared.metrics.source_gap_offsets.inc_by(lost);
            }
            let start = resume.and_then(|next| i64::try_from(next).ok()).map_or(Offset::Beginning, Offset::Offset);
            if let Err(error) = starts.add_partition_offset(&self.shared.settings.topic, partition, start) {
                tracing::error!(error = chain(&error), partition, "a start offset is refused");
            }
            if let Some(partition) = self.shared.state.lock().partitions.get_mut(&id) {
                partition.next = resume;
                partition.paused = false;
            }
        }
        // A partition whose offset was refused stands still, and nobody says which it is: all are told again where to go
        // on. It cannot be sought either. What was read ahead of the others is read again.
        let assigned = self.consumer.assign(&starts).and_then(|()| self.consumer.resume(&starts));
        if let Err(error) = assigned.and_then(|()| self.wait_for_stops()) {
            tracing::warn!(error = chain(&error), "cannot go on reading, joining the group again");
            self.shared.state.lock().join_again = true;
        }
        tracing::debug!(took = ?started.elapsed(), "offsets were refused, and partitions are read on");
        if !gaps.is_empty() {
            let reason = format!("the broker no longer had {} when they were due", gaps.join(", "));
            tracing::error!(reason, "records are lost to the topic's retention or truncation");
            self.shared.metrics.error("source");
            self.shared.status.set("gap", Severity::Degraded, reason);
            self.gap_shown_until = Some(Instant::now() + GAP_SHOWN);
        }
    }
}

/// Where to go on in a partition that now holds `[low, high)`, and how many offsets are missing. Below `low`: they were
/// deleted. Above `high`: the log was truncated or made anew, and what it holds now was never read.
fn resume_at(next: Option<u64>, low: i64, high: i64) -> (Option<u64>, u64) {
    let (Ok(low), Ok(high)) = (u64::try_from(low), u64::try_from(high)) else { return (next, 0) };
    match next {
        Some(next) if next < low => (Some(low), low - next),
        Some(next) if next > high => (Some(low), next - high),
        next => (next, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_measured_and_never_skipped_silently() {
        let cases = [
            (Some(5), 0, 10, (Some(5), 0)),
            (Some(10), 0, 10, (Some(10), 0)),
            (Some(5), 5, 10, (Some(5), 0)),
            (Some(5), 8, 10, (Some(8), 3)),
            (Some(50), 0, 10, (Some(0), 40)),
            (None, 7, 10, (None, 0)),
            (Some(5), -1, -1, (Some(5), 0)),
        ];
        for (next, low, high, expected) in cases {
            assert_eq!(resume_at(next, low, high), expected, "{next:?} in {low}..{high}");
        }
    }
}

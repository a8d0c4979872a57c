//! The thread that forms ranges and speaks to the group's offset store: it records each range before it is given out
//! and commits it after it is stored, both in one request for all partitions that are due.

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{
    SourceContext,
    buffer::Block,
    marker,
    recall::{InFlight, Question, Recall},
    state::{Partition, Shared, Stage, State},
};
use crate::{
    broker::{Carries, Settings, Severity},
    clickhouse::QueryError,
    dead_letters::{self, DeadLetter, MessageLine},
    error_chain::chain,
    ids::WalId,
    sink::source::{Beside, Block as RowBlock, Range, RangeId},
};

/// Longest pause between two attempts to commit.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the group may take to show what was committed, when it is asked whether it keeps metadata.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The committer looks at its work this often even if nobody wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A range that was taken out of its buffer, until it is recorded.
struct Prepared {
    generation: u64,
    block: Block,
    /// Its undecodable lines are kept; only then may its offsets pass.
    letters_kept: bool,
    /// It is recorded in ClickHouse, or need not be.
    recorded: bool,
}

/// What one request says of one partition.
struct Entry {
    generation: u64,
    offset: u64,
    metadata: String,
    /// A stored range is committed by it.
    commits: bool,
    /// A prepared range is recorded (or passed over, when it has no rows) by it.
    prepared: bool,
}

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Arc<BaseConsumer<SourceContext>>,
    prepared: BTreeMap<u32, Prepared>,
    failures: u32,
    not_before: Option<Instant>,
    /// Whether the broker keeps commit metadata; unknown until a range was recorded.
    keeps_metadata: Option<bool>,
    /// Logs whose marks are to be asked for, with the generation of the partition.
    questions: Vec<(u64, Question)>,
    /// How many ranges were recorded in ClickHouse.
    records: u64,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, consumer: Arc<BaseConsumer<SourceContext>>) -> Self {
        Self {
            shared,
            consumer,
            prepared: BTreeMap::new(),
            failures: 0,
            not_before: None,
            keeps_metadata: None,
            questions: Vec::new(),
            records: 0,
        }
    }

    /// Works until the source is closed. Blocking.
    pub(super) fn run(mut self) {
        while self.wait_for_work() {
            if let Err(error) = self.ask_and_record() {
                // The partitions wait, as their inserts would.
                tracing::warn!(error = chain(&error), "ClickHouse cannot be asked about partitions, trying again");
                let reason = format!("ClickHouse cannot be asked about partitions: {error}");
                self.shared.status.set("recall", Severity::Degraded, reason);
                self.shared.metrics.error("source");
                self.back_off();
                continue;
            }
            self.shared.status.clear("recall");
            self.keep_letters();
            if !self.is_due() {
                continue;
            }
            let entries = self.send();
            match entries {
                Ok(entries) => {
                    self.failures = 0;
                    self.not_before = None;
                    self.settle(&entries);
                    if self.keeps_metadata.is_none() {
                        self.ask_for_metadata(&entries);
                    }
                }
                Err(error) => {
                    // Usually a rebalance that is already on its way, or a broker that is away.
                    tracing::debug!(error = chain(&error), "offsets could not be committed, trying again");
                    self.shared.metrics.error("source");
                    if is_expelled(&error) {
                        self.shared.state.lock().expel();
                        self.shared.changed.notify_all();
                    }
                    self.back_off();
                }
            }
        }
    }

    fn back_off(&mut self) {
        self.failures = (self.failures + 1).min(10);
        let pause = Duration::from_millis(50).saturating_mul(1 << self.failures).min(LONGEST_PAUSE);
        self.not_before = Some(Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0)));
    }

    /// Waits until a range is complete or a commit is due. False when the source is closed.
    fn wait_for_work(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        loop {
            if state.closing {
                return false;
            }
            if state.partitions.is_empty() {
                // What could not be asked or kept was of partitions that are others' now.
                shared.status.clear("recall");
                shared.status.clear("dead letters");
            }
            let now = Instant::now();
            self.prepared.retain(|id, prepared| {
                state.partitions.get(id).is_some_and(|partition| partition.generation == prepared.generation)
            });
            let mut wake = now + LOOK_EVERY;
            let due = self.prepare(&mut state, now, &mut wake) || !self.questions.is_empty();
            let allowed = self.not_before.filter(|at| *at > now);
            match allowed {
                None if due => return true,
                Some(at) if due => wake = wake.min(at),
                _ => {}
            }
            shared.changed.wait_until(&mut state, wake);
        }
    }

    /// Takes ranges out of the buffers of partitions that have none under way, as many as the sink has use for: first those
    /// that were in flight before, then those whose rows have waited longest. True when there is anything to send.
    ///
    /// Whatever its rows, an insert costs ClickHouse a part with its files and fsyncs in the table and in the target of each
    /// view, and later their merges. So a range that the sink could not take yet is not closed: it grows.
    fn prepare(&mut self, state: &mut MutexGuard<'_, State>, now: Instant, wake: &mut Instant) -> bool {
        let Settings { buffer_bytes, ranges_under_way, .. } = self.shared.settings;
        let limits = &self.shared.limits;
        let hurry = state.hurry(buffer_bytes);
        let mut due = false;
        let mut waiting = Vec::new();
        for (id, partition) in &state.partitions {
            match partition.stage {
                Stage::Given { .. } => continue,
                Stage::Done { .. } => due = true,
                Stage::Recording => {
                    due |= !partition.revoked.is_cancelled();
                    continue;
                }
                Stage::Idle => {}
            }
            if partition.revoked.is_cancelled() || self.prepared.contains_key(id) {
                continue;
            }
            if partition.in_doubt {
                due = true;
            } else if let Some(since) = partition.buffer.waits_since() {
                waiting.push((!partition.buffer.must_read_on(), since, *id));
            }
        }
        waiting.sort_unstable();
        // One whose dead letters cannot be kept holds up its own partition only.
        let prepared = self.prepared.values().filter(|prepared| prepared.letters_kept).count();
        let mut free = ranges_under_way.saturating_sub(state.given() + prepared);
        for (_, _, id) in waiting {
            let Some(partition) = state.partitions.get_mut(&id).filter(|_| free > 0) else { break };
            let ready = partition.buffer.ready(limits, now, hurry);
            if let Some(count) = ready
                && self.shared.recall.is_some()
                && ask_of(id, partition, count, &mut self.questions)
            {
                due = true;
                continue;
            }
            if let Some(count) = ready
                && let Some(block) = partition.buffer.take(count, limits, &mut partition.marks)
            {
                free -= 1;
                self.shared.metrics.source_repeats.inc_by(block.repeats as u64);
                // A partition whose commit is due records its next range in the same request.
                if matches!(partition.stage, Stage::Idle) {
                    partition.stage = Stage::Recording;
                }
                partition.under_way += block.size;
                let letters_kept = block.letters.is_empty();
                let recorded = self.shared.recall.is_none() || block.rows == 0;
                let generation = partition.generation;
                self.prepared.insert(id, Prepared { generation, block, letters_kept, recorded });
                due = true;
            } else if let Some(at) = partition.buffer.due(limits) {
                *wake = (*wake).min(at);
            }
        }
        due
    }

    /// Asks ClickHouse what is not known of partitions, and records ranges where the broker would forget them. Blocks.
    fn ask_and_record(&mut self) -> Result<(), QueryError> {
        let Some(recall) = self.shared.recall.clone() else { return Ok(()) };
        self.settle_doubts(&recall)?;
        let (topic, carries) = (&self.shared.settings.topic, self.shared.settings.carries);
        while let Some((generation, question)) = self.questions.last() {
            let mark = recall.mark(topic, carries, question)?;
            let mut state = self.shared.state.lock();
            let partition = state.partitions.get_mut(&question.partition);
            if let Some(partition) = partition.filter(|partition| partition.generation == *generation) {
                partition.marks.learn(question.wal_id, mark);
            }
            drop(state);
            self.questions.pop();
        }
        if self.keeps_metadata == Some(true) {
            self.prepared.values_mut().for_each(|prepared| prepared.recorded = true);
            return Ok(());
        }
        let mut new = Vec::new();
        {
            let state = self.shared.state.lock();
            for (id, Prepared { block, generation, .. }) in self.prepared.iter().filter(|(_, p)| !p.recorded) {
                let Some(partition) = state.partitions.get(id).filter(|p| p.generation == *generation) else {
                    continue;
                };
                self.records += 1;
                // Later assignments win: what a member still records that was expelled and does not know it is never used.
                let version = partition.assigned_at << 32 | self.records & u64::from(u32::MAX);
                new.push((*id, InFlight { first: block.first, last: block.last }, version));
            }
        }
        if !new.is_empty() {
            recall.record(topic, &self.shared.settings.group, &new)?;
            for (id, ..) in new {
                if let Some(prepared) = self.prepared.get_mut(&id) {
                    prepared.recorded = true;
                }
            }
        }
        Ok(())
    }

    /// Finds out which ranges were in flight in partitions whose commits came without metadata.
    fn settle_doubts(&self, recall: &Recall) -> Result<(), QueryError> {
        let doubtful: Vec<(u32, u64, Option<u64>)> = {
            let state = self.shared.state.lock();
            let doubtful = state.partitions.iter().filter(|(_, partition)| partition.in_doubt);
            doubtful.map(|(id, partition)| (*id, partition.generation, partition.start)).collect()
        };
        if doubtful.is_empty() {
            return Ok(());
        }
        let starts: Vec<(u32, u64)> =
            doubtful.iter().filter_map(|(id, _, start)| start.map(|start| (*id, start))).collect();
        let recorded = recall.in_flight(&self.shared.settings.topic, &self.shared.settings.group, &starts)?;
        let mut state = self.shared.state.lock();
        for (id, generation, start) in doubtful {
            let Some(partition) = state.partitions.get_mut(&id).filter(|p| p.generation == generation) else {
                continue;
            };
            partition.in_doubt = false;
            if let Some(last) = recorded.get(&id) {
                tracing::info!(partition = id, first = start, last, "a range was in flight, as ClickHouse says");
                partition.buffer.recorded(*last);
            }
        }
        Ok(())
    }

    /// Whether a commit is to be sent: after questions were asked there may be none yet.
    fn is_due(&self) -> bool {
        let state = self.shared.state.lock();
        !self.prepared.is_empty() || state.partitions.values().any(|p| matches!(p.stage, Stage::Done { .. }))
    }

    /// Writes what could not be decoded to the dead letters, before its offsets can pass.
    fn keep_letters(&mut self) {
        let topic = &self.shared.settings.topic;
        for (id, prepared) in self.prepared.iter_mut().filter(|(_, prepared)| !prepared.letters_kept) {
            let letters: Vec<DeadLetter<'_>> = prepared
                .block
                .letters
                .iter()
                .map(|letter| DeadLetter {
                    stage: dead_letters::Stage::Source,
                    reason: letter.reason.clone(),
                    form: letter.form,
                    bytes: &letter.bytes,
                    origin: None,
                    message: Some(MessageLine {
                        topic: topic.clone(),
                        partition: *id,
                        offset: letter.offset,
                        line: u32::try_from(letter.line).unwrap_or(u32::MAX),
                    }),
                    about: None,
                })
                .collect();
            if let Err(error) = self.shared.dead_letters.keep(&letters) {
                let reason = format!("the dead letters of partition {id} cannot be kept: {error}");
                self.shared.status.set("dead letters", Severity::Degraded, reason);
                self.shared.metrics.error("source");
                continue;
            }
            prepared.block.letters = Vec::new();
            prepared.letters_kept = true;
            self.shared.status.clear("dead letters");
        }
    }

    /// Sends one commit for everything that is due, under the assignment that it is due under.
    fn send(&self) -> KafkaResult<BTreeMap<u32, Entry>> {
        let _gate = self.shared.gate.lock();
        let entries = self.entries(&self.shared.state.lock());
        if entries.is_empty() {
            // Only letters that cannot be kept are left.
            return Err(KafkaError::Canceled);
        }
        if self.consumer.assignment_lost() {
            // The group went on without this member: librdkafka would commit as nobody in particular.
            return Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost));
        }
        let mut list = TopicPartitionList::with_capacity(entries.len());
        for (id, entry) in &entries {
            let mut element = list.add_partition(&self.shared.settings.topic, i32::try_from(*id).unwrap_or(i32::MAX));
            element.set_offset(Offset::Offset(i64::try_from(entry.offset).unwrap_or(i64::MAX)))?;
            element.set_metadata(&entry.metadata);
        }
        self.consumer.commit(&list, CommitMode::Sync)?;
        self.shared.status.contacted();
        Ok(entries)
    }

    fn entries(&self, state: &State) -> BTreeMap<u32, Entry> {
        let mut entries = BTreeMap::new();
        for (id, partition) in &state.partitions {
            let done = match partition.stage {
                Stage::Done { last, .. } => Some(last),
                _ => None,
            };
            let prepared = self.prepared.get(id).filter(|prepared| {
                prepared.letters_kept
                    && prepared.recorded
                    && prepared.generation == partition.generation
                    && !partition.revoked.is_cancelled()
            });
            let (offset, metadata) = match (prepared, done) {
                (Some(Prepared { block, .. }), _) if block.rows > 0 => (block.first, marker::write(Some(block.last))),
                (Some(Prepared { block, .. }), _) => (block.last + 1, marker::write(None)),
                (None, Some(last)) => (last + 1, marker::write(None)),
                (None, None) => continue,
            };
            let generation = partition.generation;
            let prepared = prepared.is_some();
            entries.insert(*id, Entry { generation, offset, metadata, commits: done.is_some(), prepared });
        }
        entries
    }

    /// The group has taken `entries`: lets go of what is committed and gives out what is recorded.
    fn settle(&mut self, entries: &BTreeMap<u32, Entry>) {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let state = &mut *state;
        let partitions = state.partitions.len();
        for (id, entry) in entries {
            let prepared = if entry.prepared { self.prepared.remove(id) } else { None };
            let Some(partition) = state.partitions.get_mut(id).filter(|p| p.generation == entry.generation) else {
                continue;
            };
            let block = prepared.map(|prepared| prepared.block);
            let next = block.as_ref().map_or(0, |block| block.size);
            if entry.commits {
                // What is under way from here on is the block that was prepared meanwhile, if any.
                let waiting_block = self.prepared.get(id).map_or(0, |prepared| prepared.block.size);
                let kept = next + waiting_block;
                state.held = state.held.saturating_sub(partition.under_way.saturating_sub(kept));
                partition.under_way = kept;
                if let Stage::Done { waiting, .. } = mem::replace(&mut partition.stage, Stage::Idle) {
                    for waiter in waiting {
                        if waiter.send(()).is_err() {
                            tracing::debug!(partition = id, "nobody waits for this commit any more");
                        }
                    }
                }
                if waiting_block > 0 {
                    partition.stage = Stage::Recording;
                }
            }
            let Some(block) = block else { continue };
            if block.rows == 0 || partition.revoked.is_cancelled() {
                partition.stage = Stage::Idle;
                partition.under_way = 0;
                state.held = state.held.saturating_sub(block.size);
                continue;
            }
            partition.stage = Stage::Given { first: block.first, last: block.last };
            let block_of_rows = RowBlock { rows: block.rows, body: block.parts.into() };
            let (events, parked) = match shared.settings.carries {
                Carries::Events => (block_of_rows, RowBlock::default()),
                Carries::Parked => (RowBlock::default(), block_of_rows),
            };
            state.ready.push_back(Range {
                id: RangeId {
                    topic: shared.settings.topic.clone(),
                    partition: *id,
                    first: block.first,
                    last: block.last,
                    mark: Some(block.mark),
                },
                rows: events.rows,
                body: events.body,
                parked,
                oldest_received_at_ms: block.oldest_received_at_ms,
                first_expiry: block.first_expiry,
                replayed: block.replayed,
                of_earlier_opening: false,
                beside: Some(Beside {
                    logs: block.logs,
                    newest_received_at_ms: block.newest_received_at_ms,
                    partitions,
                }),
                generation: entry.generation,
                revoked: partition.revoked.clone(),
            });
        }
        shared.ready.notify_one();
        shared.changed.notify_all();
    }

    /// Asks the group for what it was just given. A broker that drops metadata cannot tell the next owner of a partition
    /// which range was in flight.
    fn ask_for_metadata(&mut self, entries: &BTreeMap<u32, Entry>) {
        let Some((id, entry)) = entries.first_key_value() else { return };
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.shared.settings.topic, i32::try_from(*id).unwrap_or(i32::MAX));
        let committed = match self.consumer.committed_offsets(list, ASK_TIMEOUT) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::debug!(error = chain(&error), "committed offsets cannot be read, asking again later");
                return;
            }
        };
        let Some(kept) = committed.elements().first().map(|element| super::metadata_of(element) == entry.metadata)
        else {
            return;
        };
        self.keeps_metadata = Some(kept);
        if kept {
            self.shared.status.clear("metadata");
        } else if self.shared.recall.is_some() {
            tracing::info!("the broker drops commit metadata: ranges in flight are recorded in ClickHouse");
        } else {
            let reason = "the broker drops commit metadata: at least once across failovers, not exactly once";
            self.shared.status.set("metadata", Severity::Degraded, reason);
        }
    }
}

/// Adds questions about the logs of the first `count` pieces that `partition` knows nothing of; false when there are none.
fn ask_of(id: u32, partition: &Partition, count: usize, questions: &mut Vec<(u64, Question)>) -> bool {
    let mut unknown: BTreeMap<WalId, i64> = BTreeMap::new();
    for piece in partition.buffer.first(count) {
        for wal_id in piece.wal_ids().filter(|wal_id| !partition.marks.knows(*wal_id)) {
            let since = unknown.entry(wal_id).or_insert(i64::MAX);
            *since = (*since).min(piece.oldest_received_at_ms);
        }
    }
    let asked = !unknown.is_empty();
    for (wal_id, received_since_ms) in unknown {
        let question = Question { partition: id, before: partition.start, wal_id, received_since_ms };
        if !questions.contains(&(partition.generation, question)) {
            questions.push((partition.generation, question));
        }
    }
    asked
}

/// The group went on without this member: nothing under this assignment can be committed any more.
fn is_expelled(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::AssignmentLost
        )
    )
}

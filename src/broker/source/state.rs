//! What the threads of the source share: partitions under this assignment, and the one range of each that is under way.
//!
//! ```text
//! Idle -> Recording -> Given -> Done -> Idle       (Recording and Done end with a commit to the group)
//! ```
//!
//! Lock order: `gate` before `state`. The gate is held for as long as a commit is on its way, and by a rebalance
//! before it gives partitions back: so no commit is sent under an assignment that it was not made for.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    buffer::{Buffer, Piece},
    recall::Recall,
    repeats::Marks,
};
use crate::{
    broker::{Settings, Status},
    dead_letters::DeadLetters,
    metrics::Metrics,
    sink::source::{Range, RangeLimits},
};

/// Where the range of a partition stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// None is under way.
    Idle,
    /// Taken from the buffer, not yet recorded with the group.
    Recording,
    /// Recorded; the sink has it, or may take it.
    Given { first: u64, last: u64 },
    /// Stored; its commit is due.
    Done { last: u64, waiting: Vec<oneshot::Sender<()>> },
}

/// Which range of a partition was in flight when it was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// None was.
    None,
    /// One that begins at the commit and ends here.
    Last(u64),
    /// The broker does not say.
    Unknown,
}

/// One partition under the present assignment.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) generation: u64,
    pub(super) buffer: Buffer,
    /// The first offset that this assignment reads; nothing without a commit.
    pub(super) start: Option<u64>,
    /// When it was assigned, Unix seconds.
    pub(super) assigned_at: u64,
    /// Whether a range was in flight is still to be asked of ClickHouse.
    pub(super) in_doubt: bool,
    /// What was read before.
    pub(super) marks: Marks,
    /// The next offset to be read; unknown until the first message of a partition that has no commit.
    pub(super) next: Option<u64>,
    pub(super) stage: Stage,
    /// Bytes of the range under way.
    pub(super) under_way: usize,
    pub(super) revoked: CancellationToken,
    pub(super) paused: bool,
}

/// What changes under the lock.
#[derive(Default)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) partitions: BTreeMap<u32, Partition>,
    /// The group has given this member its share, be it nothing.
    pub(super) is_member: bool,
    /// Recorded ranges that the sink has not taken yet.
    pub(super) ready: VecDeque<Range>,
    /// Bytes in all buffers and ranges.
    pub(super) held: usize,
    pub(super) closing: bool,
    /// The client failed for good.
    pub(super) failed: Option<rdkafka::error::KafkaError>,
    /// The last assignment could not be taken up: join again.
    pub(super) join_again: bool,
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) limits: RangeLimits,
    pub(super) dead_letters: DeadLetters,
    pub(super) status: Arc<Status>,
    pub(super) metrics: Arc<Metrics>,
    /// Nothing in tests of the topic alone.
    pub(super) recall: Option<Recall>,
    pub(super) state: Mutex<State>,
    /// Wakes the committer and a rebalance that waits.
    pub(super) changed: Condvar,
    /// Wakes `next`.
    pub(super) ready: Notify,
    pub(super) gate: Mutex<()>,
}

impl State {
    /// Takes up `partitions` under a new generation: each with its next offset and the last offset of a range that
    /// was in flight.
    pub(super) fn assign(&mut self, partitions: impl IntoIterator<Item = (u32, Option<u64>, Recorded)>) {
        self.generation += 1;
        self.is_member = true;
        let assigned_at = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
        for (id, next, recorded) in partitions {
            let last = match recorded {
                Recorded::Last(last) => Some(last),
                Recorded::None | Recorded::Unknown => None,
            };
            let partition = Partition {
                generation: self.generation,
                buffer: Buffer::new(last),
                start: next,
                assigned_at,
                in_doubt: recorded == Recorded::Unknown,
                marks: Marks::default(),
                next,
                stage: Stage::Idle,
                under_way: 0,
                revoked: CancellationToken::new(),
                paused: false,
            };
            self.remove(id);
            self.partitions.insert(id, partition);
        }
    }

    /// Says that `ids` will be taken away: ranges that nobody has yet are withdrawn, the others are told.
    pub(super) fn begin_revoke(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.revoked.cancel();
                let before = self.ready.len();
                self.ready.retain(|range| range.id.partition != *id);
                if self.ready.len() < before {
                    partition.stage = Stage::Idle;
                }
            }
        }
    }

    /// The group took everything away already: what is under way is the next owners' to repeat.
    pub(super) fn expel(&mut self) {
        let ids: Vec<u32> = self.partitions.keys().copied().collect();
        self.begin_revoke(&ids);
        for partition in self.partitions.values_mut() {
            if let Stage::Done { .. } = partition.stage {
                partition.stage = Stage::Idle;
            }
        }
    }

    /// The sink is still busy with a range of one of `ids`.
    pub(super) fn is_busy(&self, ids: &[u32]) -> bool {
        ids.iter()
            .filter_map(|id| self.partitions.get(id))
            .any(|partition| matches!(partition.stage, Stage::Given { .. } | Stage::Done { .. }))
    }

    /// Forgets a partition. Whoever waits for its commit is let go: the commit is no longer ours to make.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some(partition) = self.partitions.remove(&id) {
            partition.revoked.cancel();
            self.ready.retain(|range| range.id.partition != id);
            self.held = self.held.saturating_sub(partition.buffer.size() + partition.under_way);
        }
    }

    /// Adds what was read. `None` when it is not wanted: of a partition that is gone, or read again after an assignment was
    /// renewed. Otherwise whether the committer has something new to look at.
    pub(super) fn push(&mut self, id: u32, piece: Piece, limits: &RangeLimits) -> Option<bool> {
        let partition = self.partitions.get_mut(&id)?;
        if partition.revoked.is_cancelled() || partition.next.is_some_and(|next| piece.offset < next) {
            return None;
        }
        partition.next = Some(piece.offset + 1);
        self.held += piece.size();
        Some(partition.buffer.push(piece, limits))
    }

    /// The partition of `range`, if the range is the one under way there.
    fn of_range(&mut self, range: &Range) -> Option<&mut Partition> {
        let partition = self.partitions.get_mut(&range.id.partition)?;
        let given = match partition.stage {
            Stage::Given { first, last } => first == range.id.first && last == range.id.last,
            _ => false,
        };
        (partition.generation == range.generation && given).then_some(partition)
    }

    /// Queues the commit of `range`; `None` when it is no longer ours.
    pub(super) fn done(&mut self, range: &Range) -> Option<oneshot::Receiver<()>> {
        let partition = self.of_range(range)?;
        let (tell, told) = oneshot::channel();
        partition.stage = Stage::Done { last: range.id.last, waiting: vec![tell] };
        Some(told)
    }

    /// How many ranges the sink has, or may take.
    pub(super) fn given(&self) -> usize {
        self.partitions.values().filter(|partition| matches!(partition.stage, Stage::Given { .. })).count()
    }

    /// The insert of `range` was given up. Only a revoked range can be: its rows are not kept here to be given again.
    pub(super) fn abandon(&mut self, range: &Range) {
        if let Some(partition) = self.of_range(range)
            && partition.revoked.is_cancelled()
        {
            partition.stage = Stage::Idle;
        }
    }

    /// Memory is short: ranges close early.
    pub(super) fn hurry(&self, budget: usize) -> bool {
        self.held >= budget
    }

    /// Which partitions to stop reading, and which to read again.
    pub(super) fn balance(&mut self, limits: &RangeLimits, budget: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let short = self.held >= budget;
        // Half of the budget between stopping and starting, because a pause throws away what was read ahead.
        let ample = self.held < budget / 2;
        for (id, partition) in &mut self.partitions {
            let buffer = &partition.buffer;
            if !partition.paused && !buffer.must_read_on() && (short || buffer.is_ample(limits)) {
                partition.paused = true;
                pause.push(*id);
            } else if partition.paused && (buffer.must_read_on() || (ample && buffer.is_low(limits))) {
                partition.paused = false;
                resume.push(*id);
            }
        }
        (pause, resume)
    }
}

impl Shared {
    /// Gives `ids` back: waits for inserts under way, for a bounded time, then forgets the partitions.
    pub(super) fn revoke(&self, ids: &[u32]) {
        let deadline = Instant::now() + self.settings.revoke_wait;
        let mut state = self.state.lock();
        state.begin_revoke(ids);
        self.changed.notify_all();
        while state.is_busy(ids) && !state.closing {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                tracing::warn!(partitions = ?ids, "partitions are given up while their inserts are under way");
                break;
            }
        }
        drop(state);
        let gate = self.gate.lock();
        let mut state = self.state.lock();
        for id in ids {
            state.remove(*id);
        }
        drop(state);
        drop(gate);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;

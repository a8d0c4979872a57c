//! A model of the way of rows from a log through a topic into a table, in which anything may end at any step. The code under
//! test is what is pure in the source: [`State`], its buffers and its marks; relay, broker, group and ClickHouse are modelled
//! by what they promise.
//!
//! ```text
//! relay    Send: a producer appends messages, in order; Ack: it hears of it; Replace: it is ended, and another begins with the
//!          lowest record that is not wholly acknowledged, while what the old one has in flight may still be appended
//! member   Fetch -> Form -> Note (in the table of ranges) -> Commit (records the range, commits the one before) -> Insert
//! group    Rebalance: partitions go from member to member; Crash: a member is gone, its insert may take effect later
//! ```
//!
//! A member that does not hear of a rebalance goes on with what it has; the group refuses its commits, as brokers do, and the
//! table takes its inserts.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use super::{
    buffer::{Block, Piece},
    state::{Recorded, Stage, State},
};
use crate::{
    broker::Carries,
    ids::{EventId, TenantId, WalId},
    row::{self, EventRow, Origin, Table as Rows},
    sink::source::{Block as RowBlock, Range, RangeId, RangeLimits},
};

const PARTITIONS: u32 = 2;
const MEMBERS: usize = 2;
const LOG: WalId = WalId(Uuid::from_u128(7));
const LIMITS: RangeLimits = RangeLimits { rows: 4, bytes: 1 << 20, age: Duration::from_hours(1), expiries: 20 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Send { partition: u32, messages: usize },
    Ack { partition: u32, messages: usize },
    Replace,
    OldSend { partition: u32, messages: usize },
    Fetch { member: usize, partition: u32, messages: usize },
    Form { member: usize, partition: u32, hurry: bool },
    Note { member: usize, partition: u32 },
    Commit { member: usize },
    Insert { member: usize, partition: u32 },
    Late,
    Crash { member: usize },
    Rebalance { owners: u32, hears: u32, finishes: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let (partition, member) = (|| 0..PARTITIONS, || 0..MEMBERS);
    prop_oneof![
        6 => (partition(), 1_usize..5).prop_map(|(partition, messages)| Step::Send { partition, messages }),
        3 => (partition(), 1_usize..5).prop_map(|(partition, messages)| Step::Ack { partition, messages }),
        1 => Just(Step::Replace),
        1 => (partition(), 1_usize..4).prop_map(|(partition, messages)| Step::OldSend { partition, messages }),
        6 => (member(), partition(), 1_usize..6)
            .prop_map(|(member, partition, messages)| Step::Fetch { member, partition, messages }),
        6 => (member(), partition(), any::<bool>())
            .prop_map(|(member, partition, hurry)| Step::Form { member, partition, hurry }),
        6 => (member(), partition()).prop_map(|(member, partition)| Step::Note { member, partition }),
        6 => member().prop_map(|member| Step::Commit { member }),
        6 => (member(), partition()).prop_map(|(member, partition)| Step::Insert { member, partition }),
        1 => Just(Step::Late),
        1 => member().prop_map(|member| Step::Crash { member }),
        2 => (0..1_u32 << PARTITIONS, 0..1_u32 << MEMBERS, any::<bool>())
            .prop_map(|(owners, hears, finishes)| Step::Rebalance { owners, hears, finishes }),
    ]
}

/// A message of the log's record `seq`: rows of one partition.
#[derive(Clone, Debug)]
struct Message {
    seq: u64,
    ordinals: Vec<u32>,
}

impl Message {
    fn payload(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for ordinal in &self.ordinals {
            let id = Uuid::from_u64_pair(self.seq, u64::from(*ordinal));
            let event = EventRow::new(TenantId(Uuid::from_u128(1)), EventId(id), "custom");
            let origin = Origin { wal_id: LOG, wal_seq: self.seq, wal_ordinal: *ordinal, relayed_at_ms: 0 };
            let mut line = Vec::new();
            row::write_json(&event, &origin, &mut line);
            lines.push(line);
        }
        lines.join(&b'\n')
    }
}

/// How far a producer has come in each partition's messages.
#[derive(Clone, Debug, Default)]
struct Producer {
    sent: [usize; PARTITIONS as usize],
    acknowledged: [usize; PARTITIONS as usize],
}

/// A range that a member was told to store.
#[derive(Debug)]
struct Given {
    range: Range,
    stored: bool,
}

#[derive(Default)]
struct Member {
    state: State,
    /// The group's generation that it knows of.
    generation: u64,
    prepared: BTreeMap<u32, (u64, Block, bool)>,
    given: BTreeMap<u32, Given>,
}

/// A partition's commit.
#[derive(Clone, Copy, Debug, Default)]
struct Committed {
    offset: Option<u64>,
    in_flight: Option<u64>,
}

/// What ClickHouse holds.
#[derive(Default)]
struct Table {
    tokens: HashSet<String>,
    /// Partition, offset, record and ordinal.
    rows: Vec<(u32, u64, u64, u32)>,
    /// Partition, first and last offset, version.
    ranges: Vec<(u32, u64, u64, (u64, u64))>,
}

/// What becomes of the record of a range in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// The broker keeps it.
    Broker,
    /// ClickHouse keeps it.
    Table,
    /// Nobody does: what the source guards against.
    Nobody,
}

struct World {
    memory: Memory,
    /// The log, cut into messages, by partition.
    log: Vec<Vec<Message>>,
    /// Records up to here have left the log.
    done: u64,
    producer: Producer,
    old: Vec<Producer>,
    topic: Vec<Vec<Message>>,
    members: Vec<Member>,
    generation: u64,
    owners: BTreeMap<u32, usize>,
    commits: Vec<Committed>,
    table: Table,
    late: Vec<(String, u32, Bytes)>,
    notes: u64,
}

fn index(partition: u32) -> usize {
    partition as usize
}

impl World {
    /// A log of records with rows for these partitions.
    fn new(memory: Memory, records: &[Vec<u32>]) -> Self {
        let mut log = vec![Vec::new(); index(PARTITIONS)];
        for (seq, rows) in (1..).zip(records) {
            for partition in 0..PARTITIONS {
                let ordinals: Vec<u32> = (0..).zip(rows).filter(|(_, of)| **of == partition).map(|(n, _)| n).collect();
                // At most two rows in a message.
                let messages = ordinals.chunks(2).map(|ordinals| Message { seq, ordinals: ordinals.to_vec() });
                log[index(partition)].extend(messages);
            }
        }
        Self {
            memory,
            log,
            done: 0,
            producer: Producer::default(),
            old: Vec::new(),
            topic: vec![Vec::new(); index(PARTITIONS)],
            members: (0..MEMBERS).map(|_| Member::default()).collect(),
            generation: 0,
            owners: BTreeMap::new(),
            commits: vec![Committed::default(); index(PARTITIONS)],
            table: Table::default(),
            late: Vec::new(),
            notes: 0,
        }
    }

    fn send(topic: &mut [Vec<Message>], log: &[Vec<Message>], producer: &mut Producer, partition: u32, count: usize) {
        let at = index(partition);
        let messages = log[at].iter().skip(producer.sent[at]).take(count);
        let before = topic[at].len();
        topic[at].extend(messages.cloned());
        producer.sent[at] += topic[at].len() - before;
    }

    fn ack(&mut self, partition: u32, count: usize) {
        let at = index(partition);
        self.producer.acknowledged[at] = self.producer.sent[at].min(self.producer.acknowledged[at] + count);
        let waiting = (0..index(PARTITIONS)).filter_map(|at| self.log[at].get(self.producer.acknowledged[at]));
        self.done = waiting.map(|message| message.seq - 1).min().unwrap_or(u64::MAX);
    }

    fn replace(&mut self) {
        let mut next = Producer::default();
        for at in 0..index(PARTITIONS) {
            let gone = self.log[at].partition_point(|message| message.seq <= self.done);
            (next.sent[at], next.acknowledged[at]) = (gone, gone);
        }
        self.old.push(std::mem::replace(&mut self.producer, next));
    }

    fn fetch(&mut self, member: usize, partition: u32, count: usize) {
        let Member { state, .. } = &mut self.members[member];
        let Some(assigned) = state.partitions.get(&partition) else { return };
        let from = assigned.next.unwrap_or(0);
        for (offset, message) in (0_u64..).zip(&self.topic[index(partition)]).skip(from as usize).take(count) {
            let payload = message.payload();
            let piece = Piece::decode(Carries::Events, "t", partition, offset, Some(&payload), Instant::now());
            state.push(partition, piece, &LIMITS);
        }
    }

    /// As the committer prepares a range.
    fn form(&mut self, member: usize, partition: u32, hurry: bool) {
        let Self { members, table, .. } = self;
        let Member { state, prepared, .. } = &mut members[member];
        let Some(assigned) = state.partitions.get_mut(&partition) else { return };
        if !matches!(assigned.stage, Stage::Idle | Stage::Done { .. })
            || assigned.revoked.is_cancelled()
            || prepared.contains_key(&partition)
        {
            return;
        }
        if std::mem::take(&mut assigned.in_doubt) {
            let of = table.ranges.iter().filter(|(p, first, ..)| *p == partition && Some(*first) == assigned.start);
            if let Some((_, _, last, _)) = of.max_by_key(|(.., version)| *version) {
                assigned.buffer.recorded(*last);
            }
        }
        let Some(count) = assigned.buffer.ready(&LIMITS, Instant::now(), hurry) else { return };
        if !assigned.marks.knows(LOG) {
            let before = table
                .rows
                .iter()
                .filter(|(p, offset, ..)| *p == partition && assigned.start.is_some_and(|start| *offset < start));
            assigned.marks.learn(LOG, before.map(|(.., seq, ordinal)| (*seq, *ordinal)).max());
        }
        if let Some(block) = assigned.buffer.take(count, &LIMITS, &mut assigned.marks) {
            if matches!(assigned.stage, Stage::Idle) {
                assigned.stage = Stage::Recording;
            }
            let noted = self.memory != Memory::Table || block.rows == 0;
            prepared.insert(partition, (assigned.generation, block, noted));
        }
    }

    /// Records a range in the table, which refuses nobody.
    fn note(&mut self, member: usize, partition: u32) {
        let Member { generation, prepared, .. } = &mut self.members[member];
        if let Some((_, block, noted)) = prepared.get_mut(&partition)
            && !*noted
        {
            self.notes += 1;
            self.table.ranges.push((partition, block.first, block.last, (*generation, self.notes)));
            *noted = true;
        }
    }

    /// One commit of everything that is due.
    fn commit(&mut self, member: usize) {
        let known = self.members[member].generation == self.generation;
        let Member { state, prepared, given, .. } = &mut self.members[member];
        prepared.retain(|id, (of, ..)| state.partitions.get(id).is_some_and(|partition| partition.generation == *of));
        for Given { range, .. } in given.values().filter(|given| given.stored) {
            state.done(range);
        }
        given.retain(|_, given| !given.stored);
        let ids: Vec<u32> = state.partitions.keys().copied().collect();
        for id in ids {
            let Some(partition) = state.partitions.get_mut(&id) else { continue };
            let done = if let Stage::Done { last, .. } = partition.stage { Some(last) } else { None };
            let ready = prepared.get(&id).is_some_and(|(.., noted)| *noted) && !partition.revoked.is_cancelled();
            if done.is_none() && !ready {
                continue;
            }
            if !known || self.owners.get(&id) != Some(&member) {
                state.expel();
                return;
            }
            let commit = &mut self.commits[index(id)];
            if let Some(last) = done {
                (commit.offset, commit.in_flight) = (Some(last + 1), None);
                partition.stage = if prepared.contains_key(&id) { Stage::Recording } else { Stage::Idle };
            }
            if !ready {
                continue;
            }
            let Some((_, block, _)) = prepared.remove(&id) else { continue };
            if block.rows == 0 {
                (commit.offset, commit.in_flight) = (Some(block.last + 1), None);
                partition.stage = Stage::Idle;
                continue;
            }
            (commit.offset, commit.in_flight) = (Some(block.first), Some(block.last));
            partition.stage = Stage::Given { first: block.first, last: block.last };
            let range = Range {
                id: RangeId {
                    topic: "t".into(),
                    partition: id,
                    first: block.first,
                    last: block.last,
                    mark: Some(block.mark),
                },
                rows: block.rows,
                body: block.parts.into(),
                parked: RowBlock::default(),
                oldest_received_at_ms: block.oldest_received_at_ms,
                first_expiry: block.first_expiry,
                replayed: block.replayed,
                of_earlier_opening: false,
                beside: None,
                generation: partition.generation,
                revoked: partition.revoked.clone(),
            };
            given.insert(id, Given { range, stored: false });
        }
    }

    fn insert(&mut self, member: usize, partition: u32) {
        if let Some(Given { range, stored }) = self.members[member].given.get_mut(&partition) {
            *stored = true;
            self.table.insert(range.id.to_string(), partition, &range.body.by_row());
        }
    }

    /// What a member has in hand is left where it is; its inserts may still be on their way.
    fn leave_inserts(&mut self, member: usize) {
        for (partition, Given { range, stored }) in std::mem::take(&mut self.members[member].given) {
            if !stored {
                self.late.push((range.id.to_string(), partition, range.body.by_row()));
            }
        }
    }

    fn crash(&mut self, member: usize) {
        self.leave_inserts(member);
        self.members[member] = Member::default();
        self.owners.retain(|_, owner| *owner != member);
    }

    fn rebalance(&mut self, owners: u32, hears: u32, finishes: bool) {
        let hears: Vec<usize> = (0..MEMBERS).filter(|member| hears >> member & 1 == 1).collect();
        let all: Vec<u32> = (0..PARTITIONS).collect();
        for &member in &hears {
            self.members[member].state.begin_revoke(&all);
            if finishes {
                for partition in &all {
                    self.insert(member, *partition);
                }
                self.commit(member);
            }
            self.leave_inserts(member);
            let Member { state, prepared, .. } = &mut self.members[member];
            for id in &all {
                state.remove(*id);
            }
            prepared.clear();
        }
        self.generation += 1;
        self.owners.clear();
        for &member in &hears {
            self.members[member].generation = self.generation;
            // With one of them all are its own.
            let ours = |id: &u32| hears.len() == 1 || (owners >> id & 1) as usize == member;
            let taken: Vec<_> = all.iter().copied().filter(ours).map(|id| (id, self.commits[index(id)])).collect();
            self.owners.extend(taken.iter().map(|(id, _)| (*id, member)));
            let memory = self.memory;
            self.members[member].state.assign(taken.into_iter().map(|(id, Committed { offset, in_flight })| {
                let recorded = match (offset, in_flight) {
                    (Some(_), _) if memory == Memory::Table => Recorded::Unknown,
                    (_, Some(last)) if memory == Memory::Broker => Recorded::Last(last),
                    _ => Recorded::None,
                };
                (id, offset, recorded)
            }));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Send { partition, messages } => {
                Self::send(&mut self.topic, &self.log, &mut self.producer, partition, messages);
            }
            Step::Ack { partition, messages } => self.ack(partition, messages),
            Step::Replace => self.replace(),
            Step::OldSend { partition, messages } => {
                if let Some(producer) = self.old.last_mut() {
                    Self::send(&mut self.topic, &self.log, producer, partition, messages);
                }
            }
            Step::Fetch { member, partition, messages } => self.fetch(member, partition, messages),
            Step::Form { member, partition, hurry } => self.form(member, partition, hurry),
            Step::Note { member, partition } => self.note(member, partition),
            Step::Commit { member } => self.commit(member),
            Step::Insert { member, partition } => self.insert(member, partition),
            Step::Late => {
                if let Some((token, partition, body)) = self.late.pop() {
                    self.table.insert(token, partition, &body);
                }
            }
            Step::Crash { member } => self.crash(member),
            Step::Rebalance { owners, hears, finishes } => self.rebalance(owners, hears, finishes),
        }
    }

    /// Everything goes well from now on, until all is stored.
    fn finish(&mut self) {
        for partition in 0..PARTITIONS {
            self.take(Step::Send { partition, messages: 1000 });
            self.take(Step::Ack { partition, messages: 1000 });
        }
        for member in 0..MEMBERS {
            self.crash(member);
        }
        self.rebalance(0, 1, false);
        let behind = |world: &Self| {
            (0..index(PARTITIONS)).any(|at| world.commits[at].offset.unwrap_or(0) < world.topic[at].len() as u64)
        };
        let mut rounds = 0;
        while behind(self) {
            rounds += 1;
            assert!(rounds < 1000, "the sink stands still: {:?} of {:?}", self.commits, self.topic);
            for partition in 0..PARTITIONS {
                self.fetch(0, partition, 3);
                self.form(0, partition, true);
                self.note(0, partition);
            }
            self.commit(0);
            for partition in 0..PARTITIONS {
                self.insert(0, partition);
            }
            self.commit(0);
        }
        while !self.late.is_empty() {
            self.take(Step::Late);
        }
    }
}

impl Table {
    fn insert(&mut self, token: String, partition: u32, body: &[u8]) {
        if !self.tokens.insert(token) {
            return;
        }
        let mut input = body;
        while !input.is_empty() {
            let before = input;
            let ((_, EventId(id)), _, origin) = row::read_insert_origin(Rows::Events, &mut input).unwrap();
            assert_eq!(id.as_u64_pair(), (origin.wal_seq, u64::from(origin.wal_ordinal)));
            // A row ends with its offset.
            let (_, offset) = before[..before.len() - input.len()].split_last_chunk::<8>().unwrap();
            self.rows.push((partition, u64::from_le_bytes(*offset), origin.wal_seq, origin.wal_ordinal));
        }
    }
}

/// Whatever happens, and then all goes well: every row is stored, once.
fn is_stored_once(memory: Memory, records: &[Vec<u32>], steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut world = World::new(memory, records);
    world.rebalance(0b10, 0b11, false);
    for step in steps {
        world.take(step);
    }
    world.finish();
    let mut stored: Vec<_> =
        world.table.rows.iter().map(|(partition, _, seq, ordinal)| (*seq, *ordinal, *partition)).collect();
    stored.sort_unstable();
    let expected: Vec<_> = (1..)
        .zip(records)
        .flat_map(|(seq, rows)| (0..).zip(rows).map(move |(ordinal, partition)| (seq, ordinal, *partition)))
        .collect();
    prop_assert_eq!(stored, expected);
    Ok(())
}

fn records() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0..PARTITIONS, 1..5), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_broker_that_keeps_metadata_gets_every_row_stored_once(
        records in records(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        is_stored_once(Memory::Broker, &records, steps)?;
    }

    #[test]
    fn a_broker_that_drops_metadata_gets_every_row_stored_once(
        records in records(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        is_stored_once(Memory::Table, &records, steps)?;
    }
}

/// The model is worth something: it finds what happens when ranges are not formed again as they were.
#[test]
fn a_source_without_memory_is_found_out() {
    let config =
        ProptestConfig { cases: 2000, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
    let cases = (records(), prop::collection::vec(step(), 0..120));
    let found = TestRunner::new(config).run(&cases, |(records, steps)| is_stored_once(Memory::Nobody, &records, steps));
    assert!(found.is_err(), "no case of 2000 has a row twice");
}

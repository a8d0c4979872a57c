//! The relay's thread: reads records, hands their messages over, follows their acknowledgements, and starts again from
//! the lowest unacknowledged record when a producer fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Relay, RelayError,
    counts::Counts,
    group::{Destination, Grouping, MessageLimits, Refused},
    producer::{Handed, Producer},
    window::{Failure, Run, Window},
};
use crate::{
    broker::{self, BrokerError, Severity, TopicWatch},
    dead_letters::{About, DeadLetter, Form, Stage},
    error_chain::chain,
    ids::WalSeq,
    row::Origin,
    wal::{self, ReadError, Record, Wal},
};

/// Most records read at once and sent together, and most bytes of them as they are in the log.
const READ_RECORDS: usize = 64;
const READ_BYTES: usize = 1 << 20;
/// Most payloads that are kept for the next messages: those of the partitions that a broker usually has, a few hundred
/// kilobytes together.
const SPARE: usize = 16;
/// A wait looks around this often even if nothing is reported.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Without any acknowledgement for this long, while messages wait, the broker counts as down.
const SILENCE: Duration = Duration::from_secs(10);
/// Without any for this long, while the broker answers other requests, the producer is replaced: a broker that lost its
/// memory of a producer can refuse everything from it in a way that librdkafka repeats for ever. Doubles, up to 32 times,
/// with every producer that changes nothing, because the cause may be the broker's (too few replicas in sync).
const STALLED: Duration = Duration::from_secs(15);
/// Pauses between a failed producer and the next: doubling from the first to the last, and jittered.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// The lag is measured at most this often: it walks through the log's generations.
const MEASURE_EVERY: Duration = Duration::from_millis(250);

/// How often a wait for the topic of parked events looks whether it is there: once in a node's life.
const PARKED_TOPIC_LOOK: Duration = Duration::from_millis(50);

/// How one producer's life ended.
enum End {
    Cancelled,
    Failed(Failure),
    Read(ReadError),
}

/// What is known of the events that are not acknowledged yet.
#[derive(Default)]
struct Lag {
    /// Events up to and with the last record that left the log.
    acknowledged: Option<u64>,
    /// The last record read, and the events up to and with it.
    read: Option<(WalSeq, u64)>,
    measured: Option<Instant>,
}

/// What the broker found too large in a record.
#[derive(Default)]
struct TooLarge {
    /// A message of several rows was: send every row on its own.
    alone: bool,
    /// These rows were, on their own.
    rows: BTreeSet<u32>,
}

/// Name of the state file in the log's folder.
const COUNTS: &str = "relay";

/// The numbers of partitions under which what the log holds may have been sent.
fn kept_counts(wal: &Wal) -> Counts {
    let last = WalSeq(wal.stats().next_seq.0.saturating_sub(1));
    let kept = match wal.load_state(COUNTS) {
        Ok(Some(kept)) => Counts::restore(&kept, last),
        Ok(None) => Some(Counts::default()),
        Err(error) => {
            tracing::warn!(error = chain(&error), "the numbers of partitions of the topic cannot be read");
            None
        }
    };
    kept.unwrap_or_else(|| {
        tracing::warn!("if the topic has another number of partitions by now, events may be stored twice");
        Counts::default()
    })
}

pub(super) struct Worker {
    relay: Relay,
    topic: TopicWatch,
    /// The topic of parked events: looked after once there is one to send, because most nodes never have one.
    parked_topic: Option<TopicWatch>,
    runtime: Handle,
    cancel: CancellationToken,
    counts: Counts,
    counts_kept: bool,
    /// By how many partitions records are cut now.
    partitions: Option<u32>,
    too_large: BTreeMap<WalSeq, TooLarge>,
    /// Letters that are kept already, so that a resend writes none twice.
    lettered: BTreeSet<(WalSeq, u32)>,
    /// The first record that was read and not handed over wholly.
    unsent: Option<WalSeq>,
    lag: Lag,
    /// How long this producer may go without an acknowledgement before it is replaced.
    stalled_after: Duration,
    raw: Vec<u8>,
    /// Payloads of messages that were handed over, for the next ones.
    spare: Vec<Vec<u8>>,
}

impl Worker {
    pub(super) fn new(relay: Relay, cancel: CancellationToken) -> Result<Self, BrokerError> {
        let topic = broker::watch(&relay.settings, relay.status.clone(), cancel.clone())?;
        let counts = kept_counts(&relay.wal);
        Ok(Self {
            relay,
            topic,
            parked_topic: None,
            runtime: Handle::current(),
            cancel,
            partitions: counts.present(),
            counts,
            counts_kept: true,
            too_large: BTreeMap::new(),
            lettered: BTreeSet::new(),
            unsent: None,
            lag: Lag::default(),
            stalled_after: STALLED,
            raw: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Relays until it is cancelled. Blocking.
    pub(super) fn run(mut self) -> Result<(), RelayError> {
        let mut failures = 0_u32;
        while self.wait_for_topic() {
            let window = Arc::new(Window::new());
            let Relay { settings, status, metrics, .. } = &self.relay;
            let producer =
                Producer::new(settings, status.clone(), window.clone(), metrics.clone()).map_err(RelayError::Broker)?;
            self.stalled_after = STALLED.saturating_mul(1 << failures.min(5));
            let end = self.produce(&producer, &window);
            if matches!(end, End::Cancelled) {
                self.drain(&window);
            }
            producer.close();
            self.truncate(&window);
            match end {
                End::Cancelled => return Ok(()),
                End::Read(error) => return Err(RelayError::Read(error)),
                End::Failed(failure) => {
                    // Reports that came while it was closed may know more.
                    let failure = window.failure().unwrap_or(failure);
                    failures = if window.was_acknowledged() { 1 } else { failures.saturating_add(1) };
                    self.start_again(&window, &failure, failures);
                }
            }
        }
        Ok(())
    }

    /// Waits until the topic has partitions. False when cancelled.
    fn wait_for_topic(&mut self) -> bool {
        let Self { topic, cancel, runtime, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => false,
                known = topic.partitions.wait_for(|partitions| *partitions > 0) => known.is_ok(),
            }
        })
    }

    fn produce(&mut self, producer: &Producer, window: &Window) -> End {
        loop {
            if let Some(failure) = window.failure() {
                return End::Failed(failure);
            }
            self.truncate(window);
            self.look_for_silence(window);
            let Self { relay, cancel, runtime, .. } = self;
            let read = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err(End::Cancelled),
                    () = window.changed() => Ok(Vec::new()),
                    () = tokio::time::sleep(LOOK_EVERY) => Ok(Vec::new()),
                    read = relay.reader.next(READ_RECORDS, READ_BYTES) => match read {
                        Ok(records) => Ok(records),
                        Err(ReadError::Unavailable(error)) => {
                            tracing::warn!(error = chain(&error), "the log cannot be read now, trying again");
                            relay.metrics.error("relay");
                            tokio::time::sleep(LOOK_EVERY).await;
                            Ok(Vec::new())
                        }
                        Err(error) => Err(End::Read(error)),
                    },
                }
            });
            let records = match read {
                Ok(records) => records,
                Err(end) => return end,
            };
            for together in self.together(&records) {
                // Until they are handed over, a new producer must begin with them.
                self.unsent = together.first().map(|record| record.seq);
                if let Err(end) = self.send(together, producer, window) {
                    return end;
                }
                self.unsent = None;
            }
        }
    }

    /// `records` by what is sent together: those of one opening of the log, but one of which the broker found something
    /// too large on its own.
    fn together<'a>(&self, records: &'a [Arc<Record>]) -> Vec<&'a [Arc<Record>]> {
        let alone = |record: &Arc<Record>| self.too_large.contains_key(&record.seq);
        records.chunk_by(|a, b| a.wal_id == b.wal_id && !alone(a) && !alone(b)).collect()
    }

    fn send(&mut self, records: &[Arc<Record>], producer: &Producer, window: &Window) -> Result<(), End> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
        let alone = self.too_large.get(&first.seq).is_some_and(|too_large| too_large.alone);
        let settings = &self.relay.settings;
        let rows = if alone { 1 } else { settings.batch_size.max(1) };
        let limits = MessageLimits { format: settings.format, rows, bytes: settings.max_message_bytes };
        let mut grouping = Grouping::new(limits, mem::take(&mut self.spare));
        for record in records {
            for refused in self.group(record, &mut grouping) {
                self.keep_letter(record, &refused)?;
            }
        }
        let messages = grouping.finish();
        if messages.iter().any(|message| message.to == Destination::Parked) {
            self.wait_for_parked_topic(window)?;
        }
        let before = first.cumulative.saturating_sub(u64::from(first.event_count));
        self.lag.acknowledged.get_or_insert(before);
        self.lag.read = Some((last.seq, last.cumulative));
        let together =
            Run { first: first.seq, last: last.seq, cumulative: last.cumulative, records: records.len() as u64 };
        window.begin(together, messages.len());
        for message in &messages {
            while !window.has_room(message.payload.len(), self.relay.settings.in_flight_bytes) {
                self.wait(window)?;
            }
            loop {
                match producer.hand_over(first.seq, message, window) {
                    Handed::Over => break,
                    Handed::QueueFull => self.wait(window)?,
                    Handed::Failed(failure) => return Err(End::Failed(window.failure().unwrap_or(failure))),
                }
            }
        }
        self.spare.extend(messages.into_iter().map(|message| message.payload).take(SPARE));
        Ok(())
    }

    /// Waits until the topic of parked events is there: everything behind waits too, because a record is sent whole.
    fn wait_for_parked_topic(&mut self, window: &Window) -> Result<(), End> {
        if self.parked_topic.is_none() {
            let Relay { settings, status, .. } = &self.relay;
            match broker::watch(&settings.parked(), status.clone(), self.cancel.clone()) {
                Ok(watch) => self.parked_topic = Some(watch),
                Err(error) => return Err(End::Failed(Failure { reason: chain(&error), too_large: None })),
            }
        }
        while self.parked_topic.as_ref().is_some_and(|topic| *topic.partitions.borrow() == 0) {
            self.pause(PARKED_TOPIC_LOOK)?;
            self.truncate(window);
            if let Some(failure) = window.failure() {
                return Err(End::Failed(failure));
            }
        }
        Ok(())
    }

    /// Adds the rows of `record` to `grouping`; gives those that no message can carry.
    fn group(&mut self, record: &Record, grouping: &mut Grouping) -> Vec<Refused> {
        let present = *self.topic.partitions.borrow();
        let (partitions, first) = self.counts.for_record(record.seq, present);
        if first {
            if self.partitions.is_some() {
                tracing::warn!(partitions, from_seq = record.seq.0, "the topic has another number of partitions");
                self.relay.metrics.relay_repartitions.inc();
            }
            self.partitions = Some(partitions);
            self.counts_kept = false;
        }
        if !self.counts_kept {
            self.keep_counts();
        }
        let none = BTreeSet::new();
        let too_large = self.too_large.get(&record.seq).map_or(&none, |too_large| &too_large.rows);
        let origin = Origin {
            wal_id: record.wal_id,
            wal_seq: record.seq.0,
            wal_ordinal: 0,
            relayed_at_ms: Timestamp::now().as_millisecond(),
        };
        self.raw.clear();
        let rows =
            record.decompress_into(&mut self.raw).and_then(|()| wal::rows(&self.raw).collect::<Result<Vec<_>, _>>());
        match rows {
            Ok(rows) => grouping.add(rows, &origin, partitions, too_large),
            Err(error) => {
                // The log checked it when it was written and when it was read: this is a version that writes wrongly.
                let reason = format!("the record cannot be unpacked: {}", chain(&error));
                let bytes = record.payload().to_vec();
                vec![Refused { ordinal: 0, reason, form: Form::Record, bytes }]
            }
        }
    }

    /// Keeps the numbers of partitions, before the first record is sent under a new one. On a full disk it goes on without:
    /// what is sent frees space.
    fn keep_counts(&mut self) {
        match self.runtime.block_on(self.relay.wal.save_state(COUNTS, self.counts.encode())) {
            Ok(()) => self.counts_kept = true,
            Err(error) => {
                self.relay.metrics.error("relay");
                tracing::warn!(error = chain(&error), "the number of partitions cannot be kept, trying again");
            }
        }
    }

    /// Writes a dead letter, and tries for as long as it takes: its record may not go before.
    fn keep_letter(&mut self, record: &Record, refused: &Refused) -> Result<(), End> {
        let place = (record.seq, refused.ordinal);
        while !self.lettered.contains(&place) {
            let letter = DeadLetter {
                stage: Stage::Relay,
                reason: refused.reason.clone(),
                form: refused.form,
                bytes: &refused.bytes,
                origin: Some((record.wal_id, record.seq.0, refused.ordinal)),
                message: None,
                // A row that can be read says more than its record.
                about: match refused.form {
                    Form::Record => Some(About::of_record(record, record.event_count)),
                    Form::Row => Some(About::of_record(record, 1)),
                    _ => None,
                },
            };
            match self.relay.dead_letters.keep(&[letter]) {
                Ok(()) => {
                    self.lettered.insert(place);
                    self.relay.status.clear("dead letters");
                }
                Err(error) => {
                    let reason = format!("a dead letter of record {} cannot be kept: {error}", record.seq);
                    self.relay.status.set("dead letters", Severity::Degraded, reason);
                    self.relay.metrics.error("relay");
                    self.pause(LOOK_EVERY)?;
                }
            }
        }
        Ok(())
    }

    /// Waits for news of messages in flight.
    fn wait(&mut self, window: &Window) -> Result<(), End> {
        let Self { cancel, runtime, .. } = self;
        let cancelled = runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => true,
                () = window.changed() => false,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            }
        });
        self.truncate(window);
        self.look_for_silence(window);
        match window.failure() {
            _ if cancelled => Err(End::Cancelled),
            Some(failure) => Err(End::Failed(failure)),
            None => Ok(()),
        }
    }

    fn pause(&self, pause: Duration) -> Result<(), End> {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.cancel.cancelled() => Err(End::Cancelled),
                () = tokio::time::sleep(pause) => Ok(()),
            }
        })
    }

    /// Removes from the log what is wholly acknowledged.
    fn truncate(&mut self, window: &Window) {
        if let Some(Run { last: seq, cumulative, records, .. }) = window.take_acknowledged() {
            self.relay.wal.truncate_through(seq);
            self.relay.metrics.relay_records.inc_by(records);
            self.lag.acknowledged = Some(cumulative);
            self.counts.forget(seq);
            self.too_large = self.too_large.split_off(&WalSeq(seq.0 + 1));
            self.lettered = self.lettered.split_off(&(WalSeq(seq.0 + 1), 0));
        }
        self.measure_lag();
    }

    /// Events in the log that the broker has not acknowledged: exact once everything was read, and before that with
    /// unread records taken to be as large as the log's average.
    fn measure_lag(&mut self) {
        if self.lag.measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return;
        }
        self.lag.measured = Some(Instant::now());
        let stats = self.relay.wal.stats();
        let (seq, cumulative) = match self.lag.read {
            Some((seq, cumulative)) => (seq.0, cumulative),
            None => (self.relay.wal.done_through().map_or(0, |seq| seq.0), 0),
        };
        let unread = stats.next_seq.0.saturating_sub(seq.saturating_add(1));
        let average = stats.events.checked_div(stats.records).unwrap_or(0);
        let known = cumulative.saturating_sub(self.lag.acknowledged.unwrap_or(cumulative));
        let lag = known.saturating_add(unread.saturating_mul(average));
        self.relay.metrics.relay_lag_events.set(i64::try_from(lag).unwrap_or(i64::MAX));
    }

    fn look_for_silence(&self, window: &Window) {
        let (messages, silence) = window.silence();
        if silence < SILENCE {
            self.relay.status.clear("deliveries");
        } else {
            let reason = format!("{messages} messages wait, and the broker acknowledges none");
            if silence >= self.stalled_after && self.relay.status.is_connected() {
                window.fail(Failure { reason: reason.clone(), too_large: None });
            }
            self.relay.status.set("deliveries", Severity::Down, reason);
        }
    }

    fn drain(&mut self, window: &Window) {
        let Self { runtime, relay, .. } = self;
        let drained = runtime.block_on(tokio::time::timeout(relay.settings.drain, async {
            while !window.is_settled() && window.failure().is_none() {
                window.changed().await;
            }
        }));
        if drained.is_err() {
            tracing::info!("messages in flight were not acknowledged in time; their records stay in the log");
        }
    }

    /// Goes back to the lowest record that is not wholly acknowledged, after a pause.
    fn start_again(&mut self, window: &Window, failure: &Failure, failures: u32) {
        let lowest = window.lowest().into_iter().chain(self.unsent.take()).min();
        tracing::warn!(reason = failure.reason, ?lowest, failures, "the producer failed and is replaced");
        self.relay.metrics.relay_rebuilds.inc();
        self.relay.metrics.error("relay");
        self.relay.status.set("producer", Severity::Degraded, format!("the producer is replaced: {}", failure.reason));
        if let Some(sent) = failure.too_large {
            if sent.rows > 1 {
                for seq in sent.first.0..=sent.last.0 {
                    self.too_large.entry(WalSeq(seq)).or_default().alone = true;
                }
            } else {
                self.too_large.entry(sent.first).or_default().rows.insert(sent.first_ordinal);
            }
        }
        if let Some(seq) = lowest {
            self.relay.reader.rewind(seq);
        }
        self.topic.look_now();
        if let Some(topic) = &self.parked_topic {
            topic.look_now();
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.clamp(1, 10)).min(LAST_PAUSE);
        // When cancelled meanwhile, the next wait says so.
        if self.pause(pause.mul_f64(rand::random_range(0.5..1.0))).is_err() {
            tracing::debug!("cancelled while a producer was to be replaced");
        }
    }
}

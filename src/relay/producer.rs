//! The producer: librdkafka's delivery reports and errors, turned into the state of the window.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message as _, Statistics,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};

use super::{
    group::{Destination, Message},
    window::{Failure, Sent, Window},
};
use crate::{
    broker::{BrokerError, ClientEvents, Settings, Status},
    ids::WalSeq,
    metrics::Metrics,
};

/// How long one poll waits. A poll returns when this has passed, not when an event came: events are served within it.
const POLL: Duration = Duration::from_millis(100);

pub(super) struct RelayContext {
    events: ClientEvents,
    status: Arc<Status>,
    window: Arc<Window>,
    metrics: Arc<Metrics>,
}

impl ClientContext for RelayContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // A fatal error comes under the code of its cause; these are those that an idempotent producer does not survive.
        if let Some(
            RDKafkaErrorCode::Fatal
            | RDKafkaErrorCode::GaplessGuarantee
            | RDKafkaErrorCode::OutOfOrderSequenceNumber
            | RDKafkaErrorCode::UnknownProducerId
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::InvalidProducerIdMapping,
        ) = error.rdkafka_error_code()
        {
            self.window.fail(Failure { reason: format!("fatal: {reason}"), too_large: None });
        }
        self.events.error(error, reason);
    }
}

impl ProducerContext for RelayContext {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        match result {
            Ok(_) => {
                self.metrics.relay_messages.inc();
                self.metrics.relay_events.inc_by(u64::from(sent.rows));
                if self.window.acknowledged(&sent) {
                    self.status.contacted();
                    self.status.clear("producer");
                }
            }
            Err((error, message)) => {
                let too_large =
                    (error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)).then_some(*sent);
                let (topic, partition) = (message.topic(), message.partition());
                let reason = format!("partition {partition} of topic {topic} did not take a message: {error}");
                self.window.fail(Failure { reason, too_large });
            }
        }
    }
}

/// What became of a message that was to be handed over.
pub(super) enum Handed {
    /// librdkafka has it.
    Over,
    /// Its queue is full: wait for a delivery and try again.
    QueueFull,
    /// The producer cannot be used any more.
    Failed(Failure),
}

/// One producer and the thread that serves its callbacks.
pub(super) struct Producer {
    inner: Arc<BaseProducer<RelayContext>>,
    stop: Arc<AtomicBool>,
    poller: Option<thread::JoinHandle<()>>,
    topic: String,
    parked_topic: String,
}

impl Producer {
    pub(super) fn new(
        settings: &Settings,
        status: Arc<Status>,
        window: Arc<Window>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        let context = RelayContext { events: ClientEvents::new(status.clone()), status, window, metrics };
        let inner: Arc<BaseProducer<RelayContext>> =
            Arc::new(settings.producer_config().create_with_context(context).map_err(BrokerError::Configuration)?);
        let stop = Arc::new(AtomicBool::new(false));
        let poller = thread::Builder::new().name("relay-poll".into()).spawn({
            let (inner, stop) = (inner.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    inner.poll(POLL);
                }
            }
        });
        let poller = Some(poller.map_err(BrokerError::Thread)?);
        Ok(Self { inner, stop, poller, topic: settings.topic.clone(), parked_topic: settings.parked_topic() })
    }

    /// Hands one message of the records that begin with `together` to librdkafka, which copies it.
    pub(super) fn hand_over(&self, together: WalSeq, message: &Message, window: &Window) -> Handed {
        let Message { wal_id, first, first_ordinal, last, rows, .. } = *message;
        let sent = Sent { together, first, first_ordinal, last, rows, bytes: message.payload.len() };
        let number = |value: u64| value.to_string();
        let headers = OwnedHeaders::new_with_capacity(4)
            .insert(Header { key: "wal_id", value: Some(&wal_id.to_string()) })
            .insert(Header { key: "wal_seq", value: Some(&number(first.0)) })
            .insert(Header { key: "wal_ordinal", value: Some(&number(u64::from(first_ordinal))) })
            .insert(Header { key: "rows", value: Some(&number(u64::from(rows))) });
        let (topic, partition) = match message.to {
            Destination::Events(partition) => (&self.topic, i32::try_from(partition).unwrap_or(i32::MAX)),
            Destination::Parked => (&self.parked_topic, 0),
        };
        let record: BaseRecord<'_, (), [u8], Box<Sent>> = BaseRecord::with_opaque_to(topic, Box::new(sent))
            .partition(partition)
            .payload(message.payload.as_slice())
            .headers(headers);
        // Counted before it is sent: its report may come before this thread goes on.
        window.sent(sent.bytes);
        let Err((error, _)) = self.inner.send(record) else { return Handed::Over };
        window.unsent(sent.bytes);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Handed::QueueFull,
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                Handed::Failed(Failure { reason: error.to_string(), too_large: Some(sent) })
            }
            _ => Handed::Failed(Failure { reason: error.to_string(), too_large: None }),
        }
    }

    /// Gives up what is queued and in flight, and closes. Blocking, for a bounded time.
    pub(super) fn close(mut self) {
        self.inner.purge(PurgeConfig::default().queue().inflight());
        // The reports of what was purged are served by the polling thread; wait until it has seen them.
        let deadline = Instant::now() + Duration::from_secs(2);
        let flushed: KafkaResult<()> = self.inner.flush(deadline.saturating_duration_since(Instant::now()));
        if let Err(error) = flushed {
            tracing::debug!(%error, "messages of a producer that is closed were not reported");
        }
        self.stop.store(true, Ordering::Relaxed);
        if self.poller.take().is_some_and(|poller| poller.join().is_err()) {
            tracing::error!("the polling thread of a producer panicked");
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

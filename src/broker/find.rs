//! Looks for one event in the topics, for a person who asks where it is.
//!
//! Partitions are read by a client that joins no group and commits nothing, from the first message at or after a moment to
//! where they end now: at the first answer that has nothing more, or at the first message that is younger than the question.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use memchr::memmem::Finder;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::MetadataTopic,
};

use super::{Settings, message, topic::Quiet};
use crate::{
    ids::EventId,
    row::{self, Origin, Sighted},
};

/// How long the broker may take to answer one question.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// A broker that sends nothing for this long, not even the end of a partition, is not waited for any longer.
const SILENCE: Duration = Duration::from_secs(20);
/// How far clocks of nodes may be apart.
const SKEW: Duration = Duration::from_secs(10);
/// How often it is said how far the search is.
const SAY: Duration = Duration::from_secs(5);

/// A row of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct InTopic {
    /// What it says.
    pub row: Sighted,
    /// Where it entered, and when it was sent to the broker.
    pub origin: Origin,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The message.
    pub offset: u64,
}

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Searched {
    /// In the order of each partition.
    pub found: Vec<InTopic>,
    /// Partitions that were not read to their end, because the broker stopped answering.
    pub unread: BTreeSet<i32>,
}

/// Looks for `event` among the messages of the topic of `settings` from `since` on; none when there is no such topic. Tells
/// `progress` how many messages it has read, now and then. Blocking.
///
/// # Errors
/// The configuration is refused, or the broker does not answer.
pub fn find(
    settings: &Settings,
    event: EventId,
    since: Timestamp,
    mut progress: impl FnMut(u64),
) -> Result<Option<Searched>, KafkaError> {
    let until = Timestamp::now().as_millisecond() + i64::try_from(SKEW.as_millis()).unwrap_or(0);
    let mut client = Client::connect(settings)?;
    if !client.begin_at(since)? {
        return Ok(None);
    }
    let (text, mut binary) = (event.0.hyphenated().to_string(), Vec::new());
    row::write_uuid_binary(event.0, &mut binary);
    let finders = [text.as_bytes(), &binary].map(Finder::new);
    let mut found = Vec::new();
    let (mut heard, mut said, mut messages) = (Instant::now(), Instant::now(), 0_u64);
    while !client.open.is_empty() && heard.elapsed() < SILENCE {
        if said.elapsed() >= SAY {
            said = Instant::now();
            progress(messages);
        }
        let message = match client.consumer.poll(POLL) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                client.open.remove(&partition);
                continue;
            }
            // librdkafka tries again by itself.
            Some(Err(error)) => {
                tracing::debug!(%error, "the consumer reports an error");
                continue;
            }
            Some(Ok(message)) => message,
        };
        heard = Instant::now();
        messages += 1;
        if message.timestamp().to_millis().is_some_and(|at| at > until) {
            client.open.remove(&message.partition());
            continue;
        }
        let payload = message.payload().unwrap_or_default();
        if finders.iter().all(|finder| finder.find(payload).is_none()) {
            continue;
        }
        let place = (u32::try_from(message.partition()), u64::try_from(message.offset()));
        let (Ok(partition), Ok(offset)) = place else { continue };
        // What is no row of this engine is of nobody.
        for (row, origin) in message::entries(payload).filter_map(|(_, entry)| entry.decode(settings.carries)) {
            if row.event_id() == event {
                let row = Sighted::of(&row);
                found.push(InTopic { row, origin, topic: settings.topic.clone(), partition, offset });
            }
        }
    }
    Ok(Some(Searched { found, unread: client.open }))
}

struct Client<'a> {
    settings: &'a Settings,
    consumer: BaseConsumer<Quiet>,
    /// Partitions that are not read to their end.
    open: BTreeSet<i32>,
}

impl<'a> Client<'a> {
    fn connect(settings: &'a Settings) -> Result<Self, KafkaError> {
        // Under the name of the group, for which the operator's access rules are made. Without a subscription it is never
        // joined, and nothing is committed.
        let mut config: ClientConfig = settings.consumer_config();
        config
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false");
        let consumer = config.create_with_context(Quiet)?;
        Ok(Self { settings, consumer, open: BTreeSet::new() })
    }

    /// Begins to read every partition at its first message from `since` on; false when there is no such topic.
    fn begin_at(&mut self, since: Timestamp) -> Result<bool, KafkaError> {
        let topic = &self.settings.topic;
        let metadata = self.consumer.fetch_metadata(Some(topic), ASK_TIMEOUT)?;
        let partitions = metadata.topics().iter().find(|found| found.name() == topic).map(MetadataTopic::partitions);
        let Some(partitions) = partitions.filter(|partitions| !partitions.is_empty()) else { return Ok(false) };
        let mut moments = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            moments.add_partition_offset(topic, partition.id(), Offset::Offset(since.as_millisecond()))?;
        }
        let first = self.consumer.offsets_for_times(moments, ASK_TIMEOUT)?;
        let mut starts = TopicPartitionList::with_capacity(partitions.len());
        for element in first.elements() {
            let start = match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) => Offset::Offset(offset),
                // Nothing has come since.
                (Ok(()), Offset::End) => continue,
                // Read too much rather than miss something.
                _ => Offset::Beginning,
            };
            starts.add_partition_offset(topic, element.partition(), start)?;
            self.open.insert(element.partition());
        }
        self.consumer.assign(&starts)?;
        Ok(true)
    }
}

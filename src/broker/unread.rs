//! What of the topic is not stored yet, read message by message beside the group: for the ledger.
//!
//! The group is asked for what it has committed, and from there each partition is read to its end by a client that is no
//! member and commits nothing. How much that is, is how far the sink is behind: nothing while it keeps up.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Carries, Settings, message, topic::Quiet};
use crate::{ids::TenantId, row::Origin};

/// How long the broker may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// A partition whose end the broker does not tell (some tell a wrong one) has ended when nothing came for so long.
const QUIET: Duration = Duration::from_secs(2);
/// A topic that never pauses is read for so long.
const LONGEST: Duration = Duration::from_mins(10);
/// How long one wait for a message is.
const POLL: Duration = Duration::from_millis(100);

/// A row that is in the topic.
#[derive(Clone, Debug)]
pub(crate) struct UnreadRow {
    pub(crate) partition: u32,
    pub(crate) tenant: TenantId,
    pub(crate) origin: Origin,
}

/// What is not stored yet of one topic.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    pub(crate) topic: String,
    pub(crate) carries: Carries,
    /// By partition, the offset that the sink reads next. One of which nothing was committed is not in it: there, what is
    /// stored is told from what is not by the rows alone.
    pub(crate) next: BTreeMap<u32, u64>,
    /// When what is unread of a partition was sent, or later (Unix milliseconds); nothing for one that has nothing unread. A row
    /// that was stored before came from elsewhere: from a topic of this name that is no more.
    pub(crate) since_ms: BTreeMap<u32, i64>,
    /// The rows from there on, in the order of their partition.
    pub(crate) rows: Vec<UnreadRow>,
}

/// Reads what is unread of the topic of `settings`; nothing when there is no such topic. Blocks.
///
/// # Errors
/// [`KafkaError`] when the broker does not answer, or the end of the topic is not reached in ten minutes.
pub(crate) fn unread(settings: &Settings) -> Result<Option<Unread>, KafkaError> {
    let mut config = settings.client_config();
    config
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
    let topic = settings.topic.as_str();
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic)
        .flat_map(|found| found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect();
    if partitions.is_empty() {
        return Ok(None);
    }
    let mut asked = TopicPartitionList::new();
    for partition in &partitions {
        asked.add_partition(topic, *partition);
    }
    let committed = consumer.committed_offsets(asked, ANSWER)?;
    let mut unread = Unread {
        topic: topic.to_owned(),
        carries: settings.carries,
        next: BTreeMap::new(),
        since_ms: BTreeMap::new(),
        rows: Vec::new(),
    };
    let mut from = TopicPartitionList::new();
    for element in committed.elements_for_topic(topic) {
        let start = match element.offset() {
            Offset::Offset(next) => {
                unread.next.insert(element.partition().unsigned_abs(), u64::try_from(next).unwrap_or(0));
                Offset::Offset(next)
            }
            _ => Offset::Beginning,
        };
        from.add_partition_offset(topic, element.partition(), start)?;
    }
    consumer.assign(&from)?;
    let mut open: HashSet<i32> = partitions.into_iter().collect();
    let began = Instant::now();
    let mut heard = began;
    while !open.is_empty() && heard.elapsed() < QUIET {
        if began.elapsed() > LONGEST {
            return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard = Instant::now();
                // A partition that some broker said had ended, and that goes on.
                open.insert(message.partition());
                take(&message, &mut unread);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            // The offset is gone: the sink will say so, and what is missing is missing.
            Some(Err(error)) if offset_is_gone(&error) => {}
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
    Ok(Some(unread))
}

fn offset_is_gone(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset))
}

fn take(message: &impl Message, unread: &mut Unread) {
    let partition = message.partition().unsigned_abs();
    if let Some(at_ms) = message.timestamp().to_millis() {
        let since_ms = unread.since_ms.entry(partition).or_insert(at_ms);
        *since_ms = at_ms.min(*since_ms);
    }
    // What is no row of ours goes to the dead letters and was never in the books.
    let entries = message::entries(message.payload().unwrap_or_default());
    for (row, origin) in entries.filter_map(|(_, entry)| entry.decode(unread.carries)) {
        unread.rows.push(UnreadRow { partition, tenant: row.tenant_id(), origin });
    }
}

//! A member to which the group gives no partition stores nothing. That is as it should be where there are more sinks than
//! partitions, and it is not where the group does not let it in, or where nobody stores what waits. Health says which, as far
//! as the broker tells.
//!
//! Who has a partition and does not store from it cannot be seen from here (and not every broker tells who has which). What
//! can be seen is that records wait while the group's mark does not move.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::sync::watch;

use super::state::Shared;
use crate::{
    broker::{Settings, Severity, topic::Quiet},
    error_chain::chain,
};

/// How often a member without partitions looks whether something waits.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a group may take to give a member its share: longer than it waits for one that has died.
const JOINING: Duration = Duration::from_secs(30);
/// Messages that wait for so long while the mark of their partition stands still are told. A sink that works gathers rows for
/// some time, too: they are told after twice that at the earliest.
const STILL: Duration = Duration::from_secs(20);
/// How long the broker may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// So many partitions are named.
const MOST_NAMED: usize = 8;
/// Under which name health hears of it.
const ABOUT: &str = "assignment";

/// What the group has given to this member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Whether it has given anything, be it nothing.
    pub(super) is_member: bool,
    pub(super) partitions: usize,
}

/// Looks after a member that has no partition.
pub(super) struct Idle {
    shared: Arc<Shared>,
    /// Partitions of the topic; 0 until it is known to exist.
    topic: watch::Receiver<u32>,
    share: watch::Receiver<Share>,
    /// Since when it might be a member and is none.
    outside: Option<Instant>,
    /// For how long a mark may stand still.
    still: Duration,
    marks: Marks,
}

impl Idle {
    pub(super) fn new(shared: Arc<Shared>, topic: watch::Receiver<u32>, share: watch::Receiver<Share>) -> Self {
        let still = STILL.max(shared.limits.age * 2);
        Self { shared, topic, share, outside: None, still, marks: Marks::default() }
    }

    /// Never ends by itself, unless the source has.
    pub(super) async fn watch(mut self) {
        loop {
            let share = *self.share.borrow_and_update();
            let changed = if share.partitions > 0 {
                (self.outside, self.marks) = (None, Marks::default());
                self.shared.status.clear(ABOUT);
                self.share.changed().await
            } else {
                self.look(share).await;
                tokio::time::timeout(LOOK_EVERY, self.share.changed()).await.unwrap_or(Ok(()))
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn look(&mut self, share: Share) {
        let partitions = *self.topic.borrow();
        if partitions == 0 || !self.shared.status.is_connected() {
            // Health tells of that.
            self.outside = None;
            return;
        }
        let settings = &self.shared.settings;
        let (mut severity, mut text) = if share.is_member {
            self.outside = None;
            let Settings { topic, group, .. } = settings;
            let text = format!(
                "this sink stands by: the {partitions} partitions of topic {topic} are with other members of group {group}"
            );
            (Severity::Notice, text)
        } else if self.outside.get_or_insert_with(Instant::now).elapsed() >= JOINING {
            let group = &settings.group;
            let text = format!("group {group} does not let this sink in, which so stores nothing of the topic");
            (Severity::Degraded, text)
        } else {
            return;
        };
        // Said at once; the broker may take its time.
        if self.marks.waiting(self.still).is_none() {
            self.shared.status.set(ABOUT, severity, text.as_str());
        }
        let asked = settings.clone();
        match tokio::task::spawn_blocking(move || behind(&asked)).await.unwrap_or(Err(KafkaError::Canceled)) {
            Ok(behind) => self.marks.see(behind, Instant::now()),
            Err(error) => tracing::debug!(error = chain(&error), "what waits in the topic cannot be asked"),
        }
        if *self.share.borrow() != share {
            return;
        }
        if let Some(waiting) = self.marks.waiting(self.still) {
            severity = Severity::Degraded;
            text.push_str("; ");
            text.push_str(&waiting);
        }
        self.shared.status.set(ABOUT, severity, text);
    }
}

/// How far the group is behind in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    /// What it stores next; none where nothing was committed.
    next: Option<i64>,
    /// How many records wait from there on.
    records: u64,
}

/// What was seen of each partition, and since when it stands still.
#[derive(Debug, Default)]
struct Marks {
    seen: BTreeMap<i32, (Behind, Instant)>,
    now: Option<Instant>,
}

impl Marks {
    fn see(&mut self, behind: BTreeMap<i32, Behind>, now: Instant) {
        let before = std::mem::take(&mut self.seen);
        let since = |partition: &i32, behind: &Behind| match before.get(partition) {
            // What waits there began to wait when it did.
            Some((was, since)) if was.next == behind.next && was.records > 0 => *since,
            _ => now,
        };
        self.seen = behind.into_iter().map(|(id, behind)| (id, (behind, since(&id, &behind)))).collect();
        self.now = Some(now);
    }

    /// What is to be said of records that nobody stores, if there are some.
    fn waiting(&self, still_for: Duration) -> Option<String> {
        let now = self.now?;
        let stands =
            |(behind, since): &(Behind, Instant)| behind.records > 0 && now.duration_since(*since) >= still_for;
        let still: Vec<_> = self.seen.iter().filter(|(_, seen)| stands(seen)).collect();
        if still.is_empty() {
            return None;
        }
        let records: u64 = still.iter().map(|(_, (behind, _))| behind.records).sum();
        let mut named: Vec<String> = still.iter().take(MOST_NAMED).map(|(id, _)| id.to_string()).collect();
        if still.len() > MOST_NAMED {
            named.push(format!("and {} more", still.len() - MOST_NAMED));
        }
        Some(format!(
            "{records} messages wait in partitions {}, of which no sink has stored one for {} s",
            named.join(", "),
            still_for.as_secs()
        ))
    }
}

/// How far the group of `settings` is behind in each partition of its topic. By a client that lives only for that, and is no
/// member. Blocks.
fn behind(settings: &Settings) -> Result<BTreeMap<i32, Behind>, KafkaError> {
    let mut config = settings.client_config();
    config.set("group.id", &settings.group).set("enable.auto.commit", "false").set("allow.auto.create.topics", "false");
    let client: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
    let topic = settings.topic.as_str();
    let metadata = client.fetch_metadata(Some(topic), ANSWER)?;
    let mut asked = TopicPartitionList::new();
    for found in metadata.topics().iter().filter(|found| found.name() == topic) {
        for partition in found.partitions() {
            asked.add_partition(topic, partition.id());
        }
    }
    let committed = client.committed_offsets(asked, ANSWER)?;
    let mut all = BTreeMap::new();
    for element in committed.elements_for_topic(topic) {
        let next = match element.offset() {
            Offset::Offset(next) => Some(next),
            _ => None,
        };
        let (low, high) = client.fetch_watermarks(topic, element.partition(), ANSWER)?;
        let records = u64::try_from(high - next.unwrap_or(low).max(low)).unwrap_or(0);
        all.insert(element.partition(), Behind { next, records });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn seen(partitions: &[(i32, Option<i64>, u64)]) -> BTreeMap<i32, Behind> {
        partitions.iter().map(|(id, next, records)| (*id, Behind { next: *next, records: *records })).collect()
    }

    #[test]
    fn only_what_waits_behind_a_mark_that_stands_still_is_told() {
        let began = Instant::now();
        let later = |seconds| began + Duration::from_secs(seconds);
        let mut marks = Marks::default();
        assert_eq!(marks.waiting(STILL), None);
        marks.see(seen(&[(0, Some(5), 3), (1, None, 2), (2, Some(7), 0), (3, Some(1), 9)]), began);
        assert_eq!(marks.waiting(STILL), None, "it has just been seen");
        // One goes on, one is empty until now.
        marks.see(seen(&[(0, Some(5), 4), (1, None, 2), (2, Some(7), 1), (3, Some(2), 9)]), later(15));
        marks.see(seen(&[(0, Some(5), 4), (1, None, 2), (2, Some(7), 1), (3, Some(3), 9)]), later(20));
        let told = marks.waiting(STILL).unwrap();
        assert!(told.contains("6 messages wait in partitions 0, 1, of which"), "{told}");
        marks.see(seen(&[(0, Some(9), 0), (1, Some(2), 0), (2, Some(8), 0), (3, Some(4), 9)]), later(40));
        assert_eq!(marks.waiting(STILL), None);
    }

    #[test]
    fn not_every_one_of_many_partitions_is_named() {
        let began = Instant::now();
        let many: Vec<_> = (0..20).map(|id| (id, None, 1)).collect();
        let mut marks = Marks::default();
        marks.see(seen(&many), began);
        marks.see(seen(&many), began + STILL);
        assert!(
            marks
                .waiting(STILL)
                .unwrap()
                .contains("20 messages wait in partitions 0, 1, 2, 3, 4, 5, 6, 7, and 12 more")
        );
    }
}

//! Which records are on their way, and which are wholly acknowledged. Shared by the relay, which adds, and by librdkafka's
//! delivery reports, which take away.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ids::WalSeq;

/// A message as it comes back with its delivery report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// The first record of those that were sent together.
    pub(super) together: WalSeq,
    /// The record of its first row.
    pub(super) first: WalSeq,
    pub(super) first_ordinal: u32,
    /// The record of its last row.
    pub(super) last: WalSeq,
    pub(super) rows: u32,
    pub(super) bytes: usize,
}

/// Why a producer cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// The message that the broker found too large, if that is why.
    pub(super) too_large: Option<Sent>,
}

/// Records one after the other: sent together, or wholly acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: WalSeq,
    pub(super) last: WalSeq,
    /// Events of the log up to and with the last record.
    pub(super) cumulative: u64,
    pub(super) records: u64,
}

#[derive(Debug)]
struct Entry {
    together: Run,
    /// Messages without an acknowledgement.
    outstanding: usize,
}

#[derive(Debug)]
struct Inner {
    sent: VecDeque<Entry>,
    bytes: usize,
    messages: usize,
    failure: Option<Failure>,
    last_news: Instant,
    acknowledged: bool,
}

/// Records on their way under one producer.
#[derive(Debug)]
pub(super) struct Window {
    inner: Mutex<Inner>,
    changed: Notify,
}

impl Window {
    pub(super) fn new() -> Self {
        let inner = Inner {
            sent: VecDeque::new(),
            bytes: 0,
            messages: 0,
            failure: None,
            last_news: Instant::now(),
            acknowledged: false,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// These records will be sent together, as so many messages. They come in the order of the log.
    pub(super) fn begin(&self, together: Run, messages: usize) {
        let mut inner = self.inner.lock();
        if inner.messages == 0 {
            // Nothing was due before now.
            inner.last_news = Instant::now();
        }
        inner.sent.push_back(Entry { together, outstanding: messages });
    }

    /// A message was handed to librdkafka.
    pub(super) fn sent(&self, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.bytes += bytes;
        inner.messages += 1;
    }

    /// It was not: librdkafka refused it.
    pub(super) fn unsent(&self, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.bytes = inner.bytes.saturating_sub(bytes);
        inner.messages = inner.messages.saturating_sub(1);
    }

    /// The broker has `sent`. True the first time.
    pub(super) fn acknowledged(&self, sent: &Sent) -> bool {
        let mut inner = self.inner.lock();
        inner.bytes = inner.bytes.saturating_sub(sent.bytes);
        inner.messages = inner.messages.saturating_sub(1);
        inner.last_news = Instant::now();
        let first = !std::mem::replace(&mut inner.acknowledged, true);
        if let Ok(index) = inner.sent.binary_search_by_key(&sent.together, |entry| entry.together.first)
            && let Some(entry) = inner.sent.get_mut(index)
        {
            entry.outstanding = entry.outstanding.saturating_sub(1);
        }
        drop(inner);
        self.changed.notify_one();
        first
    }

    /// The producer failed. The first reason counts; what follows is its consequence, but may name the message.
    pub(super) fn fail(&self, failure: Failure) {
        let mut inner = self.inner.lock();
        let too_large = failure.too_large;
        let first = inner.failure.get_or_insert(failure);
        first.too_large = first.too_large.or(too_large);
        drop(inner);
        self.changed.notify_one();
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.inner.lock().failure.clone()
    }

    /// Takes the longest run of wholly acknowledged records off the front.
    pub(super) fn take_acknowledged(&self) -> Option<Run> {
        let mut inner = self.inner.lock();
        let mut taken: Option<Run> = None;
        while let Some(Entry { together, .. }) = inner.sent.pop_front_if(|entry| entry.outstanding == 0) {
            let before = taken.unwrap_or(Run { records: 0, ..together });
            taken = Some(Run { first: before.first, records: before.records + together.records, ..together });
        }
        taken
    }

    /// The lowest record from which on not everything is acknowledged.
    pub(super) fn lowest(&self) -> Option<WalSeq> {
        self.inner.lock().sent.front().map(|entry| entry.together.first)
    }

    /// `bytes` more fit below `limit`. One message always fits, so that none is too large to be ever sent.
    pub(super) fn has_room(&self, bytes: usize, limit: usize) -> bool {
        let inner = self.inner.lock();
        inner.messages == 0 || inner.bytes + bytes <= limit
    }

    /// Nothing is on its way any more.
    pub(super) fn is_settled(&self) -> bool {
        self.inner.lock().messages == 0
    }

    /// The broker took at least one message of this producer.
    pub(super) fn was_acknowledged(&self) -> bool {
        self.inner.lock().acknowledged
    }

    /// For how long messages have been waiting without any news: how many, and how long.
    pub(super) fn silence(&self) -> (usize, Duration) {
        let inner = self.inner.lock();
        (inner.messages, if inner.messages == 0 { Duration::ZERO } else { inner.last_news.elapsed() })
    }

    /// Waits for the next acknowledgement or failure. One that came since the last wait counts.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(seq: u64) -> Sent {
        Sent { together: WalSeq(seq), first: WalSeq(seq), first_ordinal: 0, last: WalSeq(seq), rows: 1, bytes: 10 }
    }

    /// Records `first..=last`, ten events each.
    fn run(first: u64, last: u64) -> Run {
        Run { first: WalSeq(first), last: WalSeq(last), cumulative: last * 10, records: last - first + 1 }
    }

    #[test]
    fn only_the_longest_acknowledged_run_is_taken() {
        let window = Window::new();
        for (first, last, messages) in [(3, 3, 2), (4, 6, 1), (7, 7, 1), (8, 9, 0)] {
            window.begin(run(first, last), messages);
            for _ in 0..messages {
                window.sent(10);
            }
        }
        assert!(window.acknowledged(&sent(4)));
        assert!(!window.acknowledged(&sent(3)));
        assert_eq!(window.take_acknowledged(), None, "3 has another message");
        assert_eq!(window.lowest(), Some(WalSeq(3)));
        window.acknowledged(&sent(3));
        assert_eq!(window.take_acknowledged(), Some(run(3, 6)));
        assert_eq!(window.lowest(), Some(WalSeq(7)));
        window.acknowledged(&sent(7));
        assert_eq!(window.take_acknowledged(), Some(run(7, 9)), "records without messages are done");
        assert!(window.is_settled());
        assert_eq!(window.take_acknowledged(), None);
    }

    #[test]
    fn room_is_by_bytes_and_one_message_always_fits() {
        let window = Window::new();
        assert!(window.has_room(1000, 100));
        window.begin(run(1, 1), 1);
        window.sent(90);
        assert!(window.has_room(10, 100));
        assert!(!window.has_room(11, 100));
        window.acknowledged(&Sent { bytes: 90, ..sent(1) });
        assert!(window.has_room(1000, 100));
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let window = Window::new();
        let failure = |reason: &str| Failure { reason: reason.into(), too_large: None };
        window.fail(failure("fatal"));
        window.fail(Failure { too_large: Some(sent(7)), ..failure("purged") });
        assert_eq!(window.failure(), Some(Failure { too_large: Some(sent(7)), ..failure("fatal") }));
    }
}

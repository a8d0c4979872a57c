//! By how many partitions a record is cut. A record that may have been sent in part keeps the number under which it was
//! first sent: cut anew it would put rows into other partitions, where their first copies are not known. The numbers are kept
//! beside the log, so that this holds for a relay that was ended in between too.

use std::collections::VecDeque;

use crate::ids::WalSeq;

/// The numbers of partitions that are in use, by the first record of each.
#[derive(Debug, Default)]
pub(super) struct Counts {
    since: VecDeque<(WalSeq, u32)>,
    /// The highest record that was ever handed to a producer.
    highest: Option<WalSeq>,
}

impl Counts {
    /// The numbers as they were kept, by [`Counts::encode`]. Any record up to `last`, the last one of the log, may have been
    /// sent under them.
    pub(super) fn restore(kept: &[u8], last: WalSeq) -> Option<Self> {
        let since: VecDeque<(u64, u32)> = serde_json::from_slice(kept).ok()?;
        let since = since.into_iter().map(|(seq, count)| (WalSeq(seq), count)).collect::<VecDeque<_>>();
        let highest = (!since.is_empty()).then_some(last);
        Some(Self { since, highest })
    }

    /// The numbers, to be kept.
    pub(super) fn encode(&self) -> Vec<u8> {
        let since: Vec<String> = self.since.iter().map(|(WalSeq(seq), count)| format!("[{seq},{count}]")).collect();
        format!("[{}]", since.join(",")).into_bytes()
    }

    /// The number for the record `seq`, when the topic has `present` partitions. True when it is used for the first time.
    pub(super) fn for_record(&mut self, seq: WalSeq, present: u32) -> (u32, bool) {
        let most = self.since.iter().map(|(_, count)| *count).max().unwrap_or(0);
        if present < most {
            // The topic was made anew, smaller: the old number has no partitions to write to.
            self.since.clear();
            self.since.push_back((seq, present));
            return (present, true);
        }
        if self.highest.is_some_and(|highest| seq <= highest) {
            let count = self.since.iter().rev().find(|(since, _)| *since <= seq).map_or(present, |(_, count)| *count);
            return (count, false);
        }
        self.highest = Some(seq);
        let last = self.since.back().map(|(_, count)| *count);
        if last == Some(present) {
            return (present, false);
        }
        self.since.push_back((seq, present));
        (present, true)
    }

    /// The number that is in use.
    pub(super) fn present(&self) -> Option<u32> {
        self.since.back().map(|(_, count)| *count)
    }

    /// Records up to `seq` are gone: forgets what only they needed.
    pub(super) fn forget(&mut self, seq: WalSeq) {
        while self.since.get(1).is_some_and(|(since, _)| since.0 <= seq.0.saturating_add(1)) {
            self.since.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_record_sent_before_keeps_its_number() {
        let mut counts = Counts::default();
        assert_eq!(counts.for_record(WalSeq(1), 12), (12, true));
        assert_eq!(counts.for_record(WalSeq(2), 12), (12, false));
        assert_eq!(counts.for_record(WalSeq(3), 24), (24, true));
        assert_eq!(counts.for_record(WalSeq(1), 24), (12, false), "sent again");
        assert_eq!(counts.for_record(WalSeq(2), 24), (12, false), "sent again");
        assert_eq!(counts.for_record(WalSeq(3), 24), (24, false), "sent again");
        assert_eq!(counts.for_record(WalSeq(4), 24), (24, false));
        counts.forget(WalSeq(1));
        assert_eq!(counts.since.len(), 2);
        counts.forget(WalSeq(2));
        assert_eq!(counts.since, [(WalSeq(3), 24)]);
    }

    #[test]
    fn a_relay_that_was_ended_goes_on_with_the_numbers_that_it_had() {
        let mut counts = Counts::default();
        counts.for_record(WalSeq(1), 12);
        counts.for_record(WalSeq(3), 24);
        let mut again = Counts::restore(&counts.encode(), WalSeq(5)).unwrap();
        assert_eq!(again.for_record(WalSeq(2), 48), (12, false));
        assert_eq!(again.for_record(WalSeq(3), 48), (24, false));
        assert_eq!(again.for_record(WalSeq(5), 48), (24, false), "it may have been sent");
        assert_eq!(again.for_record(WalSeq(6), 48), (48, true));
        assert_eq!(Counts::restore(b"[]", WalSeq(5)).unwrap().for_record(WalSeq(1), 48), (48, true));
        assert!(Counts::restore(b"not this", WalSeq(5)).is_none());
    }

    #[test]
    fn a_topic_made_anew_with_fewer_partitions_takes_everything() {
        let mut counts = Counts::default();
        assert_eq!(counts.for_record(WalSeq(1), 12), (12, true));
        assert_eq!(counts.for_record(WalSeq(2), 12), (12, false));
        assert_eq!(counts.for_record(WalSeq(1), 4), (4, true));
        assert_eq!(counts.for_record(WalSeq(2), 4), (4, false));
        assert_eq!(counts.for_record(WalSeq(3), 4), (4, false));
    }
}

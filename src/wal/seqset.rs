//! A set of sequences, as ranges: a log has few gaps, so a million records take a few entries.

use std::collections::BTreeMap;

/// Inclusive ranges that neither touch nor overlap, start to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SeqSet(BTreeMap<u64, u64>);

impl SeqSet {
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, &end)| end >= seq)
    }

    pub(super) fn insert(&mut self, seq: u64) {
        if self.contains(seq) {
            return;
        }
        let (mut start, mut end) = (seq, seq);
        if let Some((&before, &until)) = self.0.range(..seq).next_back()
            && until.checked_add(1) == Some(seq)
        {
            start = before;
        }
        if let Some(until) = seq.checked_add(1).and_then(|next| self.0.remove(&next)) {
            end = until;
        }
        self.0.insert(start, end);
    }

    /// Adds all of `from..=to`, which must lie behind everything in the set.
    pub(super) fn append_range(&mut self, from: u64, to: u64) {
        if from <= to {
            self.0.insert(from, to);
        }
    }

    /// How many of `from..=to` are in the set.
    pub(super) fn count(&self, from: u64, to: u64) -> u64 {
        let missing: u64 = self.missing(from, to).iter().map(|(first, last)| last - first + 1).sum();
        (to + 1).saturating_sub(from).saturating_sub(missing)
    }

    /// The ranges, in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(&first, &last)| (first, last))
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.0.values().next_back().copied()
    }

    /// The last one before `seq`.
    pub(super) fn before(&self, seq: u64) -> Option<u64> {
        self.0.range(..seq).next_back().map(|(_, &end)| end.min(seq - 1))
    }

    /// The ranges of `from..=to` that are not in the set, in order.
    pub(super) fn missing(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut next = from;
        // The range that begins before `from` may reach into it.
        let before = self.0.range(..=from).next_back();
        for (&start, &end) in before.into_iter().chain(self.0.range(from.saturating_add(1)..)) {
            if start > to || next > to {
                break;
            }
            if start > next {
                gaps.push((next, start - 1));
            }
            next = next.max(end.saturating_add(1));
        }
        if next <= to {
            gaps.push((next, to));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(seqs in prop::collection::vec(0_u64..60, 0..60), from in 0_u64..60, len in 0_u64..30) {
            let mut set = SeqSet::default();
            let mut model = BTreeSet::new();
            for seq in seqs {
                set.insert(seq);
                model.insert(seq);
            }
            for seq in 0..60 {
                prop_assert_eq!(set.contains(seq), model.contains(&seq));
            }
            prop_assert_eq!((set.first(), set.last()), (model.first().copied(), model.last().copied()));
            prop_assert_eq!(set.before(from), model.range(..from).next_back().copied());
            let missing: Vec<u64> = set.missing(from, from + len).into_iter().flat_map(|(a, b)| a..=b).collect();
            let expected: Vec<u64> = (from..=from + len).filter(|seq| !model.contains(seq)).collect();
            prop_assert_eq!(missing.len() as u64 + set.count(from, from + len), len + 1);
            prop_assert_eq!(missing, expected);
            let mut copy = SeqSet::default();
            for (first, last) in set.ranges() {
                copy.append_range(first, last);
            }
            prop_assert_eq!(copy, set);
        }
    }
}

//! What of a partition was read before: a relay that sends again is told by the log and the record of its rows.
//!
//! A relay that was ended, or whose broker did not answer, sends every record again that it has no acknowledgement for. It
//! never sends a record before an earlier one, and the rows of one record in order. So of each log one mark is enough: what
//! is at or below it was read from this partition before.

use std::collections::HashMap;

use crate::{ids::WalId, row::Origin};

/// A row's place in its log: record, and row of the record.
pub(super) type Place = (u64, u32);

/// The highest places that were read, by log.
#[derive(Debug, Default)]
pub(super) struct Marks(HashMap<WalId, Option<Place>>);

impl Marks {
    /// Whether it is known what was read of the log before this assignment.
    pub(super) fn knows(&self, wal_id: WalId) -> bool {
        self.0.contains_key(&wal_id)
    }

    /// Says what was read of a log before this assignment.
    pub(super) fn learn(&mut self, wal_id: WalId, mark: Option<Place>) {
        self.0.entry(wal_id).or_insert(mark);
    }

    /// Takes the next row of the partition; false for one that was read before.
    pub(super) fn is_new(&mut self, origin: &Origin) -> bool {
        let place = (origin.wal_seq, origin.wal_ordinal);
        let mark = self.0.entry(origin.wal_id).or_default();
        if mark.is_some_and(|mark| place <= mark) {
            return false;
        }
        *mark = Some(place);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn origin(wal_seq: u64, wal_ordinal: u32) -> Origin {
        Origin { wal_id: WalId(Uuid::from_u128(1)), wal_seq, wal_ordinal, relayed_at_ms: 0 }
    }

    #[test]
    fn logs_have_marks_of_their_own_and_what_is_learnt_first_stays() {
        let mut marks = Marks::default();
        marks.learn(WalId(Uuid::from_u128(1)), Some((5, 1)));
        marks.learn(WalId(Uuid::from_u128(1)), None);
        assert!(!marks.is_new(&origin(5, 1)) && marks.is_new(&origin(5, 2)) && marks.is_new(&origin(6, 0)));
        let other = Origin { wal_id: WalId(Uuid::from_u128(2)), ..origin(1, 0) };
        assert!(!marks.knows(other.wal_id) && marks.is_new(&other) && !marks.is_new(&other));
    }

    proptest! {
        /// A relay sends records in order and, at any moment, goes back to any earlier one; a sink is ended at any moment and
        /// goes on from its last commit with the marks of what it has stored. Each row is stored once.
        #[test]
        fn whatever_is_sent_again_is_stored_once(
            rows in 1_u64..40,
            steps in prop::collection::vec((0_u64..12, 0_u64..12, any::<bool>()), 1..30),
        ) {
            let mut topic: Vec<u64> = Vec::new();
            let mut acknowledged = 0;
            for (ahead, back, _) in &steps {
                topic.extend(acknowledged..rows.min(acknowledged + ahead));
                // Any part of what was sent may have been acknowledged.
                acknowledged = rows.min(acknowledged + ahead.saturating_sub(*back));
            }
            topic.extend(acknowledged..rows);

            let mut stored: Vec<u64> = Vec::new();
            let (mut committed, mut crashes) = (0, steps.iter().map(|(_, _, crash)| *crash).cycle());
            while committed < topic.len() {
                let mut marks = Marks::default();
                // As it is asked for: what is stored of offsets before the commit.
                marks.learn(WalId(Uuid::from_u128(1)), stored.iter().max().map(|seq| (*seq, 0)));
                for (offset, seq) in topic.iter().enumerate().skip(committed) {
                    if marks.is_new(&origin(*seq, 0)) {
                        stored.push(*seq);
                    }
                    committed = offset + 1;
                    if crashes.next() == Some(true) {
                        break;
                    }
                }
            }
            prop_assert_eq!(stored, (0..rows).collect::<Vec<_>>());
        }
    }
}

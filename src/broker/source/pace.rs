//! How long the rows of a partition gather before their range is closed.
//!
//! Whatever its rows, an insert costs ClickHouse a part with its files and fsyncs in the table and in the target of each
//! view, and later their merges. So ranges that come quicker than they can be stored get larger instead of more: each
//! waits for as long as it takes to insert one of every partition, one after the other. While ClickHouse is quick that is
//! less than the configured age, and the rows are seen after that age.

use std::time::Duration;

/// A range waits at most so many times as long as the configured age.
const LONGEST: u32 = 4;
/// Each insert counts for one part in so many of the average.
const WEIGHT: u32 = 8;

/// The average time that an insert takes, which follows the latest ones.
#[derive(Debug, Default)]
pub(super) struct Pace {
    insert: Option<Duration>,
}

impl Pace {
    /// An insert took so long, from when the sink took its range until it was stored.
    pub(super) fn stored(&mut self, took: Duration) {
        let average = self.insert.map_or(took, |average| (average * (WEIGHT - 1)).saturating_add(took) / WEIGHT);
        self.insert = Some(average);
    }

    /// The age at which a range closes while `partitions` have rows, where `configured` is the shortest.
    pub(super) fn age(&self, partitions: usize, configured: Duration) -> Duration {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX);
        let round = self.insert.unwrap_or_default().saturating_mul(partitions);
        round.clamp(configured, configured.saturating_mul(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn ranges_wait_for_a_round_of_inserts_and_within_bounds() {
        let mut pace = Pace::default();
        assert_eq!(pace.age(12, MS(500)), MS(500), "nothing is known yet");
        pace.stored(MS(20));
        assert_eq!(pace.age(12, MS(500)), MS(500), "ClickHouse is quick");
        assert_eq!(pace.age(50, MS(500)), MS(1000));
        for _ in 0..100 {
            pace.stored(MS(200));
        }
        assert!((MS(980)..=MS(1000)).contains(&pace.age(5, MS(500))), "{:?}", pace.age(5, MS(500)));
        assert_eq!(pace.age(1, MS(500)), MS(500), "one partition does not wait for others");
        pace.stored(Duration::from_hours(24));
        assert_eq!(pace.age(12, MS(500)), MS(2000), "an outage is not waited out twice");
    }
}

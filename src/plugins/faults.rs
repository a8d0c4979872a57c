//! When a plugin has done enough wrong. Decisions only: time and history come in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::slots::Crash;

/// Marked crashes of one file within [`CRASH_WINDOW`] after which it is quarantined at the start: the first may be bad luck,
/// the second a repeat of the same event, the third makes a crash loop.
pub const CRASH_LIMIT: usize = 3;

/// How far apart crashes may be to count together.
pub const CRASH_WINDOW: Duration = Duration::from_secs(3600);

/// Faults of one plugin within a window of time.
#[derive(Clone, Debug)]
pub struct FaultWindow {
    limit: usize,
    window: Duration,
    /// The latest ones, fewer than `limit`.
    faults: VecDeque<Instant>,
}

impl FaultWindow {
    /// Of `limit` faults (at least 1) within `window`.
    pub fn new(limit: usize, window: Duration) -> Self {
        Self { limit: limit.max(1), window, faults: VecDeque::new() }
    }

    /// Counts a fault at `now`. Returns whether the limit is reached with it; counting begins anew then.
    pub fn record(&mut self, now: Instant) -> bool {
        let window = self.window;
        self.faults.retain(|fault| now.saturating_duration_since(*fault) < window);
        if self.faults.len() + 1 >= self.limit {
            self.faults.clear();
            return true;
        }
        self.faults.push_back(now);
        false
    }

    /// Faults that count at `now`.
    pub fn count(&self, now: Instant) -> usize {
        self.faults.iter().filter(|fault| now.saturating_duration_since(**fault) < self.window).count()
    }

    /// Forgets all of them: somebody has mended it.
    pub fn clear(&mut self) {
        self.faults.clear();
    }
}

/// The crashes that count at `now`: those of the last hour, and those that a clock that was set back puts into the future
/// by no more than that.
pub fn recent_crashes(crashes: &[Crash], now: Timestamp) -> impl Iterator<Item = &Crash> {
    let window = SignedDuration::try_from(CRASH_WINDOW).unwrap_or(SignedDuration::MAX);
    crashes.iter().filter(move |crash| now.duration_since(crash.at).abs() < window)
}

/// Whether the file `sha256` has crashed the process too often, at `now`.
pub fn crashed_too_often(crashes: &[Crash], sha256: &str, now: Timestamp) -> bool {
    recent_crashes(crashes, now).filter(|crash| crash.sha256 == sha256).count() >= CRASH_LIMIT
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn the_limit_within_the_window() {
        let start = Instant::now();
        // (limit, window in s, faults at s, which of them reaches the limit)
        let table: [(usize, u64, &[u64], &[bool]); 7] = [
            (1, 60, &[0, 0, 5], &[true, true, true]),
            (0, 60, &[0], &[true]),
            (3, 60, &[0, 1, 2], &[false, false, true]),
            (3, 60, &[0, 30, 59], &[false, false, true]),
            (3, 60, &[0, 30, 60], &[false, false, false]),
            (3, 60, &[0, 30, 60, 61], &[false, false, false, true]),
            // After the limit it takes as many again.
            (2, 60, &[0, 1, 2, 3], &[false, true, false, true]),
        ];
        for (limit, window, at, expected) in table {
            let mut faults = FaultWindow::new(limit, Duration::from_secs(window));
            let reached: Vec<bool> = at.iter().map(|at| faults.record(start + Duration::from_secs(*at))).collect();
            assert_eq!(reached, expected, "{limit} in {window} s, at {at:?}");
        }
    }

    #[test]
    fn what_counts_can_be_seen_and_forgotten() {
        let start = Instant::now();
        let mut faults = FaultWindow::new(5, Duration::from_secs(60));
        for _ in 0..3 {
            faults.record(start);
        }
        assert_eq!(faults.count(start + Duration::from_secs(59)), 3);
        assert_eq!(faults.count(start + Duration::from_secs(60)), 0);
        faults.clear();
        assert_eq!(faults.count(start), 0);
    }

    #[test]
    fn the_third_crash_of_a_file_within_an_hour() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let crash = |sha256: &str, minutes_ago: i64| Crash {
            plugin: "purchase".to_owned(),
            sha256: sha256.to_owned(),
            signal: 11,
            at: now - SignedDuration::from_mins(minutes_ago),
        };
        for (crashes, expected) in [
            (vec![], false),
            (vec![crash("a", 1), crash("a", 2)], false),
            (vec![crash("a", 1), crash("a", 2), crash("a", 3)], true),
            (vec![crash("a", 0), crash("a", 0), crash("a", 0), crash("a", 0)], true),
            // Another file, of the same name or not.
            (vec![crash("a", 1), crash("b", 2), crash("a", 3)], false),
            (vec![crash("b", 1), crash("b", 2), crash("b", 3)], false),
            // Too long ago, and a clock that was set back.
            (vec![crash("a", 1), crash("a", 2), crash("a", 60)], false),
            (vec![crash("a", 1), crash("a", 2), crash("a", 59)], true),
            (vec![crash("a", -5), crash("a", -6), crash("a", 1)], true),
            (vec![crash("a", -90), crash("a", -91), crash("a", 1)], false),
        ] {
            assert_eq!(crashed_too_often(&crashes, "a", now), expected, "{crashes:?}");
        }
    }
}

//! What a tenant may send in a calendar month (UTC).
//!
//! The count that lasts is the log's: it counts what it commits ([`crate::wal`], `tally`). Here it is kept in one atomic
//! number, together with what is on its way into the log, so that requests that come at once cannot share the last of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::month::Month;

/// How much in a month, and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllowanceSettings {
    /// Events in a month.
    pub events: u64,
    /// Whether more than that is refused.
    pub hard_stop: bool,
    /// The share of `events` from which answers warn, above 0 and up to 1.
    pub warn_ratio: f64,
}

/// No such request fits into the rest of the month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthIsOver;

/// Bits of the count; the month is above them.
const COUNT_BITS: u32 = 44;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// One tenant's month.
#[derive(Debug)]
pub struct Allowance {
    settings: AllowanceSettings,
    /// The month's number and the events of it, acknowledged and on their way; 0 before the first look.
    used: Arc<AtomicU64>,
}

fn pack(month: Month, count: u64) -> u64 {
    u64::from(month.number()) << COUNT_BITS | count.min(COUNT)
}

impl Allowance {
    /// An allowance of which nothing is known to be used: the first look asks the log.
    pub fn new(settings: AllowanceSettings) -> Self {
        Self { settings, used: Arc::default() }
    }

    /// The same tenant's under other settings; what is on its way counts in both.
    #[must_use]
    pub fn with(&self, settings: AllowanceSettings) -> Self {
        Self { settings, used: Arc::clone(&self.used) }
    }

    /// Its settings.
    pub fn settings(&self) -> AllowanceSettings {
        self.settings
    }

    /// Events of `month` so far. `counted` is asked, for the log's count of that month, when another month was looked at
    /// last: at the first look, at the turn of the month, and when the clock was set back.
    pub fn used(&self, month: Month, counted: impl Fn() -> u64) -> u64 {
        loop {
            let seen = self.used.load(Ordering::Acquire);
            if seen >> COUNT_BITS == u64::from(month.number()) {
                return seen & COUNT;
            }
            // Another thread that does the same comes to the same; whoever is late looks again.
            let known = pack(month, counted());
            self.used.compare_exchange(seen, known, Ordering::AcqRel, Ordering::Acquire).ok();
        }
    }

    /// Takes `events` out of what `month` has left.
    ///
    /// # Errors
    /// With a hard stop, when they do not fit.
    pub fn reserve(&self, month: Month, events: u64, counted: impl Fn() -> u64) -> Result<(), MonthIsOver> {
        loop {
            let used = self.used(month, &counted);
            let after = used.saturating_add(events);
            if self.settings.hard_stop && after > self.settings.events {
                return Err(MonthIsOver);
            }
            let exchanged =
                self.used.compare_exchange(pack(month, used), pack(month, after), Ordering::AcqRel, Ordering::Acquire);
            if exchanged.is_ok() {
                return Ok(());
            }
        }
    }

    /// Gives back `events` of `month` that the log did not take.
    pub fn release(&self, month: Month, events: u64) {
        let less = |seen: u64| {
            (seen >> COUNT_BITS == u64::from(month.number()))
                .then(|| pack(month, (seen & COUNT).saturating_sub(events)))
        };
        // In another month by now there is nothing to give back.
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok();
    }

    /// Whether nothing more is taken in `month`.
    pub fn is_over(&self, month: Month, counted: impl Fn() -> u64) -> bool {
        self.settings.hard_stop && self.used(month, counted) >= self.settings.events
    }

    /// Whether `used` is enough to warn.
    pub fn warns_at(&self, used: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a threshold for a warning")]
        let (used, least) = (used as f64, self.settings.events as f64 * self.settings.warn_ratio);
        used >= least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAY: Month = Month::from_number(676);
    const JUNE: Month = Month::from_number(677);

    fn allowance(hard_stop: bool) -> Allowance {
        Allowance::new(AllowanceSettings { events: 100, hard_stop, warn_ratio: 0.8 })
    }

    #[test]
    fn a_hard_stop_takes_what_fits_and_no_more() {
        let hard = allowance(true);
        assert_eq!(hard.used(MAY, || 40), 40, "the log's count comes first");
        assert_eq!(hard.reserve(MAY, 50, || unreachable!()), Ok(()));
        assert_eq!(hard.reserve(MAY, 11, || unreachable!()), Err(MonthIsOver));
        assert_eq!((hard.reserve(MAY, 10, || 0), hard.is_over(MAY, || 0)), (Ok(()), true));
        hard.release(MAY, 10);
        assert_eq!((hard.used(MAY, || 0), hard.is_over(MAY, || 0)), (90, false));
        assert_eq!((hard.warns_at(79), hard.warns_at(80)), (false, true));
    }

    #[test]
    fn a_soft_one_goes_on() {
        let soft = allowance(false);
        assert_eq!((soft.reserve(MAY, 1000, || 0), soft.used(MAY, || 0)), (Ok(()), 1000));
        assert!(!soft.is_over(MAY, || 0));
    }

    #[test]
    fn every_month_begins_with_the_count_of_the_log() {
        let hard = allowance(true);
        assert_eq!(hard.reserve(MAY, 100, || 0), Ok(()));
        assert_eq!(hard.reserve(JUNE, 100, || 0), Ok(()));
        hard.release(MAY, 100);
        assert_eq!(hard.used(JUNE, || 0), 100, "nothing of another month is given back");
        assert_eq!(hard.used(MAY, || 100), 100, "a clock that is set back");
        assert_eq!(hard.used(JUNE, || 100), 100);
    }

    #[test]
    fn new_settings_keep_what_is_used() {
        let before = allowance(true);
        assert_eq!(before.reserve(MAY, 60, || 0), Ok(()));
        let after = before.with(AllowanceSettings { events: 50, ..before.settings() });
        assert_eq!(after.reserve(MAY, 1, || 0), Err(MonthIsOver));
        before.release(MAY, 20);
        assert_eq!(after.reserve(MAY, 1, || 0), Ok(()));
    }

    #[test]
    fn requests_at_once_never_share_the_last_of_it() {
        let hard = Allowance::new(AllowanceSettings { events: 10_007, hard_stop: true, warn_ratio: 1.0 });
        let taken: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..10_000).filter(|_| hard.reserve(MAY, 3, || 7).is_ok()).count() as u64))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        assert_eq!(7 + 3 * taken, 10_006, "7 from the log, and as many threes as fit");
    }
}

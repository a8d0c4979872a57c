//! A rate with a burst: the generic cell rate algorithm of the `governor` crate.
//!
//! governor counts time in whole nanoseconds a cell, which is exact for few rates: at 3 million cells a second a cell
//! takes 333 ns, and the rate is off by 0.1 %; a byte of 1 GB/s would take one nanosecond, and 1.5 GB/s could not be
//! told from it. So a bucket's clock does not show nanoseconds: it shows how many cells have come in since the bucket was
//! made, and a cell takes one tick of it. A cell is one event or one byte, the rate is exact, and from its making on a
//! bucket never gives more than its burst and what has come in (counted from a later moment: one cell more, as a cell may
//! be about to come in then).
//!
//! A bucket is an atomic number: no lock, no task, no timer. One that nobody uses costs its bytes and nothing else.

use std::{
    num::{NonZeroU32, TryFromIntError},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};
use thiserror::Error;

/// So many cells a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: NonZeroU32,
}

/// A rate that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RateError {
    /// A burst of none, or of more than 32 bits.
    #[error("a burst must be from 1 to 4294967295")]
    Burst(#[from] TryFromIntError),
    /// No rate, or one whose product with a second's nanoseconds does not fit 64 bits.
    #[error("a rate must be from 1 to {}", Rate::MAX_PER_SECOND)]
    PerSecond,
}

impl Rate {
    /// The highest rate: 16 GiB/s.
    pub const MAX_PER_SECOND: u64 = 16 << 30;

    /// A rate of `per_second` cells with room for `burst` at once.
    ///
    /// # Errors
    /// [`RateError`] when one of them is zero or too large.
    pub fn new(per_second: u64, burst: u64) -> Result<Self, RateError> {
        let burst = NonZeroU32::try_from(u32::try_from(burst)?)?;
        if !(1..=Self::MAX_PER_SECOND).contains(&per_second) {
            return Err(RateError::PerSecond);
        }
        Ok(Self { per_second, burst })
    }

    /// Cells a second.
    pub fn per_second(self) -> u64 {
        self.per_second
    }

    /// Cells at once.
    pub fn burst(self) -> u64 {
        u64::from(self.burst.get())
    }

    /// Seconds in which an empty bucket becomes full, rounded up.
    pub fn window(self) -> u64 {
        self.burst().div_ceil(self.per_second)
    }

    /// Cells that have come in after `elapsed`.
    fn cells(self, elapsed: Duration) -> u64 {
        // Below 2^64 for centuries: a rate has at most 34 bits, a second of nanoseconds 30.
        elapsed.as_secs().saturating_mul(self.per_second)
            + u64::from(elapsed.subsec_nanos()) * self.per_second / 1_000_000_000
    }

    /// The time in which `cells` come in, rounded up to a nanosecond.
    fn time(self, cells: u64) -> Duration {
        let nanoseconds = (u128::from(cells) * 1_000_000_000).div_ceil(u128::from(self.per_second));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// Where time comes from: what has passed since a bucket was made.
pub trait Elapsed {
    /// Since the bucket was made.
    fn elapsed(&self) -> Duration;
}

impl Elapsed for Instant {
    fn elapsed(&self) -> Duration {
        Self::elapsed(self)
    }
}

/// A clock whose unit is a cell.
struct Cells<T> {
    rate: Rate,
    since: T,
}

impl<T: Elapsed> Clock for Cells<T> {
    /// A count of cells, not of nanoseconds: governor's name of the type is that of its usual unit.
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.rate.cells(self.since.elapsed()))
    }
}

/// The bucket's number: when, in cells, it is full again (0: it was never used). Shared with the limiter, which shows its
/// own only when it is asked for cells.
struct FullAt(Arc<AtomicU64>);

impl StateStore for FullAt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut before = self.0.load(Ordering::Acquire);
        loop {
            let (outcome, after) = decide((before != 0).then(|| Nanos::new(before)))?;
            match self.0.compare_exchange_weak(before, after.as_u64(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(outcome),
                Err(changed) => before = changed,
            }
        }
    }
}

/// What a bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Cells that can be taken now.
    pub remaining: u64,
    /// When it is full again.
    pub full_in: Duration,
}

/// The bucket holds too little now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverQuota {
    /// It will hold enough after this time, if nobody else takes it.
    RetryAfter(Duration),
    /// It never will: the request is larger than the burst. The configuration refuses such a burst.
    Never {
        /// The burst.
        burst: u64,
    },
}

/// One tenant's bucket of one kind.
pub struct Bucket<T: Elapsed = Instant> {
    limiter: RateLimiter<NotKeyed, FullAt, Cells<T>, NoOpMiddleware<Nanos>>,
    full_at: Arc<AtomicU64>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self::since(rate, Instant::now())
    }
}

impl<T: Elapsed> Bucket<T> {
    /// A bucket that is full when `since` says that nothing has elapsed.
    fn since(rate: Rate, since: T) -> Self {
        let full_at = Arc::new(AtomicU64::new(0));
        // One cell a tick of the bucket's clock.
        let quota = Quota::with_period(Duration::from_nanos(1)).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let quota = quota.allow_burst(rate.burst);
        Self { limiter: RateLimiter::new(quota, FullAt(Arc::clone(&full_at)), Cells { rate, since }), full_at }
    }

    /// Its rate.
    pub fn rate(&self) -> Rate {
        self.limiter.clock().rate
    }

    /// Takes `cells` at once, or none.
    ///
    /// # Errors
    /// [`OverQuota`] says when to come again.
    pub fn take(&self, cells: u64) -> Result<(), OverQuota> {
        let rate = self.rate();
        let never = OverQuota::Never { burst: rate.burst() };
        let Some(cells) = NonZeroU32::new(u32::try_from(cells).map_err(|_| never)?) else { return Ok(()) };
        match self.limiter.check_n(cells) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                let missing = not_until.wait_time_from(self.limiter.clock().now());
                let missing = u64::try_from(missing.as_nanos()).unwrap_or(u64::MAX);
                Err(OverQuota::RetryAfter(rate.time(missing)))
            }
            Err(_) => Err(never),
        }
    }

    /// What it holds now.
    pub fn level(&self) -> Level {
        let rate = self.rate();
        let missing = self.full_at.load(Ordering::Acquire).saturating_sub(self.limiter.clock().now().as_u64());
        Level { remaining: rate.burst().saturating_sub(missing), full_in: rate.time(missing) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A clock that a test moves.
    #[derive(Clone, Default)]
    struct Hands(Arc<AtomicU64>);

    impl Hands {
        fn advance(&self, by: Duration) {
            self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
        }
    }

    impl Elapsed for Hands {
        fn elapsed(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::SeqCst))
        }
    }

    fn bucket(per_second: u64, burst: u64) -> (Bucket<Hands>, Hands) {
        let hands = Hands::default();
        (Bucket::since(Rate::new(per_second, burst).unwrap(), hands.clone()), hands)
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_says_when() {
        let (bucket, hands) = bucket(10, 100);
        assert_eq!(bucket.level(), Level { remaining: 100, full_in: Duration::ZERO });
        assert_eq!(bucket.take(80), Ok(()));
        assert_eq!(bucket.level(), Level { remaining: 20, full_in: Duration::from_secs(8) });
        let wait = Duration::from_secs(3);
        assert_eq!(bucket.take(50), Err(OverQuota::RetryAfter(wait)), "thirty cells at ten a second");
        assert_eq!(bucket.level().remaining, 20, "all or none");
        hands.advance(wait.checked_sub(Duration::from_nanos(1)).unwrap());
        assert_eq!(
            bucket.take(50),
            Err(OverQuota::RetryAfter(Duration::from_millis(100))),
            "the last cell is not in yet"
        );
        hands.advance(Duration::from_nanos(1));
        assert_eq!(bucket.take(50), Ok(()), "the time that was said is enough");
        hands.advance(Duration::from_hours(1000));
        assert_eq!(bucket.level().remaining, 100, "never more than the burst");
        assert_eq!(
            (bucket.take(101), bucket.take(u64::MAX)),
            (Err(OverQuota::Never { burst: 100 }), Err(OverQuota::Never { burst: 100 }))
        );
        assert_eq!(bucket.take(0), Ok(()));
    }

    #[test]
    fn a_rate_is_exact_whatever_it_is() {
        for per_second in [1, 3, 7, 999_983, 3_000_000, 104_857_600, 1_500_000_000, Rate::MAX_PER_SECOND] {
            let burst = per_second.min(u64::from(u32::MAX));
            let (bucket, hands) = bucket(per_second, burst);
            assert_eq!(bucket.take(burst), Ok(()));
            let mut given = 0;
            // A thousandth of a second at a time, for ten seconds: rounding must not add up.
            for _ in 0..10_000 {
                hands.advance(Duration::from_millis(1));
                let there = bucket.level().remaining;
                assert_eq!(bucket.take(there), Ok(()));
                given += there;
            }
            assert_eq!(given, 10 * per_second, "at {per_second} a second");
        }
    }

    #[test]
    fn what_cannot_be_a_rate_is_none() {
        assert_eq!(Rate::new(0, 1), Err(RateError::PerSecond));
        assert_eq!(Rate::new(Rate::MAX_PER_SECOND + 1, 1), Err(RateError::PerSecond));
        assert!(matches!(Rate::new(1, 0), Err(RateError::Burst(_))));
        assert!(matches!(Rate::new(1, 1 << 32), Err(RateError::Burst(_))));
        assert_eq!(Rate::new(100_000, 200_000).unwrap().window(), 2);
        assert_eq!(Rate::new(100_000, 200_001).unwrap().window(), 3);
    }

    /// Four threads at one bucket for half a second, first all at once and then as it fills. What is admitted is compared
    /// with the time around it, and never with an expected one: on a machine that stalls less comes in.
    fn saturate(per_second: u64, request: impl Fn(u64) -> u64 + Sync) {
        // So large that nobody's stall fills it again: then it is empty all the time, and what comes in is what goes out.
        let rate = Rate::new(per_second, 8 * per_second).unwrap();
        let before = Instant::now();
        let bucket = Bucket::new(rate);
        assert_eq!(bucket.take(rate.burst()), Ok(()));
        let emptied = Instant::now();
        let stop = AtomicBool::new(false);
        let run = |thread: u64| {
            let (mut admitted, mut last_refusal) = (0, Duration::ZERO);
            for number in (thread..).step_by(4) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let asked = emptied.elapsed();
                match bucket.take(request(number)) {
                    Ok(()) => admitted += request(number),
                    Err(OverQuota::RetryAfter(_)) => last_refusal = asked,
                    Err(never) => unreachable!("{never:?}"),
                }
            }
            (admitted, last_refusal)
        };
        let ends: Vec<(u64, Duration)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || run(thread))).collect();
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let most = rate.burst() + rate.cells(before.elapsed());
        let admitted = rate.burst() + ends.iter().map(|end| end.0).sum::<u64>();
        assert!(admitted <= most, "{admitted} admitted, of at most {most}");
        // At a refusal less than the largest request was left of all that had come in.
        let came_in = rate.cells(ends.iter().map(|end| end.1).max().unwrap());
        let least = rate.burst() + (came_in * 99 / 100).saturating_sub((0..64).map(&request).max().unwrap());
        assert!(came_in > 0 && admitted >= least, "{admitted} admitted, of at least {least}");
    }

    #[test]
    fn threads_never_take_more_than_burst_and_rate_nor_less_than_99_percent_of_it() {
        saturate(100_000, |_| 1);
        saturate(1_000_000, |number| [1, 100, 7, 1000][usize::try_from(number % 4).unwrap()]);
        saturate(100 << 20, |number| 1 + (number * 7919) % (64 << 10));
    }
}

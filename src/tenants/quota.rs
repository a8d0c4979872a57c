//! A rate with a burst: the generic cell rate algorithm of the `governor` crate, in whole cells.
//!
//! governor turns a rate into whole nanoseconds a cell, so a cell must not be too small: bytes are counted in KiB.

use std::{
    num::{NonZeroU32, TryFromIntError},
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use thiserror::Error;

/// So many cells a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

/// A rate that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RateError {
    /// The number does not fit.
    #[error("a rate must be from 1 to 4294967295")]
    OutOfRange(#[from] TryFromIntError),
}

impl Rate {
    /// A rate of `per_second` cells with room for `burst` at once.
    ///
    /// # Errors
    /// [`RateError`] when either is zero or above `u32::MAX`.
    pub fn new(per_second: u64, burst: u64) -> Result<Self, RateError> {
        let per_second = NonZeroU32::try_from(u32::try_from(per_second)?)?;
        let burst = NonZeroU32::try_from(u32::try_from(burst)?)?;
        Ok(Self { per_second, burst })
    }
}

/// How much a tenant may send; `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct QuotaSettings {
    /// Events a second.
    pub events: Option<Rate>,
    /// KiB of request bodies a second.
    pub kib: Option<Rate>,
}

/// What a tenant has used up.
#[derive(Debug)]
pub struct Quotas {
    /// Events a second.
    pub events: Bucket,
    /// KiB of request bodies a second.
    pub kib: Bucket,
    settings: QuotaSettings,
}

impl Quotas {
    /// Full buckets.
    pub fn new(settings: &QuotaSettings) -> Self {
        Self { events: Bucket::new(settings.events), kib: Bucket::new(settings.kib), settings: settings.clone() }
    }

    /// What they were made of.
    pub fn settings(&self) -> &QuotaSettings {
        &self.settings
    }
}

/// One tenant's bucket of one kind.
#[derive(Debug)]
pub struct Bucket {
    limiter: Option<DefaultDirectRateLimiter>,
}

/// The bucket holds too little now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverQuota {
    /// It will hold enough after this time.
    RetryAfter(Duration),
    /// It never will: the request is larger than the burst. The configuration refuses such a burst.
    Never {
        /// The burst.
        burst: u32,
    },
}

impl Bucket {
    /// A full bucket; `None` never runs out.
    pub fn new(rate: Option<Rate>) -> Self {
        let limiter = rate.map(|rate| RateLimiter::direct(Quota::per_second(rate.per_second).allow_burst(rate.burst)));
        Self { limiter }
    }

    /// Takes `cells` at once, or none.
    ///
    /// # Errors
    /// [`OverQuota`] says when to come again.
    pub fn take(&self, cells: u64) -> Result<(), OverQuota> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let Ok(cells) = u32::try_from(cells) else { return Err(OverQuota::Never { burst: u32::MAX }) };
        let Some(cells) = NonZeroU32::new(cells) else { return Ok(()) };
        match limiter.check_n(cells) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(OverQuota::RetryAfter(not_until.wait_time_from(DefaultClock::default().now()))),
            Err(insufficient) => Err(OverQuota::Never { burst: insufficient.0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_says_when() {
        let bucket = Bucket::new(Some(Rate::new(10, 100).unwrap()));
        assert_eq!(bucket.take(100), Ok(()));
        let Err(OverQuota::RetryAfter(wait)) = bucket.take(50) else { unreachable!("the bucket is empty") };
        // Fifty cells at ten a second, less what the lines above took.
        assert!(wait <= Duration::from_secs(5) && wait > Duration::from_secs(1), "{wait:?}");
        assert_eq!(bucket.take(101), Err(OverQuota::Never { burst: 100 }));
        assert_eq!(bucket.take(0), Ok(()));
        assert_eq!(Bucket::new(None).take(u64::MAX), Ok(()));
        assert!(Rate::new(0, 1).is_err() && Rate::new(1, 1 << 32).is_err());
    }
}

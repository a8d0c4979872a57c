//! Requests that fail to authenticate, by the address that they come from.
//!
//! Only a failure is charged, and only failures are refused: a right key opens from every address, because a thousand
//! people may share one (a company's NAT, a load balancer that is not named as a trusted proxy). Telling a right key from
//! a wrong one costs a hash, less than a microsecond; what an address over its rate no longer gets is anything dearer than
//! that: its body is not read, and nobody is asked about its key ([`Failures::is_over`]).
//!
//! The table has a fixed number of places, in sets of eight with a lock each. An address that finds its set full takes the
//! place of the one that failed longest ago, which then begins anew with its full burst: with many addresses one can be
//! forgotten sooner, and never fill the memory.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::quota::{Bucket, OverQuota, Rate};

/// 16,384 addresses in all; about 2 MB when every place is taken.
const SETS: usize = 2048;
const PLACES: usize = 8;

/// What failures are charged to: an IPv4 address, or the /64 of an IPv6 one, within which whoever has one has them all.
fn charged(address: IpAddr) -> Ipv6Addr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)),
    }
}

struct Place {
    address: Ipv6Addr,
    bucket: Bucket,
    last: Instant,
    over_until: Instant,
}

/// The failures of all addresses.
pub struct Failures {
    rate: Option<Rate>,
    sets: Vec<Mutex<Vec<Place>>>,
    // Seeded by chance, so that nobody can choose addresses of one set.
    hash: RandomState,
}

impl Failures {
    /// Every address may fail at `rate`; at any without one.
    pub fn new(rate: Option<Rate>) -> Self {
        let sets = if rate.is_some() { SETS } else { 0 };
        Self { rate, sets: (0..sets).map(|_| Mutex::default()).collect(), hash: RandomState::new() }
    }

    /// Charges a failure to `address`.
    ///
    /// # Errors
    /// The address is over its rate for that long.
    pub fn charge(&self, address: IpAddr) -> Result<(), Duration> {
        let (Some(rate), address) = (self.rate, charged(address)) else { return Ok(()) };
        let Some(set) = self.set(address) else { return Ok(()) };
        let now = Instant::now();
        let mut places = set.lock();
        if let Some(place) = places.iter_mut().find(|place| place.address == address) {
            return place.charge(now);
        }
        let mut place = Place { address, bucket: Bucket::new(rate), last: now, over_until: now };
        let charged = place.charge(now);
        if places.len() < PLACES {
            places.push(place);
        } else if let Some(oldest) = places.iter_mut().min_by_key(|place| place.last) {
            *oldest = place;
        }
        charged
    }

    /// Whether `address` is over its rate, for how long. Charges nothing: for whoever is to be spared more work.
    pub fn is_over(&self, address: IpAddr) -> Option<Duration> {
        let address = charged(address);
        let places = self.set(address)?.lock();
        let over_until = places.iter().find(|place| place.address == address)?.over_until;
        Some(over_until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    fn set(&self, address: Ipv6Addr) -> Option<&Mutex<Vec<Place>>> {
        let number = self.hash.hash_one(address) % SETS as u64;
        self.sets.get(usize::try_from(number).unwrap_or(0))
    }
}

impl Place {
    fn charge(&mut self, now: Instant) -> Result<(), Duration> {
        self.last = now;
        let wait = match self.bucket.take(1) {
            Ok(()) => return Ok(()),
            Err(OverQuota::RetryAfter(wait)) => wait,
            // Not so: a burst is at least one.
            Err(OverQuota::Never { .. }) => Duration::from_secs(1),
        };
        self.over_until = now + wait;
        Err(wait)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn failures() -> Failures {
        Failures::new(Some(Rate::new(1, 3).unwrap()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_has_its_own_burst() {
        let failures = failures();
        for _ in 0..3 {
            assert_eq!(failures.charge(address("192.0.2.1")), Ok(()));
        }
        assert_eq!(failures.is_over(address("192.0.2.1")), None, "nothing was refused yet");
        assert!(failures.charge(address("192.0.2.1")).is_err_and(|wait| wait <= Duration::from_secs(1)));
        assert!(
            failures.is_over(address("::ffff:192.0.2.1")).is_some(),
            "the same one, as a dual-stack socket says it"
        );
        assert_eq!((failures.charge(address("192.0.2.2")), failures.is_over(address("192.0.2.2"))), (Ok(()), None));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let failures = failures();
        for end in 1..=3 {
            assert_eq!(failures.charge(address(&format!("2001:db8:1:2::{end}"))), Ok(()));
        }
        assert!(failures.charge(address("2001:db8:1:2:ffff::9")).is_err());
        assert_eq!(failures.charge(address("2001:db8:1:3::1")), Ok(()));
    }

    #[test]
    fn the_table_never_grows_past_its_places() {
        let failures = failures();
        let mut places = 0;
        for number in 0..100_000_u32 {
            assert_eq!(failures.charge(IpAddr::V4(number.into())), Ok(()));
        }
        for set in &failures.sets {
            assert!(set.lock().len() <= PLACES && set.lock().capacity() <= PLACES);
            places += set.lock().len();
        }
        assert_eq!(places, SETS * PLACES, "a hundred thousand addresses take every place");
    }

    #[test]
    fn without_a_rate_nothing_is_counted() {
        let failures = Failures::new(None);
        for _ in 0..1000 {
            assert_eq!(failures.charge(address("192.0.2.1")), Ok(()));
        }
        assert_eq!(failures.is_over(address("192.0.2.1")), None);
    }
}

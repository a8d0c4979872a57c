//! How much a tenant may send: events and bytes a second, events in a month, and its share of the memory.
//!
//! All of it is atomic numbers that the tenant's own requests share and nobody else's: no lock, no task, no timer. A
//! tenant that sends nothing costs some 300 bytes.

mod allowance;
mod bucket;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use allowance::{Allowance, AllowanceSettings, MonthIsOver};
pub use bucket::{Bucket, Elapsed, Level, OverQuota, Rate, RateError};

/// What a tenant may send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuotaSettings {
    /// Events a second; without it any number.
    pub events: Option<Rate>,
    /// Bytes of request bodies, as sent, a second; without it any number.
    pub bytes: Option<Rate>,
    /// Events in a month; without it any number, and they are not counted.
    pub month: Option<AllowanceSettings>,
}

/// What a tenant has sent of what it may.
pub struct Quotas {
    settings: QuotaSettings,
    events: Option<Bucket>,
    bytes: Option<Bucket>,
    month: Option<Allowance>,
    in_flight: AtomicUsize,
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Quotas {
    /// Full buckets. What of the month is used is found out with the first request.
    pub fn new(settings: &QuotaSettings) -> Self {
        Self {
            settings: settings.clone(),
            events: settings.events.map(Bucket::new),
            bytes: settings.bytes.map(Bucket::new),
            month: settings.month.map(Allowance::new),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// The same tenant's under other settings: full buckets, and the month as it is. Where the settings are the same ones,
    /// keep the old quotas instead.
    #[must_use]
    pub fn with(&self, settings: &QuotaSettings) -> Self {
        let month = match (&self.month, settings.month) {
            (Some(before), Some(settings)) => Some(before.with(settings)),
            (_, settings) => settings.map(Allowance::new),
        };
        Self { month, ..Self::new(settings) }
    }

    /// What they were made of.
    pub fn settings(&self) -> &QuotaSettings {
        &self.settings
    }

    /// The bucket of events.
    pub fn events(&self) -> Option<&Bucket> {
        self.events.as_ref()
    }

    /// The bucket of bytes.
    pub fn bytes(&self) -> Option<&Bucket> {
        self.bytes.as_ref()
    }

    /// The month's allowance.
    pub fn month(&self) -> Option<&Allowance> {
        self.month.as_ref()
    }

    /// Takes `events` at once, or none.
    ///
    /// # Errors
    /// [`OverQuota`] says when to come again.
    pub fn take_events(&self, events: u64) -> Result<(), OverQuota> {
        self.events.as_ref().map_or(Ok(()), |bucket| bucket.take(events))
    }

    /// Takes `bytes` at once, or none.
    ///
    /// # Errors
    /// [`OverQuota`] says when to come again.
    pub fn take_bytes(&self, bytes: u64) -> Result<(), OverQuota> {
        self.bytes.as_ref().map_or(Ok(()), |bucket| bucket.take(bytes))
    }

    /// Adds `bytes` to what the tenant's requests hold in memory, unless that makes more than `share`; says whether it did.
    pub fn hold(&self, bytes: usize, share: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|total| *total <= share);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back what [`Quotas::hold`] added.
    pub fn let_go(&self, bytes: usize) {
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_without_quotas_is_never_refused() {
        let quotas = Quotas::new(&QuotaSettings::default());
        assert_eq!((quotas.take_events(u64::MAX), quotas.take_bytes(u64::MAX)), (Ok(()), Ok(())));
        assert!(quotas.month().is_none());
    }

    #[test]
    fn an_idle_tenant_is_small() {
        let bytes = size_of::<Quotas>() + 2 * size_of::<[usize; 3]>();
        assert!(bytes <= 320, "{bytes} bytes with the buckets' numbers");
    }

    #[test]
    fn a_share_is_held_and_let_go() {
        let quotas = Quotas::new(&QuotaSettings::default());
        assert!(quotas.hold(60, 100) && !quotas.hold(41, 100) && quotas.hold(40, 100));
        quotas.let_go(60);
        assert!(quotas.hold(60, 100));
    }
}

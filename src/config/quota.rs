//! How much a tenant may send: the kinds of the keys, which `[quota]` and every tenant have, and a tenant's values.

use super::{
    error::Problem,
    kinds::{Bytes, Flag, Kind, Ratio, Whole},
    schema::{Limits, Quota},
    units::ByteSize,
};

/// Events, or requests, a second.
pub(super) type EventRate = Whole<u64, 0, 1_000_000_000>;
/// Events, or requests, at once.
pub(super) type EventBurst = Whole<u64, 0, 1_000_000_000>;
/// Bytes a second.
pub(super) type ByteRate = Bytes<0, { 16 << 30 }>;
/// Bytes at once: what 32 bits hold.
pub(super) type ByteBurst = Bytes<0, { (4 << 30) - 1 }>;
/// Events in a month.
pub(super) type MonthlyEvents = Whole<u64, 0, 1_000_000_000_000>;

/// How much one tenant may send, over all nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TenantQuota {
    /// Events a second; 0 is unlimited.
    pub events_per_second: u64,
    /// Events at once.
    pub events_burst: u64,
    /// Bytes of request bodies, as sent, a second; 0 is unlimited.
    pub bytes_per_second: u64,
    /// Bytes at once.
    pub bytes_burst: u64,
    /// Events in a calendar month (UTC); 0 is unlimited.
    pub events_per_month: u64,
    /// Whether more than that is refused.
    pub monthly_hard_stop: bool,
    /// Share of it from which answers warn.
    pub monthly_warn_ratio: f64,
}

/// Where a tenant's own keys come from: nothing for a key that it does not have, or whose value is wrong.
pub(super) trait OwnKeys {
    /// The value of `key`.
    fn own<K: Kind>(&mut self, key: &'static str) -> Option<K::Value>;
}

impl TenantQuota {
    /// What `[quota]` gives to tenants that have none of their own.
    pub fn of(quota: &Quota) -> Self {
        Self {
            events_per_second: quota.events_per_second,
            events_burst: quota.events_burst,
            bytes_per_second: quota.bytes_per_second,
            bytes_burst: quota.bytes_burst,
            events_per_month: quota.events_per_month,
            monthly_hard_stop: quota.monthly_hard_stop,
            monthly_warn_ratio: quota.monthly_warn_ratio,
        }
    }

    /// The same, with the keys that a tenant has itself.
    pub(super) fn with(self, own: &mut impl OwnKeys) -> Self {
        Self {
            events_per_second: own.own::<EventRate>("events_per_second").unwrap_or(self.events_per_second),
            events_burst: own.own::<EventBurst>("events_burst").unwrap_or(self.events_burst),
            bytes_per_second: own.own::<ByteRate>("bytes_per_second").unwrap_or(self.bytes_per_second),
            bytes_burst: own.own::<ByteBurst>("bytes_burst").unwrap_or(self.bytes_burst),
            events_per_month: own.own::<MonthlyEvents>("events_per_month").unwrap_or(self.events_per_month),
            monthly_hard_stop: own.own::<Flag>("monthly_hard_stop").unwrap_or(self.monthly_hard_stop),
            monthly_warn_ratio: own.own::<Ratio>("monthly_warn_ratio").unwrap_or(self.monthly_warn_ratio),
        }
    }

    /// The bursts that are below what one request may hold, by their key and the one that limits them: such a request
    /// could never pass.
    pub(super) fn small_bursts(&self, limits: &Limits) -> Vec<(&'static str, &'static str, Problem)> {
        let mut wrong = Vec::new();
        let events = limits.events_per_request as u64;
        if self.events_per_second > 0 && self.events_burst < events {
            let what = format!("below limits.events_per_request ({events}), so that such a request could never pass");
            let problem = Problem::new(what, format!("give at least {events}"));
            wrong.push(("events_burst", "events_per_second", problem));
        }
        if self.bytes_per_second > 0 && self.bytes_burst < limits.body_bytes {
            let bytes = ByteSize::new(limits.body_bytes);
            let what = format!("below limits.body_bytes ({bytes}), so that such a request could never pass");
            let problem = Problem::new(what, format!("give at least {bytes}"));
            wrong.push(("bytes_burst", "bytes_per_second", problem));
        }
        wrong
    }
}

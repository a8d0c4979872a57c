//! What an answer tells of the tenant's quota: `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10),
//! `X-RateLimit-Reset`, and a warning when the month is nearly used up.
//!
//! - Policies: `"events"`, `"bytes"` (unit `content-bytes`, of bodies as sent) and `"month"` (events). A bucket's quota `q`
//!   is its burst, and its window `w` the seconds in which that many come in, so that `q / w` is the rate (rounded down, as
//!   `w` is in whole seconds).
//! - `r` is what is left now. `t` is when there is more: a second for a bucket that is not full, as it fills all the time.
//! - `X-RateLimit-Reset` is the time, in Unix seconds, at which the buckets are full again.
//! - A refusal is described by the policy that it is for alone, with the time of its `Retry-After` in `t` and in
//!   `X-RateLimit-Reset`: the draft wants no `t` behind `Retry-After`.

use std::{fmt::Write, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    month::Month,
    tenants::{Bucket, Quotas},
};

pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
pub(super) const WARNING: HeaderName = HeaderName::from_static("x-quota-warning");

/// What a request can be refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Events a second.
    Events,
    /// Bytes of bodies a second.
    Bytes,
    /// Events in a month.
    Month,
}

impl Policy {
    /// Its name in headers and problem documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Bytes => "bytes",
            Self::Month => "month",
        }
    }
}

/// Whole seconds, rounded up, so that coming back then is never too early.
pub(super) fn seconds_up(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Writes the headers of an answer at `now_ms`: of one that refuses by `refused`, or of any other. `counted` is the log's
/// count of a month.
pub(super) fn describe(
    headers: &mut HeaderMap,
    quotas: &Quotas,
    refused: Option<Policy>,
    now_ms: i64,
    counted: impl Fn(Month) -> u64,
) {
    let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let (mut policies, mut limits) = (List::default(), List::default());
    let mut reset = Duration::ZERO;
    let mut bucket = |policy: Policy, unit: &str, bucket: Option<&Bucket>| {
        let Some(bucket) = bucket else { return };
        let (rate, level) = (bucket.rate(), bucket.level());
        reset = reset.max(level.full_in);
        policies.add(format_args!("\"{}\";q={}{unit};w={}", policy.as_str(), rate.burst(), rate.window()));
        if refused.is_none_or(|refused| refused == policy) {
            let more_in = match (refused, retry_after) {
                (Some(_), Some(seconds)) => seconds,
                _ => u64::from(!level.full_in.is_zero()),
            };
            limits.add(format_args!("\"{}\";r={};t={more_in}", policy.as_str(), level.remaining));
        }
    };
    bucket(Policy::Events, "", quotas.events());
    bucket(Policy::Bytes, ";qu=\"content-bytes\"", quotas.bytes());

    if let Some(allowance) = quotas.month() {
        let (month, limit) = (Month::of(now_ms), allowance.settings().events);
        let used = allowance.used(month, || counted(month));
        let seconds = |ms: i64| u64::try_from(ms).unwrap_or(0).div_ceil(1000);
        let (whole, left) = (seconds(month.ends_at_ms() - month.starts_at_ms()), seconds(month.ends_at_ms() - now_ms));
        policies.add(format_args!("\"month\";q={limit};w={whole}"));
        let is_told = match refused {
            Some(refused) => refused == Policy::Month,
            None => retry_after.is_none_or(|seconds| left <= seconds),
        };
        if is_told {
            limits.add(format_args!("\"month\";r={};t={left}", limit.saturating_sub(used)));
        }
        if allowance.warns_at(used)
            && let Ok(value) = HeaderValue::try_from(format!("\"month\";used={used};limit={limit}"))
        {
            headers.insert(WARNING, value);
        }
    }

    policies.put(headers, POLICY);
    limits.put(headers, LIMIT);
    let now = u64::try_from(now_ms).unwrap_or(0);
    match (refused, retry_after) {
        (Some(_), Some(seconds)) => {
            headers.insert(RESET, HeaderValue::from(now.div_ceil(1000) + seconds));
        }
        _ if quotas.events().is_some() || quotas.bytes().is_some() => {
            let at = Duration::from_millis(now) + reset;
            headers.insert(RESET, HeaderValue::from(seconds_up(at)));
        }
        _ => {}
    }
}

/// A list of structured fields (RFC 9651).
#[derive(Default)]
struct List(String);

impl List {
    fn add(&mut self, item: std::fmt::Arguments<'_>) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        // Writing to a String cannot fail.
        self.0.write_fmt(item).ok();
    }

    fn put(self, headers: &mut HeaderMap, name: HeaderName) {
        if !self.0.is_empty()
            && let Ok(value) = HeaderValue::try_from(self.0)
        {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::tenants::{AllowanceSettings, QuotaSettings, Rate};

    /// Noon of 30 November 2026: half a day before the month's end.
    const NOW: i64 = 1_796_083_200_000 - 12 * 3_600_000;

    fn quotas(month: Option<AllowanceSettings>) -> Quotas {
        // So slow that nothing comes in while the test runs.
        let (events, bytes) = (Rate::new(1, 100_000).unwrap(), Rate::new(100 << 20, 200 << 20).unwrap());
        Quotas::new(&QuotaSettings { events: Some(events), bytes: Some(bytes), month })
    }

    fn told(quotas: &Quotas, refused: Option<Policy>, retry_after: Option<u64>, used: u64) -> [String; 4] {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        describe(&mut headers, quotas, refused, NOW, |_| used);
        [POLICY, LIMIT, RESET, WARNING]
            .map(|name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned())
    }

    #[test]
    fn a_policy_is_burst_and_window_and_a_limit_what_is_left() {
        let quotas = quotas(None);
        let policy = "\"events\";q=100000;w=100000, \"bytes\";q=209715200;qu=\"content-bytes\";w=2";
        let full = "\"events\";r=100000;t=0, \"bytes\";r=209715200;t=0";
        let now = NOW / 1000;
        assert_eq!(told(&quotas, None, None, 0), [policy, full, &now.to_string(), ""]);
        quotas.take_events(60_000).unwrap();
        let [_, limit, reset, _] = told(&quotas, None, None, 0);
        assert_eq!(limit, "\"events\";r=40000;t=1, \"bytes\";r=209715200;t=0");
        let reset: i64 = reset.parse().unwrap();
        assert!((now + 59_990..=now + 60_000).contains(&reset), "{reset}");
        let refused = told(&quotas, Some(Policy::Events), Some(7), 0);
        assert_eq!(refused, [policy, "\"events\";r=40000;t=7", &(now + 7).to_string(), ""]);
    }

    #[test]
    fn the_month_ends_at_its_end_and_warns_before() {
        let quotas = quotas(Some(AllowanceSettings { events: 1000, hard_stop: false, warn_ratio: 0.8 }));
        let [policy, limit, _, warning] = told(&quotas, None, None, 800);
        assert!(policy.ends_with(", \"month\";q=1000;w=2592000"), "{policy}");
        assert!(limit.ends_with(", \"month\";r=200;t=43200"), "{limit}");
        assert_eq!(warning, "\"month\";used=800;limit=1000");
        let [_, limit, reset, _] = told(&quotas, Some(Policy::Month), Some(43_200), 800);
        assert_eq!((limit.as_str(), reset), ("\"month\";r=200;t=43200", (NOW / 1000 + 43_200).to_string()));
        let [_, limit, ..] = told(&quotas, None, Some(10), 800);
        assert!(!limit.contains("month"), "no time behind the one of Retry-After: {limit}");
    }

    #[test]
    fn without_a_quota_nothing_is_told() {
        let none = Quotas::new(&QuotaSettings::default());
        assert_eq!(told(&none, None, None, 0), [""; 4]);
    }
}

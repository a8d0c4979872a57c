//! The memory that all request bodies in flight share.
//!
//! Each body reserves what it holds as it grows, compressed and decompressed; when the budget is used up a request is
//! refused (503) instead of queued, because a queue of bodies is what would use the memory. One tenant holds at most half
//! of it (429), so that a flood leaves room for the others. Bodies are held until their events are on disk: the same
//! bound limits how much of one tenant's stands before another's in the log's queue.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;
use crate::{metrics::Metrics, tenants::Quotas};

/// Permits are counted in KiB, so that 32 bits of them are 4 TiB.
const UNIT: usize = 1024;

/// Why there is no room for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All tenants together hold what they may.
    Everybody,
    /// This one does.
    Tenant {
        /// Bytes that it may hold.
        share: usize,
    },
}

/// The shared budget. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    /// Most bytes of one tenant.
    share: usize,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let units = Semaphore::new((limits.in_flight_bytes / UNIT).min(Semaphore::MAX_PERMITS));
        // Half, and always enough for the largest request: its body, and what comes out of it.
        let largest = limits.body_bytes.saturating_add(limits.decompressed_bytes).saturating_add(UNIT);
        Self { units: Arc::new(units), share: (limits.in_flight_bytes / 2).max(largest), metrics }
    }

    /// A reservation of `tenant` that holds nothing yet.
    pub fn reservation(&self, tenant: &Arc<Quotas>) -> Reservation {
        Reservation { budget: self.clone(), tenant: Arc::clone(tenant), permit: None, bytes: 0, units: 0 }
    }
}

/// What one request holds; given back when dropped.
pub(super) struct Reservation {
    budget: Budget,
    tenant: Arc<Quotas>,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
    units: usize,
}

impl Reservation {
    /// Adds `bytes` to what is held.
    ///
    /// # Errors
    /// [`Full`] when there is no room for them; what was held before stays held.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let total = self.bytes + bytes;
        let more = total.div_ceil(UNIT) - self.units;
        let count = u32::try_from(more).map_err(|_| Full::Everybody)?;
        if !self.tenant.hold(bytes, self.budget.share) {
            return Err(Full::Tenant { share: self.budget.share });
        }
        let Ok(permit) = Arc::clone(&self.budget.units).try_acquire_many_owned(count) else {
            self.tenant.let_go(bytes);
            return Err(Full::Everybody);
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        self.budget.metrics.request_bodies_in_flight.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        (self.bytes, self.units) = (total, self.units + more);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tenant.let_go(self.bytes);
        self.budget.metrics.request_bodies_in_flight.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tenants::QuotaSettings;

    /// A budget of `in_flight_bytes` for bodies of up to `body_bytes`, and a tenant that may send any number of them.
    pub(in crate::api) fn budget(in_flight_bytes: usize, body_bytes: usize) -> (Budget, Arc<Quotas>, Arc<Metrics>) {
        let limits = Limits {
            body_bytes,
            decompressed_bytes: body_bytes,
            events_per_request: 1,
            event_bytes: 1,
            in_flight_bytes,
            request_timeout: Duration::MAX,
            max_age: None,
            max_ahead: Duration::MAX,
        };
        let metrics = Arc::new(Metrics::new());
        (Budget::new(&limits, Arc::clone(&metrics)), Arc::new(Quotas::new(&QuotaSettings::default())), metrics)
    }

    #[test]
    fn what_is_held_is_given_back() {
        let (budget, tenant, metrics) = budget(10 * UNIT, 10 * UNIT);
        let mut first = budget.reservation(&tenant);
        assert_eq!((first.grow(1), first.grow(UNIT - 1)), (Ok(()), Ok(())), "one unit holds both");
        assert_eq!(first.grow(8 * UNIT), Ok(()));
        let mut second = budget.reservation(&tenant);
        assert_eq!(second.grow(UNIT), Ok(()));
        assert_eq!(second.grow(1), Err(Full::Everybody), "the budget is used up");
        assert_eq!(metrics.request_bodies_in_flight.get(), i64::try_from(10 * UNIT).unwrap_or_default());
        drop(first);
        assert_eq!(second.grow(9 * UNIT), Ok(()));
        drop(second);
        assert_eq!(metrics.request_bodies_in_flight.get(), 0);
    }

    #[test]
    fn one_tenant_holds_at_most_half() {
        let (budget, flood, _) = budget(100 * UNIT, 10 * UNIT);
        let quiet = Arc::new(Quotas::new(&QuotaSettings::default()));
        let mut first = budget.reservation(&flood);
        assert_eq!(first.grow(50 * UNIT), Ok(()));
        let full = Full::Tenant { share: 50 * UNIT };
        assert_eq!((first.grow(1), budget.reservation(&flood).grow(1)), (Err(full), Err(full)));
        let mut other = budget.reservation(&quiet);
        assert_eq!(other.grow(50 * UNIT), Ok(()));
        drop(first);
        assert_eq!(budget.reservation(&flood).grow(UNIT), Ok(()));
    }
}

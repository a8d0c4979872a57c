//! The memory that all request bodies in flight share.
//!
//! Each body reserves what it holds as it grows, compressed and decompressed; when the budget is used up a request is
//! refused (503) instead of queued, because a queue of bodies is what would use the memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// Permits are counted in KiB, so that 32 bits of them are 4 TiB.
const UNIT: usize = 1024;

/// The shared budget. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub fn new(bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { units: Arc::new(Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS))), metrics }
    }

    /// A reservation that holds nothing yet.
    pub fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), permit: None, bytes: 0, units: 0 }
    }
}

/// What one request holds; given back when dropped.
pub(super) struct Reservation {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
    units: usize,
}

impl Reservation {
    /// Adds `bytes` to what is held; `false` when the budget does not have them.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let total = self.bytes + bytes;
        let more = total.div_ceil(UNIT) - self.units;
        let Ok(count) = u32::try_from(more) else { return false };
        let Ok(permit) = Arc::clone(&self.budget.units).try_acquire_many_owned(count) else { return false };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        self.budget.metrics.request_bodies_in_flight.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        (self.bytes, self.units) = (total, self.units + more);
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.metrics.request_bodies_in_flight.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let metrics = Arc::new(Metrics::new());
        let budget = Budget::new(10 * UNIT, metrics.clone());
        let mut first = budget.reservation();
        assert!(first.grow(1) && first.grow(UNIT - 1), "one unit holds both");
        assert!(first.grow(8 * UNIT));
        let mut second = budget.reservation();
        assert!(second.grow(UNIT));
        assert!(!second.grow(1), "the budget is used up");
        assert_eq!(metrics.request_bodies_in_flight.get(), i64::try_from(10 * UNIT).unwrap_or_default());
        drop(first);
        assert!(second.grow(9 * UNIT));
        drop(second);
        assert_eq!(metrics.request_bodies_in_flight.get(), 0);
    }
}

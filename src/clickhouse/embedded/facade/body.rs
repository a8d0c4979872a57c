//! Receiving a body: whole, within limits, in the pieces in which it arrives.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use http_body_util::BodyExt;

use super::{super::engine::QueryError, chunks::Chunks, encoding};

/// Longest body as sent. The engine beside it inserts some ten megabytes at a time; an import by hand may be larger.
const MAX_BODY: usize = 256 << 20;

/// Longest body after `Content-Encoding` is undone.
pub(super) const MAX_DECODED_BODY: usize = 512 << 20;

/// All bodies held at a time.
const MAX_BODIES: usize = 512 << 20;

/// The memory that all bodies share.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    used: Arc<AtomicUsize>,
}

/// A body's part of the budget; given back when dropped.
pub(super) struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Reservation {
    fn grow(&mut self, bytes: usize) -> Result<(), QueryError> {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > MAX_BODIES {
            return Err(QueryError::new(
                202,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                format_args!("request bodies take more than {MAX_BODIES} bytes at a time: try again later"),
            ));
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Receives a body to its end.
///
/// # Errors
/// It is too large, there is no memory for it now, or the client went away in the middle.
pub(super) async fn receive(
    budget: &Budget,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<(Chunks, Reservation), QueryError> {
    let mut reservation = Reservation { budget: budget.clone(), bytes: 0 };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(encoding::too_large(MAX_BODY));
    }
    let mut chunks = Chunks::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            QueryError::new(210, "NETWORK_ERROR", format_args!("the body broke off, nothing was done: {error}"))
        })?;
        // Trailers carry nothing for us.
        if let Ok(data) = frame.into_data() {
            if chunks.len() + data.len() > MAX_BODY {
                return Err(encoding::too_large(MAX_BODY));
            }
            reservation.grow(data.len())?;
            chunks.push(data);
        }
    }
    Ok((chunks, reservation))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = Budget::default();
        let mut first = Reservation { budget: budget.clone(), bytes: 0 };
        first.grow(MAX_BODIES).unwrap();
        let mut second = Reservation { budget: budget.clone(), bytes: 0 };
        assert_eq!(second.grow(1).unwrap_err().code, 202);
        drop((first, second));
        Reservation { budget, bytes: 0 }.grow(MAX_BODIES).unwrap();
    }
}

//! Takes a request's body, within the bounds.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::{Limits, budget::Reservation, error::ApiError};

/// The length that the request's head tells, if it does.
///
/// # Errors
/// Larger than the limit: refused before the bytes are on their way into memory.
pub(super) fn announced(body: &Body, limits: &Limits) -> Result<Option<u64>, ApiError> {
    let hint = http_body::Body::size_hint(body);
    if hint.lower() > limits.body_bytes as u64 {
        return Err(ApiError::BodyTooLarge { limit: limits.body_bytes });
    }
    Ok(hint.exact())
}

/// Reads the whole body, reserving its bytes as they arrive.
///
/// # Errors
/// Too large, cut off, or no room in the shared budget.
pub(super) async fn read(body: &mut Body, limits: &Limits, held: &mut Reservation) -> Result<Bytes, ApiError> {
    let limit = limits.body_bytes;
    // Most bodies arrive in one piece, which is then used where it lies; only a second piece makes a copy.
    let mut only = None;
    let mut joined = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ApiError::BodyIncomplete)?.into_data() else { continue };
        length += data.len();
        if length > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        held.grow(data.len()).map_err(ApiError::Full)?;
        if length == data.len() {
            only = Some(data);
        } else {
            if let Some(first) = only.take() {
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(only.unwrap_or_else(|| joined.freeze()))
}

/// Most bytes and time that are spent on a body whose request is refused already, and the longest wait for its next
/// piece: a client that does not send is answered at once.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(10);
const DISCARD_PAUSE: Duration = Duration::from_millis(500);

/// Takes what the client still sends and forgets it. A client that is answered while it sends, and then finds its
/// connection closed, often sees only the broken connection and not the answer; most of them then send it all again.
pub(super) async fn discard(body: &mut Body) {
    let rest = async {
        let mut length = 0;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DISCARD_PAUSE, body.frame()).await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > DISCARD_BYTES {
                break;
            }
        }
    };
    // Past the bounds the connection is closed under the client: it has been told to stop in every way there is.
    drop(tokio::time::timeout(DISCARD_TIME, rest).await);
}

//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request that is repeated under its key gets the answer
//! that the first one got, and nothing of it is stored again.
//!
//! Kept are answers of requests that were taken (2xx), for ten minutes, per node, in the log beside the events: an answer
//! survives whatever these do. A request that was refused has changed nothing, so its repeat is looked at anew. While the
//! first is still on its way, the repeat waits for it at the log.

use std::time::Instant;

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::{error::ApiError, ingest::milliseconds};
use crate::{
    ids::TenantId,
    wal::{self, AnswerKey, Answered, Wal},
};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key, bytes: a UUID has 36.
const MOST: usize = 255;

/// The key of a request.
///
/// # Errors
/// Several keys, or one that is empty, too long or not visible ASCII.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    let mut values = headers.get_all(KEY).iter();
    let Some(key) = values.next().map(HeaderValue::as_bytes) else { return Ok(None) };
    let plain = (1..=MOST).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    if plain && values.next().is_none() { Ok(Some(key)) } else { Err(ApiError::IdempotencyKey) }
}

/// A request that is to have an effect once.
pub(super) struct Once {
    key: AnswerKey,
    request: u128,
    began: Instant,
}

impl Once {
    pub(super) fn new(
        wal: &Wal,
        tenant: TenantId,
        key: &[u8],
        (headers, body): (&HeaderMap, &[u8]),
        began: Instant,
    ) -> Self {
        let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], HeaderValue::as_bytes);
        let digest = Sha256::new().chain_update(encoding).chain_update([0]).chain_update(body).finalize();
        let request = digest.first_chunk().map_or(0, |half| u128::from_le_bytes(*half));
        Self { key: wal.answer_key(tenant, key), request, began }
    }

    /// The answer to the first request with the key, if it was taken.
    pub(super) fn answered(&self, wal: &Wal) -> Option<Result<Response, ApiError>> {
        wal.answered(self.key).map(|answered| self.again(&answered))
    }

    /// The same answer again, but for the time that it took.
    ///
    /// # Errors
    /// This is another request: whoever sends it has used a key twice.
    pub(super) fn again(&self, answered: &Answered) -> Result<Response, ApiError> {
        if answered.request != self.request {
            return Err(ApiError::IdempotencyKeyReused);
        }
        let mut json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&answered.body).map_err(|error| {
                tracing::error!(%error, "a kept answer cannot be read");
                ApiError::Internal
            })?;
        json.insert("ingest_latency_ms".to_owned(), milliseconds(self.began.elapsed()).into());
        if answered.duplicates > 0 {
            json.insert("duplicates".to_owned(), answered.duplicates.into());
        }
        let body = serde_json::Value::Object(json).to_string();
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (REPLAYED, HeaderValue::from_static("true")),
        ];
        Ok((StatusCode::OK, headers, body).into_response())
    }

    /// What the log is to keep.
    pub(super) fn keep(&self, body: Vec<u8>) -> wal::Answer {
        wal::Answer { key: self.key, request: self.request, body }
    }
}

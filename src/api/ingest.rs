//! `POST /ingest`: the events of one request, onto the disk.

use std::time::Instant;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Api,
    auth::authenticate,
    body,
    encoding::Encoding,
    error::{ApiError, RejectedEvent},
    sort::{Request, sort},
};
use crate::{
    tenants::key::Scope,
    wal::{Append, Durability},
};

#[derive(Serialize)]
struct Answer<'a> {
    status: &'static str,
    batch_id: Uuid,
    events_accepted: usize,
    events_rejected: usize,
    ingest_latency_ms: u64,
    /// Shown only where a 2xx means less than "on disk".
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<&'static str>,
    /// Of the accepted ones: not wanted by a plugin, and so not stored.
    #[serde(skip_serializing_if = "is_zero")]
    events_dropped: usize,
    /// Of the accepted ones: on disk, and waiting for a plugin that cannot be called now.
    #[serde(skip_serializing_if = "is_zero")]
    events_parked: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [RejectedEvent],
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

pub(super) async fn ingest(
    State(api): State<Api>,
    headers: HeaderMap,
    mut request_body: Body,
) -> Result<Response, ApiError> {
    let limit = api.inner.limits.request_timeout;
    let answer = tokio::time::timeout(limit, take(&api, &headers, &mut request_body))
        .await
        .unwrap_or(Err(ApiError::Timeout { limit }));
    // A client that waits for "100 Continue" has not begun to send, and is not to be asked to.
    match &answer {
        Ok(_) | Err(ApiError::Timeout { .. }) => {}
        Err(_) if headers.contains_key(header::EXPECT) => {}
        Err(_) => body::discard(&mut request_body).await,
    }
    answer
}

async fn take(api: &Api, headers: &HeaderMap, request_body: &mut Body) -> Result<Response, ApiError> {
    let started = Instant::now();
    let inner = &api.inner;
    let tenant = authenticate(api, headers, Scope::Ingest).await?.tenant;
    // Before the body is read: what cannot be stored need not be sent.
    inner.wal.accepting().map_err(ApiError::Wal)?;

    let mut held = inner.budget.reservation();
    let received = body::read(request_body, &inner.limits, &mut held).await?;
    inner.metrics.request_body.inc_by(received.len() as u64);
    let kib = received.len().div_ceil(1024) as u64;
    tenant.quotas.kib.take(kib).map_err(|over| ApiError::Quota { unit: "KiB", over })?;

    let encoding = Encoding::of(headers.get(header::CONTENT_ENCODING).map(header::HeaderValue::as_bytes), &received)
        .map_err(ApiError::Encoding)?;
    let request = Request { tenant, encoding, body: received, received_at_ms: Timestamp::now().as_millisecond() };
    // What is reserved stays so until the events are on disk: a disk that stalls must not gather bodies without bound.
    let (sorted, held) = sort(api, &request, held).await?;
    let Request { tenant, received_at_ms, .. } = request;

    inner.count_rejected(&sorted.rejected);
    let accepted = sorted.stored + sorted.parked + sorted.dropped;
    if accepted == 0 {
        return Err(ApiError::AllRejected { errors: sorted.rejected });
    }
    // Of a request whose events were all dropped there is nothing to keep.
    if !sorted.chunks.is_empty() {
        let append = Append { tenant: tenant.id, received_at_ms, chunks: sorted.chunks };
        inner.wal.append(append).await.map_err(ApiError::Wal)?;
    }
    drop(held);

    inner.accepted.inc_by(sorted.stored as u64);
    inner.count("parked", sorted.parked);
    inner.count("dropped", sorted.dropped);
    let elapsed = started.elapsed();
    inner.metrics.ack.observe(elapsed.as_secs_f64());
    let answer = Answer {
        status: if sorted.rejected.is_empty() { "success" } else { "partial" },
        batch_id: Uuid::now_v7(),
        events_accepted: accepted,
        events_rejected: sorted.rejected.len(),
        ingest_latency_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        durability: match inner.wal.durability() {
            Durability::Fsync => None,
            Durability::Os => Some(Durability::Os.as_str()),
        },
        events_dropped: sorted.dropped,
        events_parked: sorted.parked,
        errors: &sorted.rejected,
    };
    let json = serde_json::to_vec(&answer).map_err(|error| {
        tracing::error!(%error, "writing an answer failed");
        ApiError::Internal
    })?;
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json).into_response())
}

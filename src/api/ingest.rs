//! `POST /ingest`: the events of one request, onto the disk.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Api, Inner, body,
    budget::Reservation,
    encoding::Encoding,
    error::{ApiError, RejectedEvent},
};
use crate::{
    event::{self, Acceptance, Batch},
    metrics::OutcomeLabels,
    row,
    tenants::Tenant,
    wal::{Append, Chunk, Durability, Packer},
};

/// Bodies above this are decompressed and parsed on the blocking pool: at about 300 MB/s they would hold an async
/// thread for more than half a millisecond.
const OFFLOAD_ABOVE: usize = 192 << 10;

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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [RejectedEvent],
}

/// What is left of a request once its events are read.
struct Sorted {
    chunks: Vec<Chunk>,
    accepted: usize,
    rejected: Vec<RejectedEvent>,
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
    let tenant = inner
        .tenants
        .authenticate(headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes))
        .map_err(ApiError::Auth)?;
    // Before the body is read: what cannot be stored need not be sent.
    inner.wal.accepting().map_err(ApiError::Wal)?;

    let mut held = inner.budget.reservation();
    let received = body::read(request_body, &inner.limits, &mut held).await?;
    inner.metrics.request_body.inc_by(received.len() as u64);
    let kib = received.len().div_ceil(1024) as u64;
    tenant.kib.take(kib).map_err(|over| ApiError::Quota { unit: "KiB", over })?;

    let encoding = Encoding::of(headers.get(header::CONTENT_ENCODING).map(header::HeaderValue::as_bytes), &received)
        .map_err(ApiError::Encoding)?;
    let received_at_ms = Timestamp::now().as_millisecond();
    // What is reserved stays so until the events are on disk: a disk that stalls must not gather bodies without bound.
    let (sorted, held) = if received.len() > OFFLOAD_ABOVE || encoding != Encoding::Identity {
        let (api, tenant) = (api.clone(), Arc::clone(&tenant));
        let sort = move || {
            let sorted = api.inner.sort(&tenant, encoding, received, received_at_ms, &mut held);
            (sorted, held)
        };
        tokio::task::spawn_blocking(sort).await.map_err(|panic| {
            tracing::error!(%panic, "reading a request failed");
            ApiError::Internal
        })?
    } else {
        (inner.sort(&tenant, encoding, received, received_at_ms, &mut held), held)
    };
    let sorted = sorted?;

    inner.count_rejected(&sorted.rejected);
    if sorted.accepted == 0 {
        return Err(ApiError::AllRejected { errors: sorted.rejected });
    }
    let append = Append { tenant: tenant.id, received_at_ms, chunks: sorted.chunks };
    inner.wal.append(append).await.map_err(ApiError::Wal)?;
    drop(held);

    inner.accepted.inc_by(sorted.accepted as u64);
    let elapsed = started.elapsed();
    inner.metrics.ack.observe(elapsed.as_secs_f64());
    let answer = Answer {
        status: if sorted.rejected.is_empty() { "success" } else { "partial" },
        batch_id: Uuid::now_v7(),
        events_accepted: sorted.accepted,
        events_rejected: sorted.rejected.len(),
        ingest_latency_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        durability: match inner.wal.durability() {
            Durability::Fsync => None,
            Durability::Os => Some(Durability::Os.as_str()),
        },
        errors: &sorted.rejected,
    };
    let json = serde_json::to_vec(&answer).map_err(|error| {
        tracing::error!(%error, "writing an answer failed");
        ApiError::Internal
    })?;
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json).into_response())
}

impl Inner {
    /// Decompresses, splits and reads a body: good events into chunks of the log, bad ones into errors.
    fn sort(
        &self,
        tenant: &Tenant,
        encoding: Encoding,
        received: Bytes,
        received_at_ms: i64,
        held: &mut Reservation,
    ) -> Result<Sorted, ApiError> {
        let limits = &self.limits;
        let body = encoding.decode(received, limits.decompressed_bytes, held).map_err(ApiError::Encoding)?;
        let batch = Batch::parse(&body, limits.events_per_request).map_err(ApiError::Body)?;
        let milliseconds = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let acceptance = Acceptance {
            tenant_id: tenant.id,
            received_at_ms,
            expires_at: tenant.retention.expires_at(received_at_ms),
            event_bytes: limits.event_bytes,
            oldest_ms: limits.max_age.map_or(0, |age| received_at_ms.saturating_sub(milliseconds(age)).max(0)),
            latest_ms: received_at_ms.saturating_add(milliseconds(limits.max_ahead)),
        };

        let mut packer = Packer::new(self.codec);
        let mut encoded = Vec::with_capacity(1024);
        let mut rejected = Vec::new();
        for (index, json) in batch.events.iter().enumerate() {
            match event::read(json, &acceptance, &event::Types::default()) {
                Ok(event) => {
                    encoded.clear();
                    row::encode(&event, &mut encoded);
                    packer.push(&encoded);
                }
                Err((id, error)) => {
                    rejected.push(RejectedEvent { index, id, code: error.code, detail: error.detail });
                }
            }
        }
        let total = batch.events.len();
        tenant.events.take(total as u64).map_err(|over| ApiError::Quota { unit: "events", over })?;
        Ok(Sorted { chunks: packer.finish(), accepted: total - rejected.len(), rejected })
    }

    fn count_rejected(&self, rejected: &[RejectedEvent]) {
        for event in rejected {
            let labels = OutcomeLabels { outcome: "rejected", code: event.code.as_str() };
            self.metrics.events.get_or_create(&labels).inc();
        }
    }
}

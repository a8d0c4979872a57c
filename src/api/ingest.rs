//! `POST /ingest`: the events of one request, onto the disk.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Api, Inner,
    address::Peer,
    auth::authenticate,
    body,
    encoding::Encoding,
    error::{ApiError, RejectedEvent},
    idempotency::{self, Once},
    rate_limits::{self, Policy},
    sort::{Request, sort},
};
use crate::{
    metrics::ReasonLabels,
    month::Month,
    tenants::{Caller, MonthIsOver, Tenant, key::Scope},
    wal::{Append, AppendError, Durability, Intake},
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
    /// Of the accepted ones: stored before, by an event of the same id.
    #[serde(skip_serializing_if = "is_zero")]
    duplicates: usize,
    /// Of the accepted ones: not wanted by a plugin, and so not stored.
    #[serde(skip_serializing_if = "is_zero")]
    events_dropped: usize,
    /// Of the accepted ones: on disk, and waiting for a plugin that cannot be called now.
    #[serde(skip_serializing_if = "is_zero")]
    events_parked: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [RejectedEvent],
}

impl Answer<'_> {
    fn json(&self) -> Result<Vec<u8>, ApiError> {
        serde_json::to_vec(self).map_err(|error| {
            tracing::error!(%error, "writing an answer failed");
            ApiError::Internal
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The handler as a router calls it.
pub(super) async fn route(State(api): State<Api>, request: axum::extract::Request) -> Response {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    ingest(api, extensions.get::<Peer>().copied(), &headers, body).await
}

pub(super) async fn ingest(api: Api, peer: Option<Peer>, headers: &HeaderMap, mut request_body: Body) -> Response {
    let inner = &api.inner;
    let limit = inner.limits.request_timeout;
    let started = Instant::now();
    let (tenant, answer) = match authenticate(&api, peer, headers, Scope::Ingest).await {
        Ok(Caller { tenant, .. }) => {
            let answer = take(&api, &tenant, started, headers, &mut request_body);
            let answer = tokio::time::timeout(limit, answer).await.unwrap_or(Err(ApiError::Timeout { limit }));
            (Some(tenant), answer)
        }
        Err(error) => (None, Err(error)),
    };
    match &answer {
        // Whoever fails too often is not listened to any longer.
        Ok(_) | Err(ApiError::Timeout { .. } | ApiError::TooManyFailures { .. }) => {}
        // A client that waits for "100 Continue" has not begun to send, and is not to be asked to.
        Err(_) if headers.contains_key(header::EXPECT) => {}
        Err(_) => body::discard(&mut request_body).await,
    }
    let refused = answer.as_ref().err().and_then(ApiError::policy);
    let mut response = answer.unwrap_or_else(|error| {
        inner.metrics.refusals.get_or_create(&ReasonLabels { reason: error.reason() }).inc();
        error.into_response()
    });
    if let Some(tenant) = tenant {
        let counted = |month| inner.wal.counted(tenant.id, month);
        let now_ms = Timestamp::now().as_millisecond();
        rate_limits::describe(response.headers_mut(), &tenant.quotas, refused, now_ms, counted);
    }
    response
}

impl Inner {
    /// Takes `events` out of what `tenant` has left of the month in which they were received; with no number yet, asks
    /// whether anything is left.
    fn reserve(&self, tenant: &Tenant, events: Option<u64>, received_at_ms: i64) -> Result<(), ApiError> {
        let Some(allowance) = tenant.quotas.month() else { return Ok(()) };
        let month = Month::of(received_at_ms);
        let counted = || self.wal.counted(tenant.id, month);
        let reserved = match events {
            Some(events) => allowance.reserve(month, events, counted),
            None if allowance.is_over(month, counted) => Err(MonthIsOver),
            None => Ok(()),
        };
        reserved.map_err(|MonthIsOver| {
            let wait = u64::try_from(month.ends_at_ms() - received_at_ms).unwrap_or(0);
            ApiError::MonthIsOver { limit: allowance.settings().events, wait: Duration::from_millis(wait) }
        })
    }
}

async fn take(
    api: &Api,
    tenant: &Arc<Tenant>,
    started: Instant,
    headers: &HeaderMap,
    request_body: &mut Body,
) -> Result<Response, ApiError> {
    let inner = &api.inner;
    let quotas = &tenant.quotas;
    let key = idempotency::key(headers)?;
    // Before the body is read: what cannot be stored need not be sent.
    inner.wal.accepting().map_err(ApiError::Wal)?;
    inner.reserve(tenant, None, Timestamp::now().as_millisecond())?;
    let over = |over| ApiError::Quota { policy: Policy::Bytes, over };
    // Most requests say how long they are, and those that are too much need not come into memory.
    let announced = body::announced(request_body, &inner.limits)?;
    if let Some(bytes) = announced {
        quotas.take_bytes(bytes).map_err(over)?;
    }

    let mut held = inner.budget.reservation(quotas);
    let received = body::read(request_body, &inner.limits, &mut held).await?;
    inner.metrics.request_body.inc_by(received.len() as u64);
    if announced.is_none() {
        quotas.take_bytes(received.len() as u64).map_err(over)?;
    }

    let once = key.map(|key| Once::new(&inner.wal, tenant.id, key, (headers, &received), started));
    if let Some(answered) = once.as_ref().and_then(|once| once.answered(&inner.wal)) {
        return answered;
    }

    let encoding = Encoding::of(headers.get(header::CONTENT_ENCODING).map(header::HeaderValue::as_bytes), &received)
        .map_err(ApiError::Encoding)?;
    let request = Request {
        tenant: Arc::clone(tenant),
        encoding,
        body: received,
        received_at_ms: Timestamp::now().as_millisecond(),
        again: false,
    };
    // What is reserved stays so until the events are on disk: a disk that stalls must not gather bodies without bound.
    let (sorted, held) = sort(api, &request, held).await?;
    let received_at_ms = request.received_at_ms;

    inner.count_rejected(&sorted.rejected);
    let accepted = sorted.stored + sorted.parked + sorted.dropped;
    let intake = Intake {
        received: sorted.received as u64,
        rejected: sorted.rejected.len() as u64,
        dropped: sorted.dropped as u64,
    };
    if accepted == 0 {
        inner.wal.note(tenant.id, intake);
        return Err(ApiError::AllRejected { errors: sorted.rejected });
    }
    let mut answer = Answer {
        status: if sorted.rejected.is_empty() { "success" } else { "partial" },
        batch_id: Uuid::now_v7(),
        events_accepted: accepted,
        events_rejected: sorted.rejected.len(),
        ingest_latency_ms: milliseconds(started.elapsed()),
        durability: match inner.wal.durability() {
            Durability::Fsync => None,
            Durability::Os => Some(Durability::Os.as_str()),
        },
        duplicates: 0,
        events_dropped: sorted.dropped,
        events_parked: sorted.parked,
        errors: &sorted.rejected,
    };
    // Of a request whose events were all dropped there is nothing to keep but, if it may be repeated, its answer.
    if !sorted.chunks.is_empty() || once.is_some() {
        let (events, counted) = ((sorted.stored + sorted.parked) as u64, quotas.month().is_some());
        inner.reserve(tenant, Some(events), received_at_ms)?;
        let release = |events| {
            if let Some(allowance) = quotas.month() {
                allowance.release(Month::of(received_at_ms), events);
            }
        };
        let kept = once.as_ref().map(|once| answer.json().map(|json| once.keep(json))).transpose()?;
        let append =
            Append { tenant: tenant.id, received_at_ms, chunks: sorted.chunks, counted, answer: kept, again: false };
        // When the time is over before the log has answered, the events stay reserved: they may be in it.
        match (inner.wal.append_of(append, intake).await, &once) {
            (Ok(appended), _) => {
                release(appended.duplicates);
                answer.duplicates = usize::try_from(appended.duplicates).unwrap_or(usize::MAX);
            }
            (Err(error), once) => {
                release(events);
                return match (error, once) {
                    // A copy of this request came first, and was on its way when this one was looked at.
                    (AppendError::Answered(answered), Some(once)) => once.again(&answered),
                    (error, _) => Err(ApiError::Wal(error)),
                };
            }
        }
    } else {
        inner.wal.note(tenant.id, intake);
    }
    drop(held);

    // Which of them were repeated is not looked up; together they are those that are new.
    let repeated = answer.duplicates.min(sorted.stored);
    inner.accepted.inc_by((sorted.stored - repeated) as u64);
    inner.count("parked", sorted.parked + repeated - answer.duplicates);
    inner.count("duplicate", answer.duplicates);
    inner.count("dropped", sorted.dropped);
    let elapsed = started.elapsed();
    inner.metrics.ack.observe(elapsed.as_secs_f64());
    answer.ingest_latency_ms = milliseconds(elapsed);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], answer.json()?).into_response())
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! Every way in which a request can fail, and the one place that decides its status.
//!
//! Answers are problem documents (RFC 9457) with a stable `code`. The statuses are chosen by what real clients do with
//! them: most analytics SDKs drop the data on any 4xx but 429, some never retry a 408, 425 or 501, and all of them
//! retry a 503. So what may succeed later is 429 or 503 with `Retry-After`, and a 4xx is final.

use std::{borrow::Cow, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    budget::Full,
    encoding::DecodeError,
    rate_limits::{Policy, seconds_up},
};
use crate::{
    event::{BodyError, EventErrorCode},
    ids::EventId,
    plugins::chain::Unavailable,
    tenants::{AuthError, OverQuota},
    wal::AppendError,
};

/// Waiting times that are not computed: how long until it is worth asking again.
const RETRY_SOON: Duration = Duration::from_secs(1);
const RETRY_LATER: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Debug)]
pub enum ApiError {
    /// No key, or none that may do this.
    Auth(AuthError),
    /// The body is longer than the limit.
    BodyTooLarge { limit: usize },
    /// The body ended before its announced length, or the connection broke.
    BodyIncomplete(axum::Error),
    /// The request was not done in time: its body came too slowly, or the disk is. Whether it was stored is not known.
    Timeout { limit: Duration },
    /// The body could not be decompressed.
    Encoding(DecodeError),
    /// The body is not JSON of a known shape, empty, or holds too many events.
    Body(BodyError),
    /// Not one event was good.
    AllRejected { errors: Vec<RejectedEvent> },
    /// The tenant sends too much at a time: events, or bytes.
    Quota { policy: Policy, over: OverQuota },
    /// The tenant has sent all that it may in this month, or the request is more than what is left of it.
    MonthIsOver { limit: u64, wait: Duration },
    /// Too many requests of this address failed to authenticate, and this one did as well.
    TooManyFailures { wait: Duration },
    /// The bodies in flight, of all tenants or of this one, hold as much memory as they may.
    Full(Full),
    /// The log does not take the events.
    Wal(AppendError),
    /// The request's idempotency key is none.
    IdempotencyKey,
    /// The request's idempotency key was used for another request.
    IdempotencyKeyReused,
    /// A plugin that must see the events cannot be called, and asks for them to be sent again.
    Plugin(Unavailable),
    /// A part of the ledger cannot be counted now.
    Ledger { reason: String },
    /// No such route.
    NotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// A bug: counted, logged, and the client may send again.
    Internal,
}

/// One event that was refused.
#[derive(Debug, Serialize)]
pub struct RejectedEvent {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its id, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<EventId>,
    /// The stable reason.
    #[serde(serialize_with = "as_code")]
    pub code: RejectionCode,
    /// The reason in words.
    pub detail: Cow<'static, str>,
}

/// Why an event was refused, in a word that stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectionCode {
    /// By the engine.
    Engine(EventErrorCode),
    /// By a plugin, or the schema of one: `<plugin>.<code>`, or `schema_mismatch`.
    Plugin(String),
}

impl RejectionCode {
    /// As the sender sees it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Engine(code) => code.as_str(),
            Self::Plugin(code) => code,
        }
    }

    /// As metrics label it: the codes of a plugin are its own, and may be many.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Engine(code) => code.as_str(),
            Self::Plugin(_) => "plugin",
        }
    }
}

fn as_code<S: serde::Serializer>(code: &RejectionCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.as_str())
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: String,
    code: &'a str,
    /// As draft-ietf-httpapi-ratelimit-headers names it.
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    violated_policies: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_accepted: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_rejected: Option<usize>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [RejectedEvent],
}

impl ApiError {
    /// Status, stable code and waiting time. Exhaustive on purpose: a new error has to decide.
    fn classify(&self) -> (StatusCode, &'static str, Option<Duration>) {
        match self {
            Self::Auth(error) => auth(*error),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None),
            Self::BodyIncomplete(_) => (StatusCode::BAD_REQUEST, "body_incomplete", None),
            Self::Timeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, "request_timeout", Some(RETRY_SOON)),
            Self::Encoding(DecodeError::Unsupported { .. }) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", None)
            }
            Self::Encoding(DecodeError::Corrupt { .. }) => (StatusCode::BAD_REQUEST, "corrupt_encoding", None),
            Self::Encoding(DecodeError::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "decompressed_body_too_large", None)
            }
            Self::Encoding(DecodeError::Full(full)) | Self::Full(full) => match full {
                Full::Everybody => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_SOON)),
                // Of the tenant's own making, and no sign that this node should get fewer requests.
                Full::Tenant { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_much_in_flight", Some(RETRY_SOON)),
            },
            Self::Body(BodyError::NotUtf8 { .. }) => (StatusCode::BAD_REQUEST, "not_utf8", None),
            Self::Body(BodyError::NotJson { .. }) => (StatusCode::BAD_REQUEST, "invalid_json", None),
            Self::Body(BodyError::TooManyEvents { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "too_many_events", None),
            Self::Body(BodyError::NoEvents) => (StatusCode::BAD_REQUEST, "no_events", None),
            Self::AllRejected { .. } => (StatusCode::BAD_REQUEST, "all_events_rejected", None),
            Self::Quota { over: OverQuota::RetryAfter(wait), .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", Some(*wait))
            }
            Self::Quota { over: OverQuota::Never { .. }, .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "larger_than_quota", None)
            }
            Self::MonthIsOver { wait, .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "monthly_allowance_exceeded", Some(*wait))
            }
            Self::TooManyFailures { wait } => (StatusCode::TOO_MANY_REQUESTS, "too_many_failures", Some(*wait)),
            Self::Wal(AppendError::DiskQuota { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "wal_disk_quota", Some(RETRY_LATER))
            }
            Self::Wal(AppendError::DiskReserve { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "wal_disk_reserve", Some(RETRY_LATER))
            }
            Self::Wal(AppendError::NoSpace(_)) => (StatusCode::SERVICE_UNAVAILABLE, "wal_no_space", Some(RETRY_LATER)),
            Self::Wal(AppendError::Poisoned { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "wal_poisoned", Some(RETRY_LATER))
            }
            Self::Wal(AppendError::Closed) => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down", Some(RETRY_SOON)),
            // Answered as the first request was, before it comes to this.
            Self::Wal(AppendError::Answered(_)) => (StatusCode::CONFLICT, "answered_before", None),
            Self::IdempotencyKey => (StatusCode::BAD_REQUEST, "idempotency_key_invalid", None),
            Self::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", None),
            Self::Plugin(_) => (StatusCode::SERVICE_UNAVAILABLE, "plugin_unavailable", Some(RETRY_LATER)),
            Self::Ledger { .. } => (StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable", Some(RETRY_LATER)),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", None),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", None),
        }
    }

    /// The policy by which the tenant is to wait.
    pub(super) fn policy(&self) -> Option<Policy> {
        match self {
            Self::Quota { policy, over: OverQuota::RetryAfter(_) } => Some(*policy),
            Self::MonthIsOver { .. } => Some(Policy::Month),
            _ => None,
        }
    }

    /// The reason as metrics label it: the code, and the policy where a code stands for several.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Quota { policy: Policy::Events, over: OverQuota::RetryAfter(_) } => "quota_exceeded_events",
            Self::Quota { policy: Policy::Bytes, over: OverQuota::RetryAfter(_) } => "quota_exceeded_bytes",
            _ => self.classify().1,
        }
    }

    /// The reason in words.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Auth(error) => error.to_string(),
            Self::BodyTooLarge { limit } => {
                format!("the body has more than the {limit} bytes allowed: send fewer events at a time")
            }
            Self::BodyIncomplete(_) => "the body ended before its announced length".to_owned(),
            Self::Timeout { limit } => format!("the request was not done within {} s; send it again", limit.as_secs()),
            Self::Encoding(DecodeError::Full(full)) | Self::Full(full) => match full {
                Full::Everybody => {
                    "the requests in flight hold all the memory that they may; nothing was stored".to_owned()
                }
                Full::Tenant { share } => format!(
                    "the tenant's requests in flight hold the {share} bytes that one tenant's may: send fewer at once; \
                     nothing was stored"
                ),
            },
            Self::Encoding(error) => error.to_string(),
            Self::Body(error) => error.to_string(),
            Self::AllRejected { errors } => {
                format!("none of the {} events was accepted; see \"errors\"", errors.len())
            }
            Self::Quota { policy, over: OverQuota::RetryAfter(wait) } => {
                format!(
                    "the tenant's quota of {} is used up; it allows this request in {:.3} s",
                    policy.as_str(),
                    wait.as_secs_f64()
                )
            }
            Self::Quota { policy, over: OverQuota::Never { burst } } => {
                let unit = policy.as_str();
                format!("the request needs more {unit} than the tenant's burst of {burst}: send fewer events at a time")
            }
            Self::MonthIsOver { limit, .. } => format!(
                "the tenant may send {limit} events in a calendar month (UTC), and the request is more than what is left"
            ),
            Self::TooManyFailures { .. } => {
                "too many requests from this address had no valid key; one with a valid key is taken".to_owned()
            }
            Self::Wal(error) => format!("{error}; nothing was stored"),
            Self::IdempotencyKey => {
                "Idempotency-Key must be sent once, with 1 to 255 visible ASCII characters; nothing was stored"
                    .to_owned()
            }
            Self::IdempotencyKeyReused => "another request was taken under this Idempotency-Key within the last 10 \
                 minutes: every request needs a key of its own; nothing of this one was stored"
                .to_owned(),
            Self::Plugin(error) => format!("{error}; nothing was stored"),
            Self::Ledger { reason } => format!("there is no ledger now: {reason}"),
            Self::NotFound => "no such resource; events go to POST /ingest".to_owned(),
            Self::MethodNotAllowed => "this resource does not take that method; see the Allow header".to_owned(),
            Self::Internal => "an error in the engine; nothing was acknowledged".to_owned(),
        }
    }
}

/// A key that is not known is 401, one that is known and not meant for this is 403: neither is worth sending again.
fn auth(error: AuthError) -> (StatusCode, &'static str, Option<Duration>) {
    match error {
        AuthError::Missing => (StatusCode::UNAUTHORIZED, "key_missing", None),
        AuthError::Malformed => (StatusCode::UNAUTHORIZED, "key_malformed", None),
        AuthError::Invalid => (StatusCode::UNAUTHORIZED, "key_invalid", None),
        AuthError::Expired => (StatusCode::UNAUTHORIZED, "key_expired", None),
        AuthError::Revoked => (StatusCode::UNAUTHORIZED, "key_revoked", None),
        AuthError::Disabled => (StatusCode::FORBIDDEN, "tenant_disabled", None),
        AuthError::Scope(_) => (StatusCode::FORBIDDEN, "scope_missing", None),
        AuthError::Origin => (StatusCode::FORBIDDEN, "origin_not_allowed", None),
        AuthError::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "auth_unavailable", Some(RETRY_SOON)),
    }
}

/// `Retry-After` knows whole seconds only.
pub(super) fn retry_after(wait: Duration) -> HeaderValue {
    HeaderValue::from(seconds_up(wait).max(1))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, wait) = self.classify();
        let errors: &[RejectedEvent] = if let Self::AllRejected { errors } = &self { errors } else { &[] };
        let rejected = (!errors.is_empty()).then_some(errors.len());
        let problem = Problem {
            kind: format!("urn:ingestion-engine:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &self.detail(),
            instance: format!("urn:uuid:{}", Uuid::now_v7()),
            code,
            violated_policies: self.policy().map(|policy| [policy.as_str()]),
            events_accepted: rejected.map(|_| 0),
            events_rejected: rejected,
            errors,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, retry_after(wait));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(super::encoding::SUPPORTED));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_rounded_up_to_whole_seconds() {
        for (wait, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")] {
            assert_eq!(retry_after(Duration::from_millis(wait)), seconds, "{wait} ms");
        }
    }

    #[test]
    fn no_status_is_one_that_makes_a_client_drop_or_loop() {
        let wait = OverQuota::RetryAfter(RETRY_SOON);
        let later = [
            ApiError::Full(Full::Everybody),
            ApiError::Full(Full::Tenant { share: 1 }),
            ApiError::MonthIsOver { limit: 1, wait: RETRY_SOON },
            ApiError::TooManyFailures { wait: RETRY_SOON },
            ApiError::Timeout { limit: RETRY_SOON },
            ApiError::Quota { policy: Policy::Events, over: wait },
            ApiError::Wal(AppendError::Closed),
        ];
        for error in later {
            let (status, _, wait) = error.classify();
            assert!(matches!(status.as_u16(), 429 | 503), "{error:?}");
            assert!(wait.is_some(), "{error:?} must say when to come again");
        }
    }
}

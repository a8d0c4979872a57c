//! `GET /usage`: what a tenant may, as its own keys of scope `read` or `admin` see it.

use axum::{Extension, Json, extract::State, http::HeaderMap};
use jiff::Timestamp;
use serde::Serialize;

use super::{Api, address::Peer, auth::authenticate, error::ApiError};
use crate::{
    event::Retention,
    ids::TenantId,
    month::Month,
    tenants::{
        Allowance, Bucket, Caller,
        key::{Key, Scope},
    },
};

/// The answer. Absent is: no bound.
#[derive(Serialize)]
pub(super) struct Usage {
    tenant_id: TenantId,
    name: Box<str>,
    key: KeyUsage,
    /// How long events are kept after they were accepted; null: for ever.
    retention_seconds: Option<i64>,
    events_per_second: Option<Bound>,
    bytes_per_second: Option<Bound>,
    month: Option<MonthUsage>,
}

/// A rate, on this node.
#[derive(Serialize)]
struct Bound {
    rate: u64,
    burst: u64,
    remaining: u64,
}

impl Bound {
    fn of(bucket: &Bucket) -> Self {
        let rate = bucket.rate();
        Self { rate: rate.per_second(), burst: rate.burst(), remaining: bucket.level().remaining }
    }
}

/// The calendar month (UTC), on this node.
#[derive(Serialize)]
struct MonthUsage {
    events: u64,
    allowance: u64,
    hard_stop: bool,
}

#[derive(Serialize)]
struct KeyUsage {
    name: Box<str>,
    scopes: Vec<Scope>,
    expires: Option<Timestamp>,
}

pub(super) async fn usage(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<Usage>, ApiError> {
    let peer = peer.map(|Extension(peer)| peer);
    let Caller { tenant, key } = authenticate(&api, peer, &headers, Scope::Read).await?;
    let month = Month::of(Timestamp::now().as_millisecond());
    let used = |allowance: &Allowance| allowance.used(month, || api.inner.wal.counted(tenant.id, month));
    let Key { name, scopes, expires, .. } = Key::clone(&key);
    Ok(Json(Usage {
        tenant_id: tenant.id,
        name: tenant.name.clone(),
        key: KeyUsage { name, scopes: scopes.iter().collect(), expires },
        retention_seconds: match tenant.retention {
            Retention::Seconds(seconds) => Some(seconds),
            Retention::Keep => None,
        },
        events_per_second: tenant.quotas.events().map(Bound::of),
        bytes_per_second: tenant.quotas.bytes().map(Bound::of),
        month: tenant.quotas.month().map(|allowance| MonthUsage {
            events: used(allowance),
            allowance: allowance.settings().events,
            hard_stop: allowance.settings().hard_stop,
        }),
    }))
}

//! `GET /usage`: what a tenant may, as its own keys of scope `read` or `admin` see it.

use axum::{Json, extract::State, http::HeaderMap};
use jiff::Timestamp;
use serde::Serialize;

use super::{Api, auth::authenticate, error::ApiError};
use crate::{
    event::Retention,
    ids::TenantId,
    tenants::{
        Caller,
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
}

#[derive(Serialize)]
struct KeyUsage {
    name: Box<str>,
    scopes: Vec<Scope>,
    expires: Option<Timestamp>,
}

pub(super) async fn usage(State(api): State<Api>, headers: HeaderMap) -> Result<Json<Usage>, ApiError> {
    let Caller { tenant, key } = authenticate(&api, &headers, Scope::Read).await?;
    let Key { name, scopes, expires, .. } = Key::clone(&key);
    Ok(Json(Usage {
        tenant_id: tenant.id,
        name: tenant.name.clone(),
        key: KeyUsage { name, scopes: scopes.iter().collect(), expires },
        retention_seconds: match tenant.retention {
            Retention::Seconds(seconds) => Some(seconds),
            Retention::Keep => None,
        },
    }))
}

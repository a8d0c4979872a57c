//! `GET /ledger`: where a tenant's events are, as its own keys of scope `admin` see it.

use axum::{Extension, Json, extract::State, http::HeaderMap};

use super::{Api, address::Peer, auth::authenticate, error::ApiError};
use crate::{ledger::Report, tenants::key::Scope};

pub(super) async fn ledger(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<Report>, ApiError> {
    let caller = authenticate(&api, peer.map(|Extension(peer)| peer), &headers, Scope::Admin).await?;
    let source = api.inner.ledger.get().ok_or(ApiError::NotFound)?;
    let report = source.ledger().await.map_err(|reason| ApiError::Ledger { reason })?;
    let mut report = report.of(caller.tenant.id);
    report.name(|_| Some(caller.tenant.name.to_string()));
    Ok(Json(report))
}

//! Whose a request is.

use axum::http::{HeaderMap, HeaderName, header};

use super::{
    Api, Doors,
    address::{self, Peer},
    error::ApiError,
};
use crate::tenants::{Caller, Credentials, key::Scope};

/// For clients that cannot set `Authorization`.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whom `headers` show, if they may do what needs `scope`. A request that shows no key that is known here is charged to the
/// address that it comes from; for an address over its rate nobody else is asked.
///
/// # Errors
/// [`ApiError::Auth`], or [`ApiError::TooManyFailures`].
pub(super) async fn authenticate(
    api: &Api,
    peer: Option<Peer>,
    headers: &HeaderMap,
    scope: Scope,
) -> Result<Caller, ApiError> {
    let Doors { tenants, failures, trusted_proxies } = &api.inner.doors;
    let bytes = |name: &HeaderName| headers.get(name).map(header::HeaderValue::as_bytes);
    // An origin that is no text is none that a key allows.
    let origin = bytes(&header::ORIGIN).map(|origin| std::str::from_utf8(origin).unwrap_or_default());
    // Without a peer the router is not behind the engine's own server, but in a test.
    let address = || peer.map(|Peer(peer)| address::client(peer, headers, trusted_proxies));
    let found = match Credentials::read(bytes(&header::AUTHORIZATION), bytes(&API_KEY)) {
        Ok(credentials) => {
            let may_ask = !tenants.asks() || address().is_none_or(|address| failures.is_over(address).is_none());
            tenants.authenticate(credentials, scope, origin, may_ask).await
        }
        Err(error) => Err(error),
    };
    found.map_err(|error| match address().filter(|_| error.is_failure()).map(|address| failures.charge(address)) {
        Some(Err(wait)) => ApiError::TooManyFailures { wait },
        _ => ApiError::Auth(error),
    })
}

//! Whose a request is.

use axum::http::{HeaderMap, HeaderName, header};

use super::{Api, error::ApiError};
use crate::tenants::{Caller, Credentials, key::Scope};

/// For clients that cannot set `Authorization`.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whom `headers` show, if they may do what needs `scope`.
///
/// # Errors
/// [`ApiError::Auth`]
pub(super) async fn authenticate(api: &Api, headers: &HeaderMap, scope: Scope) -> Result<Caller, ApiError> {
    let bytes = |name: &HeaderName| headers.get(name).map(header::HeaderValue::as_bytes);
    // An origin that is no text is none that a key allows.
    let origin = bytes(&header::ORIGIN).map(|origin| std::str::from_utf8(origin).unwrap_or_default());
    let credentials = Credentials::read(bytes(&header::AUTHORIZATION), bytes(&API_KEY)).map_err(ApiError::Auth)?;
    api.inner.tenants.authenticate(credentials, scope, origin).await.map_err(ApiError::Auth)
}

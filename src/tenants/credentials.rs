//! Who a request says it is: the key out of its headers.

use uuid::Uuid;

use super::{AuthError, key};
use crate::ids::TenantId;

/// What a request shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The tenant, where it is named beside the key.
    pub tenant: Option<TenantId>,
    /// The key.
    pub key: &'a str,
}

impl std::fmt::Debug for Credentials<'_> {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl<'a> Credentials<'a> {
    /// Reads `Authorization: Bearer <key>` or `Bearer <tenant>:<key>`, or else `X-Api-Key: <key>`.
    ///
    /// # Errors
    /// [`AuthError::Missing`] or [`AuthError::Malformed`].
    pub fn read(authorization: Option<&'a [u8]>, api_key: Option<&'a [u8]>) -> Result<Self, AuthError> {
        let text = |header: &'a [u8]| std::str::from_utf8(header).map(str::trim).map_err(|_| AuthError::Malformed);
        let credentials = match (authorization, api_key) {
            (Some(header), _) => {
                let (scheme, credentials) = text(header)?.split_once(' ').ok_or(AuthError::Malformed)?;
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return Err(AuthError::Malformed);
                }
                credentials.trim_start()
            }
            (None, Some(header)) => text(header)?,
            (None, None) => return Err(AuthError::Missing),
        };
        // A key of somebody else's making may hold a colon; what stands before it names a tenant only if it is a UUID.
        let named = credentials.split_once(':').and_then(|(id, key)| Some((Uuid::try_parse(id).ok()?, key)));
        let (tenant, key) = named.map_or((None, credentials), |(id, key)| (Some(TenantId(id)), key));
        if key::is_well_formed(key) { Ok(Self { tenant, key }) } else { Err(AuthError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_key_is_found_in_either_header_with_or_without_its_tenant() {
        let one = "00000000-0000-0000-0000-000000000001";
        let read = |authorization: Option<&str>, api_key: Option<&str>| {
            Credentials::read(authorization.map(str::as_bytes), api_key.map(str::as_bytes))
                .map(|found| (found.tenant.map(|id| id.0.as_u128()), found.key.to_owned()))
        };
        let found = |tenant: Option<u128>, key: &str| Ok((tenant, key.to_owned()));
        assert_eq!(read(Some(&format!("Bearer {one}:a")), None), found(Some(1), "a"));
        assert_eq!(read(Some(&format!("bearer   {one}:b:c ")), Some("x")), found(Some(1), "b:c"));
        assert_eq!(read(Some("Bearer b:c"), None), found(None, "b:c"));
        assert_eq!(read(None, Some("secret")), found(None, "secret"));
        assert_eq!(read(None, Some(&format!("{one}:secret"))), found(Some(1), "secret"));
        assert_eq!(read(None, None), Err(AuthError::Missing));
        let malformed = ["", "Bearer", "Bearer ", "Basic eDph", one, "Bearer a b", "Bearer iek_1"];
        for malformed in malformed.map(str::to_owned).into_iter().chain([format!("Bearer {one}:")]) {
            assert_eq!(read(Some(&malformed), Some("secret")), Err(AuthError::Malformed), "{malformed}");
        }
        assert_eq!(Credentials::read(Some(&[0xff]), None), Err(AuthError::Malformed));
    }
}

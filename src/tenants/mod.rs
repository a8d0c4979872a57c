//! Who may write, how much, and how long it is kept.
//!
//! A request is authenticated once and from then on carries its [`Tenant`]; nothing behind the front looks a key up
//! again. Keys are held as SHA-256 sums: they are random and long, so a slow hash would cost throughput and add no
//! safety.

mod failures;
mod quota;

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use uuid::Uuid;

pub use failures::Failures;
pub use quota::{
    Allowance, AllowanceSettings, Bucket, Elapsed, Level, MonthIsOver, OverQuota, QuotaSettings, Quotas, Rate,
    RateError,
};

use crate::{event::Retention, ids::TenantId};

/// SHA-256 of an API key.
pub type KeySum = [u8; 32];

/// Hashes a key as it is held.
pub fn key_sum(key: &[u8]) -> KeySum {
    Sha256::digest(key).into()
}

/// One customer.
pub struct Tenant {
    /// The id under which every row is written.
    pub id: TenantId,
    /// How long its rows are kept.
    pub retention: Retention,
    /// How much it may send.
    pub quotas: Arc<Quotas>,
    /// Its keys.
    pub keys: Vec<KeySum>,
}

/// Why a request is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// No `Authorization` header.
    #[error("send \"Authorization: Bearer <tenant_id>:<api_key>\"")]
    Missing,
    /// A header of another form.
    #[error("\"Authorization\" must be \"Bearer <tenant_id>:<api_key>\", with the tenant's UUID")]
    Malformed,
    /// No such tenant, or not its key: which of them is not told.
    #[error("the tenant or its key is not known here")]
    Invalid,
}

/// All tenants. Read-only once built; shared by reference.
#[derive(Default)]
pub struct Tenants {
    by_id: HashMap<TenantId, Arc<Tenant>>,
}

impl Tenants {
    /// The set of `tenants`; of two with one id the later one counts (the configuration refuses that before).
    pub fn new(tenants: impl IntoIterator<Item = Tenant>) -> Self {
        Self { by_id: tenants.into_iter().map(|tenant| (tenant.id, Arc::new(tenant))).collect() }
    }

    /// The tenant whose key `authorization` (the header's value) carries.
    ///
    /// # Errors
    /// [`AuthError`]; the time that it takes does not tell whether the tenant exists.
    pub fn authenticate(&self, authorization: Option<&[u8]>) -> Result<Arc<Tenant>, AuthError> {
        let header = authorization.ok_or(AuthError::Missing)?;
        let header = std::str::from_utf8(header).map_err(|_| AuthError::Malformed)?;
        let (scheme, credentials) = header.trim().split_once(' ').ok_or(AuthError::Malformed)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthError::Malformed);
        }
        let (tenant, key) = credentials.trim_start().split_once(':').ok_or(AuthError::Malformed)?;
        let tenant = Uuid::try_parse(tenant).map_err(|_| AuthError::Malformed)?;

        // The hash is made before the look-up, so that both outcomes of the look-up have paid for it.
        let sum = key_sum(key.as_bytes());
        let tenant = self.by_id.get(&TenantId(tenant)).ok_or(AuthError::Invalid)?;
        let known = tenant.keys.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&sum));
        if bool::from(known) { Ok(Arc::clone(tenant)) } else { Err(AuthError::Invalid) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_key_opens_its_own_tenant_only() {
        let tenant = |id: u128, keys: &[&str]| Tenant {
            id: TenantId(Uuid::from_u128(id)),
            retention: Retention::Keep,
            quotas: Arc::new(Quotas::new(&QuotaSettings::default())),
            keys: keys.iter().map(|key| key_sum(key.as_bytes())).collect(),
        };
        let tenants = Tenants::new([tenant(1, &["a", "b:c"]), tenant(2, &["d"])]);
        let of = |header: &str| tenants.authenticate(Some(header.as_bytes())).map(|tenant| tenant.id.0.as_u128());
        let one = "00000000-0000-0000-0000-000000000001";
        assert_eq!(of(&format!("Bearer {one}:a")), Ok(1));
        assert_eq!(of(&format!("bearer  {one}:b:c")), Ok(1));
        assert_eq!(of("Bearer 00000000-0000-0000-0000-000000000002:d"), Ok(2));
        assert_eq!(of(&format!("Bearer {one}:d")), Err(AuthError::Invalid));
        assert_eq!(of(&format!("Bearer {one}:")), Err(AuthError::Invalid));
        assert_eq!(of("Bearer 00000000-0000-0000-0000-000000000003:a"), Err(AuthError::Invalid));
        for malformed in ["", "Bearer", "Bearer a", "Bearer x:a", "Basic eDph", one] {
            assert_eq!(of(malformed), Err(AuthError::Malformed), "{malformed}");
        }
        assert_eq!(tenants.authenticate(None).err(), Some(AuthError::Missing));
        assert_eq!(tenants.authenticate(Some(&[0xff])).err(), Some(AuthError::Malformed));
    }
}

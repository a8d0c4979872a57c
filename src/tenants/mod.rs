//! Who may write, how much, and how long it is kept.
//!
//! ```text
//! headers --> Credentials --> Set (of the tenants' file, replaced as a whole when the file changes)
//!                               \-- not there --> External (auth.url, its answers cached) --> Caller
//! ```
//!
//! - A request is authenticated once and from then on carries its [`Tenant`]; nothing behind the front looks a key up
//!   again. A key belongs to one tenant, and to whom is decided here alone: no header and no body can say otherwise.
//! - Reading the set takes no lock. A request that has begun goes on with the tenant that it found.
//! - What a tenant has used up of its quotas is kept over a reload that does not change them.

pub mod commands;
mod credentials;
pub mod external;
mod failures;
pub mod key;
mod quota;
mod set;
pub mod watch;

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use thiserror::Error;

pub use credentials::Credentials;
pub use failures::Failures;
pub use quota::{
    Allowance, AllowanceSettings, Bucket, Elapsed, Level, MonthIsOver, OverQuota, QuotaSettings, Quotas, Rate,
    RateError,
};
pub use set::{Description, Set};

use self::{
    external::External,
    key::{Key, Refused, Scope},
};
use crate::{event::Retention, ids::TenantId};

/// One customer.
#[derive(Debug)]
pub struct Tenant {
    /// The id under which every row is written.
    pub id: TenantId,
    /// For people; may be empty.
    pub name: Box<str>,
    /// Its keys are known and not taken.
    pub disabled: bool,
    /// How long its rows are kept.
    pub retention: Retention,
    /// How much it may send.
    pub quotas: Arc<Quotas>,
}

/// Whom a request was found to come from.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// The key that was shown.
    pub key: Arc<Key>,
}

/// Why a request is nobody's, or may not do what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// No key.
    #[error("send \"Authorization: Bearer <key>\", \"Bearer <tenant_id>:<key>\" or \"X-Api-Key: <key>\"")]
    Missing,
    /// A header of another form.
    #[error(
        "the key must be sent as \"Authorization: Bearer <key>\", \"Bearer <tenant_id>:<key>\" or \"X-Api-Key: <key>\", whole and in visible ASCII"
    )]
    Malformed,
    /// No such key, or not of that tenant: which of them is not told.
    #[error("the key is not known here")]
    Invalid,
    /// Its time is over.
    #[error("the key has expired: ask for a new one")]
    Expired,
    /// It was revoked.
    #[error("the key was revoked: ask for a new one")]
    Revoked,
    /// The tenant is switched off.
    #[error("the tenant is disabled: ask whoever runs this engine")]
    Disabled,
    /// The key is for other things.
    #[error("the key has not the scope \"{0}\"")]
    Scope(Scope),
    /// The key is for other pages.
    #[error("the key may be used by pages of its own origins only")]
    Origin,
    /// The key is not in the tenants' file, and the service that may know it does not answer.
    #[error("the service that knows the keys does not answer: send it again")]
    Unavailable,
}

impl AuthError {
    /// Whether whoever sent this may be guessing: it showed no key that is known here.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Missing | Self::Malformed | Self::Invalid | Self::Expired | Self::Revoked)
    }
}

impl From<Refused> for AuthError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Expired => Self::Expired,
            Refused::Revoked => Self::Revoked,
            Refused::Scope(scope) => Self::Scope(scope),
            Refused::Origin => Self::Origin,
        }
    }
}

/// All tenants, as they are now. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Tenants {
    set: Arc<ArcSwap<Set>>,
    external: Option<External>,
}

impl Tenants {
    /// Begins with `set`; keys that it does not have are asked of `external`.
    pub fn new(set: Set, external: Option<External>) -> Self {
        Self { set: Arc::new(ArcSwap::from_pointee(set)), external }
    }

    /// The tenants of the file, at this moment.
    pub fn current(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// Takes `tenants` instead. Requests in flight go on with what they found.
    pub fn replace(&self, tenants: Vec<Description>) {
        let set = Set::new(tenants, &self.set.load());
        self.set.store(Arc::new(set));
    }

    /// Whether a service is asked for keys that the file does not have.
    pub fn asks(&self) -> bool {
        self.external.is_some()
    }

    /// Whose `credentials` are, if they may be used for `scope` by a page of `origin`. Unless it `may_ask`, a key that is not
    /// known here is nobody's.
    ///
    /// # Errors
    /// [`AuthError`]. What is told to a wrong key is the same whether or not the tenant exists.
    pub async fn authenticate(
        &self,
        credentials: Credentials<'_>,
        scope: Scope,
        origin: Option<&str>,
        may_ask: bool,
    ) -> Result<Caller, AuthError> {
        let found = self.set.load().find(&credentials);
        let caller = match (found, &self.external) {
            (Some(caller), _) => caller,
            (None, Some(external)) => external.find(&credentials, &self.set, may_ask).await?,
            (None, None) => return Err(AuthError::Invalid),
        };
        caller.key.check(Timestamp::now(), scope, origin)?;
        if caller.tenant.disabled { Err(AuthError::Disabled) } else { Ok(caller) }
    }
}

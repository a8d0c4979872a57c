//! The tenants of the file, found by key and by id.

use std::{collections::HashMap, sync::Arc};

use subtle::ConstantTimeEq;

use super::{
    Caller, Credentials, Tenant,
    key::{Key, KeySum},
    quota::{QuotaSettings, Quotas},
};
use crate::{event::Retention, ids::TenantId};

/// A tenant as the file describes it.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its id.
    pub id: TenantId,
    /// For people; may be empty.
    pub name: String,
    /// Whether its keys are refused.
    pub disabled: bool,
    /// How long its rows are kept.
    pub retention: Retention,
    /// How much it may send.
    pub quota: QuotaSettings,
    /// Its keys.
    pub keys: Vec<Key>,
}

/// Tenants and their keys. Read-only once built.
#[derive(Debug, Default)]
pub struct Set {
    by_id: HashMap<TenantId, Arc<Tenant>>,
    /// By the first half of the key's sum: nobody can choose what that is compared with, so the time of a look-up tells
    /// nothing about a key. The whole sum is compared in constant time.
    by_sum: HashMap<u128, Caller>,
}

impl Set {
    /// The set of `tenants`. Of two with one id or one key the later one counts (the configuration refuses that before).
    /// Tenants of `before` keep what they have used of their quotas, if those are still the same; and of the month in any case.
    pub fn new(tenants: impl IntoIterator<Item = Description>, before: &Self) -> Self {
        let mut set = Self::default();
        for tenant in tenants {
            let quotas = match before.by_id.get(&tenant.id).map(|tenant| &tenant.quotas) {
                Some(quotas) if *quotas.settings() == tenant.quota => Arc::clone(quotas),
                Some(quotas) => Arc::new(quotas.with(&tenant.quota)),
                None => Arc::new(Quotas::new(&tenant.quota)),
            };
            let Description { id, name, disabled, retention, quota: _, keys } = tenant;
            let tenant = Arc::new(Tenant { id, name: name.into(), disabled, retention, quotas });
            for key in keys {
                let caller = Caller { tenant: Arc::clone(&tenant), key: Arc::new(key) };
                set.by_sum.insert(index(&caller.key.sum), caller);
            }
            set.by_id.insert(id, tenant);
        }
        set
    }

    /// The tenant of that id.
    pub fn get(&self, id: TenantId) -> Option<&Arc<Tenant>> {
        self.by_id.get(&id)
    }

    /// How many tenants there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.by_sum.len()
    }

    /// Whose key that is; nobody's if a tenant is named that it does not belong to.
    pub(super) fn find(&self, credentials: &Credentials<'_>) -> Option<Caller> {
        let sum = KeySum::of(credentials.key);
        let caller = self.by_sum.get(&index(&sum))?;
        let same = bool::from(caller.key.sum.0.ct_eq(&sum.0));
        let named = credentials.tenant.is_none_or(|tenant| tenant == caller.tenant.id);
        (same && named).then(|| caller.clone())
    }
}

fn index(sum: &KeySum) -> u128 {
    sum.0.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use uuid::Uuid;

    use super::*;
    use crate::tenants::key::Scope;

    fn tenant(id: u128, keys: &[&str]) -> Description {
        let key = |key: &&str| Key {
            sum: KeySum::of(key),
            name: "".into(),
            scopes: Scope::ALL.into_iter().collect(),
            origins: Box::default(),
            expires: None,
            revoked: None,
        };
        Description {
            id: TenantId(Uuid::from_u128(id)),
            name: format!("tenant {id}"),
            disabled: false,
            retention: Retention::Keep,
            quota: QuotaSettings::default(),
            keys: keys.iter().map(key).collect(),
        }
    }

    #[test]
    fn a_key_opens_its_own_tenant_only() {
        let set = Set::new([tenant(1, &["a", "b:c"]), tenant(2, &["d"])], &Set::default());
        let of = |tenant: Option<u128>, key: &str| {
            let tenant = tenant.map(|id| TenantId(Uuid::from_u128(id)));
            set.find(&Credentials { tenant, key }).map(|caller| caller.tenant.id.0.as_u128())
        };
        assert_eq!((of(Some(1), "a"), of(Some(1), "b:c"), of(Some(2), "d")), (Some(1), Some(1), Some(2)));
        assert_eq!((of(None, "a"), of(None, "d")), (Some(1), Some(2)));
        assert_eq!((of(Some(1), "d"), of(Some(3), "a"), of(Some(1), ""), of(None, "e")), (None, None, None, None));
        assert_eq!((set.len(), set.keys(), set.is_empty()), (2, 3, false));
    }

    #[test]
    fn what_was_used_of_a_quota_is_kept_while_the_quota_is_the_same() {
        let before = Set::new([tenant(1, &["a"]), tenant(2, &["b"])], &Set::default());
        let mut changed = tenant(2, &["b"]);
        changed.quota.events = Some(crate::tenants::Rate::new(1, 1).unwrap());
        let after = Set::new([tenant(1, &["a", "c"]), changed], &before);
        let quotas = |set: &Set, id: u128| Arc::clone(&set.get(TenantId(Uuid::from_u128(id))).unwrap().quotas);
        assert!(Arc::ptr_eq(&quotas(&before, 1), &quotas(&after, 1)));
        assert!(!Arc::ptr_eq(&quotas(&before, 2), &quotas(&after, 2)));
    }
}

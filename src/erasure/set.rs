//! Tombstones in memory: does one of them name this row?

use std::collections::HashMap;

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    ids::TenantId,
    row::{self, EventRow, ParkedRow, Row, Sighted},
};

/// Rows that must not be stored.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, Deserialize)]
pub struct Tombstone {
    /// Its name.
    #[serde(with = "clickhouse::serde::uuid")]
    pub id: Uuid,
    /// Whose rows.
    #[serde(with = "clickhouse::serde::uuid")]
    pub tenant_id: Uuid,
    /// Of which person; empty: all of the tenant's.
    pub user_id: String,
    /// Further names of the person, under which no other user's rows may stand.
    pub anonymous_ids: Vec<String>,
    /// Rows that were received up to this moment, Unix milliseconds.
    pub before_ms: i64,
}

impl Tombstone {
    /// Whether it names a row of these ids that was received at `received_at_ms`.
    ///
    /// A row of a person has their `user_id`, or one of their anonymous ids and no user: on a device that several people
    /// share, the anonymous id alone does not tell whose a row is.
    fn names(&self, received_at_ms: i64, user_id: &str, anonymous_id: &str) -> bool {
        received_at_ms <= self.before_ms
            && (self.user_id.is_empty()
                || user_id == self.user_id
                || user_id.is_empty() && self.anonymous_ids.iter().any(|id| id == anonymous_id))
    }

    /// Whether it names `row`.
    pub fn names_sighted(&self, row: &Sighted) -> bool {
        TenantId(self.tenant_id) == row.tenant_id && self.names(row.received_at_ms, &row.user_id, &row.anonymous_id)
    }
}

/// Tombstones by tenant. Read-only once built.
#[derive(Debug, Default)]
pub struct Set {
    by_tenant: HashMap<TenantId, Vec<Tombstone>>,
    all: Vec<Tombstone>,
}

impl Set {
    /// The set of `tombstones`.
    pub fn new(tombstones: Vec<Tombstone>) -> Self {
        let mut by_tenant: HashMap<TenantId, Vec<Tombstone>> = HashMap::new();
        for tombstone in &tombstones {
            by_tenant.entry(TenantId(tombstone.tenant_id)).or_default().push(tombstone.clone());
        }
        Self { by_tenant, all: tombstones }
    }

    /// Whether there is no tombstone, so that no row needs to be looked at.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether these are its tombstones, in their order.
    pub(super) fn is_of(&self, tombstones: &[Tombstone]) -> bool {
        self.all == tombstones
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = Uuid> {
        self.all.iter().map(|tombstone| tombstone.id)
    }

    pub(super) fn has(&self, id: Uuid) -> bool {
        self.ids().any(|known| known == id)
    }

    /// Whether a tombstone names `row`.
    pub fn names(&self, row: &Row<'_>) -> bool {
        match row {
            Row::Event(event) => self.names_event(event),
            Row::Parked(parked) => self.names_parked(parked),
        }
    }

    /// Whether a tombstone names what `user_id` or `anonymous_id` sent, received at `received_at_ms`.
    pub fn names_person(&self, tenant: TenantId, received_at_ms: i64, user_id: &str, anonymous_id: &str) -> bool {
        let tombstones = self.by_tenant.get(&tenant);
        tombstones.is_some_and(|all| all.iter().any(|one| one.names(received_at_ms, user_id, anonymous_id)))
    }

    fn names_event(&self, event: &EventRow<'_>) -> bool {
        let Some(tombstones) = self.by_tenant.get(&event.tenant_id) else { return false };
        tombstones.iter().any(|tombstone| tombstone.names(event.received_at_ms, &event.user_id, &event.anonymous_id))
    }

    /// A parked row holds what was sent; its ids are read out of that.
    fn names_parked(&self, parked: &ParkedRow<'_>) -> bool {
        let Some(tombstones) = self.by_tenant.get(&parked.tenant_id) else { return false };
        let (user, anonymous) = row::sent_ids(&parked.raw);
        tombstones.iter().any(|tombstone| tombstone.names(parked.received_at_ms, &user, &anonymous))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EventId;

    fn tombstone(tenant: u128, user: &str, anonymous: &[&str]) -> Tombstone {
        Tombstone {
            id: Uuid::now_v7(),
            tenant_id: Uuid::from_u128(tenant),
            user_id: user.to_owned(),
            anonymous_ids: anonymous.iter().map(|id| (*id).to_owned()).collect(),
            before_ms: 1000,
        }
    }

    fn event(tenant: u128, user: &'static str, anonymous: &'static str, received_at_ms: i64) -> Row<'static> {
        let row = EventRow::new(TenantId(Uuid::from_u128(tenant)), EventId(Uuid::nil()), "custom");
        Row::Event(EventRow { user_id: user.into(), anonymous_id: anonymous.into(), received_at_ms, ..row })
    }

    fn parked(tenant: u128, raw: &'static str) -> Row<'static> {
        Row::Parked(ParkedRow {
            tenant_id: TenantId(Uuid::from_u128(tenant)),
            event_id: EventId(Uuid::nil()),
            timestamp_ms: 0,
            received_at_ms: 1000,
            expires_at: 0,
            plugin: "p".into(),
            kind: "t".into(),
            reason: "r".into(),
            raw: raw.into(),
        })
    }

    #[test]
    fn a_tombstone_names_the_rows_of_its_person_up_to_its_moment() {
        let set = Set::new(vec![tombstone(1, "u", &["u", "a"]), tombstone(2, "", &[])]);
        for (row, named) in [
            (event(1, "u", "", 1000), true),
            (event(1, "u", "other", 1000), true),
            (event(1, "", "a", 999), true),
            (event(1, "", "u", 999), true),
            (event(1, "other", "a", 999), false),
            (event(1, "", "", 999), false),
            (event(1, "u", "a", 1001), false),
            (event(2, "anybody", "", 1000), true),
            (event(2, "", "", 1001), false),
            (event(3, "u", "a", 1000), false),
            (parked(1, r#"{"type": "t", "user_id": "u"}"#), true),
            (parked(1, r#"{"type": "t", "anonymous_id": "a"}"#), true),
            (parked(1, r#"{"type": "t", "user_id": "other", "anonymous_id": "a"}"#), false),
            (parked(1, "no JSON"), false),
            (parked(2, "no JSON"), true),
        ] {
            assert_eq!(set.names(&row), named, "{row:?}");
        }
        assert!(Set::default().is_empty() && !set.is_empty());
        let numbered = Set::new(vec![tombstone(1, "7", &["7"])]);
        assert!(numbered.names(&parked(1, r#"{"user_id": 7}"#)) && !numbered.names(&parked(1, r#"{"user_id": 8}"#)));
    }
}

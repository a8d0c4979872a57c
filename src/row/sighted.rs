//! What is told of a row to a person who asks where an event is: whose it is, and for how long, and not what is in it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Row;
use crate::ids::TenantId;

/// A row that was seen somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighted {
    /// Owner.
    pub tenant_id: TenantId,
    /// When this engine accepted it, Unix milliseconds.
    pub received_at_ms: i64,
    /// Unix seconds from which it may be dropped.
    pub expires_at: u32,
    /// Known user; says whether it was erased.
    pub user_id: String,
    /// Unknown user.
    pub anonymous_id: String,
    /// Of a parked row: the plugin, and why it could not be used.
    pub parked: Option<(String, String)>,
}

impl Sighted {
    /// What is told of `row`.
    pub fn of(row: &Row<'_>) -> Self {
        match row {
            Row::Event(event) => Self {
                tenant_id: event.tenant_id,
                received_at_ms: event.received_at_ms,
                expires_at: event.expires_at,
                user_id: event.user_id.to_string(),
                anonymous_id: event.anonymous_id.to_string(),
                parked: None,
            },
            Row::Parked(parked) => {
                let (user_id, anonymous_id) = sent_ids(&parked.raw);
                Self {
                    tenant_id: parked.tenant_id,
                    received_at_ms: parked.received_at_ms,
                    expires_at: parked.expires_at,
                    user_id,
                    anonymous_id,
                    parked: Some((parked.plugin.to_string(), parked.reason.to_string())),
                }
            }
        }
    }
}

/// User and anonymous id of an event as it was sent.
pub fn sent_ids(raw: &str) -> (String, String) {
    let sent: Value = serde_json::from_str(raw).unwrap_or_default();
    let id = |name: &str| match sent.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    (id("user_id"), id("anonymous_id"))
}

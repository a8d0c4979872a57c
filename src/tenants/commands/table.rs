//! Tenants and keys as tables for people, and as JSON for programs.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    config::Tenant,
    table::aligned,
    tenants::key::{Key, Origin, Scope},
};

/// A line for each tenant.
pub(super) fn tenants(tenants: &[Tenant], as_json: bool) -> Result<String, serde_json::Error> {
    let now = Timestamp::now();
    let active = |tenant: &Tenant| tenant.keys.iter().filter(|key| key.state(now) == "active").count();
    if as_json {
        let tenant = |tenant: &Tenant| {
            json!({
                "id": tenant.id,
                "name": tenant.name,
                "state": state(tenant),
                "tier": tenant.tier.map(crate::config::Tier::as_str),
                "retention": tenant.retention.to_string(),
                "keys": active(tenant),
            })
        };
        return json_text(&tenants.iter().map(tenant).collect::<Vec<_>>());
    }
    let row = |tenant: &Tenant| {
        [
            tenant.id.to_string(),
            or_dash(&tenant.name),
            state(tenant).to_owned(),
            tenant.tier.map_or("-", crate::config::Tier::as_str).to_owned(),
            tenant.retention.to_string(),
            active(tenant).to_string(),
        ]
    };
    let rows: Vec<_> = tenants.iter().map(row).collect();
    Ok(aligned(["ID", "NAME", "STATE", "TIER", "RETENTION", "KEYS"], &rows, "no tenants\n"))
}

/// A line for each key.
pub(super) fn keys(keys: &[Key], as_json: bool) -> Result<String, serde_json::Error> {
    let now = Timestamp::now();
    if as_json {
        let key = |key: &Key| {
            json!({
                "sha256": key.sum.to_string(),
                "name": key.name,
                "state": key.state(now),
                "scopes": key.scopes.iter().collect::<Vec<_>>(),
                "origins": key.origins.iter().map(Origin::as_str).collect::<Vec<_>>(),
                "expires": key.expires,
                "revoked": key.revoked,
            })
        };
        return json_text(&keys.iter().map(key).collect::<Vec<_>>());
    }
    let moment = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let row = |key: &Key| {
        [
            key.sum.short(),
            or_dash(&key.name),
            key.state(now).to_owned(),
            key.scopes.iter().map(Scope::as_str).collect::<Vec<_>>().join(","),
            or_dash(&key.origins.iter().map(Origin::as_str).collect::<Vec<_>>().join(",")),
            moment(key.expires),
            moment(key.revoked),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    Ok(aligned(["SHA256", "NAME", "STATE", "SCOPES", "ORIGINS", "EXPIRES", "REVOKED"], &rows, "no keys\n"))
}

fn state(tenant: &Tenant) -> &'static str {
    if tenant.disabled { "disabled" } else { "active" }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn json_text(values: &[Value]) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(values).map(|text| text + "\n")
}

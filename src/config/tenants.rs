//! `[[tenants]]`: who may write, with which keys, how much, and for how long it is kept.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    compound::strings,
    error::{ConfigError, Origin, Problem},
    kinds::{Kind, RetentionText, Secret, Text, string},
    quota::{OwnKeys, TenantQuota},
    raw::{Raw, Setting},
    schema::{Limits, Quota},
    text::nearest,
    units::Retention,
};
use crate::ids::TenantId;

/// The keys of a tenant.
pub(super) const TENANT_KEYS: &[&str] = &[
    "id",
    "name",
    "api_keys",
    "api_key_sha256",
    "events_per_second",
    "events_burst",
    "bytes_per_second",
    "bytes_burst",
    "events_per_month",
    "monthly_hard_stop",
    "monthly_warn_ratio",
    "retention",
];

/// A tenant, resolved: what it does not say itself is taken from `[quota]` and `[retention]`.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// A name for people; may be empty.
    pub name: String,
    /// Keys in plain text, meant for development.
    pub api_keys: Vec<Secret>,
    /// SHA-256 of keys.
    pub api_key_sha256: Vec<[u8; 32]>,
    /// How much it may send.
    pub quota: TenantQuota,
    /// How long its events are kept.
    pub retention: Retention,
}

impl Tenant {
    /// SHA-256 of every key, the plain ones included: all that a request's key has to be compared with.
    pub fn key_hashes(&self) -> impl Iterator<Item = [u8; 32]> {
        let plain = self.api_keys.iter().map(|key| Sha256::digest(key.expose().as_bytes()).into());
        plain.chain(self.api_key_sha256.iter().copied())
    }
}

/// A `[[tenants]]` section as written.
pub(super) struct TenantEntry {
    pub(super) origin: Origin,
    pub(super) settings: BTreeMap<String, Setting>,
}

/// The value of a tenant's key as it may be printed. A hash is hidden as well: a short key could be guessed from it.
pub(super) fn shown(key: &str, raw: &Raw) -> Raw {
    if TENANT_KEYS.contains(&key) && !key.starts_with("api_key") { raw.clone() } else { raw.hidden() }
}

/// Resolves all tenants and adds what is wrong to `errors`.
pub(super) fn resolve(
    entries: &[TenantEntry],
    quota: &Quota,
    retention: Retention,
    limits: &Limits,
    errors: &mut Vec<ConfigError>,
) -> Vec<Tenant> {
    let mut seen: HashMap<TenantId, usize> = HashMap::new();
    let mut tenants = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let mut fields = Fields { index, entry, errors };
        fields.refuse_unknown();
        let tenant = fields.tenant(quota, retention, limits);
        if let Some(tenant) = tenant {
            if let Some(first) = seen.insert(tenant.id, index) {
                fields.wrong(
                    "id",
                    Problem::new(format!("the id of tenants[{first}] too"), "give every tenant its own id"),
                );
            }
            tenants.push(tenant);
        }
    }
    tenants
}

struct Fields<'a> {
    index: usize,
    entry: &'a TenantEntry,
    errors: &'a mut Vec<ConfigError>,
}

impl Fields<'_> {
    fn tenant(&mut self, quota: &Quota, retention: Retention, limits: &Limits) -> Option<Tenant> {
        let id = self.get::<TenantUuid>("id");
        if !self.entry.settings.contains_key("id") {
            self.wrong("id", Problem::new("missing", "give a UUID"));
        }
        let name = self.get::<Text>("name").unwrap_or_default();
        let errors_before_keys = self.errors.len();
        let api_keys = self.get::<PlainKeys>("api_keys").unwrap_or_default();
        let api_key_sha256 = self.get::<KeyHashes>("api_key_sha256").unwrap_or_default();
        if api_keys.is_empty() && api_key_sha256.is_empty() && self.errors.len() == errors_before_keys {
            self.wrong("api_key_sha256", Problem::new("the tenant has no key", "give api_key_sha256, or api_keys"));
        }
        let errors_before_quota = self.errors.len();
        let own = TenantQuota::of(quota).with(self);
        if self.errors.len() == errors_before_quota {
            for (burst, rate, problem) in own.small_bursts(limits) {
                // What it takes from [quota] is wrong there.
                if self.entry.settings.contains_key(burst) || self.entry.settings.contains_key(rate) {
                    self.wrong(burst, problem);
                }
            }
        }
        let retention = self.get::<RetentionText>("retention").unwrap_or(retention);
        Some(Tenant { id: id?, name, api_keys, api_key_sha256, quota: own, retention })
    }

    fn get<K: Kind>(&mut self, key: &'static str) -> Option<K::Value> {
        match K::parse(&self.entry.settings.get(key)?.raw) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(key, problem);
                None
            }
        }
    }

    fn wrong(&mut self, key: &str, problem: Problem) {
        let setting = self.entry.settings.get(key);
        self.errors.push(ConfigError {
            key: format!("tenants[{}].{key}", self.index),
            value: setting.map(|setting| shown(key, &setting.raw).to_string()),
            origin: Some(setting.map_or(&self.entry.origin, |setting| &setting.origin).clone()),
            problem,
        });
    }

    fn refuse_unknown(&mut self) {
        for key in self.entry.settings.keys().filter(|key| !TENANT_KEYS.contains(&key.as_str())) {
            let fix = nearest(key, TENANT_KEYS.iter().copied()).map_or_else(
                || format!("remove it; a tenant has {}", TENANT_KEYS.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            self.errors.push(ConfigError {
                key: format!("tenants[{}].{key}", self.index),
                value: None,
                origin: self.entry.settings.get(key).map(|setting| setting.origin.clone()),
                problem: Problem::new("unknown key", fix),
            });
        }
    }
}

impl OwnKeys for Fields<'_> {
    fn own<K: Kind>(&mut self, key: &'static str) -> Option<K::Value> {
        self.get::<K>(key)
    }
}

struct TenantUuid;

impl Kind for TenantUuid {
    type Value = TenantId;

    fn parse(raw: &Raw) -> Result<TenantId, Problem> {
        let wrong = |_| Problem::new("not a UUID", r#"give one, such as "550e8400-e29b-41d4-a716-446655440000""#);
        Uuid::try_parse(string(raw)?).map(TenantId).map_err(wrong)
    }
}

struct PlainKeys;

impl Kind for PlainKeys {
    type Value = Vec<Secret>;

    fn parse(raw: &Raw) -> Result<Vec<Secret>, Problem> {
        let keys = strings(raw)?;
        // What a header can carry without quoting; a key is never repeated in an error.
        if keys.iter().any(|key| !(1..=256).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Problem::new("a key that no header can carry", "give 1 to 256 visible ASCII characters"));
        }
        Ok(keys.into_iter().map(Secret::new).collect())
    }
}

struct KeyHashes;

impl Kind for KeyHashes {
    type Value = Vec<[u8; 32]>;

    fn parse(raw: &Raw) -> Result<Vec<[u8; 32]>, Problem> {
        let wrong = || {
            let fix = "give the 64 hexadecimal digits of the key's SHA-256 (printf %s KEY | sha256sum)";
            Problem::new("a hash that is not SHA-256", fix)
        };
        strings(raw)?.into_iter().map(|hex| sha256_of_hex(hex).ok_or_else(wrong)).collect()
    }
}

fn sha256_of_hex(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    if rest.is_empty() { bytes.try_into().ok() } else { None }
}

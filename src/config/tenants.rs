//! The tenants' file: who may send, with which keys, how much, and for how long it is kept.
//!
//! A file of its own, because it changes while the engine runs, by hand or by `ingestion-engine tenants` and `keys`, and
//! the configuration does not. What it may say is told by `config/tenants.toml`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    str::FromStr,
};

use jiff::Timestamp;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use uuid::Uuid;

use super::{
    compound::strings,
    error::{ConfigError, ConfigErrors, Origin, Problem},
    file::{Lines, parse_table},
    kinds::{Flag, Kind, RetentionText, Text, Tier, string},
    quota::{OwnKeys, TenantQuota},
    raw::Raw,
    schema::{Limits, Quota},
    text::nearest,
    units::Retention,
};
use crate::{
    ids::TenantId,
    tenants::{
        key::{self, Key, KeySum, Scope, Scopes},
        watch::Stamp,
    },
};

/// The keys of a `[[tenants]]` section.
pub(super) const TENANT_KEYS: &[&str] = &[
    "id",
    "name",
    "disabled",
    "tier",
    "retention",
    "events_per_second",
    "events_burst",
    "bytes_per_second",
    "bytes_burst",
    "events_per_month",
    "monthly_hard_stop",
    "monthly_warn_ratio",
    "keys",
];

/// The keys of a `[[tenants.keys]]` section.
pub(super) const KEY_KEYS: &[&str] = &["name", "sha256", "scopes", "origins", "expires", "revoked"];

impl Tier {
    /// How long events are kept; none: as the tenant says.
    const fn retention(self) -> Option<Retention> {
        match self {
            Self::Free => Some(Retention::Hours(24)),
            Self::Paid => Some(Retention::Hours(90 * 24)),
            Self::Enterprise => None,
        }
    }
}

/// A tenant, resolved: what it does not say itself is taken from `[quota]` and `[retention]`.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// A name for people; may be empty.
    pub name: String,
    /// Whether its keys are refused.
    pub disabled: bool,
    /// Its tier, if it has one.
    pub tier: Option<Tier>,
    /// Its keys.
    pub keys: Vec<Key>,
    /// How much it may send.
    pub quota: TenantQuota,
    /// How long its events are kept.
    pub retention: Retention,
}

/// What tenants are resolved with.
#[derive(Clone, Debug)]
pub struct TenantDefaults {
    /// Of tenants that have none of their own.
    pub quota: Quota,
    /// Of tenants that have neither tier nor retention.
    pub retention: Retention,
    /// What a burst must hold.
    pub limits: Limits,
}

/// What was found at the path of the tenants' file.
#[derive(Clone, Debug, Default)]
pub struct TenantsFile {
    /// The tenants.
    pub tenants: Vec<Tenant>,
    /// The state of the file that was read; none when there is none.
    pub stamp: Option<Stamp>,
}

impl TenantDefaults {
    /// Reads the file at `path`; one that does not exist holds no tenant.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(&self, path: &Path) -> Result<TenantsFile, ConfigErrors> {
        let unreadable = |error: std::io::Error| {
            let problem = Problem::new(format!("cannot be read, {error}"), "give a readable TOML file");
            let (key, value) = ("auth.tenants_file".to_owned(), Some(path.display().to_string()));
            ConfigErrors(vec![ConfigError { key, value, origin: None, problem }])
        };
        // Before it is read: what changes meanwhile is then noticed as a change.
        let Some(stamp) = Stamp::of(path).map_err(unreadable)? else { return Ok(TenantsFile::default()) };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Ok(TenantsFile { tenants: self.parse(&text, path)?, stamp: Some(stamp) })
    }

    /// Reads the text of a tenants' file that stands at `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, text: &str, path: &Path) -> Result<Vec<Tenant>, ConfigErrors> {
        let source = Source::new(text, path);
        let (table, mut errors) = parse_table(text, |offset| source.origin(offset));
        let mut tenants = Vec::new();
        if errors.is_empty() {
            let mut seen = Seen::default();
            let mut top = Fields::new(String::new(), table.get_ref(), 0, &source, &mut errors);
            top.refuse_unknown(&["tenants"], "the tenants' file");
            let sections = top.sections("tenants", "[[tenants]]");
            for (index, (table, at)) in sections.into_iter().enumerate() {
                let path = format!("tenants[{index}].");
                let mut fields = Fields::new(path, table, at, &source, &mut errors);
                tenants.extend(fields.tenant(self, &mut seen));
            }
        }
        if errors.is_empty() { Ok(tenants) } else { Err(ConfigErrors(errors)) }
    }
}

/// The file, as far as errors name it.
struct Source<'a> {
    path: &'a Path,
    lines: Lines,
}

impl<'a> Source<'a> {
    fn new(text: &str, path: &'a Path) -> Self {
        Self { path, lines: Lines::of(text) }
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.lines.number(offset) }
    }
}

/// What may stand in the file only once, and where it stood first.
#[derive(Default)]
struct Seen {
    ids: HashMap<TenantId, String>,
    sums: HashMap<KeySum, String>,
}

/// One section, and what is wrong with it.
struct Fields<'a, 'e> {
    /// `tenants[0].`
    path: String,
    values: BTreeMap<&'a str, (usize, &'a DeValue<'a>)>,
    at: usize,
    source: &'a Source<'a>,
    errors: &'e mut Vec<ConfigError>,
}

impl<'a, 'e> Fields<'a, 'e> {
    fn new(
        path: String,
        table: &'a DeTable<'a>,
        at: usize,
        source: &'a Source<'a>,
        errors: &'e mut Vec<ConfigError>,
    ) -> Self {
        let value = |(name, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let text: &std::borrow::Cow<'a, str> = name.get_ref();
            (text.as_ref(), (name.span().start, value.get_ref()))
        };
        Self { path, values: table.iter().map(value).collect(), at, source, errors }
    }

    fn tenant(&mut self, defaults: &TenantDefaults, seen: &mut Seen) -> Option<Tenant> {
        self.refuse_unknown(TENANT_KEYS, "a tenant");
        let id = self.required::<TenantUuid>("id", "give a UUID, or let `ingestion-engine tenants add` make one");
        if let Some(id) = id
            && let Some(first) = seen.ids.insert(id, self.path.clone())
        {
            self.wrong(
                "id",
                Problem::new(format!("the id of {} too", dotless(&first)), "give every tenant its own id"),
            );
        }
        let name = self.get::<Text>("name").unwrap_or_default();
        let disabled = self.get::<Flag>("disabled").unwrap_or(false);
        let quota = self.quota(defaults);
        let (tier, retention) = (self.get::<Tier>("tier"), self.get::<RetentionText>("retention"));
        let of_tier = tier.and_then(Tier::retention);
        if let (Some(tier), Some(_), Some(_)) = (tier, of_tier, retention) {
            let what = format!("the tier {:?} has its own", tier.as_str());
            self.wrong("retention", Problem::new(what, r#"remove it, or give tier = "enterprise""#));
        }
        let retention = match (of_tier.or(retention), tier) {
            (Some(retention), _) => retention,
            (None, Some(_)) => Retention::Keep,
            (None, None) => defaults.retention,
        };
        let mut keys = Vec::new();
        for (index, (table, at)) in self.sections("keys", "[[tenants.keys]]").into_iter().enumerate() {
            let path = format!("{}keys[{index}].", self.path);
            keys.extend(Fields::new(path, table, at, self.source, self.errors).key(seen));
        }
        Some(Tenant { id: id?, name, disabled, tier, keys, quota, retention })
    }

    fn quota(&mut self, defaults: &TenantDefaults) -> TenantQuota {
        let errors_before = self.errors.len();
        let own = TenantQuota::of(&defaults.quota).with(self);
        if self.errors.len() == errors_before {
            for (burst, rate, problem) in own.small_bursts(&defaults.limits) {
                // What it takes from [quota] is wrong there.
                if self.values.contains_key(burst) || self.values.contains_key(rate) {
                    self.wrong(burst, problem);
                }
            }
        }
        own
    }

    fn key(&mut self, seen: &mut Seen) -> Option<Key> {
        self.refuse_unknown(KEY_KEYS, "a key");
        let sum = self.required::<Sum>("sha256", "give one, or let `ingestion-engine keys create` make a key");
        if let Some(sum) = sum
            && let Some(first) = seen.sums.insert(sum, self.path.clone())
        {
            let what = format!("the key of {} too, so that it says of nobody whose it is", dotless(&first));
            self.wrong("sha256", Problem::new(what, "give every tenant keys of its own"));
        }
        let name = self.get::<Text>("name").unwrap_or_default().into();
        let scopes = self.get::<ScopeList>("scopes").unwrap_or_else(|| [Scope::Ingest].into_iter().collect());
        let origins = self.get::<OriginList>("origins").unwrap_or_default().into();
        let (expires, revoked) = (self.get::<Moment>("expires"), self.get::<Moment>("revoked"));
        Some(Key { sum: sum?, name, scopes, origins, expires, revoked })
    }

    fn required<K: Kind>(&mut self, key: &'static str, fix: &str) -> Option<K::Value> {
        if !self.values.contains_key(key) {
            self.wrong(key, Problem::new("missing", fix));
        }
        self.get::<K>(key)
    }

    fn get<K: Kind>(&mut self, key: &'static str) -> Option<K::Value> {
        match K::parse(&Raw::from_toml(self.values.get(key)?.1)) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(key, problem);
                None
            }
        }
    }

    /// The tables of the list `key`, each with where it begins.
    fn sections(&mut self, key: &'static str, written: &str) -> Vec<(&'a DeTable<'a>, usize)> {
        let Some((_, value)) = self.values.get(key).copied() else { return Vec::new() };
        let fix = format!("write one section {written} for each");
        let DeValue::Array(items) = value else {
            self.wrong(key, Problem::new("not a list of tables", fix));
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.get_ref() {
                DeValue::Table(table) => sections.push((table, item.span().start)),
                _ => self.wrong(&format!("{key}[{index}]"), Problem::new("not a table", fix.clone())),
            }
        }
        sections
    }

    fn wrong(&mut self, key: &str, problem: Problem) {
        let value = self.values.get(key);
        self.errors.push(ConfigError {
            key: format!("{}{key}", self.path),
            // The sum of a short key tells the key, and what stands under an unknown name may be one.
            value: value
                .filter(|_| key != "sha256" && [TENANT_KEYS, KEY_KEYS].concat().contains(&key))
                .filter(|(_, value)| !matches!(value, DeValue::Table(_) | DeValue::Array(_)))
                .map(|(_, value)| Raw::from_toml(value).to_string()),
            origin: Some(self.source.origin(value.map_or(self.at, |(at, _)| *at))),
            problem,
        });
    }

    fn refuse_unknown(&mut self, known: &[&'static str], whose: &str) {
        let unknown: Vec<&str> = self.values.keys().copied().filter(|key| !known.contains(key)).collect();
        for key in unknown {
            let fix = nearest(key, known.iter().copied()).map_or_else(
                || format!("remove it; {whose} has {}", known.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            self.wrong(key, Problem::new("unknown key", fix));
        }
    }
}

impl OwnKeys for Fields<'_, '_> {
    fn own<K: Kind>(&mut self, key: &'static str) -> Option<K::Value> {
        self.get::<K>(key)
    }
}

/// `tenants[0].` as people say it.
fn dotless(path: &str) -> &str {
    path.strip_suffix('.').unwrap_or(path)
}

struct TenantUuid;

impl Kind for TenantUuid {
    type Value = TenantId;

    fn parse(raw: &Raw) -> Result<TenantId, Problem> {
        let wrong = |_| Problem::new("not a UUID", r#"give one, such as "550e8400-e29b-41d4-a716-446655440000""#);
        Uuid::try_parse(string(raw)?).map(TenantId).map_err(wrong)
    }
}

struct Sum;

impl Kind for Sum {
    type Value = KeySum;

    fn parse(raw: &Raw) -> Result<KeySum, Problem> {
        KeySum::from_hex(string(raw)?).ok_or_else(|| {
            let what = match string(raw) {
                Ok(text) if text.starts_with(key::PREFIX) => "the key itself, which must stand in no file",
                _ => "not a SHA-256",
            };
            Problem::new(what, "give the 64 hexadecimal digits of the key's SHA-256 (printf %s KEY | sha256sum)")
        })
    }
}

struct ScopeList;

impl Kind for ScopeList {
    type Value = Scopes;

    fn parse(raw: &Raw) -> Result<Scopes, Problem> {
        let scopes = each::<Scope>(raw)?;
        if scopes.is_empty() {
            return Err(Problem::new("no scope", r#"give "ingest", "read", "admin" or several of them"#));
        }
        Ok(scopes.into_iter().collect())
    }
}

struct OriginList;

impl Kind for OriginList {
    type Value = Vec<key::Origin>;

    fn parse(raw: &Raw) -> Result<Vec<key::Origin>, Problem> {
        each(raw)
    }
}

/// The items of a list, each of which says "what; how to fix it" when it is wrong.
fn each<T: FromStr<Err = String>>(raw: &Raw) -> Result<Vec<T>, Problem> {
    let wrong = |error: String| {
        let (what, fix) = error.split_once("; ").unwrap_or((&error, "correct it"));
        Problem::new(what, fix)
    };
    strings(raw)?.into_iter().map(|item| item.parse().map_err(wrong)).collect()
}

/// A moment, as a date-time of TOML or in quotes.
struct Moment;

impl Kind for Moment {
    type Value = Timestamp;

    fn parse(raw: &Raw) -> Result<Timestamp, Problem> {
        let wrong = || Problem::new("not a moment", "give one with its offset, such as 2027-01-31T00:00:00Z");
        let (Raw::Text(text) | Raw::Other(text)) = raw else { return Err(wrong()) };
        text.parse().map_err(|_| wrong())
    }
}

//! Configuration: what the operator decides, resolved once at start into plain fields.
//!
//! # Layers
//! `config/default.toml` (compiled in, and the reference of all keys), then the file of `--config`, then the
//! environment. A later layer replaces single keys of an earlier one.
//!
//! # Operation
//! ```text
//! default.toml --parse--+
//! --config FILE --parse-+--> settings by key, as written, with their origin --kind of each key--> Config
//! environment ----------+                                                    --conflicts-->
//! ```
//! The schema (`schema.rs`) lists every key once, with its kind. From it follow the structs, the environment names
//! (`INGESTION_` and the path, joined by underscores) and the order of reports; a test compares it with the
//! reference. A kind (`kinds.rs`, `compound.rs`) is a type that takes a written value or says what is wrong with it.
//!
//! # Errors
//! All wrong keys are reported at once, because an operator who fixes them one restart at a time loses an evening. So a
//! wrong value is replaced by the default and reading goes on; a check between two keys is skipped where one of them is
//! wrong by itself. A misspelt key in the file is an error; a misspelt name in the environment is a warning, because
//! others (Kubernetes, a base image) set variables there too.
//!
//! # Secrets
//! A [`Secret`] has no printed form. Errors and `check-config` show values through their kind, which hides what must
//! not be seen; the value of an unknown key is never shown, as it may be a password under a misspelt name.
//!
//! # What it is not
//! It is not reloaded while running (the tenants' file is), it reads no environment by itself (the caller passes a map, so that tests need no
//! process-wide state), and no subsystem sees it: `serve` hands each of them the few values that it needs.

mod checks;
mod compound;
mod environment;
mod error;
mod file;
mod kinds;
mod plugins;
mod quota;
mod raw;
mod reader;
mod render;
mod schema;
mod tenants;
mod text;
mod units;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use compound::Roles;
pub use error::{ConfigError, ConfigErrors, Origin, Problem, Warning};
pub use kinds::{
    BrokerCompression, ClickHouseCompression, Durability, Isolation, LogFormat, Migrate, Secret, Tier, TopicFormat,
    WalCodec,
};
pub use quota::TenantQuota;
pub use schema::{
    Auth, ClickHouse, DeadLetters, Dedup, Embedded, Events, Limits, Log, Plugins, Process, Quota, Redpanda,
    RetentionDefaults, Server, Shutdown, Sink, Wal,
};
pub use tenants::{Tenant, TenantDefaults, TenantsFile};
pub use units::{ByteSize, Retention, Span};

use file::FileLayer;
use reader::Reader;

use crate::tenants::key::KeySum;

/// The key of the tenant in `config/tenants.toml`.
const DEVELOPMENT_KEY: &str = "secret";

/// What stands in print for a secret.
const HIDDEN: &str = "<hidden>";

/// The reference of all keys and their defaults.
pub const REFERENCE: &str = include_str!("../../config/default.toml");

/// The resolved configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys that belong to no section: roles and the data folder.
    pub process: Process,
    /// `[server]`
    pub server: Server,
    /// `[limits]`
    pub limits: Limits,
    /// `[events]`
    pub events: Events,
    /// `[auth]`
    pub auth: Auth,
    /// `[quota]`: of tenants that have none of their own; a [`Tenant`] is resolved already.
    pub quota: Quota,
    /// `[retention]`: of tenants that have none of their own; a [`Tenant`] is resolved already.
    pub retention: RetentionDefaults,
    /// `[plugins]`
    pub plugins: Plugins,
    /// `[wal]`
    pub wal: Wal,
    /// `[dedup]`
    pub dedup: Dedup,
    /// `[dead_letters]`
    pub dead_letters: DeadLetters,
    /// `[redpanda]`
    pub redpanda: Redpanda,
    /// `[clickhouse]`
    pub clickhouse: ClickHouse,
    /// `[sink]`
    pub sink: Sink,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: Log,
    /// The tenants' file, as it was at start.
    pub tenants: TenantsFile,
    effective: String,
}

impl Config {
    /// Reads the layers: the defaults, `file` if there is one, and `environment`.
    ///
    /// # Errors
    /// Every key that is wrong, in one error.
    pub fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        let FileLayer { settings: defaults, mut errors, .. } = file::parse(REFERENCE, |_| Origin::Default);
        let file = file.map_or_else(FileLayer::default, file::read);
        let environment = environment::read(environment);
        errors.extend(file.errors);
        errors.extend(environment.errors);

        let mut given = file.settings;
        given.extend(environment.settings);
        let mut reader = Reader::new(&defaults, &given);
        let config = Self::resolve(&mut reader, file.unreadable);
        errors.append(&mut reader.errors);
        let config = config.map(|config| match config.tenant_defaults().read(&config.tenants_file()) {
            Ok(tenants) => Self { tenants, ..config },
            Err(ConfigErrors(wrong)) => {
                errors.extend(wrong);
                config
            }
        });
        match config {
            Some(mut config) if errors.is_empty() => {
                let (count, file) = (config.tenants.tenants.len(), config.tenants_file());
                let rendered = render::render(&defaults, &given);
                config.effective = format!("{rendered}\n# Tenants in {}: {count}\n", file.display());
                let mut warnings = environment.warnings;
                warnings.extend(checks::warnings(&config));
                Ok((config, warnings))
            }
            _ => Err(ConfigErrors(errors)),
        }
    }

    fn resolve(reader: &mut Reader<'_>, incomplete: bool) -> Option<Self> {
        let process = Process::read(reader);
        let server = Server::read(reader);
        let limits = Limits::read(reader);
        let events = Events::read(reader);
        let auth = Auth::read(reader);
        let quota = Quota::read(reader);
        let retention = RetentionDefaults::read(reader);
        let plugins = Plugins::read(reader);
        let wal = Wal::read(reader);
        let dedup = Dedup::read(reader);
        let dead_letters = DeadLetters::read(reader);
        let redpanda = Redpanda::read(reader);
        let clickhouse = ClickHouse::read(reader);
        let sink = Sink::read(reader);
        let shutdown = Shutdown::read(reader);
        let log = Log::read(reader);
        let config = Self {
            process: process?,
            server: server?,
            limits: limits?,
            events: events?,
            auth: auth?,
            quota: quota?,
            retention: retention?,
            plugins: plugins?,
            wal: wal?,
            dedup: dedup?,
            dead_letters: dead_letters?,
            redpanda: redpanda?,
            clickhouse: clickhouse?,
            sink: sink?,
            shutdown: shutdown?,
            log: log?,
            tenants: TenantsFile::default(),
            effective: String::new(),
        };
        // A file that cannot be read leaves keys at values that nobody chose: conflicts between them would be noise.
        if !incomplete {
            checks::conflicts(&config, reader);
        }
        Some(config)
    }

    /// Folder of the embedded ClickHouse engine.
    pub fn clickhouse_path(&self) -> PathBuf {
        self.clickhouse.embedded.path.clone().unwrap_or_else(|| self.process.data_dir.join("clickhouse"))
    }

    /// Folder that plugins are dropped into.
    pub fn plugins_dir(&self) -> PathBuf {
        self.plugins.dir.clone().unwrap_or_else(|| self.process.data_dir.join("plugins"))
    }

    /// The effective configuration as TOML, secrets hidden, with the source of every value that is not the default.
    pub fn effective(&self) -> &str {
        &self.effective
    }

    /// File of the tenants.
    pub fn tenants_file(&self) -> PathBuf {
        self.auth.tenants_file.clone().unwrap_or_else(|| self.process.data_dir.join("tenants.toml"))
    }

    /// What the tenants of the file are resolved with.
    pub fn tenant_defaults(&self) -> TenantDefaults {
        TenantDefaults { quota: self.quota.clone(), retention: self.retention.default, limits: self.limits.clone() }
    }

    /// What to warn of at start when the key of the development's tenant, which everybody knows, is taken.
    pub fn development_warning(&self) -> Option<String> {
        let known = KeySum::of(DEVELOPMENT_KEY);
        let tenant = self.tenants.tenants.iter().find(|tenant| tenant.keys.iter().any(|key| key.sum == known))?;
        Some(format!(
            "tenant {} takes the key {DEVELOPMENT_KEY:?}, which everybody knows: make one (`ingestion-engine keys create`) \
             where others can reach the engine",
            tenant.id
        ))
    }
}

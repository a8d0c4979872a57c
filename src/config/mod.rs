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
//! It is not reloaded while running, it reads no environment by itself (the caller passes a map, so that tests need no
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
    BrokerCompression, ClickHouseCompression, Durability, Isolation, LogFormat, Migrate, Secret, WalCodec,
};
pub use quota::TenantQuota;
pub use schema::{
    ClickHouse, Embedded, Events, Limits, Log, Plugins, Process, Quota, Redpanda, RetentionDefaults, Server, Shutdown,
    Sink, Wal,
};
pub use tenants::Tenant;
pub use units::{ByteSize, Retention, Span};

use file::FileLayer;
use reader::Reader;

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
    /// `[quota]`: of tenants that have none of their own; a [`Tenant`] is resolved already.
    pub quota: Quota,
    /// `[retention]`: of tenants that have none of their own; a [`Tenant`] is resolved already.
    pub retention: RetentionDefaults,
    /// `[plugins]`
    pub plugins: Plugins,
    /// `[wal]`
    pub wal: Wal,
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
    /// `[[tenants]]`
    pub tenants: Vec<Tenant>,
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
        let config = Self::resolve(&mut reader, &file.tenants, file.unreadable);
        errors.append(&mut reader.errors);
        match config {
            Some(mut config) if errors.is_empty() => {
                config.effective = render::render(&defaults, &given, &file.tenants);
                let mut warnings = environment.warnings;
                warnings.extend(checks::warnings(&config));
                Ok((config, warnings))
            }
            _ => Err(ConfigErrors(errors)),
        }
    }

    fn resolve(reader: &mut Reader<'_>, tenants: &[tenants::TenantEntry], incomplete: bool) -> Option<Self> {
        let process = Process::read(reader);
        let server = Server::read(reader);
        let limits = Limits::read(reader);
        let events = Events::read(reader);
        let quota = Quota::read(reader);
        let retention = RetentionDefaults::read(reader);
        let plugins = Plugins::read(reader);
        let wal = Wal::read(reader);
        let redpanda = Redpanda::read(reader);
        let clickhouse = ClickHouse::read(reader);
        let sink = Sink::read(reader);
        let shutdown = Shutdown::read(reader);
        let log = Log::read(reader);
        let mut config = Self {
            process: process?,
            server: server?,
            limits: limits?,
            events: events?,
            quota: quota?,
            retention: retention?,
            plugins: plugins?,
            wal: wal?,
            redpanda: redpanda?,
            clickhouse: clickhouse?,
            sink: sink?,
            shutdown: shutdown?,
            log: log?,
            tenants: Vec::new(),
            effective: String::new(),
        };
        // A file that cannot be read leaves keys at values that nobody chose: conflicts between them would be noise.
        if !incomplete {
            checks::conflicts(&config, reader);
        }
        config.tenants =
            tenants::resolve(tenants, &config.quota, config.retention.default, &config.limits, &mut reader.errors);
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

    /// What to warn of at start when tenants have keys in plain text; absent when none has.
    pub fn development_warning(&self) -> Option<String> {
        let plain: Vec<String> = self
            .tenants
            .iter()
            .filter(|tenant| !tenant.api_keys.is_empty())
            .map(|tenant| tenant.id.to_string())
            .collect();
        let named = plain.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let more = if plain.len() > 3 { format!(" and {} more", plain.len() - 3) } else { String::new() };
        (!plain.is_empty()).then(|| {
            format!(
                "API keys in plain text are meant for development (tenant {named}{more}): \
                 use api_key_sha256 where others can reach the engine"
            )
        })
    }
}

//! The connection of commands that work on the tables: to the configured server, or to the embedded engine, which may be
//! running under an engine that serves, or not at all.
//!
//! The embedded engine is one process per folder. The lock of its folder says whether one runs; if so it is asked on the
//! port that it wrote there, else it is started for the time of the command.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};

use super::{settings, storage};
use crate::{
    clickhouse::{
        Client, Migrator, Mode, Template,
        embedded::{PORT_FILE, Supervisor},
    },
    config::Config,
    folder_lock::{FolderLock, LockError},
    health::Health,
    metrics::Metrics,
};

/// How long an embedded engine that has its folder may take until it answers: one that has just been started may have
/// many parts to load.
const OPENING: Duration = Duration::from_mins(2);

/// How long one that does not answer any more may hold its folder.
const ENDING: Duration = Duration::from_secs(15);

/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Keeps commands that rewrite what is stored apart: a copy that one makes must not bring back what another has erased.
/// It knows of commands with the same data folder only.
///
/// # Errors
/// Another one is at work.
pub fn lock(config: &Config) -> Result<FolderLock> {
    let folder = config.process.data_dir.join("maintenance");
    let locked = FolderLock::acquire(&folder, Duration::ZERO);
    locked.context("`retention apply`, `erase` and `tenants purge` run one at a time")
}

/// A connection to ClickHouse whose tables are up to date, for the time of one command.
pub struct Maintenance {
    client: Client,
    template: Template,
    child: Option<Supervisor>,
}

/// Connects to the ClickHouse of `config`, and brings its tables up to date (or checks that they are, as
/// `clickhouse.migrate` says). Tables of plugins are left as they are.
///
/// # Errors
/// ClickHouse cannot be reached or started, or its tables are not as this version needs them.
pub async fn connect(config: &Config) -> Result<Maintenance> {
    let connection = reach(config).await?;
    let migrator = Migrator::new(connection.client.clone(), connection.template.clone());
    let ready = match storage::mode(config) {
        Mode::Auto => migrator.apply().await.map(drop),
        Mode::Verify => migrator.verify().await,
    };
    match ready.context("bringing ClickHouse's tables up to date") {
        Ok(()) => Ok(connection),
        Err(error) => {
            connection.stop().await;
            Err(error)
        }
    }
}

/// Connects to the ClickHouse of `config`, whose tables must be as this version needs them: nothing is brought up to date.
///
/// # Errors
/// ClickHouse cannot be reached or started, or its tables are not so.
pub async fn reach_as_it_is(config: &Config) -> Result<Maintenance> {
    let connection = reach(config).await?;
    match Migrator::new(connection.client.clone(), connection.template.clone()).verify().await {
        Ok(()) => Ok(connection),
        Err(error) => {
            connection.stop().await;
            Err(error).context("ClickHouse's tables are not as this version needs them")
        }
    }
}

/// Connects to the ClickHouse of `config`, whatever tables it has.
///
/// # Errors
/// ClickHouse cannot be reached or started.
pub async fn reach(config: &Config) -> Result<Maintenance> {
    let is_embedded = config.clickhouse.url.is_none();
    let deadline = tokio::time::Instant::now() + ENDING;
    loop {
        let (url, child) = if is_embedded { embedded(config).await? } else { (None, None) };
        let ready = async {
            let client =
                Client::new(&settings::clickhouse(config, url)).context("setting up the client of ClickHouse")?;
            client.ping().await.context("ClickHouse cannot be reached")?;
            Ok(client)
        };
        match (ready.await, child) {
            (Ok(client), child) => {
                return Ok(Maintenance { client, template: settings::template(config, is_embedded), child });
            }
            // It holds its folder and does not answer: the engine above it was killed, and it is about to let go.
            (Err(_), None) if is_embedded && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            (Err(error), child) => {
                if let Some(child) = child {
                    child.stop().await;
                }
                return Err(error);
            }
        }
    }
}

impl Maintenance {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the statements that make tables differ by.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Ends the embedded engine, if this command started it.
    pub async fn stop(self) {
        if let Some(child) = self.child {
            child.stop().await;
        }
    }
}

/// The address of the embedded engine, and the engine itself when it had to be started.
async fn embedded(config: &Config) -> Result<(Option<String>, Option<Supervisor>)> {
    let path = config.clickhouse_path();
    let deadline = tokio::time::Instant::now() + OPENING;
    loop {
        match FolderLock::acquire(&path, Duration::ZERO) {
            // Given back at once: it is the engine that takes it.
            Ok(lock) => drop(lock),
            Err(held @ LockError::Held { .. }) => match port(&path)? {
                Some(port) => return Ok((Some(format!("http://127.0.0.1:{port}")), None)),
                None if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                None => return Err(held).context("the embedded ClickHouse does not say its port"),
            },
            Err(error) => return Err(error.into()),
        }
        let health = Health::default().component("clickhouse");
        // Any port will do: nobody else is told of it.
        let child = storage::start_child(config, 0, health, Arc::new(Metrics::new())).await?;
        return Ok((Some(child.url()), Some(child)));
    }
}

/// The port that the engine in `path` wrote; None before it did.
fn port(path: &Path) -> Result<Option<u16>> {
    let file = path.join(PORT_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(port) => Ok(Some(port)),
            Err(_) => bail!("{} holds no port", file.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

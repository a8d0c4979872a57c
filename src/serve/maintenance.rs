//! ClickHouse for commands that change stored rows from a process of their own, beside a running engine or without one.
//!
//! ```text
//! clickhouse.url is set    the client of that server
//! an engine runs           its child: the folder's lock is held, and the file `http_port` in it says where it is
//! none runs                a child of our own, ended by `stop`
//! ```
//!
//! A command that found another command's child loses it when that one is done, and says so. Commands that must not run
//! at once hold a lock of their own.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{settings, storage};
use crate::{
    clickhouse::{
        Client, Template,
        embedded::{self, Supervisor},
    },
    config::Config,
    folder_lock::{FolderLock, LockError},
    health::Health,
    metrics::Metrics,
};

/// How long an engine that holds the folder may take until its child answers: it may be starting.
const STARTING: Duration = Duration::from_mins(1);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// A ClickHouse to work on.
pub struct Maintenance {
    client: Client,
    template: Template,
    child: Option<Supervisor>,
}

impl Maintenance {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the tables were made with.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Ends the embedded engine if it was started for this.
    pub async fn stop(self) {
        if let Some(child) = self.child {
            child.stop().await;
        }
    }
}

/// Finds ClickHouse, or starts the embedded engine where none is configured and none runs.
///
/// # Errors
/// It does not answer, or cannot be started.
pub async fn connect(config: &Config) -> Result<Maintenance> {
    let template = settings::template(config, config.clickhouse.url.is_none());
    if config.clickhouse.url.is_some() {
        let client = storage::remote_client(config)?;
        client.ping().await.context("reaching ClickHouse")?;
        return Ok(Maintenance { client, template, child: None });
    }
    let path = config.clickhouse_path();
    let deadline = Instant::now() + STARTING;
    loop {
        // Whoever has the lock has the tables. It is let go at once: the child takes it itself, and has patience.
        match FolderLock::acquire(&path, Duration::ZERO).map(drop) {
            Ok(()) => {
                tracing::debug!(path = %path.display(), "no engine runs; opening the embedded ClickHouse");
                let health = Health::default().component("clickhouse");
                let child = storage::start_embedded(config, health, Arc::new(Metrics::new())).await?;
                let client = embedded_client(config, child.as_ref().map(Supervisor::url))?;
                return Ok(Maintenance { client, template, child });
            }
            Err(LockError::Held { .. }) if Instant::now() < deadline => {}
            Err(LockError::Held { holder, .. }) => bail!(
                "the embedded ClickHouse in {} is in use ({holder}) and does not answer; try again when the engine is up",
                path.display()
            ),
            Err(error) => return Err(error).context("looking for a running engine"),
        }
        if let Some(client) = running(config, &path).await? {
            return Ok(Maintenance { client, template, child: None });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The client of the child that holds the folder, once that answers.
async fn running(config: &Config, path: &Path) -> Result<Option<Client>> {
    let Some(port) = embedded::port_of(path) else { return Ok(None) };
    let client = embedded_client(config, Some(format!("http://127.0.0.1:{port}")))?;
    Ok(client.ping().await.is_ok().then_some(client))
}

fn embedded_client(config: &Config, url: Option<String>) -> Result<Client> {
    Client::new(&settings::clickhouse(config, url)).context("setting up the client of ClickHouse")
}

//! The ledger of a node that runs, and of one that is stopped.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{Common, maintenance, settings, storage};
use crate::{
    config::Config,
    control::{self, ClientError, Request},
    health::Health,
    ledger::{Connect, Ledger, Report, Source},
    metrics::Metrics,
    wal::Wal,
};

/// What measures the ledger of this node.
pub(super) fn of_node(common: &Common, wal: &Wal) -> Arc<dyn Source> {
    let (config, clickhouse) = (Arc::clone(&common.config), Arc::clone(&common.clickhouse));
    let connect: Connect = Arc::new(move || match clickhouse.get() {
        Some(reached) => Ok(reached.client.clone()),
        None if config.clickhouse.url.is_some() => {
            storage::remote_client(&config).map_err(|error| format!("{error:#}"))
        }
        None => Err("ClickHouse has not been reached yet".to_owned()),
    });
    Arc::new(made(&common.config, wal, connect))
}

fn made(config: &Config, wal: &Wal, connect: Connect) -> Ledger {
    let ledger =
        Ledger::new(wal.clone(), connect, config.dedup.window).with_letters(settings::dead_letters_folder(config));
    if config.redpanda.brokers.is_empty() { ledger } else { ledger.with_broker(settings::broker(config)) }
}

/// The ledger of the node with the data folder of `config`: the engine that runs there is asked, and if none does its log is
/// opened for as long as it takes.
///
/// # Errors
/// A part cannot be counted: then nothing is said.
pub async fn ledger(config: &Config) -> Result<Report> {
    let data_dir = config.process.data_dir.clone();
    let asked = tokio::task::spawn_blocking(move || control::ask(&data_dir, &Request::Ledger, |_| {})).await?;
    match asked {
        Ok(report) => return Ok(report),
        // Should one run without a socket, it has the log.
        Err(ClientError::NotRunning { .. } | ClientError::Control(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if !config.process.roles.api {
        bail!("this node takes no events in (it has not the role \"api\"), so it has no ledger");
    }
    let settings = settings::wal(config);
    let (health, metrics) = (Health::default().component("wal"), Arc::new(Metrics::new()));
    let opened = tokio::task::spawn_blocking(move || Wal::open(settings, health, metrics)).await?;
    // Nobody reads it: what is in it stays.
    let (wal, _reader) = opened.context("opening the write-ahead log")?;
    let connection = maintenance::connect(config).await?;
    let client = connection.client().clone();
    let ledger = made(config, &wal, Arc::new(move || Ok(client.clone())));
    let report = ledger.measure().await;
    drop(ledger);
    connection.stop().await;
    wal.close().await.context("closing the write-ahead log")?;
    Ok(report?)
}

//! The ledger of a node that runs, and of one that is stopped.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::{Common, maintenance, settings, storage};
use crate::{
    config::Config,
    control::{self, ClientError, Request},
    error_chain::chain,
    ids::TenantId,
    ledger::{Connect, Ledger, Log, Report, Source},
    wal::{Holdings, Wal},
};

/// What measures the ledger of this node.
pub(super) fn of_node(common: &Common, wal: &Wal) -> Arc<dyn Source> {
    let (config, clickhouse) = (Arc::clone(&common.config), Arc::clone(&common.clickhouse));
    let connect: Connect = Arc::new(move || match clickhouse.get() {
        Some(reached) => Ok(reached.client.clone()),
        None if config.clickhouse.url.is_some() => storage::remote_client(&config).map_err(|error| chain(&*error)),
        None => Err("ClickHouse has not been reached yet".to_owned()),
    });
    Arc::new(made(&common.config, Log::Open(wal.clone()), connect))
}

fn made(config: &Config, log: Log, connect: Connect) -> Ledger {
    let ledger = Ledger::new(log, connect, config.dedup.window).with_letters(settings::dead_letters_folder(config));
    if config.redpanda.brokers.is_empty() { ledger } else { ledger.with_broker(settings::broker(config)) }
}

/// The ledger of the node with the data folder of `config`: the engine that runs there is asked, and if none does its log is
/// read. Nothing is changed: what must be mended or migrated first is an error.
///
/// # Errors
/// A part cannot be counted: then nothing is said.
pub async fn ledger(config: &Config) -> Result<Report> {
    let data_dir = config.process.data_dir.clone();
    let asked = tokio::task::spawn_blocking(move || control::ask(&data_dir, &Request::Ledger, |_| {})).await?;
    let mut report: Report = match asked {
        Ok(report) => report,
        // Should one run without a socket, it has the log.
        Err(ClientError::NotRunning { .. } | ClientError::Control(_)) => of_stopped(config).await?,
        Err(error) => return Err(error.into()),
    };
    let tenants = &config.tenants.tenants;
    let name = |id: TenantId| tenants.iter().find(|tenant| tenant.id == id).map(|tenant| tenant.name.clone());
    report.name(name);
    Ok(report)
}

async fn of_stopped(config: &Config) -> Result<Report> {
    if !config.process.roles.api {
        bail!("this node takes no events in (it has not the role \"api\"), so it has no ledger");
    }
    let settings = settings::wal(config);
    let folder = settings.dir.display().to_string();
    // The log is free again before ClickHouse is asked: what moves on from here lies behind the cut.
    let read = tokio::task::spawn_blocking(move || Wal::holdings_in(&settings)).await?;
    let Some(holdings) = read? else { bail!("there is no write-ahead log in {folder}: no engine has run here yet") };
    say_unreadable(&holdings);
    if config.clickhouse.url.is_none() && !config.clickhouse_path().exists() {
        bail!("nothing was ever stored in {}: start the engine first", config.clickhouse_path().display());
    }
    let connection = maintenance::reach_as_it_is(config).await?;
    let client = connection.client().clone();
    let ledger = made(config, Log::Read(Arc::new(holdings)), Arc::new(move || Ok(client.clone())));
    let report = ledger.measure().await;
    drop(ledger);
    connection.stop().await;
    Ok(report?)
}

/// Damage is mended by the engine; the ledger says what is missing of it.
fn say_unreadable(holdings: &Holdings) {
    if holdings.unreadable.is_empty() {
        return;
    }
    let named = holdings.unreadable.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    eprintln!(
        "The write-ahead log is damaged: records {} cannot be read. It was left as it is: the engine saves what can be saved when \
         it starts.",
        named.collect::<Vec<_>>().join(", ")
    );
}

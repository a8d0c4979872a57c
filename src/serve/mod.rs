//! One node: which parts run, in which order they start and stop.
//!
//! ```text
//! start   log --> plugins --> API and admin ports --> ClickHouse (embedded or remote) --> tables --> source + sink
//!                                                \--> relay (with brokers)                       \--> those of parked events, when
//!                                                                                        their topic comes into being
//! stop    API (answer what is in flight) --> plugins --> relay, sink (drain within their budgets) --> log --> embedded ClickHouse
//! ```
//!
//! - The API comes before everything that is behind the log: events are accepted while the broker or ClickHouse is away,
//!   also at start.
//! - A part that fails for good (a damaged configuration of ClickHouse, a poisoned log) stops the node with an error;
//!   an outage never does.
//! - Nothing is shared between nodes but the broker and ClickHouse.

mod dead_letters;
mod drain;
mod front;
mod ledger;
pub mod maintenance;
mod plugins;
mod route;
mod settings;
mod storage;
mod trace;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use dead_letters::dead_letters;
pub use ledger::ledger;
pub use maintenance::{Maintenance, connect};
pub use storage::migrate;
pub use trace::trace;

use crate::{
    api::Api,
    config::Config,
    dead_letters::DeadLetters,
    erasure::commands,
    health::Health,
    metrics::Metrics,
    plugins::tables::Tables,
    relay::Relay,
    wal::{self, Wal},
};

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Take events until told to stop.
    Serve,
    /// Take none, and end when the log is empty.
    Drain,
}

/// What every part of a node is given.
#[derive(Clone)]
struct Common {
    config: Arc<Config>,
    health: Health,
    metrics: Arc<Metrics>,
    dead_letters: DeadLetters,
    tables: Tables,
    clickhouse: plugins::ClickHouse,
    /// Set once the ports are open.
    front: Arc<OnceLock<Api>>,
}

/// The node's log and the one reader of it.
struct OpenLog {
    wal: Wal,
    reader: wal::Reader,
}

/// Runs a node until `stop`, a failure, or, when draining, until its log is empty.
///
/// # Errors
/// What stopped it: a port that is taken, a folder that another engine holds, a poisoned log, a failure for good of a
/// part. Everything that was acknowledged is on disk in any case.
pub async fn run(config: Config, purpose: Purpose, stop: CancellationToken) -> Result<()> {
    let metrics = Arc::new(Metrics::new());
    let dead_letters =
        DeadLetters::new(settings::dead_letters_folder(&config), settings::dead_letters(&config), Arc::clone(&metrics));
    let tables = plugins::tables(&config)?;
    let (health, clickhouse, front) = (Health::default(), plugins::ClickHouse::default(), Arc::default());
    let common = Common { config: Arc::new(config), health, metrics, dead_letters, tables, clickhouse, front };
    let config = Arc::clone(&common.config);

    let log = if config.process.roles.api { Some(open_log_on_its_way(&common).await?) } else { None };
    let wal = log.as_ref().map(|log| log.wal.clone());
    // Plugins come before the API: an event of a type that one adds must not be refused because the engine just started.
    let ledger = wal.as_ref().map(|wal| ledger::of_node(&common, wal));
    let running = match purpose {
        Purpose::Serve => Some(plugins::Running::start(&common, wal.as_ref(), ledger.clone()).await?),
        Purpose::Drain => None,
    };
    let stores = stores(&config, purpose);
    announce(&common, stores);
    let front = match &running {
        Some(running) => Some(front::Front::start(&common, wal.as_ref(), running.plugins.clone(), ledger).await?),
        None => None,
    };
    let back = Back::start(&common, log, stores);

    let ended = wait(&common, purpose, wal.as_ref(), &back, &stop).await;
    tracing::info!(reason = ended.as_ref().map_or_else(ToString::to_string, Clone::clone), "stopping");

    if let Some(front) = front {
        front.stop().await;
    }
    if let Some(running) = running {
        running.stop().await;
    }
    let finished = back.stop(&common, wal.as_ref()).await;
    if let Some(wal) = wal {
        let left = wal.stats().records;
        wal.close().await.context("closing the write-ahead log")?;
        tracing::info!(records = left, "write-ahead log closed; what it holds is delivered at the next start");
        if purpose == Purpose::Drain && left > 0 && ended.is_ok() {
            return Err(anyhow!("stopped before the write-ahead log was empty: {left} records are left"));
        }
    }
    ended.map(drop)?;
    finished
}

/// Whether the node has a sink. Not while its log drains into a broker: a member that joins the group of the sinks for a moment
/// makes all of them rebalance twice, and stores nothing of it.
fn stores(config: &Config, purpose: Purpose) -> bool {
    config.process.roles.sink && (purpose == Purpose::Serve || config.redpanda.brokers.is_empty())
}

/// Registers what is started behind the ports, before they are open: `/health` is not "up" while a part is still to come.
fn announce(common: &Common, sink: bool) {
    let config = &common.config;
    let relay = config.process.roles.api && !config.redpanda.brokers.is_empty();
    let names = [("clickhouse", sink), ("erasures", sink), ("dead_letters", sink), ("sink", sink), ("relay", relay)];
    for (name, _) in names.iter().filter(|(_, runs)| *runs) {
        drop(common.health.component(name));
    }
}

/// Erases what `request` names from the tables of `config`'s ClickHouse, and keeps it from coming back.
///
/// # Errors
/// ClickHouse cannot be reached or refused; the command may be started again.
pub async fn erase(config: &Config, request: commands::Request) -> Result<commands::Report> {
    let _one_at_a_time = maintenance::lock(config)?;
    let connection = maintenance::connect(config).await?;
    let settings = settings::erasure(config);
    let report = commands::run(connection.client(), connection.template(), &settings, request).await;
    connection.stop().await;
    report
}

/// Opens the log, if its events may go where the configuration says.
async fn open_log_on_its_way(common: &Common) -> Result<OpenLog> {
    let log = open_log(common).await?;
    let kept = route::keep(&common.config, &log.wal).await;
    if matches!(kept, Ok(route::Kept::GoOn)) {
        return Ok(log);
    }
    log.wal.close().await.context("closing the write-ahead log")?;
    kept?;
    tracing::info!("events are stored in another ClickHouse from now on: the ledger begins anew");
    wal::Wal::forget_books(&settings::wal(&common.config))
        .context("beginning the books of the write-ahead log anew")?;
    let log = open_log(common).await?;
    // Last, so that a start that was cut off does it all again.
    route::remember(&common.config, &log.wal).await?;
    Ok(log)
}

async fn open_log(common: &Common) -> Result<OpenLog> {
    let settings = settings::wal(&common.config);
    let folder = settings.dir.display().to_string();
    let (health, metrics) = (common.health.component("wal"), Arc::clone(&common.metrics));
    let opened = tokio::task::spawn_blocking(move || wal::Wal::open(settings, health, metrics)).await?;
    let (wal, reader) = opened.map_err(|error| {
        let advice = if error.is_full() {
            ": its disk is full; free some space there (64 MiB are enough to begin with) and start the engine again, all that was \
             acknowledged is in the log"
        } else {
            ""
        };
        anyhow::Error::new(error).context(format!("opening the write-ahead log in {folder}{advice}"))
    })?;
    Ok(OpenLog { wal, reader })
}

/// Why a node stops; an error when it should not have to.
async fn wait(
    common: &Common,
    purpose: Purpose,
    wal: Option<&Wal>,
    back: &Back,
    stop: &CancellationToken,
) -> Result<String> {
    let poisoned = async {
        match wal {
            Some(wal) => wal.poisoned().cancelled_owned().await,
            None => std::future::pending().await,
        }
    };
    let emptied = async {
        match (purpose, wal) {
            (Purpose::Drain, Some(wal)) => drain::emptied(wal).await,
            // Without a log of its own there is nothing to drain.
            (Purpose::Drain, None) => {}
            (Purpose::Serve, _) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => Ok("told to".to_owned()),
        () = emptied => Ok("the write-ahead log is empty".to_owned()),
        () = back.failed.cancelled() => Ok("a part of the node failed".to_owned()),
        () = poisoned => {
            common.metrics.error("wal");
            Err(anyhow!("the write-ahead log is poisoned; nothing more is acknowledged, start the engine again"))
        }
    }
}

/// Everything behind the log.
struct Back {
    relay: Option<JoinHandle<Result<()>>>,
    storage: Option<JoinHandle<Result<()>>>,
    /// Of a node that stores nothing itself: what delivers its dead letters.
    letters: Option<JoinHandle<()>>,
    relay_stop: CancellationToken,
    storage_stop: CancellationToken,
    /// Set when a part has given up for good.
    failed: CancellationToken,
}

impl Back {
    fn start(common: &Common, log: Option<OpenLog>, stores: bool) -> Self {
        let (relay_stop, storage_stop, failed) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let brokers = !common.config.redpanda.brokers.is_empty();
        let (for_relay, for_sink) = if brokers { (log, None) } else { (None, log) };

        let relay = for_relay.map(|OpenLog { wal, reader }| {
            let relay = Relay::new(
                settings::broker(&common.config),
                reader,
                wal,
                common.dead_letters.clone(),
                common.health.component("relay"),
                Arc::clone(&common.metrics),
            );
            let (metrics, stop, failed) = (Arc::clone(&common.metrics), relay_stop.clone(), failed.clone());
            tokio::spawn(async move {
                let result = relay.run(stop).await.context("relaying events");
                give_up("relay", &metrics, &failed, result)
            })
        });
        let storage = stores.then(|| {
            let (common, stop, failed) = (common.clone(), storage_stop.clone(), failed.clone());
            tokio::spawn(async move {
                let result = storage::run(&common, for_sink, stop).await;
                give_up("sink", &common.metrics, &failed, result)
            })
        });
        let letters = storage.is_none().then(|| {
            let (common, stop) = (common.clone(), storage_stop.clone());
            tokio::spawn(async move { storage::deliver_letters(&common, stop).await })
        });
        Self { relay, storage, letters, relay_stop, storage_stop, failed }
    }

    /// Gives relay and sink their budgets, then stops them. The rest waits on disk.
    async fn stop(self, common: &Common, wal: Option<&Wal>) -> Result<()> {
        let budgets = &common.config.shutdown;
        let with_brokers = self.relay.is_some();
        if let (Some(wal), false) = (wal, self.failed.is_cancelled()) {
            let (budget, behind) = if with_brokers { (budgets.relay, "relay") } else { (budgets.sink, "clickhouse") };
            drain::emptied_within(wal, budget, &common.health, behind).await;
        }
        self.relay_stop.cancel();
        self.storage_stop.cancel();
        let relayed = match self.relay {
            Some(relay) => join("relay", relay, budgets.relay).await,
            None => Ok(()),
        };
        let stored = match self.storage {
            // Its own budget for the inserts in flight, and some more for ClickHouse itself to stop.
            Some(storage) => join("sink", storage, budgets.sink + CLICKHOUSE_STOP).await,
            None => Ok(()),
        };
        if let Some(letters) = self.letters {
            letters.await.context("delivering dead letters")?;
        }
        relayed.and(stored)
    }
}

/// A part that fails for good takes the node with it: somebody has to look, and a supervisor to start it again.
fn give_up(stage: &'static str, metrics: &Metrics, failed: &CancellationToken, result: Result<()>) -> Result<()> {
    if let Err(error) = &result {
        metrics.error(stage);
        tracing::error!(stage, error = format!("{error:#}"), "failed for good");
        failed.cancel();
    }
    result
}

/// How long the embedded engine may take to finish its queries and close its files.
const CLICKHOUSE_STOP: Duration = Duration::from_secs(26);

/// Waits for a part to end; one that does not within `budget` is cut off, which loses nothing: what it had in hand is on
/// disk.
async fn join(part: &'static str, task: JoinHandle<Result<()>>, budget: Duration) -> Result<()> {
    let abort = task.abort_handle();
    match tokio::time::timeout(budget + Duration::from_secs(1), task).await {
        Ok(ended) => ended.with_context(|| format!("the {part} panicked"))?,
        Err(_) => {
            tracing::warn!(part, "did not stop within its budget; what it had in hand is on disk");
            abort.abort();
            Ok(())
        }
    }
}

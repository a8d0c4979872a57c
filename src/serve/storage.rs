//! From a source into ClickHouse: the engine's own child if there is no server, the tables, the source, the sink.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use super::{
    Common, OpenLog,
    plugins::{self, Reached},
    settings,
};
use crate::{
    broker::{
        self,
        source::{KafkaSource, Recall},
    },
    clickhouse::{
        Client, MigrateError, Migrator, Mode, Template,
        embedded::{Supervisor, SupervisorSettings},
        wait_and_migrate,
    },
    config::{Config, Migrate},
    dead_letters,
    erasure::Erasures,
    error_chain::chain,
    health::{Component, Health},
    metrics::Metrics,
    sink::{self, Sink, wal_source::WalSource},
};

/// Stores what the source gives until `stop`. With a `log` it is the source, else the broker is.
///
/// # Errors
/// What no waiting mends: libchdb is missing, a migration was changed, the source failed for good.
pub(super) async fn run(common: &Common, log: Option<OpenLog>, stop: CancellationToken) -> Result<()> {
    let health = common.health.component("clickhouse");
    // Known from the start, so that /health names what does not run yet.
    let sink_health = common.health.component("sink");
    sink_health.starting("waits for ClickHouse and its tables");
    let child = tokio::select! {
        child = start_embedded(&common.config, health.clone(), Arc::clone(&common.metrics)) => child?,
        () = stop.cancelled() => return Ok(()),
    };
    let stored = store(common, log, child.as_ref(), health, sink_health, stop).await;
    if let Some(child) = child {
        child.stop().await;
    }
    stored
}

async fn store(
    common: &Common,
    log: Option<OpenLog>,
    child: Option<&Supervisor>,
    health: Component,
    sink_health: Component,
    stop: CancellationToken,
) -> Result<()> {
    let config = &common.config;
    let (client, migrator) = client(config, child)?;
    match wait_and_migrate(&client, &migrator, mode(config), &health, &stop).await {
        Err(MigrateError::Cancelled) => return Ok(()),
        migrated => migrated.context("bringing ClickHouse's tables up to date")?,
    }

    // The child is watched by its supervisor; a server is asked, or its outage would show only once an insert gave up.
    let _watching = child.is_none().then(|| {
        let watching = stop.child_token();
        tokio::spawn(watch(client.clone(), health, watching.clone()));
        watching.drop_guard()
    });
    let (template, mode) = (settings::template(config, child.is_some()), mode(config));
    let erasures = Erasures::new(client.clone());
    common.clickhouse.get_or_init(|| Reached {
        client: client.clone(),
        template: template.clone(),
        mode,
        erasures: erasures.clone(),
    });
    // Until the last insert has ended; then it says that this sink has stopped.
    let applying = CancellationToken::new();
    let erasures_health = common.health.component("erasures");
    erasures_health.up();
    let applied = tokio::spawn(erasures.clone().run(erasures_health, applying.clone()));
    let delivering = CancellationToken::new();
    let delivered = tokio::spawn(dead_letters::deliver(
        common.dead_letters.clone(),
        client.clone(),
        erasures.clone(),
        true,
        common.health.component("dead_letters"),
        delivering.clone(),
    ));
    let setup = SinkSetup { client, template, mode, erasures, health: sink_health };
    let result = run_sink(common, log, setup, stop).await;
    delivering.cancel();
    delivered.await.context("delivering dead letters")?;
    applying.cancel();
    applied.await.context("applying what was erased")?;
    result
}

/// What a sink is made of beside its source.
struct SinkSetup {
    client: Client,
    template: Template,
    mode: Mode,
    erasures: Erasures,
    health: Component,
}

async fn run_sink(common: &Common, log: Option<OpenLog>, setup: SinkSetup, stop: CancellationToken) -> Result<()> {
    let config = &common.config;
    let SinkSetup { client, template, mode, erasures, health } = setup;
    let tables = common.tables.clone();
    let (settings, letters, metrics) =
        (settings::sink(config), common.dead_letters.clone(), Arc::clone(&common.metrics));
    let limits = settings::range_limits(config);
    if let Some(OpenLog { wal, reader }) = log {
        let source_health = common.health.component("source");
        let source =
            WalSource::open(wal, reader, limits, common.dead_letters.clone(), source_health, Arc::clone(&metrics))
                .context("reading the write-ahead log")?;
        let sink = Sink::new(source, client, letters, settings, health, metrics).with_erasures(erasures);
        sink.with_tables(tables, template, mode).run(stop).await?;
    } else {
        let source = KafkaSource::new(
            settings::broker(config),
            limits,
            common.dead_letters.clone(),
            Some(Recall::new(client.clone())),
            common.health.component("broker"),
            Arc::clone(&metrics),
        )
        .context("joining the consumer group")?;
        let sink =
            Sink::new(source, client.clone(), letters, settings, health, metrics).with_erasures(erasures.clone());
        let sink = sink.with_window(settings::window(config));
        let events = sink.with_tables(tables, template, mode).run(stop.clone());
        let events = async { events.await.map_err(anyhow::Error::from) };
        tokio::try_join!(events, store_parked(common, client, erasures, stop))?;
    }
    Ok(())
}

/// Brings the dead letters of a node without a sink into ClickHouse, where it knows one, until `stop`.
pub(super) async fn deliver_letters(common: &Common, stop: CancellationToken) {
    let (letters, health) = (common.dead_letters.clone(), common.health.component("dead_letters"));
    let client = common.config.clickhouse.url.as_ref().map(|_| remote_client(&common.config));
    match client {
        Some(Ok(client)) => {
            let erasures = Erasures::new(client.clone());
            dead_letters::deliver(letters, client, erasures, false, health, stop).await;
        }
        Some(Err(error)) => {
            health.degraded(format!("dead letters stay on this node: {error:#}"));
            stop.cancelled().await;
        }
        None => dead_letters::hold(letters, health, stop).await,
    }
}

/// How often it is looked for the topic of parked events. In most clusters it never comes, and one that has just come may
/// wait: the topic keeps its events for days.
const LOOK_FOR_PARKED: Duration = Duration::from_secs(15);

/// Stores what the topic of parked events holds, once there is such a topic. Until then there is no consumer, no group and
/// nothing in health.
async fn store_parked(common: &Common, client: Client, erasures: Erasures, stop: CancellationToken) -> Result<()> {
    let config = &common.config;
    let topic = settings::broker(config).parked();
    let coming = async {
        loop {
            match broker::exists(&topic).await {
                Ok(true) => return,
                Ok(false) => {}
                // An outage, which the source of events tells of.
                Err(error) => tracing::debug!(error = chain(&error), "cannot look for the topic of parked events"),
            }
            tokio::time::sleep(LOOK_FOR_PARKED.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    };
    if stop.run_until_cancelled(coming).await.is_none() {
        return Ok(());
    }
    tracing::info!(topic = topic.topic, "plugins have parked events; storing them too");
    let (health, metrics) = (&common.health, &common.metrics);
    let source = KafkaSource::new(
        topic,
        settings::range_limits(config),
        common.dead_letters.clone(),
        Some(Recall::new(client.clone())),
        health.component("parked_broker"),
        Arc::clone(metrics),
    )
    .context("joining the consumer group of parked events")?;
    let settings = sink::Settings { shows_lag: false, ..settings::sink(config) };
    let letters = common.dead_letters.clone();
    let sink = Sink::new(source, client, letters, settings, health.component("parked_sink"), Arc::clone(metrics));
    sink.with_erasures(erasures).with_window(settings::window(config)).run(stop).await?;
    Ok(())
}

/// How often a ClickHouse server is asked whether it is there: one SELECT 1.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// Asks a server from time to time whether it is there, and tells health.
async fn watch(client: Client, health: Component, stop: CancellationToken) {
    let asking = async {
        loop {
            match client.ping().await {
                Ok(()) => health.up(),
                Err(error) => health.down(format!("ClickHouse cannot be reached: {}", chain(&error))),
            }
            tokio::time::sleep(WATCH_EVERY.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    };
    // It ends with its node and in no other way.
    stop.run_until_cancelled(asking).await;
}

/// Creates and changes the tables, then returns: the `migrate` subcommand.
///
/// # Errors
/// ClickHouse's, at once: whoever runs this waits for an answer.
pub async fn migrate(config: Config) -> Result<()> {
    let health = Health::default().component("clickhouse");
    if config.clickhouse.url.is_none() {
        tracing::info!(path = %config.clickhouse_path().display(), "opening the embedded ClickHouse");
    }
    let child = start_embedded(&config, health, Arc::new(Metrics::new())).await?;
    let migrated = async {
        let (client, migrator) = client(&config, child.as_ref())?;
        let applied = migrator.apply().await.context("migrating")?;
        if applied.is_empty() {
            tracing::info!("the tables are up to date");
        }
        for file in applied {
            tracing::info!(file, "applied");
        }
        let template = settings::template(&config, child.is_some());
        plugins::tables(&config)?.apply(&client, &template).await.context("making the tables of plugins")
    }
    .await;
    if let Some(child) = child {
        child.stop().await;
    }
    migrated
}

/// Starts the embedded engine, unless a server is configured.
pub(super) async fn start_embedded(
    config: &Config,
    health: Component,
    metrics: Arc<Metrics>,
) -> Result<Option<Supervisor>> {
    if config.clickhouse.url.is_some() {
        return Ok(None);
    }
    start_child(config, config.clickhouse.embedded.port, health, metrics).await.map(Some)
}

/// Starts the embedded engine on `port` of 127.0.0.1; 0: one that the system chooses.
pub(super) async fn start_child(
    config: &Config,
    port: u16,
    health: Component,
    metrics: Arc<Metrics>,
) -> Result<Supervisor> {
    let settings = SupervisorSettings {
        program: std::env::current_exe().context("finding this program's own file")?,
        path: config.clickhouse_path(),
        port,
        library: config.clickhouse.embedded.library.clone(),
    };
    let child = Supervisor::start(settings, health, metrics).await.context("starting the embedded ClickHouse")?;
    tracing::info!(url = child.url(), "embedded ClickHouse listening");
    Ok(child)
}

fn client(config: &Config, child: Option<&Supervisor>) -> Result<(Client, Migrator)> {
    let client = Client::new(&settings::clickhouse(config, child.map(Supervisor::url)))
        .context("setting up the client of ClickHouse")?;
    let template = settings::template(config, child.is_some());
    let migrator = Migrator::new(client.clone(), template);
    Ok((client, migrator))
}

/// The client of a configured server.
pub(super) fn remote_client(config: &Config) -> Result<Client> {
    Client::new(&settings::clickhouse(config, None)).context("setting up the client of ClickHouse")
}

pub(super) fn mode(config: &Config) -> Mode {
    match config.clickhouse.migrate {
        Migrate::Auto => Mode::Auto,
        Migrate::Verify => Mode::Verify,
    }
}

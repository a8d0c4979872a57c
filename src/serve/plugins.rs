//! The plugins of a node: what they need from the rest of it, and what the rest needs from them.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{runtime::Handle, sync::mpsc};

use super::{Common, settings, storage};
use crate::{
    clickhouse::{Client, Mode, Template},
    config::Config,
    control::{Control, Replayed, Replayer, Reprocessed, Reprocessor, ReprocessorSlot, Served},
    dead_letters::replay::{self, Filter},
    erasure::Erasures,
    error_chain::chain,
    event::{self, Acceptance, Types},
    ids::TenantId,
    ledger,
    plugins::{
        Plugins,
        descriptor::Descriptor,
        registry::{self, Parts},
        reprocess::{Progress, Reprocess},
        rerun::Again,
        tables::{Tables, TrialError, try_out},
    },
    row::EXPIRES_NEVER,
    wal::Wal,
};

/// How long ClickHouse may take to try a plugin's tables out. They are empty, so it takes as long as its files do.
const TRIAL: Duration = Duration::from_secs(30);

/// A ClickHouse that has been reached and has this version's tables.
#[derive(Clone)]
pub(super) struct Reached {
    pub client: Client,
    pub template: Template,
    pub mode: Mode,
    pub erasures: Erasures,
}

/// Set once ClickHouse was reached for the first time.
pub(super) type ClickHouse = Arc<OnceLock<Reached>>;

/// The tables that plugins have declared, now or before.
pub(super) fn tables(config: &Config) -> Result<Tables> {
    let path = registry::state_dir(&config.process.data_dir).join("tables.json");
    let shown = path.display().to_string();
    Tables::open(path).with_context(|| format!("reading the tables that plugins have declared, {shown}"))
}

/// The registry, and the socket through which it is commanded.
pub(super) struct Running {
    pub plugins: Plugins,
    control: Option<Control>,
}

impl Running {
    /// Brings the plugins of the folder into use. Returns once all of them are: no request may come before its plugin.
    pub async fn start(common: &Common, wal: Option<&Wal>, ledger: Option<Arc<dyn ledger::Source>>) -> Result<Self> {
        let config = &common.config;
        let parts = Parts {
            health: common.health.component("plugins"),
            metrics: Arc::clone(&common.metrics),
            declare: declare(common),
        };
        let plugins = Plugins::start(settings::plugins(config)?, parts).await.context("starting the plugins")?;
        let again = Lazy { common: common.clone(), plugins: plugins.clone(), reprocess: tokio::sync::OnceCell::new() };
        let slot: ReprocessorSlot = Arc::new(OnceLock::from(Arc::new(again) as Arc<dyn Reprocessor>));
        let replays = Arc::new(Replays { common: common.clone(), one_at_a_time: tokio::sync::Mutex::default() });
        let served =
            Served { plugins: plugins.clone(), reprocessor: slot, replayer: Some(replays), wal: wal.cloned(), ledger };
        let control = Control::start(&config.process.data_dir, served)
            .inspect_err(|error| tracing::warn!(error = chain(error), "no control socket"))
            .ok();
        Ok(Self { plugins, control })
    }

    pub async fn stop(self) {
        if let Some(control) = self.control {
            control.stop().await;
        }
        self.plugins.stop().await;
    }
}

/// Judges the tables of a plugin, tries them out where ClickHouse can be reached, and notes them, before the plugin is
/// taken into use.
fn declare(common: &Common) -> registry::Declare {
    let (tables, clickhouse) = (common.tables.clone(), Arc::clone(&common.clickhouse));
    let event_bytes = settings::limits(&common.config).event_bytes;
    let runtime = Handle::current();
    Box::new(move |descriptor| {
        tables.compatible(descriptor).map_err(|problems| problems.join("; "))?;
        let reached = clickhouse.get().filter(|_| !tables.is_declared(descriptor));
        if let Some(reached) = reached {
            runtime.block_on(trial(reached, descriptor, event_bytes))?;
        }
        let before = tables.declare(descriptor).map_err(|error| format!("its tables cannot be noted: {error}"))?;
        let Some(Reached { client, template, mode, .. }) = reached else { return Ok(()) };
        match runtime.block_on(tables.bring_up(client, template, *mode)) {
            Ok(()) => Ok(()),
            // ClickHouse went away: the sink makes them before the first row, as it does when it was away from the start.
            Err(error) if error.passes() => Ok(()),
            Err(error) => {
                tables.restore(&descriptor.name, before).map_err(|error| format!("its tables stay noted: {error}"))?;
                Err(chain(&error))
            }
        }
    })
}

async fn trial(reached: &Reached, descriptor: &Descriptor, event_bytes: usize) -> Result<(), String> {
    let types = Types::new(descriptor.adds.iter().map(|added| added.name.as_str()), []);
    let acceptance = Acceptance {
        tenant_id: TenantId(uuid::Uuid::nil()),
        received_at_ms: jiff::Timestamp::now().as_millisecond(),
        expires_at: EXPIRES_NEVER,
        event_bytes,
        oldest_ms: i64::MIN,
        latest_ms: i64::MAX,
    };
    let examples = descriptor.adds.iter().flat_map(|added| &added.examples).chain(&descriptor.examples);
    let rows: Vec<_> = examples.filter_map(|example| event::read(example.get(), &acceptance, &types).ok()).collect();
    let Reached { client, template, .. } = reached;
    match tokio::time::timeout(TRIAL, try_out(client, template, descriptor, &rows)).await {
        // No verdict: ClickHouse has just gone away, or lets nobody try.
        Ok(Err(TrialError::NoDatabase(_))) | Err(_) => Ok(()),
        Ok(result) => result.map_err(|error| chain(&error)),
    }
}

/// What reads parked events, made when it is first asked for: a node without the sink's role connects to ClickHouse for
/// nothing else.
struct Lazy {
    common: Common,
    plugins: Plugins,
    reprocess: tokio::sync::OnceCell<(Reprocess<Again>, Client, Template, Mode)>,
}

impl Lazy {
    fn connect(&self) -> Result<(Reprocess<Again>, Client, Template, Mode), String> {
        let Common { config, metrics, dead_letters, .. } = &self.common;
        let Reached { client, template, mode, erasures } = reached(&self.common)?;
        let again = Again {
            plugins: self.plugins.clone(),
            event_bytes: settings::limits(config).event_bytes,
            metrics: Arc::clone(metrics),
        };
        let reprocess = Reprocess::new(client.clone(), erasures, again, dead_letters.clone(), Arc::clone(metrics));
        Ok((reprocess, client, template, mode))
    }
}

/// ClickHouse, for a command: as the sink has reached it, or as it is configured on a node without that role.
fn reached(common: &Common) -> Result<Reached, String> {
    let Common { config, clickhouse, .. } = common;
    match clickhouse.get() {
        Some(reached) => Ok(reached.clone()),
        None if config.clickhouse.url.is_some() => {
            let client = storage::remote_client(config).map_err(|error| format!("{error:#}"))?;
            // It does not confirm: a command that erases waits until it has been silent for long enough.
            let erasures = Erasures::new(client.clone());
            Ok(Reached { client, template: settings::template(config, false), mode: storage::mode(config), erasures })
        }
        None if config.process.roles.sink => Err("ClickHouse has not been reached yet".to_owned()),
        None => {
            Err("this node knows no ClickHouse: set clickhouse.url, which a node with the API alone needs for this \
                     command only"
                .to_owned())
        }
    }
}

/// What sends dead letters through this node's front again.
struct Replays {
    common: Common,
    /// Two at once would send the same letters twice; the dedup window would see that, and the figures would not.
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Replayer for Replays {
    fn replay<'a>(&'a self, filter: &'a Filter, progress: mpsc::UnboundedSender<replay::Summary>) -> Replayed<'a> {
        Box::pin(async move {
            let Some(front) = self.common.front.get() else {
                return Err("this node has no front: run this on one with the role \"api\"".to_owned());
            };
            let Reached { client, .. } = reached(&self.common)?;
            let Ok(_turn) = self.one_at_a_time.try_lock() else {
                return Err("another replay is at work on this node".to_owned());
            };
            // Nobody listens any more when the command was cut off; then this is dropped too.
            replay::run(&client, front, filter, |summary| drop(progress.send(summary.clone()))).await
        })
    }
}

impl Reprocessor for Lazy {
    fn reprocess<'a>(&'a self, name: &'a str, progress: mpsc::UnboundedSender<Progress>) -> Reprocessed<'a> {
        Box::pin(async move {
            let set = self.plugins.current();
            let Some(plugin) = set.named(name) else {
                return Err(format!("there is no plugin {name:?}: its parked events wait until it is there again"));
            };
            if let Some(quarantine) = plugin.quarantine() {
                return Err(format!(
                    "plugin {name:?} is quarantined ({}): `ingestion-engine plugins resume {name}` first, or give it a \
                     better file",
                    quarantine.reason
                ));
            }
            let (reprocess, client, template, mode) = self.reprocess.get_or_try_init(async || self.connect()).await?;
            // They go into `events` beside the sink, which otherwise sees to this.
            let tables = &self.common.tables;
            tables.bring_up(client, template, *mode).await.map_err(|error| chain(&error))?;
            Reprocessor::reprocess(reprocess, name, progress).await
        })
    }
}

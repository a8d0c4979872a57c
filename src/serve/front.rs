//! The ports of a node: the public one with the API, the admin one with metrics.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Common, settings};
use crate::{
    api::{self, Api, Doors, Readiness, Routes, Server},
    health::State,
    ledger,
    plugins::Plugins,
    tenants::{Tenants, external::External, watch::Watch},
    wal::Wal,
};

/// The running servers.
pub(super) struct Front {
    servers: Vec<JoinHandle<usize>>,
    stop: CancellationToken,
    /// Ends with the node.
    watching: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Front {
    /// Binds and serves. A node without the API role serves its health and metrics only.
    pub async fn start(
        common: &Common,
        wal: Option<&Wal>,
        plugins: Plugins,
        ledger: Option<Arc<dyn ledger::Source>>,
    ) -> Result<Self> {
        let config = &common.config;
        let probe = api::Probe {
            health: common.health.clone(),
            readiness: readiness(common, wal),
            durability: wal.map(Wal::durability),
        };
        let mut watching = None;
        let (mut public, api) = match wal {
            Some(wal) => {
                let doors = doors(common)?;
                watching = Some(watch(common, doors.tenants.clone()));
                let codec = settings::codec(config);
                let metrics = Arc::clone(&common.metrics);
                let api = Api::new(settings::limits(config), doors, wal.clone(), codec, Some(plugins), metrics)
                    .with_ledger(ledger);
                let api = common.front.get_or_init(|| api).clone();
                (api.clone().router(probe.clone()), Some(api))
            }
            None => (api::health_router(probe.clone()), None),
        };

        let mut front = Self { servers: Vec::new(), stop: CancellationToken::new(), watching };
        let admin = api::admin_router(Arc::clone(&common.metrics));
        match config.server.admin_listen {
            Some(address) => {
                let router = admin.merge(api::health_router(probe));
                front.serve(common, "admin", &address.ip().to_string(), address.port(), router.into()).await?;
            }
            None => public = public.merge(admin),
        }
        let public = match api {
            Some(api) => Routes::new(api, public),
            None => public.into(),
        };
        front.serve(common, "api", &config.server.host.to_string(), config.server.port, public).await?;
        if let Some(warning) = config.development_warning() {
            tracing::warn!("{warning}");
        }
        Ok(front)
    }

    async fn serve(
        &mut self,
        common: &Common,
        name: &'static str,
        host: &str,
        port: u16,
        routes: Routes,
    ) -> Result<()> {
        let mut settings = settings::server(&common.config);
        if name == "admin" {
            settings.connections = api::ADMIN_CONNECTIONS;
            settings.threads = 1;
        }
        let server = Server::bind(host, port, settings).await.with_context(|| format!("starting the {name} port"))?;
        tracing::info!(address = %server.address(), "{name} listening");
        self.servers.push(tokio::spawn(server.run(routes, self.stop.clone())));
        Ok(())
    }

    /// Takes no more connections and lets requests in flight finish within their budget.
    pub async fn stop(self) {
        self.stop.cancel();
        for server in self.servers {
            match server.await {
                Ok(0) => {}
                Ok(cut) => tracing::warn!(connections = cut, "cut connections that did not finish in time"),
                Err(error) => tracing::error!(%error, "a server ended with a panic"),
            }
        }
        if let Some((watching, stop)) = self.watching {
            stop.cancel();
            if let Err(panic) = watching.await {
                tracing::error!(%panic, "watching the tenants' file ended with a panic");
            }
        }
    }
}

/// Whose requests are taken: the tenants, with the service that knows keys which the file does not have.
fn doors(common: &Common) -> Result<Doors> {
    let external = settings::external(&common.config)?.map(|settings| {
        External::new(settings, common.health.component("auth"), Arc::clone(&common.metrics))
            .context("setting up the client of auth.url")
    });
    settings::doors(&common.config, external.transpose()?)
}

/// Takes the tenants' file again whenever it changes.
fn watch(common: &Common, tenants: Tenants) -> (JoinHandle<()>, CancellationToken) {
    let (health, stop) = (common.health.component("tenants"), CancellationToken::new());
    health.up();
    let watch = Watch {
        path: common.config.tenants_file(),
        taken: common.config.tenants.stamp,
        read: settings::read_tenants(&common.config),
        tenants,
        health,
        metrics: Arc::clone(&common.metrics),
    };
    (tokio::spawn(watch.run(stop.clone())), stop)
}

/// Ready means: can do its role's work now. The API's is to accept durably; a sink's is to read and to store, so it is
/// ready once it has started, whatever an outage makes it wait for.
fn readiness(common: &Common, wal: Option<&Wal>) -> Readiness {
    if let Some(wal) = wal.cloned() {
        return Arc::new(move || wal.accepting().map_err(|error| error.to_string()));
    }
    let health = common.health.clone();
    Arc::new(move || match health.snapshot().get("sink") {
        Some(report) if report.state != State::Starting => Ok(()),
        _ => Err("the sink has not started yet".to_owned()),
    })
}

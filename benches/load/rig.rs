//! A folder, ports and processes of one measurement. All of it ends with it; everything is on loopback.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    body,
    meter::Meter,
    process::{PATIENCE, Process, free_port},
    stats::{children_cpu, cpu_of, threads},
    verify::ClickHouse,
};

/// Ids in the engine's dedup window.
const DEDUP_IDS: u64 = 1_000_000;

/// How long a command of the engine may take.
const COMMAND: Duration = Duration::from_secs(600);

/// Where the engine's events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Into a ClickHouse that the engine starts itself.
    Embedded,
    /// The same, through a broker.
    Broker,
    /// Through a broker, by two processes as on two nodes: one takes events, the other stores them.
    Split,
    /// Into the same ClickHouse as a server of its own, which can be away.
    Apart,
}

impl Sink {
    fn has_broker(self) -> bool {
        matches!(self, Self::Broker | Self::Split)
    }
}

/// What a rig is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The engine.
    pub program: PathBuf,
    /// The broker Tansu.
    pub tansu: Option<PathBuf>,
    /// Where its folder is made.
    pub dir: PathBuf,
    pub tenants: u32,
    /// Variables of the engine's environment beside those that every rig gives.
    pub settings: Vec<(&'static str, String)>,
}

/// CPU seconds of a rig's processes so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The engine that takes events.
    pub engine: f64,
    /// With [`Sink::Split`] the engine that stores them.
    pub sink: f64,
    pub clickhouse: f64,
    pub broker: f64,
}

impl Spent {
    /// What was spent after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            engine: self.engine - before.engine,
            sink: self.sink - before.sink,
            clickhouse: self.clickhouse - before.clickhouse,
            broker: self.broker - before.broker,
        }
    }
}

/// Threads of an engine, with their CPU seconds so far.
#[derive(Clone, Debug, Default)]
pub struct Threads(BTreeMap<u32, (String, f64)>);

impl Threads {
    /// Of the busiest one after `before` whose name begins with `name`.
    pub fn busiest(&self, before: &Self, name: &str) -> f64 {
        let earlier = |number| before.0.get(number).map_or(0.0, |(_, cpu)| *cpu);
        let named = self.0.iter().filter(|(_, (its, _))| its.starts_with(name));
        named.map(|(number, (_, cpu))| cpu - earlier(number)).fold(0.0, f64::max)
    }
}

/// An engine's metrics: the sum over each name's series.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let mut sums = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or(series);
            *sums.entry(name.to_owned()).or_insert(0.0) += value.parse::<f64>().unwrap_or(0.0);
        }
        Self(sums)
    }

    /// Zero for one that is not there.
    pub fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

/// What one measurement runs on.
pub struct Rig {
    // Processes before the folder that they are in: dropped in this order.
    engine: Option<Process>,
    second: Option<Process>,
    server: Option<Process>,
    broker: Option<Process>,
    /// Between the broker and the engines, with [`Sink::Split`].
    meter: Option<Meter>,
    setup: Setup,
    sink: Sink,
    pub api: SocketAddr,
    second_port: u16,
    clickhouse: u16,
    broker_port: u16,
    client: Client<HttpConnector, Empty<Bytes>>,
    home: TempDir,
}

impl Rig {
    /// An empty folder, the tenants' file, and with a broker the broker; no engine yet.
    pub fn new(setup: Setup, sink: Sink) -> anyhow::Result<Self> {
        // What the measurement before has left is written, and what it has deleted is given back to the disk, now and not
        // while this one waits for its own flushes.
        rustix::fs::syncfs(fs::File::open(&setup.dir)?).context("the file system cannot be synced")?;
        let home = TempDir::new_in(&setup.dir).context("no folder for the measurement")?;
        fs::write(home.path().join("tenants.toml"), body::tenant_config(setup.tenants))?;
        let (api, second_port, clickhouse, broker_port) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let mut meter = None;
        let broker = match &setup.tansu {
            _ if !sink.has_broker() => None,
            None => bail!("say where the broker is: --tansu"),
            Some(tansu) => {
                let url = |port: u16| format!("tcp://127.0.0.1:{port}");
                let listens_on = if sink == Sink::Split { free_port()? } else { broker_port };
                if sink == Sink::Split {
                    meter = Some(Meter::start(broker_port, listens_on)?);
                }
                let mut command = Command::new(tansu);
                command.args(["broker", "--storage-engine", "memory://tansu/"]);
                command.args(["--listener-url", &url(listens_on), "--advertised-listener-url", &url(broker_port)]);
                Some(Process::start(command, "tansu", home.path())?)
            }
        };
        Ok(Self {
            engine: None,
            second: None,
            server: None,
            broker,
            meter,
            setup,
            sink,
            api: (Ipv4Addr::LOCALHOST, api).into(),
            second_port,
            clickhouse,
            broker_port,
            client: Client::builder(TokioExecutor::new()).build_http(),
            home,
        })
    }

    /// ClickHouse, to ask it.
    pub fn clickhouse(&self) -> anyhow::Result<ClickHouse> {
        let url = format!("http://127.0.0.1:{}/", self.clickhouse).parse()?;
        Ok(ClickHouse::new(url, "overwatch".to_owned(), None))
    }

    /// The engine with its environment, which a setting that is tried out may come from; these are fixed.
    fn command(&self, port: u16, data: &str) -> Command {
        let home = self.home.path();
        let mut command = Command::new(&self.setup.program);
        command
            .env("INGESTION_HOST", "127.0.0.1")
            .env("INGESTION_PORT", port.to_string())
            .env("INGESTION_SERVER_ADMIN_LISTEN", "")
            .env("INGESTION_DATA_DIR", home.join(data))
            .env("INGESTION_AUTH_TENANTS_FILE", home.join("tenants.toml"))
            .env("INGESTION_CLICKHOUSE_EMBEDDED_PORT", self.clickhouse.to_string())
            .env("INGESTION_LOG_LEVEL", "warn")
            // No figure is of a log that does not sync.
            .env("INGESTION_WAL_DURABILITY", "fsync")
            // The load is larger than what a tenant may send by default.
            .env("INGESTION_QUOTA_EVENTS_PER_SECOND", "0")
            .env("INGESTION_QUOTA_BYTES_PER_SECOND", "0")
            .env("INGESTION_DEDUP_MAX_IDS", DEDUP_IDS.to_string());
        if self.sink.has_broker() {
            command
                .env("INGESTION_REDPANDA_BROKERS", format!("127.0.0.1:{}", self.broker_port))
                .env("INGESTION_REDPANDA_REPLICATION_FACTOR", "1")
                .env("INGESTION_REDPANDA_MIN_INSYNC_REPLICAS", "1");
        }
        if self.sink == Sink::Apart {
            command.env("INGESTION_CLICKHOUSE_URL", format!("http://127.0.0.1:{}", self.clickhouse));
        }
        command.envs(self.setup.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the engine's process, or with [`Sink::Split`] both of them.
    pub fn spawn_engine(&mut self) -> anyhow::Result<()> {
        let mut command = self.command(self.api.port(), "data");
        if self.sink == Sink::Split {
            command.env("INGESTION_ROLES", "api");
            let mut second = self.command(self.second_port, "data-sink");
            second.env("INGESTION_ROLES", "sink");
            self.second = Some(Process::start(second, "sink", self.home.path())?);
        }
        self.engine = Some(Process::start(command, "engine", self.home.path())?);
        Ok(())
    }

    /// Starts the engine and waits until it takes events and, unless ClickHouse is apart, stores them.
    pub async fn start_engine(&mut self) -> anyhow::Result<()> {
        self.spawn_engine()?;
        let deadline = Instant::now() + PATIENCE;
        let (stores, port) = match self.sink {
            Sink::Apart => (false, self.api.port()),
            Sink::Split => (true, self.second_port),
            Sink::Embedded | Sink::Broker => (true, self.api.port()),
        };
        loop {
            let ready = matches!(self.get(self.api.port(), "/health/ready").await, Some((200, _)));
            let stored = match self.get(port, "/health").await {
                Some((200, body)) => is_up(&body),
                _ => false,
            };
            if ready && (stored || !stores) {
                return Ok(());
            }
            self.check(deadline, "the engine is not ready")?;
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// From the start of the engine until it takes events.
    pub async fn time_to_ready(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.spawn_engine()?;
        loop {
            if let Some((200, _)) = self.get(self.api.port(), "/health/ready").await {
                return Ok(begun.elapsed());
            }
            self.check(begun + PATIENCE, "the engine is not ready")?;
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts ClickHouse as a server of its own and waits until it answers.
    pub async fn start_clickhouse(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.setup.program);
        command.arg("clickhouse").arg("--path").arg(self.home.path().join("clickhouse"));
        command.arg("--port").arg(self.clickhouse.to_string());
        self.server = Some(Process::start(command, "clickhouse", self.home.path())?);
        let deadline = Instant::now() + PATIENCE;
        while !matches!(self.get(self.clickhouse, "/ping").await, Some((200, _))) {
            self.check(deadline, "ClickHouse does not answer")?;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Stops ClickHouse, kill -9.
    pub fn kill_clickhouse(&mut self) -> io::Result<()> {
        self.server.take().map_or(Ok(()), Process::kill)
    }

    /// Stops the engine, kill -9.
    pub fn kill_engine(&mut self) -> io::Result<()> {
        self.engine.take().map_or(Ok(()), Process::kill)
    }

    /// Stops the engine, and ClickHouse with it, in order: what comes next finds the machine idle.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for process in [self.engine.take(), self.second.take(), self.server.take()].into_iter().flatten() {
            process.stop().await?;
        }
        Ok(())
    }

    /// The engine's process.
    pub fn engine(&self) -> Option<u32> {
        self.engine.as_ref().map(Process::id)
    }

    /// What the processes have spent by now.
    pub fn spent(&self) -> Spent {
        let own = |process: &Option<Process>| process.as_ref().and_then(|process| cpu_of(process.id())).unwrap_or(0.0);
        let children = |process: &Option<Process>| process.as_ref().map_or(0.0, |process| children_cpu(process.id()));
        Spent {
            engine: own(&self.engine),
            sink: own(&self.second),
            clickhouse: own(&self.server) + children(&self.engine) + children(&self.second),
            broker: own(&self.broker),
        }
    }

    /// Threads of the engine that takes events, and with [`Sink::Split`] of the one that stores them.
    pub fn threads(&self) -> (Threads, Threads) {
        let of = |process: &Option<Process>| process.as_ref().map(|process| Threads(threads(process.id())));
        (of(&self.engine).unwrap_or_default(), of(&self.second).unwrap_or_default())
    }

    /// Bytes to the broker and from it so far, with [`Sink::Split`].
    pub fn broker_bytes(&self) -> (u64, u64) {
        self.meter.as_ref().map_or((0, 0), Meter::bytes)
    }

    /// The engine's metrics, with [`Sink::Split`] those of both.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut text = String::new();
        let second = self.second.as_ref().map(|_| self.second_port);
        for port in [Some(self.api.port()), second].into_iter().flatten() {
            let Some((200, body)) = self.get(port, "/metrics").await else { bail!("the engine has no metrics") };
            text.push_str(&String::from_utf8_lossy(&body));
        }
        Ok(Metrics::parse(&text))
    }

    /// What `ingestion-engine ledger` says while the engine runs; an error when the books do not balance.
    pub async fn ledger(&self) -> anyhow::Result<Value> {
        let mut command = self.command(self.api.port(), "data");
        command.args(["ledger", "--json"]).stdin(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let output = timeout(COMMAND, command.output()).await.context("the ledger took too long")??;
        if !output.status.success() {
            bail!("the ledger does not balance: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("the ledger is no JSON")
    }

    /// Bytes of the records' files of the engine's log: without its reserve, marks and books.
    pub fn wal_bytes(&self) -> u64 {
        folder_bytes(&self.home.path().join("data/wal/log"))
    }

    fn check(&mut self, deadline: Instant, what: &str) -> anyhow::Result<()> {
        for process in [&mut self.engine, &mut self.second, &mut self.server, &mut self.broker].into_iter().flatten() {
            process.check()?;
        }
        if Instant::now() > deadline {
            bail!("{what} after {PATIENCE:?}");
        }
        Ok(())
    }

    async fn get(&self, port: u16, path: &str) -> Option<(u16, Bytes)> {
        let answer = self.client.get(format!("http://127.0.0.1:{port}{path}").parse().ok()?).await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.into_body().collect().await.ok()?.to_bytes()))
    }
}

/// Whether the engine says that it is ready and its sink is up.
fn is_up(health: &[u8]) -> bool {
    let health: serde_json::Value = serde_json::from_slice(health).unwrap_or_default();
    health.pointer("/components/sink/state").is_some_and(|state| state == "up")
}

fn folder_bytes(folder: &Path) -> u64 {
    // Files come and go meanwhile.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

//! A folder, ports and processes of one measurement. All of it ends with it; everything is on loopback.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use load::{body, verify::ClickHouse};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::options::{DEDUP_IDS, Options, TENANTS};

/// How long a process may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the engine's events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Into a ClickHouse that the engine starts itself.
    Embedded,
    /// The same, through a broker.
    Broker,
    /// Into the same ClickHouse as a server of its own, which can be away.
    Apart,
}

/// A process that ends with its handle.
pub struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, whose output goes into the folder `home`.
    pub fn start(mut command: Command, name: &'static str, home: &Path) -> anyhow::Result<Self> {
        let log = home.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, name, log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!("{} has ended ({status}):\n{}", self.name, last.join("\n"));
        }
        Ok(())
    }

    /// kill -9.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Asks it to end and waits until it has.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(id, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} does not stop", self.name);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port that nobody listens on.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// What one measurement runs on.
pub struct Rig {
    // Processes before the folder that they are in: dropped in this order.
    engine: Option<Process>,
    server: Option<Process>,
    broker: Option<Process>,
    program: PathBuf,
    sink: Sink,
    pub api: SocketAddr,
    clickhouse: u16,
    broker_port: u16,
    client: Client<HttpConnector, Empty<Bytes>>,
    home: TempDir,
}

impl Rig {
    /// An empty folder, the tenants' file, and with [`Sink::Broker`] the broker; no engine yet.
    pub fn new(options: &Options, program: &Path, sink: Sink) -> anyhow::Result<Self> {
        let home = TempDir::new_in(&options.dir).context("no folder for the measurement")?;
        // One more than the load has, for the probe.
        fs::write(home.path().join("tenants.toml"), body::tenant_config(TENANTS + 1))?;
        let (api, clickhouse, broker_port) = (free_port()?, free_port()?, free_port()?);
        let broker = match (sink, &options.tansu) {
            (Sink::Broker, Some(tansu)) => {
                let url = format!("tcp://127.0.0.1:{broker_port}");
                let mut command = Command::new(tansu);
                command.args(["broker", "--storage-engine", "memory://tansu/"]);
                command.args(["--listener-url", &url, "--advertised-listener-url", &url]);
                Some(Process::start(command, "tansu", home.path())?)
            }
            (Sink::Broker, None) => bail!("say where the broker is: --tansu"),
            _ => None,
        };
        Ok(Self {
            engine: None,
            server: None,
            broker,
            program: program.to_owned(),
            sink,
            api: (Ipv4Addr::LOCALHOST, api).into(),
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

    /// Starts the engine's process.
    pub fn spawn_engine(&mut self) -> anyhow::Result<()> {
        let home = self.home.path();
        let mut command = Command::new(&self.program);
        // The environment goes on to the engine, so that a setting can be tried out; these are fixed.
        command
            .env("INGESTION_HOST", "127.0.0.1")
            .env("INGESTION_PORT", self.api.port().to_string())
            .env("INGESTION_SERVER_ADMIN_LISTEN", "")
            .env("INGESTION_DATA_DIR", home.join("data"))
            .env("INGESTION_AUTH_TENANTS_FILE", home.join("tenants.toml"))
            .env("INGESTION_CLICKHOUSE_EMBEDDED_PORT", self.clickhouse.to_string())
            .env("INGESTION_LOG_LEVEL", "warn")
            // The load is larger than what a tenant may send by default.
            .env("INGESTION_QUOTA_EVENTS_PER_SECOND", "0")
            .env("INGESTION_QUOTA_BYTES_PER_SECOND", "0")
            .env("INGESTION_DEDUP_MAX_IDS", DEDUP_IDS.to_string());
        match self.sink {
            Sink::Embedded => {}
            Sink::Broker => {
                command
                    .env("INGESTION_REDPANDA_BROKERS", format!("127.0.0.1:{}", self.broker_port))
                    .env("INGESTION_REDPANDA_REPLICATION_FACTOR", "1")
                    .env("INGESTION_REDPANDA_MIN_INSYNC_REPLICAS", "1");
            }
            Sink::Apart => {
                command.env("INGESTION_CLICKHOUSE_URL", format!("http://127.0.0.1:{}", self.clickhouse));
            }
        }
        self.engine = Some(Process::start(command, "engine", home)?);
        Ok(())
    }

    /// Starts the engine and waits until it takes events and, unless ClickHouse is apart, stores them.
    pub async fn start_engine(&mut self) -> anyhow::Result<()> {
        self.spawn_engine()?;
        let path = if self.sink == Sink::Apart { "/health/ready" } else { "/health" };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((200, body)) = self.get(self.api.port(), path).await
                && (self.sink == Sink::Apart || is_up(&body))
            {
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
        let mut command = Command::new(&self.program);
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
        for process in [self.engine.take(), self.server.take()].into_iter().flatten() {
            process.stop().await?;
        }
        Ok(())
    }

    /// The engine's process.
    pub fn engine(&self) -> Option<u32> {
        self.engine.as_ref().map(Process::id)
    }

    /// Bytes of the records' files of the engine's log: without its reserve, marks and books.
    pub fn wal_bytes(&self) -> u64 {
        folder_bytes(&self.home.path().join("data/wal/log"))
    }

    fn check(&mut self, deadline: Instant, what: &str) -> anyhow::Result<()> {
        for process in [&mut self.engine, &mut self.server, &mut self.broker].into_iter().flatten() {
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

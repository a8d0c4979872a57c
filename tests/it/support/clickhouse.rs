//! A real ClickHouse engine for one test: the engine's own `clickhouse` subcommand in a folder of its own.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ingestion_engine::clickhouse::{Client, Compression, Migrator, Settings, Template};
use tempfile::TempDir;

use super::eventually;

/// Database of the tests; a word that needs quoting.
pub const DATABASE: &str = "over-watch";

/// An engine, running or not. Dropping it kills it and removes its folder.
pub struct ClickHouse {
    child: Option<Child>,
    port: u16,
    home: TempDir,
}

impl ClickHouse {
    /// Chooses a free port and starts nothing yet.
    pub fn absent() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { child: None, port, home: tempfile::tempdir().unwrap() }
    }

    /// Starts an engine and waits until it answers.
    pub async fn start() -> Self {
        let mut clickhouse = Self { child: None, port: 0, home: tempfile::tempdir().unwrap() };
        clickhouse.launch().await;
        clickhouse
    }

    /// Starts the engine, on the port and the data that it had.
    pub async fn launch(&mut self) {
        let port_file = self.home.path().join("port");
        if port_file.exists() {
            fs::remove_file(&port_file).unwrap();
        }
        let child = Command::new(env!("CARGO_BIN_EXE_ingestion-engine"))
            .arg("clickhouse")
            .args(["--port", &self.port.to_string(), "--path"])
            .arg(self.data())
            .arg("--port-file")
            .arg(&port_file)
            // Its end follows from ours even if this process is killed.
            .arg("--watch-parent")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("ClickHouse writes its port", || async { port_file.exists() }).await;
        self.port = fs::read_to_string(&port_file).unwrap().trim().parse().unwrap();
    }

    /// Kills the engine at whatever it is doing.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of this engine.
    pub fn client(&self) -> Client {
        client(&format!("http://127.0.0.1:{}", self.port), Compression::None)
    }

    /// A client with all tables in place.
    pub async fn migrated(&self) -> Client {
        let client = self.client();
        Migrator::new(client.clone(), template()).apply().await.unwrap();
        client
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client of any address.
pub fn client(url: &str, compression: Compression) -> Client {
    let settings = Settings {
        url: url.to_owned(),
        user: "default".into(),
        password: String::new(),
        database: DATABASE.into(),
        ca_file: None,
        compression,
        insert_timeout: Duration::from_mins(1),
    };
    Client::new(&settings).unwrap()
}

/// What the migrations are filled in with here.
pub fn template() -> Template {
    Template { database: DATABASE.into(), cluster: None, embedded: true }
}

/// The one number that `sql` answers.
pub async fn number(client: &Client, sql: &str) -> u64 {
    client.fetch::<u64>(&sql.replace("{db}", &format!("`{DATABASE}`"))).await.unwrap()[0]
}

/// The texts of the first column that `sql` answers.
pub async fn texts(client: &Client, sql: &str) -> Vec<String> {
    client.fetch::<String>(&sql.replace("{db}", &format!("`{DATABASE}`"))).await.unwrap()
}

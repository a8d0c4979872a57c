//! The engine as its users run it: the real binary, with a configuration file and a data folder of its own.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::process::ToEnd;

/// Tenant and key of every test engine.
pub const TENANT: &str = "00000000-0000-0000-0000-000000000000";
pub const KEY: &str = "secret";

/// Far above what any step takes, so that only a fault reaches it. The test broker may leave a group without partitions for
/// a minute or two when members of it die, leave and join at a time, also with plain consumers.
pub const DEADLINE: Duration = Duration::from_mins(4);

/// Waits until `done` says so.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the engine writes to standard error: one JSON object a line.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Log {
    fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = 0;
        loop {
            // Panics happen outside of the lock, which the report of a failed test takes again.
            let (ended, text) = {
                let mut lines = self.lines.lock().unwrap();
                if lines.0.len() == seen && !lines.1 {
                    lines = self.more.wait_timeout(lines, Duration::from_secs(1)).unwrap().0;
                }
                if let Some(found) = lines.0.iter().skip(seen).find_map(|line| find(line)) {
                    return found;
                }
                seen = lines.0.len();
                (lines.1, lines.0.join("\n"))
            };
            assert!(!ended && Instant::now() < deadline, "no {what} in the log:\n{text}");
        }
    }
}

/// A section of the tenants' file: a tenant with `settings` of its own, and its keys.
pub fn tenant_section(id: &str, keys: &[&str], settings: &str) -> String {
    let key = |key: &&str| format!("[[tenants.keys]]\nname = {key:?}\nsha256 = \"{}\"\n", sha256(key));
    let keys: Vec<_> = keys.iter().map(key).collect();
    format!("[[tenants]]\nid = \"{id}\"\n{settings}\n{}\n", keys.concat())
}

/// SHA-256, in hexadecimal.
pub fn sha256(text: &str) -> String {
    openssl::sha::sha256(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tenants of [`Setup::of_two_tenants`].
pub const ONE: &str = "00000000-0000-0000-0000-000000000001";
pub const TWO: &str = "00000000-0000-0000-0000-000000000002";

/// How to start an engine. Ports are chosen by the system.
pub struct Setup {
    folder: PathBuf,
    top: String,
    sections: String,
    environment: Vec<(String, String)>,
    files: Option<u32>,
}

impl Setup {
    /// An engine whose files are in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            top: String::new(),
            sections: String::new(),
            environment: Vec::new(),
            files: None,
        }
    }

    /// The tenants' file; with the one test tenant, unless the test has written another before it starts the engine.
    pub fn tenants_file(&self) -> PathBuf {
        self.folder.join("tenants.toml")
    }

    /// Adds TOML behind the sections that every test engine has.
    pub fn config(mut self, toml: &str) -> Self {
        writeln!(self.sections, "{toml}").unwrap();
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Lets the engine open so many files and no more.
    pub fn files(mut self, files: u32) -> Self {
        self.files = Some(files);
        self
    }

    /// Uses the broker at `address`, with a topic that one broker can hold.
    pub fn broker(self, address: &str) -> Self {
        self.env("INGESTION_REDPANDA_BROKERS", address)
            .env("INGESTION_REDPANDA_REPLICATION_FACTOR", "1")
            .env("INGESTION_REDPANDA_MIN_INSYNC_REPLICAS", "1")
            .env("INGESTION_REDPANDA_PARTITIONS", "4")
    }

    /// The binary with the configuration of this set-up and the words of `subcommand`.
    pub fn command(&self, subcommand: &str) -> Command {
        let file = self.folder.join("engine.toml");
        let data = self.folder.join("data").display().to_string();
        let tenants = self.tenants_file().display().to_string();
        if !self.tenants_file().exists() {
            std::fs::write(self.tenants_file(), tenant_section(TENANT, &[KEY], "")).unwrap();
        }
        let toml = format!(
            "data_dir = {data:?}\n{}\n[server]\nhost = \"127.0.0.1\"\nport = 0\nadmin_listen = \"\"\n\
             [auth]\ntenants_file = {tenants:?}\n[clickhouse.embedded]\nport = 0\n[log]\nformat = \"json\"\n{}\n",
            self.top, self.sections
        );
        std::fs::write(&file, toml).unwrap();
        let program = env!("CARGO_BIN_EXE_ingestion-engine");
        let mut command = Command::new(if self.files.is_some() { "prlimit" } else { program });
        if let Some(files) = self.files {
            // It becomes the engine: the process is the same.
            command.arg(format!("--nofile={files}")).arg(program);
        }
        command.arg("--config").arg(file).args(subcommand.split_whitespace());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("INGESTION_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it listens.
    pub fn start(&self) -> Engine {
        let mut engine = self.spawn();
        let api = engine.log.wait_for("listening API", |line| field(line, "api listening", "address"));
        engine.api = format!("http://{api}");
        engine
    }

    /// Starts it and waits for nothing: where it listens is not known.
    pub fn spawn(&self) -> Engine {
        let mut child = self.command("serve").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(stderr).lines() {
                    let Ok(line) = line else { break };
                    log.lines.lock().unwrap().0.push(line);
                    log.more.notify_all();
                }
                log.lines.lock().unwrap().1 = true;
                log.more.notify_all();
            }
        });
        Engine { child, log, api: String::new(), agent: agent() }
    }

    /// One with two tenants, [`ONE`] called first, whose keys are `one` and `two`.
    pub fn of_two_tenants(folder: &Path) -> Self {
        let setup = Self::new(folder);
        let tenants = tenant_section(ONE, &["one"], "name = \"first\"") + &tenant_section(TWO, &["two"], "");
        std::fs::write(setup.tenants_file(), tenants).unwrap();
        setup
    }

    /// Fails with what the `ledger` command says when it does not balance.
    pub fn ledger(&self) -> Result<(), String> {
        let (status, words) = self.run("ledger");
        if status.success() { Ok(()) } else { Err(words) }
    }

    /// Runs a subcommand to its end.
    pub fn run(&self, subcommand: &str) -> (ExitStatus, String) {
        let Output { status, stdout, stderr } = self.command(subcommand).to_end();
        (status, [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat())
    }
}

fn field(line: &str, message: &str, name: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == message).then(|| line[name].as_str().unwrap_or_default().to_owned())
}

fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let mut status = None;
    eventually(what, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// A client that returns every status, and keeps connections.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn from(mut response: ureq::http::Response<ureq::Body>) -> Self {
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        Self { status: response.status().as_u16(), headers: response.headers().clone(), text }
    }
}

/// A running engine; killed when dropped.
pub struct Engine {
    child: Child,
    log: Arc<Log>,
    api: String,
    agent: ureq::Agent,
}

impl Engine {
    pub fn api(&self) -> &str {
        &self.api
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a body to `/ingest` as the test tenant.
    pub fn ingest(&self, body: impl AsRef<[u8]>) -> Answer {
        self.post(&format!("Bearer {TENANT}:{KEY}"), &[], body.as_ref())
    }

    /// Sends a body with headers of the caller's choice.
    pub fn post(&self, authorization: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.agent.post(format!("{}/ingest", self.api)).header("authorization", authorization);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::from(request.send(body).unwrap())
    }

    pub fn get(&self, path: &str) -> Answer {
        Answer::from(self.agent.get(format!("{}{path}", self.api)).call().unwrap())
    }

    /// Whether it is there and everything in `/health` is up.
    pub fn is_up(&self) -> bool {
        let answer = self.agent.get(format!("{}/health", self.api)).call();
        answer.is_ok_and(|answer| Answer::from(answer).json()["status"] == "up")
    }

    /// The named component of `/health`.
    pub fn component(&self, name: &str) -> Value {
        self.get("/health").json()["components"][name].clone()
    }

    /// The whole-number value of one series of `/metrics`.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics").text;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    /// The same of a series that may not have begun.
    pub fn metric_or_zero(&self, series: &str) -> u64 {
        let text = self.get("/metrics").text;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// The embedded ClickHouse's address; waits until it is up.
    pub fn clickhouse(&self) -> ClickHouse {
        let url = self.log.wait_for("embedded ClickHouse", |line| field(line, "embedded ClickHouse listening", "url"));
        ClickHouse::at(&url)
    }

    /// Waits for a line of the log whose text holds `part`.
    pub fn wait_for_log(&self, part: &str) -> String {
        self.log.wait_for(part, |line| line.contains(part).then(|| line.to_owned()))
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap().0.join("\n")
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        wait(&mut self.child, "end of the engine")
    }

    /// Sends a body to `/ingest` and returns nothing when the connection breaks.
    pub fn try_ingest(&self, body: impl AsRef<[u8]>) -> Option<Answer> {
        let authorization = format!("Bearer {TENANT}:{KEY}");
        let request = self.agent.post(format!("{}/ingest", self.api)).header("authorization", authorization);
        request.send(body.as_ref()).ok().map(Answer::from)
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        let status = wait(&mut self.child, "end after kill -9");
        assert_eq!(status.signal(), Some(9));
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        let status = wait(&mut self.child, "end after SIGTERM");
        // What it has started may hold its output for a moment, and not for ever.
        eventually("the end of its output", || self.log.lines.lock().unwrap().1);
        status
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if thread::panicking() {
            eprintln!("log of the engine:\n{}", self.log());
        }
    }
}

/// Sends a signal to a process that a test started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "cannot send {name} to {pid}");
}

/// ClickHouse over HTTP, as a user would ask it.
pub struct ClickHouse {
    pub url: String,
    agent: ureq::Agent,
}

impl ClickHouse {
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), agent: agent() }
    }

    /// The answer's text without the last line break, or the error.
    pub fn try_query(&self, sql: &str) -> Result<String, String> {
        match self.agent.post(&self.url).send(sql) {
            Ok(response) => match Answer::from(response) {
                Answer { status: 200, text, .. } => Ok(text.trim_end().to_owned()),
                answer => Err(answer.text),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn number(&self, sql: &str) -> u64 {
        self.query(sql).parse().unwrap()
    }

    /// Waits until `events` rows are there, each of them one event, and the view has counted each once.
    pub fn wait_for_events_once(&self, events: usize) {
        let rows =
            "SELECT concat(toString(count()), ' ', toString(uniqExact(tenant_id, event_id))) FROM overwatch.events";
        self.wait_for(rows, &format!("{events} {events}"));
        self.wait_for("SELECT sum(events) FROM overwatch.events_per_minute", &events.to_string());
    }

    /// Stops merges, which would make one of two rows of an event, until the engine restarts.
    pub fn stop_merges(&self) {
        eventually("merges are stopped", || self.try_query("SYSTEM STOP MERGES").is_ok());
    }

    /// Waits until `sql` answers `expected`; errors while the engine restarts count as "not yet".
    pub fn wait_for(&self, sql: &str, expected: &str) {
        let mut last = Err(String::new());
        let deadline = Instant::now() + DEADLINE;
        while last.as_deref() != Ok(expected) {
            assert!(Instant::now() < deadline, "{sql}: expected {expected}, got {last:?}");
            thread::sleep(Duration::from_millis(50));
            last = self.try_query(sql);
        }
    }
}

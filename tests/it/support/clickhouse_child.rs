//! The real binary's `clickhouse` subcommand on a free port, and curl to talk to it.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ingestion-engine");

/// Longest wait for anything that must happen; only a failing test waits that long.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A file that `make setup` keeps in the user's cache folder.
pub fn cached(file: &str) -> PathBuf {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
    };
    cache.join("ingestion-engine").join(file)
}

/// Waits until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A running child, killed when dropped.
pub struct ClickHouse {
    pub process: Child,
    pub port: u16,
    log: PathBuf,
}

impl ClickHouse {
    /// Starts on `path`, with nothing on standard input.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, &[], Stdio::null())
    }

    /// Starts with more arguments and the given standard input.
    pub fn start_with(path: &Path, arguments: &[&str], stdin: Stdio) -> Self {
        let scratch = path.parent().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (port_file, log) = (scratch.join(format!("{name}.port")), scratch.join(format!("{name}.log")));
        if port_file.exists() {
            std::fs::remove_file(&port_file).unwrap();
        }
        let output = File::create(&log).unwrap();
        let process = Command::new(PROGRAM)
            .args(["clickhouse", "--port", "0", "--path"])
            .arg(path)
            .arg("--port-file")
            .arg(&port_file)
            .args(arguments)
            .stdin(stdin)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut started = Self { process, port: 0, log };
        started.port = wait_for("the child's port file", || {
            if let Some(status) = started.process.try_wait().unwrap() {
                panic!("the child ended ({status}): {}", started.log());
            }
            std::fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        });
        started
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the child printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        send_signal(self.process.id(), signal);
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self) -> ExitStatus {
        wait_for("the child's end", || self.process.try_wait().unwrap())
    }

    /// Runs a statement by POST and gives its answer, which must be a success.
    pub fn run(&self, sql: &str) -> String {
        let answer = post(&self.url(), sql.as_bytes());
        assert_eq!(answer.status, 200, "{sql}: {}", answer.text());
        answer.text()
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }
}

/// Sends a signal to one process.
pub fn send_signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// ClickHouse's error number.
    pub fn code(&self) -> Option<u32> {
        self.header("x-clickhouse-exception-code").map(|code| code.parse().unwrap())
    }
}

/// POSTs `body` to `url`.
pub fn post(url: &str, body: &[u8]) -> Answer {
    curl(&["--data-binary", "@-", url], body)
}

/// `url` with `query` as its `query` parameter, and further parameters behind it.
pub fn with_query(url: &str, query: &str, more: &[(&str, &str)]) -> String {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    pairs.append_pair("query", query).extend_pairs(more);
    format!("{url}/?{}", pairs.finish())
}

/// Runs curl with `input` on its standard input.
pub fn curl(arguments: &[&str], input: &[u8]) -> Answer {
    let mut process = Command::new("curl")
        // No "Expect: 100-continue": its interim answer would stand before the answer.
        .args(["--silent", "--show-error", "--include", "--max-time", "60", "-H", "Expect:", "-H", "Content-Type:"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is needed for this test");
    let mut stdin = process.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    process.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let mut errors = String::new();
    process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let status = process.wait().unwrap();
    // curl without a body argument does not read its input.
    drop(writer.join().unwrap());
    assert!(status.success(), "curl {arguments:?} ended with {status}: {errors}");
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(output[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer { status, headers, body: output[end + 4..].to_vec() }
}

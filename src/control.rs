//! How commands such as `ingestion-engine plugins ...` and `ledger` talk to the engine that runs: a Unix socket in the data folder.
//!
//! ```text
//! {"command":"list"}                                      -> {"ok":[..]}
//! {"command":"quarantine","name":"redact","reason":".."}  -> {"ok":null} | {"error":".."}
//! {"command":"resume","name":"redact"}                    -> {"ok":null} | {"error":".."}
//! {"command":"reprocess","name":"redact"}                 -> {"progress":{..}} .. {"ok":{..}} | {"error":".."}
//! {"command":"replay","filter":{..}}                      -> {"progress":{..}} .. {"ok":{..}} | {"error":".."}
//! {"command":"trace","event":"..",..}                     -> {"ok":{..}} | {"ok":null} | {"error":".."}
//! {"command":"ledger"}                                    -> {"ok":{..}} | {"error":".."}
//! ```
//!
//! - An engine that is at work says so every few seconds (`{"progress":null}`), so that nobody waits for one that is not.
//! - JSON, a line each. One request a connection.
//! - Who may open the socket may do all of this: its mode is 0600 from its first moment, so the engine's user and root.
//! - It is no part of the API and has no compatibility to keep: command and engine are one binary.
//! - An engine goes on without it (a path that is too long for a socket): then the commands work while it is stopped.

use std::{
    fs,
    future::Future,
    io::{self, BufRead, BufReader, Read, Write},
    ops::ControlFlow,
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixSocket, UnixStream},
    sync::mpsc,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    dead_letters::replay::{self, Filter},
    error_chain::chain,
    ledger,
    plugins::{
        Plugins,
        reprocess::{Progress, Reprocess, Rerun, Summary},
    },
    wal::{Sought, Wal},
};

/// Name of the socket in the data folder.
const SOCKET: &str = "control.sock";
/// Most bytes of a socket's path: `sun_path` has 108 with the terminating zero.
const MOST_PATH_BYTES: usize = 107;
/// Most bytes of a request: the names of some hundred thousand letters.
const MOST_REQUEST_BYTES: u64 = 16 << 20;
/// Most bytes of an answer: the ledger of some hundred thousand tenants.
const MOST_ANSWER_BYTES: u64 = 256 << 20;
/// Connections that wait to be taken: people and scripts, not load.
const BACKLOG: u32 = 16;
/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How often an engine that is at work says so.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// How long a client waits for the next line: an engine that is frozen says nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// [`Plugins::list`].
    List,
    /// [`Plugins::quarantine`].
    Quarantine {
        /// The plugin.
        name: String,
        /// Why, for whoever reads it later.
        reason: String,
    },
    /// [`Plugins::resume`].
    Resume {
        /// The plugin.
        name: String,
    },
    /// [`Reprocessor::reprocess`].
    Reprocess {
        /// The plugin.
        name: String,
    },
    /// [`Replayer::replay`].
    Replay {
        /// Which dead letters.
        filter: Filter,
    },
    /// [`Wal::find`]; the answer is null on a node without a log.
    Trace(Sought),
    /// [`ledger::Source::ledger`].
    Ledger,
}

/// A line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// More follows.
    Progress(Value),
    /// The last line: it was done.
    Ok(Value),
    /// The last line: it was not.
    Error(String),
}

/// The outcome of [`Reprocessor::reprocess`].
pub type Reprocessed<'a> = Pin<Box<dyn Future<Output = Result<Summary, String>> + Send + 'a>>;

/// Runs parked events through their plugin again.
pub trait Reprocessor: Send + Sync {
    /// Those of the plugin `name`, telling `progress` now and then. Stops when nobody listens to it any more.
    fn reprocess<'a>(&'a self, name: &'a str, progress: mpsc::UnboundedSender<Progress>) -> Reprocessed<'a>;
}

impl<R: Rerun> Reprocessor for Reprocess<R> {
    fn reprocess<'a>(&'a self, name: &'a str, progress: mpsc::UnboundedSender<Progress>) -> Reprocessed<'a> {
        Box::pin(async move {
            let tell = move |now| match progress.send(now) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            self.run(name, tell).await.map_err(|error| chain(&error))
        })
    }
}

/// The outcome of [`Replayer::replay`].
pub type Replayed<'a> = Pin<Box<dyn Future<Output = Result<replay::Summary, String>> + Send + 'a>>;

/// Sends dead letters through the front again.
pub trait Replayer: Send + Sync {
    /// Those that `filter` names, telling `progress` now and then.
    fn replay<'a>(&'a self, filter: &'a Filter, progress: mpsc::UnboundedSender<replay::Summary>) -> Replayed<'a>;
}

/// Where the part that reads parked events is put once it works: ClickHouse comes up after the control socket.
pub type ReprocessorSlot = Arc<OnceLock<Arc<dyn Reprocessor>>>;

/// Why there is no control socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A socket's path is short.
    #[error(
        "{} has {} bytes, and the path of a socket may have at most {MOST_PATH_BYTES}: choose a shorter data_dir; until \
         then commands that ask the engine (`plugins`, `trace`) work only while it is stopped",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The socket's path in `data_dir`.
///
/// # Errors
/// [`ControlError::PathTooLong`]
pub fn socket_path(data_dir: &Path) -> Result<PathBuf, ControlError> {
    let path = data_dir.join(SOCKET);
    if path.as_os_str().len() > MOST_PATH_BYTES { Err(ControlError::PathTooLong { path }) } else { Ok(path) }
}

/// The server's side.
pub struct Control {
    path: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What clients ask for.
#[derive(Clone)]
pub struct Served {
    /// The registry.
    pub plugins: Plugins,
    /// What runs parked events again.
    pub reprocessor: ReprocessorSlot,
    /// What sends dead letters through the front again, if there is a front.
    pub replayer: Option<Arc<dyn Replayer>>,
    /// The node's log, if it has one.
    pub wal: Option<Wal>,
    /// What measures the ledger of that log.
    pub ledger: Option<Arc<dyn ledger::Source>>,
}

impl Control {
    /// Listens in `data_dir`, whose registry the caller holds ([`Plugins`]): a socket that is there is a dead engine's. In
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn start(data_dir: &Path, served: Served) -> Result<Self, ControlError> {
        let path = socket_path(data_dir)?;
        let listener = listen(&path)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(listener, served, stop.clone(), tasks.clone()));
        Ok(Self { path, stop, tasks })
    }

    /// Takes no more requests, and ends those that are under way: a reprocessing goes on at the next one.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    let failed = |action| move |source| ControlError::Io { action, path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let socket = UnixSocket::new_stream().map_err(failed("make"))?;
    // Before it has a name, so that at no moment others may open it. Linux gives the name the socket's mode.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::fchmod(&socket, mode).map_err(|errno| failed("restrict")(errno.into()))?;
    socket.bind(path).map_err(failed("make"))?;
    socket.listen(BACKLOG).map_err(failed("listen on"))
}

async fn accept(listener: UnixListener, served: Served, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (served, stop) = (served.clone(), stop.clone());
                tasks.spawn(async move {
                    // A client that went away is nobody's trouble.
                    if let Some(Err(error)) = stop.run_until_cancelled(serve(stream, served)).await {
                        tracing::debug!(%error, "a client of the control socket went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket takes no connection; it is tried again");
                // Out of file descriptors: waiting is all that helps.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, served: Served) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = Vec::new();
    let mut reading = tokio::io::BufReader::new(reading.take(MOST_REQUEST_BYTES));
    let read = tokio::time::timeout(REQUEST_TIME, reading.read_until(b'\n', &mut line)).await;
    read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => {
            let (tell, mut told) = mpsc::unbounded_channel();
            let (tell_replay, mut told_replay) = mpsc::unbounded_channel();
            let doing = served.carry_out(request, tell, tell_replay);
            tokio::pin!(doing);
            let mut alive = tokio::time::interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
            loop {
                // Whatever was told stands in front of the answer.
                tokio::select! {
                    biased;
                    Some(progress) = told.recv() => write(&mut writing, &Line::Progress(progress_json(&progress))).await?,
                    Some(done) = told_replay.recv() => write(&mut writing, &Line::Progress(json!(done))).await?,
                    answer = &mut doing => break answer,
                    _ = alive.tick() => write(&mut writing, &Line::Progress(Value::Null)).await?,
                }
            }
        }
        Err(error) => Line::Error(format!("the request cannot be read: {error}")),
    };
    write(&mut writing, &answer).await
}

async fn write(stream: &mut (impl AsyncWriteExt + Unpin), line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

fn progress_json(progress: &Progress) -> Value {
    json!(progress.summary)
}

impl Served {
    async fn carry_out(
        &self,
        request: Request,
        progress: mpsc::UnboundedSender<Progress>,
        replayed: mpsc::UnboundedSender<replay::Summary>,
    ) -> Line {
        let done = match request {
            Request::List => serde_json::to_value(self.plugins.list()).map_err(|error| error.to_string()),
            Request::Quarantine { name, reason } => {
                self.plugins.quarantine(name, reason).await.map(|()| Value::Null).map_err(|error| error.to_string())
            }
            Request::Resume { name } => {
                self.plugins.resume(name).await.map(|()| Value::Null).map_err(|error| error.to_string())
            }
            Request::Reprocess { name } => self.reprocess(&name, progress).await,
            Request::Replay { filter } => match &self.replayer {
                Some(replayer) => match replayer.replay(&filter, replayed).await {
                    Ok(summary) => serde_json::to_value(summary).map_err(|error| error.to_string()),
                    Err(reason) => Err(reason),
                },
                None => Err("this engine has no front that takes them".to_owned()),
            },
            Request::Trace(sought) => match &self.wal {
                Some(wal) => match wal.find(sought).await {
                    Ok(found) => serde_json::to_value(found).map_err(|error| error.to_string()),
                    Err(error) => Err(chain(&error)),
                },
                None => Ok(Value::Null),
            },
            Request::Ledger => self.ledger().await,
        };
        done.map_or_else(Line::Error, Line::Ok)
    }

    async fn ledger(&self) -> Result<Value, String> {
        let ledger = self
            .ledger
            .as_ref()
            .ok_or("this node takes no events in (it has not the role \"api\"), so it has no ledger")?;
        serde_json::to_value(ledger.ledger().await?).map_err(|error| error.to_string())
    }

    async fn reprocess(&self, name: &str, progress: mpsc::UnboundedSender<Progress>) -> Result<Value, String> {
        let quarantine = self.plugins.current().named(name).and_then(|plugin| plugin.quarantine());
        if let Some(quarantine) = quarantine {
            return Err(format!(
                "plugin {name:?} is quarantined ({}), so its events would only be parked again: mend it, run \
                 `ingestion-engine plugins resume {name}`, then this once more",
                quarantine.reason
            ));
        }
        let reprocessor = self.reprocessor.get().ok_or(
            "this engine does not reach ClickHouse yet, where the parked events are (or it has not the role \"sink\"; run \
             this on a node that has both roles)",
        )?;
        let summary = reprocessor.reprocess(name, progress).await?;
        serde_json::to_value(summary).map_err(|error| error.to_string())
    }
}

/// Why a client has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("no engine runs with the data folder {}", data_dir.display())]
    NotRunning {
        /// The folder.
        data_dir: PathBuf,
    },
    /// The socket cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The engine refused.
    #[error("{0}")]
    Refused(String),
    /// The answer is none.
    #[error("the engine ended or does not answer, or its answer cannot be read")]
    Answer(#[source] io::Error),
}

/// Sends `request` to the engine that runs in `data_dir` and waits for its answer; `progress` sees what comes before it.
/// Blocking.
///
/// # Errors
/// [`ClientError`]
pub fn ask<T: DeserializeOwned>(
    data_dir: &Path,
    request: &Request,
    progress: impl FnMut(Value),
) -> Result<T, ClientError> {
    ask_within(data_dir, request, SILENCE, progress)
}

fn ask_within<T: DeserializeOwned>(
    data_dir: &Path,
    request: &Request,
    silence: Duration,
    mut progress: impl FnMut(Value),
) -> Result<T, ClientError> {
    let unheard = |error| ClientError::Answer(in_words(error, silence));
    let path = socket_path(data_dir)?;
    let stream = BlockingStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { data_dir: data_dir.to_owned() }
        }
        _ => ControlError::Io { action: "connect to", path: path.clone(), source }.into(),
    })?;
    let patience = stream.set_read_timeout(Some(silence)).and_then(|()| stream.set_write_timeout(Some(silence)));
    patience.map_err(ClientError::Answer)?;
    let mut text = serde_json::to_vec(request).map_err(|error| ClientError::Answer(error.into()))?;
    text.push(b'\n');
    (&stream).write_all(&text).map_err(unheard)?;
    let of_value = |value| serde_json::from_value(value).map_err(|error| ClientError::Answer(error.into()));
    for line in BufReader::new(stream.take(MOST_ANSWER_BYTES)).lines() {
        let line = line.map_err(unheard)?;
        match serde_json::from_str(&line).map_err(|error| ClientError::Answer(error.into()))? {
            Line::Ok(value) => return of_value(value),
            Line::Error(words) => return Err(ClientError::Refused(words)),
            Line::Progress(Value::Null) => {}
            Line::Progress(value) => progress(value),
        }
    }
    Err(ClientError::Answer(io::ErrorKind::UnexpectedEof.into()))
}

/// The system says of a time that ran out that a resource is unavailable for now.
fn in_words(error: io::Error, silence: Duration) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let words = format!("it has said nothing for {} s (is it frozen?)", silence.as_secs_f64());
            io::Error::new(io::ErrorKind::TimedOut, words)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::net::UnixListener as BlockingListener;

    use super::*;

    #[test]
    fn an_engine_that_says_nothing_is_said_to_say_nothing() {
        let home = tempfile::tempdir().unwrap();
        // As one that is frozen: the system takes the connection, and nobody reads.
        let _listener = BlockingListener::bind(home.path().join(SOCKET)).unwrap();
        let asked = ask_within::<Value>(home.path(), &Request::Ledger, Duration::from_millis(50), |_| {});
        let words = chain(&asked.unwrap_err());
        assert!(words.ends_with("it has said nothing for 0.05 s (is it frozen?)"), "{words}");
    }
}

//! The body of the `clickhouse` subcommand: lock, port, engine, HTTP; and an orderly end.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use axum::serve::ListenerExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    access, defaults, durable,
    engine::{Engine, OpenError},
    facade::{self, Facade},
    handshake::{Message, NONCE_VARIABLE},
};
use crate::{
    error_chain::chain,
    folder_lock::{FolderLock, LockError, create_folder},
};

/// How long a predecessor on the same path may take to exit.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// How much less urgent the engine is than its parent, as `nice(1)` counts: it has a tenth of the core that it shares with a
/// busy thread of the parent, and all that nobody else wants.
const NICE: i32 = 10;

/// How long running requests may take to finish after SIGTERM or SIGINT; then they are cancelled.
const FINISH: Duration = Duration::from_secs(15);

/// The same after the parent has gone: nobody waits for the answers, and the next start waits for the lock.
const FINISH_ORPHANED: Duration = Duration::from_secs(1);

/// How long cancelled requests may take to end; then the process ends without them.
const CANCELLED: Duration = Duration::from_secs(3);

/// How long the process may live on after its parent is gone: well below [`LOCK_PATIENCE`] of the next start.
const ORPHANED: Duration = Duration::from_secs(5);

/// How often the parts are looked at: often in the eight minutes for which a merge's sources are kept.
const LOOK_AT_PARTS: Duration = Duration::from_secs(5);

/// Threads that move bytes between sockets and requests; everything heavy runs elsewhere.
const ASYNC_THREADS: usize = 2;

/// The pinned library's folder below the user's cache folder.
const LIBRARY: &str = "ingestion-engine/libchdb-26.7.3-stable.1/libchdb.so";

/// What the engine is started with, beside its path and users. It runs beside an ingestion engine on what may be a small
/// machine. Of its resident memory (200 MB idle) 160 MB are pages of the library's own file; these options bound the rest.
const ENGINE_OPTIONS: [&str; 9] = [
    // The engine takes a bare expression for a query; a server does not.
    "--implicit_select=0",
    // Answers are complete in memory before they are sent. A larger one is an error (396), not the end of the process.
    "--max_result_bytes=536870912",
    // Half the machine instead of nine tenths of it.
    "--max_server_memory_usage_to_ram_ratio=0.5",
    // Caches that would otherwise grow to gigabytes. 64 MiB of marks cover some 30 GB of compressed columns.
    "--mark_cache_size=67108864",
    "--primary_index_cache_size=67108864",
    "--index_mark_cache_size=16777216",
    "--query_condition_cache_size=16777216",
    "--compiled_expression_cache_size=33554432",
    // Idle threads that are kept: 8 instead of 1,000 (25 threads instead of 80 after a burst of inserts, 12 MB less).
    "--max_thread_pool_free_size=8",
];

/// File in the folder of the tables with the port on which they are served, for commands that work on them while an
/// engine runs. It is that of whoever holds the folder's lock: it is removed once the lock is taken, and written when
/// queries are answered.
pub const PORT_FILE: &str = "PORT";

/// The command line of the subcommand.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ChildArgs {
    /// Folder of the tables, created if missing; one process at a time [default: clickhouse.embedded.path]
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// Port on 127.0.0.1; 0 lets the system choose [default: clickhouse.embedded.port]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// libchdb.so [default: clickhouse.embedded.library, else where `make setup` keeps it]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Write the port to this file once queries are answered
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// Exit when standard input closes (set by `serve`, which holds the other end).
    #[arg(long, hide = true)]
    pub watch_parent: bool,
    /// Repeated on /ping (set by `serve`).
    #[arg(long, env = NONCE_VARIABLE, hide = true, hide_env_values = true)]
    pub nonce: Option<String>,
}

impl ChildArgs {
    /// What to run; `path`, `port` and `library` stand in for what was not given.
    pub fn settings(self, path: PathBuf, port: u16, library: Option<PathBuf>) -> ChildSettings {
        ChildSettings {
            path: self.path.unwrap_or(path),
            port: self.port.unwrap_or(port),
            library: self.library.or(library),
            port_file: self.port_file,
            watch_parent: self.watch_parent,
            nonce: self.nonce,
        }
    }
}

/// What [`run`] needs to know.
#[derive(Clone, Debug)]
pub struct ChildSettings {
    /// Folder of the tables; created if missing.
    pub path: PathBuf,
    /// Port on 127.0.0.1; 0: chosen by the system.
    pub port: u16,
    /// libchdb.so; None: the one in the user's cache folder.
    pub library: Option<PathBuf>,
    /// Written (the port and a line end, in one piece) once queries are answered.
    pub port_file: Option<PathBuf>,
    /// Exit when standard input closes, and report readiness or failure on standard output.
    pub watch_parent: bool,
    /// Repeated on `/ping` in `X-Ingestion-Nonce`.
    pub nonce: Option<String>,
}

/// Why the subcommand ended.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The library is not there.
    #[error("there is no libchdb at {}: `make setup` fetches it; or set clickhouse.url to use a server", path.display())]
    LibraryMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where the cache folder is.
    #[error("neither XDG_CACHE_HOME nor HOME is set: name libchdb.so with --library")]
    NoCacheFolder,
    /// The path could not be made.
    #[error("the folder {} cannot be used", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the path.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// Another process has the port.
    #[error(
        "port {port} on 127.0.0.1 is taken by another process: stop it, or choose another port (clickhouse.embedded.port)"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The port cannot be listened on.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine did not open.
    #[error("the engine did not open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The port file, a pipe, a signal handler or the server failed.
    #[error("{what}")]
    Io {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Requests did not end in time, not even cancelled.
    #[error("requests still ran {} s after they were told to stop", FINISH.as_secs() + CANCELLED.as_secs())]
    StillRunning,
}

/// Runs the engine behind its HTTP interface until SIGTERM, SIGINT or the parent's end. Blocks; at most once a process.
///
/// # Errors
/// Any failure to start, and an end that was not orderly. After an error the process should exit at once.
pub fn run(settings: ChildSettings) -> Result<(), ChildError> {
    let reports = settings.watch_parent;
    let result = start(settings);
    if reports && let Err(error) = &result {
        report(&Message::Failed { reason: chain(error) });
    }
    result
}

fn start(settings: ChildSettings) -> Result<(), ChildError> {
    let ChildSettings { path, port, library, port_file, watch_parent, nonce } = settings;
    let orphaned = CancellationToken::new();
    if watch_parent {
        // Of all threads that follow. An insert or a merge keeps every core busy for a tenth of a second at a time; who waits
        // for an answer of the parent goes before it.
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "the embedded engine runs as urgently as everything else");
        }
        let orphaned = orphaned.clone();
        thread::Builder::new()
            .name("parent-watch".to_owned())
            .spawn(move || end_with_parent(&orphaned))
            .map_err(|source| ChildError::Io { what: "cannot watch the parent", source })?;
    }
    let library = library.map_or_else(cached_library, Ok)?;
    if !library.is_file() {
        return Err(ChildError::LibraryMissing { path: library });
    }
    let unusable = |source| ChildError::Path { path: path.clone(), source };
    create_folder(&path).map_err(unusable)?;
    let path = path.canonicalize().map_err(unusable)?;
    let lock = FolderLock::acquire(&path, LOCK_PATIENCE)?;
    let own_port_file = path.join(PORT_FILE);
    match std::fs::remove_file(&own_port_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(error)),
        _ => {}
    }

    // Before the engine, which takes a second: a taken port should be known at once.
    let listener =
        TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => ChildError::PortTaken { port },
            _ => ChildError::Listen { port, source },
        })?;
    let port = listener.local_addr().map_err(|source| ChildError::Listen { port, source })?.port();
    let opened = std::time::Instant::now();
    let users = file_option("users_config", &path, access::FILE, access::USERS).map_err(unusable)?;
    // Without one a config.xml in the working directory, or clickhouse-local's in the home folder, would be read.
    let config = file_option("config-file", &path, defaults::FILE, defaults::CONFIG).map_err(unusable)?;
    let options: Vec<&str> = ENGINE_OPTIONS.iter().copied().chain([config.as_str(), users.as_str()]).collect();
    durable::forget_lost(&path).map_err(unusable)?;
    let engine =
        Engine::open(&library, &path, &options).map_err(|source| ChildError::Open { path: path.clone(), source })?;
    let facade = Facade::new(engine, nonce.as_deref());
    tracing::info!(
        version = facade.version(),
        path = %path.display(),
        milliseconds = u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX),
        "the embedded engine is open"
    );

    if watch_parent {
        let (path, orphaned) = (path.clone(), orphaned.clone());
        thread::Builder::new()
            .name("part-watch".to_owned())
            .spawn(move || end_with_a_hollow_part(&path, &orphaned))
            .map_err(|source| ChildError::Io { what: "cannot watch the parts", source })?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .max_blocking_threads(facade::BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|source| ChildError::Io { what: "cannot start the runtime", source })?;
    let port_files: Vec<PathBuf> = std::iter::once(own_port_file).chain(port_file).collect();
    let announce = move || announce(port, &port_files, watch_parent, nonce.unwrap_or_default());
    let ended = runtime.block_on(serve(&facade, listener, &orphaned, announce));
    if matches!(ended, Err(ChildError::StillRunning)) {
        // Threads inside the library cannot be ended one by one, and its exit handlers would wait for them.
        // A kill is a state from which the engine opens again: acknowledged inserts are in the tables.
        if !orphaned.is_cancelled() {
            tracing::error!("requests do not end: the process ends without them");
        }
        end_now();
    }
    drop(runtime);
    // The last connection: closes the engine, before the lock is given up.
    drop(facade);
    drop(lock);
    ended
}

/// An option of the engine that is a file in its folder, written anew.
fn file_option(option: &str, folder: &Path, file: &str, content: &str) -> std::io::Result<String> {
    let file = folder.join(file);
    std::fs::write(&file, content)?;
    Ok(format!("--{option}={}", file.display()))
}

async fn serve(
    facade: &Arc<Facade>,
    listener: TcpListener,
    orphaned: &CancellationToken,
    announce: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), ChildError> {
    let failed = |what| move |source| ChildError::Io { what, source };
    listener.set_nonblocking(true).map_err(failed("cannot listen"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed("cannot listen"))?.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
    });
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("cannot handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("cannot handle SIGINT"))?;
    let stop = CancellationToken::new();
    let sweep = tokio::spawn(Arc::clone(facade).sweep_sessions());
    let server = axum::serve(listener, facade.router()).with_graceful_shutdown(stop.clone().cancelled_owned());
    let mut server = tokio::spawn(server.into_future());
    announce().map_err(failed("cannot announce the port"))?;

    let patience = tokio::select! {
        _ = terminate.recv() => FINISH,
        _ = interrupt.recv() => FINISH,
        () = orphaned.cancelled() => FINISH_ORPHANED,
        ended = &mut server => return flatten(ended).map_err(failed("the HTTP server failed")),
    };
    if !orphaned.is_cancelled() {
        tracing::info!("stopping: running requests finish first");
    }
    stop.cancel();
    sweep.abort();
    let finish = async {
        let ended = flatten((&mut server).await);
        // Requests whose client went away run on without a connection.
        facade.drain().await;
        ended
    };
    tokio::pin!(finish);
    if let Ok(finished) = tokio::time::timeout(patience, &mut finish).await {
        return finished.map_err(failed("the HTTP server failed"));
    }
    if let Err(error) = facade.cancel_all()
        && !orphaned.is_cancelled()
    {
        tracing::warn!(%error, "running requests cannot be cancelled");
    }
    match tokio::time::timeout(CANCELLED, &mut finish).await {
        Ok(finished) => finished.map_err(failed("the HTTP server failed")),
        // A client that never ends its body is no reason: only what runs in the engine is.
        Err(_) if facade.is_idle() => Ok(()),
        Err(_) => Err(ChildError::StillRunning),
    }
}

fn flatten(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> std::io::Result<()> {
    ended.map_err(std::io::Error::other)?
}

/// Says where queries are answered: to the port files, and to the parent or to the terminal.
fn announce(port: u16, port_files: &[PathBuf], to_parent: bool, nonce: String) -> std::io::Result<()> {
    for file in port_files {
        // Renamed into place, so that a reader never sees half a number.
        let partial = file.with_extension("partial");
        std::fs::write(&partial, format!("{port}\n"))?;
        std::fs::rename(&partial, file)?;
    }
    if to_parent {
        report(&Message::Ready { port, nonce });
    } else {
        writeln!(std::io::stderr(), "listening on http://127.0.0.1:{port}")?;
    }
    Ok(())
}

fn report(message: &Message) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone reads nothing, and then the closing pipe ends this process.
    if writeln!(out, "{}", message.line()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("the parent does not listen");
    }
}

/// Waits for the end of standard input, the pipe that the parent holds open as long as it lives, and sees to it that this
/// process ends then.
///
/// From then on nothing may be logged, here least of all: the log goes to a pipe that nobody reads any more, and the
/// subscriber answers a failed write with `eprintln!`, which panics.
fn end_with_parent(orphaned: &CancellationToken) {
    let mut input = std::io::stdin().lock();
    let mut ignored = [0; 64];
    loop {
        match input.read(&mut ignored) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    orphaned.cancel();
    // An orderly end takes less, and then this thread ends with the process.
    thread::sleep(ORPHANED);
    end_now();
}

/// Ends this process when a merge has replaced parts with an empty one: the next start takes those parts again, as long as they
/// are there.
fn end_with_a_hollow_part(path: &Path, orphaned: &CancellationToken) {
    while !orphaned.is_cancelled() {
        thread::sleep(LOOK_AT_PARTS);
        match durable::hollow_part(path) {
            Ok(Some(part)) if !orphaned.is_cancelled() => {
                tracing::error!(
                    part = %part.display(),
                    "a merge has left an empty part, as on a full disk: the embedded engine starts again, without it and with the \
                     parts that it was made of"
                );
                // Not an orderly end, which might clear away what is needed.
                end_now();
            }
            Ok(_) => {}
            // What makes it matter would show in queries.
            Err(error) => tracing::debug!(%error, "the parts cannot be looked at"),
        }
    }
}

/// Ends the process without running exit handlers.
pub(super) fn end_now() {
    let ended = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    if ended.is_err() {
        std::process::abort();
    }
}

fn cached_library() -> Result<PathBuf, ChildError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    Ok(cache.ok_or(ChildError::NoCacheFolder)?.join(LIBRARY))
}

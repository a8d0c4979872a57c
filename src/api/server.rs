//! Listening, serving connections, and stopping without breaking an answer.
//!
//! axum's own `serve` bounds neither how long a client may take over its headers nor how long a shutdown may wait; this
//! loop does both with the same hyper underneath.
//!
//! Connections take file descriptors, and so do the log, the broker's client and ClickHouse's: a flood of connections gets
//! what is left beside a share for these, and the rest of it waits in the kernel.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{
    address::Peer,
    routes::{Routes, WithPeer},
    threads::{Counted, Threads},
};

/// How a server treats its connections.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// From the connection, or the answer before, to the end of a request's head.
    pub header_timeout: Duration,
    /// How long a stop waits for requests in flight.
    pub shutdown: Duration,
    /// Connections that are open at once; more wait in the kernel.
    pub connections: usize,
    /// Threads that they are served on; at least 1.
    pub threads: usize,
}

/// Files that the engine opens beside connections: some for each generation of the log, each plugin, each broker, each insert,
/// and each connection to the admin port.
const OWN_FILES: usize = 512;

/// Connections of the admin port: a scraper's, a probe's, an operator's.
pub const ADMIN_CONNECTIONS: usize = 100;

/// As many connections as the system's limit of open files leaves room for: all but [`OWN_FILES`], and half where there are
/// few. The limit is first raised as far as it goes.
pub fn most_connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    files.saturating_sub(OWN_FILES).max(files / 2)
}

/// A bound port that is not served yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: ServerSettings,
    threads: Threads,
    /// Each open connection has one.
    places: Arc<Semaphore>,
}

impl Server {
    /// Binds `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// The operating system's, with the address in its text where it is about that.
    pub async fn bind(host: &str, port: u16, settings: ServerSettings) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {host}:{port}: {error}"));
        let listener = TcpListener::bind((host, port)).await.map_err(named)?;
        let address = listener.local_addr().map_err(named)?;
        let places = Arc::new(Semaphore::new(settings.connections.clamp(1, Semaphore::MAX_PERMITS)));
        let threads = Threads::start(settings.threads)?;
        Ok(Self { listener, address, settings, threads, places })
    }

    /// The address as bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `routes` until `stop`; then takes no more connections, lets requests in flight finish within the budget,
    /// and returns how many connections it had to cut.
    pub async fn run(self, routes: Routes, stop: CancellationToken) -> usize {
        // HTTP/1.1 only: what SDKs and load balancers speak to a backend. Telling HTTP/2 apart would wait, without a
        // bound, for the first bytes of a connection that may never send any.
        let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.settings.header_timeout);
        // An answer is a few hundred bytes: copying it behind its head is cheaper than writing two pieces (single events, in
        // turn: +3 %).
        builder.http1().writev(false);
        let connections = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer, place)) => {
                    let service = WithPeer { routes: routes.clone(), peer: Peer(peer.ip()) };
                    let (thread, counted) = self.threads.next();
                    serve(&builder, &connections, stream, service, thread, (place, counted));
                }
                // The client has gone again: nothing to do.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    // Out of file descriptors, most likely: without a pause this loop would spin until one is free.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        let open = connections.count();
        match tokio::time::timeout(self.settings.shutdown, connections.shutdown()).await {
            Ok(()) => 0,
            // Cut when the threads are dropped.
            Err(_) => open,
        }
    }
}

impl Server {
    /// The next connection, once there is a place for it.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        if self.places.available_permits() == 0 {
            tracing::warn!("as many connections are open as the limit of open files has room for; more wait");
        }
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = self.listener.accept().await?;
        Ok((stream, peer, place))
    }
}

/// Serves a connection on `thread`. `held` is let go when it has ended.
fn serve(
    builder: &auto::Builder<TokioExecutor>,
    connections: &GracefulShutdown,
    stream: TcpStream,
    service: WithPeer,
    thread: &Handle,
    held: (OwnedSemaphorePermit, Counted),
) {
    // Answers are small and complete: waiting for more to send with them only adds latency.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    // It is this runtime that would be told when the stream can be read.
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return tracing::error!(%error, "a connection cannot be given to its thread"),
    };
    let (builder, watcher) = (builder.clone(), connections.watcher());
    thread.spawn(async move {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::error!(%error, "a connection cannot be taken up by its thread"),
        };
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        // A client that breaks its connection is its own affair; what it sent in full has been answered.
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended with an error");
        }
        drop(held);
    });
}

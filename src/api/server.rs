//! Listening, serving connections, and stopping without breaking an answer.
//!
//! axum's own `serve` bounds neither how long a client may take over its headers nor how long a shutdown may wait; this
//! loop does both with the same hyper underneath.

use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, http::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::address::Peer;

/// How a server treats its connections.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// From the connection, or the answer before, to the end of a request's head.
    pub header_timeout: Duration,
    /// How long a stop waits for requests in flight.
    pub shutdown: Duration,
}

/// A bound port that is not served yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: ServerSettings,
}

impl Server {
    /// Binds `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// The operating system's, with the address in its text.
    pub async fn bind(host: &str, port: u16, settings: ServerSettings) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {host}:{port}: {error}"));
        let listener = TcpListener::bind((host, port)).await.map_err(named)?;
        let address = listener.local_addr().map_err(named)?;
        Ok(Self { listener, address, settings })
    }

    /// The address as bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `stop`; then takes no more connections, lets requests in flight finish within the budget,
    /// and returns how many connections it had to cut.
    pub async fn run(self, router: Router, stop: CancellationToken) -> usize {
        // HTTP/1.1 only: what SDKs and load balancers speak to a backend. Telling HTTP/2 apart would wait, without a
        // bound, for the first bytes of a connection that may never send any.
        let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.settings.header_timeout);
        let connections = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    serve(&builder, &connections, stream, WithPeer { router: router.clone(), peer: Peer(peer.ip()) });
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
            Err(_) => open,
        }
    }
}

/// A router whose requests know where they come from.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: Peer,
}

impl<B> Service<Request<B>> for WithPeer
where
    Router: Service<Request<B>>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.router.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
    }
}

fn serve(builder: &auto::Builder<TokioExecutor>, connections: &GracefulShutdown, stream: TcpStream, service: WithPeer) {
    // Answers are small and complete: waiting for more to send with them only adds latency.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        // A client that breaks its connection is its own affair; what it sent in full has been answered.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended with an error");
        }
    });
}

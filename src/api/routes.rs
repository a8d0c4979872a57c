//! The way of a request to its handler.
//!
//! ```text
//! POST /ingest, of no page --> ingest
//! all others               --> axum's router, with CORS --> handler
//! ```
//!
//! A router boxes every handler, layer and answer, and notes in each request which pattern matched. So the route that carries
//! events has a shorter way (single events, in turn: 42,300 and 50,500 a second, with the log's write buffers kept as well). A
//! page's request, which names its origin, needs CORS and goes through the router, as do the other methods of the path.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, header},
    response::Response,
};
use futures_util::{FutureExt, future::BoxFuture};
use hyper::{body::Incoming, service::Service};
use tower_service::Service as _;

use super::{Api, address::Peer, count, ingest};

/// The path that events are sent to.
pub(super) const INGEST: &str = "/ingest";

/// What a server serves.
#[derive(Clone)]
pub struct Routes {
    ingest: Option<Api>,
    router: Router,
}

impl Routes {
    /// `router`, and before it the short way of events to `api`.
    pub fn new(api: Api, router: Router) -> Self {
        Self { ingest: Some(api), router }
    }
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        Self { ingest: None, router }
    }
}

/// The routes of one connection.
pub(super) struct WithPeer {
    pub(super) routes: Routes,
    pub(super) peer: Peer,
}

impl Service<Request<Incoming>> for WithPeer {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let is_short = request.method() == Method::POST
            && request.uri().path() == INGEST
            && !request.headers().contains_key(header::ORIGIN);
        match self.routes.ingest.as_ref().filter(|_| is_short).cloned() {
            Some(api) => {
                let peer = self.peer;
                let (parts, body) = request.into_parts();
                let answer = async move {
                    let metrics = Arc::clone(&api.inner.metrics);
                    let mut response = ingest::ingest(api, Some(peer), &parts.headers, Body::new(body)).await;
                    count::count(&metrics, INGEST, &mut response);
                    Ok(response)
                };
                answer.boxed()
            }
            None => {
                request.extensions_mut().insert(self.peer);
                self.routes.router.clone().call(request).boxed()
            }
        }
    }
}

//! Counts requests by route and status, and keeps answers out of caches.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::{FutureExt, future::BoxFuture};
use tower_layer::{Layer, layer_fn};
use tower_service::Service;

use super::routes::INGEST;
use crate::metrics::{Metrics, RequestLabels};

/// Counts a request of `route` that got `response`, which is made one that no cache keeps.
pub(super) fn count(metrics: &Metrics, route: &'static str, response: &mut Response) {
    let status = response.status().as_u16();
    metrics.requests.get_or_create(&RequestLabels { route, status }).inc();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// A service whose requests are counted.
#[derive(Clone)]
pub(super) struct CountRequests<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> CountRequests<S> {
    pub(super) fn layer(metrics: Arc<Metrics>) -> impl Layer<S, Service = Self> + Clone {
        layer_fn(move |inner| Self { inner, metrics: Arc::clone(&metrics) })
    }
}

impl<S> Service<Request> for CountRequests<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The pattern that matched, and nothing that a client made up.
        let route = match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
            Some(INGEST) => INGEST,
            Some("/usage") => "/usage",
            Some("/ledger") => "/ledger",
            Some("/health") => "/health",
            Some("/health/ready") => "/health/ready",
            Some("/health/live") => "/health/live",
            _ => "other",
        };
        let metrics = Arc::clone(&self.metrics);
        let answer = self.inner.call(request).map(move |answer| {
            answer.map(|mut response| {
                count(&metrics, route, &mut response);
                response
            })
        });
        Box::pin(answer)
    }
}

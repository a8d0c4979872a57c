//! The front: HTTP in, an answer that means "on disk" out.
//!
//! ```text
//! authenticate --> quota in bytes --> decompress (bounded) --> split --> quota in events --> read, check --> plugins
//!              --> allowance of the month --> log --> 2xx
//! ```
//!
//! - Each step can end the request with an [`ApiError`]; `error.rs` is the only place that turns one into a status.
//! - Memory is bounded: every body in flight, and what it decompresses to, is reserved from one shared budget, of which a
//!   tenant gets at most half.
//! - Every answer to a tenant tells what is left of its quota (`rate_limits`); failures to authenticate are limited by the
//!   address that they come from (`address`, [`Failures`]).
//! - Large bodies are parsed off the async threads, so that they do not delay the small ones.
//! - The front knows the event, the tenant and the log. It does not know what is behind the log: whether a broker or
//!   ClickHouse is up changes what `/health` says and nothing else here.

mod address;
mod auth;
mod body;
mod budget;
mod count;
mod encoding;
mod error;
mod health;
mod idempotency;
mod ingest;
mod ledger;
mod rate_limits;
mod replay;
mod routes;
mod server;
mod sort;
mod threads;
mod usage;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, Method, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use address::{Network, NetworkError};
pub use budget::Full;
pub use error::{ApiError, RejectedEvent, RejectionCode};
pub use health::{Probe, Readiness};
pub use rate_limits::Policy;
pub use routes::Routes;
pub use server::{ADMIN_CONNECTIONS, Server, ServerSettings, most_connections};

use self::{budget::Budget, count::CountRequests};
use crate::{
    ledger::Source,
    metrics::{Metrics, OutcomeLabels},
    plugins::Plugins,
    tenants::{Failures, Tenants},
    wal::{Codec, Wal},
};

/// Bounds of requests and events.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body as sent.
    pub body_bytes: usize,
    /// Bytes of a body after decompression.
    pub decompressed_bytes: usize,
    /// Events in a request.
    pub events_per_request: usize,
    /// Bytes of one event's JSON.
    pub event_bytes: usize,
    /// Bytes of all bodies in flight.
    pub in_flight_bytes: usize,
    /// From a request's head to its answer.
    pub request_timeout: Duration,
    /// How far back an event's timestamp may lie; `None`: to 1970.
    pub max_age: Option<Duration>,
    /// How far ahead of this engine's clock a timestamp may lie.
    pub max_ahead: Duration,
}

/// What the routes share.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

/// Whose requests are taken.
pub struct Doors {
    /// The tenants.
    pub tenants: Tenants,
    /// Failures to authenticate.
    pub failures: Failures,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
}

struct Inner {
    limits: Limits,
    doors: Doors,
    wal: Wal,
    codec: Codec,
    plugins: Option<Plugins>,
    budget: Budget,
    ledger: OnceLock<Arc<dyn Source>>,
    metrics: Arc<Metrics>,
    // Resolved once: the accepted counter is touched by every request.
    accepted: prometheus_client::metrics::counter::Counter,
}

impl Api {
    /// Wires the front to its log; without `plugins` the built-in types are all there are.
    pub fn new(
        limits: Limits,
        doors: Doors,
        wal: Wal,
        codec: Codec,
        plugins: Option<Plugins>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ledger = OnceLock::new();
        let budget = Budget::new(&limits, Arc::clone(&metrics));
        let accepted = metrics.events.get_or_create_owned(&OutcomeLabels { outcome: "accepted", code: "" });
        Self { inner: Arc::new(Inner { limits, doors, wal, codec, plugins, budget, ledger, metrics, accepted }) }
    }

    /// Shows the ledger that `source` measures; without one there is none to be seen.
    #[must_use]
    pub fn with_ledger(self, source: Option<Arc<dyn Source>>) -> Self {
        if let Some(source) = source {
            self.inner.ledger.get_or_init(|| source);
        }
        self
    }

    /// The public routes.
    pub fn router(self, probe: Probe) -> Router {
        let metrics = Arc::clone(&self.inner.metrics);
        Router::new()
            .route(routes::INGEST, post(ingest::route))
            .route("/usage", get(usage::usage))
            .route("/ledger", get(ledger::ledger))
            .with_state(self)
            .merge(health_router(probe))
            .fallback(|| async { ApiError::NotFound })
            .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
            // As one: around each route they are boxed, and a box costs each request an allocation or two.
            .layer((CountRequests::layer(metrics), cors()))
    }
}

/// `/health` and its probes: on the public port of an API node, and on the admin port of every node.
pub fn health_router(probe: Probe) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .with_state(probe)
}

/// The routes for operators: on a port of their own in production.
pub fn admin_router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(render_metrics)).with_state(metrics)
}

async fn render_metrics(State(metrics): State<Arc<Metrics>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.render()).into_response()
}

/// Browsers may send from any page: the key, and not the origin, says whose an event is. The origin is mirrored because
/// a beacon is sent with credentials, for which `*` is not valid; `Authorization` is named because `*` does not cover it. A
/// key with origins of its own is refused when it is used elsewhere.
fn cors() -> CorsLayer {
    let headers = ["authorization", "x-api-key", "content-type", "content-encoding", "idempotency-key"];
    let exposed = [
        header::RETRY_AFTER,
        rate_limits::POLICY,
        rate_limits::LIMIT,
        rate_limits::RESET,
        rate_limits::WARNING,
        idempotency::REPLAYED,
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::list(headers.map(HeaderName::from_static)))
        .expose_headers(exposed)
        .max_age(Duration::from_secs(7200))
}

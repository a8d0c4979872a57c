//! ClickHouse's HTTP interface over the embedded engine.
//!
//! # What it speaks
//! What the `clickhouse` crate, clickhouse-connect, curl and dashboards use: `/`, `/ping`, `/replicas_status`; statements
//! in the URL, in the body or in both; settings, `param_*` values, database, format and session as URL parameters or
//! `X-ClickHouse-*` headers; ClickHouse's compressed blocks and HTTP's own compression; errors with a server's status and
//! `X-ClickHouse-Exception-Code`. Any user and password are taken: the port is on the loopback interface, and requests
//! that a foreign web page could make a browser send are refused.
//!
//! # The way of a request
//! ```text
//! async   body, whole, in the pieces in which it arrived      (mod, body)
//!         a permit: inserts and queries have separate ones    (mod)
//! thread  Content-Encoding, form fields, compressed blocks    (encoding, multipart, blocks)
//!         statement apart from data                           (statement, lexer)
//!         connection: fresh, or the session's                 (session, settings)
//!         execution; insert data goes to the engine uncopied  (request)
//! async   answer                                              (response)
//! ```
//!
//! # Why so
//! - A body is complete before its insert starts, so a client that goes away in the middle inserts nothing. An answer is
//!   complete before its status is sent, so a late error has an error's status.
//! - Everything that computes runs on a blocking thread. The async threads only move bytes, so `/ping` answers while all
//!   permits are taken.
//!
//! # What it is not
//! A server for a network: no users, no TLS, no cluster, no external tables.

mod blocks;
mod body;
mod chunks;
mod encoding;
mod lexer;
mod multipart;
mod params;
mod request;
mod response;
mod session;
mod settings;
mod statement;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
    routing::get,
};
use tokio::sync::{Semaphore, TryAcquireError};

use self::{body::Budget, chunks::Chunks, encoding::Accepted, params::Parameters, request::Job, session::Sessions};
use super::engine::{Engine, QueryError};

/// Queries at a time. More only take turns on the cores, and each may hold a large result.
const QUERIES: u32 = 8;

/// Inserts at a time, apart from the queries: a dashboard must not hold up the flow of events.
const INSERTS: u32 = 4;

/// Threads on which requests run.
pub(super) const BLOCKING_THREADS: usize = (QUERIES + INSERTS) as usize + 2;

/// The header by which a parent knows its child on `/ping`.
pub(super) const NONCE_HEADER: &str = "x-ingestion-nonce";

/// How often unused sessions are looked for.
const SESSION_SWEEP: Duration = Duration::from_secs(10);

/// The HTTP interface of one engine.
pub(super) struct Facade {
    engine: Engine,
    sessions: Sessions,
    budget: Budget,
    queries: Arc<Semaphore>,
    inserts: Arc<Semaphore>,
    nonce: Option<HeaderValue>,
}

impl Facade {
    pub(super) fn new(engine: Engine, nonce: Option<&str>) -> Arc<Self> {
        Arc::new(Self {
            engine,
            sessions: Sessions::default(),
            budget: Budget::default(),
            queries: Arc::new(Semaphore::new(QUERIES as usize)),
            inserts: Arc::new(Semaphore::new(INSERTS as usize)),
            nonce: nonce.and_then(|nonce| HeaderValue::from_str(nonce).ok()),
        })
    }

    /// The routes.
    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/", get(handle).post(handle).put(handle))
            .route("/ping", get(ping))
            .route("/replicas_status", get(ping))
            .fallback(no_route)
            .with_state(Arc::clone(self))
    }

    /// Closes sessions that nobody uses. Never ends.
    pub(super) async fn sweep_sessions(self: Arc<Self>) {
        let mut sweep = tokio::time::interval(SESSION_SWEEP);
        loop {
            sweep.tick().await;
            self.sessions.remove_expired();
        }
    }

    /// Waits until nothing runs any more (requests whose client went away included) and takes no new work.
    pub(super) async fn drain(&self) {
        for (permits, count) in [(&self.queries, QUERIES), (&self.inserts, INSERTS)] {
            if let Ok(all) = permits.acquire_many(count).await {
                all.forget();
            }
        }
        self.sessions.clear();
    }

    /// Whether nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.queries.available_permits() == QUERIES as usize && self.inserts.available_permits() == INSERTS as usize
    }

    /// Cancels every statement that runs now.
    pub(super) fn cancel_all(&self) -> Result<(), QueryError> {
        self.engine.cancel_all()
    }

    /// The engine's version.
    pub(super) fn version(&self) -> &str {
        self.engine.version()
    }
}

async fn ping(State(facade): State<Arc<Facade>>) -> Response {
    let mut response = response::text(StatusCode::OK, "Ok.\n");
    if let Some(nonce) = &facade.nonce {
        response.headers_mut().insert(NONCE_HEADER, nonce.clone());
    }
    response
}

async fn no_route(request: Request) -> Response {
    response::text(
        StatusCode::NOT_FOUND,
        format!("There is no handle {}: use / for queries, /ping for a check\n", request.uri().path()),
    )
}

async fn handle(State(facade): State<Arc<Facade>>, request: Request) -> Response {
    match answer(&facade, request).await {
        Ok(response) => response,
        Err(error) => response::error(&error),
    }
}

async fn answer(facade: &Arc<Facade>, request: Request) -> Result<Response, QueryError> {
    let (head, body) = request.into_parts();
    if let Err(why) = params::refuse_foreign_pages(&head.method, &head.headers) {
        return Ok(response::text(StatusCode::FORBIDDEN, format!("{why}\n")));
    }
    let read_only = head.method == Method::GET || head.method == Method::HEAD;
    let parameters = Parameters::read(head.uri.query().unwrap_or_default(), &head.headers)?;
    let (body, reservation) = body::receive(&facade.budget, &head.headers, body).await?;
    if read_only && parameters.query.is_empty() && body.is_empty() {
        return Ok(response::text(StatusCode::OK, "Ok.\n"));
    }

    let permits = if inserts(&parameters, &body) { &facade.inserts } else { &facade.queries };
    let permit = match Arc::clone(permits).try_acquire_owned() {
        Ok(permit) => permit,
        Err(TryAcquireError::NoPermits) => Arc::clone(permits).acquire_owned().await.map_err(|_| closing())?,
        Err(TryAcquireError::Closed) => return Err(closing()),
    };
    let accepted = Accepted::choose(text(&head.headers, &header::ACCEPT_ENCODING));
    let job = Job {
        parameters,
        body,
        content_type: text(&head.headers, &header::CONTENT_TYPE).to_owned(),
        content_encoding: text(&head.headers, &header::CONTENT_ENCODING).to_owned(),
        read_only,
        decoded_limit: body::MAX_DECODED_BODY,
    };
    let on_thread = Arc::clone(facade);
    // The permit goes with the work: a client that leaves gives up its answer, while the statement runs on.
    let work = tokio::task::spawn_blocking(move || {
        let facade = on_thread;
        let answer = request::run(&facade.engine, &facade.sessions, job)?;
        drop(reservation);
        let response = response::success(answer, accepted, facade.engine.timezone());
        drop(permit);
        response
    });
    work.await
        .map_err(|error| QueryError::new(1002, "UNKNOWN_EXCEPTION", format_args!("the request failed: {error}")))?
}

/// Whether the request looks like an insert. Only for the choice of permits, so a wrong guess costs nothing else.
fn inserts(parameters: &Parameters, body: &Chunks) -> bool {
    let keyword = if parameters.query.is_empty() {
        body.front().and_then(statement::first_keyword)
    } else {
        statement::first_keyword(parameters.query.as_bytes())
    };
    keyword == Some("INSERT")
}

fn closing() -> QueryError {
    QueryError::new(236, "ABORTED", "the engine is shutting down")
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

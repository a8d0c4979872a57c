//! `/health` and the probes of an orchestrator.
//!
//! - **live**: this process runs its event loop. Never depends on anything else, so that an outage elsewhere cannot make
//!   an orchestrator kill a node that holds events.
//! - **ready**: this node can do its role's work now. For the API that is "can accept durably", whatever the broker or
//!   ClickHouse do.
//! - **health**: every component with its state, since when, and why.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    health::{Health, Report, State as ComponentState},
    wal::Durability,
};

/// Whether this node can do its role's work now, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the probes of one node report.
#[derive(Clone)]
pub struct Probe {
    /// Every component.
    pub health: Health,
    /// Whether this node can do its role's work.
    pub readiness: Readiness,
    /// What a 2xx of this node means; absent on a node that gives none.
    pub durability: Option<Durability>,
}

#[derive(Serialize)]
struct Answer {
    /// `up`, `degraded` (works, somebody should look) or `down` (not ready).
    status: ComponentState,
    ready: bool,
    /// `fsync`: a 2xx means on disk. `os`: in the page cache, by the operator's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<&'static str>,
    version: &'static str,
    components: BTreeMap<&'static str, Report>,
}

pub(super) async fn health(State(probe): State<Probe>) -> Response {
    let components = probe.health.snapshot();
    let ready = (probe.readiness)().is_ok();
    let all_up = components.values().all(|report| report.state == ComponentState::Up);
    let (status, code) = match (ready, all_up) {
        (false, _) => (ComponentState::Down, StatusCode::SERVICE_UNAVAILABLE),
        (true, false) => (ComponentState::Degraded, StatusCode::OK),
        (true, true) => (ComponentState::Up, StatusCode::OK),
    };
    let durability = probe.durability.map(Durability::as_str);
    let version = env!("CARGO_PKG_VERSION");
    (code, Json(Answer { status, ready, durability, version, components })).into_response()
}

pub(super) async fn ready(State(probe): State<Probe>) -> Response {
    match (probe.readiness)() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

pub(super) async fn live() -> &'static str {
    "live\n"
}

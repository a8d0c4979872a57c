//! What goes into a plugin and what comes out of it, whatever carries it there.

use std::time::Duration;

use thiserror::Error;

pub use ingestion_plugin_abi::Purpose;

use super::threads::Worker;
use crate::ids::{EventId, TenantId};

/// One event for a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// A JSON object that is a valid event.
    pub json: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Its id.
    pub id: EventId,
}

/// Events of one request for one plugin.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Whose events.
    pub tenant: TenantId,
    /// When they were received, Unix milliseconds.
    pub received_at_ms: i64,
    /// Why.
    pub purpose: Purpose,
    /// The events, at least one.
    pub events: &'a [Input<'a>],
}

/// What a plugin says of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Good as it is.
    Keep,
    /// Good, with this JSON in its place. Valid UTF-8 within the limits; whether it is an event is for the caller to see.
    Replace(String),
    /// Bad.
    Reject {
        /// Stable reason, `[a-z][a-z0-9_]*`.
        code: String,
        /// In words.
        detail: String,
    },
    /// Not wanted.
    Drop {
        /// Stable reason, `[a-z][a-z0-9_]*`.
        reason: String,
    },
}

/// What a plugin did wrong in a call. No verdict of the call counts then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// It panicked, and its SDK caught it.
    #[error("it panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// It said that it failed.
    #[error("it failed: {message}")]
    Failed {
        /// In its words.
        message: String,
    },
    /// What it returned cannot be used.
    #[error("its output is not usable: {problem}")]
    BadOutput {
        /// What is wrong with it, and with which event.
        problem: String,
    },
    /// It did not return in time, and was stopped or left behind.
    #[error("it did not return within {limit:?}")]
    Deadline {
        /// What it was given.
        limit: Duration,
    },
    /// It did not return in time, on a thread of this process: whoever waited for the job has been told, and the job is
    /// to be ended at once.
    #[error("the job was given up")]
    Abandoned,
    /// The process that it runs in ended.
    #[error("its process ended: {how}")]
    Crashed {
        /// Exit status or signal.
        how: String,
    },
    /// It was not called: its process has died again and again, and may not be started again yet.
    #[error("it was not called: {why}")]
    Waiting {
        /// How it died, and how long it waits.
        why: String,
    },
    /// It was not called: threads hang in calls of it, and in all plugins together as many as may.
    #[error("it was not called: {leaked} threads hang in it, and no more may; start the engine anew without it")]
    Exhausted {
        /// How many.
        leaked: usize,
    },
}

impl Fault {
    /// The kind of fault, as metrics label it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Panicked { .. } => "panic",
            Self::Failed { .. } => "failed",
            Self::BadOutput { .. } => "bad_output",
            Self::Deadline { .. } | Self::Abandoned => "deadline",
            Self::Crashed { .. } => "crash",
            Self::Exhausted { .. } => "exhausted",
            Self::Waiting { .. } => "waiting",
        }
    }

    /// Whether it is held against the plugin. That it may not be called yet follows from faults which were.
    pub const fn counts(&self) -> bool {
        !matches!(self, Self::Waiting { .. })
    }
}

/// Where a plugin's code runs: in this process (`instance`), or in a child (`isolated`).
pub trait Backend: Send + Sync {
    /// One call. Returns one verdict for each event, in their order. Blocking, on a plugin thread; returns within
    /// `deadline` or is abandoned by it.
    ///
    /// # Errors
    /// [`Fault`]
    fn process(&self, worker: &Worker, call: &Call<'_>, deadline: Duration) -> Result<Vec<Verdict>, Fault>;

    /// Whether the plugin itself says that it can do its work; the reason if not. Blocking, on a plugin thread.
    ///
    /// # Errors
    /// The plugin's own words.
    fn health(&self, worker: &Worker) -> Result<(), String>;
}

//! A plugin in use.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::{
    call::{Backend, Call, Fault, Verdict},
    descriptor::Descriptor,
    threads::{Caller, Worker},
};

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// Whatever the number of events.
    pub base: Duration,
    /// More for each of them.
    pub per_event: Duration,
}

impl Deadline {
    /// Of a call with `events` events.
    pub fn of(&self, events: usize) -> Duration {
        self.base + self.per_event.saturating_mul(u32::try_from(events).unwrap_or(u32::MAX))
    }
}

/// Why and since when a plugin is not called.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Quarantine {
    /// In words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A plugin in use: what it says of itself, and where its code runs.
pub struct Plugin {
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// Its name and its file's sum.
    pub caller: Caller,
    /// Its file's name in the folder.
    pub file: String,
    deadline: Deadline,
    /// None when it could not be loaded: it is quarantined then.
    backend: Option<Box<dyn Backend>>,
    quarantine: ArcSwapOption<Quarantine>,
}

impl Plugin {
    /// Why it is not called, if it is not.
    pub fn quarantine(&self) -> Option<Arc<Quarantine>> {
        self.quarantine.load_full()
    }

    /// One call, counted.
    ///
    /// # Errors
    /// [`Fault`]
    pub fn process(&self, worker: &Worker, call: &Call<'_>) -> Result<Vec<Verdict>, Fault> {
        let Some(backend) = &self.backend else {
            return Err(Fault::Failed { message: "it is not loaded".to_owned() });
        };
        backend.process(worker, call, self.deadline.of(call.events.len()))
    }
}

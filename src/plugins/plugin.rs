//! A plugin in use: what it says of itself, where its code runs, and whether it may be called.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    call::{Backend, Call, Fault, Verdict},
    descriptor::Descriptor,
    faults::FaultWindow,
    schema::Schemas,
    threads::{Caller, Worker},
};
use crate::metrics::{Metrics, PluginFaultLabels};

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

/// Told of a quarantine that repeated faults have brought about, so that it is remembered.
pub type OnQuarantine = Box<dyn Fn(&Plugin, &Quarantine) + Send + Sync>;

/// What a [`Plugin`] is made of.
pub struct Parts {
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// Its file's name in the folder.
    pub file: String,
    /// Its file's SHA-256, hexadecimal.
    pub sha256: Arc<str>,
    /// Schemas of the types that it adds.
    pub schemas: Schemas,
    /// Where its code runs; none when it could not be loaded, and then it must be quarantined.
    pub backend: Option<Box<dyn Backend>>,
    /// How long its calls may take.
    pub deadline: Deadline,
    /// How many faults within which time quarantine it.
    pub faults: FaultWindow,
    /// Why it is not to be called from the start.
    pub quarantine: Option<Quarantine>,
    /// Told of a quarantine by faults.
    pub on_quarantine: OnQuarantine,
    /// Where calls and faults are counted.
    pub metrics: Arc<Metrics>,
}

/// A plugin in use.
pub struct Plugin {
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// Its name and its file's sum.
    pub caller: Caller,
    /// Its file's name in the folder.
    pub file: String,
    schemas: Schemas,
    backend: Option<Box<dyn Backend>>,
    deadline: Deadline,
    faults: Mutex<FaultWindow>,
    quarantine: ArcSwapOption<Quarantine>,
    on_quarantine: OnQuarantine,
    metrics: Arc<Metrics>,
}

impl Plugin {
    /// Puts a plugin together.
    pub fn new(parts: Parts) -> Self {
        let name: Arc<str> = parts.descriptor.name.as_str().into();
        Self {
            caller: Caller { plugin: name, sha256: parts.sha256 },
            descriptor: parts.descriptor,
            file: parts.file,
            schemas: parts.schemas,
            backend: parts.backend,
            deadline: parts.deadline,
            faults: Mutex::new(parts.faults),
            quarantine: ArcSwapOption::from_pointee(parts.quarantine),
            on_quarantine: parts.on_quarantine,
            metrics: parts.metrics,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.descriptor.name
    }

    /// Whether code of it is loaded.
    pub fn is_loaded(&self) -> bool {
        self.backend.is_some()
    }

    /// Why it is not called, if it is not.
    pub fn quarantine(&self) -> Option<Arc<Quarantine>> {
        self.quarantine.load_full()
    }

    /// Quarantines it or, with nothing, lets it be called again, its faults forgotten.
    pub fn set_quarantine(&self, quarantine: Option<Quarantine>) {
        if quarantine.is_none() {
            self.faults.lock().clear();
        }
        self.quarantine.store(quarantine.map(Arc::new));
    }

    /// Holds an event of a type that this plugin adds against the type's schema.
    ///
    /// # Errors
    /// What does not fit, in words for the sender.
    pub fn check_schema(&self, kind: &str, json: &str) -> Result<(), String> {
        self.schemas.check(kind, json)
    }

    /// One call.
    ///
    /// # Errors
    /// [`Fault`], which the caller counts with [`Plugin::fault`] once it is known whether it is one.
    pub fn process(&self, worker: &Worker, call: &Call<'_>) -> Result<Vec<Verdict>, Fault> {
        let Some(backend) = &self.backend else {
            return Err(Fault::Failed { message: "it is not loaded".to_owned() });
        };
        backend.process(worker, call, self.deadline.of(call.events.len()))
    }

    /// Whether the plugin itself says that it can do its work. One that is not loaded says nothing.
    ///
    /// # Errors
    /// Its own words.
    pub fn health(&self, worker: &Worker) -> Result<(), String> {
        self.backend.as_ref().map_or(Ok(()), |backend| backend.health(worker))
    }

    /// Counts a fault; too many of them within the window quarantine the plugin.
    pub fn fault(&self, fault: &Fault) {
        let labels = PluginFaultLabels { plugin: self.descriptor.name.clone(), kind: fault.kind() };
        self.metrics.plugin_faults.get_or_create(&labels).inc();
        let reached = self.faults.lock().record(Instant::now());
        tracing::warn!(plugin = self.name(), %fault, "a plugin failed; the events of the call are kept");
        if reached && self.quarantine.load().is_none() {
            self.quarantine_now(format!("repeated faults, the last one: {fault}"));
        }
    }

    /// Quarantines it for what it did, and has that remembered.
    pub fn quarantine_now(&self, reason: String) {
        let quarantine = Quarantine { reason, since: Timestamp::now() };
        (self.on_quarantine)(self, &quarantine);
        self.quarantine.store(Some(Arc::new(quarantine)));
    }
}

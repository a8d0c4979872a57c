//! The check before a plugin is taken into use, in a process of its own.
//!
//! ```text
//! check_in_child --starts--> ingestion-engine plugins check --as-child FILE    (configurations and limits on its stdin)
//!                                 | serve_child: limits for itself, then check_here, step by step
//!                <--JSON lines----+ the step that begins ... the step that begins ... the report
//! ```
//!
//! - Everything that a plugin can do to a process it does to the child: a crash, a hang or a process that ends is an error
//!   that names the step, and the engine goes on.
//! - What the check has seen is what the engine then relies on; it is no proof. A plugin may still do wrong with events
//!   that are not like its examples, and is under guard for that while it is in use.
//! - `ingestion-engine plugins check FILE` is this same check, its report shown to a person.

mod child;
mod leak;
mod report;
mod system;
mod trial;

use std::{fs::File, io, path::Path};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use child::{CHILD_FLAG, CheckError, TIME_LIMIT, check_in_child, serve_child};
pub use report::{Outcome, Report, Step, StepReport};

use super::{
    call::Backend,
    descriptor::Descriptor,
    host::Hosts,
    instance::{self, Instance, Limits},
    library::Library,
    schema::Schemas,
    threads::{Caller, Worker},
};
use crate::{error_chain::chain, metrics::PluginMetrics};

/// What a check needs to know of the engine.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// `[plugins.config]`: the configurations of all plugins, by name. Which of them is the file's is known once it has
    /// said its name; without one it is given an empty object.
    pub configs: Map<String, Value>,
    /// What a plugin may return.
    pub limits: Limits,
}

impl Request {
    /// The configuration of the plugin `name`, as JSON.
    pub fn config(&self, name: &str) -> String {
        self.configs.get(name).map_or_else(|| "{}".to_owned(), Value::to_string)
    }
}

/// Checks the file at `path` in this process, which it may crash, hang or leave with threads of the plugin: only for a
/// process that does nothing else. `begins` is told of every step before it begins. Blocking.
pub fn check_here(path: &Path, request: &Request, begins: &mut dyn FnMut(Step)) -> Report {
    let mut check = Check { report: Report::new(path), begins };
    // The report says how far it came.
    let _: Option<()> = check.run(path, request);
    check.report
}

struct Check<'a> {
    report: Report,
    begins: &'a mut dyn FnMut(Step),
}

impl Check<'_> {
    fn run(&mut self, path: &Path, request: &Request) -> Option<()> {
        let (sum, bytes) = self.step(Step::File, || sum_of(path).map_err(|error| error.to_string()))?;
        self.passed(format!("{bytes} bytes, sha256 {sum}"));
        self.report.sha256 = Some(sum.clone());

        let library = self.step(Step::Open, || Library::open(path).map_err(|error| chain(&error)))?;
        self.passed(format!("version 1.{} of the plugin contract", library.abi_minor()));
        self.report.abi_minor = Some(library.abi_minor());

        let worker = Worker::detached();
        let caller = |name: &str| Caller { plugin: name.into(), sha256: sum.as_str().into() };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let describe = || instance::describe(&worker, &caller(&file), &library).map_err(|error| error.to_string());
        let descriptor = self.step(Step::Describe, describe)?;
        self.passed(summary(&descriptor));
        self.report.descriptor = Some(descriptor.clone());

        let compile = || Schemas::compile(&descriptor).map_err(|error| error.to_string());
        let schemas = self.step(Step::Schemas, compile)?;
        self.passed(format!("{} of {} added types have one", schemas.len(), descriptor.adds.len()));

        let name = &descriptor.name;
        let host = Hosts::new(PluginMetrics::default()).of(name);
        let config = request.config(name);
        let create = || {
            Instance::create(&worker, caller(name), &library, host, &config, request.limits)
                .map_err(|error| error.to_string())
        };
        let instance = self.step(Step::Create, create)?;
        let configured = request.configs.contains_key(name);
        self.passed(format!("{} [plugins.config.{name}]", if configured { "with" } else { "without" }));

        let tried = self.try_out(&descriptor, &schemas, &instance, &worker, request.limits);
        // Also after a trial that failed: what else is wrong is worth knowing.
        self.step(Step::Destroy, || instance.retire(&worker).map_err(|fault| fault.to_string()))?;
        tried?;
        self.report.ok = true;
        Some(())
    }

    fn try_out(
        &mut self,
        descriptor: &Descriptor,
        schemas: &Schemas,
        instance: &Instance,
        worker: &Worker,
        limits: Limits,
    ) -> Option<()> {
        // A plugin that is not well may be so later: what it needs may come back. Its word is shown and decides nothing.
        if let Err(words) = self.step(Step::Health, || Ok(instance.health(worker)))? {
            self.warned(format!("it says that it cannot work now: {words}"));
        }

        let trial = trial::Trial::new(descriptor, schemas, instance, worker, limits);
        let tried = self.step(Step::Trial, || trial.run().map_err(|problems| problems.join("; ")))?;
        if tried.faults.is_empty() {
            self.passed(tried.summary());
        } else {
            self.warned(format!("{}; {}", tried.summary(), tried.faults.join("; ")));
        }

        match self.step(Step::Leaks, || trial.leak(&tried))? {
            leak::Seen::None { calls } => self.passed(format!("memory stays the same over {calls} calls")),
            leak::Seen::NotTried { why } => self.warned(format!("not tried: {why}")),
        }
        Some(())
    }

    /// Runs one step. A problem is its result, and the end of what depends on it.
    fn step<T>(&mut self, step: Step, code: impl FnOnce() -> Result<T, String>) -> Option<T> {
        (self.begins)(step);
        let (outcome, detail, value) = match code() {
            Ok(value) => (Outcome::Passed, String::new(), Some(value)),
            Err(problem) => (Outcome::Failed, problem, None),
        };
        self.report.steps.push(StepReport { step, outcome, detail });
        value
    }

    /// Says more of the step that was just taken.
    fn passed(&mut self, detail: String) {
        if let Some(last) = self.report.steps.last_mut() {
            last.detail = detail;
        }
    }

    /// The step that was just taken passed, but.
    fn warned(&mut self, detail: String) {
        if let Some(last) = self.report.steps.last_mut() {
            last.outcome = Outcome::Warning;
            last.detail = detail;
        }
    }
}

/// SHA-256 of the file at `path`, hexadecimal, and its length.
fn sum_of(path: &Path) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((format!("{:x}", hasher.finalize()), bytes))
}

fn summary(descriptor: &Descriptor) -> String {
    let mut parts = vec![format!("{} {}", descriptor.name, descriptor.version)];
    let mut list = |what: &str, names: Vec<&str>| {
        if !names.is_empty() {
            parts.push(format!("{what} {}", names.join(", ")));
        }
    };
    list("adds", descriptor.adds.iter().map(|added| added.name.as_str()).collect());
    list("enriches", descriptor.enriches.iter().map(String::as_str).collect());
    list("tables", descriptor.tables.iter().map(|table| table.name.as_str()).collect());
    list("views", descriptor.views.iter().map(|view| view.name.as_str()).collect());
    parts.join("; ")
}

#[cfg(test)]
mod tests;

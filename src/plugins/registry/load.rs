//! From a private copy to a plugin in use: the check, the library, the instance; and an instance's end.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{Isolation, Message, Settings, Shared};
use crate::{
    error_chain::chain,
    metrics::Metrics,
    plugins::{
        call::{Backend, Call, Fault, Verdict},
        check::{self, CheckError},
        descriptor::Descriptor,
        faults::FaultWindow,
        folder::{Copied, FolderError},
        host::Hosts,
        instance::{Instance, LIFECYCLE_DEADLINE, Limits},
        isolated::{self, Isolated},
        library::Library,
        plugin::{Deadline, Parts, Plugin, Quarantine},
        schema::Schemas,
        threads::{Caller, Threads, Worker},
    },
};

/// Why a file is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Something is wrong with it.
    Wrong(String),
    /// It does not fit beside another plugin: it may once that one is gone.
    Conflict(String),
    /// Something may be better at the next look.
    Passing(String),
}

impl Refusal {
    pub fn of(error: &FolderError) -> Self {
        match error {
            FolderError::BeingWritten { .. } | FolderError::Io { .. } => Self::Passing(chain(error)),
            _ => Self::Wrong(chain(error)),
        }
    }

    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Passing(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Wrong(words) | Self::Conflict(words) | Self::Passing(words)) = self;
        f.write_str(words)
    }
}

fn wrong(error: &dyn std::error::Error) -> Refusal {
    Refusal::Wrong(chain(error))
}

/// What a call for loading did wrong. That too many threads hang passes when one comes back.
fn faulted(fault: &Fault) -> Refusal {
    match fault {
        Fault::Exhausted { .. } => Refusal::Passing(fault.to_string()),
        _ => wrong(fault),
    }
}

fn caller(copied: &Copied, descriptor: &Descriptor) -> Caller {
    Caller { plugin: descriptor.name.as_str().into(), sha256: copied.sha256.as_str().into() }
}

/// What plugins are made with.
pub(super) struct Loader {
    runtime: Handle,
    threads: Threads,
    hosts: Hosts,
    program: PathBuf,
    isolation: Isolation,
    config: BTreeMap<String, serde_json::Value>,
    limits: Limits,
    deadline: Deadline,
    faults: FaultWindow,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    tell: mpsc::Sender<Message>,
}

impl Loader {
    pub fn new(
        settings: &Settings,
        threads: Threads,
        runtime: Handle,
        metrics: &Arc<Metrics>,
        shared: Arc<Shared>,
        tell: mpsc::Sender<Message>,
    ) -> Self {
        Self {
            runtime,
            threads,
            hosts: Hosts::new(metrics.of_plugins()),
            program: settings.program.clone(),
            isolation: settings.isolation.clone(),
            config: settings.config.clone(),
            limits: settings.limits,
            deadline: settings.deadline,
            faults: settings.faults.clone(),
            metrics: Arc::clone(metrics),
            shared,
            tell,
        }
    }

    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Has a child process load the library at `path` and try it on its own examples.
    pub fn check(&self, path: &Path) -> Result<Descriptor, Refusal> {
        let request = check::Request {
            configs: self.config.iter().map(|(name, config)| (name.clone(), config.clone())).collect(),
            limits: self.limits,
        };
        let report = check::check_in_child(&self.program, path, &request).map_err(|error| match &error {
            // Nothing is said of the plugin. Nothing in it can raise SIGKILL but by asking for it: it is the kernel's, out of
            // memory, or somebody's.
            CheckError::Start(_) | CheckError::Garbled { .. } => Refusal::Passing(chain(&error)),
            CheckError::Crashed { signal, .. } if signal == "SIGKILL" => Refusal::Passing(chain(&error)),
            _ => wrong(&error),
        })?;
        for warning in report.warnings() {
            tracing::warn!(file = report.file, step = %warning.step, detail = warning.detail, "the check of a plugin warns");
        }
        match (report.problem(), report.descriptor) {
            (None, Some(descriptor)) => Ok(descriptor),
            (problem, _) => Err(Refusal::Wrong(problem.unwrap_or_else(|| "it does not say what it is".to_owned()))),
        }
    }

    /// Code that can be called.
    pub fn load(&self, copied: &Copied, descriptor: &Descriptor) -> Result<Box<dyn Backend>, Refusal> {
        if self.isolation.all || self.isolation.named.contains(&descriptor.name) {
            self.isolated(copied, descriptor)
        } else {
            self.in_process(copied, descriptor)
        }
    }

    fn isolated(&self, copied: &Copied, descriptor: &Descriptor) -> Result<Box<dyn Backend>, Refusal> {
        let settings = isolated::Settings {
            program: self.program.clone(),
            library: copied.path.clone(),
            caller: caller(copied, descriptor),
            config: self.config(descriptor),
            limits: self.limits,
            memory_bytes: self.isolation.bytes,
            host: self.hosts.of(&descriptor.name),
        };
        let started = Isolated::start(settings, &self.metrics).map_err(|error| wrong(&error))?;
        Ok(Box::new(started))
    }

    fn in_process(&self, copied: &Copied, descriptor: &Descriptor) -> Result<Box<dyn Backend>, Refusal> {
        let (caller, config) = (caller(copied, descriptor), self.config(descriptor));
        let (path, host, limits) = (copied.path.clone(), self.hosts.of(&descriptor.name), self.limits);
        // On a plugin thread, where a crash in a constructor is laid at the plugin's door and a hang is noticed.
        let job = move |worker: &Worker| {
            // Opening runs the library's constructors.
            let opened = worker.call(&caller, LIFECYCLE_DEADLINE, || Library::open(&path));
            let library = opened.map_err(|fault| faulted(&fault))?.map_err(|error| wrong(&error))?;
            Instance::create(worker, caller, &library, host, &config, limits).map_err(|error| wrong(&error))
        };
        let instance = self.runtime.block_on(self.threads.run(job)).map_err(|error| wrong(&error))??;
        Ok(Box::new(InProcess {
            instance: Some(instance),
            threads: self.threads.clone(),
            runtime: self.runtime.clone(),
            shared: Arc::clone(&self.shared),
        }))
    }

    /// What the plugin is configured with.
    fn config(&self, descriptor: &Descriptor) -> String {
        self.config.get(&descriptor.name).map_or_else(|| "{}".to_owned(), ToString::to_string)
    }

    /// A plugin, with code or, when it is quarantined, maybe without.
    pub fn plugin(
        &self,
        file: &str,
        sha256: &str,
        descriptor: Descriptor,
        backend: Option<Box<dyn Backend>>,
        quarantine: Option<Quarantine>,
    ) -> Plugin {
        let tell = self.tell.clone();
        let on_quarantine = move |plugin: &Plugin, quarantine: &Quarantine| {
            // After the registry's end nobody remembers it: the next start sees how it does.
            drop(tell.send(Message::Faulted {
                name: plugin.name().to_owned(),
                sha256: Arc::clone(&plugin.caller.sha256),
                quarantine: quarantine.clone(),
            }));
        };
        Plugin::new(Parts {
            // The check has compiled them; what cannot be compiled now leaves its events to the plugin's own judgement.
            schemas: Schemas::compile(&descriptor).unwrap_or_default(),
            descriptor,
            file: file.to_owned(),
            sha256: sha256.into(),
            backend,
            deadline: self.deadline,
            faults: self.faults.clone(),
            quarantine,
            on_quarantine: Box::new(on_quarantine),
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// Asks `plugins` how they are, one after the other; the answer comes as [`Message::Unwell`]. Returns whether it will.
    pub fn ask(&self, plugins: Vec<Arc<Plugin>>) -> bool {
        let (threads, tell) = (self.threads.clone(), self.tell.clone());
        self.runtime.spawn(async move {
            let mut unwell = BTreeMap::new();
            for plugin in plugins {
                let name = plugin.name().to_owned();
                let said = match threads.run(move |worker| plugin.health(worker)).await {
                    Ok(said) => said,
                    Err(error) => Err(format!("it was asked how it is: {error}")),
                };
                if let Err(words) = said {
                    unwell.insert(name, words);
                }
            }
            // After the registry's end nobody wants to know.
            drop(tell.send(Message::Unwell(unwell)));
        });
        true
    }
}

/// An instance in this process that is ended on a plugin thread, whoever is its last user: destroying it runs foreign code.
struct InProcess {
    instance: Option<Instance>,
    threads: Threads,
    runtime: Handle,
    shared: Arc<Shared>,
}

impl Backend for InProcess {
    fn process(&self, worker: &Worker, call: &Call<'_>, deadline: Duration) -> Result<Vec<Verdict>, Fault> {
        match &self.instance {
            Some(instance) => instance.process(worker, call, deadline),
            None => Err(Fault::Failed { message: "it has ended".to_owned() }),
        }
    }

    fn health(&self, worker: &Worker) -> Result<(), String> {
        self.instance.as_ref().map_or(Ok(()), |instance| instance.health(worker))
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let Some(instance) = self.instance.take() else { return };
        let threads = self.threads.clone();
        let ending = async move {
            let ended = threads.run(move |worker| instance.retire(worker)).await;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => tracing::warn!(%fault, "an instance of a plugin did not end well"),
                Err(error) => tracing::warn!(%error, "an instance of a plugin did not end well"),
            }
        };
        self.shared.retiring.spawn_on(ending, &self.runtime);
    }
}

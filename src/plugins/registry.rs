//! Which plugins are in use: the one place that changes it.
//!
//! ```text
//! folder --events, looks--> +----------- one thread -----------+ --swap--> Set (requests read it without a lock)
//! control socket ---------> | copy, check in a child, conflicts, | --------> state.json
//! faults of plugins ------> | tables, create, save, swap         | --------> health, metrics, `plugins list`
//!                           +------------------------------------+
//! ```
//!
//! # Operation
//! - Everything that changes the set comes to one thread, one after the other. A change makes a new [`Set`] and swaps it
//!   in; requests under way end with the one that they began with, and the instance that went is ended on a plugin thread
//!   once the last of them is through. Libraries stay.
//! - A new file is used when all of this went well, in this order: the copy, the check in a child process, no conflict with
//!   the plugins in use, its tables declared, an instance made, the state saved. Until then, and after any failure, what
//!   was in use stays in use, and the log, health and `plugins list` say why.
//! - A file that is gone takes its event types with it; they are remembered with their plugin's name. A file that takes the
//!   place of one that is gone in the same look (a rename, a new version under another name) is swapped in without a gap.
//! - The folder itself being gone (a volume that is not mounted) removes nothing: an operator who removes a plugin removes
//!   its file.
//!
//! # At start, before the first request
//! - Crashes that the slots recorded are counted; the third one of a file within an hour quarantines it.
//! - A file whose check passed under this engine version is not checked again.
//! - A file that cannot be used while an earlier one of its name is known: the earlier copy is loaded. If that fails too,
//!   the plugin is in the set without code and quarantined, because events of its types must not pass as if it did not
//!   exist: they are parked.
//! - Quarantined plugins are in the set without code: the constructor of one that crashes the engine must not run.
//!
//! # What it is not
//! It calls no plugin for events (`chain`), and decides on no fault (`plugin`).

mod actor;
mod listed;
mod load;
mod looks;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub use listed::{Listed, Standing};

use super::{
    descriptor::Descriptor,
    faults::FaultWindow,
    folder::FolderError,
    instance,
    plugin::{Deadline, Quarantine},
    set::Set,
    state::{By, StateError},
    threads::{self, Threads},
    watch::Change,
};
use crate::{folder_lock::LockError, health::Component, metrics::Metrics};

/// Folder of the registry in the data folder.
const STATE_DIR: &str = "plugin-state";

/// How long ended instances may take to stop with the engine.
const STOP: Duration = Duration::from_secs(10);

/// What runs the plugins of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Events are given to them.
    Run,
    /// A node without the API: files are checked and their tables declared, nothing is loaded.
    DeclareOnly,
}

/// Where plugins run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// All of them in processes of their own.
    pub all: bool,
    /// These of them, by name, whatever `all` says.
    pub named: BTreeSet<String>,
    /// Address space of such a process, bytes.
    pub bytes: u64,
}

/// What the registry is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder that people drop libraries into.
    pub dir: PathBuf,
    /// The engine's data folder.
    pub data_dir: PathBuf,
    /// This program, for the check and for isolated plugins: usually [`std::env::current_exe`].
    pub program: PathBuf,
    /// Sums that may be loaded; empty: all.
    pub allow: BTreeSet<String>,
    /// What to do with plugins.
    pub mode: Mode,
    /// Where they run.
    pub isolation: Isolation,
    /// How long a call may take.
    pub deadline: Deadline,
    /// Threads for their calls.
    pub threads: threads::Settings,
    /// How many faults within which time quarantine one.
    pub faults: FaultWindow,
    /// What they may return.
    pub limits: instance::Limits,
    /// By plugin, what it is configured with: JSON objects.
    pub config: BTreeMap<String, serde_json::Value>,
}

impl Settings {
    /// Folder of what the registry and its neighbours keep.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.data_dir)
    }
}

/// The registry's folder in the data folder.
pub fn state_dir(data_dir: &Path) -> PathBuf {
    data_dir.join(STATE_DIR)
}

/// Makes room for a plugin's tables before it is used; a refusal keeps it from being used. Blocking.
pub type Declare = Box<dyn Fn(&Descriptor) -> Result<(), String> + Send>;

/// What the registry works with.
pub struct Parts {
    /// Where it reports.
    pub health: Component,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Makes room for tables.
    pub declare: Declare,
}

/// Why the registry does not start. A plugin that cannot be loaded is no reason.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another process uses the state.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folders cannot be made.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The crash slots cannot be used.
    #[error("cannot open the record of calls, {}", path.display())]
    Slots {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system refuses handlers of signals.
    #[error("cannot install the handlers that name a plugin in a crash")]
    Handlers(#[source] io::Error),
    /// The system has no thread to give.
    #[error("cannot start the plugins' threads")]
    Threads(#[source] io::Error),
    /// The registry's own code panicked; the panic's message is in the log.
    #[error("the registry of plugins panicked, which is a fault of the engine; see the log above")]
    Panicked,
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no such plugin.
    #[error("there is no plugin {name:?}; in use are: {}", known(in_use))]
    Unknown {
        /// The name that was given.
        name: String,
        /// Those that there are.
        in_use: Vec<String>,
    },
    /// It is not quarantined.
    #[error("plugin {0:?} is not quarantined")]
    NotQuarantined(String),
    /// Its code cannot be loaded.
    #[error("plugin {name:?} stays quarantined: {reason}")]
    Load {
        /// The plugin.
        name: String,
        /// Why not.
        reason: String,
    },
    /// It could not be remembered.
    #[error("{0}")]
    State(String),
    /// The engine is stopping.
    #[error("the engine is stopping")]
    Stopped,
}

fn known(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What the registry's thread is told.
enum Message {
    /// Of the folder.
    Changed(Change),
    /// By somebody.
    Quarantine { name: String, reason: String, answer: oneshot::Sender<Result<(), CommandError>> },
    /// By somebody.
    Resume { name: String, answer: oneshot::Sender<Result<(), CommandError>> },
    /// By a plugin's faults.
    Faulted { name: String, sha256: Arc<str>, quarantine: Quarantine },
    /// By plugins that were asked how they are: those that are not well, with their words.
    Unwell(BTreeMap<String, String>),
    /// Nobody needs plugins any more.
    Stop(Option<oneshot::Sender<()>>),
}

/// What requests and listeners read without asking the thread.
struct Shared {
    set: ArcSwap<Set>,
    listed: ArcSwap<Vec<Listed>>,
    /// Instances that are being ended.
    retiring: TaskTracker,
}

/// The plugins of a node. Clones are handles of the same; with the last one the registry ends.
#[derive(Clone)]
pub struct Plugins {
    shared: Arc<Shared>,
    threads: Threads,
    teller: Arc<Teller>,
}

/// Ends the thread with the last handle.
struct Teller(mpsc::Sender<Message>);

impl Drop for Teller {
    fn drop(&mut self) {
        // A thread that has ended needs no telling.
        drop(self.0.send(Message::Stop(None)));
    }
}

impl Plugins {
    /// Brings the plugins of the folder into use and watches it from then on. Returns once the set is complete, so that no
    /// request comes before its plugin. In a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]: the registry cannot work at all. A plugin that cannot be used is told in health instead.
    pub async fn start(settings: Settings, parts: Parts) -> Result<Self, StartError> {
        let shared = Arc::new(Shared {
            set: ArcSwap::from_pointee(Set::default()),
            listed: ArcSwap::default(),
            retiring: TaskTracker::new(),
        });
        let (tell, told) = mpsc::channel();
        let runtime = tokio::runtime::Handle::current();
        let (ready, started) = oneshot::channel();
        let teller = Arc::new(Teller(tell.clone()));
        let for_actor = Arc::clone(&shared);
        let run = move || match actor::Actor::start(settings, parts, for_actor, tell, runtime) {
            Ok((actor, threads)) => {
                // Nobody waits for the start any more: the handle is gone, and says so by the channel.
                drop(ready.send(Ok(threads)));
                actor.run(&told);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        std::thread::Builder::new().name("plugins".to_owned()).spawn(run).map_err(StartError::Threads)?;
        let threads = started.await.map_err(|_| StartError::Panicked)??;
        Ok(Self { shared, threads, teller })
    }

    /// The plugins in use now. Cheap: for every request.
    pub fn current(&self) -> Arc<Set> {
        self.shared.set.load_full()
    }

    /// Where their calls run.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Every file, in use or refused, by name.
    pub fn list(&self) -> Vec<Listed> {
        let (set, mut listed) = (self.current(), self.shared.listed.load().as_ref().clone());
        for one in &mut listed {
            one.overlay(&set);
        }
        listed
    }

    /// Stops calling the plugin `name` until [`Self::resume`], whatever file comes: an operator's decision. Its events are
    /// parked meanwhile, or refused if it is `fail_closed`.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn quarantine(&self, name: String, reason: String) -> Result<(), CommandError> {
        self.ask(|answer| Message::Quarantine { name, reason, answer }).await
    }

    /// Calls the plugin `name` again, whoever had it quarantined.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn resume(&self, name: String) -> Result<(), CommandError> {
        self.ask(|answer| Message::Resume { name, answer }).await
    }

    /// Ends every instance. When no request needs them any more.
    pub async fn stop(self) {
        let (answer, answered) = oneshot::channel();
        // A thread that has ended already has nothing more to end.
        if self.teller.0.send(Message::Stop(Some(answer))).is_ok() {
            drop(answered.await);
        }
        self.shared.retiring.close();
        if tokio::time::timeout(STOP, self.shared.retiring.wait()).await.is_err() {
            tracing::warn!("plugins did not end in time; nothing of theirs is awaited");
        }
    }

    async fn ask(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<(), CommandError>>) -> Message,
    ) -> Result<(), CommandError> {
        let (answer, answered) = oneshot::channel();
        self.teller.0.send(message(answer)).map_err(|_| CommandError::Stopped)?;
        answered.await.unwrap_or(Err(CommandError::Stopped))
    }
}

/// Who decided, for people.
impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Engine => "engine",
        })
    }
}

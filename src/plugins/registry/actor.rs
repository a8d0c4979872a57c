//! The registry's thread: what it is told, and what it does then.

mod boot;
mod change;
mod orders;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::runtime::Handle;

use super::{
    CommandError, Declare, Message, Mode, Parts, Settings, Shared, StartError,
    load::{Loader, Refusal},
    looks::Looks,
    report,
};
use crate::{
    error_chain::chain,
    folder_lock::FolderLock,
    health::Component,
    metrics::{LoadLabels, Metrics},
    plugins::{
        call::Fault,
        folder::{Folder, Stamp},
        plugin::Plugin,
        slots::{self, Crash, Slots, signal_name},
        state::{Known, State, StateFile},
        threads::Threads,
        watch::Watch,
    },
};

/// Events that come together (a copy of several files, a rename's two halves) are one look.
const COALESCE: Duration = Duration::from_millis(100);
/// How long a file that no event spoke of must look the same. Somebody who writes to it with longer pauses has his half
/// file refused by the check, and taken when it has changed again.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the folder is looked at without an event: some file systems tell of none.
const RESCAN: Duration = Duration::from_secs(30);
/// A command that changes what is remembered, or an engine that ends just now, is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often plugins are asked how they are.
const ASK: Duration = Duration::from_secs(10);

/// A file whose plugin is in use.
#[derive(Clone)]
pub(super) struct Used {
    pub plugin: Arc<Plugin>,
    /// The state of the file that was taken; none for an earlier copy in place of a file that is not usable.
    pub stamp: Option<Stamp>,
    /// The engine version under which its check passed.
    pub checked_by: String,
}

/// A file that is not used.
pub(super) struct Refused {
    pub sha256: Option<String>,
    pub refusal: Refusal,
    /// The state of the file that was refused; none when it is to be tried at every look.
    stamp: Option<Stamp>,
}

/// What the operator should know of the registry itself.
#[derive(Default)]
pub(super) struct Troubles {
    /// Of the folder.
    pub folder: Option<String>,
    /// Of the watch on it.
    pub watch: Option<String>,
    /// Of the state that was found at start.
    pub damaged: Option<String>,
    /// Of the state that could not be written.
    pub unsaved: Option<String>,
}

pub(super) struct Actor {
    settings: Settings,
    folder: Folder,
    _lock: FolderLock,
    file: StateFile,
    loader: Loader,
    declare: Declare,
    shared: Arc<Shared>,
    health: Component,
    metrics: Arc<Metrics>,
    tell: mpsc::Sender<Message>,
    watch: Option<Watch>,
    looks: Looks,
    used: BTreeMap<String, Used>,
    refused: BTreeMap<String, Refused>,
    troubles: Troubles,
    unwell: BTreeMap<String, String>,
    /// Plugins of which a metric says whether they are quarantined.
    shown: BTreeSet<String>,
    asking: bool,
    look_at: Instant,
    ask_at: Instant,
}

impl Drop for Actor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.health
                .down("the registry of plugins panicked: changes in the folder are not seen; restart the engine");
        }
    }
}

impl Actor {
    /// Opens everything and brings the folder's plugins into use.
    pub fn start(
        settings: Settings,
        parts: Parts,
        shared: Arc<Shared>,
        tell: mpsc::Sender<Message>,
        runtime: Handle,
    ) -> Result<(Self, Threads), StartError> {
        let state_dir = settings.state_dir();
        let lock = FolderLock::acquire(&state_dir, LOCK_PATIENCE)?;
        let (mut file, damaged) = StateFile::open(&state_dir)?;
        let folder = Folder::open(settings.dir.clone(), state_dir.join("libraries"), settings.allow.clone())?;
        let now = Timestamp::now();
        let slots = match settings.mode {
            // No event enters a plugin here.
            Mode::DeclareOnly => None,
            Mode::Run => {
                let path = state_dir.join("calls");
                let unusable = |source| StartError::Slots { path: path.clone(), source };
                remember(&mut file.state, slots::crashes(&path).map_err(unusable)?, now);
                // Before the file that names them is replaced, and before anything is loaded: what the slots have told
                // must outlive whatever comes next.
                file.save()?;
                let slots = Slots::open(&path).map_err(unusable)?;
                slots::install_handlers().map_err(StartError::Handlers)?;
                Some(slots)
            }
        };
        let threads =
            Threads::start(settings.threads, slots, Arc::clone(&parts.metrics)).map_err(StartError::Threads)?;
        // A plugin that is asked how it is, or anything of which the waiting client has gone, hangs as well.
        let plugins = Arc::downgrade(&shared);
        threads.on_given_up(move |caller, limit| {
            let set = plugins.upgrade().map(|shared| shared.set.load_full());
            let plugin = set.as_ref().and_then(|set| set.named(&caller.plugin));
            // What another file of it did, before or while it was loaded, is not its fault.
            if let Some(plugin) = plugin.filter(|plugin| plugin.caller == *caller) {
                plugin.fault(&Fault::Deadline { limit });
            }
        });
        file.state.forget(now);
        file.save()?;
        folder.forget_copies(&file.state.files.values().map(|known| known.sha256.as_str()).collect());

        let loader =
            Loader::new(&settings, threads.clone(), runtime, &parts.metrics, Arc::clone(&shared), tell.clone());
        let troubles = Troubles { damaged, ..Troubles::default() };
        let due = Instant::now();
        let mut actor = Self {
            settings,
            folder,
            _lock: lock,
            file,
            loader,
            declare: parts.declare,
            shared,
            health: parts.health,
            metrics: parts.metrics,
            tell,
            watch: None,
            looks: Looks::default(),
            used: BTreeMap::new(),
            refused: BTreeMap::new(),
            troubles,
            unwell: BTreeMap::new(),
            shown: BTreeSet::new(),
            asking: false,
            look_at: due + RESCAN,
            ask_at: due + ASK,
        };
        // Before the first look, so that what changes in between is told.
        actor.keep_watch();
        actor.boot();
        actor.publish();
        Ok((actor, threads))
    }

    /// Until nobody needs plugins any more.
    pub fn run(mut self, told: &mpsc::Receiver<Message>) {
        loop {
            let mut news = false;
            let next = self.look_at.min(self.ask_at).saturating_duration_since(Instant::now());
            match told.recv_timeout(next) {
                Ok(Message::Stop(answer)) => {
                    self.shared.set.store(Arc::default());
                    // The lock with it, so that who is answered may start another registry.
                    drop(self);
                    if let Some(answer) = answer {
                        // Whoever stops the engine may have stopped waiting: nothing is left to tell then.
                        answer.send(()).unwrap_or(());
                    }
                    return;
                }
                Ok(message) => news = self.take_in(message),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= self.look_at {
                self.look();
                news = true;
            }
            if Instant::now() >= self.ask_at {
                self.ask();
                news = true;
            }
            if news {
                self.publish();
            }
        }
    }

    /// Returns whether there is something to tell.
    fn take_in(&mut self, message: Message) -> bool {
        match message {
            Message::Changed(change) => {
                self.looks.note(change);
                self.look_at = self.look_at.min(Instant::now() + COALESCE);
                return false;
            }
            // Whoever asked may have gone; what was asked for is done.
            Message::Quarantine { name, reason, answer } => drop(answer.send(self.quarantine(&name, reason))),
            Message::Resume { name, answer } => drop(answer.send(self.resume(&name))),
            Message::Faulted { name, sha256, quarantine } => self.faulted(name, &sha256, quarantine),
            Message::Unwell(unwell) => {
                self.unwell = unwell;
                self.asking = false;
            }
            Message::Stop(_) => {}
        }
        true
    }

    /// Asks the plugins how they are; the answers come as a message.
    fn ask(&mut self) {
        self.ask_at = Instant::now() + ASK;
        if !self.asking {
            let called = self.used.values().map(|used| &used.plugin).filter(|plugin| plugin.quarantine().is_none());
            self.asking = self.loader.ask(called.cloned().collect());
        }
    }

    fn save(&mut self) {
        self.troubles.unsaved = self.file.save().err().map(|error| chain(&error));
    }

    fn saved(&mut self, otherwise: &str) -> Result<(), CommandError> {
        self.save();
        let unsaved = self.troubles.unsaved.as_ref();
        unsaved.map_or(Ok(()), |problem| Err(CommandError::State(format!("{problem}; {otherwise}"))))
    }

    fn count(&self, result: &'static str) {
        self.metrics.plugin_loads.get_or_create(&LoadLabels { result }).inc();
    }

    fn publish(&mut self) {
        let threads = self.loader.threads();
        report::health(&self.health, &self.used, &self.refused, &self.troubles, &self.unwell, threads);
        report::metrics(&self.metrics, &self.used, &mut self.shown);
        let listed = report::list(&self.used, &self.refused, &self.file.state, self.settings.mode);
        self.shared.listed.store(Arc::new(listed));
    }
}

impl Used {
    /// Whether it only stands for its name, because it could not be loaded. One that is quarantined need not be loaded.
    fn lacks_code(&self, mode: Mode, state: &State) -> bool {
        let (name, sha256) = (self.plugin.name(), &self.plugin.caller.sha256);
        mode == Mode::Run && !self.plugin.is_loaded() && state.quarantine(name, sha256).is_none()
    }

    fn known(&self) -> Known {
        Known {
            plugin: self.plugin.name().to_owned(),
            sha256: self.plugin.caller.sha256.to_string(),
            descriptor: self.plugin.descriptor.clone(),
            checked_by: self.checked_by.clone(),
        }
    }
}

/// Takes in what the slots have recorded.
fn remember(state: &mut State, crashes: Vec<Crash>, now: Timestamp) {
    for crash in &crashes {
        tracing::error!(
            plugin = crash.plugin,
            sha256 = crash.sha256,
            signal = signal_name(crash.signal),
            "the engine crashed while this plugin was in call"
        );
    }
    for sha256 in state.crashed(crashes, now) {
        tracing::error!(sha256, "a plugin is quarantined: the engine crashed in it again and again");
    }
}

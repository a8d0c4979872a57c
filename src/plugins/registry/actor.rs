//! The registry's thread: what it is told, and what it does then.

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
        folder::{Copied, Folder, Stamp},
        plugin::{Plugin, Quarantine},
        set::Set,
        slots::{Crash, Slots, signal_name},
        state::{Faulty, Known, State, StateFile},
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
        let lock = FolderLock::acquire(&state_dir, Duration::ZERO)?;
        let (mut file, damaged) = StateFile::open(&state_dir)?;
        let folder = Folder::open(settings.dir.clone(), state_dir.join("libraries"), settings.allow.clone())?;
        let now = Timestamp::now();
        let slots = match settings.mode {
            // No event enters a plugin here.
            Mode::DeclareOnly => None,
            Mode::Run => {
                let path = state_dir.join("calls");
                let (slots, crashes) = Slots::open(&path).map_err(|source| StartError::Slots { path, source })?;
                remember(&mut file.state, crashes, now);
                Some(slots)
            }
        };
        let threads =
            Threads::start(settings.threads, slots, Arc::clone(&parts.metrics)).map_err(StartError::Threads)?;
        file.state.forget(now);
        // Before anything is loaded: what the slots have told must outlive a crash while loading.
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
            let next = self.look_at.min(self.ask_at).saturating_duration_since(Instant::now());
            match told.recv_timeout(next) {
                Ok(Message::Stop(answer)) => {
                    self.used.clear();
                    self.shared.set.store(Arc::default());
                    if let Some(answer) = answer {
                        // Whoever stops the engine may have stopped waiting: nothing is left to tell then.
                        answer.send(()).unwrap_or(());
                    }
                    return;
                }
                Ok(message) => self.take_in(message),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= self.look_at {
                self.look();
            }
            if Instant::now() >= self.ask_at {
                self.ask();
            }
            self.publish();
        }
    }

    fn take_in(&mut self, message: Message) {
        match message {
            Message::Changed(change) => {
                self.looks.note(change);
                self.look_at = self.look_at.min(Instant::now() + COALESCE);
            }
            // Whoever asked may have gone; what was asked for is done.
            Message::Quarantine { name, reason, answer } => drop(answer.send(self.quarantine(&name, reason))),
            Message::Resume { name, answer } => drop(answer.send(self.resume(&name))),
            Message::Faulted { name, sha256, quarantine } => {
                tracing::warn!(plugin = name, reason = quarantine.reason, "a plugin is quarantined");
                let faulty = Faulty { plugin: name, quarantine };
                self.file.state.faulty.insert(sha256.to_string(), faulty);
                self.save();
            }
            Message::Unwell(unwell) => {
                self.unwell = unwell;
                self.asking = false;
            }
            Message::Stop(_) => {}
        }
    }

    /// What is in the folder when the engine starts, and what was there when it last ran.
    fn boot(&mut self) {
        let before = self.file.state.files.clone();
        let nothing = BTreeSet::new();
        match self.folder.scan() {
            Err(error) => {
                let refusal = Refusal::of(&error);
                self.troubles.folder = Some(chain(&error));
                for (file, known) in &before {
                    self.fall_back(file, known, &refusal);
                }
            }
            Ok(found) => {
                let mut taken: Vec<_> = found
                    .into_iter()
                    .map(|(file, stamp)| {
                        let copied = self.folder.take(&file);
                        // What was in use comes first, so that a newcomer cannot take a type or a name from it.
                        let rank = match (before.get(&file), &copied) {
                            (Some(known), Ok(copied)) if known.sha256 == copied.sha256 => 0,
                            (Some(_), _) => 1,
                            (None, _) => 2,
                        };
                        (rank, file, stamp, copied)
                    })
                    .collect();
                taken.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
                for (_, file, stamp, copied) in taken {
                    let sha256 = copied.as_ref().ok().map(|copied| copied.sha256.clone());
                    let prepared = match copied {
                        Ok(copied) => self.prepare(&file, copied, before.get(&file), &nothing),
                        Err(error) => Err(Refusal::of(&error)),
                    };
                    match prepared {
                        Ok(used) => {
                            self.used.insert(file, used);
                        }
                        Err(refusal) => {
                            if let Some(known) = before.get(&file) {
                                self.fall_back(&file, known, &refusal);
                            }
                            self.refuse(&file, sha256, Some(stamp), refusal);
                        }
                    }
                }
            }
        }
        let used = self.used.clone();
        self.adopt(used);
    }

    /// At start, in place of a file that cannot be used: the copy of the one that was in use, or at least its name, so
    /// that its events are kept for it.
    fn fall_back(&mut self, file: &str, known: &Known, refusal: &Refusal) {
        if let Some(conflict) = self.others(file, &BTreeSet::new()).conflict(&known.descriptor, None) {
            tracing::warn!(file, conflict, "the earlier copy of a plugin is not used");
            return;
        }
        let copied = Copied { sha256: known.sha256.clone(), path: self.folder.copy(&known.sha256), stamp: None };
        let loaded = if self.folder.allows(&known.sha256) {
            self.prepare(file, copied, Some(known), &BTreeSet::new())
        } else {
            Err(Refusal::Passing("plugins.allow does not list it any more".to_owned()))
        };
        let used = loaded.unwrap_or_else(|earlier| {
            let reason = format!("it cannot be loaded: {refusal}; and the copy that was in use before: {earlier}");
            tracing::error!(
                plugin = known.plugin,
                file,
                reason,
                "a plugin is without code; its events are kept for it"
            );
            let quarantine = Some(Quarantine { reason, since: Timestamp::now() });
            let descriptor = known.descriptor.clone();
            // Its descriptor was read before, so its schemas compile; if not, its events are parked unjudged.
            let plugin = self.loader.plugin(file, &known.sha256, descriptor, None, quarantine);
            Used { plugin: Arc::new(plugin), stamp: None, checked_by: known.checked_by.clone() }
        });
        self.used.insert(file.to_owned(), used);
    }

    /// Looks at the folder and does what follows.
    fn look(&mut self) {
        self.look_at = Instant::now() + RESCAN;
        self.keep_watch();
        if self.troubles.unsaved.is_some() {
            self.save();
        }
        let found = match self.folder.scan() {
            Ok(found) => found,
            Err(error) => {
                self.troubles.folder = Some(format!("{}; what was in use stays in use", chain(&error)));
                return;
            }
        };
        self.troubles.folder = None;
        let look = self.looks.look(&found, &self.known());
        if look.again {
            self.look_at = Instant::now() + SETTLE;
        }
        self.refused.retain(|file, _| !look.gone.contains(file));
        let mut take = look.take;
        if look.gone.iter().any(|file| self.used.contains_key(file)) {
            // What went may have stood in the way of others.
            let waiting = self.refused.iter().filter(|(_, refused)| refused.refusal.is_conflict());
            take.extend(waiting.map(|(file, _)| file.clone()));
            take.sort();
            take.dedup();
        }
        for file in take {
            self.take(&file, found.get(&file).cloned(), &look.gone);
        }
        let gone: Vec<String> = look.gone.into_iter().filter(|file| self.used.contains_key(file)).collect();
        if gone.is_empty() {
            return;
        }
        let mut rest = self.used.clone();
        for file in gone {
            if let Some(used) = rest.remove(&file) {
                tracing::info!(
                    plugin = used.plugin.name(),
                    file,
                    "a plugin's file is gone; its event types are retired"
                );
                self.count("removed");
            }
        }
        self.adopt(rest);
    }

    /// Takes one file into use, in place of what its name stood for, and of those files that are gone.
    fn take(&mut self, file: &str, stamp: Option<Stamp>, gone: &BTreeSet<String>) {
        let copied = match self.folder.take(file) {
            Ok(copied) => copied,
            Err(error) => return self.refuse(file, None, stamp, Refusal::of(&error)),
        };
        if let Some(used) = self.used.get_mut(file)
            && used.plugin.caller.sha256.as_ref() == copied.sha256
        {
            // Touched, or put back as it was.
            used.stamp = copied.stamp;
            self.refused.remove(file);
            return;
        }
        let sha256 = copied.sha256.clone();
        let used = match self.prepare(file, copied, None, gone) {
            Ok(used) => used,
            Err(refusal) => return self.refuse(file, Some(sha256), stamp, refusal),
        };
        let descriptor = &used.plugin.descriptor;
        tracing::info!(plugin = descriptor.name, version = descriptor.version, file, sha256, "a plugin is in use");
        let mut next = self.used.clone();
        next.retain(|file, _| !gone.contains(file));
        next.insert(file.to_owned(), used);
        self.adopt(next);
        self.refused.remove(file);
        self.count("loaded");
    }

    /// Everything between a copy and its use. `known` is what was found out of this file name before.
    fn prepare(
        &self,
        file: &str,
        copied: Copied,
        known: Option<&Known>,
        gone: &BTreeSet<String>,
    ) -> Result<Used, Refusal> {
        let checked = known.filter(|known| known.sha256 == copied.sha256 && known.checked_by == ENGINE);
        let descriptor = match checked {
            Some(known) => known.descriptor.clone(),
            None => self.loader.check(&copied.path)?,
        };
        if let Some(conflict) = self.others(file, gone).conflict(&descriptor, None) {
            return Err(Refusal::Conflict(conflict));
        }
        (self.declare)(&descriptor).map_err(|problem| Refusal::Passing(format!("its tables: {problem}")))?;
        let quarantine = self.file.state.quarantine(&descriptor.name, &copied.sha256);
        let quarantine = quarantine.map(|(_, quarantine)| quarantine.clone());
        let backend = match (&quarantine, self.settings.mode) {
            (None, Mode::Run) => Some(self.loader.load(&copied, &descriptor)?),
            _ => None,
        };
        let plugin = self.loader.plugin(file, &copied.sha256, descriptor, backend, quarantine);
        Ok(Used { plugin: Arc::new(plugin), stamp: copied.stamp, checked_by: ENGINE.to_owned() })
    }

    /// The plugins beside which a file has to fit.
    fn others(&self, file: &str, gone: &BTreeSet<String>) -> Set {
        let others = self.used.iter().filter(|(name, _)| *name != file && !gone.contains(*name));
        Set::new(others.map(|(_, used)| Arc::clone(&used.plugin)).collect(), &BTreeMap::new())
    }

    /// Uses `next` from now on, and remembers it. Types that are not there any more are retired.
    ///
    /// A state that cannot be written is a trouble for the next start (a check is made again, a retired type is not known
    /// by its plugin), and no reason to keep events of a good plugin waiting now.
    fn adopt(&mut self, next: BTreeMap<String, Used>) {
        let state = &mut self.file.state;
        for known in state.files.values() {
            for added in &known.descriptor.adds {
                state.retired.insert(added.name.clone(), known.plugin.clone());
            }
        }
        for added in next.values().flat_map(|used| &used.plugin.descriptor.adds) {
            state.retired.remove(&added.name);
        }
        let known = next.iter().map(|(file, used)| (file.clone(), used.known()));
        state.files = known.collect();
        self.used = next;
        self.save();
        if self.settings.mode == Mode::Run {
            let plugins = self.used.values().map(|used| Arc::clone(&used.plugin)).collect();
            self.shared.set.store(Arc::new(Set::new(plugins, &self.file.state.retired)));
        }
    }

    fn refuse(&mut self, file: &str, sha256: Option<String>, stamp: Option<Stamp>, refusal: Refusal) {
        let stamp = stamp.filter(|_| !refusal.is_passing());
        if stamp.is_none() && self.refused.get(file).is_some_and(|before| before.refusal == refusal) {
            return;
        }
        tracing::warn!(file, sha256, reason = %refusal, "a file is not used as a plugin");
        self.refused.insert(file.to_owned(), Refused { sha256, refusal, stamp });
        self.count("refused");
    }

    fn quarantine(&mut self, name: &str, reason: String) -> Result<(), CommandError> {
        let used = self.named(name)?.1.clone();
        tracing::warn!(plugin = name, reason, "a plugin is quarantined by an operator");
        let quarantine = Quarantine { reason, since: Timestamp::now() };
        self.file.state.quarantined.insert(name.to_owned(), quarantine.clone());
        used.plugin.set_quarantine(Some(quarantine));
        self.saved("the quarantine holds until the engine stops")
    }

    fn resume(&mut self, name: &str) -> Result<(), CommandError> {
        let (file, used) = self.named(name)?;
        let (file, used) = (file.clone(), used.clone());
        if used.plugin.quarantine().is_none() {
            return Err(CommandError::NotQuarantined(name.to_owned()));
        }
        let sha256 = Arc::clone(&used.plugin.caller.sha256);
        if used.plugin.is_loaded() {
            self.file.state.pardon(name, &sha256);
            used.plugin.set_quarantine(None);
            tracing::info!(plugin = name, "a plugin is called again");
        } else {
            let copied = Copied { sha256: sha256.to_string(), path: self.folder.copy(&sha256), stamp: used.stamp };
            let before = self.file.state.clone();
            self.file.state.pardon(name, &sha256);
            let known = self.file.state.files.get(&file).cloned();
            match self.prepare(&file, copied, known.as_ref(), &BTreeSet::new()) {
                Ok(used) => {
                    let mut next = self.used.clone();
                    next.insert(file, used);
                    self.adopt(next);
                    tracing::info!(plugin = name, "a plugin is loaded and called again");
                }
                Err(refusal) => {
                    self.file.state = before;
                    return Err(CommandError::Load { name: name.to_owned(), reason: refusal.to_string() });
                }
            }
        }
        self.saved("the plugin is called until the engine stops")
    }

    fn named(&self, name: &str) -> Result<(&String, &Used), CommandError> {
        self.used.iter().find(|(_, used)| used.plugin.name() == name).ok_or_else(|| CommandError::Unknown {
            name: name.to_owned(),
            in_use: self.used.values().map(|used| used.plugin.name().to_owned()).collect(),
        })
    }

    /// For each file the state that was dealt with last.
    fn known(&self) -> BTreeMap<String, Option<Stamp>> {
        let used = self.used.iter().map(|(file, used)| (file.clone(), used.stamp.clone()));
        // Of a name that is used and refused the refused one is the later.
        used.chain(self.refused.iter().map(|(file, refused)| (file.clone(), refused.stamp.clone()))).collect()
    }

    /// Watches the folder of today, which may have been removed and made again.
    fn keep_watch(&mut self) {
        if self.watch.as_ref().is_some_and(Watch::is_current) {
            return;
        }
        let tell = self.tell.clone();
        // After the registry's end nobody needs to hear.
        match Watch::start(self.folder.dir(), move |change| drop(tell.send(Message::Changed(change)))) {
            Ok(watch) => {
                self.watch = Some(watch);
                self.troubles.watch = None;
            }
            Err(error) => {
                self.watch = None;
                let dir = self.folder.dir().display();
                self.troubles.watch = Some(format!(
                    "{dir} cannot be watched ({error}); it is looked at every {} s instead",
                    RESCAN.as_secs()
                ));
            }
        }
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

    fn publish(&self) {
        let threads = self.loader.threads();
        report::health(&self.health, &self.used, &self.refused, &self.troubles, &self.unwell, threads);
        report::metrics(&self.metrics, &self.used);
        let listed = report::list(&self.used, &self.refused, &self.file.state, self.settings.mode);
        self.shared.listed.store(Arc::new(listed));
    }
}

impl Used {
    fn known(&self) -> Known {
        Known {
            plugin: self.plugin.name().to_owned(),
            sha256: self.plugin.caller.sha256.to_string(),
            descriptor: self.plugin.descriptor.clone(),
            checked_by: self.checked_by.clone(),
        }
    }
}

/// The engine's version: what another one let pass is checked again.
const ENGINE: &str = env!("CARGO_PKG_VERSION");

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

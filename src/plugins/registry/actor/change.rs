//! Looking at the folder, and the way of a file into the set or out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Instant,
};

use super::{Actor, RESCAN, Refused, SETTLE, Used};
use crate::{
    error_chain::chain,
    plugins::{
        folder::{Copied, Stamp},
        registry::{Message, Mode, load::Refusal},
        set::Set,
        state::Known,
        watch::Watch,
    },
};

/// The engine's version: what another one let pass is checked again.
const ENGINE: &str = env!("CARGO_PKG_VERSION");

impl Actor {
    /// Looks at the folder and does what follows.
    pub(super) fn look(&mut self) {
        self.look_at = Instant::now() + RESCAN;
        self.keep_watch();
        if self.troubles.unsaved.is_some() {
            self.save();
        }
        let found = match self.folder.scan() {
            Ok(found) => found,
            Err(error) => {
                self.troubles.folder = Some(format!("{}; what was in use stays in use", chain(&error)));
                // Nothing tells when it is there again.
                self.look_at = Instant::now() + SETTLE;
                return;
            }
        };
        self.troubles.folder = None;
        let look = self.looks.look(&found, &self.known());
        if look.again {
            self.look_at = Instant::now() + SETTLE;
        }
        self.refused.retain(|file, _| !look.gone.contains(file));
        // What goes or changes may have stood in the way of others.
        let mut freed = look.gone.iter().any(|file| self.used.contains_key(file));
        for file in &look.take {
            freed |= self.take(file, found.get(file).cloned(), &look.gone);
        }
        if freed {
            let waiting = self.refused.iter().filter(|(_, refused)| refused.refusal.is_conflict());
            let waiting: Vec<String> = waiting.map(|(file, _)| file.clone()).collect();
            for file in waiting {
                self.take(&file, found.get(&file).cloned(), &look.gone);
            }
        }
        let gone: Vec<String> = look.gone.into_iter().filter(|file| self.used.contains_key(file)).collect();
        if gone.is_empty() {
            return;
        }
        let mut rest = self.used.clone();
        let gone: Vec<_> = gone.into_iter().filter_map(|file| rest.remove(&file).map(|used| (file, used))).collect();
        self.adopt(rest);
        for (file, used) in gone {
            tracing::info!(plugin = used.plugin.name(), file, "a plugin's file is gone; its event types are retired");
            self.count("removed");
        }
    }

    /// Takes one file into use, in place of what its name stood for, and of those files that are gone. Returns whether a name
    /// or a type became free by that.
    fn take(&mut self, file: &str, stamp: Option<Stamp>, gone: &BTreeSet<String>) -> bool {
        let copied = match self.folder.take(file) {
            Ok(copied) => copied,
            Err(error) => {
                self.refuse(file, None, stamp, Refusal::of(&error));
                return false;
            }
        };
        if let Some(used) = self.used.get_mut(file)
            && *used.plugin.caller.sha256 == *copied.sha256
            && !used.lacks_code(self.settings.mode, &self.file.state)
        {
            // Touched, or put back as it was.
            used.stamp = copied.stamp;
            self.refused.remove(file);
            return false;
        }
        let sha256 = copied.sha256.clone();
        let used = match self.prepare(file, copied, None, gone) {
            Ok(used) => used,
            Err(refusal) => {
                self.refuse(file, Some(sha256), stamp, refusal);
                return false;
            }
        };
        let descriptor = used.plugin.descriptor.clone();
        let mut next = self.used.clone();
        next.retain(|file, _| !gone.contains(file));
        let before = next.insert(file.to_owned(), used);
        self.refused.remove(file);
        self.adopt(next);
        // Only now is it so.
        tracing::info!(plugin = descriptor.name, version = descriptor.version, file, sha256, "a plugin is in use");
        self.count("loaded");
        before.is_some_and(|before| {
            let before = &before.plugin.descriptor;
            let keeps = |kind: &str| descriptor.adds.iter().any(|added| added.name == kind);
            before.name != descriptor.name || !before.adds.iter().all(|added| keeps(&added.name))
        })
    }

    /// Everything between a copy and its use. `known` is what was found out of this file name before.
    pub(super) fn prepare(
        &self,
        file: &str,
        copied: Copied,
        known: Option<&Known>,
        gone: &BTreeSet<String>,
    ) -> Result<Used, Refusal> {
        // A copy that was in use before may have been taken from the list since.
        if !self.folder.allows(&copied.sha256) {
            return Err(Refusal::Passing("plugins.allow does not list it any more".to_owned()));
        }
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
    pub(super) fn others(&self, file: &str, gone: &BTreeSet<String>) -> Set {
        let others = self.used.iter().filter(|(name, _)| *name != file && !gone.contains(*name));
        Set::new(others.map(|(_, used)| Arc::clone(&used.plugin)).collect(), &BTreeMap::new())
    }

    /// Uses `next` from now on, and remembers it. Types that are not there any more are retired.
    ///
    /// A state that cannot be written is a trouble for the next start (a check is made again, a retired type is not known
    /// by its plugin), and no reason to keep events of a good plugin waiting now.
    pub(super) fn adopt(&mut self, next: BTreeMap<String, Used>) {
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
        // Before it is used: who sees a plugin at work, or gone, finds the list and health to say so.
        self.publish();
        if self.settings.mode == Mode::Run {
            let plugins = self.used.values().map(|used| Arc::clone(&used.plugin)).collect();
            self.shared.set.store(Arc::new(Set::new(plugins, &self.file.state.retired)));
        }
    }

    pub(super) fn refuse(&mut self, file: &str, sha256: Option<String>, stamp: Option<Stamp>, refusal: Refusal) {
        let stamp = stamp.filter(|_| !refusal.is_passing());
        if stamp.is_none() && self.refused.get(file).is_some_and(|before| before.refusal == refusal) {
            return;
        }
        tracing::warn!(file, sha256, reason = %refusal, "a file is not used as a plugin");
        self.refused.insert(file.to_owned(), Refused { sha256, refusal, stamp });
        self.count("refused");
    }

    /// For each file the state that was dealt with last.
    fn known(&self) -> BTreeMap<String, Option<Stamp>> {
        let used = self.used.iter().map(|(file, used)| (file.clone(), used.stamp.clone()));
        // Of a name that is used and refused the refused one is the later.
        used.chain(self.refused.iter().map(|(file, refused)| (file.clone(), refused.stamp.clone()))).collect()
    }

    /// Watches the folder of today, which may have been removed and made again.
    pub(super) fn keep_watch(&mut self) {
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
                if error.kind() == io::ErrorKind::NotFound {
                    // The look says so.
                    self.troubles.watch = None;
                    return;
                }
                let dir = self.folder.dir().display();
                self.troubles.watch = Some(format!(
                    "{dir} cannot be watched ({error}); it is looked at every {} s instead",
                    RESCAN.as_secs()
                ));
            }
        }
    }
}

//! Quarantines: those that operators order and lift, and those by faults.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{Actor, Used};
use crate::plugins::{folder::Copied, plugin::Quarantine, registry::CommandError, state::Faulty};

impl Actor {
    pub(super) fn quarantine(&mut self, name: &str, reason: String) -> Result<(), CommandError> {
        let used = self.named(name)?.1.clone();
        tracing::warn!(plugin = name, reason, "a plugin is quarantined by an operator");
        let quarantine = Quarantine { reason, since: Timestamp::now() };
        self.file.state.quarantined.insert(name.to_owned(), quarantine.clone());
        used.plugin.set_quarantine(Some(quarantine));
        self.saved("the quarantine holds until the engine stops")
    }

    pub(super) fn resume(&mut self, name: &str) -> Result<(), CommandError> {
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
                    // If it is this very file that was refused, it is not any more.
                    self.refused.retain(|refused, why| *refused != file || why.sha256.as_deref() != Some(&*sha256));
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

    /// A plugin has done too much wrong.
    pub(super) fn faulted(&mut self, name: String, sha256: &str, quarantine: Quarantine) {
        tracing::warn!(plugin = name, reason = quarantine.reason, "a plugin is quarantined");
        let used = self.used.values().map(|used| &used.plugin);
        let mut same = used.filter(|plugin| plugin.name() == name && *plugin.caller.sha256 == *sha256);
        // It does so itself after it has told, and health is to say so with the first look.
        if let Some(plugin) = same.find(|plugin| plugin.quarantine().is_none()) {
            plugin.set_quarantine(Some(quarantine.clone()));
        }
        self.file.state.faulty.insert(sha256.to_owned(), Faulty { plugin: name, quarantine });
        self.save();
    }

    fn named(&self, name: &str) -> Result<(&String, &Used), CommandError> {
        self.used.iter().find(|(_, used)| used.plugin.name() == name).ok_or_else(|| CommandError::Unknown {
            name: name.to_owned(),
            in_use: self.used.values().map(|used| used.plugin.name().to_owned()).collect(),
        })
    }
}

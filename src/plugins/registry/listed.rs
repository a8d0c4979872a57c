//! A file of the folder as people see it.

use serde::{Deserialize, Serialize};

use crate::plugins::{
    descriptor::Descriptor,
    set::Set,
    state::{By, Known, State},
};

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its plugin is called.
    Running,
    /// Its plugin is not called: its events are parked, or refused if it is `fail_closed`.
    Quarantined,
    /// It passed its check and its tables are declared; this node runs no plugins.
    Declared,
    /// It is not used. An earlier file of the same name may be, and stands in an entry of its own.
    Refused,
    /// What it is now is not known: the engine is not running.
    Stopped,
}

/// A file of the folder, in use or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name in the folder.
    pub file: String,
    /// The plugin in it, as far as that is known.
    pub name: Option<String>,
    /// The plugin's version.
    pub version: Option<String>,
    /// Its sum.
    pub sha256: Option<String>,
    /// Types that the plugin adds.
    pub adds: Vec<String>,
    /// Types that it is given beside those.
    pub enriches: Vec<String>,
    /// What became of it.
    pub state: Standing,
    /// Why it is quarantined or refused.
    pub reason: Option<String>,
    /// Who quarantined it.
    pub by: Option<By>,
    /// Since when it is quarantined.
    pub since: Option<jiff::Timestamp>,
}

impl Listed {
    /// A file with a plugin.
    pub(super) fn of(file: &str, sha256: &str, descriptor: &Descriptor, state: Standing) -> Self {
        Self {
            file: file.to_owned(),
            name: Some(descriptor.name.clone()),
            version: Some(descriptor.version.clone()),
            sha256: Some(sha256.to_owned()),
            adds: descriptor.adds.iter().map(|added| added.name.clone()).collect(),
            enriches: descriptor.enriches.clone(),
            state,
            reason: None,
            by: None,
            since: None,
        }
    }

    /// A file that is not used.
    pub(super) fn refused(file: &str, sha256: Option<&str>, reason: &str) -> Self {
        Self {
            file: file.to_owned(),
            name: None,
            version: None,
            sha256: sha256.map(str::to_owned),
            adds: Vec::new(),
            enriches: Vec::new(),
            state: Standing::Refused,
            reason: Some(reason.to_owned()),
            by: None,
            since: None,
        }
    }

    /// Brings the state up to date: a plugin quarantines itself before the registry's thread hears of it.
    pub(super) fn overlay(&mut self, set: &Set) {
        let plugin = self.name.as_ref().and_then(|name| set.named(name));
        let Some(plugin) = plugin.filter(|plugin| Some(plugin.caller.sha256.as_ref()) == self.sha256.as_deref()) else {
            return;
        };
        match plugin.quarantine() {
            Some(quarantine) if self.reason.as_ref() != Some(&quarantine.reason) => {
                self.by = self.by.or(Some(By::Engine));
                (self.state, self.since) = (Standing::Quarantined, Some(quarantine.since));
                self.reason = Some(quarantine.reason.clone());
            }
            _ => {}
        }
    }

    /// What is remembered of the files while the engine is not running.
    pub fn remembered(state: &State) -> Vec<Self> {
        let listed = |(file, known): (&String, &Known)| {
            let mut listed = Self::of(file, &known.sha256, &known.descriptor, Standing::Stopped);
            if let Some((by, quarantine)) = state.quarantine(&known.plugin, &known.sha256) {
                listed.state = Standing::Quarantined;
                (listed.by, listed.since) = (Some(by), Some(quarantine.since));
                listed.reason = Some(quarantine.reason.clone());
            }
            listed
        };
        state.files.iter().map(listed).collect()
    }
}

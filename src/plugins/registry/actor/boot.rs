//! The start: what is in the folder, and what was in use before.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{Actor, Used};
use crate::{
    error_chain::chain,
    plugins::{folder::Copied, plugin::Quarantine, registry::load::Refusal, state::Known},
};

impl Actor {
    /// What is in the folder when the engine starts, and what was there when it last ran.
    pub(super) fn boot(&mut self) {
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
        let used = self.prepare(file, copied, Some(known), &BTreeSet::new()).unwrap_or_else(|earlier| {
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
}

//! What the registry tells: health, metrics, the list.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Listed, Mode, Standing,
    actor::{Refused, Troubles, Used},
};
use crate::{
    health::Component,
    metrics::{Metrics, PluginLabels},
    plugins::{state::State, threads::Threads},
};

/// Up when all is well, else degraded with every reason.
pub(super) fn health(
    health: &Component,
    used: &BTreeMap<String, Used>,
    refused: &BTreeMap<String, Refused>,
    troubles: &Troubles,
    unwell: &BTreeMap<String, String>,
    threads: &Threads,
) {
    let mut reasons: Vec<String> = Vec::new();
    let own = [&troubles.folder, &troubles.watch, &troubles.damaged, &troubles.unsaved];
    reasons.extend(own.into_iter().flatten().cloned());
    for plugin in used.values().map(|used| &used.plugin) {
        let name = plugin.name();
        if let Some(quarantine) = plugin.quarantine() {
            reasons.push(format!("plugin {name} is quarantined since {}: {}", quarantine.since, quarantine.reason));
        } else if let Some(words) = unwell.get(name) {
            reasons.push(format!("plugin {name} says: {words}"));
        }
        let leaked = threads.leaked_by(name);
        if leaked > 0 {
            reasons.push(format!("{leaked} threads hang in plugin {name}"));
        }
    }
    if threads.is_exhausted() {
        let leaked = threads.leaked();
        reasons.push(format!(
            "{leaked} threads hang in plugins, which are not called until one returns; restart the engine"
        ));
    }
    let files = refused.iter().map(|(file, refused)| {
        let earlier = if used.contains_key(file) { "; the earlier one stays in use" } else { "" };
        format!("{file} is not used: {}{earlier}", refused.refusal)
    });
    reasons.extend(files);
    if reasons.is_empty() {
        health.up();
    } else {
        health.degraded(reasons.join("; "));
    }
}

/// `shown` are the plugins of which a series is shown: one that is gone leaves none behind.
pub(super) fn metrics(metrics: &Metrics, used: &BTreeMap<String, Used>, shown: &mut BTreeSet<String>) {
    metrics.plugins_loaded.set(i64::try_from(used.len()).unwrap_or(i64::MAX));
    let before = std::mem::take(shown);
    for plugin in used.values().map(|used| &used.plugin) {
        let gauge = metrics.plugin_quarantined.get_or_create_owned(&PluginLabels::of(plugin.name()));
        gauge.set(i64::from(plugin.quarantine().is_some()));
        shown.insert(plugin.name().to_owned());
    }
    for gone in before.difference(shown) {
        metrics.plugin_quarantined.remove(&PluginLabels::of(gone));
    }
}

pub(super) fn list(
    used: &BTreeMap<String, Used>,
    refused: &BTreeMap<String, Refused>,
    state: &State,
    mode: Mode,
) -> Vec<Listed> {
    let of_used = used.iter().map(|(file, used)| {
        let (descriptor, sha256) = (&used.plugin.descriptor, &used.plugin.caller.sha256);
        let standing = if mode == Mode::DeclareOnly { Standing::Declared } else { Standing::Running };
        let mut listed = Listed::of(file, sha256, descriptor, standing);
        if let Some(quarantine) = used.plugin.quarantine() {
            listed.state = Standing::Quarantined;
            // One that neither decided on could not be loaded.
            listed.by = state.quarantine(&descriptor.name, sha256).map(|(by, _)| by);
            listed.since = Some(quarantine.since);
            listed.reason = Some(quarantine.reason.clone());
        }
        listed
    });
    let of_refused = refused
        .iter()
        .map(|(file, refused)| Listed::refused(file, refused.sha256.as_deref(), &refused.refusal.to_string()));
    let mut listed: Vec<Listed> = of_used.chain(of_refused).collect();
    // Stable: of one name the file in use comes first.
    listed.sort_by(|a, b| a.file.cmp(&b.file));
    listed
}

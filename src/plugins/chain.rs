//! The plugins of an event, one after the other, over the events of a request.
//!
//! ```text
//! push: events that plugins are given  --> schema of the type --> plugin --> plugin --> accepted
//!                                              |                  | each: keep, replace (read again), reject, drop
//!                                              +--> rejected      +--> fault, or quarantined: parked, as it was sent
//! ```
//!
//! - What a plugin puts in an event's place is read again as if it had been sent, and keeps its id and type: no plugin can
//!   write as another tenant or take another event's place.
//! - A fault costs all events of the call: which of them was to blame is not known, and no verdict of a call that failed
//!   can be believed.
//! - An event that is parked is parked as its sender sent it, whatever plugins before have made of it: it goes through all
//!   of them again.

use std::{ops::Range, sync::Arc, time::Duration};

use super::{
    call::{Call, Fault, Input, Purpose, Verdict},
    instance::output_bytes,
    plugin::Plugin,
    set::Set,
    threads::Worker,
};
use crate::{
    event::{self, Acceptance},
    ids::EventId,
    metrics::{Metrics, PluginOutcomeLabels},
    row::{self, EventRow, Text},
};

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It goes on: its row as the log keeps it, in [`Ended::rows`].
    Accepted(Range<usize>),
    /// Its sender is told so.
    Rejected {
        /// `schema_mismatch`, or `<plugin>.<code>`.
        code: String,
        /// In words.
        detail: String,
    },
    /// A plugin does not want it.
    Dropped,
    /// It waits for a plugin.
    Parked {
        /// The plugin.
        plugin: Arc<str>,
        /// Why it is not called.
        reason: String,
    },
}

/// What became of the events of a request.
#[derive(Debug, Default)]
pub struct Ended<'a> {
    /// In the order in which they were taken.
    pub events: Vec<EndedEvent<'a>>,
    /// Encoded rows.
    pub rows: Vec<u8>,
}

/// What became of an event.
#[derive(Clone, Debug)]
pub struct EndedEvent<'a> {
    /// The caller's own number.
    pub number: usize,
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub kind: Text<'a>,
    /// When it happened, Unix milliseconds, as it was sent.
    pub timestamp_ms: i64,
    /// What became of it.
    pub end: End,
}

/// A plugin that would rather have its events sent again than parked cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin {plugin:?} is not available: {reason}")]
pub struct Unavailable {
    /// The plugin.
    pub plugin: Arc<str>,
    /// Why it is not called.
    pub reason: String,
}

/// The verdicts as they are counted.
const OUTCOMES: [&str; 4] = ["kept", "replaced", "rejected", "dropped"];

fn outcome(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Keep => "kept",
        Verdict::Replace(_) => "replaced",
        Verdict::Reject { .. } => "rejected",
        Verdict::Drop { .. } => "dropped",
    }
}

/// A plugin that did not return in time with the events of this request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Its name.
    pub plugin: Arc<str>,
    /// What it was given.
    pub limit: Duration,
}

/// An event on its way.
struct Item<'a> {
    number: usize,
    raw: &'a str,
    /// What plugins have put in its place.
    replaced: Option<String>,
    kind: Text<'a>,
    id: EventId,
    timestamp_ms: i64,
    row: Range<usize>,
    end: Option<End>,
}

impl Item<'_> {
    fn json(&self) -> &str {
        self.replaced.as_deref().unwrap_or(self.raw)
    }
}

/// The events of a request that plugins are given.
pub struct Chain<'a> {
    set: &'a Set,
    acceptance: &'a Acceptance,
    metrics: &'a Metrics,
    items: Vec<Item<'a>>,
    rows: Vec<u8>,
}

impl<'a> Chain<'a> {
    /// Nothing yet.
    pub fn new(set: &'a Set, acceptance: &'a Acceptance, metrics: &'a Metrics) -> Self {
        Self { set, acceptance, metrics, items: Vec::new(), rows: Vec::new() }
    }

    /// Whether no event was taken.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes an event as it was sent and as it was read, under a number of the caller's; false, and nothing happens, when
    /// no plugin is given events of its type.
    pub fn push(&mut self, number: usize, raw: &'a str, read: &EventRow<'a>) -> bool {
        if self.set.route(&read.kind).is_empty() {
            return false;
        }
        let start = self.rows.len();
        row::encode(read, &mut self.rows);
        let row = start..self.rows.len();
        let (kind, id, timestamp_ms) = (read.kind.clone(), read.event_id, read.timestamp_ms);
        let item = Item { number, raw, replaced: None, kind, id, timestamp_ms, row, end: None };
        self.items.push(item);
        true
    }

    /// Runs the plugins. Those in `abandoned` have had their chance with this request already, on a thread that does not
    /// come back.
    ///
    /// # Errors
    /// [`Unavailable`] when a plugin that has to be called cannot be, and parking is not what it wants. Nothing may be
    /// stored of the request then.
    pub fn run(mut self, worker: &Worker, purpose: Purpose, abandoned: &[Abandoned]) -> Result<Ended<'a>, Unavailable> {
        // Before any plugin is called: for events that wait anyway nobody need do work.
        for (place, plugin) in self.set.plugins().iter().enumerate() {
            let reason = match abandoned.iter().find(|abandoned| *abandoned.plugin == *plugin.name()) {
                Some(abandoned) => Fault::Deadline { limit: abandoned.limit }.to_string(),
                None => match plugin.quarantine() {
                    Some(quarantine) => format!("quarantined: {}", quarantine.reason),
                    None => continue,
                },
            };
            let waiting = self.waiting_for(place);
            self.park(&waiting, plugin, &reason)?;
        }
        // As they were sent, before any plugin has changed them: what does not fit is the sender's.
        for plugin in self.set.plugins() {
            self.check_schemas(plugin);
        }
        for (place, plugin) in self.set.plugins().iter().enumerate() {
            let waiting = self.waiting_for(place);
            if waiting.is_empty() {
                continue;
            }
            match self.call(plugin, &waiting, worker, purpose) {
                Ok(()) => {}
                // This job was given up, and the fault counted, while the call went on: nobody waits for the rest.
                Err(Fault::Abandoned) => break,
                Err(fault) => {
                    if fault.counts() {
                        plugin.fault(&fault);
                    }
                    self.park(&waiting, plugin, &fault.to_string())?;
                }
            }
        }
        let ended = |item: Item<'a>| {
            let Item { number, id, kind, timestamp_ms, row, end, .. } = item;
            EndedEvent { number, id, kind, timestamp_ms, end: end.unwrap_or(End::Accepted(row)) }
        };
        Ok(Ended { events: self.items.into_iter().map(ended).collect(), rows: self.rows })
    }

    /// The events that the plugin at `place` is given, as places in `items`.
    fn waiting_for(&self, place: usize) -> Vec<usize> {
        let waits = |item: &Item<'_>| item.end.is_none() && self.set.route(&item.kind).contains(&place);
        self.items.iter().enumerate().filter(|(_, item)| waits(item)).map(|(number, _)| number).collect()
    }

    fn check_schemas(&mut self, plugin: &Plugin) {
        for item in self.items.iter_mut().filter(|item| item.end.is_none()) {
            if !plugin.descriptor.adds.iter().any(|added| added.name == *item.kind) {
                continue;
            }
            if let Err(detail) = plugin.check_schema(&item.kind, item.json()) {
                item.end = Some(End::Rejected { code: "schema_mismatch".to_owned(), detail });
            }
        }
    }

    /// Gives `plugin` the events at `places` and takes its verdicts, all of them or none.
    fn call(&mut self, plugin: &Plugin, places: &[usize], worker: &Worker, purpose: Purpose) -> Result<(), Fault> {
        let items = places.iter().filter_map(|place| self.items.get(*place));
        let events: Vec<Input<'_>> =
            items.map(|item| Input { json: item.json(), kind: &item.kind, id: item.id }).collect();
        let Acceptance { tenant_id, received_at_ms, .. } = *self.acceptance;
        let call = Call { tenant: tenant_id, received_at_ms, purpose, events: &events };
        let verdicts = plugin.process(worker, &call)?;
        if verdicts.len() != places.len() {
            let problem = format!("{} verdicts for {} events", verdicts.len(), places.len());
            return Err(Fault::BadOutput { problem });
        }

        // Read everything before anything is taken: a call counts wholly or not at all.
        let roomy = Acceptance { event_bytes: output_bytes(self.acceptance.event_bytes), ..self.acceptance.clone() };
        let mut rows = Vec::new();
        let mut read = Vec::with_capacity(places.len());
        for (number, (verdict, event)) in verdicts.iter().zip(&events).enumerate() {
            let Verdict::Replace(json) = verdict else {
                read.push(0..0);
                continue;
            };
            let row = event::read_again(json, &roomy, self.set.types(), event.id, event.kind)
                .map_err(|error| Fault::BadOutput { problem: format!("event {number} of the call: {error}") })?;
            let start = rows.len();
            row::encode(&row, &mut rows);
            read.push(start..rows.len());
        }
        drop(events);
        for name in OUTCOMES {
            self.count(plugin, name, verdicts.iter().filter(|verdict| outcome(verdict) == name).count());
        }
        let base = self.rows.len();
        self.rows.append(&mut rows);
        for ((place, verdict), row) in places.iter().zip(verdicts).zip(read) {
            let Some(item) = self.items.get_mut(*place) else { continue };
            match verdict {
                Verdict::Keep => {}
                Verdict::Replace(json) => {
                    item.replaced = Some(json);
                    item.row = base + row.start..base + row.end;
                }
                Verdict::Reject { code, detail } => {
                    let code = format!("{}.{code}", plugin.name());
                    item.end = Some(End::Rejected { code, detail });
                }
                Verdict::Drop { reason } => {
                    tracing::debug!(plugin = plugin.name(), reason, "a plugin dropped an event");
                    item.end = Some(End::Dropped);
                }
            }
        }
        Ok(())
    }

    fn park(&mut self, places: &[usize], plugin: &Plugin, reason: &str) -> Result<(), Unavailable> {
        let name = &plugin.caller.plugin;
        if plugin.descriptor.fail_closed && !places.is_empty() {
            return Err(Unavailable { plugin: name.clone(), reason: reason.to_owned() });
        }
        self.count(plugin, "parked", places.len());
        for place in places {
            if let Some(item) = self.items.get_mut(*place) {
                item.end = Some(End::Parked { plugin: name.clone(), reason: reason.to_owned() });
            }
        }
        Ok(())
    }

    /// Counts `events` of one plugin under `outcome`.
    fn count(&self, plugin: &Plugin, outcome: &'static str, events: usize) {
        if events > 0 {
            let labels = PluginOutcomeLabels { plugin: plugin.name().to_owned(), outcome };
            self.metrics.plugin_events.get_or_create(&labels).inc_by(events as u64);
        }
    }
}

#[cfg(test)]
mod tests;

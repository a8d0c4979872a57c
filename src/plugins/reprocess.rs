//! Parked events go on: read back from ClickHouse, run through their plugin again, and stored.
//!
//! ```text
//! parked_events --page--> which are in `events` already? --the others--> plugins --accepted--> INSERT into events
//!                                    |                                      | rejected --> dead letters
//!                                    +------------ all of the page ---------+----------> INSERT released = 1
//! ```
//!
//! # Once
//! - An event keeps the identity that it was given when it was accepted: tenant, id, receipt, expiry, and where it entered
//!   (log, record, place in it), which names it for ever. Before a page is inserted it is looked up which of its events are
//!   in `events` already; after the insert the page is marked as released. So a run that ends anywhere leaves nothing that
//!   the next run would do twice or leave out.
//! - An insert of which nobody knows whether it was done is repeated: the same rows under the same token, which `events`
//!   and the target of every view recognise each for itself.
//! - Two limits, both for a run that ends while an insert is on its way and never repeats it. If ClickHouse breaks off
//!   between `events` and a view, the next run finds the events stored and leaves that view as it is. If ClickHouse is still
//!   at work when the next run looks, the next insert is dropped by its token for as long as the page is the same; that it is
//!   not takes an event that was parked meanwhile and sorts before them.
//!
//! # Operation
//! - An event goes through all plugins of its type, as if it had just been sent, and is stored when all let it through. The
//!   plugins are told that it is not its first time.
//! - A plugin that cannot take an event ends the run, in words, before anything of its page is stored.
//! - Pages follow the sort key of the table. What is parked meanwhile is taken, or left for the next run, by where it sorts.
//! - One run of a plugin at a time in a process. On two nodes at once nothing is lost, but a look may come too early to see
//!   what the other is about to store.
//!
//! # What this is not
//! It deletes nothing: rows leave `parked_events` with their retention. It does not send events through the topic.

mod page;
mod store;

use std::{
    collections::{BTreeSet, HashSet},
    future::Future,
    io,
    ops::ControlFlow,
    sync::Arc,
};

use parking_lot::Mutex;
use thiserror::Error;

use self::{page::Page, store::Store};
use crate::{
    clickhouse::{Client, QueryError},
    dead_letters::{DeadLetter, DeadLetters, Form, Stage},
    erasure::Erasures,
    ids::{EventId, TenantId},
    metrics::{Metrics, ReprocessLabels},
    row::{BinaryError, Row},
};

/// Parked events that were accepted together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Whose they are.
    pub tenant_id: TenantId,
    /// When they were accepted, Unix milliseconds.
    pub received_at_ms: i64,
    /// Unix seconds from which their rows may be dropped.
    pub expires_at: u32,
    /// The events, at least one.
    pub events: Vec<Event>,
}

/// A parked event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id, also when the sender gave it none.
    pub event_id: EventId,
    /// Its JSON as it was sent.
    pub raw: String,
}

/// What the plugins made of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It may be stored: its row, as [`crate::row::encode`] writes it.
    Accepted(Vec<u8>),
    /// It is none, or not a good one.
    Rejected {
        /// The stable code.
        code: String,
        /// In words.
        detail: String,
    },
    /// A plugin does not want it.
    Dropped,
    /// A plugin could not be called, or did something wrong; or it is not there.
    Waits {
        /// Which; empty when it was none of them.
        plugin: String,
        /// Why.
        reason: String,
    },
}

/// Runs events through the plugins that are in use now.
pub trait Rerun: Send + Sync {
    /// One outcome for each event of `batch`, in their order.
    fn rerun(&self, batch: Batch) -> impl Future<Output = Vec<Outcome>> + Send;
}

/// What became of parked events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// In `events` now, those included that an earlier run had stored and not released.
    pub stored: u64,
    /// In the dead letters of this node.
    pub rejected: u64,
    /// A plugin did not want them.
    pub dropped: u64,
    /// Erased on request.
    #[serde(default)]
    pub erased: u64,
    /// Their retention is over.
    pub skipped: u64,
    /// Still parked.
    pub left: u64,
}

/// How far a page has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It went through the plugins; nothing of it is stored.
    Run,
    /// It is stored, and not yet released.
    Stored,
    /// It is done.
    Released,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The step that the present page has just finished.
    pub step: Step,
    /// What became of the pages before it, and of it once it is released.
    pub summary: Summary,
}

/// Why a run ended early. What it had not released is still parked, and the next run goes on with it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReprocessError {
    /// Another run of the same plugin is at work.
    #[error("the parked events of plugin {plugin:?} are being reprocessed already")]
    Busy {
        /// The plugin.
        plugin: String,
    },
    /// A plugin could not take events.
    #[error("the events stay parked{}: {reason}", because_of(plugin))]
    Waits {
        /// The plugin that could not; not always the one whose events they are. Empty when it was none of them.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// What runs the plugins did not answer for every event.
    #[error("the plugins answered for {answers} of {events} events, so they stay parked")]
    Answers {
        /// Answers.
        answers: usize,
        /// Events.
        events: usize,
    },
    /// ClickHouse refused, or cannot be reached.
    #[error("{doing} failed")]
    ClickHouse {
        /// What it was asked for.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: QueryError,
    },
    /// What ClickHouse or the plugins returned is no row.
    #[error("what {from} returned is not a row")]
    Row {
        /// Who returned it.
        from: &'static str,
        /// What is wrong with it.
        #[source]
        source: BinaryError,
    },
    /// A rejected event could not be kept.
    #[error("a rejected event cannot be kept as a dead letter")]
    Letter(#[source] io::Error),
    /// Told to stop.
    #[error("stopped; what was not released is still parked")]
    Stopped,
}

fn because_of(plugin: &str) -> String {
    if plugin.is_empty() { String::new() } else { format!(", because of plugin {plugin:?}") }
}

/// Runs parked events through their plugin again.
pub struct Reprocess<R> {
    store: Store,
    rerun: R,
    letters: DeadLetters,
    metrics: Arc<Metrics>,
    busy: Mutex<HashSet<String>>,
}

/// One run; when it ends, however it does, the next may begin.
struct Turn<'a> {
    busy: &'a Mutex<HashSet<String>>,
    plugin: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy.lock().remove(self.plugin);
    }
}

impl<R: Rerun> Reprocess<R> {
    /// What reads and writes through `client` and runs plugins through `rerun`.
    pub fn new(client: Client, erasures: Erasures, rerun: R, letters: DeadLetters, metrics: Arc<Metrics>) -> Self {
        Self { store: Store::new(client, erasures), rerun, letters, metrics, busy: Mutex::default() }
    }

    /// Runs all events that are parked for `plugin` through the plugins, and stores what they accept. `progress` is told of
    /// every step and may stop the run there. May be dropped at any moment.
    ///
    /// # Errors
    /// [`ReprocessError`]; nothing is lost, and the next run goes on where this one ended.
    pub async fn run(
        &self,
        plugin: &str,
        mut progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Summary, ReprocessError> {
        if !self.busy.lock().insert(plugin.to_owned()) {
            return Err(ReprocessError::Busy { plugin: plugin.to_owned() });
        }
        let _turn = Turn { busy: &self.busy, plugin };
        let result = self.pages(plugin, &mut progress).await;
        if let Err(error) = &result
            && !matches!(error, ReprocessError::Stopped)
        {
            self.metrics.error("reprocess");
        }
        result
    }

    async fn pages(
        &self,
        plugin: &str,
        progress: &mut (impl FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<Summary, ReprocessError> {
        let mut summary = Summary { skipped: self.store.count(plugin, true).await?, ..Summary::default() };
        let mut behind = None;
        while let Some(page) = self.store.page(plugin, behind.as_ref()).await? {
            let mut tell = |step, summary| match progress(Progress { step, summary }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ReprocessError::Stopped),
            };
            let stored_before = self.store.stored(&page).await?;
            let done = self.run_plugins(&page, &stored_before).await?;
            tell(Step::Run, summary)?;
            self.keep_letters(&page, &done).await?;
            let erased = self.store.insert(&page, &done.accepted).await?;
            self.store.say_dropped(&page, &done.dropped).await?;
            tell(Step::Stored, summary)?;
            self.store.release(&page).await?;
            let counts = [
                ("stored", done.accepted.len() - erased + stored_before.len(), &mut summary.stored),
                ("erased", erased, &mut summary.erased),
                ("rejected", done.rejected.len(), &mut summary.rejected),
                ("dropped", done.dropped.len(), &mut summary.dropped),
            ];
            for (outcome, count, total) in counts {
                *total += count as u64;
                self.metrics.reprocessed_events.get_or_create(&ReprocessLabels { outcome }).inc_by(count as u64);
            }
            behind = page.last();
            tell(Step::Released, summary)?;
        }
        summary.left = self.store.count(plugin, false).await?;
        Ok(summary)
    }

    /// Runs the events of `page` that are not in `stored` through the plugins.
    async fn run_plugins(&self, page: &Page, stored: &BTreeSet<usize>) -> Result<Done, ReprocessError> {
        let mut done = Done::default();
        for (places, batch) in page.batches(stored) {
            let outcomes = self.rerun.rerun(batch).await;
            if outcomes.len() != places.len() {
                return Err(ReprocessError::Answers { answers: outcomes.len(), events: places.len() });
            }
            for (place, outcome) in places.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Accepted(row) => done.accepted.push((place, row)),
                    Outcome::Rejected { code, detail } => done.rejected.push((place, format!("{code}: {detail}"))),
                    Outcome::Dropped => done.dropped.push(place),
                    Outcome::Waits { plugin, reason } => return Err(ReprocessError::Waits { plugin, reason }),
                }
            }
        }
        Ok(done)
    }

    /// Keeps what was rejected, before it is released. A run that ends in between keeps it again, under the same name.
    async fn keep_letters(&self, page: &Page, done: &Done) -> Result<(), ReprocessError> {
        let letters: Vec<_> = done
            .rejected
            .iter()
            .filter_map(|(place, reason)| Some((page.about(*place)?, reason.clone(), page.raw(*place)?)))
            .collect();
        if letters.is_empty() {
            return Ok(());
        }
        let folder = self.letters.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let letters = letters.iter().map(|(about, reason, raw)| DeadLetter {
                stage: Stage::Reprocess,
                reason: reason.clone(),
                form: Form::Sent,
                bytes: raw.as_bytes(),
                origin: None,
                message: None,
                about: Some(about.clone()),
            });
            folder.keep(&letters.collect::<Vec<_>>())
        });
        kept.await.map_err(io::Error::other).flatten().map_err(ReprocessError::Letter)
    }
}

/// What became of the events of a page, by their place in it.
#[derive(Debug, Default)]
struct Done {
    accepted: Vec<(usize, Vec<u8>)>,
    rejected: Vec<(usize, String)>,
    dropped: Vec<usize>,
}

/// The event row in `encoded`.
fn event_row(encoded: &[u8]) -> Result<crate::row::EventRow<'_>, ReprocessError> {
    match crate::row::decode(encoded) {
        Ok(Row::Event(event)) => Ok(event),
        Ok(Row::Parked(_)) => {
            let source = BinaryError::UnknownLayout { layout: crate::row::PARKED_LAYOUT };
            Err(ReprocessError::Row { from: "a plugin", source })
        }
        Err(source) => Err(ReprocessError::Row { from: "a plugin", source }),
    }
}

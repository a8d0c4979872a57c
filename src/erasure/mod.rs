//! What was erased on request, and must not come back.
//!
//! ```text
//! command:  tombstone --> every sink confirms --> delete, and tell the ledger --> report
//! sink:     I am here --> tombstones --> inserts, without the rows that a tombstone names --> I apply these from now on
//! ```
//!
//! A tombstone says whose rows (a tenant's, or one person's) that were received before which moment must never be stored.
//! It is a row in ClickHouse, where every sink reads it before its first insert and then every two seconds.
//!
//! # Why nothing comes back
//! - An insert takes the tombstones ([`Erasures::lease`]) when it begins, and holds them until it has ended. A sink says that
//!   it applies a tombstone once no insert is left that began without it. What was inserted before that, the deletion
//!   finds.
//! - A sink says that it is there before it reads the tombstones. So one that the command does not see has yet to read them,
//!   and will find the new one.
//! - Tombstones that were read longer ago than [`FRESH`] are read again before an insert; while that is not possible nothing
//!   is inserted. So a sink that has said nothing for [`SILENT`] has no insert under way and begins none.
//! - Reprocessing takes them in the same way. With no tombstone nothing is looked at.
//!
//! # What this is not
//! It takes nothing out of a log, a topic, a backup or the dead letters: there a copy stays until it is delivered (and left
//! out) or its time is over. The command's report says so.

pub mod commands;
mod set;
mod tables;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use set::{Set, Tombstone};

use crate::{
    clickhouse::{Client, QueryError, quote_identifier},
    error_chain::chain,
    health::Component,
};

/// How often the tombstones are read.
pub const POLL: Duration = Duration::from_secs(2);
/// How long what was read may be used.
pub const FRESH: Duration = Duration::from_secs(10);
/// How often a sink says that it is there.
const REPORT: Duration = Duration::from_secs(10);
/// After so much silence a sink has no insert under way: what it last read is no longer fresh, and the two inserts that a
/// lease may cover end within `clickhouse.insert_timeout` each, which is added.
pub const SILENT: Duration = Duration::from_secs(30);

/// The tombstones of one database, and this process as one that applies them. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Erasures {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    database: String,
    /// This process, in what sinks say.
    sink: Uuid,
    state: Mutex<State>,
    /// One reads at a time; the others use what it has read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<(Arc<Set>, Instant)>,
    /// Sets that inserts may still hold, each with the tombstones that came after it.
    before: Vec<(Weak<Set>, Vec<Uuid>)>,
    reported: Option<Instant>,
}

impl Erasures {
    /// Reads nothing yet.
    pub fn new(client: Client) -> Self {
        let database = quote_identifier(client.database());
        let (sink, state, reading) = (Uuid::now_v7(), Mutex::default(), tokio::sync::Mutex::default());
        Self { inner: Arc::new(Inner { client, database, sink, state, reading }) }
    }

    /// The tombstones of now, for one insert: to be held until it has ended.
    ///
    /// # Errors
    /// [`QueryError`] when they cannot be read. Then nothing may be inserted.
    pub async fn lease(&self) -> Result<Arc<Set>, QueryError> {
        if let Some(set) = self.fresh() {
            return Ok(set);
        }
        let _one_reads = self.inner.reading.lock().await;
        if let Some(set) = self.fresh() {
            return Ok(set);
        }
        self.inner.read().await
    }

    fn fresh(&self) -> Option<Arc<Set>> {
        let state = self.inner.state.lock();
        state.current.as_ref().filter(|(_, read)| read.elapsed() < FRESH).map(|(set, _)| Arc::clone(set))
    }

    /// Keeps the tombstones fresh and says which of them are applied, until `stop`; then says that this process has stopped.
    pub async fn run(self, health: Component, stop: CancellationToken) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(poll.tick()).await.is_some() {
            let turn = async {
                {
                    let _one_reads = self.inner.reading.lock().await;
                    self.inner.read().await?;
                }
                self.inner.confirm().await
            };
            match stop.run_until_cancelled(turn).await {
                Some(Ok(())) => health.up(),
                Some(Err(error)) => {
                    health.degraded(format!("what was erased cannot be read, so nothing is stored: {}", chain(&error)));
                }
                None => break,
            }
        }
        // Whoever waits for this process need not wait longer. An insert that is cut off now was begun under what it knew.
        let goodbye = self.inner.report(&[], true);
        match tokio::time::timeout(POLL, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "cannot say that the sink has stopped"),
            Err(_elapsed) => tracing::debug!("cannot say that the sink has stopped: ClickHouse does not answer"),
        }
    }
}

impl Inner {
    /// Says that this process is there, then reads the tombstones.
    async fn read(&self) -> Result<Arc<Set>, QueryError> {
        let due = self.state.lock().reported.is_none_or(|reported| reported.elapsed() >= REPORT);
        if due {
            self.report(&[], false).await?;
        }
        let read = Instant::now();
        let sql = format!(
            "SELECT id, tenant_id, user_id, anonymous_ids, toUnixTimestamp64Milli(before) AS before_ms \
             FROM {}.erasures WHERE kept_until > now() ORDER BY id",
            self.database
        );
        let tombstones: Vec<Tombstone> = self.client.fetch(&sql).await?;
        let mut state = self.state.lock();
        let set = match state.current.take() {
            Some((set, _)) if set.is_of(&tombstones) => set,
            before => {
                let set = Arc::new(Set::new(tombstones));
                let old = before.map(|(set, _)| set);
                let new = set.ids().filter(|id| old.as_ref().is_none_or(|old| !old.has(*id))).collect();
                // Nothing was begun before the first set: it is applied as it stands.
                state.before.push((old.as_ref().map_or_else(Weak::new, Arc::downgrade), new));
                set
            }
        };
        state.current = Some((Arc::clone(&set), read));
        Ok(set)
    }

    /// Says which tombstones are applied now: those that came after sets which nobody holds any more.
    async fn confirm(&self) -> Result<(), QueryError> {
        let applied: Vec<Uuid> = {
            let state = self.state.lock();
            // In their order: an insert that began under an older set knows nothing of what came after it either.
            let done = state.before.iter().take_while(|(set, _)| set.strong_count() == 0);
            done.flat_map(|(_, new)| new.iter().copied()).collect()
        };
        if !applied.is_empty() {
            self.report(&applied, false).await?;
        }
        let mut state = self.state.lock();
        while state
            .before
            .first()
            .is_some_and(|(set, new)| set.strong_count() == 0 && new.iter().all(|id| applied.contains(id)))
        {
            state.before.remove(0);
        }
        Ok(())
    }

    async fn report(&self, applies: &[Uuid], stopped: bool) -> Result<(), QueryError> {
        let applies: Vec<String> = applies.iter().map(|id| format!("'{id}'")).collect();
        // A token of its own: the same words twice are no repeat.
        let sql = format!(
            "INSERT INTO {}.sink_reports (sink, applies, stopped) \
             SETTINGS async_insert = 0, insert_deduplication_token = '{}' VALUES ('{}', [{}], {})",
            self.database,
            Uuid::new_v4(),
            self.sink,
            applies.join(", "),
            u8::from(stopped)
        );
        self.client.execute(&sql).await?;
        self.state.lock().reported = Some(Instant::now());
        Ok(())
    }
}

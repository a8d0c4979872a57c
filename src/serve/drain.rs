//! Waiting for the log to become empty.

use std::time::{Duration, Instant};

use crate::{
    health::{Health, State},
    wal::Wal,
};

/// How often an ending node looks at its log: often enough not to be felt, seldom enough to cost nothing.
const LOOK: Duration = Duration::from_millis(20);

/// How often a drain that takes long says how far it is.
const SAY: Duration = Duration::from_secs(10);

/// Resolves once the log holds no record.
pub(super) async fn emptied(wal: &Wal) {
    let mut said = Instant::now();
    loop {
        let records = wal.stats().records;
        if records == 0 {
            return;
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            tracing::info!(records, "the write-ahead log is not empty yet");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for the log to become empty, at most for `budget`, and not at all while `behind`, the part that empties it,
/// reports that it cannot.
pub(super) async fn emptied_within(wal: &Wal, budget: Duration, health: &Health, behind: &'static str) {
    let hopeless = async {
        while health.snapshot().get(behind).is_none_or(|report| report.state != State::Down) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = emptied(wal) => {}
        () = hopeless => tracing::info!(behind, "not waiting for what is down; the rest waits on disk"),
        () = tokio::time::sleep(budget) => tracing::info!("the budget is used up; the rest waits on disk"),
    }
}

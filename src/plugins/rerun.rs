//! Parked events through the plugins in use: what [`super::reprocess`] asks for.

use std::sync::Arc;

use super::{
    Plugins,
    call::{Fault, Purpose},
    chain::{Chain, End},
    reprocess::{Batch, Outcome, Rerun},
    set::Set,
    threads::{RunError, Worker},
};
use crate::{
    event::{self, Acceptance, EventError, EventErrorCode},
    metrics::Metrics,
    row,
};

/// Runs events on plugin threads, with the plugins in use at each batch.
pub struct Again {
    /// The plugins.
    pub plugins: Plugins,
    /// Most bytes of an event's JSON.
    pub event_bytes: usize,
    /// Where outcomes are counted.
    pub metrics: Arc<Metrics>,
}

impl Rerun for Again {
    async fn rerun(&self, batch: Batch) -> Vec<Outcome> {
        let (set, events) = (self.plugins.current(), batch.events.len());
        let wait = |plugin: &str, reason: String| vec![Outcome::Waits { plugin: plugin.to_owned(), reason }; events];
        let job = {
            let (metrics, event_bytes) = (Arc::clone(&self.metrics), self.event_bytes);
            move |worker: &Worker| run(&set, worker, &batch, event_bytes, &metrics)
        };
        match self.plugins.threads().run(job).await {
            Ok(outcomes) => outcomes,
            Err(RunError::Abandoned { plugin, limit }) => wait(&plugin, Fault::Deadline { limit }.to_string()),
            Err(error) => wait("", error.to_string()),
        }
    }
}

fn run(set: &Set, worker: &Worker, batch: &Batch, event_bytes: usize, metrics: &Metrics) -> Vec<Outcome> {
    // It was within the bounds of time when it was accepted.
    let acceptance = Acceptance {
        tenant_id: batch.tenant_id,
        received_at_ms: batch.received_at_ms,
        expires_at: batch.expires_at,
        event_bytes,
        oldest_ms: i64::MIN,
        latest_ms: i64::MAX,
    };
    let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(batch.events.len());
    let mut chain = Chain::new(set, &acceptance, metrics);
    for (number, event) in batch.events.iter().enumerate() {
        outcomes.push(match event::read(&event.raw, &acceptance, set.types()) {
            Ok(mut row) => {
                row.event_id = event.event_id;
                if chain.push(number, &event.raw, &row) {
                    None
                } else {
                    let mut encoded = Vec::new();
                    row::encode(&row, &mut encoded);
                    Some(Outcome::Accepted(encoded))
                }
            }
            // Its type was known when it was accepted: the plugin that adds it is gone, and may come back.
            Err((_, EventError { code: EventErrorCode::UnknownType, detail })) => {
                Some(Outcome::Waits { plugin: String::new(), reason: detail.into_owned() })
            }
            Err((_, error)) => {
                let (code, detail) = (error.code.as_str().to_owned(), error.detail.into_owned());
                Some(Outcome::Rejected { code, detail })
            }
        });
    }
    match chain.run(worker, Purpose::REPROCESS, &[]) {
        Ok(ended) => {
            for event in ended.events {
                let outcome = match event.end {
                    End::Accepted(row) => Outcome::Accepted(ended.rows.get(row).unwrap_or_default().to_vec()),
                    End::Rejected { code, detail } => Outcome::Rejected { code, detail },
                    End::Dropped => Outcome::Dropped,
                    End::Parked { plugin, reason } => Outcome::Waits { plugin: plugin.to_string(), reason },
                };
                if let Some(place) = outcomes.get_mut(event.number) {
                    *place = Some(outcome);
                }
            }
            outcomes.into_iter().flatten().collect()
        }
        Err(unavailable) => {
            let (plugin, reason) = (unavailable.plugin.to_string(), unavailable.reason);
            vec![Outcome::Waits { plugin, reason }; batch.events.len()]
        }
    }
}

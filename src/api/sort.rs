//! The events of a request: split, read, run through plugins, and packed for the log.
//!
//! Without plugins a small body is read where it arrived and a large one on the blocking pool. With plugins all of it
//! happens on a plugin thread, so that no call of a plugin holds up others and none needs a thread change of its own. When
//! a plugin does not return in time the thread is left to it, and the request is sorted again from its body, with that
//! plugin's events parked.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Api, Inner,
    budget::Reservation,
    encoding::Encoding,
    error::{ApiError, RejectedEvent, RejectionCode},
    rate_limits::Policy,
};
use crate::{
    event::{Acceptance, Batch},
    metrics::OutcomeLabels,
    plugins::{
        Plugins,
        call::Purpose,
        chain::{Abandoned, Chain, End, Ended},
        set::Set,
        threads::{RunError, Worker},
    },
    row::{self, ParkedRow},
    tenants::Tenant,
    wal::{Chunk, Packer},
};

/// Bodies above this are decompressed and parsed on the blocking pool: at about 300 MB/s they would hold an async
/// thread for more than half a millisecond.
const OFFLOAD_ABOVE: usize = 192 << 10;

/// A request that was received. Cheap to clone.
#[derive(Clone)]
pub(super) struct Request {
    pub tenant: Arc<Tenant>,
    pub encoding: Encoding,
    pub body: Bytes,
    pub received_at_ms: i64,
    /// Its events have been accepted before: their quota is taken, and their time was within its bounds.
    pub again: bool,
}

/// What is left of a request once its events are sorted.
pub(super) struct Sorted {
    /// All events of the request.
    pub received: usize,
    /// Rows for the log, those of parked events among them.
    pub chunks: Vec<Chunk>,
    /// Events that will be rows of `events`.
    pub stored: usize,
    /// Events that wait for a plugin.
    pub parked: usize,
    /// Events that a plugin did not want.
    pub dropped: usize,
    pub rejected: Vec<RejectedEvent>,
}

/// Sorts the events of `request` and gives back what it holds of the budget.
pub(super) async fn sort(
    api: &Api,
    request: &Request,
    mut held: Reservation,
) -> Result<(Sorted, Reservation), ApiError> {
    let inner = &api.inner;
    let set = inner.plugins.as_ref().map(Plugins::current).unwrap_or_default();
    if let Some(plugins) = &inner.plugins
        && !set.is_empty()
    {
        return sort_with_plugins(api, plugins, request, &set, held).await;
    }
    if request.body.len() <= OFFLOAD_ABOVE && request.encoding == Encoding::Identity {
        let sorted = inner.sort(request, &set, None, &mut held)?;
        return Ok((sorted, held));
    }
    let (api, request) = (api.clone(), request.clone());
    let sorted = tokio::task::spawn_blocking(move || {
        api.inner.sort(&request, &set, None, &mut held).map(|sorted| (sorted, held))
    });
    sorted.await.map_err(|panic| {
        tracing::error!(%panic, "reading a request failed");
        ApiError::Internal
    })?
}

async fn sort_with_plugins(
    api: &Api,
    plugins: &Plugins,
    request: &Request,
    set: &Arc<Set>,
    mut held: Reservation,
) -> Result<(Sorted, Reservation), ApiError> {
    let mut abandoned: Vec<Abandoned> = Vec::new();
    loop {
        let job = {
            let (api, request, set, given_up) = (api.clone(), request.clone(), Arc::clone(set), abandoned.clone());
            move |worker: &Worker| {
                api.inner.sort(&request, &set, Some((worker, &given_up)), &mut held).map(|sorted| (sorted, held))
            }
        };
        match plugins.threads().run(job).await {
            Ok(sorted) => return sorted,
            Err(RunError::Abandoned { plugin: name, limit }) => {
                abandoned.push(Abandoned { plugin: name, limit });
                // The thread that hangs holds the body, and what was reserved for it.
                held = api.inner.budget.reservation(&request.tenant.quotas);
                held.grow(request.body.len()).map_err(ApiError::Full)?;
            }
            Err(error) => {
                tracing::error!(%error, "reading a request failed");
                return Err(ApiError::Internal);
            }
        }
    }
}

impl Inner {
    /// Decompresses, splits and reads a body: good events into chunks of the log, bad ones into errors. With a worker,
    /// the plugins of `set` are run, but for those that were given up with this request already.
    fn sort(
        &self,
        request: &Request,
        set: &Set,
        worker: Option<(&Worker, &[Abandoned])>,
        held: &mut Reservation,
    ) -> Result<Sorted, ApiError> {
        let Request { tenant, encoding, body, received_at_ms, again } = request;
        let limits = &self.limits;
        let body = encoding.decode(body.clone(), limits.decompressed_bytes, held).map_err(ApiError::Encoding)?;
        let batch = Batch::parse(&body, limits.events_per_request).map_err(ApiError::Body)?;
        // Once for a request, however often a plugin makes it be sorted.
        if !again && worker.is_none_or(|(_, abandoned)| abandoned.is_empty()) {
            let total = batch.len() as u64;
            tenant.quotas.take_events(total).map_err(|over| ApiError::Quota { policy: Policy::Events, over })?;
        }
        let mut acceptance = self.acceptance(tenant, *received_at_ms);
        if *again {
            (acceptance.oldest_ms, acceptance.latest_ms) = (i64::MIN, i64::MAX);
        }

        let received = batch.len();
        let mut sorted =
            Sorted { received, chunks: Vec::new(), stored: 0, parked: 0, dropped: 0, rejected: Vec::new() };
        let mut packer = Packer::new(self.codec);
        let mut chain = Chain::new(set, &acceptance, &self.metrics);
        for (index, event) in batch.events().enumerate() {
            match event.read(&acceptance, set.types()) {
                Ok(row) if chain.push(index, event.text(), &row) => {}
                Ok(row) => {
                    packer.push_with(|raw| row::encode(&row, raw));
                    sorted.stored += 1;
                }
                Err((id, error)) => {
                    let code = RejectionCode::Engine(error.code);
                    sorted.rejected.push(RejectedEvent { index, id, code, detail: error.detail });
                }
            }
        }
        if let Some((worker, abandoned)) = worker
            && !chain.is_empty()
        {
            let purpose = if *again { Purpose::REPROCESS } else { Purpose::LIVE };
            let ended = chain.run(worker, purpose, abandoned).map_err(ApiError::Plugin)?;
            pack(ended, &batch, &acceptance, &mut packer, &mut sorted);
        }
        sorted.chunks = packer.finish();
        Ok(sorted)
    }

    fn acceptance(&self, tenant: &Tenant, received_at_ms: i64) -> Acceptance {
        let limits = &self.limits;
        let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Acceptance {
            tenant_id: tenant.id,
            received_at_ms,
            expires_at: tenant.retention.expires_at(received_at_ms),
            event_bytes: limits.event_bytes,
            oldest_ms: limits.max_age.map_or(0, |age| received_at_ms.saturating_sub(milliseconds(age)).max(0)),
            latest_ms: received_at_ms.saturating_add(milliseconds(limits.max_ahead)),
        }
    }

    pub(super) fn count_rejected(&self, rejected: &[RejectedEvent]) {
        for event in rejected {
            let labels = OutcomeLabels { outcome: "rejected", code: event.code.label() };
            self.metrics.events.get_or_create(&labels).inc();
        }
    }

    pub(super) fn count(&self, outcome: &'static str, events: usize) {
        if events > 0 {
            self.metrics.events.get_or_create(&OutcomeLabels { outcome, code: "" }).inc_by(events as u64);
        }
    }
}

/// Packs what the plugins have left of a request.
fn pack(ended: Ended<'_>, batch: &Batch<'_>, acceptance: &Acceptance, packer: &mut Packer, sorted: &mut Sorted) {
    let mut encoded = Vec::new();
    for event in ended.events {
        match event.end {
            End::Accepted(row) => {
                packer.push(ended.rows.get(row).unwrap_or_default());
                sorted.stored += 1;
            }
            End::Rejected { code, detail } => {
                let (index, id) = (event.number, Some(event.id));
                let code = RejectionCode::Plugin(code);
                sorted.rejected.push(RejectedEvent { index, id, code, detail: detail.into() });
            }
            End::Dropped => sorted.dropped += 1,
            End::Parked { plugin, reason } => {
                encoded.clear();
                let parked = ParkedRow {
                    tenant_id: acceptance.tenant_id,
                    event_id: event.id,
                    timestamp_ms: event.timestamp_ms,
                    received_at_ms: acceptance.received_at_ms,
                    expires_at: acceptance.expires_at,
                    plugin: (&*plugin).into(),
                    kind: event.kind,
                    reason: reason.as_str().into(),
                    raw: batch.text(event.number).into(),
                };
                row::encode_parked(&parked, &mut encoded);
                packer.push(&encoded);
                sorted.parked += 1;
            }
        }
    }
    sorted.rejected.sort_by_key(|rejected| rejected.index);
}

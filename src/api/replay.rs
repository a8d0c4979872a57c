//! Events that had been accepted and became dead letters: through the front again.

use std::sync::Arc;

use axum::body::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Api,
    encoding::Encoding,
    error::ApiError,
    sort::{Request, sort},
};
use crate::{
    dead_letters::replay::{Front, Replayed, Taken},
    ids::TenantId,
    tenants::Tenant,
    wal::{Answer, Append, AppendError, Intake},
};

impl Front for Api {
    fn replay<'a>(&'a self, tenant: TenantId, letter: Uuid, event: &'a str) -> Replayed<'a> {
        Box::pin(self.take_again(tenant, letter, event))
    }
}

impl Api {
    /// Like a request of `tenant`, but that nobody has to prove to be it, that quotas were taken when the event was accepted
    /// for the first time, and that its time may be long ago. A repeat is known by the letter's name, as one of a request is by
    /// its idempotency key.
    async fn take_again(&self, tenant: TenantId, letter: Uuid, event: &str) -> Result<Taken, String> {
        let inner = &self.inner;
        let Some(tenant) = inner.doors.tenants.current().get(tenant).cloned() else {
            return Ok(Taken::Refused(format!("there is no tenant {tenant} (any more)")));
        };
        let mut key = b"\0dead letter".to_vec();
        key.extend_from_slice(letter.as_bytes());
        let answer = Answer { key: inner.wal.answer_key(tenant.id, &key), request: letter.as_u128(), body: Vec::new() };
        if inner.wal.answered(answer.key).is_some() {
            return Ok(Taken::Accepted);
        }
        self.take(tenant, event, answer).await.map_err(|error| error.detail())
    }

    async fn take(&self, tenant: Arc<Tenant>, event: &str, answer: Answer) -> Result<Taken, ApiError> {
        let inner = &self.inner;
        inner.wal.accepting().map_err(ApiError::Wal)?;
        let mut held = inner.budget.reservation(&tenant.quotas);
        held.grow(event.len()).map_err(ApiError::Full)?;
        let (tenant_id, received_at_ms) = (tenant.id, Timestamp::now().as_millisecond());
        let body = Bytes::copy_from_slice(event.as_bytes());
        let request = Request { tenant, encoding: Encoding::Identity, body, received_at_ms, again: true };
        let (sorted, held) = sort(self, &request, held).await?;
        inner.count_rejected(&sorted.rejected);
        if let Some(rejected) = sorted.rejected.first() {
            return Ok(Taken::Refused(format!("the front refuses it: {}", rejected.detail)));
        }
        let chunks = sorted.chunks;
        let append =
            Append { tenant: tenant_id, received_at_ms, chunks, counted: false, answer: Some(answer), again: true };
        let dropped = sorted.dropped as u64;
        match inner.wal.append_of(append, Intake { received: 1, rejected: 0, dropped }).await {
            Ok(_) => {}
            // By a run that was cut off, or at the same time.
            Err(AppendError::Answered(_)) => return Ok(Taken::Accepted),
            Err(error) => return Err(ApiError::Wal(error)),
        }
        drop(held);
        inner.count("replayed", sorted.stored + sorted.parked);
        inner.count("dropped", sorted.dropped);
        Ok(Taken::Accepted)
    }
}

//! Keys that another service knows: `auth.url`.
//!
//! ```text
//! POST <url>  {"key": "...", "tenant_id": "..." (if the request named one)}
//!   200  {"tenant_id": "...", "name"?: "...", "scopes"?: ["ingest"], "origins"?: [], "expires"?: "2027-01-01T00:00:00Z"}
//!   401, 403 or 404   the key is nobody's
//!   anything else     the service is away
//! ```
//!
//! # Operation
//! - An answer is kept for a while, a refusal for a shorter one. Of a key that is not kept, one request asks and the others
//!   with this key wait for it.
//! - While the service is away, what it said last is used on, up to a bound; a key that it never answered for is told to come
//!   again. It is then asked again once a second and key, so that waiting costs one request and not all.
//! - Answers are kept by the key's sum, so many at most; the cache lets go of what is asked for seldom, so that a flood of
//!   wrong keys does not displace the right ones.
//! - A tenant that the tenants' file describes has its quotas and retention from there, and is refused if it is disabled
//!   there; others have the defaults.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_tls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::{
    AuthError, Caller, Credentials, Set, Tenant,
    key::{Key, KeySum, Origin, Scope},
    quota::{QuotaSettings, Quotas},
};
use crate::{error_chain::chain, event::Retention, health::Component, ids::TenantId, metrics::Metrics};

/// Until a service that is away is asked again about the same key.
const RETRY: Duration = Duration::from_secs(1);
/// Requests to the service at once.
const AT_ONCE: usize = 64;
/// Most bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// Where the service is, and how long its answers hold.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address that keys are sent to.
    pub url: axum::http::Uri,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// How long an answer is used without asking again.
    pub cache: Duration,
    /// The same of a refusal.
    pub negative_cache: Duration,
    /// How long after it was given an answer is used on while the service is away.
    pub stale: Duration,
    /// Most keys that are kept.
    pub cache_keys: usize,
    /// Quota of tenants that the tenants' file does not have.
    pub quota: QuotaSettings,
    /// Retention of tenants that the tenants' file does not have.
    pub retention: Retention,
}

/// The service and what it said. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct External {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    slots: quick_cache::sync::Cache<KeySum, Arc<Slot>>,
    asking: Semaphore,
    /// Tenants that are in some slot and not in the file: one object each, so that all keys of one share its quotas.
    tenants: Mutex<HashMap<TenantId, Weak<Tenant>>>,
    health: Component,
    metrics: Arc<Metrics>,
}

/// What is known of one key.
#[derive(Default)]
struct Slot {
    known: ArcSwapOption<Known>,
    asking: tokio::sync::Mutex<()>,
}

struct Known {
    identity: Identity,
    /// When the service said so.
    said: Instant,
    /// Until when nobody needs to ask.
    fresh: Instant,
}

#[derive(Clone)]
enum Identity {
    Of {
        tenant: Arc<Tenant>,
        key: Arc<Key>,
    },
    Nobody,
    /// The service did not answer.
    Unknown,
}

#[derive(Serialize)]
struct Question<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<TenantId>,
}

#[derive(Deserialize)]
struct Answer {
    tenant_id: TenantId,
    #[serde(default)]
    name: String,
    #[serde(default)]
    scopes: Option<Vec<Scope>>,
    #[serde(default)]
    origins: Vec<String>,
    #[serde(default)]
    expires: Option<Timestamp>,
}

/// Why the service gave no answer.
#[derive(Debug, Error)]
enum AskError {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("cannot be reached")]
    Connect(#[from] hyper_util::client::legacy::Error),
    #[error("the answer was cut off or has more than {ANSWER_BYTES} bytes")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {0}; 200, 401, 403 or 404 was expected")]
    Status(StatusCode),
    #[error("the answer is not as expected")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Origin(String),
    #[error("the question cannot be put")]
    Request(#[from] axum::http::Error),
}

impl External {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(settings: Settings, health: Component, metrics: Arc<Metrics>) -> Result<Self, native_tls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(settings.timeout));
        tcp.set_nodelay(true);
        let connector = HttpsConnector::from((tcp, native_tls::TlsConnector::new()?.into()));
        let http = Client::builder(TokioExecutor::new()).build(connector);
        health.up();
        let (slots, asking) = (quick_cache::sync::Cache::new(settings.cache_keys), Semaphore::new(AT_ONCE));
        let inner = Inner { settings, http, slots, asking, tenants: Mutex::default(), health, metrics };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whose key that is; nobody's if that is not known and would have to be asked, and this may not ask. The tenant is the
    /// one of `file` where that has it.
    pub(super) async fn find(
        &self,
        credentials: &Credentials<'_>,
        file: &ArcSwap<Set>,
        may_ask: bool,
    ) -> Result<Caller, AuthError> {
        let identity = self.identity(credentials, may_ask).await;
        let (tenant, key) = match identity {
            Identity::Of { tenant, key } => (tenant, key),
            Identity::Nobody => return Err(AuthError::Invalid),
            Identity::Unknown => return Err(AuthError::Unavailable),
        };
        if credentials.tenant.is_some_and(|named| named != tenant.id) {
            return Err(AuthError::Invalid);
        }
        let tenant = file.load().get(tenant.id).cloned().unwrap_or(tenant);
        Ok(Caller { tenant, key })
    }

    async fn identity(&self, credentials: &Credentials<'_>, may_ask: bool) -> Identity {
        let inner = &self.inner;
        let sum = KeySum::of(credentials.key);
        if !may_ask {
            return inner.slots.get(&sum).and_then(|slot| slot.fresh()).unwrap_or(Identity::Nobody);
        }
        let slot = inner.slots.get_or_insert_with(&sum, || Ok::<_, std::convert::Infallible>(Arc::default()));
        let Ok(slot) = slot;
        if let Some(identity) = slot.fresh() {
            return identity;
        }
        let _one_asks = slot.asking.lock().await;
        if let Some(identity) = slot.fresh() {
            return identity;
        }
        let limit = inner.settings.timeout;
        let answered =
            tokio::time::timeout(limit, inner.ask(credentials, sum)).await.unwrap_or(Err(AskError::Timeout(limit)));
        let now = Instant::now();
        let known = match answered {
            Ok(identity) => {
                inner.health.up();
                let kept = match identity {
                    Identity::Of { .. } => inner.settings.cache,
                    _ => inner.settings.negative_cache,
                };
                Known { identity, said: now, fresh: now + kept }
            }
            Err(error) => {
                inner.metrics.error("auth");
                inner.health.degraded(format!("auth.url: {}; keys that it answered for before go on", chain(&error)));
                let last = slot.known.load_full();
                let usable = last.filter(|last| now.duration_since(last.said) < inner.settings.stale);
                match usable.as_deref() {
                    Some(Known { identity: identity @ Identity::Of { .. }, said, .. }) => {
                        Known { identity: identity.clone(), said: *said, fresh: now + RETRY }
                    }
                    _ => Known { identity: Identity::Unknown, said: now, fresh: now + RETRY },
                }
            }
        };
        let identity = known.identity.clone();
        slot.known.store(Some(Arc::new(known)));
        identity
    }
}

impl Slot {
    fn fresh(&self) -> Option<Identity> {
        let known = self.known.load();
        known.as_ref().filter(|known| Instant::now() < known.fresh).map(|known| known.identity.clone())
    }
}

impl Inner {
    async fn ask(&self, credentials: &Credentials<'_>, sum: KeySum) -> Result<Identity, AskError> {
        // Never closed, so that it always gives one.
        let _permit = self.asking.acquire().await;
        let question = serde_json::to_vec(&Question { key: credentials.key, tenant_id: credentials.tenant })?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.settings.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::from(question))?;
        let response = self.http.request(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => return Ok(Identity::Nobody),
            status => return Err(AskError::Status(status)),
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await.map_err(AskError::Read)?;
        let answer: Answer = serde_json::from_slice(&body.to_bytes())?;
        let origins = answer.origins.iter().map(|origin| origin.parse()).collect::<Result<Box<[Origin]>, _>>();
        let key = Key {
            sum,
            name: "".into(),
            scopes: answer.scopes.unwrap_or_else(|| vec![Scope::Ingest]).into_iter().collect(),
            origins: origins.map_err(AskError::Origin)?,
            expires: answer.expires,
            revoked: None,
        };
        Ok(Identity::Of { tenant: self.tenant(answer.tenant_id, answer.name), key: Arc::new(key) })
    }

    fn tenant(&self, id: TenantId, name: String) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock();
        if let Some(tenant) = tenants.get(&id).and_then(Weak::upgrade) {
            return tenant;
        }
        if tenants.len() > 2 * self.settings.cache_keys {
            tenants.retain(|_, tenant| tenant.strong_count() > 0);
        }
        let quotas = Arc::new(Quotas::new(&self.settings.quota));
        let retention = self.settings.retention;
        let tenant = Arc::new(Tenant { id, name: name.into(), disabled: false, retention, quotas });
        tenants.insert(id, Arc::downgrade(&tenant));
        tenant
    }
}

//! Whether everything that was acknowledged is in ClickHouse, once, in the table and in its views.
//!
//! Nothing here reads with FINAL: a row that is there twice must show. Should a merge have taken the second one away before it
//! was looked for, it still shows in the sums of the views, which no merge changes. What was in the tables before the run is counted
//! first and taken off. An event whose request got no answer may be stored or not; if it is, it must be stored once and
//! be in the views too, so it is expected exactly when its id is found.

use std::{collections::BTreeSet, time::Duration};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    body::{PAGEVIEW, PERFORMANCE, tenant_id, tenant_index},
    client::{Outcome, Sent},
};

/// Between looks at the table. A look costs ClickHouse a moment of the CPU that it should spend on inserting.
const LOOK: Duration = Duration::from_millis(250);
/// How many ids of each kind are named.
const NAMED: usize = 10;
/// In so many queries the ids are fetched.
const SHARES: usize = 200;

/// Why ClickHouse could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be reached.
    #[error("ClickHouse does not answer")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    /// The answer broke off.
    #[error("the answer of ClickHouse broke off")]
    BrokenOff(#[source] hyper::Error),
    /// It cannot be asked such a thing.
    #[error("not a request")]
    Request(#[source] hyper::http::Error),
    /// It refused.
    #[error("ClickHouse refused: {0}")]
    Refused(String),
    /// It answered something else.
    #[error("not an answer: {0:?}")]
    Odd(String),
}

/// A ClickHouse server that can be asked.
pub struct ClickHouse {
    client: Client<HttpConnector, Full<Bytes>>,
    url: Uri,
    database: String,
    user: Option<(String, String)>,
}

/// Sums over the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    rows: u64,
    distinct: u64,
    minute_events: u64,
    page_views: u64,
    vitals: u64,
}

const NAMES: [&str; 5] = [
    "rows of events",
    "distinct (tenant_id, event_id) of events",
    "sum of events_per_minute.events",
    "sum of page_views_daily.views",
    "sum of web_vitals_daily.samples",
];

impl Sums {
    fn values(self) -> [u64; 5] {
        [self.rows, self.distinct, self.minute_events, self.page_views, self.vitals]
    }
}

/// What the tables held before the run.
#[derive(Clone, Copy, Default)]
pub struct Baseline(Sums);

/// The outcome of a verification.
pub struct Verdict {
    /// What was counted: name, expected, found.
    counts: Vec<(&'static str, u64, u64)>,
    /// Acknowledged events that are not in the table.
    missing: Vec<(Uuid, Uuid)>,
    missing_count: u64,
    /// Events without an answer that are in the table.
    unknown_stored: u64,
    /// From the last acknowledgement until the table held everything; absent when it never did.
    pub drain: Option<Duration>,
}

impl Verdict {
    /// Whether nothing is missing and nothing is there twice.
    pub fn is_right(&self) -> bool {
        self.missing_count == 0 && self.counts.iter().all(|(_, expected, found)| expected == found)
    }

    pub fn print(&self) {
        match self.drain {
            Some(drain) => println!("stored         {:.2} s after the last acknowledgement", drain.as_secs_f64()),
            None => println!("stored         not everything within the time"),
        }
        for (name, expected, found) in &self.counts {
            let mark = if expected == found { "ok   " } else { "WRONG" };
            println!("{mark}          {name}: expected {expected}, found {found}");
        }
        println!("unanswered     {} events that were stored all the same", self.unknown_stored);
        if self.missing_count > 0 {
            println!("MISSING        {} acknowledged events, among them (tenant, event):", self.missing_count);
            for (tenant, event) in &self.missing {
                println!("               {tenant} {event}");
            }
        }
    }

    pub fn json(&self) -> Value {
        let counts: serde_json::Map<String, Value> = self
            .counts
            .iter()
            .map(|(name, expected, found)| ((*name).to_owned(), json!({"expected": expected, "found": found})))
            .collect();
        json!({
            "right": self.is_right(),
            "drain_seconds": self.drain.map(|drain| drain.as_secs_f64()),
            "counts": counts,
            "missing": self.missing_count,
            "missing_sample": self.missing.iter().map(|(_, event)| event.to_string()).collect::<Vec<_>>(),
            "unanswered_stored": self.unknown_stored,
        })
    }
}

impl ClickHouse {
    pub fn new(url: Uri, database: String, user: Option<(String, String)>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), url, database, user }
    }

    /// Runs a statement.
    pub async fn ask(&self, query: String) -> Result<Bytes, VerifyError> {
        self.post(self.url.to_string(), query.into()).await
    }

    /// Inserts rows in the format Native, as one block under a deduplication token.
    pub async fn insert(&self, table: &str, token: &str, rows: Bytes) -> Result<(), VerifyError> {
        let url = format!(
            "{}?query=INSERT+INTO+{}.{table}+FORMAT+Native&async_insert=0&insert_deduplicate=1&\
             deduplicate_blocks_in_dependent_materialized_views=1&insert_deduplication_token={token}&\
             max_insert_block_size=1000000&min_insert_block_size_rows=1000000&min_insert_block_size_bytes=0",
            self.url, self.database
        );
        self.post(url, rows).await.map(|_| ())
    }

    async fn post(&self, url: String, body: Bytes) -> Result<Bytes, VerifyError> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        if let Some((user, password)) = &self.user {
            request = request.header("X-ClickHouse-User", user).header("X-ClickHouse-Key", password);
        }
        let request = request.body(Full::from(body)).map_err(VerifyError::Request)?;
        let answer = self.client.request(request).await.map_err(VerifyError::Unreachable)?;
        let failed = answer.status() != StatusCode::OK || answer.headers().contains_key("X-ClickHouse-Exception-Code");
        let body = answer.into_body().collect().await.map_err(VerifyError::BrokenOff)?.to_bytes();
        if failed {
            return Err(VerifyError::Refused(String::from_utf8_lossy(body.get(..500).unwrap_or(&body)).into_owned()));
        }
        Ok(body)
    }

    async fn number(&self, expression: &str, table: &str) -> Result<u64, VerifyError> {
        let answer = self.ask(format!("SELECT {expression} FROM {}.{table} FORMAT TSV", self.database)).await?;
        let text = String::from_utf8_lossy(&answer);
        text.trim().parse().map_err(|_| VerifyError::Odd(text.into_owned()))
    }

    /// How many rows `events` has.
    pub async fn rows(&self) -> Result<u64, VerifyError> {
        self.number("count()", "events").await
    }

    async fn sums(&self) -> Result<Sums, VerifyError> {
        Ok(Sums {
            rows: self.rows().await?,
            distinct: self.number("uniqExact(tenant_id, event_id)", "events").await?,
            minute_events: self.number("sum(events)", "events_per_minute").await?,
            page_views: self.number("sum(views)", "page_views_daily").await?,
            vitals: self.number("sum(samples)", "web_vitals_daily").await?,
        })
    }

    /// Counts what is there before a run. Tables that do not exist yet are empty.
    pub async fn baseline(&self) -> Result<Baseline, VerifyError> {
        match self.sums().await {
            Ok(sums) => Ok(Baseline(sums)),
            Err(VerifyError::Refused(why)) if why.contains("UNKNOWN_TABLE") || why.contains("UNKNOWN_DATABASE") => {
                Ok(Baseline(Sums::default()))
            }
            Err(error) => Err(error),
        }
    }

    /// Tenants and ids of some tenants' rows: not of all, so that neither side holds all of them at once.
    pub async fn ids(&self, tenants: &[u32]) -> Result<Vec<(u32, u128)>, VerifyError> {
        let list: Vec<String> = tenants.iter().map(|tenant| format!("'{}'", tenant_id(*tenant))).collect();
        let query = format!(
            "SELECT tenant_id, event_id FROM {}.events WHERE tenant_id IN ({}) FORMAT RowBinary",
            self.database,
            list.join(",")
        );
        let mut bytes = self.ask(query).await?;
        let mut ids = Vec::with_capacity(bytes.len() / 32);
        while bytes.len() >= 32 {
            // A UUID is two little-endian halves, the upper one first.
            let mut uuid = || u128::from(bytes.get_u64_le()) << 64 | u128::from(bytes.get_u64_le());
            let (tenant, id) = (uuid(), uuid());
            ids.push((tenant_index(Uuid::from_u128(tenant)), id));
        }
        Ok(ids)
    }

    /// Waits, at most until `deadline`, for as many rows as were acknowledged. Returns whether they came.
    pub async fn wait(
        &self,
        Baseline(before): Baseline,
        events: &[Sent],
        deadline: Instant,
    ) -> Result<bool, VerifyError> {
        let acknowledged = events.iter().filter(|event| event.outcome == Outcome::Acknowledged).count() as u64;
        loop {
            // The embedded engine may be starting again: until the deadline that is no failure.
            match self.rows().await {
                Ok(rows) if rows >= before.rows + acknowledged => return Ok(true),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Ok(_) if Instant::now() >= deadline => return Ok(false),
                Ok(_) | Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// Compares what was sent with what is stored, until it is right, or too much is stored, or `deadline` has passed.
    pub async fn verify(
        &self,
        Baseline(before): Baseline,
        events: &mut [Sent],
        deadline: Instant,
    ) -> Result<Verdict, VerifyError> {
        events.sort_unstable_by_key(|event| (event.tenant, event.id));
        loop {
            let verdict = self.compare(before, events).await?;
            // The views get their part of an insert after the table does, and an event without an answer may be on its
            // way still. More than expected will not become less.
            let too_many = verdict.counts.iter().any(|(_, expected, found)| found > expected);
            if verdict.is_right() || too_many || Instant::now() >= deadline {
                return Ok(verdict);
            }
            sleep(LOOK).await;
        }
    }

    async fn compare(&self, before: Sums, events: &[Sent]) -> Result<Verdict, VerifyError> {
        let tenants: BTreeSet<u32> = events.iter().map(|event| event.tenant).collect();
        let tenants: Vec<u32> = tenants.into_iter().collect();
        let at_once = tenants.len().div_ceil(SHARES).max(1);
        let mut found = vec![false; events.len()];
        for tenants in tenants.chunks(at_once) {
            for key in self.ids(tenants).await? {
                let place = events.binary_search_by_key(&key, |event| (event.tenant, event.id));
                if let Some(found) = place.ok().and_then(|place| found.get_mut(place)) {
                    *found = true;
                }
            }
        }
        let mut expected = before;
        let (mut missing, mut missing_count, mut unknown_stored) = (Vec::new(), 0, 0);
        for (event, found) in events.iter().zip(found) {
            if !found && event.outcome == Outcome::Unknown {
                continue;
            }
            expected.rows += 1;
            expected.distinct += 1;
            expected.minute_events += 1;
            expected.page_views += u64::from(event.kind == PAGEVIEW);
            expected.vitals += u64::from(event.kind == PERFORMANCE);
            unknown_stored += u64::from(event.outcome == Outcome::Unknown);
            if !found {
                missing_count += 1;
                if missing.len() < NAMED {
                    missing.push((tenant_id(event.tenant), Uuid::from_u128(event.id)));
                }
            }
        }
        let now = self.sums().await?;
        let counts = NAMES.into_iter().zip(expected.values()).zip(now.values());
        let counts = counts.map(|((name, expected), found)| (name, expected, found)).collect();
        Ok(Verdict { counts, missing, missing_count, unknown_stored, drain: None })
    }
}

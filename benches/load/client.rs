//! Connections that send requests and remember what became of each event.
//!
//! HTTP/1.1 by hand over a kept connection: one write and, as a rule, one read a request. A general client costs several
//! times as much, on the two cores that the server needs.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::body::{Maker, Template};

/// Longer than the server's own limit for a request, so that it speaks first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Between attempts to connect to a server that is not there (it may be restarting).
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// An answer is a few hundred bytes; one that names 10,000 rejected events is far below this.
const LONGEST_ANSWER: usize = 16 << 20;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with 2xx and not among the rejected.
    Acknowledged,
    /// Sent, and the connection ended before an answer: it may be stored or not, once.
    Unknown,
}

/// An event that was sent and not refused.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub id: u128,
    pub tenant: u32,
    pub kind: u8,
    pub outcome: Outcome,
}

/// What one connection saw, and later all of them together.
pub struct Seen {
    pub events: Vec<Sent>,
    /// Time from the first byte sent to the last byte of a 2xx, in microseconds.
    pub latency: Histogram<u64>,
    /// Answers by status, those that were tried again included.
    pub statuses: BTreeMap<u16, u64>,
    /// A body of each status that is no 2xx.
    pub samples: BTreeMap<u16, String>,
    /// Rejected events by code.
    pub rejected: BTreeMap<String, u64>,
    /// Requests sent again after 429 or 503.
    pub retries: u64,
    /// Requests given up: refused for good, or refused until the time was over.
    pub failed: u64,
    /// Requests whose connection ended before the answer.
    pub unanswered: u64,
    /// Attempts to connect that failed.
    pub not_connected: u64,
    /// 2xx answers that are not what the contract says.
    pub odd_answers: u64,
    /// When the last 2xx came.
    pub last: Option<Instant>,
}

impl Seen {
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            events: Vec::new(),
            // From a microsecond to twice the longest wait for an answer.
            latency: Histogram::new_with_bounds(1, 180_000_000, 3)?,
            statuses: BTreeMap::new(),
            samples: BTreeMap::new(),
            rejected: BTreeMap::new(),
            retries: 0,
            failed: 0,
            unanswered: 0,
            not_connected: 0,
            odd_answers: 0,
            last: None,
        })
    }

    /// Adds what another connection saw.
    pub fn merge(&mut self, other: Self) -> Result<(), hdrhistogram::AdditionError> {
        self.events.extend_from_slice(&other.events);
        self.latency.add(other.latency)?;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (code, count) in other.rejected {
            *self.rejected.entry(code).or_default() += count;
        }
        for (status, sample) in other.samples {
            self.samples.entry(status).or_insert(sample);
        }
        self.retries += other.retries;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.not_connected += other.not_connected;
        self.odd_answers += other.odd_answers;
        self.last = self.last.max(other.last);
        Ok(())
    }
}

/// What all connections share.
pub struct Plan {
    pub address: SocketAddr,
    /// A request's head up to the value of Content-Length, for each tenant.
    pub heads: Vec<String>,
    pub templates: Vec<Template>,
    pub sessions: usize,
    pub requests: u64,
    pub start: Instant,
    pub deadline: Instant,
    /// Pause between the starts of requests, over all connections; zero for as fast as they are answered.
    pub pace: Duration,
    pub next: AtomicU64,
    pub acknowledged: AtomicU64,
}

#[derive(Deserialize)]
struct Success {
    events_accepted: usize,
    events_rejected: usize,
    #[serde(default)]
    errors: Vec<Rejection>,
}

#[derive(Deserialize)]
struct Rejection {
    index: usize,
    code: String,
}

/// Sends requests until there are no more or the time is over.
pub async fn run(plan: &Plan) -> Result<Seen, hdrhistogram::CreationError> {
    let mut seen = Seen::new()?;
    let mut maker = Maker::new(plan.heads.len(), plan.sessions);
    let mut connection = None;
    loop {
        let ticket = plan.next.fetch_add(1, Ordering::Relaxed);
        let due = plan.start + plan.pace.saturating_mul(u32::try_from(ticket).unwrap_or(u32::MAX));
        if ticket >= plan.requests || due >= plan.deadline {
            return Ok(seen);
        }
        if !plan.pace.is_zero() {
            sleep_until(due).await;
        }
        let pick = |length: usize| usize::try_from(ticket % length.max(1) as u64).unwrap_or(0);
        let tenant = pick(plan.heads.len());
        let (Some(head), Some(template)) = (plan.heads.get(tenant), plan.templates.get(pick(plan.templates.len())))
        else {
            return Ok(seen);
        };
        maker.fill(head, template, tenant);
        send(plan, &mut connection, &maker, template, tenant, &mut seen).await;
    }
}

/// Sends one request until it has its answer, or the time is over.
async fn send(
    plan: &Plan,
    connection: &mut Option<Connection>,
    maker: &Maker,
    template: &Template,
    tenant: usize,
    seen: &mut Seen,
) {
    let tenant = u32::try_from(tenant).unwrap_or(u32::MAX);
    let sent = |index: usize, id: u128, outcome| Sent { id, tenant, kind: template.kind(index), outcome };
    while Instant::now() < plan.deadline {
        let open = if let Some(open) = connection {
            open
        } else {
            let Ok(opened) = Connection::open(plan.address).await else {
                seen.not_connected += 1;
                sleep(CONNECT_PAUSE).await;
                continue;
            };
            connection.insert(opened)
        };
        let begun = Instant::now();
        let Ok(Ok(answer)) = timeout(ANSWER_TIMEOUT, open.exchange(&maker.bytes)).await else {
            // Sending it again could store it twice; the verification settles what became of it.
            *connection = None;
            seen.unanswered += 1;
            seen.events.extend((0..).zip(&maker.ids).map(|(index, id)| sent(index, *id, Outcome::Unknown)));
            return;
        };
        *seen.statuses.entry(answer.status).or_default() += 1;
        if answer.close {
            *connection = None;
        }
        if (200..300).contains(&answer.status) {
            seen.last = Some(Instant::now());
            seen.latency.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            let refused = rejected(&answer.body, maker.ids.len(), seen);
            let before = seen.events.len();
            let events = (0..).zip(&maker.ids).filter(|(index, _)| !refused.contains(index));
            seen.events.extend(events.map(|(index, id)| sent(index, *id, Outcome::Acknowledged)));
            plan.acknowledged.fetch_add((seen.events.len() - before) as u64, Ordering::Relaxed);
            return;
        }
        let sample = || String::from_utf8_lossy(answer.body.get(..400).unwrap_or(&answer.body)).into_owned();
        seen.samples.entry(answer.status).or_insert_with(sample);
        if !matches!(answer.status, 429 | 503) {
            seen.failed += 1;
            return;
        }
        seen.retries += 1;
        sleep(Duration::from_secs(answer.retry_after.unwrap_or(1)).min(plan.deadline - begun)).await;
    }
    seen.failed += 1;
}

/// The indexes of the events that a 2xx rejected.
fn rejected(body: &[u8], events: usize, seen: &mut Seen) -> Vec<usize> {
    match serde_json::from_slice::<Success>(body) {
        Ok(success)
            if success.events_accepted + success.events_rejected == events
                && success.errors.len() == success.events_rejected =>
        {
            for rejection in &success.errors {
                *seen.rejected.entry(rejection.code.clone()).or_default() += 1;
            }
            success.errors.iter().map(|rejection| rejection.index).collect()
        }
        _ => {
            seen.odd_answers += 1;
            seen.samples.entry(200).or_insert_with(|| String::from_utf8_lossy(body).into_owned());
            Vec::new()
        }
    }
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

struct Answer {
    status: u16,
    retry_after: Option<u64>,
    close: bool,
    body: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads its answer.
    async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.read.clear();
        let body_at = loop {
            if let Some(at) = memchr::memmem::find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let head = String::from_utf8_lossy(self.read.get(..body_at).unwrap_or(&[])).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        };
        let length: usize = header("content-length")
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| invalid("an answer without content-length"))?;
        if length > LONGEST_ANSWER {
            return Err(invalid("an answer that is too long"));
        }
        while self.read.len() < body_at + length {
            self.read_more().await?;
        }
        Ok(Answer {
            status: status.ok_or_else(|| invalid("an answer without a status"))?,
            retry_after: header("retry-after").and_then(|value| value.parse().ok()),
            close: header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
            body: self.read.get(body_at..body_at + length).unwrap_or(&[]).to_vec(),
        })
    }

    async fn read_more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

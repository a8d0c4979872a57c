//! Connections that send requests and remember what became of each event.
//!
//! HTTP/1.1 by hand over a kept connection: one write and, as a rule, one read a request. A general client costs several
//! times as much, on the two cores that the server needs.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::body::{self, Maker, Shape, Template};

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
    /// Time to the last byte of a 2xx, in microseconds: from the first byte sent, or, of a load with a rate, from the moment
    /// at which the request was to be sent. A server that falls behind shows in it.
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

/// What is sent, and how.
#[derive(Clone, Debug)]
pub struct Load {
    pub tenants: u32,
    pub sessions: usize,
    pub connections: u64,
    /// Events in a request.
    pub batch: u64,
    /// Events a second; 0 is as fast as they are answered.
    pub rate: u64,
    pub requests: u64,
    pub duration: Duration,
    /// Answers in this time from the start are not in the latency.
    pub warm_up: Duration,
    /// Most events that may be acknowledged and not stored, when somebody reports what is stored ([`Plan::stored`]).
    pub backlog: u64,
    /// What the events are like.
    pub shape: Shape,
}

/// What all connections share.
pub struct Plan {
    pub address: SocketAddr,
    /// A request's head up to the value of Content-Length, for each tenant.
    pub heads: Vec<String>,
    pub templates: Vec<Template>,
    pub load: Load,
    pub start: Instant,
    pub deadline: Instant,
    /// Pause between the starts of requests, over all connections; zero for as fast as they are answered.
    pub pace: Duration,
    pub next: AtomicU64,
    pub acknowledged: AtomicU64,
    /// Ends the load before its time.
    pub stop: AtomicBool,
    stored: AtomicU64,
    more_stored: Notify,
}

impl Plan {
    /// Prepares everything; the clock runs from here on.
    pub fn new(address: SocketAddr, load: Load) -> Self {
        let heads = (0..load.tenants).map(|tenant| head(address, tenant)).collect();
        let templates = body::templates(usize::try_from(load.batch).unwrap_or(usize::MAX), load.shape);
        let pace = match load.rate {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(load.batch.saturating_mul(1_000_000_000) / rate),
        };
        let start = Instant::now();
        Self {
            address,
            heads,
            templates,
            start,
            deadline: start + load.duration,
            load,
            pace,
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            stored: AtomicU64::new(0),
            more_stored: Notify::new(),
        }
    }

    /// Says how many events are stored by now, for a load with a bounded backlog.
    pub fn stored(&self, events: u64) {
        self.stored.store(events, Ordering::Relaxed);
        self.more_stored.notify_waiters();
    }

    /// Events that are acknowledged and, as far as known, not stored.
    pub fn backlog(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed).saturating_sub(self.stored.load(Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }
}

/// A request's head up to the value of Content-Length.
pub fn head(address: SocketAddr, tenant: u32) -> String {
    let (id, key) = (body::tenant_id(tenant), body::tenant_key(tenant));
    format!(
        "POST /ingest HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {id}:{key}\r\nContent-Type: \
         application/json\r\nContent-Length: "
    )
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

/// Sends over all connections until there are no more requests or the time is over.
pub async fn send(plan: &Arc<Plan>) -> anyhow::Result<Seen> {
    let connections = (0..plan.load.connections).map(|_| {
        let plan = Arc::clone(plan);
        tokio::spawn(async move { run(&plan).await })
    });
    let connections: Vec<_> = connections.collect();
    let mut all = Seen::new()?;
    for connection in connections {
        all.merge(connection.await??)?;
    }
    Ok(all)
}

/// One connection.
async fn run(plan: &Plan) -> Result<Seen, hdrhistogram::CreationError> {
    let mut seen = Seen::new()?;
    let mut maker = Maker::new(plan.heads.len(), plan.load.sessions);
    let mut connection = None;
    loop {
        while plan.backlog() > plan.load.backlog && !plan.is_over() {
            // Bounded, because a load without a reporter of what is stored would wait for good.
            timeout(CONNECT_PAUSE, plan.more_stored.notified()).await.ok();
        }
        let ticket = plan.next.fetch_add(1, Ordering::Relaxed);
        let due = plan.start + plan.pace.saturating_mul(u32::try_from(ticket).unwrap_or(u32::MAX));
        if ticket >= plan.load.requests || due >= plan.deadline {
            return Ok(seen);
        }
        // A request that had to wait for a connection waits since it was due; one that had not begins when it is sent: a timer
        // wakes up to a millisecond late, and that is not the engine's.
        let late = Instant::now() >= due;
        if !late {
            sleep_until(due).await;
        }
        if plan.is_over() {
            return Ok(seen);
        }
        let pick = |length: usize| usize::try_from(ticket % length.max(1) as u64).unwrap_or(0);
        let tenant = pick(plan.heads.len());
        let (Some(head), Some(template)) = (plan.heads.get(tenant), plan.templates.get(pick(plan.templates.len())))
        else {
            return Ok(seen);
        };
        maker.fill(head, template, tenant);
        let due = (!plan.pace.is_zero() && late).then_some(due);
        request(plan, &mut connection, &maker, template, (tenant, due), &mut seen).await;
    }
}

/// Sends one request until it has its answer, or the time is over.
async fn request(
    plan: &Plan,
    connection: &mut Option<Connection>,
    maker: &Maker,
    template: &Template,
    (tenant, due): (usize, Option<Instant>),
    seen: &mut Seen,
) {
    let tenant = u32::try_from(tenant).unwrap_or(u32::MAX);
    let sent = |index: usize, id: u128, outcome| Sent { id, tenant, kind: template.kind(index), outcome };
    loop {
        let open = if let Some(open) = connection {
            open
        } else {
            let Ok(opened) = Connection::open(plan.address).await else {
                seen.not_connected += 1;
                if plan.is_over() {
                    break;
                }
                sleep(CONNECT_PAUSE).await;
                continue;
            };
            connection.insert(opened)
        };
        let begun = due.unwrap_or_else(Instant::now);
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
            let now = Instant::now();
            seen.last = Some(now);
            if begun >= plan.start + plan.load.warm_up {
                let took = now.saturating_duration_since(begun).as_micros();
                seen.latency.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
            }
            let refused = rejected(&answer.body, maker.ids.len(), seen);
            let before = seen.events.len();
            let events = (0..).zip(&maker.ids).filter(|(index, _)| !refused.contains(index));
            seen.events.extend(events.map(|(index, id)| sent(index, *id, Outcome::Acknowledged)));
            plan.acknowledged.fetch_add((seen.events.len() - before) as u64, Ordering::Relaxed);
            return;
        }
        let sample = || String::from_utf8_lossy(answer.body.get(..400).unwrap_or(&answer.body)).into_owned();
        seen.samples.entry(answer.status).or_insert_with(sample);
        if !matches!(answer.status, 429 | 503) || plan.is_over() {
            break;
        }
        seen.retries += 1;
        let left = plan.deadline.saturating_duration_since(Instant::now());
        sleep(Duration::from_secs(answer.retry_after.unwrap_or(1)).min(left)).await;
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

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    retry_after: Option<u64>,
    close: bool,
    body: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.read.clear();
        let body_at = loop {
            if let Some(at) = memchr::memmem::find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let head = std::str::from_utf8(self.read.get(..body_at).unwrap_or(&[])).map_err(|_| invalid("no text"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| invalid("an answer without a status"))?;
        let (mut length, mut retry_after, mut close) = (None, None, false);
        for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
            let (is, value) = (|wanted: &str| name.eq_ignore_ascii_case(wanted), value.trim());
            if is("content-length") {
                length = value.parse().ok();
            } else if is("retry-after") {
                retry_after = value.parse().ok();
            } else if is("connection") {
                close = value.eq_ignore_ascii_case("close");
            }
        }
        let length: usize = length.ok_or_else(|| invalid("an answer without content-length"))?;
        if length > LONGEST_ANSWER {
            return Err(invalid("an answer that is too long"));
        }
        while self.read.len() < body_at + length {
            self.read_more().await?;
        }
        let body = self.read.get(body_at..body_at + length).unwrap_or(&[]).to_vec();
        Ok(Answer { status, retry_after, close, body })
    }

    async fn read_more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

//! Load on a running engine that remembers what was acknowledged.

use std::{
    collections::HashSet,
    fmt::Write as _,
    io::ErrorKind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::engine::{Answer, ClickHouse, DEADLINE, Engine, KEY, TENANT, agent, eventually};

const SENDERS: usize = 4;
const BATCH: usize = 20;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Mutex<HashSet<Uuid>>,
    requests: AtomicUsize,
    /// Answers that were neither a 200 nor a broken connection.
    refused: Mutex<Vec<String>>,
    /// Requests whose connection broke: nobody knows whether they were taken.
    unanswered: Mutex<Vec<Request>>,
    broken: AtomicUsize,
    cut: AtomicUsize,
    in_flight: AtomicUsize,
}

/// One request, kept to be sent again.
#[derive(Clone, Debug)]
pub struct Request {
    pub ids: Vec<Uuid>,
    pub body: String,
}

/// What is stored of what was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    pub acknowledged: usize,
    pub stored: usize,
    /// Acknowledged and not stored, or in the rows and not in a view's sum.
    pub lost: usize,
    /// Stored more than once, or so in a view's sum.
    pub twice: usize,
    /// What is wrong, in words.
    pub faults: Vec<String>,
}

impl Audit {
    pub fn holds(&self) -> bool {
        self.acknowledged > 0
            && self.acknowledged == self.stored
            && self.faults.is_empty()
            && self.lost + self.twice == 0
    }
}

/// Senders that run until they are told to stop.
pub struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
}

/// What the senders saw.
#[derive(Default)]
pub struct Sent {
    pub acknowledged: HashSet<Uuid>,
    pub refused: Vec<String>,
    pub unanswered: Vec<Request>,
    pub broken: usize,
    /// Of the broken ones, those that had a connection: the engine may have had them.
    pub cut: usize,
}

impl Load {
    /// Starts sending batches to `engine`. A sender whose connection breaks goes on until it is stopped: what it sent
    /// then is not counted as acknowledged.
    pub fn start(engine: &Engine) -> Self {
        Self::sending(engine, BATCH, Duration::ZERO)
    }

    /// The same with `size` events in a batch.
    pub fn of(engine: &Engine, size: usize) -> Self {
        Self::sending(engine, size, Duration::ZERO)
    }

    /// The same, but each sender rests for so long after each request: for faults that last, and for a broker that holds
    /// little.
    pub fn start_with(engine: &Engine, rest: Duration) -> Self {
        Self::sending(engine, BATCH, rest)
    }

    fn sending(engine: &Engine, size: usize, rest: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let senders = (0..SENDERS)
            .map(|sender| {
                let (shared, url) = (Arc::clone(&shared), format!("{}/ingest", engine.api()));
                thread::spawn(move || send(&shared, &url, sender, (size, rest)))
            })
            .collect();
        Self { shared, senders }
    }

    /// Waits until `count` more requests have been acknowledged.
    pub fn wait_for_requests(&self, count: usize) {
        let target = self.shared.requests.load(Ordering::Relaxed) + count;
        eventually("requests are acknowledged", || self.shared.requests.load(Ordering::Relaxed) >= target);
    }

    /// Requests that have no answer at this instant.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// The event that was made last of those that are acknowledged.
    pub fn newest(&self) -> Uuid {
        self.shared.acknowledged.lock().unwrap().iter().max().copied().unwrap()
    }

    /// Stops the senders, each after the answer that it waits for.
    pub fn stop(self) -> Sent {
        self.shared.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().unwrap();
        }
        Sent {
            acknowledged: std::mem::take(&mut self.shared.acknowledged.lock().unwrap()),
            refused: std::mem::take(&mut self.shared.refused.lock().unwrap()),
            unanswered: std::mem::take(&mut self.shared.unanswered.lock().unwrap()),
            broken: self.shared.broken.load(Ordering::Relaxed),
            cut: self.shared.cut.load(Ordering::Relaxed),
        }
    }
}

fn send(shared: &Shared, url: &str, sender: usize, (size, rest): (usize, Duration)) {
    let agent = agent();
    let authorization = format!("Bearer {TENANT}:{KEY}");
    let mut round = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if round > 0 {
            thread::sleep(rest);
        }
        round += 1;
        let ids: Vec<Uuid> = (0..size).map(|_| Uuid::now_v7()).collect();
        let body = batch(&ids, sender, round);
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        let answer = agent.post(url).header("authorization", &authorization).send(&body);
        shared.in_flight.fetch_sub(1, Ordering::SeqCst);
        match answer {
            Ok(response) if response.status() == 200 => {
                shared.acknowledged.lock().unwrap().extend(ids);
                shared.requests.fetch_add(1, Ordering::Relaxed);
            }
            Ok(response) => {
                let answer = Answer::from(response);
                shared.refused.lock().unwrap().push(format!("{} {}", answer.status, answer.text));
                // A client waits before it tries again.
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                shared.broken.fetch_add(1, Ordering::Relaxed);
                let refused = matches!(&error, ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused)
                    || matches!(error, ureq::Error::ConnectionFailed);
                shared.cut.fetch_add(usize::from(!refused), Ordering::Relaxed);
                if !refused {
                    shared.unanswered.lock().unwrap().push(Request { ids, body });
                }
                // A refused connection returns at once; a busy loop would only take the CPU from what restarts.
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn batch(ids: &[Uuid], sender: usize, round: usize) -> String {
    let mut body = String::from("{\"events\":[");
    for (index, id) in ids.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let path = (round + index) % 100;
        let session = format!("session-{sender}-{}", round % 50);
        let kind = match index % 5 {
            0 => "\"performance\",\"lcp\":1200.5".to_owned(),
            _ => format!("\"pageview\",\"title\":\"Page {path}\""),
        };
        write!(
            body,
            "{comma}{{\"id\":\"{id}\",\"type\":{kind},\"session_id\":\"{session}\",\"path\":\"/p/{path}\",\
             \"plan\":\"pro\"}}"
        )
        .unwrap();
    }
    body.push_str("]}");
    body
}

impl Sent {
    /// What was acknowledged.
    pub fn acknowledged(&self) -> &HashSet<Uuid> {
        &self.acknowledged
    }

    /// Does not ask for `events`, which are lost by what stands between engine and ClickHouse.
    pub fn leave_out(&mut self, events: &HashSet<Uuid>) {
        self.acknowledged.retain(|event| !events.contains(event));
    }

    /// Sends again what had no answer, as a client does, until it has one.
    pub fn resend(&mut self, engine: &Engine) {
        for Request { ids, body } in self.unanswered.drain(..) {
            let mut answer = None;
            eventually("what had no answer is taken", || {
                answer = engine.try_ingest(&body);
                answer.as_ref().is_some_and(|answer| answer.status == 200)
            });
            self.acknowledged.extend(ids);
        }
    }

    /// Waits until every acknowledged event is stored, and checks that each is so once: in the rows as they lie there, and in
    /// the sums of the three views. With merges stopped, which would hide a second row, and no event without an answer.
    pub fn is_stored_once(&self, clickhouse: &ClickHouse) {
        let audit = self.audit(clickhouse, DEADLINE);
        assert!(audit.holds(), "{audit:?}");
    }

    /// The same as numbers, for who goes on with what is wrong.
    pub fn audit(&self, clickhouse: &ClickHouse, patience: Duration) -> Audit {
        assert!(self.unanswered.is_empty(), "resend first: these may be stored or not");
        assert!(!self.acknowledged.is_empty(), "the load acknowledged nothing: the test proves nothing");
        let mut audit = Audit::default();
        let deadline = Instant::now() + patience;
        let mut last = false;
        while !audit.holds() && !last {
            thread::sleep(Duration::from_millis(50));
            last = Instant::now() > deadline;
            match self.count(clickhouse, last) {
                Ok(counted) => audit = counted,
                // The engine may be starting.
                Err(error) => audit.faults = vec![error],
            }
        }
        audit
    }

    fn count(&self, clickhouse: &ClickHouse, last: bool) -> Result<Audit, String> {
        let number = |sql: &str| {
            let text = clickhouse.try_query(sql)?;
            text.parse::<usize>().map_err(|error| format!("{sql}: {error}: {text}"))
        };
        let rows = number("SELECT count() FROM overwatch.events")?;
        if rows < self.acknowledged.len() && !last {
            // Not all is there yet: their ids need not be asked for.
            return Ok(Audit { faults: vec![format!("{rows} rows")], ..Audit::default() });
        }
        let text = clickhouse.try_query("SELECT DISTINCT event_id FROM overwatch.events FORMAT TSV")?;
        let stored: HashSet<Uuid> = text.lines().map(|line| line.parse().unwrap()).collect();
        let missing: Vec<_> = self.acknowledged.difference(&stored).collect();
        let mut audit = Audit {
            acknowledged: self.acknowledged.len(),
            stored: stored.len(),
            lost: missing.len(),
            twice: rows.saturating_sub(stored.len()),
            faults: missing.iter().take(5).map(|id| format!("{id} is missing")).collect(),
        };
        let strange = stored.difference(&self.acknowledged).count();
        if strange > 0 {
            audit.faults.push(format!("{strange} events are stored that nobody sent or that were refused"));
        }
        let mine = number(&format!("SELECT count() FROM overwatch.events WHERE tenant_id = '{TENANT}'"))?;
        if mine != rows {
            audit.faults.push(format!("{} rows are another tenant's", rows - mine));
        }
        for (view, sum, of) in [
            ("events_per_minute", "events", "1"),
            ("page_views_daily", "views", "type = 'pageview'"),
            ("web_vitals_daily", "samples", "type = 'performance'"),
        ] {
            let there = number(&format!("SELECT count() FROM overwatch.events WHERE {of}"))?;
            let summed = number(&format!("SELECT sum({sum}) FROM overwatch.{view}"))?;
            if there != summed {
                audit.lost = audit.lost.max(there.saturating_sub(summed));
                audit.twice = audit.twice.max(summed.saturating_sub(there));
                audit.faults.push(format!("{view} has {summed} of {there}"));
            }
        }
        Ok(audit)
    }

    /// Whether every answer that was no 200 has one of these codes.
    pub fn only_refused_with(&self, codes: &[&str]) -> bool {
        self.refused.iter().all(|refusal| codes.iter().any(|code| refusal.contains(&format!("\"{code}\""))))
    }

    /// Waits until every acknowledged event is in ClickHouse.
    pub fn wait_until_stored(&self, clickhouse: &ClickHouse) {
        assert!(!self.acknowledged.is_empty(), "the load acknowledged nothing: the test proves nothing");
        let mut missing = Vec::new();
        let all_there = || {
            let Ok(text) = clickhouse.try_query("SELECT DISTINCT event_id FROM overwatch.events FORMAT TSV") else {
                return false;
            };
            let stored: HashSet<Uuid> = text.lines().map(|line| line.parse().unwrap()).collect();
            missing = self.acknowledged.difference(&stored).take(5).copied().collect();
            missing.is_empty()
        };
        eventually("every acknowledged event is stored", all_there);
    }
}

//! Load on a running engine that remembers what was acknowledged.

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use uuid::Uuid;

use super::engine::{Answer, ClickHouse, Engine, KEY, TENANT, agent, eventually};

const SENDERS: usize = 4;
const BATCH: usize = 20;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Mutex<HashSet<Uuid>>,
    requests: AtomicUsize,
    /// Answers that were neither a 200 nor a broken connection.
    refused: Mutex<Vec<String>>,
    broken: AtomicUsize,
}

/// Senders that run until they are told to stop.
pub struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
}

/// What the senders saw.
pub struct Sent {
    pub acknowledged: HashSet<Uuid>,
    pub refused: Vec<String>,
    pub broken: usize,
}

impl Load {
    /// Starts sending batches to `engine`. A sender whose connection breaks goes on until it is stopped: what it sent
    /// then is not counted as acknowledged.
    pub fn start(engine: &Engine) -> Self {
        let shared = Arc::new(Shared::default());
        let senders = (0..SENDERS)
            .map(|sender| {
                let (shared, url) = (Arc::clone(&shared), format!("{}/ingest", engine.api()));
                thread::spawn(move || send(&shared, &url, sender))
            })
            .collect();
        Self { shared, senders }
    }

    /// Waits until `count` more requests have been acknowledged.
    pub fn wait_for_requests(&self, count: usize) {
        let target = self.shared.requests.load(Ordering::Relaxed) + count;
        eventually("requests are acknowledged", || self.shared.requests.load(Ordering::Relaxed) >= target);
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
            broken: self.shared.broken.load(Ordering::Relaxed),
        }
    }
}

fn send(shared: &Shared, url: &str, sender: usize) {
    let agent = agent();
    let authorization = format!("Bearer {TENANT}:{KEY}");
    let mut round = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        round += 1;
        let ids: Vec<Uuid> = (0..BATCH).map(|_| Uuid::now_v7()).collect();
        match agent.post(url).header("authorization", &authorization).send(batch(&ids, sender, round)) {
            Ok(response) if response.status() == 200 => {
                shared.acknowledged.lock().unwrap().extend(ids);
                shared.requests.fetch_add(1, Ordering::Relaxed);
            }
            Ok(response) => {
                let answer = Answer::from(response);
                shared.refused.lock().unwrap().push(format!("{} {}", answer.status, answer.text));
            }
            Err(_) => {
                shared.broken.fetch_add(1, Ordering::Relaxed);
                // A refused connection returns at once; a busy loop would only take the CPU from what restarts.
                thread::sleep(std::time::Duration::from_millis(20));
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
        write!(
            body,
            "{comma}{{\"id\":\"{id}\",\"type\":\"pageview\",\"session_id\":\"{session}\",\"path\":\"/p/{path}\",\
             \"title\":\"Page {path}\",\"plan\":\"pro\"}}"
        )
        .unwrap();
    }
    body.push_str("]}");
    body
}

impl Sent {
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

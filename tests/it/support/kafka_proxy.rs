//! A proxy in front of a broker that reads Kafka's frames: it can cut every connection, hold back what relays produce, and
//! kill the engine when a chosen request or its answer passes.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    engine::signal,
    kill_points::Stage,
    links::{Links, Way},
};

/// The calls that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Produce = 0,
    OffsetCommit = 8,
}

/// When a call kills the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the broker sees it.
    Asked,
    /// After the broker has done it, before the engine knows.
    Answered,
}

#[derive(Default)]
struct Shared {
    hold: AtomicBool,
    /// Kind of each request that waits for its answer, by connection and correlation id.
    under_way: Mutex<HashMap<(u16, i32), i16>>,
    trap: Mutex<Option<(Call, When, u32)>>,
}

/// A running proxy; it cuts its connections and stops when it is dropped.
pub struct KafkaProxy {
    links: Links,
    shared: Arc<Shared>,
}

impl Deref for KafkaProxy {
    type Target = Links;

    fn deref(&self) -> &Links {
        &self.links
    }
}

impl KafkaProxy {
    /// Listens on a free port and forwards to the broker at `target`, which need not listen yet.
    pub fn start(target: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let links = Links::start(target, {
            let shared = Arc::clone(&shared);
            move |way| shared.forward(way)
        });
        Self { links, shared }
    }

    /// While it holds, a connection that produces breaks and the broker sees nothing of it.
    pub fn hold(&self, hold: bool) {
        self.shared.hold.store(hold, Ordering::SeqCst);
    }

    /// Kills the process `pid` at the next `call`.
    pub fn kill_at(&self, call: Call, when: When, pid: u32) {
        *self.shared.trap.lock().unwrap() = Some((call, when, pid));
    }

    /// Calls that wait for their answers now.
    pub fn stages(&self) -> Vec<Stage> {
        let under_way = self.shared.under_way.lock().unwrap();
        [(Call::Produce, Stage::Produce), (Call::OffsetCommit, Stage::Commit)]
            .into_iter()
            .filter(|(call, _)| under_way.values().any(|key| *key == *call as i16))
            .map(|(_, stage)| stage)
            .collect()
    }
}

impl Shared {
    /// Frames one way, until either end breaks.
    fn forward(&self, way: &mut Way) {
        while let Ok(frame) = read_frame(&mut way.from)
            && self.passes(way.id, &frame, way.asked)
            && way.to.write_all(&frame).is_ok()
        {}
        self.under_way.lock().unwrap().retain(|(connection, _), _| *connection != way.id);
    }

    fn passes(&self, id: u16, frame: &[u8], asked: bool) -> bool {
        let word = |at: usize| frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        // Length, then: kind and version and correlation id of a request, correlation id of an answer.
        let correlation = word(if asked { 8 } else { 4 }).unwrap_or_default();
        let key = if asked {
            let key = frame.get(4..6).map_or(-1, |bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
            if key == Call::Produce as i16 && self.hold.load(Ordering::SeqCst) {
                return false;
            }
            self.under_way.lock().unwrap().insert((id, correlation), key);
            key
        } else {
            self.under_way.lock().unwrap().remove(&(id, correlation)).unwrap_or(-1)
        };
        let when = if asked { When::Asked } else { When::Answered };
        let hit = self.trap.lock().unwrap().take_if(|(call, at, _)| *call as i16 == key && *at == when);
        if let Some((_, _, pid)) = hit {
            signal(pid, "KILL");
            return false;
        }
        true
    }
}

/// One frame with its length in front.
pub(super) fn read_frame(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    let length = u64::from(u32::from_be_bytes(length));
    if from.take(length).read_to_end(&mut frame)? as u64 != length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

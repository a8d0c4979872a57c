//! A proxy in front of a broker that hides the upper partitions of every topic until it is told to show them, because the
//! test broker cannot add partitions. And it can swallow the answers to what clients produce.

use std::{
    collections::HashMap,
    io::Write,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use super::{
    kafka_proxy::read_frame,
    links::{Links, Way},
};

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;

/// Kind and version of the requests without an answer, by connection and correlation.
type Asked = HashMap<(u16, [u8; 4]), (i16, i16)>;

struct Shared {
    /// How many partitions a topic is said to have at most.
    shown: AtomicU32,
    swallows: AtomicBool,
    swallowed: AtomicUsize,
    asked: Mutex<Asked>,
}

/// A running proxy; it cuts its connections and stops when it is dropped.
pub struct Growing {
    links: Links,
    shared: Arc<Shared>,
}

impl Deref for Growing {
    type Target = Links;

    fn deref(&self) -> &Links {
        &self.links
    }
}

impl Growing {
    /// Listens on a free port and forwards to `target`, which need not listen yet.
    pub fn start(target: SocketAddr, shown: u32) -> Self {
        let (swallows, swallowed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { shown: AtomicU32::new(shown), swallows, swallowed, asked: Mutex::default() });
        let links = Links::start(target, {
            let shared = Arc::clone(&shared);
            move |way| shared.forward(way)
        });
        Self { links, shared }
    }

    /// From now on a topic has so many partitions, as far as clients can tell.
    pub fn show(&self, partitions: u32) {
        self.shared.shown.store(partitions, Ordering::SeqCst);
    }

    /// Whether answers to produce requests, which take effect, are swallowed from now on.
    pub fn swallow(&self, swallows: bool) {
        self.shared.swallows.store(swallows, Ordering::SeqCst);
    }

    /// How many were swallowed.
    pub fn swallowed(&self) -> usize {
        self.shared.swallowed.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Messages one way, until either end breaks.
    fn forward(&self, way: &mut Way) {
        while let Ok(frame) = read_frame(&mut way.from) {
            let Some(message) = self.pass(way.id, frame[4..].to_vec(), way.asked) else { continue };
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            if way.to.write_all(&[&length[..], &message].concat()).is_err() {
                break;
            }
        }
    }

    /// What is forwarded of a message, if anything.
    fn pass(&self, id: u16, message: Vec<u8>, asked: bool) -> Option<Vec<u8>> {
        if asked {
            let number = |at: usize| i16::from_be_bytes(message[at..at + 2].try_into().unwrap());
            self.asked.lock().unwrap().insert((id, message[4..8].try_into().unwrap()), (number(0), number(2)));
            return Some(message);
        }
        let request = self.asked.lock().unwrap().remove(&(id, message[..4].try_into().unwrap()));
        match request {
            Some((PRODUCE, _)) if self.swallows.load(Ordering::SeqCst) => {
                self.swallowed.fetch_add(1, Ordering::SeqCst);
                None
            }
            Some((METADATA, version)) => Some(trimmed(&message, version, self.shown.load(Ordering::SeqCst))),
            _ => Some(message),
        }
    }
}

/// An answer about topics without the partitions from `shown` on.
fn trimmed(answer: &[u8], version: i16, shown: u32) -> Vec<u8> {
    assert!((9..=13).contains(&version), "the proxy does not know version {version} of the metadata");
    let mut copy = Copy { from: answer, to: Vec::new() };
    // Correlation, tags of the header, throttling.
    copy.bytes(4);
    copy.tags();
    copy.bytes(4);
    for _ in 0..copy.count() {
        copy.bytes(4);
        copy.text();
        copy.bytes(4);
        copy.text();
        copy.tags();
    }
    // Cluster, controller.
    copy.text();
    copy.bytes(4);
    for _ in 0..copy.count() {
        copy.bytes(2);
        copy.text();
        copy.bytes(if version >= 10 { 16 } else { 0 });
        copy.bytes(1);
        let partitions = varint(&mut copy.from).saturating_sub(1);
        let (mut kept, mut left) = (0, Vec::new());
        for _ in 0..partitions {
            let mut partition = Copy { from: copy.from, to: Vec::new() };
            partition.bytes(2);
            let number = u32::from_be_bytes(partition.from[..4].try_into().unwrap());
            // Number, leader, epoch; replicas, those in sync, those away.
            partition.bytes(12);
            for _ in 0..3 {
                let replicas = partition.count();
                partition.bytes(4 * replicas);
            }
            partition.tags();
            copy.from = partition.from;
            if number < shown {
                kept += 1;
                left.extend(partition.to);
            }
        }
        write_varint(&mut copy.to, kept + 1);
        copy.to.extend(left);
        copy.bytes(4);
        copy.tags();
    }
    copy.to.extend_from_slice(copy.from);
    copy.to
}

/// Copies a message of Kafka's flexible encoding piece by piece.
struct Copy<'a> {
    from: &'a [u8],
    to: Vec<u8>,
}

impl Copy<'_> {
    fn bytes(&mut self, count: usize) {
        let (head, rest) = self.from.split_at(count);
        self.to.extend_from_slice(head);
        self.from = rest;
    }

    /// A length as Kafka writes it, plus one: 0 stands for nothing.
    fn count(&mut self) -> usize {
        let count = varint(&mut self.from);
        write_varint(&mut self.to, count);
        count.saturating_sub(1)
    }

    fn text(&mut self) {
        let length = self.count();
        self.bytes(length);
    }

    fn tags(&mut self) {
        let tags = varint(&mut self.from);
        write_varint(&mut self.to, tags);
        for _ in 0..tags {
            let tag = varint(&mut self.from);
            write_varint(&mut self.to, tag);
            let length = varint(&mut self.from);
            write_varint(&mut self.to, length);
            self.bytes(length);
        }
    }
}

fn varint(from: &mut &[u8]) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, rest) = from.split_first().unwrap();
        *from = rest;
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

fn write_varint(to: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap());
}

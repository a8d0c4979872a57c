//! A proxy in front of a broker that hides the upper partitions of every topic until it is told to show them, because the
//! test broker cannot add partitions. And it can swallow the answers to what clients produce.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;

struct Shared {
    target: SocketAddr,
    /// How many partitions a topic is said to have at most.
    shown: AtomicU32,
    swallows: AtomicBool,
    swallowed: AtomicUsize,
}

/// A running proxy, until the process ends.
pub struct Growing {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Growing {
    /// Listens on a free port and forwards to `target`, which need not listen yet.
    pub fn start(target: SocketAddr, shown: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (swallows, swallowed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { target, shown: AtomicU32::new(shown), swallows, swallowed });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    let Ok(server) = TcpStream::connect(shared.target) else { continue };
                    serve(&shared, &client, &server);
                }
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
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

/// Kind and version of the requests without an answer, by correlation.
type Asked = HashMap<[u8; 4], (i16, i16)>;

/// Forwards both ways, message by message.
fn serve(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) {
    let asked: Arc<Mutex<Asked>> = Arc::default();
    for stream in [client, server] {
        stream.set_nodelay(true).unwrap();
    }
    let forward = |from: &TcpStream, to: &TcpStream, pass: Box<dyn Fn(Vec<u8>) -> Option<Vec<u8>> + Send>| {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            while let Some(message) = read(&mut from) {
                let Some(message) = pass(message) else { continue };
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                if to.write_all(&[&length[..], &message].concat()).is_err() {
                    break;
                }
            }
            // The other direction may have done it already.
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Both).ok();
        });
    };
    let requests = Arc::clone(&asked);
    forward(
        client,
        server,
        Box::new(move |message| {
            let number = |at: usize| i16::from_be_bytes(message[at..at + 2].try_into().unwrap());
            requests.lock().unwrap().insert(message[4..8].try_into().unwrap(), (number(0), number(2)));
            Some(message)
        }),
    );
    let shared = Arc::clone(shared);
    forward(
        server,
        client,
        Box::new(move |message| {
            let request = asked.lock().unwrap().remove(&message[..4]);
            match request {
                Some((PRODUCE, _)) if shared.swallows.load(Ordering::SeqCst) => {
                    shared.swallowed.fetch_add(1, Ordering::SeqCst);
                    None
                }
                Some((METADATA, version)) => Some(trimmed(&message, version, shared.shown.load(Ordering::SeqCst))),
                _ => Some(message),
            }
        }),
    );
}

fn read(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut message).ok()?;
    Some(message)
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

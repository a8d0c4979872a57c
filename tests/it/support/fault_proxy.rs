//! A proxy in front of ClickHouse that speaks HTTP and does to inserts what servers, networks and load balancers do.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::engine::signal;

/// What happens to an insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is forwarded, and so is its answer.
    None,
    /// ClickHouse never sees it; this status and text come back, and the code as ClickHouse's own header.
    Answer(u16, Option<u32>, &'static str),
    /// It is forwarded whole and takes effect; the connection breaks before the answer.
    LoseAnswer,
    /// Half of it is forwarded, then both connections break.
    CutInTheMiddle,
    /// It waits so long on its way.
    Slow(Duration),
    /// It takes effect, and the answer waits so long.
    SlowAnswer(Duration),
}

/// Which request kills the engine, and whether before ClickHouse sees it or after it has answered, before the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    Insert,
    InsertAnswer,
    /// So many statements that change the schema, or records of them, are let through.
    Migration(usize),
    MigrationAnswer(usize),
}

struct Shared {
    target: Mutex<SocketAddr>,
    fault: Mutex<Fault>,
    trap: Mutex<Option<(Trap, u32)>>,
    under_way: AtomicUsize,
    hit: AtomicUsize,
    inserts: AtomicUsize,
    lost: AtomicUsize,
    closed: AtomicBool,
}

/// A running proxy; it takes no new connection once it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Listens on a free port and forwards to ClickHouse on `port`.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(SocketAddr::from(([127, 0, 0, 1], port))),
            fault: Mutex::new(Fault::None),
            trap: Mutex::new(None),
            under_way: AtomicUsize::new(0),
            hit: AtomicUsize::new(0),
            inserts: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if shared.closed.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A connection that breaks is the point of it all.
                    thread::spawn(move || shared.serve(client).ok());
                }
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on inserts of events meet `fault`; the count of hits begins anew.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
        self.shared.hit.store(0, Ordering::SeqCst);
    }

    /// Kills the process `pid` once it is at `trap`.
    pub fn kill_at(&self, trap: Trap, pid: u32) {
        *self.shared.trap.lock().unwrap() = Some((trap, pid));
    }

    /// Takes the trap away; says whether it was still there.
    pub fn disarm(&self) -> bool {
        self.shared.trap.lock().unwrap().take().is_some()
    }

    /// How many inserts ClickHouse has and has not answered.
    pub fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::SeqCst)
    }

    /// Forwards to ClickHouse on another port from now on.
    pub fn retarget(&self, port: u16) {
        self.shared.target.lock().unwrap().set_port(port);
    }

    /// How many inserts have met the fault.
    pub fn hit(&self) -> usize {
        self.shared.hit.load(Ordering::SeqCst)
    }

    /// How many inserts have taken effect without an answer.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// How many inserts were forwarded and answered.
    pub fn inserts(&self) -> usize {
        self.shared.inserts.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is closed.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    /// Whether this request is the one that kills the engine; then it is dead.
    fn springs(&self, is_insert: bool, head: &str, body: &[u8], answered: bool) -> bool {
        let says = |text: &str| memchr::memmem::find(body, text.as_bytes()).is_some() || head.contains(text);
        let migrates = !is_insert && ["CREATE ", "ALTER ", "schema_migrations (version"].into_iter().any(says);
        let mut trap = self.trap.lock().unwrap();
        let Some((wanted, pid)) = trap.as_mut() else { return false };
        let hit = match wanted {
            Trap::Insert => is_insert && !answered,
            Trap::InsertAnswer => is_insert && answered,
            Trap::Migration(left) if migrates && !answered => countdown(left),
            Trap::MigrationAnswer(left) if migrates && answered => countdown(left),
            Trap::Migration(_) | Trap::MigrationAnswer(_) => false,
        };
        if hit {
            signal(*pid, "KILL");
            *trap = None;
        }
        hit
    }

    /// Requests of one connection, one after the other.
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let mut answers = client.try_clone()?;
        let mut requests = BufReader::new(client);
        while let Some((head, body)) = read_message(&mut requests)? {
            let first = head.lines().next().unwrap_or_default();
            // The client library puts the statement into the URL, in form encoding.
            let is_insert = first.contains("INSERT+INTO") && first.contains("events");
            if self.springs(is_insert, &head, &body, false) {
                return Ok(());
            }
            let fault = if is_insert { self.fault.lock().unwrap().clone() } else { Fault::None };
            if fault != Fault::None {
                self.hit.fetch_add(1, Ordering::SeqCst);
            }
            match fault {
                Fault::Answer(status, code, text) => {
                    let code = code.map_or(String::new(), |code| format!("X-ClickHouse-Exception-Code: {code}\r\n"));
                    let length = text.len();
                    write!(answers, "HTTP/1.1 {status} X\r\n{code}Content-Length: {length}\r\n\r\n{text}")?;
                    continue;
                }
                Fault::Slow(pause) => thread::sleep(pause),
                Fault::None | Fault::LoseAnswer | Fault::CutInTheMiddle | Fault::SlowAnswer(_) => {}
            }
            let target = *self.target.lock().unwrap();
            let mut server = TcpStream::connect(target)?;
            server.write_all(head.as_bytes())?;
            if fault == Fault::CutInTheMiddle {
                server.write_all(&body[..body.len() / 2])?;
                return Ok(());
            }
            server.write_all(&body)?;
            let mut from_server = BufReader::new(server);
            self.under_way.fetch_add(usize::from(is_insert), Ordering::SeqCst);
            let answer = read_message(&mut from_server);
            if let Fault::SlowAnswer(pause) = fault {
                thread::sleep(pause);
            }
            self.under_way.fetch_sub(usize::from(is_insert), Ordering::SeqCst);
            if self.springs(is_insert, &head, &body, true) {
                return Ok(());
            }
            let Some((head, body)) = answer? else { return Ok(()) };
            if fault == Fault::LoseAnswer {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            answers.write_all(head.as_bytes())?;
            answers.write_all(&body)?;
            if is_insert {
                self.inserts.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

/// Whether nothing is left; takes one away otherwise.
fn countdown(left: &mut usize) -> bool {
    let done = *left == 0;
    *left = left.saturating_sub(1);
    done
}

/// Head and body of one HTTP/1.1 message as it came; nothing at the end of the connection.
fn read_message(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    let mut body = Vec::new();
    if header("transfer-encoding:").as_deref() == Some("chunked") {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            body.extend_from_slice(line.as_bytes());
            let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            stream.take(size + 2).read_to_end(&mut body)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = header("content-length:") {
        let length = length.parse().map_err(std::io::Error::other)?;
        stream.take(length).read_to_end(&mut body)?;
    }
    Ok(Some((head, body)))
}

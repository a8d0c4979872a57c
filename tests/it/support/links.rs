//! The connections of a proxy: each that is taken is paired with one to the target, and all of them can be cut.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// One way of a pair of connections.
pub struct Way {
    /// Names the pair.
    pub id: u16,
    pub from: TcpStream,
    pub to: TcpStream,
    /// From the client to the target.
    pub asked: bool,
}

struct Shared {
    target: SocketAddr,
    cut: AtomicBool,
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// Taken until this is dropped, which cuts them.
pub struct Links {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Links {
    /// Listens on a free port, for a `target` that need not listen yet. `forward` has a thread of its own for each way; when it
    /// returns the pair is closed.
    pub fn start(target: SocketAddr, forward: impl Fn(&mut Way) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { target, cut, closed, connections: Mutex::default() });
        let forward = Arc::new(forward);
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if shared.closed.load(Ordering::SeqCst) {
                        return;
                    }
                    for mut way in shared.pair(client).into_iter().flatten() {
                        let forward = Arc::clone(&forward);
                        thread::spawn(move || {
                            forward(&mut way);
                            // The other way may have done it already.
                            way.from.shutdown(Shutdown::Both).ok();
                            way.to.shutdown(Shutdown::Both).ok();
                        });
                    }
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection, and every new one at once, until [`Links::mend`].
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.drop_connections();
    }

    /// Forwards again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.drop_connections();
        // Wakes the listener, which then sees that it is closed.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn drop_connections(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            // It may be closed already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    fn pair(&self, client: TcpStream) -> Option<[Way; 2]> {
        let server = TcpStream::connect(self.target).ok()?;
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let mut connections = self.connections.lock().unwrap();
        // Looked at under the lock, so that a cut misses no connection.
        if self.cut.load(Ordering::SeqCst) {
            return None;
        }
        connections.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        drop(connections);
        let id = client.peer_addr().map_or(0, |peer| peer.port());
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        Some([Way { id, from, to, asked: true }, Way { id, from: server, to: client, asked: false }])
    }
}

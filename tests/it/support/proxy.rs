//! A TCP proxy that can cut every connection and refuse new ones for as long as the test wants.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// A running proxy; it cuts its connections and stops when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    cut: AtomicBool,
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    forwarded: AtomicU64,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, which need not listen yet.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            cut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            connections: Mutex::default(),
            forwarded: AtomicU64::new(0),
        });
        thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if shared.closed.load(Ordering::SeqCst) {
                        return;
                    }
                    shared.accept(client);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that went through it, both ways.
    pub fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(Ordering::Relaxed)
    }

    /// Cuts every connection, and every new one at once, until [`Proxy::mend`].
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.drop_connections();
    }

    /// Forwards again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
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

    fn accept(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.target) else { return };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let mut connections = self.connections.lock().unwrap();
        // Looked at under the lock, so that a cut misses no connection.
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        connections.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        drop(connections);
        for (from, to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
            let shared = self.clone();
            thread::spawn(move || shared.forward(from, to));
        }
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
            && to.write_all(&buffer[..count]).is_ok()
        {
            self.forwarded.fetch_add(count as u64, Ordering::Relaxed);
        }
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }
}

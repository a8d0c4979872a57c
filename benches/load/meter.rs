//! Counts what goes over the wire to a broker and back: it listens where the broker says that it is, and passes everything on.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A counter, which passes nothing on once it is dropped.
pub struct Meter {
    counted: Arc<Counted>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counted {
    there: AtomicU64,
    back: AtomicU64,
}

impl Meter {
    /// Passes on what comes to `port` to `target`, both on loopback.
    pub fn start(port: u16, target: u16) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let counted = Arc::new(Counted::default());
        let task = tokio::spawn(listen(listener, target, Arc::clone(&counted)));
        Ok(Self { counted, task })
    }

    /// Bytes to the broker and from it so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.counted.there.load(Ordering::Relaxed), self.counted.back.load(Ordering::Relaxed))
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, target: u16, counted: Arc<Counted>) {
    // Connections end with the task, because the set does.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let counted = Arc::clone(&counted);
        // A connection that breaks is one that breaks for both ends.
        connections.spawn(async move { pass(client, target, &counted).await.ok() });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(client: TcpStream, target: u16, counted: &Counted) -> std::io::Result<()> {
    let broker = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
    tokio::select! {
        passed = copy(from_client, to_broker, &counted.there) => passed,
        passed = copy(from_broker, to_client, &counted.back) => passed,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counted: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        counted.fetch_add(read as u64, Ordering::Relaxed);
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

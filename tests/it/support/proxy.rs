//! A TCP proxy that can cut every connection and refuse new ones for as long as the test wants.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::links::Links;

/// A running proxy; it cuts its connections and stops when it is dropped.
pub struct Proxy {
    links: Links,
    forwarded: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, which need not listen yet.
    pub fn start(target: SocketAddr) -> Self {
        let forwarded = Arc::<AtomicU64>::default();
        let links = Links::start(target, {
            let forwarded = Arc::clone(&forwarded);
            move |way| {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count) = way.from.read(&mut buffer)
                    && count > 0
                    && way.to.write_all(&buffer[..count]).is_ok()
                {
                    forwarded.fetch_add(count as u64, Ordering::Relaxed);
                }
            }
        });
        Self { links, forwarded }
    }

    /// Bytes that went through it, both ways.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

impl Deref for Proxy {
    type Target = Links;

    fn deref(&self) -> &Links {
        &self.links
    }
}

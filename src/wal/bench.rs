//! What the micro-benchmarks (`benches/micro`) need of the log's insides. No part of its interface.

use super::{Append, AppendError, Settings, window::Window};

/// Ids in a generation of the log, about.
const GENERATION: u64 = 500_000;

/// The window of ids alone, without a log.
pub struct DedupWindow {
    window: Window,
    /// Ids that it was ever given.
    given: u64,
}

impl DedupWindow {
    /// An empty window.
    pub fn new(settings: &Settings) -> Self {
        Self { window: Window::new(settings, [7; 32], 1_800_000_000_000), given: 0 }
    }

    /// Takes the ids of `append` as a commit of the log does; gives how many were there already.
    ///
    /// # Errors
    /// None without an idempotency key.
    pub fn commit(&mut self, append: &mut Append) -> Result<u64, AppendError> {
        self.given += append.chunks.iter().map(|chunk| u64::from(chunk.event_count)).sum::<u64>();
        let duplicates = self.window.admit(append)?;
        self.window.committed(self.given / GENERATION);
        self.window.evict();
        Ok(duplicates)
    }

    /// Ids in it.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

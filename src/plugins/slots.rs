//! Which plugin was in call when the process crashed: a mapped file with a slot for each thread, and the signal handler.

use std::sync::Arc;

use super::threads::Caller;

/// The slots of this process.
pub struct Slots;

/// A thread's slot.
pub struct Seat;

/// A caller in the table of callers.
pub struct Entry;

impl Entry {
    /// Its number.
    pub fn number(&self) -> u32 {
        0
    }
}

impl Slots {
    /// The entry of `caller`.
    pub fn entry(&self, _caller: &Caller) -> Option<Arc<Entry>> {
        None
    }
}

impl Seat {
    /// A free slot for the calling thread.
    pub fn take(_slots: &Arc<Slots>) -> Option<Self> {
        None
    }

    /// The calling thread enters a plugin.
    pub fn enter(&self, _entry: u32) {}

    /// It has left it.
    pub fn leave(&self) {}
}

//! Faults of a plugin within a window of time. (The helper "runtime" owns this file.)
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
#[derive(Clone, Debug)]
pub struct FaultWindow {
    limit: usize,
    window: Duration,
    at: VecDeque<Instant>,
}
impl FaultWindow {
    pub fn new(limit: usize, window: Duration) -> Self {
        Self { limit, window, at: VecDeque::new() }
    }
    pub fn record(&mut self, now: Instant) -> bool {
        self.at.push_back(now);
        while self.at.front().is_some_and(|t| now - *t > self.window) {
            self.at.pop_front();
        }
        self.at.len() >= self.limit
    }
    pub fn clear(&mut self) {
        self.at.clear();
    }
}

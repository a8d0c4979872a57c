//! Whether memory grows with the calls.
//!
//! The same calls in equal windows: what is allocated once (caches, buffers that grow to their size, thread-local state)
//! is there after the first windows; what grows in every further one is a leak.

use std::time::{Duration, Instant};

use super::system::bytes_in_use;

/// Windows before memory is looked at.
const WARM_UP: usize = 3;
/// Windows in which it is. All of them have to show growth: one that does not shows that memory comes back.
const WINDOWS: usize = 8;
/// Rounds of a window: enough for a leak of a few bytes to stand out.
const MOST_ROUNDS: u32 = 32;
/// What a window may take. A slow plugin gets fewer rounds, because the whole check is under a time limit.
const WINDOW: Duration = Duration::from_millis(250);
/// A round above this would not leave the time for a trial.
const SLOWEST_ROUND: Duration = Duration::from_secs(1);

/// What was seen.
pub(super) enum Seen {
    /// Memory stays the same.
    None {
        /// Over so many calls.
        calls: usize,
    },
    /// No trial was possible.
    NotTried {
        /// Why.
        why: String,
    },
}

/// Runs `round`, which makes `calls` calls each time, and watches the memory in use.
///
/// # Errors
/// The bytes of a leak, in words.
pub(super) fn watch(calls: usize, mut round: impl FnMut()) -> Result<Seen, String> {
    if calls == 0 {
        return Ok(Seen::NotTried { why: "it has no examples, so there is nothing to call it with".to_owned() });
    }
    let began = Instant::now();
    round();
    let took = began.elapsed();
    if took > SLOWEST_ROUND {
        return Ok(Seen::NotTried { why: format!("one round of its examples takes {took:.1?}") });
    }
    let fit = WINDOW.as_nanos() / took.as_nanos().max(1);
    let rounds = u32::try_from(fit).unwrap_or(MOST_ROUNDS).clamp(1, MOST_ROUNDS);
    let mut growth = Vec::with_capacity(WINDOWS);
    let mut before = 0;
    for window in 0..WARM_UP + WINDOWS {
        for _ in 0..rounds {
            round();
        }
        let Some(now) = bytes_in_use() else {
            return Ok(Seen::NotTried { why: "this system does not count memory".to_owned() });
        };
        if window >= WARM_UP {
            growth.push(now.saturating_sub(before));
        }
        before = now;
    }
    let all = calls * rounds as usize * WINDOWS;
    if growth.contains(&0) {
        return Ok(Seen::None { calls: all });
    }
    let leaked: u64 = growth.iter().sum();
    Err(format!(
        "it leaks {} bytes a call: memory grew in each of {WINDOWS} rounds of the same calls, by {leaked} bytes over {all} \
         calls; free in `release` whatever `process` allocates, after errors too",
        leaked.div_ceil(all as u64)
    ))
}

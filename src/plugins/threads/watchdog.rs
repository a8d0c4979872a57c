//! The watchdog: one thread that looks at every call under way, and sleeps while there is none.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use super::{
    RunError,
    pool::Pool,
    watch::{GivenUp, Watched},
};

/// Between looks: a tenth of the default deadline.
const LOOK: Duration = Duration::from_millis(5);

/// The most that one look counts as passed. More than that between two looks means that the watchdog itself was not run
/// (a stopped process, a paused machine), and then the plugins were probably not run either.
const MOST: Duration = Duration::from_millis(20);

/// Looks without a call before it goes to sleep, so that a call now and then does not pay for waking it each time.
const LINGER: u32 = 40;

/// Wakes the watchdog. Whoever enters a call first says so and then looks whether the watchdog sleeps; it first says that it
/// will and then looks whether there is a call. Both in one order that all agree on, so at least one of them sees the other.
#[derive(Default)]
pub(super) struct Alarm {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Alarm {
    /// After a call was entered. A single load while the watchdog is awake.
    pub(super) fn call_entered(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Starts the watchdog of `pool`; it ends with the pool.
pub(super) fn start(pool: &Arc<Pool>) -> io::Result<()> {
    let watched = Arc::clone(pool);
    let handle = thread::Builder::new().name("plugin-watchdog".to_owned()).spawn(move || watch(&watched))?;
    // Set once, here.
    pool.alarm.thread.get_or_init(|| handle.thread().clone());
    Ok(())
}

fn watch(pool: &Arc<Pool>) {
    let mut last = Instant::now();
    let mut idle = 0;
    let mut short = false;
    while !pool.is_closed() {
        let now = Instant::now();
        let elapsed = (now - last).min(MOST);
        last = now;
        let busy = look(pool, elapsed);
        short = fill(pool, short);
        idle = if busy || short { 0 } else { idle + 1 };
        if idle < LINGER {
            thread::park_timeout(LOOK);
            continue;
        }
        pool.alarm.asleep.store(true, Ordering::SeqCst);
        let called = pool.threads.lock().iter().any(|thread| thread.watch().is_in_call());
        if !called && !pool.is_closed() {
            thread::park();
        }
        pool.alarm.asleep.store(false, Ordering::SeqCst);
        idle = 0;
    }
}

/// Gives up what is due. Returns whether a call is under way.
fn look(pool: &Arc<Pool>, elapsed: Duration) -> bool {
    let mut threads = pool.threads.lock();
    let due: Vec<GivenUp> = threads.iter_mut().filter_map(|thread| thread.look(elapsed)).collect();
    for given_up in &due {
        pool.leak(&given_up.caller);
    }
    let busy = threads.iter().any(Watched::in_call);
    drop(threads);
    for GivenUp { caller, limit, waiter } in due {
        let plugin = Arc::clone(&caller.plugin);
        tracing::warn!(
            plugin = &*plugin,
            limit_ms = limit.as_millis(),
            leaked = pool.leaked(),
            "a plugin did not return in time; its call is given up and its thread left to it"
        );
        // Whether or not anybody waits: a client that gives up first must not hide the fault. And before whoever waits is
        // told, so that the answer to a request comes after what the request has caused.
        pool.tell_given_up(&caller, limit);
        if let Some(waiter) = waiter {
            waiter.fail(RunError::Abandoned { plugin, limit });
        }
    }
    busy
}

/// Replaces leaked threads. Returns whether the system had none to give, `was` that the last time.
fn fill(pool: &Arc<Pool>, was: bool) -> bool {
    match pool.fill() {
        Ok(()) => false,
        Err(error) => {
            if !was {
                tracing::error!(%error, "cannot start another plugin thread; trying on");
            }
            true
        }
    }
}

//! A thread as a job sees it: the way into a plugin.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;

use super::{Caller, pool::Pool, watch::Watch};
use crate::{
    metrics::PluginLabels,
    plugins::{
        call::Fault,
        slots::{Entry, Seat},
    },
};

/// The thread that a job runs on.
pub struct Worker {
    /// None for a thread that nobody watches.
    place: Option<Place>,
}

struct Place {
    pool: Arc<Pool>,
    watch: Arc<Watch>,
    seat: Option<Seat>,
    /// Number of the last call.
    calls: Cell<u64>,
    /// One for each plugin that was called on this thread, its place being that of its caller in the watch.
    known: RefCell<Vec<Known>>,
}

/// What a call of a plugin needs, looked up once.
struct Known {
    caller: Caller,
    calls: Histogram,
    entry: Option<Arc<Entry>>,
}

impl Worker {
    /// The calling thread, which nobody watches: for processes that end with their call (the check, an isolated plugin's
    /// child) and for tests.
    pub fn detached() -> Self {
        Self { place: None }
    }

    /// The calling thread, one of `pool`.
    pub(super) fn on(pool: Arc<Pool>, watch: Arc<Watch>) -> Self {
        let seat = pool.slots.as_ref().and_then(Seat::take);
        Self { place: Some(Place { pool, watch, seat, calls: Cell::new(0), known: RefCell::default() }) }
    }

    /// Runs `code`, which enters a plugin, under `deadline`, and names the plugin in this thread's crash slot meanwhile.
    /// One call at a time.
    ///
    /// # Errors
    /// [`Fault::Abandoned`] when it took longer: the job was given up already, and should end at once. [`Fault::Exhausted`]
    /// when `code` was not run because too many threads hang, some of them in this plugin.
    pub fn call<T>(&self, caller: &Caller, deadline: Duration, code: impl FnOnce() -> T) -> Result<T, Fault> {
        match &self.place {
            None => Ok(code()),
            Some(place) => place.call(caller, deadline, code),
        }
    }
}

impl Place {
    fn call<T>(&self, caller: &Caller, limit: Duration, code: impl FnOnce() -> T) -> Result<T, Fault> {
        if self.watch.is_abandoned() {
            return Err(Fault::Abandoned);
        }
        if self.pool.is_exhausted() {
            // Files that have let no thread hang go on, the mended one of a plugin that hung among them.
            let leaked = self.pool.leaked_in(caller);
            if leaked > 0 {
                return Err(Fault::Exhausted { leaked });
            }
        }
        let (name, entry) = self.known(caller);
        let began = Instant::now();
        let inside = self.enter(name, entry, limit);
        let result = code();
        let in_time = inside.leave();
        let took = began.elapsed();
        if let Some(known) = self.known.borrow().get(name) {
            known.calls.observe(took.as_secs_f64());
        }
        if in_time { Ok(result) } else { Err(Fault::Abandoned) }
    }

    /// The place of what is known of the caller, and its entry in the table of callers.
    fn known(&self, caller: &Caller) -> (usize, u32) {
        let same = |known: &Known| {
            Arc::ptr_eq(&known.caller.plugin, &caller.plugin) && Arc::ptr_eq(&known.caller.sha256, &caller.sha256)
        };
        let entry = |known: &Known| known.entry.as_ref().map_or(0, |entry| entry.number());
        let mut all = self.known.borrow_mut();
        if let Some((place, known)) = all.iter().enumerate().find(|(_, known)| same(known)) {
            return (place, entry(known));
        }
        let known = Known {
            caller: caller.clone(),
            calls: self.pool.metrics.plugin_calls.get_or_create(&PluginLabels::of(&caller.plugin)).clone(),
            entry: self.pool.slots.as_ref().and_then(|slots| slots.entry(caller)),
        };
        let number = entry(&known);
        // Another file of the same plugin takes the place of the one before, so that there is one for each name.
        if let Some((place, old)) = all.iter_mut().enumerate().find(|(_, old)| old.caller.plugin == caller.plugin) {
            *old = known;
            self.watch.replace_caller(place, caller.clone());
            return (place, number);
        }
        all.push(known);
        (self.watch.add_caller(caller.clone()), number)
    }

    fn enter(&self, name: usize, entry: u32, limit: Duration) -> Inside<'_> {
        let number = self.calls.get() + 1;
        self.calls.set(number);
        if let Some(seat) = &self.seat {
            seat.enter(entry);
        }
        self.watch.enter(number, name, limit);
        self.pool.alarm.call_entered();
        Inside { place: self, number, left: false }
    }
}

/// A call under way. It is left however it ends, a panic of ours included.
struct Inside<'a> {
    place: &'a Place,
    number: u64,
    left: bool,
}

impl Inside<'_> {
    /// False when the call was given up.
    fn leave(mut self) -> bool {
        self.out()
    }

    fn out(&mut self) -> bool {
        self.left = true;
        let in_time = self.place.watch.leave(self.number);
        if let Some(seat) = &self.place.seat {
            seat.leave();
        }
        if !in_time {
            self.place.pool.returned(&self.place.watch);
        }
        in_time
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if !self.left {
            self.out();
        }
    }
}

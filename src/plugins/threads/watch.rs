//! What the watchdog sees of a thread: a word that says which call it is in, and how long that one may take.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Caller, pool::Waiter};

/// Lowest bits of [`Watch::word`]; above them stands the call's number.
const IN_CALL: u64 = 1;
const ABANDONED: u64 = 2;
const NUMBER_SHIFT: u32 = 2;

/// A thread's side of the watch. The thread writes before and after each call, without a lock.
pub(super) struct Watch {
    /// 0 outside of calls; `number << 2 | IN_CALL`; or `number << 2 | ABANDONED`, for ever.
    word: AtomicU64,
    /// What the call may take, nanoseconds.
    limit: AtomicU64,
    /// Which of `callers` is in call.
    caller: AtomicUsize,
    /// Plugins that were called on this thread. Locked at the first call of a plugin's file.
    callers: Mutex<Vec<Caller>>,
    waiter: Mutex<Option<Arc<dyn Waiter>>>,
    /// Kept open: opened on the thread, it speaks of that thread whoever reads it.
    schedstat: Option<File>,
}

impl Watch {
    /// Of the calling thread.
    pub(super) fn of_this_thread() -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            caller: AtomicUsize::new(0),
            callers: Mutex::default(),
            waiter: Mutex::default(),
            // Not there in every kernel: then the deadline is wall time.
            schedstat: File::open("/proc/thread-self/schedstat").ok(),
        }
    }

    /// A job begins.
    pub(super) fn begin(&self, waiter: Arc<dyn Waiter>) {
        *self.waiter.lock() = Some(waiter);
    }

    /// The job has ended.
    pub(super) fn end(&self) {
        *self.waiter.lock() = None;
    }

    /// Makes a caller known; returns its place.
    pub(super) fn add_caller(&self, caller: Caller) -> usize {
        let mut callers = self.callers.lock();
        callers.push(caller);
        callers.len() - 1
    }

    /// Puts another file of a plugin in the place of the one before. Outside of calls.
    pub(super) fn replace_caller(&self, place: usize, caller: Caller) {
        if let Some(known) = self.callers.lock().get_mut(place) {
            *known = caller;
        }
    }

    /// The thread enters a plugin; `number` is not used twice. Sequentially consistent, see [`super::watchdog::Alarm`].
    pub(super) fn enter(&self, number: u64, caller: usize, limit: Duration) {
        self.limit.store(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
        self.caller.store(caller, Ordering::Release);
        self.word.store(number << NUMBER_SHIFT | IN_CALL, Ordering::SeqCst);
    }

    /// The thread has left it. False when the call was given up meanwhile.
    pub(super) fn leave(&self, number: u64) -> bool {
        let word = number << NUMBER_SHIFT | IN_CALL;
        self.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether a call of this thread was given up, now or ever.
    pub(super) fn is_abandoned(&self) -> bool {
        self.word.load(Ordering::Acquire) & ABANDONED != 0
    }

    pub(super) fn is_in_call(&self) -> bool {
        self.word.load(Ordering::SeqCst) & IN_CALL != 0
    }

    /// Who is in call, or was last.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.callers.lock().get(self.caller.load(Ordering::Acquire)).cloned()
    }

    /// How long this thread has waited for a processor in all its life.
    fn waited(&self) -> Duration {
        // Three decimal numbers of at most 20 digits.
        let mut buffer = [0; 64];
        let read = self.schedstat.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
        waited_for_a_processor(buffer.get(..read).unwrap_or_default())
    }
}

/// A call that was given up.
pub(super) struct GivenUp {
    pub(super) caller: Caller,
    pub(super) limit: Duration,
    pub(super) waiter: Option<Arc<dyn Waiter>>,
}

/// The watchdog's side.
pub(super) struct Watched {
    watch: Arc<Watch>,
    /// The word of the call that was seen last.
    seen: u64,
    /// How long it has been seen for.
    spent: Duration,
    /// How long the thread had waited for a processor when it was first seen.
    waited: Duration,
}

impl Watched {
    pub(super) fn new(watch: Arc<Watch>) -> Self {
        Self { watch, seen: 0, spent: Duration::ZERO, waited: Duration::ZERO }
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Whether it was in a call at the last look, one that is not given up.
    pub(super) fn in_call(&self) -> bool {
        self.seen & IN_CALL != 0
    }

    /// Looks at the thread, `elapsed` after the last look. A call's time counts from the first look at it: it began at most
    /// one look earlier, and the difference is the plugin's gain.
    pub(super) fn look(&mut self, elapsed: Duration) -> Option<GivenUp> {
        let word = self.watch.word.load(Ordering::SeqCst);
        if word & IN_CALL == 0 {
            self.seen = 0;
            return None;
        }
        if word != self.seen {
            (self.seen, self.spent, self.waited) = (word, Duration::ZERO, self.watch.waited());
            return None;
        }
        self.spent += elapsed;
        let limit = Duration::from_nanos(self.watch.limit.load(Ordering::Acquire));
        if self.spent < limit || own_time(self.spent, self.waited, self.watch.waited()) < limit {
            return None;
        }
        let caller = self.watch.caller()?;
        let waiter = self.watch.waiter.lock().clone();
        // Fails when the call has returned by now: then what was read above may be of the next one, and is not used.
        let given_up = word & !IN_CALL | ABANDONED;
        self.watch.word.compare_exchange(word, given_up, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.seen = given_up;
        Some(GivenUp { caller, limit, waiter })
    }
}

/// What a `schedstat` says: run time, wait time (nanoseconds), slices. Zero when there is none.
pub(in crate::plugins) fn waited_for_a_processor(schedstat: &[u8]) -> Duration {
    let text = std::str::from_utf8(schedstat).unwrap_or("");
    Duration::from_nanos(text.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// What of `spent` a thread did not wait for a processor, given how long it had waited before and after.
fn own_time(spent: Duration, waited_before: Duration, waited_after: Duration) -> Duration {
    spent.saturating_sub(waited_after.saturating_sub(waited_before))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn waiting_for_a_processor_is_not_the_plugins_time() {
        for (spent, before, after, own) in [
            (ms(50), ms(0), ms(0), ms(50)),
            (ms(50), ms(100), ms(100), ms(50)),
            (ms(50), ms(100), ms(130), ms(20)),
            // The watchdog counts less than the wall when it was held up itself.
            (ms(50), ms(100), ms(190), ms(0)),
            // No schedstat after, of a thread that has ended.
            (ms(50), ms(100), ms(0), ms(50)),
        ] {
            assert_eq!(own_time(spent, before, after), own, "{spent:?} {before:?} {after:?}");
        }
    }

    #[test]
    fn the_kernel_tells_how_long_a_thread_waited() {
        assert_eq!(waited_for_a_processor(b"1234 5678 9\n"), Duration::from_nanos(5678));
        for none in [&b""[..], b"1234", b"a b c", b"\xff"] {
            assert_eq!(waited_for_a_processor(none), Duration::ZERO);
        }
    }

    #[test]
    fn a_call_that_has_returned_is_not_given_up() {
        let watch = Arc::new(Watch::of_this_thread());
        let name = watch.add_caller(Caller { plugin: "slow".into(), sha256: "1".into() });
        let mut watched = Watched::new(Arc::clone(&watch));
        watch.enter(1, name, ms(10));
        assert!(watched.look(ms(1000)).is_none(), "seen for the first time");
        assert!(watched.look(ms(9)).is_none());
        assert!(watch.leave(1));
        watch.enter(2, name, ms(10));
        assert!(watched.look(ms(9)).is_none(), "another call");
        // Whatever this thread waits for a processor meanwhile is less than an hour.
        let given_up = watched.look(ms(3_600_000)).map(|given_up| (given_up.caller.plugin, given_up.limit));
        assert_eq!(given_up, Some(("slow".into(), ms(10))));
        assert!(!watch.leave(2) && watch.is_abandoned());
        assert!(watched.look(ms(3_600_000)).is_none(), "once");
    }
}

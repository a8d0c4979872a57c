//! The queue of jobs, the threads that take from it, and how many of them hang.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    Caller, RunError, Settings,
    watch::{Watch, Watched},
    watchdog::Alarm,
    worker::Worker,
};
use crate::{metrics::Metrics, plugins::slots::Slots};

/// What C libraries expect of a thread; it is reserved, not used.
const STACK_BYTES: usize = 8 << 20;

/// Whoever waits for a job.
pub(super) trait Waiter: Send + Sync {
    /// Answers, unless it was answered before.
    fn fail(&self, error: RunError);
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
}

/// Is told who did not return within what.
pub(super) type GivenUpHook = Box<dyn Fn(&Caller, Duration) + Send + Sync>;

type Answer<T> = Mutex<Option<oneshot::Sender<Result<T, RunError>>>>;

impl<T: Send> Waiter for Answer<T> {
    fn fail(&self, error: RunError) {
        if let Some(answer) = self.lock().take() {
            // Nobody waits any more: nobody to tell.
            drop(answer.send(Err(error)));
        }
    }

    fn is_gone(&self) -> bool {
        self.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// A job and who waits for it.
pub(super) struct Job {
    waiter: Arc<dyn Waiter>,
    code: Box<dyn FnOnce(&Worker) + Send>,
}

impl Job {
    pub(super) fn new<T: Send + 'static>(
        answer: oneshot::Sender<Result<T, RunError>>,
        code: impl FnOnce(&Worker) -> T + Send + 'static,
    ) -> Self {
        let answer: Arc<Answer<T>> = Arc::new(Mutex::new(Some(answer)));
        let waiter = Arc::clone(&answer);
        let code = Box::new(move |worker: &Worker| {
            let result = code(worker);
            // Taken by the watchdog: the result is thrown away.
            if let Some(answer) = answer.lock().take() {
                drop(answer.send(Ok(result)));
            }
        });
        Self { waiter, code }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What the threads, their watchdog and the handles share.
pub(super) struct Pool {
    pub(super) settings: Settings,
    pub(super) slots: Option<Arc<Slots>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) alarm: Alarm,
    /// Every thread, leaked ones too. Locked when a thread begins or ends, and by the watchdog.
    pub(super) threads: Mutex<Vec<Watched>>,
    queue: Mutex<Queue>,
    given: Condvar,
    /// Threads that are not leaked.
    live: AtomicUsize,
    /// Threads ever begun, for their names.
    begun: AtomicUsize,
    leaked: AtomicUsize,
    leaked_by: Mutex<HashMap<Caller, usize>>,
    given_up: OnceLock<GivenUpHook>,
}

impl Pool {
    pub(super) fn new(settings: Settings, slots: Option<Arc<Slots>>, metrics: Arc<Metrics>) -> Arc<Self> {
        let settings = Settings { threads: settings.threads.max(1), leaked: settings.leaked.max(1) };
        Arc::new(Self {
            settings,
            slots,
            metrics,
            alarm: Alarm::default(),
            threads: Mutex::default(),
            queue: Mutex::default(),
            given: Condvar::new(),
            live: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            leaked: AtomicUsize::new(0),
            leaked_by: Mutex::default(),
            given_up: OnceLock::new(),
        })
    }

    pub(super) fn give(&self, job: Job) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.jobs.push_back(job);
            drop(queue);
            self.given.notify_one();
        }
    }

    /// The next job; none when the pool is closed.
    fn take(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            self.given.wait(&mut queue);
        }
    }

    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        // Outside of the lock: a job's captures may do anything when they are dropped.
        drop(jobs);
        self.given.notify_all();
        self.alarm.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    /// Starts threads until there are as many as there should be.
    pub(super) fn fill(self: &Arc<Self>) -> io::Result<()> {
        while self.live.load(Ordering::Relaxed) < self.settings.threads {
            self.add_thread()?;
        }
        Ok(())
    }

    pub(super) fn add_thread(self: &Arc<Self>) -> io::Result<()> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let pool = Arc::clone(self);
        thread::Builder::new().name(format!("plugin-{number}")).stack_size(STACK_BYTES).spawn(move || pool.work())?;
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A thread's life.
    fn work(self: Arc<Self>) {
        let watch = Arc::new(Watch::of_this_thread());
        self.threads.lock().push(Watched::new(Arc::clone(&watch)));
        let worker = Worker::on(Arc::clone(&self), Arc::clone(&watch));
        // A thread that was leaked has been replaced.
        while !watch.is_abandoned()
            && let Some(job) = self.take()
        {
            if job.waiter.is_gone() {
                continue;
            }
            watch.begin(Arc::clone(&job.waiter));
            let outcome = catch_unwind(AssertUnwindSafe(|| (job.code)(&worker)));
            watch.end();
            if outcome.is_err() {
                job.waiter.fail(RunError::Panicked);
            }
        }
        self.threads.lock().retain(|other| !Arc::ptr_eq(other.watch(), &watch));
    }

    pub(super) fn leaked(&self) -> usize {
        self.leaked.load(Ordering::Relaxed)
    }

    pub(super) fn leaked_by(&self, plugin: &str) -> usize {
        let leaked_by = self.leaked_by.lock();
        leaked_by.iter().filter(|(caller, _)| *caller.plugin == *plugin).map(|(_, leaked)| leaked).sum()
    }

    /// Threads that hang in this very file: another one of the same plugin may be the mended one.
    pub(super) fn leaked_in(&self, caller: &Caller) -> usize {
        self.leaked_by.lock().get(caller).copied().unwrap_or(0)
    }

    /// Who is to be told of every call that is given up. The first one stays.
    pub(super) fn on_given_up(&self, hook: GivenUpHook) {
        self.given_up.get_or_init(|| hook);
    }

    pub(super) fn tell_given_up(&self, caller: &Caller, limit: Duration) {
        if let Some(hook) = self.given_up.get() {
            hook(caller, limit);
        }
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.leaked() >= self.settings.leaked
    }

    /// A thread hangs in `caller`. Under the lock of `threads`, in which the call was given up.
    pub(super) fn leak(&self, caller: &Caller) {
        *self.leaked_by.lock().entry(caller.clone()).or_default() += 1;
        self.leaked.fetch_add(1, Ordering::Relaxed);
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.metrics.plugin_threads_leaked.inc();
    }

    /// The call that a thread hung in has returned.
    pub(super) fn returned(&self, watch: &Watch) {
        // The watchdog counts under this lock: not before it has counted.
        let threads = self.threads.lock();
        let Some(caller) = watch.caller() else { return };
        let mut leaked_by = self.leaked_by.lock();
        if let Some(leaked) = leaked_by.get_mut(&caller) {
            *leaked -= 1;
            if *leaked == 0 {
                leaked_by.remove(&caller);
            }
        }
        self.leaked.fetch_sub(1, Ordering::Relaxed);
        self.metrics.plugin_threads_leaked.dec();
        drop(leaked_by);
        drop(threads);
        tracing::info!(
            plugin = &*caller.plugin,
            "a plugin's call that was given up has returned; its result is thrown away"
        );
    }
}

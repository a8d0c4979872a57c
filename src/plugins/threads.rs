//! The threads that plugins are called on, and the watchdog over their calls.
//!
//! ```text
//! run(job) --queue, first in first out--> plugin-1 .. plugin-N: job --> Worker::call --> the plugin
//!     ^                                                                   | a number, a limit (atomics)
//!     +---- result | Abandoned <---- watchdog, every few milliseconds ----+
//! ```
//!
//! - **A call past its deadline is given up, not stopped**: no thread can be stopped from outside without breaking the
//!   process. Its waiter is answered, its thread is *leaked*, and another one takes its place, so that capacity stays.
//!   When the call returns after all, what it returned is thrown away and the thread ends.
//! - **At the most allowed leaked threads no file of a plugin in which one hangs is entered any more**
//!   ([`Fault::Exhausted`]) until one comes back; the others go on, and so does another file of the same plugin, which may
//!   be the mended one. Calls that were under way when a file's first one was given up may hang too, so beyond the most
//!   allowed there are at most `threads` for each further file.
//! - **The deadline counts the plugin's own time.** Waiting for a processor does not count where the kernel tells it
//!   (`schedstat`), nor does time in which the watchdog did not run either (a stopped process, a paused machine). Waiting
//!   for anything else does.
//! - A call costs some atomics and two readings of the clock; the watchdog sleeps while there is none.
//!
//! Not here: what a fault costs the plugin (`faults`, `plugin`), and which plugin is called (`chain`).

use std::{io, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::slots::Slots;
use crate::metrics::Metrics;

mod pool;
mod watch;
mod watchdog;
mod worker;

use pool::{Job, Pool};
pub(super) use watch::waited_for_a_processor;
pub use worker::Worker;

/// How many threads.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads that can run jobs at any time, at least 1.
    pub threads: usize,
    /// Threads that hang in abandoned calls, over all plugins, from which on no plugin in which one hangs is entered; at
    /// least 1.
    pub leaked: usize,
}

/// Who is in a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Its file's sum, hexadecimal.
    pub sha256: Arc<str>,
}

/// Why a job has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A plugin in it did not return in time.
    #[error("plugin {plugin} did not return within {limit:?}")]
    Abandoned {
        /// The plugin that was in call.
        plugin: Arc<str>,
        /// What it was given.
        limit: Duration,
    },
    /// The engine's own code in it panicked; the panic's message is in the log.
    #[error("a job on a plugin thread panicked, which is a fault of the engine; see the log above")]
    Panicked,
    /// The threads were ended before it ran.
    #[error("the plugin threads have ended")]
    Closed,
}

/// The plugin threads. Clones are handles of the same; when the last one is dropped the idle threads end, and hanging ones
/// do not keep the process.
#[derive(Clone)]
pub struct Threads {
    handle: Arc<Handle>,
}

struct Handle {
    pool: Arc<Pool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Threads {
    /// Starts the threads, each with a slot of `slots`, and their watchdog.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(settings: Settings, slots: Option<Arc<Slots>>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let pool = Pool::new(settings, slots, metrics);
        // From here on, so that an error ends the threads that were started.
        let threads = Self { handle: Arc::new(Handle { pool }) };
        // Before the watchdog, which starts threads as well when some are missing: there would be one too many.
        threads.handle.pool.fill()?;
        watchdog::start(&threads.handle.pool)?;
        Ok(threads)
    }

    /// Runs `job` on a plugin thread, after those that were given before. A job that nobody waits for any more when its
    /// turn comes is not begun.
    ///
    /// # Errors
    /// [`RunError`]. After [`RunError::Abandoned`] the job may still run on, to no effect but its own.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&Worker) -> T + Send + 'static) -> Result<T, RunError> {
        let (answer, answered) = oneshot::channel();
        self.handle.pool.give(Job::new(answer, job));
        answered.await.unwrap_or(Err(RunError::Closed))
    }

    /// Has `hook` told of every call that is given up, whoever waits for it, before they are told. Once.
    pub fn on_given_up(&self, hook: impl Fn(&Caller, Duration) + Send + Sync + 'static) {
        self.handle.pool.on_given_up(Box::new(hook));
    }

    /// Threads that hang in abandoned calls now.
    pub fn leaked(&self) -> usize {
        self.handle.pool.leaked()
    }

    /// Those of them that hang in `plugin`.
    pub fn leaked_by(&self, plugin: &str) -> usize {
        self.handle.pool.leaked_by(plugin)
    }

    /// Whether plugins in which a thread hangs are not entered any more, because too many do.
    pub fn is_exhausted(&self) -> bool {
        self.handle.pool.is_exhausted()
    }
}

#[cfg(test)]
mod tests;

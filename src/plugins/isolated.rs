//! A plugin in processes of its own, for those who want the safety more than the speed.
//!
//! ```text
//! plugin thread --frame--> ingestion-engine plugins host LIBRARY: Library, Instance, as they are in this process
//!               <--frame-- verdicts | a fault; what it has counted          (one call at a time)
//!     log       <--lines-- what it logs and prints
//! ```
//!
//! - Whatever a plugin does to its process costs one call: a crash, an end, a hang (it is killed), memory beyond its limit,
//!   and bytes that make no sense. What comes back is judged as if the plugin had returned it in this process.
//! - Processes are started when they are needed, as many as there are calls at once, which the number of plugin threads
//!   bounds; then they stay. One that is lost is replaced at the next call, later and later when they die before their first
//!   answer.
//! - The deadline counts the time of the process's main thread, without its waiting for a processor, as for threads. A call
//!   that needs a new process waits for its start first.
//! - No thread is leaked, and no crash slot is needed: the engine is never in the plugin's code.
//! - Not a sandbox: the process may do to the machine what the engine's user may.

use std::{
    io,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;

use super::{
    call::{Backend, Call, Fault, Verdict},
    host::Host,
    instance::{HEALTH_DEADLINE, LIFECYCLE_DEADLINE, Limits},
    threads::{Caller, Worker},
};
use crate::metrics::{Metrics, PluginLabels};

mod child;
mod frame;
mod log;
mod process;

pub use child::host_main;
use frame::{Change, Kind, Reader, Start};
use process::{Broken, Process};

/// Bytes of the answer to a start or a question for health: words, and series.
const SHORT_ANSWER: usize = 64 << 10;

/// Wait before the third start in a row of a process that dies before its first answer; doubled for each further one. The
/// second start is made at once, because anybody may have bad luck.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Longest such wait.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// What an isolated plugin is made of.
pub struct Settings {
    /// This engine's program.
    pub program: PathBuf,
    /// The plugin's library, a private copy.
    pub library: PathBuf,
    /// Its name and its file's sum.
    pub caller: Caller,
    /// Its configuration, a JSON object.
    pub config: String,
    /// What it may return.
    pub limits: Limits,
    /// Memory that each of its processes may use beyond what an empty one has, bytes of address space.
    pub memory_bytes: u64,
    /// Where it counts.
    pub host: Host,
}

/// Why a plugin's process was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system refused.
    #[error("cannot start a process for the plugin")]
    Io(#[from] io::Error),
    /// The library cannot be used, or the plugin does not want to run.
    #[error("{message}")]
    Refused {
        /// In words.
        message: String,
    },
    /// The process ended while the plugin started.
    #[error("its process ended while it started: {how}")]
    Ended {
        /// Exit status or signal.
        how: String,
    },
    /// The plugin did not come back.
    #[error("it did not start within {LIFECYCLE_DEADLINE:?}")]
    Hung,
    /// The process is not what it should be.
    #[error("its process said what makes no sense while it started: {problem}")]
    Garbled {
        /// What.
        problem: String,
    },
    /// It has failed too often.
    #[error(
        "its process has died {streak} times in a row before its first answer, the last time: {how}; it is started again in {wait:?}"
    )]
    Waiting {
        /// How often.
        streak: u32,
        /// How the last one ended.
        how: String,
        /// When it may be tried again.
        wait: Duration,
    },
}

impl From<Broken> for StartError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Late => Self::Hung,
            Broken::Ended(how) => Self::Ended { how },
            Broken::Garbage(problem) => Self::Garbled { problem },
        }
    }
}

/// A plugin that runs in processes of its own. Dropping it ends them.
pub struct Isolated {
    settings: Settings,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    /// The one that was used last is used first.
    idle: Mutex<Vec<Process>>,
    deaths: Mutex<Deaths>,
    /// What a start may take in the middle of a request.
    restart_limit: Duration,
    calls: Histogram,
}

impl Isolated {
    /// Starts the first process. Blocking, for up to [`LIFECYCLE_DEADLINE`].
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(settings: Settings, metrics: &Metrics) -> Result<Self, StartError> {
        let (program, library) = (settings.program.clone(), settings.library.clone());
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["plugins", "host"]).arg(&library);
            command
        };
        Self::start_with(Box::new(command), settings, metrics)
    }

    /// Starts processes with `command`, which calls [`host_main`].
    fn start_with(
        command: Box<dyn Fn() -> Command + Send + Sync>,
        settings: Settings,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let calls = metrics.plugin_calls.get_or_create(&PluginLabels::of(&settings.caller.plugin)).clone();
        let (idle, deaths, restart_limit) = (Mutex::default(), Mutex::default(), LIFECYCLE_DEADLINE);
        let mut isolated = Self { settings, command, idle, deaths, restart_limit, calls };
        let began = Instant::now();
        let first = isolated.begin(LIFECYCLE_DEADLINE)?;
        isolated.restart_limit = restart_limit_after(began.elapsed());
        isolated.idle.lock().push(first);
        Ok(isolated)
    }

    /// A process that waits for a call.
    fn process(&self) -> Result<Process, Fault> {
        while let Some(mut process) = { self.idle.lock().pop() } {
            let Some(how) = process.over() else { return Ok(process) };
            let plugin = &*self.settings.caller.plugin;
            tracing::warn!(plugin, how, "a plugin's process ended while it had nothing to do; another one is started");
            self.died(&process, how);
        }
        self.deaths.lock().may_start(Instant::now()).map_err(|error| Fault::Waiting { why: error.to_string() })?;
        let started = self.begin(self.restart_limit);
        self.deaths.lock().started(Instant::now(), started.as_ref().err());
        started.map_err(|error| Fault::Crashed { how: crate::error_chain::chain(&error) })
    }

    fn begin(&self, limit: Duration) -> Result<Process, StartError> {
        let Settings { caller, config, limits, memory_bytes, .. } = &self.settings;
        let mut process = Process::spawn((self.command)(), &caller.plugin)?;
        let start = Start {
            level: log::levels(),
            memory: *memory_bytes,
            event_bytes: limits.event_bytes,
            plugin: &caller.plugin,
            sha256: &caller.sha256,
            config,
        };
        start.write(&mut process.out);
        let started = process.exchange(limit, SHORT_ANSWER).and_then(|(kind, body)| {
            let mut body = Reader::new(body);
            self.count(&mut body)?;
            match kind {
                Kind::Ready => {
                    body.end()?;
                    Ok(Ok(()))
                }
                Kind::Refused => Ok(Err(StartError::Refused { message: body.words()? })),
                _ => Err(unasked()),
            }
        });
        match started {
            Ok(Ok(())) => {
                // The start is no call.
                process.answered = 0;
                Ok(process)
            }
            Ok(Err(refused)) => Err(refused),
            Err(broken) => {
                process.finish();
                Err(broken.into())
            }
        }
    }

    /// Asks with the frame that `write` makes, and reads the answer with `read`.
    fn ask<T>(
        &self,
        limit: Duration,
        most: usize,
        write: impl FnOnce(&mut frame::Writer),
        read: impl FnOnce(Kind, Reader<'_>) -> Result<T, Broken>,
    ) -> Result<T, Fault> {
        let mut process = self.process()?;
        write(&mut process.out);
        let answer = process.exchange(limit, most).and_then(|(kind, body)| {
            let mut body = Reader::new(body);
            self.count(&mut body)?;
            read(kind, body)
        });
        match answer {
            Ok(answer) => {
                self.deaths.lock().answered();
                self.idle.lock().push(process);
                Ok(answer)
            }
            Err(broken) => {
                process.finish();
                let (fault, how) = match broken {
                    Broken::Late => (Fault::Deadline { limit }, "it did not answer in time".to_owned()),
                    Broken::Ended(how) => (Fault::Crashed { how: how.clone() }, how),
                    Broken::Garbage(problem) => (Fault::BadOutput { problem: problem.clone() }, problem),
                };
                self.died(&process, how);
                Err(fault)
            }
        }
    }

    /// A process is lost. Only one that never answered counts towards waiting.
    fn died(&self, process: &Process, how: String) {
        if process.answered == 0 {
            self.deaths.lock().died(Instant::now(), how);
        }
    }

    fn count(&self, answer: &mut Reader<'_>) -> Result<(), Broken> {
        for (name, change) in frame::read_changes(answer)? {
            match change {
                Change::Counted(by) => self.settings.host.count(name, by),
                Change::Set(value) => self.settings.host.gauge(name, value),
            }
        }
        Ok(())
    }
}

/// An answer to another question.
fn unasked() -> Broken {
    Broken::Garbage("its answer is to another question".to_owned())
}

impl Backend for Isolated {
    fn process(&self, _worker: &Worker, call: &Call<'_>, deadline: Duration) -> Result<Vec<Verdict>, Fault> {
        let limits = self.settings.limits;
        let input = call.events.iter().map(|event| event.json.len()).sum();
        let events = call.events.len();
        let began = Instant::now();
        let outcome = self.ask(
            deadline,
            frame::most_bytes(limits, events, input),
            |to| frame::write_call(to, call),
            |kind, body| match kind {
                // What the plugin may not return was refused by the process: it is not the plugin's process any more.
                Kind::Verdicts => frame::read_verdicts_of(body, events, input, limits)?
                    .map(Ok)
                    .map_err(|fault| Broken::Garbage(fault.to_string())),
                Kind::Failed => Ok(Err(frame::read_fault(body)?)),
                _ => Err(unasked()),
            },
        );
        self.calls.observe(began.elapsed().as_secs_f64());
        outcome?
    }

    fn health(&self, _worker: &Worker) -> Result<(), String> {
        let read = |kind, mut body: Reader<'_>| match kind {
            Kind::Healthy => Ok(Ok(())),
            Kind::Ill => Ok(Err(body.words()?)),
            _ => Err(unasked()),
        };
        let write = |to: &mut frame::Writer| {
            to.begin(Kind::Health);
        };
        self.ask(HEALTH_DEADLINE, SHORT_ANSWER, write, read).unwrap_or_else(|fault| Err(fault.to_string()))
    }
}

/// What a start may take in the middle of a request, given what the first one took: a plugin that needs longer than it used to
/// hangs, and requests wait for it.
fn restart_limit_after(first: Duration) -> Duration {
    (first * 3).clamp(Duration::from_secs(1), LIFECYCLE_DEADLINE)
}

/// Processes that died before their first answer, in a row.
#[derive(Default)]
struct Deaths {
    streak: u32,
    /// When the next one may be started.
    wait_until: Option<Instant>,
    /// After a death one is started at a time: others would only hang or die beside it, each on a thread that requests wait
    /// for.
    starting: bool,
    how: String,
}

impl Deaths {
    fn died(&mut self, now: Instant, how: String) {
        self.streak = self.streak.saturating_add(1);
        self.how = how;
        self.wait_until = self
            .streak
            .checked_sub(2)
            .map(|doublings| now + FIRST_WAIT.saturating_mul(2_u32.saturating_pow(doublings)).min(LAST_WAIT));
    }

    fn answered(&mut self) {
        (self.streak, self.wait_until) = (0, None);
    }

    /// Whether one may be started now; it is then to be told with [`Self::started`] how that went.
    fn may_start(&mut self, now: Instant) -> Result<(), StartError> {
        let wait = self.wait_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        // The first death may be an accident, and those who come meanwhile need processes of their own.
        let alone = self.streak > 1;
        if !wait.is_zero() || alone && self.starting {
            return Err(StartError::Waiting { streak: self.streak, how: self.how.clone(), wait });
        }
        self.starting = alone;
        Ok(())
    }

    /// A start has ended.
    fn started(&mut self, now: Instant, error: Option<&StartError>) {
        self.starting = false;
        if let Some(error) = error {
            self.died(now, error.to_string());
        }
    }
}

#[cfg(test)]
mod tests;

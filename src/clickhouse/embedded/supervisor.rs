//! Starts the child, watches it, restarts it.
//!
//! ```text
//!            start            ready line + /ping with the nonce
//!   (nothing) ───> starting ────────────────────────────────────> running ──┐
//!                    │ ^                                                    │ exits, or answers no ping
//!                    │ └────────── back-off, capped, jittered <─────────────┤ for a while: killed
//!                    v                                                      │
//!               first start only: an error                                  stop: SIGTERM, wait, kill, reap
//! ```

mod launch;
mod log;
mod ping;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::launch::{LaunchError, Running};
use crate::{health::Component, metrics::Metrics};

/// First pause before a restart; it doubles with every start that fails or does not last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause before a restart: the sink waits, so it should not be long.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A child that lived as long counts as healthy: the next pause is the first one again.
const LASTED: Duration = Duration::from_mins(1);

/// Starts that may end by a signal before the first start counts as failed. (A reason given by the child counts at once.)
const FIRST_ATTEMPTS: u32 = 3;

/// How often a running child is asked.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How long a child may answer nothing. Its answer needs no disk and no engine, only a thread's turn, so this is long
/// for a machine under full load and short for whoever waits for rows.
const HUNG: Duration = Duration::from_secs(15);

/// The least that one ping may take: after a pause of this process itself the child must get a chance to answer.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// How long an orderly end may take: the child's own limits (18 s for requests) and the engine's closing.
const STOPPING: Duration = Duration::from_secs(25);

/// What the supervisor starts.
#[derive(Clone, Debug)]
pub struct SupervisorSettings {
    /// The program with the `clickhouse` subcommand: this binary.
    pub program: PathBuf,
    /// Folder of the tables.
    pub path: PathBuf,
    /// Port on 127.0.0.1; 0: chosen by the system at the first start, and kept for every restart.
    pub port: u16,
    /// libchdb.so; None: the one in the user's cache folder.
    pub library: Option<PathBuf>,
}

/// Why the first start failed.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The program could not be started at all.
    #[error("cannot start {} as the embedded ClickHouse", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The child said why it cannot run.
    #[error("the embedded ClickHouse cannot start: {reason}")]
    Refused {
        /// The child's words.
        reason: String,
    },
    /// The child ended, or never became ready, and did not say why.
    #[error("the embedded ClickHouse did not start: {reason}")]
    Died {
        /// What was seen of its end.
        reason: String,
    },
}

/// A child that is kept running. Dropped without [`Supervisor::stop`], it ends the child by closing its pipe.
pub struct Supervisor {
    port: u16,
    pid: Arc<AtomicU32>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the child and waits until it answers. From then on it is watched and restarted until [`Supervisor::stop`].
    ///
    /// # Errors
    /// What trying again will not mend: the program or the library is missing, the port is taken, the path is in use.
    /// (Once it has run, the same is reported to `health` and tried again.)
    pub async fn start(
        settings: SupervisorSettings,
        health: Component,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SupervisorError> {
        let mut attempts = 0;
        let running = loop {
            attempts += 1;
            match launch::launch(&settings, settings.port).await {
                Ok(running) => break running,
                Err(LaunchError::Spawn(source)) => {
                    return Err(SupervisorError::Spawn { program: settings.program, source });
                }
                Err(LaunchError::Refused(reason)) => return Err(SupervisorError::Refused { reason }),
                Err(LaunchError::Died(reason)) if attempts >= FIRST_ATTEMPTS => {
                    return Err(SupervisorError::Died { reason });
                }
                Err(LaunchError::Died(reason)) => {
                    let pause = pause_after(attempts);
                    health.down(format!("the embedded ClickHouse did not start: {reason}"));
                    tokio::time::sleep(pause).await;
                }
            }
        };
        let port = running.port;
        let pid = Arc::new(AtomicU32::new(running.pid().unwrap_or(0)));
        let stop = CancellationToken::new();
        metrics.clickhouse_starts.inc();
        health.up();
        let keeper = Keeper { settings, port, pid: Arc::clone(&pid), stop: stop.clone(), health, metrics };
        let task = tokio::spawn(keeper.keep(running));
        Ok(Self { port, pid, stop, task })
    }

    /// Where queries are answered; the same for every restart.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The child's process id, while there is one.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// Ends the child: asks it to, waits (up to 25 s), kills it if need be; one that answers no ping at once.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the supervisor of the embedded ClickHouse failed");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The task behind a [`Supervisor`].
struct Keeper {
    settings: SupervisorSettings,
    port: u16,
    pid: Arc<AtomicU32>,
    stop: CancellationToken,
    health: Component,
    metrics: Arc<Metrics>,
}

impl Keeper {
    async fn keep(self, first: Running) {
        let mut running = first;
        loop {
            let started = tokio::time::Instant::now();
            let reason = tokio::select! {
                reason = watch(&mut running) => reason,
                () = self.stop.cancelled() => {
                    self.health.down("stopped");
                    // One that is frozen would not hear that it is to end.
                    match ping::ping(running.port, &running.nonce, PING_PATIENCE).await {
                        Ok(()) => running.end(STOPPING).await,
                        Err(error) => {
                            tracing::warn!(%error, "the embedded ClickHouse does not answer and is killed");
                            running.kill().await;
                        }
                    }
                    self.pid.store(0, Ordering::Relaxed);
                    return;
                }
            };
            self.pid.store(0, Ordering::Relaxed);
            self.metrics.error("clickhouse");
            let lasted = started.elapsed() >= LASTED;
            match self.restart(reason, u32::from(!lasted)).await {
                Some(again) => running = again,
                None => return,
            }
        }
    }

    /// Starts again until it works. `cause`: why there is no child. None: told to stop.
    async fn restart(&self, cause: String, mut failures: u32) -> Option<Running> {
        self.health.down(format!("{cause}; starting again"));
        loop {
            let pause = if failures == 0 { FIRST_PAUSE } else { pause_after(failures) };
            let attempt = async {
                tokio::time::sleep(pause).await;
                launch::launch(&self.settings, self.port).await
            };
            let launched = tokio::select! {
                launched = attempt => launched,
                () = self.stop.cancelled() => return None,
            };
            match launched {
                Ok(running) => {
                    self.pid.store(running.pid().unwrap_or(0), Ordering::Relaxed);
                    self.metrics.clickhouse_starts.inc();
                    self.health.up();
                    return Some(running);
                }
                Err(error) => {
                    self.metrics.error("clickhouse");
                    self.health.down(format!("{cause}; it did not start again: {error}"));
                    failures = failures.saturating_add(1);
                }
            }
        }
    }
}

/// Returns when the child is gone, with what happened to it.
async fn watch(running: &mut Running) -> String {
    let (port, nonce) = (running.port, running.nonce.clone());
    let silent = async {
        let mut heard = tokio::time::Instant::now();
        let mut every = tokio::time::interval(PING_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match ping::ping(port, &nonce, HUNG.saturating_sub(heard.elapsed()).max(PING_PATIENCE)).await {
                Ok(()) => heard = tokio::time::Instant::now(),
                Err(error) if heard.elapsed() >= HUNG => return error,
                Err(error) => tracing::debug!(%error, "the embedded ClickHouse did not answer"),
            }
        }
    };
    let error = tokio::select! {
        ended = running.ended() => return ended,
        error = silent => error,
    };
    running.kill().await;
    format!("the embedded ClickHouse hung and was killed: no answer for {} s ({error})", HUNG.as_secs())
}

/// The pause after `failures` starts that did not last: doubled each time, capped, and less a random part of up to half,
/// so that several engines on one machine do not start in step.
fn pause_after(failures: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap() {
        for failures in 0..40 {
            let pause = pause_after(failures);
            assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE, "{failures}: {pause:?}");
        }
        assert!(pause_after(20) >= LONGEST_PAUSE / 2);
    }
}

//! A load that is followed while it runs, and the check at its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{bail, ensure};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    client::{self, Plan, Seen},
    stats::real,
    verify::{Baseline, ClickHouse},
};

/// Between looks at how many rows are stored.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long everything may take to be stored after the load has ended.
pub const DRAIN: Duration = Duration::from_secs(900);
/// How long the first row may take.
pub const FIRST_ROW: Duration = Duration::from_secs(60);

/// A load beside which something else is done. It ends with its handle, also when the measurement fails.
pub struct Sending {
    pub plan: Arc<Plan>,
    pub task: JoinHandle<anyhow::Result<Seen>>,
}

impl Sending {
    pub fn start(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        let sent = Arc::clone(&plan);
        Self { plan, task: tokio::spawn(async move { client::send(&sent).await }) }
    }

    /// Where a measurement begins and ends that takes `duration` and begins `warm_up` after the first row is stored. With a
    /// broker the group's first join comes before that.
    pub async fn measure(
        &self,
        clickhouse: &ClickHouse,
        warm_up: Duration,
        duration: Duration,
    ) -> anyhow::Result<(Sample, Sample)> {
        let Self { plan, task } = self;
        while Sample::now(plan, clickhouse).await?.stored == 0 {
            ensure!(plan.start.elapsed() < FIRST_ROW && !task.is_finished(), "nothing is stored");
            sleep(LOOK).await;
        }
        let from = sample_until(plan, clickhouse, Instant::now() + warm_up).await?;
        let to = sample_until(plan, clickhouse, from.at + duration).await?;
        Ok((from, to))
    }

    /// Ends the load and waits for the answers that are due.
    pub async fn stop(&mut self) -> anyhow::Result<Seen> {
        self.plan.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.plan.stop.store(true, Ordering::Relaxed);
    }
}

/// Events acknowledged a second.
pub fn rate_of(plan: &Plan, seen: &Seen) -> f64 {
    let elapsed = seen.last.unwrap_or(plan.start) - plan.start;
    real(plan.acknowledged.load(Ordering::Relaxed)) / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// Waits until everything is stored, and checks that all of it is, once.
pub async fn settle(clickhouse: &ClickHouse, seen: &mut Seen) -> anyhow::Result<()> {
    let deadline = Instant::now() + DRAIN;
    clickhouse.wait(Baseline::default(), &seen.events, deadline).await?;
    check(clickhouse, seen, deadline).await
}

/// Checks that everything that was acknowledged is stored, once.
pub async fn check(clickhouse: &ClickHouse, seen: &mut Seen, deadline: Instant) -> anyhow::Result<()> {
    ensure!(!seen.events.is_empty(), "nothing was acknowledged: {:?} {:?}", seen.statuses, seen.samples);
    let verdict = clickhouse.verify(Baseline::default(), &mut seen.events, deadline).await?;
    if !verdict.is_right() {
        verdict.print();
        bail!("not every acknowledged event is stored once");
    }
    ensure!(
        seen.odd_answers == 0 && seen.rejected.is_empty() && seen.unanswered == 0,
        "{} answers that cannot be right, {} requests without an answer, rejected: {:?} {:?}",
        seen.odd_answers,
        seen.unanswered,
        seen.rejected,
        seen.samples
    );
    if seen.statuses.keys().any(|status| *status != 200) {
        eprintln!("  statuses {:?}, {} requests given up: {:?}", seen.statuses, seen.failed, seen.samples);
    }
    eprintln!("  {} events, each stored once", seen.events.len());
    Ok(())
}

/// How far the load and ClickHouse are at a moment.
#[derive(Clone, Copy)]
pub struct Sample {
    pub at: Instant,
    pub acknowledged: u64,
    pub stored: u64,
}

impl Sample {
    /// Looks, and tells the load how much is stored.
    pub async fn now(plan: &Plan, clickhouse: &ClickHouse) -> anyhow::Result<Self> {
        let stored = clickhouse.rows().await?;
        plan.stored(stored);
        Ok(Self { at: Instant::now(), acknowledged: plan.acknowledged.load(Ordering::Relaxed), stored })
    }
}

/// Looks again and again, so that the load knows its backlog. The last look is the first one after `end` that finds more
/// than the one before: rows come by the insert, and a measurement is from one insert's end to another's.
async fn sample_until(plan: &Plan, clickhouse: &ClickHouse, end: Instant) -> anyhow::Result<Sample> {
    let mut before = Sample::now(plan, clickhouse).await?;
    loop {
        sleep(LOOK).await;
        let sample = Sample::now(plan, clickhouse).await?;
        if sample.at >= end && sample.stored > before.stored {
            return Ok(sample);
        }
        ensure!(sample.at < end + FIRST_ROW, "nothing more is stored");
        before = sample;
    }
}

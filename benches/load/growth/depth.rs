//! A deep log: what the next events cost, what it holds in memory, and how long a killed engine takes to be ready again.
//!
//! The log is filled with large events that no compressor shrinks, because ten gigabytes of usual ones would be a quarter of a
//! billion; the load that is measured is the usual one. Up to `--store-up-to` ClickHouse comes back at the end, and every event
//! is looked for. Above that it would take as much again of time and several times as much of disk: there the ledger has to
//! balance, while ClickHouse takes what it can, and to count in log and tables exactly what was acknowledged.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use load::{
    body::Shape,
    client::{self, Load, Outcome, Plan, Seen},
    rig::{Rig, Sink},
    sending::{DRAIN, LOOK, Sending, rate_of, settle},
    stats::{Memory, real},
};
use rustix::fs::statvfs;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    measure::{Figures, latency, load_of},
    options::Options,
    points::Point,
};

/// Room that every point needs beside a deep log, and that is left alone.
const SPARE: u64 = 6_000_000_000;
/// Bytes of an event that fills the log, events of a request, and connections that send them.
const FILLER: (usize, u64, u64) = (16_000, 20, 16);
/// How many times the engine is killed.
const KILLS: usize = 3;
/// Load between two kills.
const AGAIN: Duration = Duration::from_secs(1);

/// Why there is no room for a point.
pub fn no_room(options: &Options, point: &Point) -> anyhow::Result<Option<String>> {
    let depth = point.depth.unwrap_or(0);
    // What is stored is there again, and once more or twice until old parts go.
    let times = if depth <= options.store_up_to { 5 } else { 2 };
    let need = depth * times + SPARE;
    let stat = statvfs(&options.dir).with_context(|| format!("cannot look at {}", options.dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    Ok((free < need).then(|| format!("{:.0} GB are free, {:.0} needed", real(free) / 1e9, real(need) / 1e9)))
}

/// Measures a log of `depth` bytes.
pub async fn measure(options: &Options, program: &Path, point: &Point, depth: u64) -> anyhow::Result<Figures> {
    let room = ("INGESTION_WAL_MAX_DISK_BYTES", (depth + SPARE).to_string());
    let mut rig = Rig::new(options.setup(program, point.tenants, vec![room]), Sink::Apart)?;
    rig.start_engine().await?;
    let mut seen = Seen::new()?;
    if depth > 0 {
        seen.merge(fill(options, point, &rig, depth).await?)?;
    }
    let engine = rig.engine().context("no engine")?;
    let (before, log_before, metrics_before) = (rig.spent(), rig.wal_bytes(), rig.metrics().await?);
    let (threads_before, _) = rig.threads();
    let plan = Arc::new(Plan::new(rig.api, load_of(options, point)));
    let measured = client::send(&plan).await?;
    let ((threads, _), spent, metrics) = (rig.threads(), rig.spent().since(before), rig.metrics().await?);
    let memory = Memory::now(engine).context("the engine is gone")?;
    let events = real(measured.events.len() as u64);
    ensure!(events > 0.0, "nothing was acknowledged: {:?} {:?}", measured.statuses, measured.samples);
    let of = |name: &str| (metrics.of(name) - metrics_before.of(name)) / events;
    let mut figures = vec![
        ("rate", rate_of(&plan, &measured)),
        ("engine_cpu", spent.engine * 1e6 / events),
        ("writer_thread", threads.busiest(&threads_before, "wal-writer") * 1e6 / events),
        ("depth_gb", real(log_before) / 1e9),
        ("memory", memory.now),
        ("body_bytes", of("ingestion_request_body_bytes_total")),
        ("log_bytes", of("ingestion_wal_committed_bytes_total")),
        ("log_disk_bytes", real(rig.wal_bytes().saturating_sub(log_before)) / events),
        ("refused", real(measured.retries)),
    ];
    figures.extend(latency(&measured));
    seen.merge(measured)?;
    figures.push(("killed_gb", real(rig.wal_bytes()) / 1e9));
    for kill in 0..KILLS {
        if kill > 0 {
            // A log that nobody wrote to since the last start has nothing to recover.
            let again = Load { duration: AGAIN, ..load_of(options, point) };
            seen.merge(client::send(&Arc::new(Plan::new(rig.api, again))).await?)?;
        }
        rig.kill_engine()?;
        figures.push(("ready", rig.time_to_ready().await?.as_secs_f64()));
        let engine = rig.engine().context("no engine")?;
        figures.push(("memory_started", Memory::now(engine).context("the engine is gone")?.now));
    }
    eprintln!("  {:.2} GB in the log; {:.2?}", real(rig.wal_bytes()) / 1e9, figures);
    rig.start_clickhouse().await?;
    if depth <= options.store_up_to {
        settle(&rig.clickhouse()?, &mut seen).await?;
    } else {
        balance(&rig, &seen).await?;
    }
    rig.stop().await?;
    Ok(figures)
}

/// Fills the log.
async fn fill(options: &Options, point: &Point, rig: &Rig, depth: u64) -> anyhow::Result<Seen> {
    let (bytes, batch, connections) = FILLER;
    let shape = Shape { bytes: Some(bytes), noise: true, ..Shape::default() };
    let load = Load { duration: DRAIN, batch, connections, shape, ..load_of(options, point) };
    let begun = Instant::now();
    let mut sending = Sending::start(Plan::new(rig.api, load));
    while rig.wal_bytes() < depth && !sending.task.is_finished() {
        sleep(LOOK).await;
    }
    let seen = sending.stop().await?;
    ensure!(
        rig.wal_bytes() >= depth,
        "only {} bytes came into the log in {DRAIN:?}: {:?}",
        rig.wal_bytes(),
        seen.samples
    );
    eprintln!("  filled with {:.2} GB in {:.0} s", real(rig.wal_bytes()) / 1e9, begun.elapsed().as_secs_f64());
    Ok(seen)
}

/// Checks that the ledger balances and counts, in the log and in ClickHouse, what was acknowledged.
async fn balance(rig: &Rig, seen: &Seen) -> anyhow::Result<()> {
    let ledger = rig.ledger().await?;
    let total = |name: &str| ledger.pointer(&format!("/total/{name}")).and_then(Value::as_u64).unwrap_or(0);
    let acknowledged = seen.events.iter().filter(|event| event.outcome == Outcome::Acknowledged).count() as u64;
    ensure!(
        ledger.pointer("/balanced") == Some(&Value::Bool(true))
            && seen.unanswered == 0
            && total("received") == acknowledged
            && total("in_wal") + total("stored") == acknowledged,
        "the ledger does not have the {acknowledged} acknowledged events: {ledger}"
    );
    eprintln!("  {acknowledged} events by the ledger, {} in the log, {} stored", total("in_wal"), total("stored"));
    Ok(())
}

//! A point: load, what it cost each process, and the check that every acknowledged event is stored once.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use load::{
    client::{Load, Plan, Seen},
    rig::{Rig, Sink},
    sending::{DRAIN, FIRST_ROW, Sending, check},
    stats::{self, Memory, real},
    verify::{Baseline, ClickHouse},
};
use tokio::time::{Instant, sleep};

use crate::{
    depth,
    options::Options,
    points::{Point, SESSIONS},
};

/// Names and values.
pub type Figures = Vec<(&'static str, f64)>;

/// How long nothing is sent before the load, to see what nothing costs.
const IDLE: Duration = Duration::from_secs(1);
/// Most bytes of events that are acknowledged and not stored: well below what the log may take.
const BACKLOG_BYTES: u64 = 250_000_000;

/// Measures one point.
pub async fn measure(options: &Options, program: &Path, point: &Point) -> anyhow::Result<Figures> {
    match point.depth {
        Some(depth) => depth::measure(options, program, point, depth).await,
        None => end_to_end(options, program, point).await,
    }
}

/// The load of a point, as fast as it is answered.
pub fn load_of(options: &Options, point: &Point) -> Load {
    Load {
        tenants: point.tenants,
        sessions: SESSIONS.max(usize::try_from(point.tenants).unwrap_or(usize::MAX)),
        connections: point.connections,
        batch: point.batch,
        rate: 0,
        requests: u64::MAX,
        duration: options.duration(),
        warm_up: Duration::ZERO,
        backlog: u64::MAX,
        shape: point.shape,
    }
}

/// Accepted and stored, with a backlog that does not grow. The cost is of everything from the first request until the last
/// event is stored; the rate is of the time between.
async fn end_to_end(options: &Options, program: &Path, point: &Point) -> anyhow::Result<Figures> {
    let mut settings = Vec::new();
    if let Some(partitions) = point.partitions {
        settings.push(("INGESTION_REDPANDA_PARTITIONS", partitions.to_string()));
    }
    let sink = if point.partitions.is_some() { Sink::Split } else { Sink::Embedded };
    let mut rig = Rig::new(options.setup(program, point.tenants, settings), sink)?;
    rig.start_engine().await?;
    let clickhouse = Arc::new(rig.clickhouse()?);
    let engine = rig.engine().context("no engine")?;
    let memory_idle = Memory::now(engine).context("the engine is gone")?;
    let idle_from = rig.spent();
    sleep(IDLE).await;
    let (idle, metrics_before, before) = (rig.spent().since(idle_from), rig.metrics().await?, rig.spent());
    let (wire_before, threads_before) = (rig.broker_bytes(), rig.threads());

    let size = point.shape.bytes.map_or(330, |bytes| bytes as u64);
    let load = Load {
        duration: options.duration() + Duration::from_secs(options.warm_up) + 3 * FIRST_ROW,
        backlog: options.backlog.min(BACKLOG_BYTES / size),
        ..load_of(options, point)
    };
    let generator = stats::cpu_of(std::process::id()).unwrap_or(0.0);
    let mut sending = Sending::start(Plan::new(rig.api, load));
    let plan = Arc::clone(&sending.plan);
    let warm_up = Duration::from_secs(options.warm_up);
    let (from, to) = sending.measure(&clickhouse, warm_up, options.duration()).await?;
    let mut seen = sending.stop().await?;
    let generator = stats::cpu_of(std::process::id()).unwrap_or(0.0) - generator;
    let deadline = Instant::now() + DRAIN;
    clickhouse.wait(Baseline::default(), &seen.events, deadline).await?;
    // Before the check, which is no part of an engine's work.
    let spent = rig.spent().since(before);
    let took = plan.start.elapsed().as_secs_f64();
    let memory = Memory::now(engine).context("the engine is gone")?;
    let (wire, threads) = (rig.broker_bytes(), rig.threads());
    let stored = stored(&clickhouse).await?;
    check(&clickhouse, &mut seen, deadline).await?;
    // By now the last insert is counted too, whose rows may be seen before its answer is.
    let metrics = rig.metrics().await?;
    rig.stop().await?;

    let seconds = (to.at - from.at).as_secs_f64();
    let rate = real((to.acknowledged - from.acknowledged).min(to.stored - from.stored)) / seconds;
    let events = real(seen.events.len() as u64);
    let of = |name: &str| metrics.of(name) - metrics_before.of(name);
    let million = events / 1e6;
    let mut figures = vec![
        ("rate", rate),
        ("engine_cpu", spent.engine / million),
        ("clickhouse_cpu", spent.clickhouse / million),
        ("generator_cpu", generator / million),
        ("writer_thread", threads.0.busiest(&threads_before.0, "wal-writer") / million),
        ("idle_engine_cores", idle.engine / IDLE.as_secs_f64()),
        ("idle_clickhouse_cores", idle.clickhouse / IDLE.as_secs_f64()),
        ("memory_idle", memory_idle.now),
        ("memory", memory.most),
        ("body_bytes", of("ingestion_request_body_bytes_total") / events),
        ("log_bytes", of("ingestion_wal_committed_bytes_total") / events),
        ("commits", of("ingestion_wal_commits_total") / took),
        ("inserts", of("ingestion_sink_inserts_total") / took),
        ("rows_per_insert", events / of("ingestion_sink_inserts_total").max(1.0)),
        ("stored_bytes", stored.bytes / events),
        ("parts", stored.parts),
        ("view_rows", stored.view_rows / events),
        ("tenants_seen", tenants_of(&seen)),
        ("refused", real(seen.retries)),
    ];
    figures.extend(latency(&seen));
    if sink == Sink::Split {
        figures.push(("sink_cpu", spent.sink / million));
        figures.push(("broker_cpu", spent.broker / million));
        figures.push(("messages", of("ingestion_relay_messages_total") / events));
        figures.push(("relay_thread", threads.0.busiest(&threads_before.0, "relay-worker") / million));
        figures.push(("poll_thread", threads.1.busiest(&threads_before.1, "source-poll") / million));
        figures.push(("bytes_to_broker", real(wire.0 - wire_before.0) / events));
        figures.push(("bytes_from_broker", real(wire.1 - wire_before.1) / events));
    }
    let show = |name: &str| figures.iter().find(|(key, _)| *key == name).map_or(0.0, |(_, value)| *value);
    eprintln!(
        "  {rate:.0} events/s, CPU a million: engine {:.2}, sink {:.2}, ClickHouse {:.2}; {:.0} rows an insert",
        show("engine_cpu"),
        show("sink_cpu"),
        show("clickhouse_cpu"),
        show("rows_per_insert"),
    );
    Ok(figures)
}

/// Time to the acknowledgement, in milliseconds.
pub fn latency(seen: &Seen) -> [(&'static str, f64); 2] {
    let millis = |quantile| real(seen.latency.value_at_quantile(quantile)) / 1000.0;
    [("ack_p50", millis(0.5)), ("ack_p99", millis(0.99))]
}

fn tenants_of(seen: &Seen) -> f64 {
    let tenants: std::collections::BTreeSet<u32> = seen.events.iter().map(|event| event.tenant).collect();
    real(tenants.len() as u64)
}

/// What ClickHouse's tables take.
struct Stored {
    bytes: f64,
    parts: f64,
    /// Of the tables that are not `events`: what the views keep.
    view_rows: f64,
}

/// Of the active parts of all tables, views' included.
async fn stored(clickhouse: &ClickHouse) -> anyhow::Result<Stored> {
    let query = "SELECT sum(bytes_on_disk), count(), sumIf(rows, table IN ('events_per_minute', 'page_views_daily', \
                 'web_vitals_daily')) FROM system.parts WHERE active AND database = 'overwatch' FORMAT TSV";
    let answer = clickhouse.ask(query.to_owned()).await?;
    let text = String::from_utf8_lossy(&answer);
    let numbers: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    match numbers?.as_slice() {
        [bytes, parts, view_rows] => Ok(Stored { bytes: *bytes, parts: *parts, view_rows: *view_rows }),
        _ => bail!("ClickHouse does not know its parts: {text}"),
    }
}

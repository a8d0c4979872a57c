//! The measurements. Each starts on an empty folder, and its figures count only if its check holds.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use load::{
    body::{self, Maker, Shape},
    client::{self, Connection, Load, Outcome, Plan, Seen, Sent},
    rig::{Rig, Sink},
    sending::{DRAIN, FIRST_ROW, LOOK, Sample, Sending, check, rate_of, settle},
    stats::{Cpu, Memory, real},
    verify::Baseline,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    limits,
    options::{CONNECTIONS, Measurement, Options, SESSIONS, TENANTS},
};

/// Names and values.
pub type Figures = Vec<(&'static str, f64)>;

/// Between looks for the events of the probe.
const PROBE_LOOK: Duration = Duration::from_millis(20);
/// Between events of the probe.
const PROBE_PACE: Duration = Duration::from_millis(20);
/// The time of a load that is stopped when the measurement is over.
const UNTIL_STOPPED: Duration = Duration::from_secs(24 * 3600);
/// Load before a latency counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Measures one build.
pub async fn measure(options: &Options, build: &Path, measurement: Measurement) -> anyhow::Result<Figures> {
    match measurement {
        Measurement::Limits => limits::measure(options).await,
        Measurement::Accept => {
            let mut figures = Vec::new();
            for (key, batch) in [("accept_100", 100), ("accept_10", 10), ("accept_1", 1)] {
                figures.push((key, accept(options, build, batch).await?));
            }
            Ok(figures)
        }
        Measurement::Embedded => end_to_end(options, build, Sink::Embedded).await,
        Measurement::Broker => end_to_end(options, build, Sink::Broker).await,
        Measurement::Ack => ack(options, build).await,
        Measurement::Queryable => queryable(options, build).await,
        Measurement::Ready => ready(options, build).await,
        Measurement::Drain => drain(options, build).await,
    }
}

/// A load as fast as it is answered.
pub fn load_of(options: &Options, batch: u64) -> Load {
    Load {
        tenants: TENANTS,
        sessions: SESSIONS,
        connections: CONNECTIONS,
        batch,
        rate: 0,
        requests: u64::MAX,
        duration: options.duration(),
        warm_up: Duration::ZERO,
        backlog: u64::MAX,
        shape: Shape::default(),
    }
}

/// A load at the rate of the options, for as long as it is not stopped.
fn steady_load(options: &Options, batch: u64) -> Load {
    Load { rate: options.rate, duration: UNTIL_STOPPED, ..load_of(options, batch) }
}

/// Events a second that are accepted while ClickHouse is away.
async fn accept(options: &Options, build: &Path, batch: u64) -> anyhow::Result<f64> {
    let mut rig = Rig::new(options.setup(build), Sink::Apart)?;
    rig.start_engine().await?;
    let plan = Arc::new(Plan::new(rig.api, load_of(options, batch)));
    let mut seen = client::send(&plan).await?;
    let rate = rate_of(&plan, &seen);
    eprintln!("  batches of {batch}: {rate:.0} events/s");
    rig.start_clickhouse().await?;
    settle(&rig.clickhouse()?, &mut seen).await?;
    rig.stop().await?;
    Ok(rate)
}

/// Events a second that are accepted and stored, with a backlog that does not grow: the load waits while more than so many
/// events are on their way. The lower one of both rates counts.
async fn end_to_end(options: &Options, build: &Path, sink: Sink) -> anyhow::Result<Figures> {
    let mut rig = Rig::new(options.setup(build), sink)?;
    rig.start_engine().await?;
    let clickhouse = Arc::new(rig.clickhouse()?);
    let engine = rig.engine().context("no engine")?;
    let backlog = if sink == Sink::Broker { options.broker_backlog } else { options.backlog };
    let load = Load { duration: UNTIL_STOPPED, backlog, ..load_of(options, 100) };
    let before = Cpu::now(Some(engine));
    let mut sending = Sending::start(Plan::new(rig.api, load));
    let plan = Arc::clone(&sending.plan);

    let warm_up = Duration::from_secs(options.warm_up);
    let (from, to) = sending.measure(&clickhouse, warm_up, options.duration()).await?;
    let mut seen = sending.stop().await?;
    let deadline = Instant::now() + DRAIN;
    clickhouse.wait(Baseline::default(), &seen.events, deadline).await?;
    // Before the check, which is no part of an engine's work.
    let cpu = Cpu::now(Some(engine)).since(&before, Some(engine));
    let memory = Memory::now(engine).context("the engine is gone")?;
    check(&clickhouse, &mut seen, deadline).await?;

    let seconds = (to.at - from.at).as_secs_f64();
    let accepted = real(to.acknowledged - from.acknowledged) / seconds;
    let stored = real(to.stored - from.stored) / seconds;
    eprintln!("  accepted {accepted:.0}/s, stored {stored:.0}/s, {} on their way at the end", plan.backlog());
    let millions = real(seen.events.len() as u64) / 1e6;
    let of_engine = cpu.get("engine").copied().unwrap_or(0.0) / millions;
    let of_children: f64 = cpu.iter().filter(|(name, _)| name.starts_with("child")).map(|(_, seconds)| seconds).sum();
    let of_generator = cpu.get("load generator").copied().unwrap_or(0.0) / millions;
    let mut figures = match sink {
        Sink::Broker => vec![("broker", accepted.min(stored)), ("broker_cpu", of_engine), ("broker_rss", memory.most)],
        _ => vec![
            ("embedded", accepted.min(stored)),
            ("cpu", of_engine),
            ("rss", memory.most),
            ("generator_cpu", of_generator),
        ],
    };
    figures
        .push((if sink == Sink::Broker { "broker_clickhouse_cpu" } else { "clickhouse_cpu" }, of_children / millions));

    if sink == Sink::Embedded {
        let before = Cpu::now(Some(engine));
        let (rate, rows) = limits::insert(&clickhouse, options.duration()).await?;
        let cpu = Cpu::now(Some(engine)).since(&before, Some(engine));
        let children: f64 = cpu.iter().filter(|(name, _)| name.starts_with("child")).map(|(_, seconds)| seconds).sum();
        figures.push(("insert", rate));
        figures.push(("insert_cpu", children * 1e6 / real(rows.max(1))));
        figures.push(("insert_drain", rate / real(options.rate)));
    }
    rig.stop().await?;
    Ok(figures)
}

/// Time to the acknowledgement at a rate, in batches of 10.
async fn ack(options: &Options, build: &Path) -> anyhow::Result<Figures> {
    let mut rig = Rig::new(options.setup(build), Sink::Embedded)?;
    rig.start_engine().await?;
    let load = Load { duration: WARM_UP + options.duration(), warm_up: WARM_UP, ..steady_load(options, 10) };
    let plan = Arc::new(Plan::new(rig.api, load));
    let mut seen = client::send(&plan).await?;
    note_rate(options, &plan, &seen);
    settle(&rig.clickhouse()?, &mut seen).await?;
    rig.stop().await?;
    let millis = |quantile| real(seen.latency.value_at_quantile(quantile)) / 1000.0;
    Ok(vec![("ack_p50", millis(0.5)), ("ack_p99", millis(0.99))])
}

/// Says so when the engine did not keep up with the rate: the latency tells then how long the measurement took.
fn note_rate(options: &Options, plan: &Plan, seen: &Seen) {
    let rate = rate_of(plan, seen);
    if rate < real(options.rate) * 0.98 {
        eprintln!("  only {rate:.0} of {} events/s were reached", options.rate);
    }
}

/// From the moment at which an event was to be sent until a query finds it, at a rate. The events that are looked for are
/// single ones of a tenant of their own.
async fn queryable(options: &Options, build: &Path) -> anyhow::Result<Figures> {
    let mut rig = Rig::new(options.setup(build), Sink::Embedded)?;
    rig.start_engine().await?;
    let clickhouse = rig.clickhouse()?;
    let mut sending = Sending::start(Plan::new(rig.api, steady_load(options, 10)));
    let plan = Arc::clone(&sending.plan);
    sleep_until(plan.start + WARM_UP).await;
    let (done, mut probing) = oneshot::channel();
    let probe = tokio::spawn(probe(rig.api, options.duration(), done));
    let mut found: HashMap<u128, Instant> = HashMap::new();
    let mut sent: Option<Vec<(Sent, Instant)>> = None;
    let deadline = Instant::now() + options.duration() + FIRST_ROW;
    while sent.as_ref().is_none_or(|sent| found.len() < sent.len()) && Instant::now() < deadline {
        for (_, id) in clickhouse.ids(&[TENANTS]).await? {
            found.entry(id).or_insert_with(Instant::now);
        }
        if sent.is_none() {
            sent = probing.try_recv().ok();
        }
        sleep(PROBE_LOOK).await;
    }
    let mut seen = sending.stop().await?;
    probe.await??;
    note_rate(options, &plan, &seen);
    let sent = sent.context("the probe did not end")?;
    let mut took = Vec::new();
    for (event, due) in &sent {
        let found = found.get(&event.id).context("an event of the probe was never found")?;
        took.push(found.saturating_duration_since(*due).as_secs_f64());
        seen.events.push(*event);
    }
    settle(&clickhouse, &mut seen).await?;
    rig.stop().await?;
    took.sort_unstable_by(f64::total_cmp);
    Ok(vec![("queryable_p50", quantile(&took, 50)), ("queryable_p99", quantile(&took, 99))])
}

/// Sends single events at a slow, even rate; gives each with the moment at which it was to be sent.
async fn probe(
    api: std::net::SocketAddr,
    duration: Duration,
    done: oneshot::Sender<Vec<(Sent, Instant)>>,
) -> anyhow::Result<()> {
    let (head, templates) = (client::head(api, TENANTS), body::templates(1, Shape::default()));
    let mut maker = Maker::new(1, SESSIONS);
    let mut connection = Connection::open(api).await?;
    let mut sent = Vec::new();
    let start = Instant::now();
    let mut due = start;
    for template in templates.iter().cycle() {
        if due >= start + duration {
            break;
        }
        sleep_until(due).await;
        maker.fill(&head, template, 0);
        let answer = connection.exchange(&maker.bytes).await.context("the probe has no answer")?;
        ensure!(answer.status == 200, "the probe was answered with {}", answer.status);
        let id = maker.ids.first().copied().context("an empty request")?;
        sent.push((Sent { id, tenant: TENANTS, kind: template.kind(0), outcome: Outcome::Acknowledged }, due));
        due += PROBE_PACE;
    }
    done.send(sent).ok();
    Ok(())
}

/// Of sorted values.
fn quantile(values: &[f64], percent: usize) -> f64 {
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// From the start of an engine that was killed until it is ready, with a full log; as many times as there are runs.
async fn ready(options: &Options, build: &Path) -> anyhow::Result<Figures> {
    let mut rig = Rig::new(options.setup(build), Sink::Apart)?;
    rig.start_engine().await?;
    let mut sending = Sending::start(Plan::new(rig.api, Load { duration: DRAIN, ..load_of(options, 100) }));
    while rig.wal_bytes() < options.wal_bytes && !sending.task.is_finished() {
        sleep(LOOK).await;
    }
    let mut seen = sending.stop().await?;
    eprintln!("  {} bytes in the log", rig.wal_bytes());
    let mut figures = Vec::new();
    for _ in 0..options.runs {
        rig.kill_engine()?;
        figures.push(("ready", rig.time_to_ready().await?.as_secs_f64()));
    }
    rig.start_clickhouse().await?;
    settle(&rig.clickhouse()?, &mut seen).await?;
    rig.stop().await?;
    Ok(figures)
}

/// How many times as fast as they come in events are stored after an outage of ClickHouse, while the load goes on: from the
/// moment at which ClickHouse answers again until no more than a second of the load is on its way.
async fn drain(options: &Options, build: &Path) -> anyhow::Result<Figures> {
    let mut rig = Rig::new(options.setup(build), Sink::Apart)?;
    rig.start_clickhouse().await?;
    rig.start_engine().await?;
    let clickhouse = rig.clickhouse()?;
    let mut sending = Sending::start(Plan::new(rig.api, steady_load(options, 100)));
    let plan = Arc::clone(&sending.plan);
    sleep_until(plan.start + WARM_UP).await;
    rig.kill_clickhouse()?;
    sleep(Duration::from_secs(options.outage)).await;
    rig.start_clickhouse().await?;
    let from = Sample::now(&plan, &clickhouse).await?;
    let deadline = from.at + DRAIN;
    let mut to = from;
    while to.acknowledged.saturating_sub(to.stored) > options.rate {
        ensure!(to.at < deadline, "the backlog does not drain");
        sleep(LOOK).await;
        to = Sample::now(&plan, &clickhouse).await?;
    }
    let mut seen = sending.stop().await?;
    note_rate(options, &plan, &seen);
    settle(&clickhouse, &mut seen).await?;
    rig.stop().await?;
    let seconds = (to.at - from.at).as_secs_f64();
    let rate = real(to.stored - from.stored) / seconds.max(f64::MIN_POSITIVE);
    let accepted = real(to.acknowledged - from.acknowledged) / seconds.max(f64::MIN_POSITIVE);
    eprintln!("  {seconds:.1} s: stored {rate:.0}/s, accepted {accepted:.0}/s");
    Ok(vec![("drain", rate / real(options.rate)), ("drain_rate", rate)])
}

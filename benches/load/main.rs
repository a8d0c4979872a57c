//! A load generator for the engine, which checks afterwards that nothing was lost and nothing came twice.
//!
//! ```text
//! cargo run --release -p load -- --tenant-config load.toml --write-tenant-config
//! ingestion-engine --config load.toml
//! cargo run --release -p load -- --url http://127.0.0.1:8080 --events 1000000 --verify http://127.0.0.1:8123
//! ```
//! Bodies are prepared before the clock runs (`body`); connections send them and remember what was acknowledged
//! (`client`); `verify` asks ClickHouse for every single id; `stats` reports. It runs on one thread by default, because it
//! shares the machine with what it measures. With `--rate` the latency is counted from the moment at
//! which a request was to be sent, so that a server that falls behind shows in it.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use hyper::Uri;
use tokio::{
    net::lookup_host,
    time::{Instant, sleep},
};
use uuid::Uuid;

use load::{
    body,
    client::{self, Load, Outcome, Plan, Seen},
    stats::{Cpu, Memory, Report},
    verify::{self, ClickHouse},
};

/// Sends events to the engine as fast as it takes them, or at a rate, and checks that all arrive
#[derive(Parser)]
#[command(name = "load", max_term_width = 100)]
struct Options {
    /// The engine's API, http://host:port
    #[arg(long)]
    url: Option<Uri>,
    /// Events to send; rounded up to whole requests
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Events in a request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: u64,
    /// Tenants that the events belong to
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tenants: u32,
    /// Sessions that the events belong to, over all tenants
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// Events a second; 0 is as fast as they are answered
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Most seconds to send for
    #[arg(long, default_value_t = 600)]
    duration: u64,
    /// Threads; more than 1 takes CPU from a server on the same machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// ClickHouse's HTTP interface; asks it for everything that was acknowledged
    #[arg(long, value_name = "CLICKHOUSE_URL")]
    verify: Option<Uri>,
    /// Most seconds to wait for everything to be stored
    #[arg(long, default_value_t = 300)]
    verify_timeout: u64,
    /// ClickHouse's database
    #[arg(long, default_value = "overwatch")]
    database: String,
    /// ClickHouse's user and password, user:password
    #[arg(long, value_name = "USER:PASSWORD")]
    clickhouse_user: Option<String>,
    /// Process id of the engine: reports its CPU time and that of its children
    #[arg(long, value_name = "PID")]
    engine_pid: Option<u32>,
    /// Writes the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes what was acknowledged, a line of tenant,event each
    #[arg(long, value_name = "FILE")]
    acked: Option<PathBuf>,
    /// The tenants' file for the engine
    #[arg(long, value_name = "FILE")]
    tenant_config: Option<PathBuf>,
    /// Writes the file of --tenant-config and does nothing else
    #[arg(long, requires = "tenant_config")]
    write_tenant_config: bool,
    /// Prints the credentials (id:key) of the tenant with this number, from 0, and does nothing else
    #[arg(long, value_name = "NUMBER")]
    credentials: Option<u32>,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let (true, Some(path)) = (options.write_tenant_config, &options.tenant_config) {
        std::fs::write(path, body::tenant_config(options.tenants))
            .with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(tenant) = options.credentials {
        println!("{}:{}", body::tenant_id(tenant), body::tenant_key(tenant));
        return Ok(ExitCode::SUCCESS);
    }
    let url = options.url.clone().context("say where the engine is: --url http://host:port (see --help)")?;
    let mut runtime = match options.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(usize::try_from(options.threads)?).enable_all().build()?;
    runtime.block_on(run(&options, &url))
}

async fn run(options: &Options, url: &Uri) -> anyhow::Result<ExitCode> {
    let clickhouse = options.verify.clone().map(|url| {
        let user = options.clickhouse_user.as_ref().map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (user.to_owned(), password.to_owned())
        });
        ClickHouse::new(url, options.database.clone(), user)
    });
    let baseline = match &clickhouse {
        Some(clickhouse) => Some(clickhouse.baseline().await.context("cannot count what is stored already")?),
        None => None,
    };

    let plan = Arc::new(plan(options, url).await?);
    let bytes_per_event = plan.templates.iter().map(body::Template::bytes_per_event).sum::<f64>()
        / f64::from(u32::try_from(plan.templates.len())?);
    let cpu_before = Cpu::now(options.engine_pid);
    let memory_before = options.engine_pid.and_then(Memory::now);
    let progress = tokio::spawn(show_progress(plan.clone()));
    let mut seen = client::send(&plan).await?;
    progress.abort();
    let last = seen.last.unwrap_or(plan.start);
    let cpu = Cpu::now(options.engine_pid).since(&cpu_before, options.engine_pid);

    if let Some(path) = &options.acked {
        write_acknowledged(path, &seen).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Before the ids are fetched, whose cost is the verification's and not the engine's.
    let mut cpu_drained = None;
    let verdict = match (clickhouse, baseline) {
        (Some(clickhouse), Some(baseline)) => {
            let deadline = Instant::now() + Duration::from_secs(options.verify_timeout);
            let drained = clickhouse.wait(baseline, &seen.events, deadline).await.context("cannot verify")?;
            let drain = drained.then(|| last.elapsed());
            cpu_drained = Some(Cpu::now(options.engine_pid).since(&cpu_before, options.engine_pid));
            let mut verdict = clickhouse.verify(baseline, &mut seen.events, deadline).await.context("cannot verify")?;
            verdict.drain = drain;
            Some(verdict)
        }
        _ => None,
    };
    let asked = options.events.next_multiple_of(options.batch);
    let memory = memory_before.zip(options.engine_pid.and_then(Memory::now));
    let report = Report { asked, seen, elapsed: last - plan.start, bytes_per_event, cpu, cpu_drained, memory, verdict };
    report.print();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let right = report.verdict.as_ref().is_none_or(verify::Verdict::is_right)
        && report.seen.failed == 0
        && report.seen.odd_answers == 0
        && report.seen.rejected.is_empty();
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn plan(options: &Options, url: &Uri) -> anyhow::Result<Plan> {
    let authority = url.authority().context("--url has no host")?;
    let port = url.port_u16().unwrap_or(80);
    let address = lookup_host((authority.host(), port))
        .await
        .with_context(|| format!("cannot resolve {authority}"))?
        .next()
        .with_context(|| format!("{authority} has no address"))?;
    let load = Load {
        tenants: options.tenants,
        sessions: options.sessions,
        connections: options.connections,
        batch: options.batch,
        rate: options.rate,
        requests: options.events.div_ceil(options.batch),
        duration: Duration::from_secs(options.duration),
        warm_up: Duration::ZERO,
        backlog: u64::MAX,
        shape: body::Shape::default(),
    };
    Ok(Plan::new(address, load))
}

async fn show_progress(plan: Arc<Plan>) {
    let mut before = 0;
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = plan.acknowledged.load(Ordering::Relaxed);
        eprintln!("{:5} s  {now:>10} acknowledged  {:>8}/s", plan.start.elapsed().as_secs(), now - before);
        before = now;
    }
}

fn write_acknowledged(path: &PathBuf, seen: &Seen) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for event in seen.events.iter().filter(|event| event.outcome == Outcome::Acknowledged) {
        writeln!(file, "{},{}", body::tenant_id(event.tenant), Uuid::from_u128(event.id))?;
    }
    file.flush()?;
    Ok(())
}

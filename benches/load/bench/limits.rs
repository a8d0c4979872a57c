//! What this machine does at most, without an engine: what the engine's figures are held against.

use std::{
    borrow::Cow,
    fs::File,
    io::Write,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::header,
    response::IntoResponse,
    routing::post,
};
use bytes::Bytes;
use hdrhistogram::Histogram;
use load::{
    body, client,
    process::{self, Process},
    sending::rate_of,
    stats::real,
    verify::ClickHouse,
};
use serde::Deserialize;

use crate::{
    measure::{Figures, load_of},
    options::Options,
};

/// Bytes of an append to the bare file.
const APPEND: usize = 64 << 10;
/// Rows of a direct insert: what the engine's sink puts into one at most, by default, and how many are on their way at once.
const INSERT_ROWS: u64 = 50_000;
const INSERTS_IN_FLIGHT: u64 = 2;
/// So many different inserts are prepared.
const INSERTS: u64 = 6;

/// All limits that need no engine.
pub async fn measure(options: &Options) -> anyhow::Result<Figures> {
    let mut figures = Vec::new();
    for (key, batch) in [("http_100", 100), ("http_10", 10), ("http_1", 1)] {
        figures.push((key, http(options, batch).await?));
    }
    let (dir, duration) = (options.dir.clone(), options.duration().min(Duration::from_secs(5)));
    figures.extend(tokio::task::spawn_blocking(move || append(&dir, duration)).await??);
    let parsed = tokio::task::spawn_blocking(move || parse(duration)).await??;
    figures.push(("parse", parsed));
    figures.push(("parse_cpu", 1e6 / parsed));
    Ok(figures)
}

/// Events a second that an HTTP server in a process of its own takes when it reads bodies and does nothing with them, with
/// the same framework, connections and load as the engine.
async fn http(options: &Options, batch: u64) -> anyhow::Result<f64> {
    let port = process::free_port()?;
    let home = tempfile::TempDir::new_in(&options.dir)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--answer", &batch.to_string(), "--port", &port.to_string()]);
    let server = Process::start(command, "http", home.path())?;
    let plan = Arc::new(client::Plan::new(([127, 0, 0, 1], port).into(), load_of(options, batch)));
    let seen = client::send(&plan).await?;
    server.kill()?;
    Ok(rate_of(&plan, &seen))
}

/// The server of [`http`]; runs until it is killed.
pub fn answer(port: u16, batch: u64) -> anyhow::Result<ExitCode> {
    // What the load generator expects of an engine.
    let answer = format!(
        "{{\"status\":\"success\",\"batch_id\":\"00000000-0000-0000-0000-000000000000\",\"events_accepted\":{batch},\
         \"events_rejected\":0,\"ingest_latency_ms\":1,\"duplicates\":0}}"
    );
    let router = Router::new().route("/ingest", post(read)).layer(DefaultBodyLimit::disable());
    let router = router.with_state(Bytes::from(answer));
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        axum::serve(listener, router).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn read(State(answer): State<Bytes>, body: Bytes) -> impl IntoResponse {
    drop(body);
    ([(header::CONTENT_TYPE, "application/json")], answer)
}

/// A bare file that is appended to and synced, 64 KiB at a time.
fn append(dir: &Path, duration: Duration) -> anyhow::Result<Figures> {
    let home = tempfile::TempDir::new_in(dir)?;
    let mut file = File::options().append(true).create(true).open(home.path().join("file"))?;
    // Not zeros: some storage takes a short cut for them.
    let block: Vec<u8> = (0..APPEND).map(|index| u8::try_from(index * 31 % 251).unwrap_or(0)).collect();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let append = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        latency.saturating_record(u64::try_from(append.elapsed().as_micros())?);
    }
    let bytes = real(latency.len()) * real(u64::try_from(APPEND)?);
    let millis = |quantile| real(latency.value_at_quantile(quantile)) / 1000.0;
    Ok(vec![
        ("append_mb", bytes / 1e6 / begun.elapsed().as_secs_f64()),
        ("append_p50", millis(0.5)),
        ("append_p99", millis(0.99)),
    ])
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    events: Vec<Event<'a>>,
}

/// Some fields of an event, as an engine needs them; the others are passed over.
#[derive(Deserialize)]
struct Event<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    session_id: &'a str,
    timestamp: &'a str,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, default)]
    url: Cow<'a, str>,
}

/// Events a second that one core parses out of bodies of 100, into borrowed structs.
fn parse(duration: Duration) -> anyhow::Result<f64> {
    let templates = body::templates(100, body::Shape::default());
    let (begun, mut events, mut used) = (Instant::now(), 0_u64, 0);
    for template in templates.iter().cycle() {
        let body: Body<'_> = sonic_rs::from_slice(&template.bytes).context("a body is not JSON")?;
        for event in &body.events {
            let fields = [event.id, event.kind, event.session_id, event.timestamp, &event.path, &event.url];
            used += std::hint::black_box(fields).iter().map(|field| field.len()).sum::<usize>();
        }
        events += body.events.len() as u64;
        if begun.elapsed() >= duration {
            break;
        }
    }
    anyhow::ensure!(used > 0, "no event was read");
    Ok(real(events) / begun.elapsed().as_secs_f64())
}

/// Rows a second that the ClickHouse of the engine takes when the rows of the run before are inserted again, with the same
/// tables, views, settings and rows in an insert.
pub async fn insert(clickhouse: &Arc<ClickHouse>, duration: Duration) -> anyhow::Result<(f64, u64)> {
    let mut bodies = Vec::new();
    for index in 0..INSERTS {
        let query = format!(
            "SELECT * FROM overwatch.events ORDER BY wal_seq, wal_ordinal LIMIT {INSERT_ROWS} OFFSET {} FORMAT Native",
            index * INSERT_ROWS
        );
        bodies.push(clickhouse.ask(query).await.context("cannot read rows back")?);
    }
    // A short run has fewer rows.
    bodies.retain(|body| !body.is_empty());
    anyhow::ensure!(!bodies.is_empty(), "there is nothing to insert");
    let rows_before = clickhouse.rows().await?;
    let begun = Instant::now();
    let inserting = (0..INSERTS_IN_FLIGHT).map(|worker| {
        let (clickhouse, bodies) = (Arc::clone(clickhouse), bodies.clone());
        tokio::spawn(async move {
            for (index, body) in (0_u64..).zip(bodies.iter().cycle()) {
                if begun.elapsed() >= duration {
                    break;
                }
                clickhouse.insert("events", &format!("limit:{worker}:{index}"), body.clone()).await?;
            }
            anyhow::Ok(())
        })
    });
    let inserting: Vec<_> = inserting.collect();
    for worker in inserting {
        worker.await??;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let rows = clickhouse.rows().await?.saturating_sub(rows_before);
    Ok((real(rows) / elapsed, rows))
}

//! What the steps of an event's way cost, each alone: `make bench-micro`.
//!
//! All of them work on one body of 100 events, as the load generator makes them, so that their times can be added up. What
//! the whole of it comes to, with everything that is between the steps, is for `make bench` to say.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a benchmark that cannot run is to stop")]

use std::{collections::BTreeMap, hint::black_box, path::PathBuf, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use ingestion_engine::{
    event::{Acceptance, Batch, Event, Types},
    health::Health,
    ids::{EventId, TenantId},
    metrics::Metrics,
    plugins::{
        call::Purpose,
        chain::Chain,
        faults::FaultWindow,
        host::Hosts,
        instance::{self, Instance, Limits},
        library::Library,
        plugin::{Deadline, Parts, Plugin},
        schema::Schemas,
        set::Set,
        threads::{Caller, Worker},
    },
    row,
    tenants::{QuotaSettings, Quotas, Rate},
    wal::{Append, Chunk, Codec, Packer, Settings, Wal, bench::DedupWindow},
};
use load::body::{self, Maker};
use tempfile::TempDir;
use uuid::Uuid;

const EVENTS: usize = 100;
const EVENT_BYTES: usize = 64 << 10;
/// Requests that are appended at once: as many as `make bench` has connections.
const AT_ONCE: usize = 64;

fn tenant() -> TenantId {
    TenantId(body::tenant_id(0))
}

/// A body of a request.
fn sample() -> Vec<u8> {
    let mut maker = Maker::new(1, 100_000);
    maker.fill("", body::templates(EVENTS, body::Shape::default()).first().unwrap(), 0);
    let head = maker.bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    maker.bytes.split_off(head)
}

fn acceptance() -> Acceptance {
    Acceptance {
        tenant_id: tenant(),
        received_at_ms: 1_800_000_000_000,
        expires_at: 1_900_000_000,
        event_bytes: EVENT_BYTES,
        oldest_ms: 0,
        latest_ms: i64::MAX,
    }
}

/// The events of `body` as rows of the log.
fn encoded(body: &[u8]) -> Vec<Vec<u8>> {
    let (acceptance, types) = (acceptance(), Types::default());
    let encode = |event: Event<'_, '_>| {
        let mut bytes = Vec::new();
        row::encode(&event.read(&acceptance, &types).unwrap(), &mut bytes);
        bytes
    };
    Batch::parse(body, EVENTS).unwrap().events().map(encode).collect()
}

fn packed(rows: &[Vec<u8>]) -> Vec<Chunk> {
    let mut packer = Packer::new(Codec::Lz4);
    for row in rows {
        packer.push(row);
    }
    packer.finish()
}

/// An append of these chunks whose events have not been seen before.
fn append(chunks: &[Chunk]) -> Append {
    let mut chunks = chunks.to_vec();
    for id in chunks.iter_mut().flat_map(|chunk| &mut chunk.ids) {
        *id = EventId(Uuid::new_v4());
    }
    Append { tenant: tenant(), received_at_ms: 1_800_000_000_000, chunks, counted: false, answer: None, again: false }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("100 events");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let (body, acceptance, types) = (sample(), acceptance(), Types::default());
    let batch = Batch::parse(&body, EVENTS).unwrap();
    let read: Vec<_> = batch.events().map(|event| event.read(&acceptance, &types).unwrap()).collect();
    let rows = encoded(&body);

    group.bench_function("parse: a body into events", |bencher| {
        bencher.iter(|| Batch::parse(black_box(&body), EVENTS).unwrap().len());
    });
    group.bench_function("validate: events into rows", |bencher| {
        bencher.iter(|| {
            for event in batch.events() {
                black_box(black_box(event).read(&acceptance, &types).unwrap());
            }
        });
    });
    group.bench_function("encode: rows into bytes", |bencher| {
        let mut bytes = Vec::new();
        bencher.iter(|| {
            bytes.clear();
            for row in &read {
                row::encode(black_box(row), &mut bytes);
            }
            bytes.len()
        });
    });
    group.bench_function("pack: bytes into a compressed record", |bencher| {
        bencher.iter(|| packed(black_box(&rows)));
    });
    group.bench_function("quota: events and bytes of a request", |bencher| {
        let rate = Some(Rate::new(Rate::MAX_PER_SECOND, u32::MAX.into()).unwrap());
        let quotas = Quotas::new(&QuotaSettings { events: rate, bytes: rate, month: None });
        // As many bytes as events: what a request has of them comes faster here than the highest rate, and a request within
        // its quota is meant. A number costs what another does.
        bencher.iter(|| {
            quotas.take_events(black_box(EVENTS as u64)).unwrap();
            quotas.take_bytes(black_box(EVENTS as u64)).unwrap();
        });
    });
    group.bench_function("dedup: ids into the window", |bencher| {
        let chunks = packed(&rows);
        let settings = Settings { dedup_ids: 1_000_000, ..Settings::new("unused") };
        let mut window = DedupWindow::new(&settings);
        while window.len() < settings.dedup_ids {
            window.commit(&mut append(&chunks)).unwrap();
        }
        bencher.iter_batched_ref(|| append(&chunks), |append| window.commit(append).unwrap(), BatchSize::SmallInput);
    });
    let plugins = plugins();
    group.bench_function("plugin: a call that keeps every event", |bencher| {
        let (metrics, worker) = (Metrics::new(), Worker::detached());
        bencher.iter(|| {
            let mut chain = Chain::new(&plugins, &acceptance, &metrics);
            for (number, (event, row)) in batch.events().zip(&read).enumerate() {
                chain.push(number, event.text(), row);
            }
            chain.run(&worker, Purpose::LIVE, &[]).unwrap().events.len()
        });
    });
    group.finish();
}

/// The plugin `noop`, as the engine loads it.
fn plugins() -> Set {
    let program = std::env::current_exe().unwrap();
    let library: PathBuf = program.ancestors().nth(2).unwrap().join("libnoop.so");
    assert!(library.exists(), "there is no {}: build the workspace first (make bench-micro does)", library.display());
    let (library, worker, metrics) = (Library::open(&library).unwrap(), Worker::detached(), Arc::new(Metrics::new()));
    let caller = Caller { plugin: "noop".into(), sha256: "0".into() };
    let descriptor = instance::describe(&worker, &caller, &library).unwrap();
    let host = Hosts::new(metrics.of_plugins()).of("noop");
    let limits = Limits { event_bytes: EVENT_BYTES };
    let instance = Instance::create(&worker, caller, &library, host, "{}", limits).unwrap();
    let plugin = Plugin::new(Parts {
        schemas: Schemas::compile(&descriptor).unwrap(),
        descriptor,
        file: "libnoop.so".to_owned(),
        sha256: "0".into(),
        backend: Some(Box::new(instance)),
        deadline: Deadline { base: Duration::from_secs(1), per_event: Duration::ZERO },
        faults: FaultWindow::new(1, Duration::from_secs(60)),
        quarantine: None,
        on_quarantine: Box::new(|_, _| {}),
        metrics,
    });
    Set::new(vec![Arc::new(plugin)], &BTreeMap::new())
}

/// On the disk that holds the build.
fn wal_append(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let home = TempDir::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let settings = Settings { dedup_ids: 1_000_000, ..Settings::new(home.path().join("wal")) };
    let (wal, _reader) = Wal::open(settings, Health::default().component("wal"), Arc::new(Metrics::new())).unwrap();
    let chunks = packed(&encoded(&sample()));

    let mut group = criterion.benchmark_group("WAL append with fsync");
    for requests in [1, AT_ONCE] {
        group.throughput(Throughput::Elements((requests * EVENTS) as u64));
        group.bench_function(format!("{requests} at once, 100 events each"), |bencher| {
            let appends = || (0..requests).map(|_| append(&chunks)).collect::<Vec<_>>();
            let run = |appends: Vec<Append>| {
                let appended = runtime.block_on(join_all(appends.into_iter().map(|append| wal.append(append))));
                // What is not needed any more goes, as behind a sink that keeps up.
                wal.truncate_through(appended.into_iter().map(|appended| appended.unwrap().last).max().unwrap());
            };
            bencher.iter_batched(appends, run, BatchSize::PerIteration);
        });
    }
    group.finish();
    runtime.block_on(wal.close()).unwrap();
}

criterion_group!(benches, steps, wal_append);
criterion_main!(benches);

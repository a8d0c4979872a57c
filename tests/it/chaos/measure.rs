//! How fast it is back: after kill -9 with an empty and with a full log, and after an outage of ClickHouse.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, eventually},
        fault_proxy::FaultProxy,
        load::Load,
        rig,
        tansu::free_port,
    },
};

const GIB: u64 = 1 << 30;
/// Events in a request, as in the other measurements.
const BATCH: usize = 100;
const OUTAGE: Duration = Duration::from_secs(60);
/// Starts of which the longest is shown.
const STARTS: usize = 5;

/// The senders are to be held by nothing but the engine.
fn unlimited(setup: Setup) -> Setup {
    setup.env("INGESTION_QUOTA_EVENTS_PER_SECOND", "0").env("INGESTION_QUOTA_BYTES_PER_SECOND", "0")
}

/// kill -9 of `engine`, and the times of the starts that follow, each killed in turn.
fn recoveries(setup: &Setup, mut engine: Engine) -> String {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        engine.kill();
        let took;
        (engine, took) = rig::start(setup);
        times.push(took.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    format!("median {:.2} s, longest {:.2} s of {STARTS}", times[STARTS / 2], times[STARTS - 1])
}

fn with_an_empty_log() -> String {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    recoveries(&setup, engine)
}

fn with_a_full_log() -> String {
    let home = tempfile::tempdir().unwrap();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let setup = unlimited(Setup::new(home.path())).env("INGESTION_CLICKHOUSE_URL", nobody);
    let engine = setup.start();
    let load = Load::of(&engine, BATCH);
    while engine.metric("ingestion_wal_disk_bytes") < GIB {
        load.wait_for_requests(1);
        thread::sleep(Duration::from_millis(100));
    }
    let sent = load.stop();
    assert_eq!(sent.refused, Vec::<String>::new());
    let events = sent.acknowledged.len();
    drop(sent);
    format!("{} ({events} events in it)", recoveries(&setup, engine))
}

fn after_an_outage() -> String {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("clickhouse"));
    let proxy = FaultProxy::start(server.port);
    let engine = unlimited(Setup::new(home.path())).env("INGESTION_CLICKHOUSE_URL", proxy.url()).start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    proxy.retarget(free_port());
    let (load, began) = (Load::of(&engine, BATCH), Instant::now());
    thread::sleep(OUTAGE);
    let sent = load.stop();
    let (took_in, over) = (began.elapsed(), Instant::now());
    proxy.retarget(server.port);
    let clickhouse = ClickHouse::at(&server.url());
    while clickhouse.number("SELECT count() FROM overwatch.events") < sent.acknowledged.len() as u64 {
        assert!(over.elapsed() < 20 * OUTAGE, "it does not drain");
        thread::sleep(Duration::from_millis(100));
    }
    let drained = over.elapsed();
    sent.is_stored_once(&clickhouse);
    let rate = |time: Duration| f64::from(u32::try_from(sent.acknowledged.len()).unwrap()) / time.as_secs_f64();
    let (inward, outward) = (rate(took_in), rate(drained));
    format!("{inward:.0} events/s came in, {outward:.0} events/s drained: {:.1} times", outward / inward)
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn recovery() {
    println!("\n| measured | |\n|---|---|");
    println!("| kill -9 to ready, empty log | {} |", with_an_empty_log());
    println!("| kill -9 to ready, log of 1 GiB | {} |", with_a_full_log());
    println!("| outage of ClickHouse of {} s under load | {} |", OUTAGE.as_secs(), after_an_outage());
}

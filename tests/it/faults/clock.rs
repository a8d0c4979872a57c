//! The wall clock steps, back and forward, by an hour: `tests/clock/shim.c` says how.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    engine::{ClickHouse, Engine, Setup, eventually},
    load::{Load, Sent},
    tansu::Tansu,
};

const HOUR: i64 = 3600;

/// The clock of an engine. That of its ClickHouse goes on.
struct Clock {
    offset: File,
    path: PathBuf,
    shim: PathBuf,
}

impl Clock {
    fn new(home: &Path) -> Self {
        let (path, shim) = (home.join("offset"), home.join("clock.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clock/shim.c");
        let flags = ["-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"];
        let compiled = Command::new("cc").args(flags).arg(&shim).arg(source).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let offset = File::options().write(true).open(&path).unwrap();
        Self { offset, path, shim }
    }

    fn setup(&self, setup: Setup) -> Setup {
        setup.env("LD_PRELOAD", self.shim.display().to_string()).env("CLOCK_OFFSET", self.path.display().to_string())
    }

    /// From now on the clock is so many seconds ahead of the real one.
    fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// The engine's clock is where it was set.
fn is_ahead(engine: &Engine, clickhouse: &ClickHouse, seconds: i64) {
    let now = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let near = |time: i64| (time - now() - seconds).abs() < 60;
    let id = Uuid::now_v7();
    let event = json!([{"id": id, "type": "custom", "name": "clock"}]).to_string();
    assert_eq!(engine.ingest(&event).status, 200);
    let received = format!("SELECT toUnixTimestamp(received_at) FROM overwatch.events WHERE event_id = '{id}'");
    let mut at = String::new();
    eventually("an event tells the time", || {
        at = clickhouse.try_query(&received).unwrap_or_default();
        !at.is_empty()
    });
    assert!(near(at.parse().unwrap()), "the engine's clock did not step: {at}");
}

fn steps(setup: &Setup, clock: &Clock) {
    let mut engine = setup.start();
    let mut clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let (mut all, mut load) = (Sent::default(), Load::start(&engine));
    // Forward and back again, back and forward again, and two hours at once.
    for seconds in [HOUR, 0, -HOUR, 0, HOUR, -HOUR] {
        load.wait_for_requests(20);
        clock.set(seconds);
        load.wait_for_requests(20);
        let sent = load.stop();
        assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
        all.acknowledged.extend(sent.acknowledged);
        is_ahead(&engine, &clickhouse, seconds);
        load = Load::start(&engine);
    }
    // Ended with events on their way, and started before it was ended.
    load.wait_for_requests(20);
    engine.kill();
    let mut sent = load.stop();
    clock.set(-2 * HOUR);
    engine = setup.start();
    clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    sent.resend(&engine);
    all.acknowledged.extend(sent.acknowledged);
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    all.acknowledged.extend(load.stop().acknowledged);
    let told = clickhouse.query("SELECT event_id FROM overwatch.events WHERE name = 'clock' FORMAT TSV");
    all.acknowledged.extend(told.lines().map(|id| id.parse::<Uuid>().unwrap()));
    all.is_stored_once(&clickhouse);
    eventually("health is up", || engine.get("/health").json()["status"] == "up");
}

#[test]
fn a_clock_that_steps_by_an_hour_loses_and_doubles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let clock = Clock::new(home.path());
    steps(&clock.setup(Setup::new(home.path())), &clock);
}

#[test]
fn a_clock_that_steps_by_an_hour_loses_and_doubles_nothing_with_a_broker() {
    let home = tempfile::tempdir().unwrap();
    let (clock, broker) = (Clock::new(home.path()), Tansu::start());
    steps(&clock.setup(Setup::new(home.path()).broker(&broker.brokers())), &clock);
}

#[test]
fn resends_are_known_after_the_clock_was_set_back_also_by_a_start() {
    let home = tempfile::tempdir().unwrap();
    let clock = Clock::new(home.path());
    let setup = clock.setup(Setup::new(home.path()));
    let mut engine = setup.start();
    let event = |id: &Uuid| json!({"id": id, "type": "pageview", "path": "/p"});
    let ids: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
    let body = ids.iter().map(event).collect::<Value>().to_string();
    let duplicates = |engine: &Engine| {
        let answer = engine.ingest(&body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["duplicates"].as_u64().unwrap_or(0)
    };
    assert_eq!(duplicates(&engine), 0);
    clock.set(-HOUR);
    assert_eq!(duplicates(&engine), 10);
    engine.clickhouse();
    engine.kill();
    clock.set(-2 * HOUR);
    let engine = setup.start();
    assert_eq!(duplicates(&engine), 10);
    let sent = Sent { acknowledged: ids.into_iter().collect(), ..Sent::default() };
    sent.is_stored_once(&engine.clickhouse());
}

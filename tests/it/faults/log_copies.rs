//! The log's folder is not the one that it was: restored from a copy, cloned to a second machine, emptied.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, eventually},
        fault_proxy::{Fault, FaultProxy},
        load::{Load, Sent},
        tansu::Tansu,
    },
};

/// A ClickHouse server that several engines share, with a proxy that can refuse their inserts, and a broker if there is one.
struct Rig {
    home: TempDir,
    server: Server,
    proxy: FaultProxy,
    broker: Option<Tansu>,
}

impl Rig {
    fn start(broker: Option<Tansu>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(&home.path().join("clickhouse"));
        let proxy = FaultProxy::start(server.port);
        Self { home, server, proxy, broker }
    }

    fn folder(&self, engine: &str) -> std::path::PathBuf {
        let folder = self.home.path().join(engine);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// An engine that cuts what is left in its log into many ranges.
    fn setup(&self, engine: &str) -> Setup {
        let setup = Setup::new(&self.folder(engine))
            .config("[sink]\nmax_rows = 100\nmax_age = \"50ms\"\n[redpanda]\nbatch_size = 100")
            .config("[shutdown]\nrelay = \"1s\"\nsink = \"1s\"")
            .env("INGESTION_CLICKHOUSE_URL", self.proxy.url());
        match &self.broker {
            Some(broker) => setup.broker(&broker.brokers()),
            None => setup,
        }
    }

    fn clickhouse(&self) -> ClickHouse {
        ClickHouse::at(&self.server.url())
    }

    /// From now on nothing leaves the log.
    fn block(&self) {
        match &self.broker {
            Some(broker) => broker.freeze(),
            None => self.proxy.set(Fault::Answer(500, None, "away")),
        }
    }

    fn unblock(&self) {
        match &self.broker {
            Some(broker) => broker.thaw(),
            None => self.proxy.set(Fault::None),
        }
    }

    /// As many tokens are remembered as one remembers of yesterday: few.
    fn forget_tokens(&self) {
        for table in ["events", "events_per_minute", "page_views_daily", "web_vitals_daily"] {
            self.clickhouse().query(&format!(
                "ALTER TABLE overwatch.{table} MODIFY SETTING non_replicated_deduplication_window = 4"
            ));
        }
    }

    /// Starts an engine and fills its log, of which nothing leaves; ends it, cleanly or not. Gives what it acknowledged.
    fn with_a_backlog(&self, engine: &str, cleanly: bool) -> Sent {
        let mut engine = self.setup(engine).start();
        eventually("all is up", || engine.get("/health").json()["status"] == "up");
        self.clickhouse().stop_merges();
        load(&engine, 20).is_stored_once(&self.clickhouse());
        let before = ids(&self.clickhouse());
        self.block();
        let mut sent = load(&engine, 40);
        if cleanly {
            assert!(engine.terminate().success());
        } else {
            engine.kill();
        }
        self.unblock();
        sent.acknowledged.extend(before);
        sent
    }
}

fn ids(clickhouse: &ClickHouse) -> Vec<uuid::Uuid> {
    let text = clickhouse.query("SELECT event_id FROM overwatch.events FORMAT TSV");
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// So many requests, all of them taken.
fn load(engine: &Engine, requests: usize) -> Sent {
    let load = Load::start(engine);
    load.wait_for_requests(requests);
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    sent
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What is acknowledged is stored once, and no two events share a place in a log.
fn is_stored_once(sent: &Sent, clickhouse: &ClickHouse) {
    sent.is_stored_once(clickhouse);
    let places = "SELECT uniqExact(wal_id, wal_seq, wal_ordinal) FROM overwatch.events";
    assert_eq!(clickhouse.number(places), sent.acknowledged.len() as u64);
}

fn restored(broker: Option<Tansu>, cleanly: bool) {
    let rig = Rig::start(broker);
    let (log, yesterday) = (rig.folder("engine").join("data/wal"), rig.home.path().join("yesterday"));
    let mut all = rig.with_a_backlog("engine", cleanly);
    copy(&log, &yesterday);
    rig.forget_tokens();

    // The day: what the copy holds is stored, and much more.
    let mut engine = rig.setup("engine").start();
    all.acknowledged.extend(load(&engine, 100).acknowledged);
    is_stored_once(&all, &rig.clickhouse());
    assert!(engine.terminate().success());

    // Put back twice: the second time what the first wrote is yesterday's, too.
    for _ in 0..2 {
        copy(&yesterday, &log);
        engine = rig.setup("engine").start();
        all.acknowledged.extend(load(&engine, 40).acknowledged);
        is_stored_once(&all, &rig.clickhouse());
        eventually("the log is empty", || engine.metric("ingestion_wal_records") == 0);
        assert!(engine.terminate().success());
    }
}

#[test]
fn a_log_restored_from_yesterdays_copy_stores_nothing_twice_and_takes_new_events() {
    restored(None, true);
}

#[test]
fn a_log_restored_from_a_copy_that_was_made_after_a_crash_stores_nothing_twice() {
    restored(None, false);
}

#[test]
fn a_log_restored_from_yesterdays_copy_relays_nothing_twice() {
    restored(Some(Tansu::start()), true);
}

fn cloned(broker: Option<Tansu>, cleanly: bool) {
    let rig = Rig::start(broker);
    let mut all = rig.with_a_backlog("first", cleanly);
    copy(&rig.folder("first").join("data/wal"), &rig.folder("second").join("data/wal"));
    // Both at once, each with all that is left.
    let engines = [rig.setup("first").start(), rig.setup("second").start()];
    let loads: Vec<Load> = engines.iter().map(Load::start).collect();
    for load in &loads {
        load.wait_for_requests(40);
    }
    for sent in loads.into_iter().map(Load::stop) {
        assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
        all.acknowledged.extend(sent.acknowledged);
    }
    is_stored_once(&all, &rig.clickhouse());
    for mut engine in engines {
        eventually("the log is empty", || engine.metric("ingestion_wal_records") == 0);
        assert!(engine.terminate().success());
    }
    is_stored_once(&all, &rig.clickhouse());
}

#[test]
fn a_log_cloned_to_a_second_machine_loses_and_doubles_nothing() {
    cloned(None, true);
}

#[test]
fn a_log_cloned_after_a_crash_loses_and_doubles_nothing() {
    cloned(None, false);
}

#[test]
fn a_log_cloned_to_a_second_machine_with_a_broker_loses_and_doubles_nothing() {
    cloned(Some(Tansu::start()), true);
}

fn emptied(broker: Option<Tansu>) {
    let rig = Rig::start(broker);
    let setup = rig.setup("engine");
    let mut all = Sent::default();
    for end in ["drained", "removed", "lost its marks", "none"] {
        let mut engine = setup.start();
        eventually("all is up", || engine.get("/health").json()["status"] == "up");
        rig.clickhouse().stop_merges();
        all.acknowledged.extend(load(&engine, 40).acknowledged);
        is_stored_once(&all, &rig.clickhouse());
        assert!(engine.terminate().success());
        let log = rig.folder("engine").join("data/wal");
        match end {
            "drained" => assert!(setup.run("drain").0.success()),
            "removed" => fs::remove_dir_all(&log).unwrap(),
            "lost its marks" => fs::remove_file(log.join("meta")).unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_log_that_was_emptied_and_opened_again_gives_new_events_places_of_their_own() {
    emptied(None);
}

#[test]
fn a_log_that_was_emptied_and_opened_again_is_not_taken_for_the_old_one_behind_a_broker() {
    emptied(Some(Tansu::start()));
}

//! The events go another way than before, while some are on their way: the engine refuses, and says what to do; then nothing
//! is lost and nothing is stored twice.

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, eventually},
        fault_proxy::{Fault, FaultProxy},
        load::{Load, Sent},
        tansu::Tansu,
    },
};

const BUDGETS: &str = "[sink]\nmax_age = \"50ms\"\n[shutdown]\nrelay = \"1s\"\nsink = \"1s\"";

/// Two ClickHouse servers, the first behind a proxy, and a broker.
struct Rig {
    home: tempfile::TempDir,
    first: Server,
    second: Server,
    proxy: FaultProxy,
    broker: Tansu,
}

impl Rig {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (first, second) = (Server::start(&home.path().join("first")), Server::start(&home.path().join("second")));
        let proxy = FaultProxy::start(first.port);
        Self { first, second, proxy, broker: Tansu::start(), home }
    }

    fn without_broker(&self) -> Setup {
        Setup::new(self.home.path()).config(BUDGETS).env("INGESTION_CLICKHOUSE_URL", self.proxy.url())
    }

    fn with_broker(&self) -> Setup {
        self.without_broker().broker(&self.broker.brokers())
    }

    fn with_second_server(&self) -> Setup {
        Setup::new(self.home.path()).config(BUDGETS).env("INGESTION_CLICKHOUSE_URL", self.second.url())
    }

    fn clickhouse(&self) -> ClickHouse {
        ClickHouse::at(&self.first.url())
    }

    /// An engine that is killed with ranges in flight, of which one is stored and nobody knows, and more in its log.
    fn killed_in_flight(&self) -> Sent {
        let mut engine = up(&self.without_broker());
        self.clickhouse().stop_merges();
        let load = Load::start(&engine);
        load.wait_for_requests(20);
        self.proxy.set(Fault::LoseAnswer);
        eventually("an insert is stored and its answer lost", || self.proxy.lost() >= 1);
        self.proxy.set(Fault::Answer(500, None, "away"));
        load.wait_for_requests(20);
        let sent = load.stop();
        assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
        engine.kill();
        self.proxy.set(Fault::None);
        sent
    }
}

fn up(setup: &Setup) -> Engine {
    let engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    engine
}

/// It does not start, and says what is in the way and what to do.
fn is_refused(setup: &Setup, words: &[&str]) {
    for subcommand in ["serve", "drain"] {
        let (status, text) = setup.run(subcommand);
        assert!(!status.success(), "{subcommand}: {text}");
        for word in words {
            assert!(text.contains(word), "{subcommand} does not say {word:?}: {text}");
        }
    }
}

fn goes_on(setup: &Setup, sent: &mut Sent) -> Engine {
    let engine = up(setup);
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    let more = load.stop();
    assert_eq!((&more.refused, more.broken), (&Vec::new(), 0), "accepted throughout");
    sent.acknowledged.extend(more.acknowledged);
    engine
}

#[test]
fn a_broker_is_not_taken_up_while_ranges_of_the_log_are_in_flight() {
    let rig = Rig::start();
    let mut sent = rig.killed_in_flight();
    is_refused(&rig.with_broker(), &["on their way to ClickHouse", "drain", "state/route"]);
    assert!(rig.without_broker().run("drain").0.success());
    let engine = goes_on(&rig.with_broker(), &mut sent);
    sent.is_stored_once(&rig.clickhouse());
    drop(engine);
}

#[test]
fn another_clickhouse_is_not_taken_up_while_ranges_of_the_log_are_in_flight() {
    let rig = Rig::start();
    let mut sent = rig.killed_in_flight();
    is_refused(&rig.with_second_server(), &["on their way to ClickHouse", "drain", "state/route"]);
    assert!(rig.without_broker().run("drain").0.success());
    sent.is_stored_once(&rig.clickhouse());
    let before = sent.acknowledged.len() as u64;
    sent.acknowledged.clear();
    let engine = goes_on(&rig.with_second_server(), &mut sent);
    sent.is_stored_once(&ClickHouse::at(&rig.second.url()));
    assert_eq!(rig.clickhouse().number("SELECT count() FROM overwatch.events"), before, "each is in one of them");
    // Its books begin with what goes there.
    rig.with_second_server().ledger().unwrap();
    drop(engine);
}

#[test]
fn what_has_not_set_out_goes_the_new_way() {
    let rig = Rig::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Setup::new(rig.home.path()).config(BUDGETS).env("INGESTION_CLICKHOUSE_URL", format!("http://{free}"));
    let mut engine = away.start();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    let mut sent = load.stop();
    assert!(engine.terminate().success());
    // No tables were reached, so nothing was given out.
    let mut engine = goes_on(&rig.without_broker(), &mut sent);
    eventually("the log is empty", || engine.metric("ingestion_wal_records") == 0);
    assert!(engine.terminate().success());
    // And nothing is on its way.
    let engine = goes_on(&rig.with_broker(), &mut sent);
    sent.is_stored_once(&rig.clickhouse());
    drop(engine);
}

#[test]
fn a_broker_is_not_left_before_its_topic_is_read_to_the_end() {
    let rig = Rig::start();
    let mut engine = up(&rig.with_broker());
    rig.clickhouse().stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    // A backlog in the topic, and then one in the log.
    rig.proxy.set(Fault::Answer(500, None, "away"));
    load.wait_for_requests(20);
    rig.broker.freeze();
    load.wait_for_requests(20);
    let mut sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    engine.kill();
    rig.broker.thaw();

    is_refused(&rig.without_broker(), &["records of the write-ahead log", "overwatch.events", "drain", "state/route"]);
    assert!(rig.with_broker().run("drain").0.success());
    is_refused(&rig.without_broker(), &["overwatch.events", "events that no sink", "`ledger` counts 0", "state/route"]);
    rig.proxy.set(Fault::None);
    let mut sink = up(&rig.with_broker());
    sent.is_stored_once(&rig.clickhouse());
    assert!(sink.terminate().success());
    rig.broker.freeze();
    is_refused(&rig.without_broker(), &["overwatch.events", "cannot be asked", "state/route"]);
    rig.broker.thaw();
    let engine = goes_on(&rig.without_broker(), &mut sent);
    sent.is_stored_once(&rig.clickhouse());
    rig.without_broker().ledger().unwrap();
    drop(engine);
}

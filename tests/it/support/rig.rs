//! An engine under load with everything around it that a fault needs, and the rounds that are played with it: the load runs,
//! the fault comes, the engine recovers; what was acknowledged is remembered and checked at the end.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    engine::{ClickHouse, DEADLINE, Engine, Setup, eventually, signal},
    fault_proxy::{Fault, FaultProxy, Trap},
    kafka_proxy::{Call, KafkaProxy, When},
    kill_points::{KillPoints, Point, Stage},
    load::{Audit, Load, Sent},
    tansu::{Tansu, free_port},
};
use crate::clickhouse_facade::clickhouse_child::ClickHouse as Server;

/// What is around the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The engine's own ClickHouse, no broker.
    Embedded,
    /// A ClickHouse of its own, no broker.
    Apart,
    /// The same with a broker.
    Broker,
    /// The same without a sink: [`Rig::sink`] starts one.
    Relay,
}

/// kill -9 of the engine.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// At any instant.
    Random,
    /// At a point of the log.
    Log(Point),
    /// When a call to the broker passes.
    Broker(Call, When),
    /// When a call to ClickHouse passes.
    ClickHouse(Trap),
    /// After SIGTERM, while ClickHouse keeps an insert waiting.
    Shutdown,
}

/// What happened in a round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Whether requests were in flight at the fault. Only then it counts.
    pub in_flight: bool,
    pub recovery: Duration,
    /// What was under way at the fault, as far as this rig sees it.
    pub stages: Vec<Stage>,
}

/// The engine and what is around it.
pub struct Rig {
    pub engine: Engine,
    pub proxy: Option<FaultProxy>,
    pub server: Option<Server>,
    pub kafka: Option<KafkaProxy>,
    pub broker: Option<Tansu>,
    pub sent: Sent,
    /// What should not have been: refusals, ends with an error.
    pub trouble: Vec<String>,
    /// How long each sender rests after a request.
    pub rest: Duration,
    /// Codes of refusals that a fault may lead to.
    pub may_refuse: &'static [&'static str],
    kind: Kind,
    setup: Setup,
    points: KillPoints,
    log: String,
    home: TempDir,
}

/// An end that does not wait long for what is away.
const BUDGETS: &str = "[shutdown]\nrequests = \"1s\"\nrelay = \"1s\"\nsink = \"1s\"";

/// A number below `below` that differs from round to round and from run to run.
pub fn random(below: u64) -> u64 {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    random % below
}

fn behind(setup: Setup, broker: &KafkaProxy) -> Setup {
    // A member that is killed is missed by its group soon.
    let mut properties = "[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"\n".to_owned();
    let mut setup = setup.broker(&broker.address().to_string());
    if let Ok(debug) = std::env::var("KAFKA_DEBUG") {
        writeln!(properties, "debug = \"{debug}\"").unwrap();
        setup = setup.env("INGESTION_LOG_LEVEL", "info,ingestion_engine::broker=trace");
    }
    setup.config(&properties)
}

/// A start, and the time that it took from the process to ready.
pub fn start(setup: &Setup) -> (Engine, Duration) {
    let began = Instant::now();
    let engine = setup.start();
    eventually("it is ready", || engine.get("/health/ready").status == 200);
    (engine, began.elapsed())
}

impl Rig {
    /// All up, merges stopped.
    pub fn start(kind: Kind) -> Self {
        let rig = Self::start_away(kind);
        rig.reach_clickhouse();
        rig.settle();
        rig
    }

    /// The same with a ClickHouse that cannot be reached yet, unless it is the engine's own.
    pub fn start_away(kind: Kind) -> Self {
        let home = tempfile::tempdir().unwrap();
        let setup = Setup::new(home.path());
        Self::of(kind, home, setup)
    }

    /// The same of a set-up whose files are in `home`.
    pub fn of(kind: Kind, home: TempDir, setup: Setup) -> Self {
        let points = KillPoints::new(home.path());
        let mut setup = points.over(setup.config(BUDGETS));
        let (mut server, mut proxy, mut kafka, mut broker) = (None, None, None, None);
        if kind != Kind::Embedded {
            let away = FaultProxy::start(free_port());
            // Inserts are given up after some seconds, so that a server that hangs is met.
            setup = setup
                .config("[clickhouse]\ninsert_timeout = \"5s\"\n[sink]\nmax_age = \"50ms\"")
                .env("INGESTION_CLICKHOUSE_URL", away.url());
            server = Some(Server::start(&home.path().join("clickhouse")));
            proxy = Some(away);
        }
        if matches!(kind, Kind::Broker | Kind::Relay) {
            let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let between = KafkaProxy::start(listen);
            broker = Some(Tansu::start_on(listen, between.address()));
            setup = behind(setup, &between);
            kafka = Some(between);
        }
        if kind == Kind::Relay {
            setup = setup.env("INGESTION_ROLES", "api");
        }
        let (engine, _) = start(&setup);
        let (sent, trouble, log) = (Sent::default(), Vec::new(), String::new());
        let (rest, may_refuse): (_, &[&str]) = (Duration::ZERO, &[]);
        Self { engine, proxy, server, kafka, broker, sent, trouble, rest, may_refuse, kind, setup, points, log, home }
    }

    /// Where the engine's files are.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    fn load(&self) -> Load {
        Load::start_with(&self.engine, self.rest)
    }

    /// Starts an engine that is a sink of this rig's topic, with the files of `setup`.
    pub fn sink(&self, setup: Setup) -> Engine {
        let setup = setup.env("INGESTION_ROLES", "sink").env("INGESTION_CLICKHOUSE_URL", self.proxy().url());
        behind(setup, self.kafka()).start()
    }

    /// Another node of this rig's topic without a sink, with the files of `setup`.
    pub fn relay(&self, setup: Setup) -> Setup {
        let setup = setup.env("INGESTION_ROLES", "api").env("INGESTION_CLICKHOUSE_URL", self.proxy().url());
        behind(setup, self.kafka())
    }
    pub fn reach_clickhouse(&self) {
        if let (Some(proxy), Some(server)) = (&self.proxy, &self.server) {
            proxy.retarget(server.port);
        }
    }

    pub fn leave_clickhouse(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.retarget(free_port());
        }
    }

    pub fn clickhouse(&self) -> ClickHouse {
        self.server.as_ref().map_or_else(|| self.engine.clickhouse(), |server| ClickHouse::at(&server.url()))
    }

    pub fn proxy(&self) -> &FaultProxy {
        self.proxy.as_ref().unwrap()
    }

    pub fn kafka(&self) -> &KafkaProxy {
        self.kafka.as_ref().unwrap()
    }

    pub fn is_up(&self) -> bool {
        self.engine.is_up()
    }

    /// Waits until all is up, with merges stopped: they would make one row of two.
    pub fn settle(&self) {
        eventually("all is up", || self.is_up());
        self.clickhouse().stop_merges();
    }

    /// The dead engine is started again, and gets what had no answer once more.
    pub fn restart(&mut self, mut sent: Sent) -> Duration {
        writeln!(self.log, "{}\n", self.engine.log()).unwrap();
        let recovery;
        (self.engine, recovery) = start(&self.setup);
        if self.server.is_none() {
            self.engine.clickhouse().stop_merges();
        }
        sent.resend(&self.engine);
        self.take(sent);
        recovery
    }

    pub fn take(&mut self, sent: Sent) {
        if !sent.only_refused_with(self.may_refuse) {
            self.trouble.extend(sent.refused.iter().take(3).map(|refusal| format!("refused: {refusal}")));
        }
        self.sent.acknowledged.extend(sent.acknowledged);
    }

    /// With a broker: waits until the sink has its partitions. Needs a load.
    fn wait_for_sink(&self) {
        if self.kind == Kind::Broker {
            let before = self.proxy().inserts();
            eventually("the sink is at work", || self.proxy().inserts() > before);
        }
    }

    /// What the calls that this rig can see are doing.
    fn stages(&self) -> Vec<Stage> {
        let mut stages = self.kafka.as_ref().map(KafkaProxy::stages).unwrap_or_default();
        if self.proxy.as_ref().is_some_and(|proxy| proxy.under_way() > 0) {
            stages.push(Stage::Insert);
        }
        stages
    }

    /// One round of kill -9.
    pub fn kill(&mut self, kill: Kill) -> Round {
        let load = self.load();
        load.wait_for_requests(10);
        let pid = self.engine.pid();
        let mut in_flight = false;
        let mut stages = Vec::new();
        match kill {
            Kill::Random => {
                // With a broker the sink gets its partitions only after seconds: every other time it is waited for.
                if random(2) == 0 {
                    self.wait_for_sink();
                }
                thread::sleep(Duration::from_millis(random(1000)));
                stages = self.stages();
                self.engine.kill();
            }
            Kill::Log(point) => self.points.arm(point),
            Kill::Broker(call, when) => {
                stages.push(if call == Call::Produce { Stage::Produce } else { Stage::Commit });
                self.kafka().kill_at(call, when, pid);
            }
            Kill::ClickHouse(trap) => {
                stages.push(if trap == Trap::InsertAnswer { Stage::Commit } else { Stage::Insert });
                self.proxy().kill_at(trap, pid);
            }
            Kill::Shutdown => {
                // Longer than the kill takes: the shutdown waits for it.
                self.proxy().set(Fault::SlowAnswer(Duration::from_secs(3)));
                eventually("an insert waits", || self.proxy().hit() > 0 && self.proxy().under_way() > 0);
                in_flight = load.in_flight() > 0;
                signal(pid, "TERM");
                self.engine.wait_for_log("stopping");
                thread::sleep(Duration::from_millis(random(500)));
                stages = self.stages();
                self.engine.kill();
                self.proxy().set(Fault::None);
            }
        }
        let status = self.engine.wait_for_end();
        assert_eq!(status.signal(), Some(9), "{kill:?}: {status}");
        self.points.disarm();
        stages.extend(self.points.stages());
        let sent = load.stop();
        in_flight |= sent.cut > 0;
        let recovery = self.restart(sent);
        Round { in_flight, recovery, stages }
    }

    /// kill -9 at a statement of the migrations, of an engine whose ClickHouse cannot be reached until then. Nothing when it has
    /// all its tables before it comes to the statement.
    pub fn kill_in_migration(&mut self, trap: Trap) -> Option<Round> {
        let load = self.load();
        load.wait_for_requests(10);
        self.proxy().kill_at(trap, self.engine.pid());
        self.reach_clickhouse();
        let mut killed = false;
        eventually("it is killed, or up", || {
            killed = self.engine.has_ended();
            killed || self.is_up()
        });
        if !killed {
            assert!(self.proxy().disarm());
            let sent = load.stop();
            self.take(sent);
            return None;
        }
        let sent = load.stop();
        let in_flight = sent.cut > 0;
        self.leave_clickhouse();
        let recovery = self.restart(sent);
        Some(Round { in_flight, recovery, stages: Vec::new() })
    }

    /// One round of SIGTERM.
    pub fn terminate(&mut self) -> Round {
        self.terminate_during(|_, _| thread::sleep(Duration::from_millis(random(1000))), |_| ())
    }

    /// One round of SIGTERM while a fault lasts: `fault` returns when it is there, `over` ends it before the next start.
    pub fn terminate_during(&mut self, fault: impl FnOnce(&mut Self, &Load), over: impl FnOnce(&mut Self)) -> Round {
        let load = self.load();
        load.wait_for_requests(10);
        // This broker takes a member that left before it was given anything for the leader of its group, for ever.
        self.wait_for_sink();
        fault(self, &load);
        eventually("a request is in flight", || load.in_flight() > 0);
        let (in_flight, stages) = (load.in_flight() > 0, self.stages());
        let status = self.engine.terminate();
        if !status.success() {
            self.trouble.push(format!("ended with {status} after SIGTERM"));
        }
        let sent = load.stop();
        over(self);
        let recovery = self.restart(sent);
        Round { in_flight, recovery, stages }
    }

    /// One round of a fault around the engine, which goes on accepting. `fault` returns when the fault is over.
    pub fn disturb(&mut self, fault: impl FnOnce(&mut Self, &Load)) -> Round {
        let load = self.load();
        load.wait_for_requests(20);
        eventually("a request is in flight", || load.in_flight() > 0);
        fault(self, &load);
        let over = Instant::now();
        let newest = load.newest();
        let clickhouse = self.clickhouse();
        // Under merges that begin anew with a ClickHouse that was killed.
        clickhouse.stop_merges();
        let stored = format!("SELECT count() FROM overwatch.events WHERE event_id = '{newest}'");
        eventually("what came in meanwhile is stored", || clickhouse.try_query(&stored).is_ok_and(|text| text != "0"));
        eventually("health clears by itself", || self.is_up());
        let recovery = over.elapsed();
        load.wait_for_requests(10);
        let sent = load.stop();
        if sent.broken > 0 {
            self.trouble.push(format!("{} requests broke", sent.broken));
        }
        self.take(sent);
        Round { in_flight: true, recovery, stages: Vec::new() }
    }

    /// Compares what is stored with what was acknowledged, and waits for it.
    pub fn check(&mut self) -> Audit {
        let mut audit = self.sent.audit(&self.clickhouse(), 2 * DEADLINE);
        audit.faults.append(&mut self.trouble);
        if let Err(words) = self.setup.ledger() {
            audit.faults.push(words);
        }
        audit
    }

    /// Leaves the files, with the logs of all engines, for whoever looks for the cause.
    pub fn keep(mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        writeln!(self.log, "{}", self.engine.log()).unwrap();
        std::fs::write(self.home.path().join("engine.log"), &self.log).unwrap();
        self.home.path().to_owned()
    }
}

//! The engine is told to stop while something is wrong, under load, with requests in flight: it ends with 0 within its budget
//! whatever is away, and the next start goes on. Every acknowledged event is stored once, and the ledger balances.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, Producer},
    types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    clients::{connect, head},
    disk::{Disk, RESERVE, SIZE},
};
use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    durability::child_of,
    support::{
        engine::{DEADLINE, Setup, eventually, signal},
        fault_proxy::Fault,
        load::{Load, Sent},
        rig::{Kind, Rig},
    },
};

/// Returns when the fault is there.
type Cause = fn(&mut Rig, &Load);
/// Ends it, once the engine has ended.
type End = fn(&mut Rig);
/// A fault that lasts.
pub type Case = (&'static str, Cause, End);

/// What ClickHouse can do, for a rig whose ClickHouse is a server of its own.
pub const CLICKHOUSE: [Case; 11] = [
    ("killed", |rig, load| kill_clickhouse(rig, load), start_clickhouse),
    (
        "frozen",
        |rig, load| freeze_clickhouse(rig, load),
        |rig| signal(rig.server.as_ref().unwrap().process.id(), "CONT"),
    ),
    (
        "a view that fails",
        |rig, _| break_view(rig),
        |rig| drop(rig.clickhouse().query("DROP VIEW overwatch.broken_mv")),
    ),
    ("answers 500", |rig, _| meet(rig, Fault::Answer(500, None, "Internal Server Error")), mend),
    ("too many parts", |rig, _| meet(rig, Fault::Answer(500, Some(252), "Code: 252. (TOO_MANY_PARTS)")), mend),
    ("memory limit", |rig, _| meet(rig, Fault::Answer(500, Some(241), "Code: 241. (MEMORY_LIMIT_EXCEEDED)")), mend),
    ("cut in mid-insert", |rig, _| meet(rig, Fault::CutInTheMiddle), mend),
    ("answer lost", |rig, _| meet(rig, Fault::LoseAnswer), mend),
    ("slow", |rig, _| meet(rig, Fault::Slow(Duration::from_secs(2))), mend),
    ("slow beyond every limit", |rig, _| meet(rig, Fault::Slow(Duration::from_secs(12))), mend),
    ("slow to answer", |rig, _| meet(rig, Fault::SlowAnswer(Duration::from_secs(2))), mend),
];

/// What the broker, and ClickHouse behind it, can do, for a rig with a broker.
pub const BROKER: [Case; 5] = [
    ("frozen", |rig, load| freeze_broker(rig, load), |rig| rig.broker.as_ref().unwrap().thaw()),
    ("cut off", |rig, load| cut_broker(rig, load), |rig| rig.kafka().mend()),
    ("takes nothing", |rig, load| hold_produce(rig, load), |rig| rig.kafka().hold(false)),
    ("ClickHouse answers 500", |rig, _| meet(rig, Fault::Answer(500, None, "Internal Server Error")), mend),
    ("ClickHouse's answer lost", |rig, _| meet(rig, Fault::LoseAnswer), mend),
];

fn meet(rig: &Rig, fault: Fault) {
    rig.proxy().set(fault);
    eventually("inserts meet it", || rig.proxy().hit() > 0);
}

fn mend(rig: &mut Rig) {
    rig.proxy().set(Fault::None);
}

fn kill_clickhouse(rig: &mut Rig, load: &Load) {
    let server = rig.server.as_mut().unwrap();
    signal(server.process.id(), "KILL");
    server.ended();
    load.wait_for_requests(20);
}

fn start_clickhouse(rig: &mut Rig) {
    rig.server = Some(Server::start(&rig.home().join("clickhouse")));
    rig.reach_clickhouse();
}

fn freeze_clickhouse(rig: &Rig, load: &Load) {
    signal(rig.server.as_ref().unwrap().process.id(), "STOP");
    // What hangs is an insert, or a question that comes before it.
    load.wait_for_requests(20);
}

fn break_view(rig: &Rig) {
    rig.clickhouse().query(
        "CREATE MATERIALIZED VIEW overwatch.broken_mv ENGINE = Memory AS \
         SELECT throwIf(path != '', 'broken on purpose') AS x FROM overwatch.events",
    );
    eventually("health names the view", || {
        rig.engine.component("sink")["reason"].as_str().is_some_and(|reason| reason.contains("broken_mv"))
    });
}

fn freeze_broker(rig: &Rig, load: &Load) {
    rig.broker.as_ref().unwrap().freeze();
    load.wait_for_requests(20);
}

fn cut_broker(rig: &Rig, load: &Load) {
    rig.kafka().cut();
    load.wait_for_requests(20);
}

fn hold_produce(rig: &Rig, load: &Load) {
    rig.kafka().hold(true);
    load.wait_for_requests(20);
}

/// Each of `cases` in turn.
fn plays(rig: &mut Rig, cases: &[Case]) {
    for (name, cause, end) in cases {
        plays_one(rig, name, cause, end);
    }
}

fn plays_one(rig: &mut Rig, name: &str, cause: impl FnOnce(&mut Rig, &Load), end: impl FnOnce(&mut Rig)) {
    let began = Instant::now();
    let round = rig.terminate_during(cause, end);
    assert!(round.in_flight && rig.trouble.is_empty(), "{name}: {round:?}, {:?}\n{}", rig.trouble, rig.engine.log());
    rig.settle();
    eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
}

fn holds(rig: &mut Rig) {
    let audit = rig.check();
    assert!(audit.holds(), "{audit:?}");
    eventually("health is up", || rig.is_up());
}

#[test]
fn sigterm_while_clickhouse_fails_or_clients_drip_loses_nothing() {
    let mut rig = Rig::start(Kind::Apart);
    plays(&mut rig, &CLICKHOUSE);
    let mut slow = Vec::new();
    plays_one(&mut rig, "clients that drip", |rig, load| slow.push(drip(rig, load)), |_| ());
    for dripping in slow {
        dripping.join().unwrap();
    }
    plays_one(&mut rig, "clients that vanish in mid-body", |rig, _| vanish(rig), |_| ());
    assert_eq!(rig.clickhouse().number("SELECT count() FROM overwatch.events WHERE path = '/never'"), 0);
    // The last one, because the rows stay refused.
    plays_one(&mut rig, "poison rows", |rig, _| send_poison(rig), |_| ());
    let held = "SELECT count() FROM overwatch.dead_letters FINAL WHERE state = 'held'";
    rig.clickhouse().wait_for(held, &POISON.to_string());
    holds(&mut rig);
}

/// Connections that have begun a request and send a byte now and then, until they are cut.
fn drip(rig: &Rig, load: &Load) -> thread::JoinHandle<()> {
    let mut clients: Vec<TcpStream> = (0..200).map(|_| connect(&rig.engine)).collect();
    for client in clients.iter_mut().skip(100) {
        client.write_all(head("content-length: 1000").as_bytes()).unwrap();
    }
    let dripping = thread::spawn(move || {
        let deadline = Instant::now() + DEADLINE;
        while !clients.is_empty() {
            assert!(Instant::now() < deadline, "{} connections outlive the engine", clients.len());
            clients.retain_mut(|client| client.write_all(b"P").is_ok());
            thread::sleep(Duration::from_millis(50));
        }
    });
    load.wait_for_requests(20);
    dripping
}

fn vanish(rig: &Rig) {
    for _ in 0..50 {
        let mut client = connect(&rig.engine);
        let event = json!({"id": Uuid::now_v7(), "type": "pageview", "path": "/never"});
        client.write_all(head("content-length: 90000").as_bytes()).unwrap();
        client.write_all(format!("[{event}]").as_bytes()).unwrap();
    }
}

const POISON: usize = 5;

/// Events of which one in twenty is refused by ClickHouse; they are on their way there when this returns.
fn send_poison(rig: &mut Rig) {
    rig.clickhouse().query("ALTER TABLE overwatch.events ADD CONSTRAINT no_evil CHECK name != 'evil'");
    for _ in 0..POISON {
        let ids: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
        let name = |place| if place == 10 { "evil" } else { "good" };
        let event = |(place, id)| json!({"id": id, "type": "custom", "name": name(place)});
        let events: Vec<_> = ids.iter().enumerate().map(event).collect();
        assert_eq!(rig.engine.ingest(json!(events).to_string()).status, 200);
        let good = ids.iter().enumerate().filter(|(place, _)| *place != 10);
        rig.sent.acknowledged.extend(good.map(|(_, id)| *id));
    }
}

#[test]
fn sigterm_while_the_embedded_clickhouse_is_frozen_or_just_killed_loses_nothing() {
    let mut rig = Rig::start(Kind::Embedded);
    let mut child = 0;
    let frozen = |rig: &mut Rig, load: &Load| {
        child = child_of(rig.engine.pid());
        signal(child, "STOP");
        load.wait_for_requests(20);
    };
    plays_one(&mut rig, "frozen", frozen, |_| ());
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "the child outlives the engine");
    plays_one(&mut rig, "killed", |rig, _| signal(child_of(rig.engine.pid()), "KILL"), |_| ());
    holds(&mut rig);
}

#[test]
fn sigterm_while_the_broker_or_what_is_behind_it_fails_loses_nothing() {
    let mut rig = Rig::start(Kind::Broker);
    plays(&mut rig, &BROKER);
    plays_one(&mut rig, "garbage in the topic", |rig, _| send_garbage(rig), |_| ());
    let held = "SELECT count() FROM overwatch.dead_letters FINAL WHERE state = 'held'";
    rig.clickhouse().wait_for(held, &GARBAGE.len().to_string());
    holds(&mut rig);
}

const GARBAGE: [&[u8]; 3] = [b"\xff\xfe\x00", b"{\"half\":", &[b'x'; 4096]];

fn send_garbage(rig: &Rig) {
    let brokers = rig.kafka().address().to_string();
    let stranger: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    for bytes in GARBAGE {
        stranger.send(BaseRecord::<(), _>::to("overwatch.events").payload(bytes)).map_err(|(error, _)| error).unwrap();
    }
    stranger.flush(DEADLINE).unwrap();
}

/// This broker keeps everything in memory: what it has is stored before it is killed, by a sink of its own that is away then
/// (see the campaign's fault of this name).
#[test]
fn sigterm_while_the_broker_is_dead_loses_nothing() {
    let mut rig = Rig::start(Kind::Relay);
    let home = tempfile::tempdir().unwrap();
    let mut sink = rig.sink(Setup::new(home.path()));
    let load = Load::start(&rig.engine);
    load.wait_for_requests(20);
    rig.take(load.stop());
    assert!(rig.check().holds());
    rig.kafka().hold(true);
    assert!(sink.terminate().success());
    let kill = |rig: &mut Rig, load: &Load| {
        rig.broker.as_mut().unwrap().kill();
        load.wait_for_requests(20);
    };
    let restart = |rig: &mut Rig| {
        rig.broker.as_mut().unwrap().restart();
        rig.kafka().hold(false);
    };
    plays_one(&mut rig, "killed", kill, restart);
    sink = rig.sink(Setup::new(home.path()));
    holds(&mut rig);
    drop(sink);
}

const BROKERS: i32 = 3;

#[test]
fn sigterm_while_brokers_answer_with_errors_or_slowly_loses_nothing() {
    let cluster = MockCluster::new(BROKERS).unwrap();
    cluster.create_topic("overwatch.events", 4, BROKERS).unwrap();
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path())
        .broker(&cluster.bootstrap_servers())
        .config("[sink]\nmax_age = \"50ms\"\n[redpanda.properties]\n\"session.timeout.ms\" = \"6000\"")
        .config("\"linger.ms\" = \"700\"");
    let mut rig = Rig::of(Kind::Embedded, home, setup);
    // See `broker_errors`: the mock needs a gentle load.
    rig.rest = Duration::from_millis(100);
    rig.settle();
    for (api, error) in [
        (Api::Produce, Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS),
        (Api::Produce, Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED),
        (Api::Fetch, Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR),
        (Api::OffsetCommit, Error::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE),
        (Api::Heartbeat, Error::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID),
    ] {
        let answer = |_: &mut Rig, load: &Load| {
            // As many as are asked until the engine has ended.
            cluster.request_errors(api, &[error; 1000]);
            load.wait_for_requests(20);
        };
        plays_one(&mut rig, &format!("{api:?}: {error:?}"), answer, |_| cluster.clear_request_errors(api));
    }
    let take_time = |time| (1..=BROKERS).for_each(|broker| cluster.broker_round_trip_time(broker, time).unwrap());
    let slow = |_: &mut Rig, load: &Load| {
        take_time(Duration::from_secs(2));
        load.wait_for_requests(20);
    };
    plays_one(&mut rig, "two seconds a round trip", slow, |_| take_time(Duration::ZERO));
    let down = |_: &mut Rig, load: &Load| {
        (1..=BROKERS).for_each(|broker| cluster.broker_down(broker).unwrap());
        load.wait_for_requests(20);
    };
    let up = |_: &mut Rig| (1..=BROKERS).for_each(|broker| cluster.broker_up(broker).unwrap());
    plays_one(&mut rig, "all brokers away", down, up);
    holds(&mut rig);
}

/// What a full disk answers, until nothing is answered any more.
const FULL: &[&str] = &["wal_disk_reserve", "wal_no_space", "shutting_down"];

fn on_a_full_disk(folder: &str, is_full: fn(&Rig) -> bool) {
    let home = tempfile::tempdir().unwrap();
    // Unmounted before the folder around it is removed with the rig.
    let mut rig;
    let disk = Disk::mount(&home.path().join(folder), SIZE);
    let setup = Setup::new(home.path()).config(RESERVE);
    rig = Rig::of(Kind::Embedded, home, setup);
    rig.may_refuse = FULL;
    rig.settle();
    let fill = |rig: &mut Rig, _: &Load| {
        disk.fill();
        eventually("it is full", || is_full(rig));
    };
    plays_one(&mut rig, folder, fill, |_| disk.free());
    holds(&mut rig);
}

#[test]
fn sigterm_while_the_disk_of_the_log_is_full_loses_nothing() {
    on_a_full_disk("data/wal", |rig| rig.engine.get("/health/ready").status == 503);
}

#[test]
fn sigterm_while_the_disk_of_clickhouse_is_full_loses_nothing() {
    on_a_full_disk("data/clickhouse", |rig| {
        rig.engine.component("sink")["reason"].as_str().is_some_and(|reason| reason.contains("space"))
    });
}

#[test]
fn sigterm_while_a_damaged_log_is_salvaged_loses_nothing_that_is_intact() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[wal]\nmax_disk_bytes = \"128MiB\"");
    let mut rig = Rig::of(Kind::Apart, home, setup);
    // Random text, which does not compress: some generations.
    for _ in 0..60 {
        let ids: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
        let noise = || (0..1200).map(|_| Uuid::new_v4().simple().to_string()).collect::<String>();
        let event = |id| json!({"id": id, "type": "custom", "name": "large", "session_id": "s", "noise": noise()});
        let events: Vec<_> = ids.iter().map(event).collect();
        assert_eq!(rig.engine.ingest(json!(events).to_string()).status, 200);
        rig.sent.acknowledged.extend(ids);
    }
    rig.engine.kill();
    let log = rig.home().join("data/wal/log");
    let mut generations: Vec<_> = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    generations.sort();
    assert!(generations.len() >= 3, "{generations:?}");
    // The one that was written is salvaged before anybody is served, the second when it is read.
    fs::remove_file(generations.last().unwrap().join("conf")).unwrap();
    fs::remove_file(generations[1].join("conf")).unwrap();
    rig.engine = rig.setup().spawn();
    rig.engine.wait_for_log("files of the write-ahead log are damaged");
    let status = rig.engine.terminate();
    assert_eq!(status.code(), Some(0), "{}", rig.engine.log());

    rig.restart(Sent::default());
    let read = |rig: &mut Rig, _: &Load| {
        rig.reach_clickhouse();
        rig.engine.wait_for_log("files of the write-ahead log are damaged");
    };
    plays_one(&mut rig, "a damaged generation is read", read, |_| ());
    holds(&mut rig);
}

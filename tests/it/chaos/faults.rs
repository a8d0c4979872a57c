//! The faults of a cycle, in the order of the table.

use std::{iter::repeat_with, thread, time::Duration};

use super::table::Row;
use crate::{
    durability::child_of,
    faults::sigterm::{BROKER, CLICKHOUSE, Case},
    power_loss,
    support::{
        engine::{DEADLINE, Setup, eventually, signal},
        fault_proxy::{Fault, Trap},
        kafka_proxy::{Call, When},
        kill_points::Point,
        load::{Load, Sent},
        power::{Disk, Unsynced},
        rig::{self, Kill, Kind, Rig, Round, random},
    },
};

/// Plays the rounds of a fault, told which cycle it is.
type Play = fn(usize) -> Row;

pub const FAULTS: [(&str, Play); 17] = [
    ("kill -9, embedded", |cycle| killed(Kind::Embedded, &vec![Kill::Random; if cycle == 0 { 8 } else { 30 }])),
    ("kill -9, with a broker", |cycle| killed(Kind::Broker, &vec![Kill::Random; if cycle == 0 { 3 } else { 8 }])),
    ("kill -9 around the flush of the log", around_the_flush),
    ("kill -9 between produce and removal", |_| killed(Kind::Broker, &[When::Asked, When::Answered].map(produce))),
    ("kill -9 between insert and commit", between_insert_and_commit),
    ("kill -9 during migration", during_migration),
    ("kill -9 during shutdown", |_| killed(Kind::Apart, &[Kill::Shutdown])),
    ("SIGTERM", sigterm),
    ("SIGTERM while something else fails", sigterm_during_a_fault),
    ("power loss", power_lost),
    ("ClickHouse killed", clickhouse_killed),
    ("ClickHouse frozen", clickhouse_frozen),
    ("ClickHouse refuses (500, TOO_MANY_PARTS, MEMORY_LIMIT)", clickhouse_refuses),
    ("ClickHouse slow, cut, answer lost", clickhouse_cut),
    ("broker frozen", broker_frozen),
    ("broker cut", broker_cut),
    ("broker killed, started empty", broker_killed),
];

/// How long something that is away stays so: short in the first cycle, which CI plays too.
fn outage(cycle: usize) -> Duration {
    if cycle == 0 { Duration::from_secs(3) } else { Duration::from_millis(1000 + random(30_000)) }
}

/// Requests go on being acknowledged while time passes.
fn pass(time: Duration, load: &Load) {
    load.wait_for_requests(1);
    thread::sleep(time);
    load.wait_for_requests(1);
}

fn killed(kind: Kind, kills: &[Kill]) -> Row {
    let mut rig = Rig::start(kind);
    let rounds: Vec<_> = kills.iter().map(|kill| rig.kill(*kill)).collect();
    Row::of(rig, rounds)
}

fn produce(when: When) -> Kill {
    Kill::Broker(Call::Produce, when)
}

fn around_the_flush(_: usize) -> Row {
    let points = [Point::BeforeAppend, Point::HalfAppend, Point::BeforeFlush, Point::AfterFlush];
    killed(Kind::Embedded, &points.map(Kill::Log))
}

fn between_insert_and_commit(cycle: usize) -> Row {
    // In turn without a broker and with one, where the commit is a call of its own.
    if cycle.is_multiple_of(2) {
        return killed(Kind::Apart, &[Trap::Insert, Trap::InsertAnswer].map(Kill::ClickHouse));
    }
    let commit = |when| Kill::Broker(Call::OffsetCommit, when);
    killed(Kind::Broker, &[Kill::ClickHouse(Trap::InsertAnswer), commit(When::Asked), commit(When::Answered)])
}

fn during_migration(_: usize) -> Row {
    let mut rig = Rig::start_away(Kind::Apart);
    let statement = |most| usize::try_from(random(most)).unwrap();
    // Fewer than there are statements, so that both are reached.
    let traps = [Trap::Migration(statement(12)), Trap::MigrationAnswer(statement(12))];
    let rounds: Vec<_> = traps.into_iter().filter_map(|trap| rig.kill_in_migration(trap)).collect();
    rig.reach_clickhouse();
    rig.settle();
    Row::of(rig, rounds)
}

fn sigterm(cycle: usize) -> Row {
    let mut rig = Rig::start(if cycle.is_multiple_of(2) { Kind::Embedded } else { Kind::Broker });
    let rounds: Vec<_> = repeat_with(|| rig.terminate()).take(2).collect();
    Row::of(rig, rounds)
}

/// Some of the faults, never the same ones for long.
fn sigterm_during_a_fault(cycle: usize) -> Row {
    let (kind, cases): (_, &[Case]) =
        if cycle.is_multiple_of(2) { (Kind::Apart, &CLICKHOUSE) } else { (Kind::Broker, &BROKER) };
    let mut rig = Rig::start(kind);
    let play = || {
        let (_, cause, end) = cases[usize::try_from(random(cases.len() as u64)).unwrap()];
        let round = rig.terminate_during(cause, end);
        rig.settle();
        round
    };
    let rounds: Vec<_> = repeat_with(play).take(3).collect();
    Row::of(rig, rounds)
}

fn power_lost(_: usize) -> Row {
    let mut home = tempfile::tempdir().unwrap();
    let disk = Disk::new(home.path());
    let setup = disk.setup();
    let mut engine = power_loss::start(&disk, &setup);
    let (mut all, mut rounds) = (Sent::default(), Vec::new());
    for unsynced in [Unsynced::Lost, Unsynced::Torn(random(u64::MAX))] {
        engine.clickhouse().stop_merges();
        let load = Load::start(&engine);
        load.wait_for_requests(20);
        thread::sleep(Duration::from_millis(random(700)));
        power_loss::kill_both(&disk, &mut engine);
        let mut sent = load.stop();
        disk.lose_power(unsynced);
        let recovery;
        (engine, recovery) = rig::start(&setup);
        sent.resend(&engine);
        all.acknowledged.extend(sent.acknowledged);
        rounds.push(Round { in_flight: sent.cut > 0, recovery, stages: Vec::new() });
    }
    let audit = all.audit(&engine.clickhouse(), 2 * DEADLINE);
    if !audit.holds() {
        home.disable_cleanup(true);
        eprintln!("files: {}", home.path().display());
    }
    Row::new(&audit, rounds)
}

fn clickhouse_killed(_: usize) -> Row {
    let mut rig = Rig::start(Kind::Embedded);
    let kill = |rig: &mut Rig, _: &Load| {
        let starts = |rig: &Rig| rig.engine.metric("ingestion_clickhouse_starts_total");
        let before = starts(rig);
        signal(child_of(rig.engine.pid()), "KILL");
        eventually("it is started again", || starts(rig) > before);
    };
    let rounds: Vec<_> = repeat_with(|| rig.disturb(kill)).take(2).collect();
    Row::of(rig, rounds)
}

fn clickhouse_frozen(cycle: usize) -> Row {
    let mut rig = Rig::start(Kind::Apart);
    let round = rig.disturb(|rig, load| {
        let pid = rig.server.as_ref().unwrap().process.id();
        signal(pid, "STOP");
        pass(outage(cycle), load);
        signal(pid, "CONT");
    });
    Row::of(rig, [round])
}

/// Inserts meet each of `faults` at least twice.
fn inserts_meet(faults: &[Fault]) -> Row {
    let mut rig = Rig::start(Kind::Apart);
    let meet = |rig: &Rig, load: &Load, fault: &Fault| {
        rig.proxy().set(fault.clone());
        eventually("inserts meet it", || rig.proxy().hit() >= 2);
        load.wait_for_requests(1);
        rig.proxy().set(Fault::None);
    };
    let rounds: Vec<_> = faults.iter().map(|fault| rig.disturb(|rig, load| meet(rig, load, fault))).collect();
    Row::of(rig, rounds)
}

fn clickhouse_refuses(_: usize) -> Row {
    inserts_meet(&[
        Fault::Answer(500, None, "Internal Server Error"),
        Fault::Answer(500, Some(252), "Code: 252. DB::Exception: Too many parts (300). (TOO_MANY_PARTS)"),
        Fault::Answer(500, Some(241), "Code: 241. DB::Exception: memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)"),
    ])
}

fn clickhouse_cut(cycle: usize) -> Row {
    // From the second cycle on also longer than the limit of an insert: it takes effect after it was given up.
    let slow = Fault::Slow(Duration::from_secs(if cycle == 0 { 1 } else { 6 }));
    inserts_meet(&[Fault::CutInTheMiddle, Fault::LoseAnswer, slow])
}

fn broker_frozen(cycle: usize) -> Row {
    let mut rig = Rig::start(Kind::Broker);
    let round = rig.disturb(|rig, load| {
        let broker = rig.broker.as_ref().unwrap();
        broker.freeze();
        pass(outage(cycle), load);
        broker.thaw();
    });
    Row::of(rig, [round])
}

fn broker_cut(cycle: usize) -> Row {
    let mut rig = Rig::start(Kind::Broker);
    let round = rig.disturb(|rig, load| {
        rig.kafka().cut();
        pass(outage(cycle), load);
        rig.kafka().mend();
    });
    Row::of(rig, [round])
}

/// This broker keeps everything in memory: what it has is stored before it is killed, and what comes in meanwhile waits in the
/// log. A sink that is in its group would crash: asked for the topic that it had before, it answers with an id of zeros, on
/// which librdkafka 2.12.1 stumbles (see `broker/real.rs`). So the sink is an engine of its own, away at that moment.
fn broker_killed(_: usize) -> Row {
    let mut rig = Rig::start(Kind::Relay);
    let home = tempfile::tempdir().unwrap();
    let sink = |rig: &Rig| rig.sink(Setup::new(home.path()));
    let mut sink_engine = sink(&rig);
    let load = Load::start(&rig.engine);
    load.wait_for_requests(20);
    rig.take(load.stop());
    let stored = rig.check();
    assert!(stored.holds(), "before the fault: {stored:?}");
    rig.kafka().hold(true);
    let round = rig.disturb(|rig, load| {
        assert!(sink_engine.terminate().success());
        load.wait_for_requests(20);
        rig.broker.as_mut().unwrap().kill_and_restart();
        rig.kafka().hold(false);
        sink_engine = sink(rig);
    });
    let row = Row::of(rig, [round]);
    drop(sink_engine);
    row
}

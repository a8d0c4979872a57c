//! The engine itself, ended at any instant and at every point where it matters.

use crate::support::{
    engine::eventually,
    fault_proxy::Trap,
    kafka_proxy::{Call, When},
    kill_points::{Point, Stage},
    rig::{Kill, Kind, Rig},
};

/// kill -9 under load, every time with requests in flight; what had no answer is sent again.
fn killed(kind: Kind, kills: &[Kill]) {
    let mut rig = Rig::start(kind);
    for (number, kill) in kills.iter().enumerate() {
        let round = rig.kill(*kill);
        assert!(round.in_flight, "round {number}, {kill:?}: requests were in flight at the kill");
        match kill {
            Kill::Log(Point::BeforeAppend | Point::HalfAppend) => assert!(round.stages.contains(&Stage::Append)),
            Kill::Log(Point::BeforeFlush | Point::AfterFlush) => assert!(round.stages.contains(&Stage::Flush)),
            _ => {}
        }
    }
    is_stored_once(&mut rig);
}

fn is_stored_once(rig: &mut Rig) {
    let audit = rig.check();
    assert!(audit.holds(), "{audit:?}");
    eventually("health clears by itself", || rig.is_up());
}

#[test]
fn kill_9_at_random_instants_stores_everything_once() {
    killed(Kind::Embedded, &[Kill::Random; 20]);
}

#[test]
fn kill_9_at_random_instants_with_a_broker_loses_nothing() {
    killed(Kind::Broker, &[Kill::Random; 5]);
}

#[test]
fn kill_9_around_the_flush_of_the_log_stores_everything_once() {
    let points = [Point::BeforeAppend, Point::HalfAppend, Point::BeforeFlush, Point::AfterFlush];
    killed(Kind::Embedded, &points.map(Kill::Log).repeat(2));
}

#[test]
fn kill_9_between_produce_and_removal_from_the_log_stores_everything_once() {
    let kills = [
        Kill::Broker(Call::Produce, When::Asked),
        Kill::Broker(Call::Produce, When::Answered),
        Kill::Broker(Call::OffsetCommit, When::Asked),
        Kill::Broker(Call::OffsetCommit, When::Answered),
        Kill::ClickHouse(Trap::Insert),
        Kill::ClickHouse(Trap::InsertAnswer),
    ];
    killed(Kind::Broker, &kills);
}

#[test]
fn kill_9_between_insert_and_commit_stores_everything_once() {
    killed(Kind::Apart, &[Trap::Insert, Trap::InsertAnswer].map(Kill::ClickHouse).repeat(2));
}

#[test]
fn kill_9_during_shutdown_stores_everything_once() {
    killed(Kind::Apart, &[Kill::Shutdown; 3]);
}

#[test]
fn kill_9_during_migration_stores_everything_once_that_was_acknowledged_meanwhile() {
    let mut rig = Rig::start_away(Kind::Apart);
    let mut rounds = 0;
    loop {
        // Statements and their records take turns, and each attempt begins with the two that make the table of records.
        let further = [3, 8, 5, 12][rounds % 4];
        let trap = if rounds % 2 == 0 { Trap::Migration(further) } else { Trap::MigrationAnswer(further) };
        let Some(round) = rig.kill_in_migration(trap) else { break };
        assert!(round.in_flight, "round {rounds}: requests were in flight at the kill");
        rounds += 1;
        assert!(rounds < 100, "every attempt gets further");
    }
    assert!(rounds > 5, "it was killed {rounds} times");
    rig.settle();
    is_stored_once(&mut rig);
}

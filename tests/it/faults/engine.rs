//! The engine itself, ended at any instant.

use std::{thread, time::Duration};

use crate::support::{
    engine::{Setup, eventually},
    load::{Load, Sent},
    tansu::Tansu,
};

/// A number below `below` that differs from round to round and from run to run.
fn random(below: u64) -> u64 {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    random % below
}

/// kill -9 at random instants under load, every time with requests in flight; what had no answer is sent again.
fn killed(setup: &Setup, rounds: usize) {
    let mut all = Sent::default();
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    for round in 0..rounds {
        let load = Load::start(&engine);
        load.wait_for_requests(10);
        thread::sleep(Duration::from_millis(random(1000)));
        engine.kill();
        let mut sent = load.stop();
        assert!(sent.broken > 0, "round {round}: requests were in flight at the kill");
        engine = setup.start();
        engine.clickhouse().stop_merges();
        sent.resend(&engine);
        all.acknowledged.extend(sent.acknowledged);
    }
    all.is_stored_once(&engine.clickhouse());
    eventually("health clears by itself", || engine.get("/health").json()["status"] == "up");
}

#[test]
fn kill_9_at_random_instants_stores_everything_once() {
    let home = tempfile::tempdir().unwrap();
    killed(&Setup::new(home.path()), 20);
}

#[test]
fn kill_9_at_random_instants_with_a_broker_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let broker = Tansu::start();
    killed(&Setup::new(home.path()).broker(&broker.brokers()), 5);
}

//! The power goes: what was not synced is taken back, and every acknowledged event is stored all the same, once.
//!
//! `tests/power_loss/shim.c` says what is taken for synced. The engine and its ClickHouse child both run under it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    durability::child_of,
    support::{
        engine::{Engine, Setup, eventually, signal},
        load::{Load, Sent},
        power::{Disk, Unsynced},
    },
};

/// Both processes at one instant: neither sees the other's end.
pub(crate) fn kill_both(disk: &Disk, engine: &mut Engine) {
    let (engine_pid, child) = (engine.pid(), child_of(engine.pid()));
    assert!(disk.has(engine_pid) && disk.has(child), "the engine and its ClickHouse are on the disk");
    for name in ["STOP", "KILL"] {
        signal(engine_pid, name);
        signal(child, name);
    }
    engine.kill();
    eventually("the child is gone", || !std::path::Path::new(&format!("/proc/{child}")).exists());
}

fn environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// A start on `disk`, whose configuration is durable.
pub(crate) fn start(disk: &Disk, setup: &Setup) -> Engine {
    if !disk.tree().join("engine.toml").exists() {
        drop(setup.command("serve"));
        disk.settle();
    }
    setup.start()
}

/// Numbers that look random, and are the same for the same seed.
fn draw(seed: u64, round: u64) -> u64 {
    let mut state = (seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state ^ (state >> 27)
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_and_is_stored_once() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::new(home.path());
    let setup = disk.setup();
    let (rounds, seed) = (environment("POWER_LOSS_ROUNDS", 6), environment("POWER_LOSS_SEED", 1));
    let mut acknowledged = HashSet::new();
    for round in 0..rounds {
        let drawn = draw(seed, round);
        let unsynced = if round % 2 == 0 { Unsynced::Lost } else { Unsynced::Torn(drawn) };
        eprintln!("round {round} of seed {seed}: {unsynced:?}");
        let mut engine = start(&disk, &setup);
        let clickhouse = engine.clickhouse();
        let load = Load::start(&engine);
        if round >= rounds / 2 {
            // No merge hides a duplicate of the later rounds; those of the earlier ones survive their merges.
            clickhouse.query("SYSTEM STOP MERGES");
        }
        load.wait_for_requests(usize::try_from(20 + drawn % 100).unwrap());
        std::thread::sleep(Duration::from_millis(drawn % 700));
        kill_both(&disk, &mut engine);
        let mut sent = load.stop();
        assert_eq!(sent.refused, Vec::<String>::new());
        disk.lose_power(unsynced);

        let engine = start(&disk, &setup);
        sent.resend(&engine);
        acknowledged.extend(sent.acknowledged);
        let sent = Sent { acknowledged: acknowledged.clone(), ..Sent::default() };
        sent.is_stored_once(&engine.clickhouse());
        drop(engine);
    }
}

/// The negative control: the same, with the engine told not to wait for the disk.
#[test]
fn without_fsync_the_shim_takes_back_what_was_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::new(home.path());
    // No ClickHouse: what is in the log is what there is.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = |durability: &str| {
        let config = format!("[wal]\ndurability = \"{durability}\"\n");
        disk.setup().config(&config).env("INGESTION_CLICKHOUSE_URL", format!("http://{free}"))
    };
    let mut left = HashMap::new();
    for durability in ["os", "fsync"] {
        let mut engine = start(&disk, &away(durability));
        let before = engine.metric("ingestion_wal_events");
        for n in 0..20 {
            assert_eq!(engine.ingest(format!(r#"{{"type":"custom","name":"n{n}"}}"#)).status, 200);
        }
        engine.kill();
        disk.lose_power(Unsynced::Lost);
        let engine = start(&disk, &away(durability));
        left.insert(durability, engine.metric("ingestion_wal_events") - before);
    }
    assert_eq!(left, HashMap::from([("os", 0), ("fsync", 20)]));
}

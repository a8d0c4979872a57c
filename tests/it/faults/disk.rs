//! The disk fills up: the log's, ClickHouse's, or the one of both. Then there is space again.
//!
//! The disk is a small tmpfs of the test's own, which a file fills to the last byte. Mounting needs root, or a sudo that
//! does not ask.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;
use uuid::Uuid;

use crate::{
    durability::child_of,
    support::{
        engine::{Engine, Setup, eventually, signal},
        load::Load,
    },
};

/// A file system of its own size.
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    pub(super) fn mount(path: &Path, bytes: u64) -> Self {
        fs::create_dir_all(path).unwrap();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let options = format!("size={bytes},uid={uid},gid={gid},mode=0700");
        as_root(&["mount", "-t", "tmpfs", "-o", &options, "ingestion-test"], path);
        Self { path: path.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the space that there is, also what is given back meanwhile, until it is full and stays so.
    pub(super) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let block = vec![1; size];
            loop {
                match file.write(&block) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    pub(super) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the ClickHouse child of an engine that was killed may take a moment to end.
        as_root(&["umount", "--lazy"], &self.path);
    }
}

fn as_root(command: &[&str], path: &Path) {
    let run = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(path).stdin(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let with_sudo = [&["sudo", "-n"], command].concat();
    assert!(run(command) || run(&with_sudo), "{command:?} needs root, or a sudo that does not ask");
}

pub(super) const SIZE: u64 = 400 << 20;
pub(super) const RESERVE: &str = "[wal]\nmin_free_bytes = \"64MB\"";

fn is_up(engine: &Engine) {
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
}

/// Requests are refused, with words, and health has the same. What was taken before counts as acknowledged.
fn refuses(engine: &Engine, acknowledged: &mut HashSet<Uuid>) {
    let mut send = || {
        let id = Uuid::now_v7();
        let answer = engine.ingest(json!({"id": id, "type": "custom", "name": "probe"}).to_string());
        if answer.status == 200 {
            acknowledged.insert(id);
        }
        answer
    };
    eventually("requests are refused", || send().status != 200);
    let answer = send();
    let code = answer.json()["code"].as_str().unwrap().to_owned();
    assert!(answer.status == 503 && ["wal_disk_reserve", "wal_no_space"].contains(&code.as_str()), "{answer:?}");
    assert_eq!(answer.header("retry-after"), "10");
    assert_eq!(engine.get("/health/ready").status, 503);
    let report = engine.component("wal");
    assert!(report["state"] == "down" && report["reason"].as_str().unwrap().contains("refuse"), "{report}");
}

fn takes_again(engine: &Engine) {
    eventually("ready again", || engine.get("/health/ready").status == 200);
}

#[test]
fn a_full_disk_of_the_log_refuses_and_recovers_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&home.path().join("data/wal"), SIZE);
    let setup = Setup::new(home.path()).config(RESERVE);
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    let mut probes = HashSet::new();
    let load = Load::start(&engine);
    for _ in 0..2 {
        load.wait_for_requests(20);
        disk.fill();
        refuses(&engine, &mut probes);
        disk.free();
        takes_again(&engine);
    }
    load.wait_for_requests(20);
    // Ended while the disk is full, and started on the full disk.
    disk.fill();
    refuses(&engine, &mut probes);
    engine.kill();
    let mut sent = load.stop();
    assert!(sent.only_refused_with(&["wal_disk_reserve", "wal_no_space"]), "{:?}", sent.refused);
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    refuses(&engine, &mut probes);
    disk.free();
    takes_again(&engine);
    sent.resend(&engine);
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    sent.acknowledged.extend(load.stop().acknowledged);
    sent.acknowledged.extend(probes);
    sent.is_stored_once(&clickhouse);
    is_up(&engine);
}

#[test]
fn a_full_disk_of_clickhouse_shows_in_health_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&home.path().join("data/clickhouse"), SIZE);
    let engine = Setup::new(home.path()).start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    is_up(&engine);
    let load = Load::start(&engine);
    for killed in [false, true] {
        load.wait_for_requests(20);
        disk.fill();
        eventually("health says why nothing is stored", || {
            let report = engine.component("sink");
            report["state"] != "up" && report["reason"].as_str().is_some_and(|reason| reason.contains("space"))
        });
        assert_eq!(engine.get("/health/ready").status, 200, "ready means: can accept durably");
        load.wait_for_requests(20);
        if killed {
            signal(child_of(engine.pid()), "KILL");
            eventually("it is started again", || engine.metric("ingestion_clickhouse_starts_total") > 1);
        }
        disk.free();
        is_up(&engine);
        clickhouse.stop_merges();
    }
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "accepted throughout");
    sent.is_stored_once(&clickhouse);
}

#[test]
fn a_full_disk_of_log_and_clickhouse_refuses_and_recovers_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&home.path().join("data"), SIZE);
    let setup = Setup::new(home.path()).config(RESERVE);
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    is_up(&engine);
    let mut probes = HashSet::new();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    disk.fill();
    refuses(&engine, &mut probes);
    disk.free();
    takes_again(&engine);
    is_up(&engine);
    load.wait_for_requests(20);
    disk.fill();
    refuses(&engine, &mut probes);
    // Told to stop while nothing can be written.
    assert_eq!(engine.terminate().code(), Some(0), "{}", engine.log());
    let mut sent = load.stop();
    assert!(sent.only_refused_with(&["wal_disk_reserve", "wal_no_space", "shutting_down"]), "{:?}", sent.refused);
    let engine = setup.start();
    refuses(&engine, &mut probes);
    disk.free();
    takes_again(&engine);
    engine.clickhouse().stop_merges();
    sent.resend(&engine);
    sent.acknowledged.extend(probes);
    sent.is_stored_once(&engine.clickhouse());
    is_up(&engine);
}

//! What was acknowledged is there, whatever ends the engine.

use std::{fs, process::Stdio, time::Duration};

use serde_json::json;
use uuid::Uuid;

use crate::support::{
    engine::{ClickHouse, Setup, eventually, signal},
    load::Load,
    process::ToEnd,
};

#[test]
fn kill_9_under_load_loses_nothing_that_was_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let mut acknowledged = std::collections::HashSet::new();
    for _ in 0..3 {
        let mut engine = setup.start();
        engine.clickhouse();
        let load = Load::start(&engine);
        load.wait_for_requests(100);
        engine.kill();
        let sent = load.stop();
        assert!(sent.broken > 0, "requests were in flight at the kill");
        acknowledged.extend(sent.acknowledged);
    }
    let engine = setup.start();
    let sent = crate::support::load::Sent { acknowledged, ..crate::support::load::Sent::default() };
    sent.wait_until_stored(&engine.clickhouse());
}

#[test]
fn sigterm_under_load_answers_what_is_in_flight_and_exits_0() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let mut engine = setup.start();
    engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(100);
    let status = engine.terminate();
    let sent = load.stop();
    assert_eq!(status.code(), Some(0), "{}", engine.log());
    assert_eq!(sent.refused, Vec::<String>::new(), "nothing in flight was refused");
    let engine = setup.start();
    sent.wait_until_stored(&engine.clickhouse());
}

/// What a merge leaves on a file system that is full (seen on tmpfs): its part is in use, and every small file of it is empty.
#[test]
fn an_empty_part_that_a_merge_has_left_gives_way_to_those_that_it_was_made_of() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"50ms\"");
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(200);
    let sent = load.stop();
    sent.wait_until_stored(&clickhouse);
    clickhouse.query("OPTIMIZE TABLE overwatch.events FINAL");
    clickhouse.stop_merges();
    let merged =
        "SELECT path FROM system.parts WHERE active AND database = 'overwatch' AND table = 'events' AND level > 0";
    let part = clickhouse.query(&format!("{merged} LIMIT 1"));
    for file in fs::read_dir(part.trim()).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().is_some_and(|name| name != "data.bin") {
            fs::File::options().write(true).truncate(true).open(file).unwrap();
        }
    }
    engine.wait_for_log("a merge has left an empty part");
    eventually("it is started again", || engine.metric("ingestion_clickhouse_starts_total") == 2 && engine.is_up());
    sent.is_stored_once(&clickhouse);
    setup.ledger().unwrap();
}

#[test]
fn the_clickhouse_child_killed_under_load_is_restarted_and_all_arrives() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    for kill in 1..=3 {
        load.wait_for_requests(50);
        signal(child_of(engine.pid()), "KILL");
        eventually("the child is started again", || engine.metric("ingestion_clickhouse_starts_total") > kill);
    }
    load.wait_for_requests(50);
    let sent = load.stop();
    assert_eq!((sent.refused, sent.broken), (Vec::new(), 0), "accepted throughout");
    let sent = crate::support::load::Sent { acknowledged: sent.acknowledged, ..crate::support::load::Sent::default() };
    sent.wait_until_stored(&clickhouse);
    assert_eq!(
        clickhouse.number("SELECT count() FROM overwatch.events"),
        clickhouse.number("SELECT uniqExact(tenant_id, event_id) FROM overwatch.events"),
        "a repeated insert is dropped by its token"
    );
    eventually("health clears by itself", || engine.get("/health").json()["status"] == "up");
}

/// The only child of the engine's process: its embedded ClickHouse.
pub fn child_of(pid: u32) -> u32 {
    let mut child = None;
    eventually("the engine has a child", || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let all = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
        child = all.chain([text]).find_map(|text| text.split_whitespace().next()?.parse().ok());
        child.is_some()
    });
    child.unwrap()
}

#[test]
fn a_clickhouse_that_is_away_shows_in_health_and_not_in_the_answers() {
    let home = tempfile::tempdir().unwrap();
    // A port that nobody listens on: the server of a configuration that is right and down.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup = Setup::new(home.path());
    let mut engine = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", format!("http://{free}")).start();
    let ids: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
    for id in &ids {
        let event = json!({"id": id, "type": "custom", "name": "n"});
        assert_eq!(engine.ingest(event.to_string()).status, 200);
    }
    eventually("health names ClickHouse", || engine.component("clickhouse")["state"] == "down");
    let report = engine.component("clickhouse");
    assert!(report["reason"].as_str().unwrap().contains("cannot be reached"), "{report}");
    let health = engine.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")));
    assert_eq!(engine.get("/health/ready").status, 200, "ready means: can accept durably");
    eventually("the log's gauge follows", || engine.metric("ingestion_wal_events") == 50);
    assert_eq!(engine.terminate().code(), Some(0));

    // The same log, now with an engine of its own behind it; `drain` exits once it is empty.
    let (status, text) = setup.run("drain");
    assert!(status.success(), "{text}");
    let engine = setup.start();
    engine.clickhouse().wait_for("SELECT count(), uniqExact(event_id) FROM overwatch.events", "50\t50");
    eventually("the log's gauge follows", || engine.metric("ingestion_wal_events") == 0);
}

#[test]
fn drain_that_cannot_empty_the_log_does_not_say_so() {
    let home = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", format!("http://{free}"));
    let mut engine = away.start();
    assert_eq!(engine.ingest(r#"{"type":"custom","name":"n"}"#).status, 200);
    engine.terminate();
    let mut drain = away.command("drain").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It goes on trying until it is told to stop, and then says that it did not finish.
    std::thread::sleep(Duration::from_secs(2));
    assert!(drain.try_wait().unwrap().is_none(), "it ended with a log that is not empty");
    signal(drain.id(), "TERM");
    assert_eq!(drain.to_end().status.code(), Some(1));
}

#[test]
fn a_full_log_refuses_with_503_and_recovers_as_it_drains() {
    let home = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let small = "[wal]\nmax_disk_bytes = \"64MiB\"\n";
    let setup = Setup::new(home.path()).config(small);
    let mut engine =
        Setup::new(home.path()).config(small).env("INGESTION_CLICKHOUSE_URL", format!("http://{free}")).start();
    let mut accepted = 0;
    let refused = loop {
        // Random text, so that it is the log's quota that ends this and not the compression.
        let blob: String = (0..2000).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let event = json!({"type": "custom", "name": "n", "blob": blob.get(..60_000)});
        let answer = engine.ingest(json!([event, event, event, event]).to_string());
        if answer.status != 200 {
            break answer;
        }
        accepted += 4;
        assert!(accepted < 100_000, "the quota never bites");
    };
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("wal_disk_quota")), "{refused:?}");
    assert_eq!(refused.header("retry-after"), "10");
    assert_eq!(engine.get("/health/ready").status, 503);
    let report = engine.component("wal");
    assert!(report["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{report}");
    assert_eq!(engine.terminate().code(), Some(0));

    let engine = setup.start();
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", &accepted.to_string());
    eventually("the log takes events again", || engine.ingest(r#"{"type":"custom","name":"n"}"#).status == 200);
    eventually("ready again", || engine.get("/health/ready").status == 200);
}

#[test]
fn a_frozen_clickhouse_server_shows_in_health_and_clears() {
    let (home, server_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let port_file = server_home.path().join("port");
    let server = Setup::new(server_home.path())
        .command("clickhouse")
        .arg("--port-file")
        .arg(&port_file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the server answers", || port_file.exists());
    assert!(server_home.path().join("data/clickhouse").exists(), "its folder comes from the configuration");
    let port = std::fs::read_to_string(&port_file).unwrap();
    let url = format!("http://127.0.0.1:{}", port.trim());
    let engine = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", &url).start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    signal(server.id(), "STOP");
    eventually("health names ClickHouse", || engine.component("clickhouse")["state"] == "down");
    assert_eq!(engine.ingest(r#"{"type":"custom","name":"meanwhile"}"#).status, 200);
    signal(server.id(), "CONT");
    eventually("health clears", || engine.get("/health").json()["status"] == "up");
    ClickHouse::at(&url).wait_for("SELECT name FROM overwatch.events", "meanwhile");
    drop(engine);
    signal(server.id(), "TERM");
    assert!(server.to_end().status.success());
}

#[test]
fn a_damaged_record_of_what_was_in_flight_keeps_nothing_from_being_stored_once() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let mut engine = setup.start();
    engine.clickhouse().stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(100);
    let record = home.path().join("data/wal/state/sink");
    eventually("ranges are given out", || record.exists());
    engine.kill();
    let acknowledged = load.stop().acknowledged;
    let mut bytes = std::fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&record, &bytes).unwrap();

    let engine = setup.start();
    engine.wait_for_log("which ranges were on their way to ClickHouse is not known");
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let sent = crate::support::load::Sent { acknowledged, ..crate::support::load::Sent::default() };
    sent.wait_until_stored(&clickhouse);
    assert_eq!(clickhouse.query("SELECT count() - uniqExact(event_id) FROM overwatch.events"), "0");
}

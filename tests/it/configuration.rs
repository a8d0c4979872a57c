//! The command line and the configuration, as an operator meets them.

use std::process::Command;

use crate::support::{
    engine::{Setup, eventually},
    process::ToEnd,
};

#[test]
fn a_wrong_configuration_names_every_wrong_key_and_exits_64() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path())
        .config("[limits]\nevents_per_request = 0\nbody_bites = 7\n[quota]\nevents_burst = 5\n")
        .env("INGESTION_WAL_DURABILITY", "maybe");
    for subcommand in ["serve", "check-config", "migrate", "drain"] {
        let (status, text) = setup.run(subcommand);
        assert_eq!(status.code(), Some(64), "{subcommand}: {text}");
        for wrong in ["limits.events_per_request", "limits.body_bites", "INGESTION_WAL_DURABILITY"] {
            assert!(text.contains(wrong), "{subcommand} does not name {wrong}:\n{text}");
        }
    }
    let usage = Command::new(env!("CARGO_BIN_EXE_ingestion-engine")).arg("--wrong").to_end();
    assert_eq!(usage.status.code(), Some(64));
}

#[test]
fn a_burst_below_the_request_limits_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (status, text) = Setup::new(home.path()).config("[quota]\nevents_burst = 5000\nbytes_burst = 100").run("serve");
    assert_eq!(status.code(), Some(64), "{text}");
    assert!(text.contains("quota.events_burst") && text.contains("quota.bytes_burst"), "{text}");
}

#[test]
fn check_config_shows_what_is_in_effect_and_hides_secrets() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path())
        .env("INGESTION_CLICKHOUSE_PASSWORD", "hunter2")
        .env("INGESTION_SINK_MAX_ROWS", "1234")
        .env("INGESTION_SINK_MAXROWS", "1");
    let (status, text) = setup.run("check-config");
    assert!(status.success(), "{text}");
    assert!(text.contains("max_rows = 1234") && text.contains("INGESTION_SINK_MAX_ROWS"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("\"secret\""), "{text}");
    assert!(text.contains("INGESTION_SINK_MAXROWS"), "a misspelt name is warned of: {text}");
}

#[test]
fn a_second_engine_on_the_same_folder_refuses_and_says_who_holds_it() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let first = setup.start();
    let (status, text) = setup.run("serve");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&first.pid().to_string()), "the holder's pid is named: {text}");
    assert_eq!(first.get("/health/ready").status, 200, "the first one goes on");
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let home = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, text) = Setup::new(home.path()).env("INGESTION_PORT", &port).run("serve");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
    let (status, text) = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_EMBEDDED_PORT", &port).run("serve");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&port), "{text}");
}

#[test]
fn migrate_makes_the_tables_and_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let (status, text) = setup.run("migrate");
    assert!(status.success() && text.contains("0001_events.sql"), "{text}");
    let (status, text) = setup.run("migrate");
    assert!(status.success() && text.contains("up to date"), "{text}");
}

#[test]
fn health_says_what_is_up_and_metrics_count() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).start();
    eventually("all components are up", || engine.get("/health").json()["status"] == "up");
    let health = engine.get("/health").json();
    assert_eq!(health["durability"], "fsync");
    for component in ["wal", "clickhouse", "sink"] {
        assert_eq!(health["components"][component]["state"], "up", "{health}");
        assert!(health["components"][component]["since"].is_string(), "{health}");
    }
    assert_eq!((engine.get("/health/live").status, engine.get("/health/ready").status), (200, 200));
    assert!(engine.metric("ingestion_requests_total{route=\"/health\",status=\"200\"}") >= 2);
    assert_eq!(engine.metric("ingestion_clickhouse_starts_total"), 1);
}

#[test]
fn a_weaker_durability_is_shown_in_every_answer() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).env("INGESTION_WAL_DURABILITY", "os").start();
    assert_eq!(engine.get("/health").json()["durability"], "os");
    assert_eq!(engine.ingest(r#"{"type":"custom","name":"n"}"#).json()["durability"], "os");
}

#[test]
fn the_admin_port_keeps_metrics_off_the_public_one() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).env("INGESTION_SERVER_ADMIN_LISTEN", "127.0.0.1:0").start();
    assert_eq!(engine.get("/metrics").status, 404);
    let line: serde_json::Value = serde_json::from_str(&engine.wait_for_log("admin listening")).unwrap();
    let url = format!("http://{}", line["address"].as_str().unwrap());
    for path in ["/metrics", "/health", "/health/ready"] {
        let answer = crate::support::engine::agent().get(format!("{url}{path}")).call().unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
}

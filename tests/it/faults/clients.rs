//! Clients that vanish in the middle of a request or drip it byte by byte.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, KEY, Setup, TENANT, eventually},
        load::Load,
    },
};

pub(super) fn connect(engine: &Engine) -> TcpStream {
    TcpStream::connect(engine.api().strip_prefix("http://").unwrap()).unwrap()
}

/// The head of a request to `/ingest`, with one more header that says how long its body is.
pub(super) fn head(length: &str) -> String {
    format!("POST /ingest HTTP/1.1\r\nhost: engine\r\nauthorization: Bearer {TENANT}:{KEY}\r\n{length}\r\n\r\n")
}

/// Events that are whole in the half of the body that is sent: a reader that takes what it has would take them.
fn events() -> String {
    let event = |_| json!({"id": Uuid::now_v7(), "type": "pageview", "path": "/never"}).to_string();
    (0..20).map(event).collect::<Vec<_>>().join(",\n")
}

#[test]
fn clients_that_vanish_in_the_middle_of_a_body_leave_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    // Room for a few bodies only: what a vanished client held must be given back.
    let engine = Setup::new(home.path())
        .config("[limits]\nbody_bytes = \"1MiB\"\ndecompressed_bytes = \"1MiB\"\nin_flight_bytes = \"4MiB\"")
        .start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(10);
    for round in 0..200 {
        let mut client = connect(&engine);
        let (events, padding) = (events(), " ".repeat(500_000));
        let (length, body) = match round % 3 {
            // Whole JSON, and a promise of more.
            0 => ("content-length: 900000", format!("[{events}]{padding}")),
            1 => ("content-length: 900000", format!("[{events},{padding}")),
            _ => {
                let chunk = format!("[{events}]{padding}");
                ("transfer-encoding: chunked", format!("{:x}\r\n{chunk}\r\n", chunk.len()))
            }
        };
        client.write_all(head(length).as_bytes()).unwrap();
        // An engine that has no room answers at once and closes.
        let sent = client.write_all(body.as_bytes());
        assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() != ErrorKind::WouldBlock));
        if round % 2 == 0 {
            client.shutdown(Shutdown::Both).ok();
        }
        drop(client);
        if round % 20 == 0 {
            load.wait_for_requests(1);
        }
    }
    load.wait_for_requests(20);
    let sent = load.stop();
    assert_eq!(sent.broken, 0, "whole requests are answered");
    assert!(sent.only_refused_with(&["overloaded", "too_much_in_flight"]), "{:?}", sent.refused);
    // All of the room is there again: a request that takes a quarter of it.
    let large = format!("[{}{}]", r#"{"type":"custom","name":"large"}"#, " ".repeat(900_000));
    for _ in 0..8 {
        let mut answer = None;
        eventually("there is room again", || {
            answer = engine.try_ingest(&large);
            answer.as_ref().is_some_and(|answer| answer.status == 200)
        });
    }
    clickhouse.wait_for("SELECT count() FROM overwatch.events WHERE name = 'large'", "8");
    assert_eq!(clickhouse.number("SELECT count() FROM overwatch.events WHERE path = '/never'"), 0);
    sent.wait_until_stored(&clickhouse);
    let rows = "SELECT count() FROM overwatch.events WHERE name != 'large'";
    clickhouse.wait_for(rows, &sent.acknowledged.len().to_string());
    eventually("health is up", || engine.get("/health").json()["status"] == "up");
}

/// As many as the issue asks for, or as the system lets one process open.
fn many() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let files = limit.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap());
    // The engine, which inherits the limit, needs some for itself; so does this process.
    10_000.min(files.saturating_sub(1_000))
}

#[test]
fn thousands_of_connections_that_drip_do_not_keep_others_from_being_served() {
    let count = many();
    eprintln!("{count} connections");
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path())
        .env("INGESTION_SERVER_HEADER_TIMEOUT", "20s")
        .env("INGESTION_SERVER_REQUEST_TIMEOUT", "20s")
        .start();
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    let mut slow: Vec<TcpStream> = (0..count)
        .map(|number| {
            let mut client = connect(&engine);
            client.set_nonblocking(true).unwrap();
            if number % 2 == 1 {
                // This one drips its body, the others their heads.
                client.write_all(head("content-length: 1000").as_bytes()).unwrap();
            }
            client
        })
        .collect();
    let load = Load::start(&engine);
    for _ in 0..10 {
        let second = Instant::now();
        for client in &mut slow {
            // It may have been closed for its slowness.
            client.write_all(b"P").ok();
        }
        load.wait_for_requests(5);
        thread::sleep(Duration::from_secs(1).saturating_sub(second.elapsed()));
    }
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "others are served throughout");
    eventually("health is up", || engine.get("/health").json()["status"] == "up");
    // None of them lives for longer than a request may take.
    eventually("the slow ones are turned away", || {
        slow.retain_mut(|client| {
            let mut answer = [0; 1024];
            !matches!(client.read(&mut answer), Ok(0)) && client.write_all(b"P").is_ok()
        });
        slow.is_empty()
    });
    sent.is_stored_once(&clickhouse);
}

/// What others leave of the files that it may open is enough for the engine's own work: its log, its ClickHouse.
#[test]
fn a_flood_of_connections_leaves_files_for_the_engines_own() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("clickhouse"));
    let engine = Setup::new(home.path())
        // Small generations: the log opens files all the time.
        .config("[wal]\nmax_disk_bytes = \"64MiB\"\n[sink]\nmax_age = \"50ms\"")
        .env("INGESTION_CLICKHOUSE_URL", server.url())
        // Who says nothing for so long makes room for others.
        .env("INGESTION_SERVER_HEADER_TIMEOUT", "5s")
        .files(200)
        .start();
    let clickhouse = ClickHouse::at(&server.url());
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    clickhouse.stop_merges();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    // More than it takes, which is half of the files here: the rest waits in the kernel.
    let flood: Vec<TcpStream> = (0..150).map(|_| connect(&engine)).collect();
    engine.wait_for_log("as many connections are open");
    let stored = "SELECT count() FROM overwatch.events";
    for _ in 0..3 {
        let before = clickhouse.number(stored);
        load.wait_for_requests(100);
        eventually("events are stored meanwhile", || clickhouse.number(stored) > before);
    }
    drop(flood);
    let answer = || engine.get("/health").json()["status"].clone();
    assert_eq!(answer(), "up");
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0), "everybody is served in the end");
    sent.is_stored_once(&clickhouse);
    assert!(!engine.log().contains("Too many open files"), "{}", engine.log());
}

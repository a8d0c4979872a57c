//! `auth.url`: a service of the operator's that knows keys.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{ONE, TWO, event, good, outcome, refused, send};
use crate::support::engine::{Setup, eventually, tenant_section};

/// A service that answers every question with the status that the test sets, and remembers what it was asked.
struct Service {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
    status: Arc<AtomicU16>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys/check?v=1", listener.local_addr().unwrap());
        let (asked, status) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(AtomicU16::new(200)));
        let (log, answer) = (Arc::clone(&asked), Arc::clone(&status));
        // Ends with the test's process: it waits for connections in the meantime.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || serve(stream.unwrap(), &log, &answer));
            }
        });
        Self { url, asked, status }
    }

    fn asked(&self, key: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|question| question["key"] == key).count()
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

fn serve(stream: std::net::TcpStream, asked: &Mutex<Vec<Value>>, status: &AtomicU16) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut length = 0;
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        assert!(head.starts_with("POST /keys/check?v=1 HTTP/1.1"), "{head}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let question: Value = serde_json::from_slice(&body).unwrap();
        let key = question["key"].as_str().unwrap().to_owned();
        asked.lock().unwrap().push(question);
        // Long enough that requests with the same key meet here.
        thread::sleep(Duration::from_millis(50));
        let status = status.load(Ordering::SeqCst);
        let (status, body) = match (status, key.as_str()) {
            (200, "of-two" | "also-of-two") => (200, json!({"tenant_id": TWO}).to_string()),
            (200, "of-one") => (200, json!({"tenant_id": ONE, "scopes": ["ingest", "read"], "name": "x"}).to_string()),
            (200, "expired") => (200, json!({"tenant_id": TWO, "expires": "2026-01-01T00:00:00Z"}).to_string()),
            (200, "web") => (200, json!({"tenant_id": TWO, "origins": ["https://a.example"]}).to_string()),
            (200, "garbled") => (200, "<html>".to_owned()),
            (200, _) => (404, String::new()),
            (status, _) => (status, String::new()),
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn keys_that_the_file_does_not_have_are_asked_for_once() {
    let service = Service::start();
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).env("INGESTION_AUTH_URL", &service.url);
    std::fs::write(setup.tenants_file(), tenant_section(ONE, &["local"], "disabled = false")).unwrap();
    let engine = setup.start();

    assert_eq!(send(&engine, "local"), good());
    assert_eq!(service.asked("local"), 0, "the file comes first");
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(send(&engine, "of-two"), good()));
        }
    });
    assert_eq!(service.asked("of-two"), 1, "one asks, the others wait for its answer");
    assert_eq!(send(&engine, &format!("{TWO}:of-two")), good());
    assert_eq!(send(&engine, &format!("{ONE}:of-two")), refused(401, "key_invalid"), "the service says whose it is");
    for _ in 0..3 {
        assert_eq!(send(&engine, "unknown"), refused(401, "key_invalid"));
    }
    assert_eq!(service.asked("unknown"), 1, "a refusal is kept too");
    assert_eq!(send(&engine, "expired"), refused(401, "key_expired"));
    assert_eq!(send(&engine, "web"), refused(403, "origin_not_allowed"));
    let from_page = engine.post("Bearer web", &[("origin", "https://a.example")], &event());
    assert_eq!(outcome(&from_page), good());
    assert_eq!(send(&engine, &format!("{TWO}:also-of-two")), good());
    let named = service.asked.lock().unwrap().iter().any(|asked| asked["tenant_id"] == TWO);
    assert!(named, "a tenant that the request names is told");

    // A tenant of the file is disabled there, whatever the service says.
    assert_eq!(send(&engine, "of-one"), good());
    std::fs::write(setup.tenants_file(), tenant_section(ONE, &["local"], "disabled = true")).unwrap();
    eventually("the tenant is disabled", || send(&engine, "of-one") == refused(403, "tenant_disabled"));

    let clickhouse = engine.clickhouse();
    clickhouse.wait_for(&format!("SELECT count() FROM overwatch.events WHERE tenant_id = '{TWO}'"), "19");
}

#[test]
fn what_the_service_said_last_is_used_while_it_is_away() {
    let service = Service::start();
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path())
        .env("INGESTION_AUTH_URL", &service.url)
        .env("INGESTION_AUTH_CACHE", "0s")
        .env("INGESTION_AUTH_NEGATIVE_CACHE", "0s")
        .start();
    assert_eq!((send(&engine, "of-two"), send(&engine, "unknown")), (good(), refused(401, "key_invalid")));
    assert_eq!(engine.component("auth")["state"], "up");

    service.answer(500);
    assert_eq!(send(&engine, "of-two"), good(), "the answer of before");
    let asked = service.asked("of-two");
    assert_eq!(send(&engine, "of-two"), good());
    assert!(service.asked("of-two") <= asked + 1, "not asked for every request");
    let answer = engine.post("Bearer also-of-two", &[], &event());
    assert_eq!((outcome(&answer), answer.header("retry-after")), (refused(503, "auth_unavailable"), "1"));
    let health = engine.component("auth");
    assert!(health["reason"].as_str().unwrap().contains("500"), "{health}");
    assert_eq!(engine.get("/health").status, 200, "the keys of the file are taken, and those it answered for");

    service.answer(200);
    eventually("the service is asked again", || send(&engine, "also-of-two") == good());
    assert_eq!(engine.component("auth")["state"], "up");
    assert_eq!(send(&engine, "garbled"), refused(503, "auth_unavailable"));

    service.answer(403);
    eventually("a refusal counts at once", || send(&engine, "of-two") == refused(401, "key_invalid"));
}

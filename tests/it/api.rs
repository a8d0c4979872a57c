//! The front, over HTTP: what is taken, what is refused and with which words.

use std::{io::Write, process::Command};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::engine::{Engine, KEY, Setup, TENANT, eventually};

fn engine(config: &str) -> (tempfile::TempDir, Engine) {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).config(config).start();
    (home, engine)
}

fn event() -> Value {
    json!({"id": Uuid::now_v7(), "type": "pageview", "path": "/"})
}

#[track_caller]
fn problem(answer: &crate::support::engine::Answer, status: u16, code: &str) -> Value {
    assert_eq!((answer.status, answer.header("content-type")), (status, "application/problem+json"), "{answer:?}");
    let body = answer.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status, "{body}");
    assert_eq!(body["type"], format!("urn:ingestion-engine:problem:{code}"), "{body}");
    for member in ["title", "detail", "instance"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
    }
    body
}

#[test]
fn the_curl_of_the_readme_is_answered_and_stored() {
    let (_home, engine) = engine("");
    let body = r#"{
    "events": [{
      "id": "550e8400-e29b-41d4-a716-446655440000",
      "tenant_id": "00000000-0000-0000-0000-000000000000",
      "session_id": "11111111-1111-1111-1111-111111111111",
      "timestamp": "2024-01-01T00:00:00Z",
      "type": "pageview",
      "title": "Home",
      "path": "/"
    }]
  }"#;
    let curl = Command::new("curl")
        .args(["-sS", "-X", "POST", &format!("{}/ingest", engine.api()), "-H", "Content-Type: application/json"])
        .args(["-H", "Authorization: Bearer 00000000-0000-0000-0000-000000000000:secret", "-d", body])
        .output()
        .unwrap();
    assert!(curl.status.success(), "{curl:?}");
    let answer: Value = serde_json::from_slice(&curl.stdout).unwrap();
    assert_eq!(
        (&answer["status"], &answer["events_accepted"], &answer["events_rejected"]),
        (&json!("success"), &json!(1), &json!(0))
    );
    assert!(answer["ingest_latency_ms"].is_u64() && Uuid::parse_str(answer["batch_id"].as_str().unwrap()).is_ok());
    assert_eq!(answer.as_object().unwrap().len(), 5, "nothing but what is documented: {answer}");

    let clickhouse = engine.clickhouse();
    clickhouse.wait_for(
        "SELECT type, path, title FROM overwatch.events FORMAT JSONEachRow",
        r#"{"type":"pageview","path":"\/","title":"Home"}"#,
    );
    // By GET, as a browser or a curl without options asks.
    let url = format!("{}/?query=SELECT+type,path,title+FROM+overwatch.events+FORMAT+JSONEachRow", clickhouse.url);
    let curl = Command::new("curl").args(["-sS", &url]).output().unwrap();
    assert_eq!(String::from_utf8(curl.stdout).unwrap().trim_end(), r#"{"type":"pageview","path":"\/","title":"Home"}"#);
    let row = clickhouse.query(
        "SELECT tenant_id, event_id, session_id, timestamp, topic, partition, offset > 0 OR offset = 0, wal_ordinal, \
         received_at <= relayed_at, relayed_at <= inserted_at + 1, expires_at > received_at + INTERVAL 90 DAY - 1 \
         FROM overwatch.events FORMAT TSV",
    );
    assert_eq!(
        row,
        "00000000-0000-0000-0000-000000000000\t550e8400-e29b-41d4-a716-446655440000\t\
         11111111-1111-1111-1111-111111111111\t2024-01-01 00:00:00.000\twal\t0\t1\t0\t1\t1\t1"
    );
}

#[test]
fn one_bad_event_never_fails_the_others() {
    let (_home, engine) = engine("");
    let bad = json!({"id": "0192f0c1-0000-7000-8000-000000000001", "type": "scroll", "depth": 120});
    let answer = engine.ingest(json!({"events": [event(), bad, event(), 7]}).to_string());
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!(
        (&body["status"], &body["events_accepted"], &body["events_rejected"]),
        (&json!("partial"), &json!(2), &json!(2))
    );
    assert_eq!(
        body["errors"],
        json!([
            {"index": 1, "id": "0192f0c1-0000-7000-8000-000000000001", "code": "invalid_field",
             "detail": "\"depth\" is 120, and must be from 0 to 100"},
            {"index": 3, "code": "not_an_object", "detail": "an event must be a JSON object"}
        ])
    );
    let answer = engine.ingest(r#"[{"type":"nonsense"},{"type":"custom"}]"#);
    let body = problem(&answer, 400, "all_events_rejected");
    assert_eq!((&body["events_accepted"], &body["events_rejected"]), (&json!(0), &json!(2)));
    assert_eq!(body["errors"][0]["code"], "unknown_type");
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", "2");
    assert_eq!(engine.metric("ingestion_events_total{outcome=\"accepted\",code=\"\"}"), 2);
    assert_eq!(engine.metric("ingestion_events_total{outcome=\"rejected\",code=\"invalid_field\"}"), 1);
}

#[test]
fn every_shape_and_every_coding_of_a_body_is_taken() {
    let (_home, engine) = engine("");
    let bearer = format!("Bearer {TENANT}:{KEY}");
    let mut expected = 0;
    let mut sent = |count: u64, answer: crate::support::engine::Answer| {
        expected += count;
        assert_eq!((answer.status, answer.json()["events_accepted"].as_u64()), (200, Some(count)), "{answer:?}");
    };
    sent(2, engine.ingest(json!([event(), event()]).to_string()));
    sent(1, engine.ingest(event().to_string()));
    let batch = || json!({"events": [event(), event(), event()]}).to_string();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    sent(3, engine.post(&bearer, &[("content-encoding", "gzip")], &gzip(&batch())));
    sent(3, engine.post(&bearer, &[("content-type", "text/plain")], &gzip(&batch())));
    let zstd = zstd::stream::encode_all(batch().as_bytes(), 3).unwrap();
    sent(3, engine.post(&bearer, &[("content-encoding", "zstd")], &zstd));
    let mut brotli = Vec::new();
    brotli::CompressorWriter::new(&mut brotli, 4096, 5, 22).write_all(batch().as_bytes()).unwrap();
    sent(3, engine.post(&bearer, &[("content-encoding", "br")], &brotli));
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    deflate.write_all(batch().as_bytes()).unwrap();
    sent(3, engine.post(&bearer, &[("content-encoding", "deflate")], &deflate.finish().unwrap()));
    // A large body goes another way through the engine than a small one.
    let large: Vec<Value> = (0..5000).map(|_| event()).collect();
    sent(5000, engine.ingest(json!({ "events": large }).to_string()));
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", &expected.to_string());
}

#[test]
fn each_limit_has_its_own_error() {
    let (_home, engine) = engine("");
    let bearer = format!("Bearer {TENANT}:{KEY}");
    // Far more than fits into socket buffers: the answer must reach a client that is still sending.
    for over in [(8 << 20) + 1, 24 << 20] {
        let body = problem(&engine.ingest(vec![b' '; over]), 413, "body_too_large");
        assert!(body["detail"].as_str().unwrap().contains("8388608"), "{body}");
    }
    problem(&engine.post("Bearer nonsense", &[], &vec![b' '; 8 << 20]), 401, "key_invalid");

    let bomb = zstd::stream::encode_all(&vec![b' '; (32 << 20) + 1][..], 1).unwrap();
    let answer = engine.post(&bearer, &[("content-encoding", "zstd")], &bomb);
    problem(&answer, 413, "decompressed_body_too_large");

    let many = format!("[{}]", vec!["{}"; 10_001].join(","));
    problem(&engine.ingest(many), 413, "too_many_events");

    let large = json!([{"type": "custom", "name": "n", "blob": "x".repeat(64 << 10)}, event()]).to_string();
    let answer = engine.ingest(large);
    assert_eq!((answer.status, &answer.json()["errors"][0]["code"]), (200, &json!("event_too_large")));

    let answer = engine.post(&bearer, &[("content-encoding", "lzma")], b"[]");
    problem(&answer, 415, "unsupported_encoding");
    assert_eq!(answer.header("accept-encoding"), "gzip, deflate, br, zstd");
    problem(&engine.post(&bearer, &[("content-encoding", "gzip")], b"[{}]"), 400, "corrupt_encoding");
    let body = problem(&engine.ingest("[{\"type\":"), 400, "invalid_json");
    assert!(body["detail"].as_str().unwrap().contains("line 1 column"), "{body}");
    problem(&engine.ingest([b'[', 0xff, b']']), 400, "not_utf8");
    problem(&engine.ingest("{\"events\":[]}"), 400, "no_events");

    problem(&engine.get("/nothing"), 404, "not_found");
    let answer = engine.get("/ingest");
    problem(&answer, 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
}

#[test]
fn only_a_tenants_own_key_opens_and_only_for_itself() {
    let (_home, engine) = engine("");
    let body = event().to_string();
    for (authorization, code) in [
        (format!("Bearer {TENANT}:wrong"), "key_invalid"),
        (format!("Bearer 00000000-0000-0000-0000-00000000000a:{KEY}"), "key_invalid"),
        ("Bearer nonsense".to_owned(), "key_invalid"),
        (format!("Basic {TENANT}:{KEY}"), "key_malformed"),
    ] {
        let answer = engine.post(&authorization, &[], body.as_bytes());
        problem(&answer, 401, code);
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    let curl = Command::new("curl").args(["-sS", "-d", "[]", &format!("{}/ingest", engine.api())]).output().unwrap();
    let answer: Value = serde_json::from_slice(&curl.stdout).unwrap();
    assert_eq!(answer["code"], "key_missing");

    let foreign = json!({"type": "custom", "name": "n", "tenant_id": "00000000-0000-0000-0000-00000000000a"});
    let body = problem(&engine.ingest(foreign.to_string()), 400, "all_events_rejected");
    assert_eq!(body["errors"][0]["code"], "tenant_mismatch");
}

#[test]
fn a_quota_answers_429_and_says_when_to_come_again() {
    let (_home, engine) = engine("[quota]\nevents_per_second = 100\nevents_burst = 10000\n");
    let batch = |count: usize| json!((0..count).map(|_| event()).collect::<Vec<_>>()).to_string();
    assert_eq!(engine.ingest(batch(10_000)).status, 200);
    let answer = engine.ingest(batch(5000));
    let body = problem(&answer, 429, "quota_exceeded");
    assert!(body["detail"].as_str().unwrap().contains("events"), "{body}");
    // 5,000 events at 100 a second, less what came back while the first batch was read.
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((30..=50).contains(&seconds), "{seconds}");
    assert_eq!(engine.metric("ingestion_events_total{outcome=\"accepted\",code=\"\"}"), 10_000, "refused whole");
}

#[test]
fn bodies_in_flight_share_a_budget() {
    let limits = "[limits]\nbody_bytes = \"1MiB\"\ndecompressed_bytes = \"1MiB\"\nin_flight_bytes = \"1MiB\"\n";
    let (_home, engine) = engine(limits);
    // A sender that stops half-way holds what it has sent.
    let address = engine.api().strip_prefix("http://").unwrap().to_owned();
    let mut slow = std::net::TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /ingest HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TENANT}:{KEY}\r\ncontent-length: 1000000\r\n\r\n"
    );
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&vec![b' '; 900_000]).unwrap();
    eventually("the first bytes are held", || engine.metric("ingestion_request_bodies_in_flight_bytes") >= 900_000);

    let big = json!([{"type": "custom", "name": "n", "blob": "x".repeat(60_000)}, {"a": "x".repeat(60_000)}, {"a": "x".repeat(60_000)}]);
    let answer = engine.ingest(big.to_string());
    problem(&answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    drop(slow);
    eventually("the budget is given back", || engine.ingest(big.to_string()).status == 200);
    assert_eq!(engine.metric("ingestion_request_bodies_in_flight_bytes"), 0);
}

#[test]
fn a_browser_on_any_page_may_send() {
    let (_home, engine) = engine("");
    let curl = Command::new("curl")
        .args(["-sS", "-i", "-X", "OPTIONS", &format!("{}/ingest", engine.api()), "-H", "Origin: https://shop.example"])
        .args(["-H", "Access-Control-Request-Method: POST"])
        .args(["-H", "Access-Control-Request-Headers: authorization,content-type"])
        .output()
        .unwrap();
    let text = String::from_utf8(curl.stdout).unwrap().to_lowercase();
    assert!(text.contains("access-control-allow-origin: https://shop.example"), "{text}");
    assert!(text.contains("access-control-allow-credentials: true"), "{text}");
    assert!(text.contains("authorization"), "{text}");
    assert!(text.contains("access-control-max-age: 7200"), "{text}");
}

#[test]
fn nothing_that_a_client_sent_is_lost() {
    let (_home, engine) = engine("");
    let sent = json!({
        "type": "click", "element": "button", "x": 1.5, "y": 2, "user_id": "u", "anonymous_id": "a", "url": "https://x/y?z",
        "referrer": "https://r", "user_agent": "ua", "screen": "1x1", "locale": "de", "timezone": "Europe/Zurich",
        "context": {"app": {"build": 7}}, "timestamp": 0, "experiment": {"arm": "b"}, "properties": {"plan": "pro\n\"x\""}
    });
    assert_eq!(engine.ingest(sent.to_string()).status, 200);
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    let row: Value = serde_json::from_str(&clickhouse.query(
        "SELECT type, element, x, y, user_id, anonymous_id, url, path, referrer, user_agent, screen, locale, timezone, context, \
         toUnixTimestamp64Milli(timestamp) AS ms, properties FROM overwatch.events FORMAT JSONEachRow",
    ))
    .unwrap();
    let properties: Value = serde_json::from_str(row["properties"].as_str().unwrap()).unwrap();
    assert_eq!(properties, json!({"plan": "pro\n\"x\"", "experiment": {"arm": "b"}}));
    let context: Value = serde_json::from_str(row["context"].as_str().unwrap()).unwrap();
    assert_eq!(context, json!({"app": {"build": 7}}));
    assert_eq!(
        (&row["path"], &row["x"], &row["y"], &row["timezone"]),
        (&json!("/y"), &json!(1.5), &json!(2), &json!("Europe/Zurich"))
    );
    assert_eq!(row["ms"], 0);
}

//! What a tenant may send, and what one tenant leaves to the others, over HTTP.

use std::{io::Write, process::Command, thread, time::Duration};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::engine::{Answer, Engine, KEY, Setup, TENANT, eventually, tenant_section};

const OTHER: &str = "00000000-0000-0000-0000-00000000000a";
const THIRD: &str = "00000000-0000-0000-0000-00000000000b";

/// The key of a tenant of these tests.
fn key(tenant: &str) -> String {
    if tenant == TENANT { KEY.to_owned() } else { format!("{KEY}-of-{tenant}") }
}

fn bearer(tenant: &str) -> String {
    format!("Bearer {tenant}:{}", key(tenant))
}

/// Writes the tenants' file: the test tenant, and others with settings of their own.
fn write_tenants(setup: &Setup, others: &[(&str, &str)]) {
    let section = |(id, settings): &(&str, &str)| tenant_section(id, &[&key(id)], settings);
    let sections: Vec<String> = [(TENANT, "")].iter().chain(others).map(section).collect();
    std::fs::write(setup.tenants_file(), sections.concat()).unwrap();
}

fn batch(count: usize) -> Vec<u8> {
    let event = |_| json!({"id": Uuid::now_v7(), "type": "pageview", "path": "/"});
    json!((0..count).map(event).collect::<Vec<Value>>()).to_string().into_bytes()
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

fn refused(code: &str) -> (u16, String) {
    (429, code.to_owned())
}

fn seconds(answer: &Answer) -> u64 {
    answer.header("retry-after").parse().unwrap()
}

/// Sends until that is refused, which is at once unless this machine stalls for as long as the bucket takes to fill; gives
/// the number of requests before.
fn until_refused(mut send: impl FnMut() -> Answer) -> (usize, Answer) {
    for before in 0..100 {
        let answer = send();
        if answer.status != 200 {
            return (before, answer);
        }
    }
    panic!("a hundred requests were not too many");
}

/// The parameter of an item of a structured list.
fn parameter(list: &str, item: &str, name: &str) -> Option<u64> {
    let item = list.split(", ").find(|entry| entry.starts_with(&format!("\"{item}\"")))?;
    item.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

#[test]
fn events_are_limited_and_waiting_as_long_as_told_is_enough() {
    let home = tempfile::tempdir().unwrap();
    let engine = Setup::new(home.path()).config("[quota]\nevents_per_second = 2000\nevents_burst = 10000").start();
    let first = engine.ingest(batch(10_000));
    assert_eq!(first.status, 200, "{first:?}");
    let policy = "\"events\";q=10000;w=5, \"bytes\";q=209715200;qu=\"content-bytes\";w=2";
    assert_eq!(first.header("ratelimit-policy"), policy);
    let before = Timestamp::now().as_second();
    let (more, second) = until_refused(|| engine.ingest(batch(10_000)));
    assert_eq!(code(&second), refused("quota_exceeded"), "{second:?}");
    assert_eq!(second.json()["violated-policies"], json!(["events"]));
    let wait = seconds(&second);
    assert!((1..=5).contains(&wait), "{wait}");
    let limit = second.header("ratelimit");
    let left = parameter(limit, "events", "r").unwrap();
    assert_eq!(limit, format!("\"events\";r={left};t={wait}"), "the policy that was violated, and no other");
    assert!(left < 10_000, "{left}");
    let reset: i64 = second.header("x-ratelimit-reset").parse().unwrap();
    assert!(reset >= before + i64::try_from(wait).unwrap(), "{reset}");
    thread::sleep(Duration::from_secs(wait));
    assert_eq!(engine.ingest(batch(10_000)).status, 200, "the time that was said is enough");
    assert_eq!(engine.metric("ingestion_refusals_total{reason=\"quota_exceeded_events\"}"), 1);
    let accepted = engine.metric("ingestion_events_total{outcome=\"accepted\",code=\"\"}");
    assert_eq!(accepted, 10_000 * (2 + more as u64), "refused whole");
}

#[test]
fn bytes_are_limited_as_sent_whether_or_not_their_number_is_announced() {
    let home = tempfile::tempdir().unwrap();
    let limits = "[limits]\nbody_bytes = \"64KiB\"\n[quota]\nbytes_per_second = \"32KiB\"\nbytes_burst = \"64KiB\"";
    let engine = Setup::new(home.path()).config(limits).start();
    let body = |bytes: usize| {
        let mut body = batch(1);
        body.resize(bytes, b' ');
        body
    };
    let first = engine.ingest(body(64 << 10));
    assert_eq!((first.status, parameter(first.header("ratelimit-policy"), "bytes", "q")), (200, Some(64 << 10)));
    assert!(parameter(first.header("ratelimit"), "bytes", "r").unwrap() < 64 << 10);
    let (_, second) = until_refused(|| engine.ingest(body(64 << 10)));
    assert_eq!(code(&second), refused("quota_exceeded"), "{second:?}");
    assert_eq!(second.json()["violated-policies"], json!(["bytes"]));
    thread::sleep(Duration::from_secs(seconds(&second)));
    // No length in the head: it is known when the body has come.
    let file = home.path().join("body");
    std::fs::write(&file, body(64 << 10)).unwrap();
    let chunked = |engine: &Engine| {
        let answer = Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "transfer-encoding: chunked"])
            .args(["-H", &format!("authorization: {}", bearer(TENANT)), "--data-binary"])
            .args([&format!("@{}", file.display()), &format!("{}/ingest", engine.api())])
            .output()
            .unwrap();
        String::from_utf8(answer.stdout).unwrap()
    };
    assert_eq!(chunked(&engine), "200", "the time that was said is enough");
    eventually("a body without a length is counted", || chunked(&engine) == "429");
    assert_eq!(engine.metric("ingestion_refusals_total{reason=\"quota_exceeded_bytes\"}"), 2);
}

#[test]
fn every_answer_to_a_tenant_tells_its_quota_and_no_other_does() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[quota]\nnodes = 4");
    write_tenants(&setup, &[(OTHER, "events_per_second = 0\nbytes_per_second = 0")]);
    let engine = setup.start();
    for (body, status) in [(batch(1), 200), (b"[{}]".to_vec(), 400), (b"{".to_vec(), 400), (vec![b' '; 9 << 20], 413)] {
        let answer = engine.ingest(body);
        assert_eq!(answer.status, status, "{answer:?}");
        let policy = "\"events\";q=50000;w=2, \"bytes\";q=52428800;qu=\"content-bytes\";w=2";
        assert_eq!(answer.header("ratelimit-policy"), policy, "a quarter for each of four nodes");
        for (item, most) in [("events", 50_000), ("bytes", 52_428_800)] {
            let left = parameter(answer.header("ratelimit"), item, "r").unwrap();
            assert!(left <= most && left > most / 2, "{answer:?}");
        }
        assert!(answer.header("x-ratelimit-reset").parse::<i64>().unwrap() >= 1_795_000_000, "{answer:?}");
    }
    for answer in [
        engine.post(&bearer(OTHER), &[], &batch(1)),
        engine.post(&format!("Bearer {TENANT}:wrong"), &[], &batch(1)),
        engine.get("/health"),
    ] {
        assert_eq!((answer.header("ratelimit-policy"), answer.header("ratelimit")), ("", ""), "{answer:?}");
    }
    let exposed = engine.post(&bearer(TENANT), &[("origin", "https://shop.example")], &batch(1));
    assert!(exposed.header("access-control-expose-headers").contains("ratelimit-policy"), "{exposed:?}");
}

/// Sends a wrong key, with what proxies say of it, until that is answered with 429; gives the number of 401s before.
fn exhaust(engine: &Engine, forwarded: impl Fn(usize) -> String) -> usize {
    for number in 0..1000 {
        let answer = fail(engine, &forwarded(number));
        match answer.status {
            401 => {}
            _ => {
                assert_eq!(code(&answer), refused("too_many_failures"), "{answer:?}");
                assert_eq!(answer.header("retry-after"), "1");
                return number;
            }
        }
    }
    panic!("a thousand failures were not too many");
}

fn fail(engine: &Engine, forwarded: &str) -> Answer {
    engine.post(&format!("Bearer {TENANT}:wrong"), &[("x-forwarded-for", forwarded)], &batch(1))
}

#[test]
fn an_address_that_fails_too_often_is_told_so_and_its_valid_keys_still_open() {
    let home = tempfile::tempdir().unwrap();
    let quota = "[quota]\naddress_requests_per_second = 1\naddress_burst = 20";
    let engine = Setup::new(home.path()).config(quota).start();
    // Nobody is a proxy: whatever the header says, all come from one address.
    assert!(exhaust(&engine, |number| format!("198.51.100.{}", number % 250)) >= 20);
    assert_eq!(engine.ingest(batch(1)).status, 200, "others behind the same address go on");
    exhaust(&engine, |_| String::new());
    assert!(engine.metric("ingestion_refusals_total{reason=\"too_many_failures\"}") >= 2);
    assert!(engine.metric("ingestion_refusals_total{reason=\"key_invalid\"}") >= 20);
    drop(engine);

    let engine =
        Setup::new(home.path()).config(quota).env("INGESTION_SERVER_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8");
    let engine = engine.start();
    assert!(exhaust(&engine, |_| "198.51.100.7".to_owned()) >= 20);
    assert_eq!(fail(&engine, "198.51.100.8").status, 401, "another address");
    // What a client writes itself stands on the left, and is not read.
    exhaust(&engine, |number| format!("203.0.113.{}, 198.51.100.7, 10.1.1.1", number % 250));
    assert_eq!(fail(&engine, "198.51.100.7, 203.0.113.9").status, 401, "the nearest proxy saw 203.0.113.9");
    assert!(exhaust(&engine, |number| format!("2001:db8:1:2::{number:x}")) >= 20, "an IPv6 network is one address");
    assert_eq!(fail(&engine, "2001:db8:1:3::1").status, 401);
}

fn until_next_month() -> u64 {
    let now = Timestamp::now();
    let today = now.to_zoned(TimeZone::UTC).date();
    let next = (today.first_of_month() + 1.month()).to_zoned(TimeZone::UTC).unwrap().timestamp();
    u64::try_from(next.as_second() - now.as_second()).unwrap()
}

#[test]
fn a_month_warns_or_stops_and_is_counted_through_kill_9() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let (hard, soft) =
        ("events_per_month = 100\nmonthly_hard_stop = true", "events_per_month = 100\nmonthly_warn_ratio = 0.5");
    write_tenants(&setup, &[(OTHER, hard), (THIRD, soft)]);
    let mut engine = setup.start();
    let (hard, soft) = (bearer(OTHER), bearer(THIRD));
    let first = engine.post(&hard, &[], &batch(60));
    assert_eq!((first.status, first.header("x-quota-warning")), (200, ""));
    assert_eq!(parameter(first.header("ratelimit-policy"), "month", "q"), Some(100));
    assert_eq!(parameter(first.header("ratelimit"), "month", "r"), Some(40));
    let first = engine.post(&soft, &[], &batch(60));
    assert_eq!((first.status, first.header("x-quota-warning")), (200, "\"month\";used=60;limit=100"));
    // Refused events are not counted, nor are those of a tenant without an allowance.
    assert_eq!(engine.post(&hard, &[], b"[{\"type\":\"nonsense\"}]").status, 400);
    assert_eq!(engine.ingest(batch(500)).header("x-quota-warning"), "");
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", "620");
    assert_eq!(engine.post(&hard, &[], &batch(25)).header("x-quota-warning"), "\"month\";used=85;limit=100");
    engine.kill();

    let mut engine = setup.start();
    let most = until_next_month();
    let answer = engine.post(&hard, &[], &batch(16));
    assert_eq!(code(&answer), refused("monthly_allowance_exceeded"), "{answer:?}");
    assert_eq!(answer.json()["violated-policies"], json!(["month"]));
    assert!((until_next_month()..=most + 1).contains(&seconds(&answer)), "{answer:?}");
    assert_eq!(parameter(answer.header("ratelimit"), "month", "r"), Some(15));
    let answer = engine.post(&hard, &[], &batch(15));
    assert_eq!((answer.status, parameter(answer.header("ratelimit"), "month", "r")), (200, Some(0)));
    let answer = engine.post(&soft, &[], &batch(60));
    assert_eq!((answer.status, answer.header("x-quota-warning")), (200, "\"month\";used=120;limit=100"));
    engine.kill();

    let engine = setup.start();
    assert_eq!(code(&engine.post(&hard, &[], &batch(1))), refused("monthly_allowance_exceeded"));
    let answer = engine.post(&soft, &[], &batch(1));
    assert_eq!((answer.status, answer.header("x-quota-warning")), (200, "\"month\";used=121;limit=100"));
    assert_eq!(engine.ingest(batch(1)).status, 200, "the others have no such limit");
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", "722");
}

#[test]
fn a_flood_leaves_half_of_the_memory_to_the_others() {
    let home = tempfile::tempdir().unwrap();
    let limits = "[limits]\nbody_bytes = \"64KiB\"\ndecompressed_bytes = \"64KiB\"\nin_flight_bytes = \"1MiB\"";
    let setup = Setup::new(home.path()).config(limits);
    write_tenants(&setup, &[(OTHER, "")]);
    let engine = setup.start();
    let address = engine.api().strip_prefix("http://").unwrap().to_owned();
    // Senders that stop before their last byte hold what they have sent: 8 times 63 KiB, of 512 KiB.
    let head = format!(
        "POST /ingest HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-length: 64513\r\n\r\n",
        bearer(TENANT)
    );
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let mut sender = std::net::TcpStream::connect(&address).unwrap();
            sender.write_all(head.as_bytes()).unwrap();
            sender.write_all(&vec![b' '; 64_512]).unwrap();
            sender
        })
        .collect();
    eventually("they are held", || engine.metric("ingestion_request_bodies_in_flight_bytes") == 8 * 64_512);
    let mut large = batch(1);
    large.resize(32 << 10, b' ');
    let answer = engine.ingest(&large);
    assert_eq!(code(&answer), refused("too_much_in_flight"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(engine.post(&bearer(OTHER), &[], &large).status, 200, "there is room for another tenant");
    drop(senders);
    eventually("it is given back", || engine.ingest(&large).status == 200);
}

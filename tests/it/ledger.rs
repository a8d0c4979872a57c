//! Every event is somewhere, the ledger knows where, and says when one is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ingestion_engine::{
    folder_lock::FolderLock,
    health::Health,
    ids::{EventId, TenantId},
    metrics::Metrics,
    row::{self, EventRow, ParkedRow},
    wal::{self, Append, Codec, Packer, Wal},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{Answer, ClickHouse, Engine, KEY, Setup, TENANT, eventually, sha256, tenant_section},
        fault_proxy::{Fault, FaultProxy},
        load::Load,
        plugins::{copy_in, pilot},
        process::ToEnd,
        tansu::{Tansu, free_port},
    },
};

/// The ledger as the command tells it, and whether its exit code says that it balances.
fn ledger(setup: &Setup) -> (Value, bool) {
    let output = setup.command("ledger --json").to_end();
    let text = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}", output.status);
    (report, output.status.success())
}

/// The ledger, which balances.
fn balanced(setup: &Setup) -> Value {
    let (report, success) = ledger(setup);
    assert!(success && report["balanced"] == true, "{report:#}");
    assert_eq!((difference(&report["total"]), &report["missing"]), (0, &json!(0)), "{report:#}");
    report
}

/// Every file of the log in the home of an engine, but that of its lock.
fn log_files(home: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![home.join("data/wal")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "LOCK" {
                files.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    files
}

/// The same once nothing is on its way.
fn settled(setup: &Setup) -> Value {
    let mut report = Value::Null;
    eventually("everything has arrived", || {
        report = balanced(setup);
        report["total"]["in_wal"] == 0 && report["total"]["in_broker"] == 0
    });
    report
}

/// Whose events are missing, where, and how many, in a ledger that does not balance.
fn missing(setup: &Setup) -> Vec<(String, String, i64)> {
    let (report, success) = ledger(setup);
    assert!(!success && report["balanced"] == false, "{report:#}");
    let mut found = Vec::new();
    for tenant in report["tenants"].as_array().unwrap() {
        for stage in tenant["stages"].as_array().into_iter().flatten() {
            let name = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((name(&tenant["tenant_id"]), name(&stage["stage"]), stage["missing"].as_i64().unwrap()));
        }
    }
    found
}

fn is_missing(stage: &str, events: i64) -> Vec<(String, String, i64)> {
    vec![(TENANT.to_owned(), stage.to_owned(), events)]
}

const TERMS: [&str; 11] = [
    "rejected",
    "dropped",
    "duplicate",
    "in_wal",
    "in_broker",
    "stored",
    "parked",
    "dead_lettered",
    "erased",
    "expired",
    "damaged",
];

fn difference(terms: &Value) -> i64 {
    let number = |name: &str| terms[name].as_i64().unwrap();
    number("received") - TERMS.map(number).iter().sum::<i64>()
}

/// The terms of one tenant that are not 0.
fn terms(report: &Value, tenant: &str) -> Value {
    let tenants = report["tenants"].as_array().unwrap();
    let of_tenant = tenants.iter().find(|report| report["tenant_id"] == tenant).unwrap();
    let names = ["received"].iter().chain(&TERMS);
    let terms = names.filter(|name| of_tenant[**name] != 0).map(|name| ((*name).to_owned(), of_tenant[*name].clone()));
    Value::Object(terms.collect())
}

/// The file of tenants with a key for each scope.
fn write_tenants(setup: &Setup) {
    let key = |scope: &str| {
        format!("[[tenants.keys]]\nname = \"{scope}\"\nsha256 = \"{}\"\nscopes = [\"{scope}\"]\n", sha256(scope))
    };
    let keys = [format!("[[tenants.keys]]\nname = \"k\"\nsha256 = \"{}\"\n", sha256(KEY)), key("read"), key("admin")];
    let other = "[[tenants]]\nid = \"00000000-0000-0000-0000-000000000001\"\n[[tenants.keys]]\nname = \"o\"\n";
    let other = format!("{other}sha256 = \"{}\"\nscopes = [\"ingest\", \"admin\"]\n", sha256("other"));
    fs::write(setup.tenants_file(), format!("[[tenants]]\nid = \"{TENANT}\"\n{}{other}", keys.concat())).unwrap();
}

fn get(engine: &Engine, key: &str) -> Answer {
    let agent = crate::support::engine::agent();
    let request = agent.get(format!("{}/ledger", engine.api())).header("authorization", format!("Bearer {key}"));
    Answer::from(request.call().unwrap())
}

#[test]
fn it_balances_under_load_and_across_kill_9_and_a_clean_restart() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    write_tenants(&setup);
    let mut engine = setup.start();
    eventually("events are stored", || engine.component("sink")["state"] == "up");
    let load = Load::start(&engine);
    for _ in 0..5 {
        load.wait_for_requests(10);
        balanced(&setup);
    }
    engine.kill();
    let mut sent = load.stop();
    let log = log_files(home.path());
    let stopped = balanced(&setup);
    assert!(log_files(home.path()) == log, "it was only looked at");
    let received = stopped["total"]["received"].as_u64().unwrap();
    assert!(received >= sent.acknowledged.len() as u64, "{} acknowledged: {stopped:#}", sent.acknowledged.len());

    engine = setup.start();
    sent.resend(&engine);
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    eventually("events are stored", || engine.component("sink")["state"] == "up");
    balanced(&setup);
    let mut all = load.stop();
    all.acknowledged.extend(sent.acknowledged);
    all.is_stored_once(&engine.clickhouse());
    let report = settled(&setup);
    assert_eq!(report["total"]["stored"], all.acknowledged.len());

    assert_eq!(get(&engine, "read").status, 403);
    let mine = get(&engine, "admin");
    assert_eq!((mine.status, &mine.json()["total"], &mine.json()["balanced"]), (200, &report["total"], &json!(true)));
    assert_eq!(get(&engine, "other").json()["tenants"], json!([]), "nothing of others is seen");

    assert!(engine.terminate().success());
    assert_eq!(balanced(&setup)["total"], report["total"], "asked while the engine is stopped");
    let (status, text) = setup.run("ledger");
    assert!(status.success() && text.contains("Balanced.") && text.contains(TENANT), "{text}");
}

/// Seconds from now, in Unix seconds.
fn soon(seconds: i64) -> u32 {
    u32::try_from(jiff::Timestamp::now().as_second() + seconds).unwrap()
}

/// Appends a record to the log of an engine that is stopped: `events` events and `parked` parked ones that expire at a time
/// of the caller's choice, as no tenant's retention would.
async fn put_in(home: &Path, events: u128, parked: u128, expires_at: u32) {
    let settings = wal::Settings { min_free_bytes: 1 << 20, ..wal::Settings::new(home.join("data/wal")) };
    let (wal, _reader) = Wal::open(settings, Health::default().component("wal"), Arc::new(Metrics::new())).unwrap();
    let tenant = TenantId(Uuid::nil());
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let (mut packer, mut encoded) = (Packer::new(Codec::Lz4), Vec::new());
    for _ in 0..events {
        let mut event = EventRow::new(tenant, EventId(Uuid::now_v7()), "custom");
        (event.received_at_ms, event.timestamp_ms, event.expires_at) = (now_ms, now_ms, expires_at);
        encoded.clear();
        row::encode(&event, &mut encoded);
        packer.push(&encoded);
    }
    for _ in 0..parked {
        encoded.clear();
        let parked = ParkedRow {
            tenant_id: tenant,
            event_id: EventId(Uuid::now_v7()),
            timestamp_ms: now_ms,
            received_at_ms: now_ms,
            expires_at,
            plugin: "pilot".into(),
            kind: "pilot".into(),
            reason: "quarantined".into(),
            raw: "{\"type\":\"pilot\",\"plan\":\"pro\"}".into(),
        };
        row::encode_parked(&parked, &mut encoded);
        packer.push(&encoded);
    }
    let append =
        Append { tenant, received_at_ms: now_ms, chunks: packer.finish(), counted: false, answer: None, again: false };
    wal.append(append).await.unwrap();
    wal.close().await.unwrap();
}

#[test]
fn every_term_is_counted_where_it_happens() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"50ms\"");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Past their time on arrival, and soon after they are stored.
    runtime.block_on(put_in(home.path(), 3, 2, soon(-10)));
    let over = soon(12);
    runtime.block_on(put_in(home.path(), 4, 1, over));
    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    let mut engine = setup.start();
    let clickhouse = engine.clickhouse();
    let told = |what: &str| json!({"id": Uuid::now_v7(), "type": "pilot", "plan": "pro", "do": what});
    let page = |id: Uuid, user: &str| json!({"id": id, "type": "pageview", "path": "/", "user_id": user});
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    let mixed = json!([told(""), told("drop"), told("drop"), told("reject"), {"type": "nonsense"}, page(one, "ann")]);
    assert_eq!(engine.ingest(mixed.to_string()).status, 200);
    assert_eq!(engine.ingest(json!([page(one, "ann"), page(two, "bob")]).to_string()).json()["duplicates"], 1);
    // Nothing of these is committed.
    assert_eq!(engine.ingest(json!([{"type": "nonsense"}]).to_string()).status, 400);
    assert_eq!(engine.ingest(json!([page(one, "ann")]).to_string()).json()["duplicates"], 1);
    assert_eq!(engine.ingest(told("drop").to_string()).json()["events_dropped"], 1);
    let (status, text) = setup.run("plugins quarantine pilot");
    assert!(status.success(), "{text}");
    assert_eq!(engine.ingest(json!([told(""), told("drop"), told("")]).to_string()).json()["events_parked"], 3);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "7");
    clickhouse.wait_for("SELECT count() FROM overwatch.parked WHERE raw LIKE '%do%'", "3");
    let received = 10 + 6 + 2 + 1 + 1 + 1 + 3;
    let before = settled(&setup);
    let number = |term: &str| before["total"][term].as_u64().unwrap();
    assert_eq!(["received", "rejected", "dropped", "duplicate"].map(number), [received, 3, 3, 2], "{before:#}");
    // On a slow machine some of them may be over by now.
    let of_time = ["stored", "parked", "expired"].map(number);
    assert!(of_time == [7, 4, 5] || of_time == [3, 3, 10], "{before:#}");

    // Parked events go on: two into the table, one nowhere.
    assert!(setup.run("plugins resume pilot").0.success());
    let (status, text) = setup.run("plugins reprocess pilot");
    assert!(status.success() && text.contains("1 dropped"), "{text}");
    let (status, text) = setup.run("erase --user ann");
    assert!(status.success(), "{text}");
    eventually("all of that is over", || soon(0) > over);
    clickhouse.query("OPTIMIZE TABLE overwatch.events FINAL");
    // The parked one that was about to expire may have gone on first: it expires either way.
    let after = json!({
        "received": received, "rejected": 3, "dropped": 4, "duplicate": 2, "stored": 4, "erased": 1, "expired": 10,
    });
    assert_eq!(terms(&settled(&setup), TENANT), after);

    engine.kill();
    assert_eq!(terms(&balanced(&setup), TENANT), after, "also after kill -9");
}

#[test]
fn a_row_that_is_gone_is_missed() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(10);
    let sent = load.stop();
    sent.is_stored_once(&clickhouse);
    settled(&setup);
    let one = sent.acknowledged.iter().next().unwrap();
    clickhouse
        .query(&format!("ALTER TABLE overwatch.events DELETE WHERE event_id = '{one}' SETTINGS mutations_sync = 2"));
    assert_eq!(missing(&setup), is_missing("clickhouse", 1));
    let (status, text) = setup.run("ledger");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("{TENANT}: 1 events missing at stage clickhouse")), "{text}");
}

#[test]
fn a_row_of_imported_history_that_is_gone_is_missed_and_so_is_one_that_a_repeat_replaced() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    fs::write(setup.tenants_file(), tenant_section(TENANT, &[KEY], "name = \"acme\"")).unwrap();
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let three_days_ago = jiff::Timestamp::now().as_second() - 3 * 86_400;
    let timestamp = jiff::Timestamp::from_second(three_days_ago).unwrap().to_string();
    let ids: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let event = |id: &Uuid| json!({"id": id, "type": "pageview", "path": "/", "timestamp": timestamp});
    assert_eq!(engine.ingest(json!(ids.iter().map(event).collect::<Vec<_>>()).to_string()).status, 200);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "20");
    let report = settled(&setup);
    assert_eq!((&report["tenants"][0]["name"], &report["undetermined"]), (&json!("acme"), &json!(0)), "{report:#}");
    clickhouse.query(&format!("DELETE FROM overwatch.events WHERE event_id = '{}'", ids[7]));
    assert_eq!(missing(&setup), is_missing("clickhouse", 1));
    let report = ledger(&setup).0;
    assert_eq!((&report["missing"], &report["undetermined"]), (&json!(1), &json!(1)), "{report:#}");
    assert_eq!(report["tenants"][0]["stages"][0]["undetermined"], 1, "{report:#}");
    let (status, text) = setup.run("ledger");
    assert_eq!(status.code(), Some(1), "{text}");
    let line = format!("acme ({TENANT}): 1 events missing at stage clickhouse");
    assert!(text.contains(&line) && text.contains("cannot be determined: 1 of them"), "{text}");
}

#[test]
fn a_dead_letter_that_is_deleted_by_hand_is_missed_and_one_that_is_erased_is_not() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    send(&engine, 1);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "1");
    clickhouse.query("ALTER TABLE overwatch.events ADD CONSTRAINT no_evil CHECK name != 'evil'");
    let evil = |user: &str| json!({"type": "custom", "name": "evil", "user_id": user});
    assert_eq!(engine.ingest(json!([evil("ann"), evil("bob"), evil("bob")]).to_string()).status, 200);
    clickhouse.wait_for("SELECT count() FROM overwatch.dead_letters", "3");
    assert_eq!(terms(&settled(&setup), TENANT), json!({"received": 4, "stored": 1, "dead_lettered": 3}));
    let (status, text) = setup.run("erase --user ann");
    assert!(status.success(), "{text}");
    let after = json!({"received": 4, "stored": 1, "dead_lettered": 2, "erased": 1});
    assert_eq!(terms(&balanced(&setup), TENANT), after);
    let (status, text) = setup.run(&format!("dead-letters drop --tenant {TENANT}"));
    assert!(status.success(), "{text}");
    assert_eq!(terms(&balanced(&setup), TENANT), after, "what was dropped is a letter that was dropped");
    clickhouse.query("ALTER TABLE overwatch.dead_letters DELETE WHERE 1 SETTINGS mutations_sync = 2");
    assert_eq!(missing(&setup), is_missing("clickhouse", 2));
}

#[test]
fn a_ledger_that_cannot_be_measured_is_no_ledger_that_does_not_balance() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let is_2 = |setup: &Setup, part: &str| {
        let (status, text) = setup.run("ledger");
        assert!(status.code() == Some(2) && text.contains(part), "{status:?} {text}");
    };
    is_2(&setup, "there is no write-ahead log");
    assert!(!home.path().join("data/wal").exists() && !home.path().join("data/clickhouse").exists());
    is_2(&Setup::new(home.path()).config("[no]\nsuch = 1"), "no");
    let mut engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    send(&engine, 3);
    engine.kill();
    is_2(
        &Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", "http://127.0.0.1:9"),
        "ClickHouse cannot be reached",
    );
    let lock = FolderLock::acquire(&home.path().join("data/wal"), Duration::from_secs(10)).unwrap();
    is_2(&setup, &format!("pid {}", std::process::id()));

    // As while a ledger reads: an engine that starts waits, and says for whom.
    let engine = setup.spawn();
    let waits = engine.wait_for_log("waiting for the lock of a folder");
    assert!(waits.contains(&format!("pid {}", std::process::id())), "{waits}");
    drop(lock);
    engine.wait_for_log("api listening");
}

/// An engine whose events stay in its log: ClickHouse takes no insert, but answers.
fn held_up(home: &Path) -> (Setup, Engine, Server, FaultProxy) {
    let server = Server::start(&home.join("clickhouse"));
    let proxy = FaultProxy::start(server.port);
    let setup = Setup::new(home).env("INGESTION_CLICKHOUSE_URL", proxy.url());
    let engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    proxy.set(Fault::Answer(500, None, "away"));
    (setup, engine, server, proxy)
}

fn send(engine: &Engine, events: usize) {
    let body = json!(vec![json!({"type": "pageview", "path": "/"}); events]);
    assert_eq!(engine.ingest(body.to_string()).status, 200);
}

/// Damages the second record in the log of an engine that is stopped: its first bytes say that it is one.
fn lose_second_record(home: &Path) {
    let magic = [0xe7, b'W', b'A', b'L'];
    let mut logs: Vec<_> = fs::read_dir(home.join("data/wal/log")).unwrap().map(|e| e.unwrap().path()).collect();
    logs.sort();
    let damaged = logs.iter().map(|log| log.join("db")).find_map(|db| {
        let mut bytes = fs::read(&db).unwrap();
        let places: Vec<_> = (0..bytes.len() - 4).filter(|at| bytes[*at..*at + 4] == magic).collect();
        let place = places.get(1)?;
        bytes[*place] ^= 1;
        fs::write(&db, bytes).ok()
    });
    assert!(damaged.is_some());
}

#[test]
fn a_record_of_the_log_that_is_gone_is_missed() {
    let home = tempfile::tempdir().unwrap();
    let (setup, mut engine, _server, proxy) = held_up(home.path());
    for events in [5, 7, 11] {
        send(&engine, events);
    }
    let report = balanced(&setup);
    assert_eq!(terms(&report, TENANT), json!({"received": 23, "in_wal": 23}));
    assert!(engine.terminate().success());
    lose_second_record(home.path());
    let log = log_files(home.path());
    assert_eq!(missing(&setup), is_missing("wal", 7));
    assert!(setup.run("ledger").1.contains("records 2 cannot be read. It was left as it is"));
    assert!(log_files(home.path()) == log && !home.path().join("data/wal-damaged").exists());
    let _engine = setup.start();
    assert_eq!(missing(&setup), is_missing("wal", 7));
    proxy.set(Fault::None);
    let clickhouse = ClickHouse::at(&proxy.url());
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "16");
    eventually("what is left has arrived", || ledger(&setup).0["total"]["in_wal"] == 0);
    assert_eq!(missing(&setup), is_missing("wal", 7));
}

/// Changes the byte `at` of the records with these many events, wherever their copies are in the log of an engine that is stopped.
fn damage(home: &Path, events: &[u32], at: usize) {
    let magic = [0xe7, b'W', b'A', b'L'];
    let mut damaged = BTreeSet::new();
    for log in fs::read_dir(home.join("data/wal/log")).unwrap().map(|entry| entry.unwrap().path().join("db")) {
        let mut bytes = fs::read(&log).unwrap();
        for place in (0..bytes.len() - 80).filter(|place| bytes[*place..*place + 4] == magic).collect::<Vec<_>>() {
            let count = u32::from_le_bytes(bytes[place + 20..place + 24].try_into().unwrap());
            if events.contains(&count) {
                bytes[place + at] ^= 1;
                damaged.insert(count);
            }
        }
        fs::write(&log, bytes).unwrap();
    }
    assert_eq!(damaged.into_iter().collect::<Vec<_>>(), events);
}

const IN_HEADER: usize = 1;
const IN_PAYLOAD: usize = 90;
const UNKNOWN: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

#[test]
fn what_damage_to_the_log_has_taken_is_told_exactly_and_once_and_stands_in_health() {
    let home = tempfile::tempdir().unwrap();
    let (setup, mut engine, _server, proxy) = held_up(home.path());
    for events in [5, 7, 11, 13, 17, 19] {
        send(&engine, events);
    }
    // None of it is in the saved books yet. Of one record the header is left, of two in a row nothing.
    engine.kill();
    damage(home.path(), &[7], IN_PAYLOAD);
    damage(home.path(), &[13, 17], IN_HEADER);
    let told = |events: u64, in_wal: u64, stored: u64, gone: u64| {
        let (report, success) = ledger(&setup);
        let all = in_wal + stored + 7;
        let mut own = json!({"received": all, "damaged": 7});
        for (name, events) in [("in_wal", in_wal), ("stored", stored)] {
            if events > 0 {
                own[name] = json!(events);
            }
        }
        assert_eq!((terms(&report, TENANT), all), (own, events - gone), "{report:#}");
        assert_eq!(terms(&report, UNKNOWN), json!({"received": gone}));
        assert_eq!((success, &report["balanced"], &report["missing"]), (false, &json!(false), &json!(gone)));
        assert_eq!((&report["total"]["received"], &report["total"]["damaged"]), (&json!(events), &json!(7)));
        assert_eq!(difference(&report["total"]), gone.cast_signed());
        let stages: Vec<_> = report["tenants"].as_array().unwrap().iter().map(|tenant| &tenant["stages"]).collect();
        let of_own = json!([{"stage": "wal", "missing": 0, "undetermined": 0, "damaged": 7}]);
        assert_eq!(stages, [&of_own, &json!([{"stage": "wal", "missing": gone, "undetermined": 0}])]);
        let (status, text) = setup.run("ledger");
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("unknown tenant: {gone} events missing at stage wal")), "{text}");
        assert!(text.contains("7 events lost at stage wal"), "{text}");
    };
    told(72, 35, 0, 30);
    let mut engine = setup.start();
    told(72, 35, 0, 30);
    let says = |engine: &Engine, lost: &str| {
        let wal = engine.component("wal");
        let reason = wal["reason"].as_str().unwrap_or_default();
        assert!(wal["state"] == "degraded" && reason.contains(lost), "{wal}");
        let health = engine.get("/health");
        assert_eq!((health.status, &health.json()["ready"]), (200, &json!(true)));
        assert_eq!(engine.get("/health/ready").status, 200);
    };
    says(&engine, "has taken records 2, 4-5;");

    // A second damage, in what was taken since.
    for events in [23, 29, 31] {
        send(&engine, events);
    }
    engine.kill();
    damage(home.path(), &[29], IN_HEADER);
    told(155, 89, 0, 59);
    let mut engine = setup.start();
    told(155, 89, 0, 59);
    says(&engine, "has taken records 2, 4-5, ");
    engine.terminate();
    told(155, 89, 0, 59);
    proxy.set(Fault::None);
    let engine = setup.start();
    ClickHouse::at(&proxy.url()).wait_for("SELECT count() FROM overwatch.events", "89");
    eventually("what is left has arrived", || ledger(&setup).0["total"]["in_wal"] == 0);
    told(155, 0, 89, 59);
    says(&engine, "has taken records 2, 4-5, ");
    fs::remove_file(home.path().join("data/wal-damaged/LOST")).unwrap();
    eventually("what was seen is said no more", || engine.get("/health").json()["status"] == "up");
}

#[test]
fn a_damaged_record_that_was_in_the_books_is_damaged_and_not_missing() {
    let home = tempfile::tempdir().unwrap();
    let (setup, mut engine, _server, proxy) = held_up(home.path());
    for events in [5, 7, 11] {
        send(&engine, events);
    }
    assert!(engine.terminate().success());
    damage(home.path(), &[7], IN_PAYLOAD);
    let told = |waits: &str| {
        let (report, success) = ledger(&setup);
        assert_eq!(terms(&report, TENANT), json!({"received": 23, waits: 16, "damaged": 7}), "{report:#}");
        assert_eq!((success, &report["missing"], &report["balanced"]), (false, &json!(0), &json!(false)));
        assert_eq!(report["tenants"].as_array().unwrap().len(), 1, "{report:#}");
    };
    told("in_wal");
    proxy.set(Fault::None);
    let engine = setup.start();
    ClickHouse::at(&proxy.url()).wait_for("SELECT count() FROM overwatch.events", "16");
    eventually("what is left has arrived", || ledger(&setup).0["total"]["in_wal"] == 0);
    told("stored");
    let wal = engine.component("wal");
    assert!(wal["reason"].as_str().unwrap_or_default().contains("has taken records 2;"), "{wal}");
}

#[test]
fn with_a_broker_it_balances_while_the_sink_is_behind_and_misses_a_message_that_is_gone() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Tansu::start();
    let server = Server::start(&home.path().join("clickhouse"));
    let proxy = FaultProxy::start(server.port);
    let setup =
        |folder: &Path| Setup::new(folder).broker(&broker.brokers()).env("INGESTION_CLICKHOUSE_URL", proxy.url());
    let (setup, sinks) = (setup(home.path()), setup(other.path()).env("INGESTION_ROLES", "sink"));
    let mut engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    let clickhouse = ClickHouse::at(&proxy.url());
    let load = Load::start(&engine);
    for _ in 0..3 {
        load.wait_for_requests(10);
        balanced(&setup);
    }
    let sent = load.stop();
    sent.is_stored_once(&clickhouse);
    let report = settled(&setup);
    assert_eq!(report["total"]["stored"], sent.acknowledged.len());
    let began = report["since"].clone();

    // Relayed, and not stored: by an engine that is killed and sends some of it again, and a sink of another node.
    proxy.set(Fault::Answer(500, None, "away"));
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    engine.kill();
    let mut more = load.stop();
    engine = setup.env("INGESTION_ROLES", "api").start();
    more.resend(&engine);
    let setup = Setup::new(home.path())
        .broker(&broker.brokers())
        .env("INGESTION_CLICKHOUSE_URL", proxy.url())
        .env("INGESTION_ROLES", "api");
    let mut waiting = Value::Null;
    eventually("everything is in the topic", || {
        waiting = balanced(&setup);
        waiting["total"]["in_wal"] == 0
    });
    assert!(waiting["total"]["in_broker"].as_u64().unwrap() > 0, "{waiting:#}");
    proxy.set(Fault::None);
    let mut sink = sinks.start();
    let report = settled(&setup);
    assert_eq!(report["total"]["stored"], sent.acknowledged.len() + more.acknowledged.len());
    assert_eq!(report["since"], began, "the books went on");
    assert!(sink.terminate().success());

    send(&engine, 9);
    eventually("it is in the topic", || balanced(&setup)["total"]["in_broker"] == 9);
    // All that it has not given away yet is gone with its memory.
    broker.kill_and_restart();
    // While the broker does not answer, nothing is said.
    eventually("the broker answers", || setup.run("ledger").1.contains("TENANT"));
    assert_eq!(missing(&setup), is_missing("broker", 9));

    // The topic begins anew, and with offsets that were there before.
    let _sink = sinks.start();
    send(&engine, 30);
    let all = sent.acknowledged.len() + more.acknowledged.len() + 30;
    clickhouse.wait_for("SELECT count() FROM overwatch.events", &all.to_string());
    eventually("what was stored counts", || missing(&setup) == is_missing("broker", 9));
}

#[test]
fn rows_that_get_another_retention_are_the_same_rows() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let write = |retention: &str| {
        let section = tenant_section(TENANT, &[KEY], &format!("retention = \"{retention}\""));
        fs::write(setup.tenants_file(), section).unwrap();
    };
    write("1d");
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    send(&engine, 40);
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "40");
    settled(&setup);
    for retention in ["90d", "keep", "30d"] {
        write(retention);
        let (status, text) = setup.run(&format!("retention apply {TENANT}"));
        assert!(status.success() && text.contains("40 rows rewritten"), "{text}");
        assert_eq!(terms(&balanced(&setup), TENANT), json!({"received": 40, "stored": 40}), "{retention}");
    }
    let inserted = "SELECT expires_at, sum(rows) FROM overwatch.ledger_inserted GROUP BY 1 HAVING sum(rows) != 0";
    let stored = "SELECT expires_at, count() FROM overwatch.events GROUP BY 1";
    assert_eq!(clickhouse.query(inserted), clickhouse.query(stored));
}

#[test]
fn a_record_that_is_gone_before_it_was_relayed_is_missed_in_the_log() {
    let home = tempfile::tempdir().unwrap();
    // There is no broker yet.
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let setup = Setup::new(home.path()).broker(&address.to_string()).config("[shutdown]\nrelay = \"1s\"");
    let mut engine = setup.start();
    for events in [5, 7, 11] {
        send(&engine, events);
    }
    // Which comes after the tables.
    eventually("the tables are there", || engine.component("erasures")["state"] == "up");
    engine.terminate();
    lose_second_record(home.path());
    let _broker = Tansu::start_on(address, address);
    assert_eq!(missing(&setup), is_missing("wal", 7));
    let engine = setup.start();
    engine.clickhouse().wait_for("SELECT count() FROM overwatch.events", "16");
    eventually("what is left has arrived", || ledger(&setup).0["total"]["stored"] == 16);
    assert_eq!(missing(&setup), is_missing("wal", 7));
}

#[test]
fn what_is_erased_before_it_is_stored_is_not_missed() {
    let home = tempfile::tempdir().unwrap();
    let (setup, engine, _server, proxy) = held_up(home.path());
    let of = |user: &str| json!({"type": "pageview", "path": "/", "user_id": user});
    assert_eq!(engine.ingest(json!([of("ann"), of("bob"), of("ann"), of("ann")]).to_string()).status, 200);
    let (status, text) = setup.run("erase --user ann");
    assert!(status.success(), "{text}");
    proxy.set(Fault::None);
    assert_eq!(terms(&settled(&setup), TENANT), json!({"received": 4, "stored": 1, "erased": 3}));
}

//! What cannot be stored is kept, shown, sent again or given up, and holds up nothing else.

use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use ingestion_engine::{
    dead_letters::{About, DeadLetter, DeadLetters, Form, Limits, MessageLine, Stage, read_files},
    ids::WalId,
    metrics::Metrics,
};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, TENANT, eventually, signal},
        process::ToEnd,
        tansu::Tansu,
    },
};

const NO_EVIL: &str = "ALTER TABLE overwatch.events ADD CONSTRAINT no_evil CHECK name != 'evil'";

/// Events of which those at the places in `evil` are called so.
fn events(range: std::ops::Range<usize>, evil: &[usize]) -> Value {
    let name = |place| if evil.contains(&place) { "evil" } else { "good" };
    let event =
        |place| json!({"id": id(place), "type": "custom", "name": name(place), "user_id": format!("user-{place}")});
    range.map(event).collect()
}

fn id(place: usize) -> Uuid {
    Uuid::from_u128(0x7000_8000_0000_0000_0000 + place as u128)
}

fn send(engine: &Engine, range: std::ops::Range<usize>, evil: &[usize]) {
    let (count, answer) = (range.len(), engine.ingest(events(range, evil).to_string()));
    assert_eq!((answer.status, answer.json()["events_accepted"].as_u64()), (200, Some(count as u64)), "{answer:?}");
}

fn is_up(engine: &Engine) {
    eventually("health is up", || engine.get("/health").json()["status"] == "up");
}

fn held(clickhouse: &ClickHouse, letters: usize) {
    let count = "SELECT count() FROM overwatch.dead_letters FINAL WHERE state = 'held'";
    clickhouse.wait_for(count, &letters.to_string());
}

/// Runs a command that succeeds; what it prints.
fn command(setup: &Setup, words: &str) -> String {
    let output = setup.command(words).to_end();
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn list(setup: &Setup, words: &str) -> Vec<Value> {
    serde_json::from_str(&command(setup, &format!("dead-letters list --json {words}"))).unwrap()
}

#[test]
fn rows_that_clickhouse_refuses_are_found_among_ten_thousand_and_can_be_sent_again() {
    let home = tempfile::tempdir().unwrap();
    // Large ranges: the refused rows stand in the middle of others.
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"2s\"\n[limits]\nevents_per_request = 10000");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    clickhouse.stop_merges();
    clickhouse.query(NO_EVIL);
    let evil = [0, 4_999, 5_000, 9_999];
    send(&engine, 0..10_000, &evil);
    clickhouse.wait_for_events_once(9_996);
    held(&clickhouse, 4);
    eventually("the log goes on", || engine.metric("ingestion_wal_events") == 0);
    is_up(&engine);
    assert_eq!(engine.metric("ingestion_dead_letters_total"), 4);
    assert_eq!(clickhouse.query("SELECT count() FROM system.tables WHERE name LIKE '%trial%'"), "0", "tidied up");

    let letters = list(&setup, "--reason NO_EVIL");
    let mut dead: Vec<&str> = letters.iter().map(|letter| letter["event_id"].as_str().unwrap()).collect();
    dead.sort_unstable();
    assert_eq!(dead, evil.map(|place| id(place).to_string()));
    for letter in &letters {
        assert_eq!(
            (&letter["tenant_id"], &letter["stage"], &letter["form"]),
            (&json!(TENANT), &json!("sink"), &json!("event"))
        );
        assert!(letter["entered"]["seq"].is_u64() && letter["message"]["topic"] == "wal", "{letter}");
    }
    assert_eq!(list(&setup, "--tenant 00000000-0000-0000-0000-00000000000f"), [] as [Value; 0]);
    assert_eq!(list(&setup, "--until 1h"), [] as [Value; 0]);
    for (json, part) in [("", "REASON"), ("--json", "reason")] {
        let (status, table) = setup.run(&format!("dead-letters list --since 1h --limit 2 {json}"));
        assert!(status.success() && table.contains(part) && table.contains("no_evil"), "{table}");
        assert!(
            table.contains(&id(9_999).to_string()[..14]) && table.contains("2 more letters are not shown"),
            "{table}"
        );
    }
    let one = list(&setup, &format!("--event {}", id(5_000)));
    assert_eq!((one.len(), &one[0]["event_id"]), (1, &json!(id(5_000))), "{one:?}");
    let name = one[0]["letter_id"].as_str().unwrap();
    let traced = command(&setup, &format!("trace {}", id(5_000)));
    assert!(traced.contains(&format!("dead-letters show {name}")), "{traced}");
    let shown = command(&setup, &format!("dead-letters show {name}"));
    assert!(shown.contains("\"name\": \"evil\"") && shown.contains("base64"), "{shown}");
    assert!(shown.starts_with("letter_id") && !shown.contains("trial"), "{shown}");
    assert!(
        shown.find("\nreason") < shown.find("\nbytes") && shown.find("\nbytes") < shown.find("\nevent "),
        "{shown}"
    );

    // The cause is still there: they are taken by the front, and refused again.
    command(&setup, "dead-letters replay --all");
    eventually("they have died again", || engine.metric("ingestion_dead_letters_total") == 8);
    held(&clickhouse, 4);
    clickhouse.wait_for_events_once(9_996);

    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_evil");
    // The front knows the events from the attempt before; an id is free again once its event has died.
    let summary = command(&setup, "dead-letters replay --all --json");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["replayed"], &summary["held"]), (&json!(4), &json!(0)), "{summary}");
    clickhouse.wait_for_events_once(10_000);
    held(&clickhouse, 0);
    let letters = list(&setup, "--all-states");
    assert_eq!(letters.len(), 8);
    let shown = command(&setup, &format!("dead-letters show {}", letters[0]["letter_id"].as_str().unwrap()));
    assert!(shown.contains("replayed_at") && shown.contains("its bytes went when it was replayed"), "{shown}");
    assert_eq!(clickhouse.query("SELECT count() FROM overwatch.dead_letters FINAL WHERE bytes != ''"), "0");
    // Again is nothing.
    let summary: Value = serde_json::from_str(&command(&setup, "dead-letters replay --all --json")).unwrap();
    assert_eq!((&summary["replayed"], &summary["stored"]), (&json!(0), &json!(0)), "{summary}");
    clickhouse.wait_for_events_once(10_000);
    // What died counts as dead, and as received anew when it was replayed.
    let ledger: Value = serde_json::from_str(&command(&setup, "ledger --json")).unwrap();
    let total = &ledger["total"];
    assert_eq!(
        (&total["received"], &total["dead_lettered"], &total["stored"]),
        (&json!(10_008), &json!(8), &json!(10_000)),
        "{ledger}"
    );
}

#[test]
fn rows_that_do_not_fit_a_column_whose_type_was_changed_are_found_among_others() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    // What ClickHouse says of each is another error: a text that is too long, one that is none of an Enum, a function that raises.
    let changes = [
        "ALTER TABLE overwatch.events MODIFY COLUMN name FixedString(4)",
        "ALTER TABLE overwatch.events MODIFY COLUMN name Enum8('' = 0, 'good' = 1)",
        "ALTER TABLE overwatch.events MODIFY COLUMN name String, ADD CONSTRAINT raises CHECK throwIf(name = 'terrible') = 0",
    ];
    let mut first = 0;
    for (number, change) in (1..).zip(changes) {
        clickhouse.query(change);
        let mut events = events(first..first + 500, &[]);
        for place in [0, 250, 499] {
            events[place]["name"] = json!("terrible");
        }
        assert_eq!(engine.ingest(events.to_string()).status, 200);
        clickhouse.wait_for_events_once(497 * number);
        held(&clickhouse, 3 * number);
        first += 500;
    }
    let mut dead: Vec<String> =
        list(&setup, "--stage sink").iter().map(|letter| letter["event_id"].to_string()).collect();
    dead.sort_unstable();
    let terrible = [0, 250, 499, 500, 750, 999, 1000, 1250, 1499];
    assert_eq!(dead, terrible.map(|place| format!("\"{}\"", id(place))));
    let (status, text) = setup.run("dead-letters drop --reason=");
    assert!(!status.success() && text.contains("a value is required"), "{text}");
    held(&clickhouse, 9);
}

#[test]
fn thousands_of_refused_rows_are_found_by_what_their_constraints_say() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"2s\"\n[limits]\nevents_per_request = 10000");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    clickhouse.query(NO_EVIL);
    clickhouse.query(
        "ALTER TABLE overwatch.events ADD CONSTRAINT `not one` CHECK user_id NOT IN ('user-3', 'user-5', '). Column values: ')",
    );
    let evil: Vec<usize> = (0..10_000).filter(|place| place % 5 == 0).collect();
    send(&engine, 0..10_000, &evil);
    clickhouse.wait_for_events_once(7_999);
    held(&clickhouse, 2_001);
    is_up(&engine);
    let wrong = "SELECT count() FROM overwatch.dead_letters FINAL WHERE position(bytes, 'evil') = 0";
    assert_eq!(clickhouse.query(wrong), "1", "user-3 alone is not evil");
    let letters = list(&setup, "--limit 3000");
    assert_eq!(letters.len(), 2_001);
    let log = engine.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("kept as dead letters")).collect();
    assert!(!told.is_empty() && told[0].contains(TENANT) && told[0].contains("WARN"), "{told:?}");
    assert!(log.lines().count() < 500, "not a line for each:\n{log}");
    let reasons: std::collections::BTreeSet<&str> =
        letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    let of = |name: &str| {
        reasons.iter().any(|reason| reason.contains(name) && reason.contains("for table overwatch.events is"))
    };
    assert!(reasons.len() == 2 && of("no_evil") && of("not one"), "{reasons:?}");
    assert_eq!(clickhouse.query("SELECT count() FROM system.tables WHERE name LIKE '%trial%'"), "0", "tidied up");
    setup.ledger().unwrap();
}

/// Not of a constraint, so that only halving finds the rows.
const NAME_IS_A_NUMBER: &str = "ALTER TABLE overwatch.events ADD COLUMN number Float64 MATERIALIZED toFloat64(name)";

#[test]
fn a_search_is_told_and_goes_on_where_a_stop_has_cut_it_off() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"1s\"");
    let mut engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    clickhouse.query(NAME_IS_A_NUMBER);
    // Every second one.
    let event = |place: usize| {
        let name = if place.is_multiple_of(2) { "7.5" } else { "seven" };
        json!({"id": id(place), "type": "custom", "name": name, "user_id": format!("user-{place}")})
    };
    let answer = engine.ingest((0..800).map(event).collect::<Value>().to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    eventually("health tells of it", || {
        let reason = engine.component("sink")["reason"].to_string();
        reason.contains("for table events, which are being looked for") && reason.contains("are left to ask")
    });
    eventually("some are kept", || engine.metric_or_zero("ingestion_dead_letters_total") >= 100);
    engine.terminate();
    let told: Vec<Value> = engine.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = told.iter().filter(|line| line["message"] == "kept as dead letters");
    let kept: u64 = told.map(|line| line["letters"].as_u64().unwrap()).sum();
    assert!(engine.log().contains("looking for which"), "{}", engine.log());

    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for_events_once(400);
    held(&clickhouse, 400);
    assert_eq!(engine.metric_or_zero("ingestion_dead_letters_total") + kept, 400, "none is looked for twice");
    is_up(&engine);
    let letters = list(&setup, "--limit 1000");
    assert!(
        letters.iter().all(|letter| !letter["reason"].to_string().contains("trial")),
        "the table of the trials is nobody's business: {letters:?}"
    );
    setup.ledger().unwrap();
}

/// Letters as an engine in `home` keeps them, `count` of them of `bytes` bytes each, for user `user` of `tenant`.
fn keep(home: &Path, tenant: Uuid, user: &str, (first, count): (u64, u64), bytes: usize) {
    let letters = DeadLetters::new(home.join("data/dead-letters"), Limits::default(), Arc::new(Metrics::new()));
    let sent = json!({"type": "custom", "name": "late", "user_id": user, "filler": "x".repeat(bytes)}).to_string();
    let about = |number: u64| About {
        tenant_id: Some(tenant),
        event_id: Uuid::from_u128(0x7000_8000_0000_0000_0000 + u128::from(number)),
        user_id: user.to_owned(),
        origin: Some((WalId(tenant), number, 0)),
        ..About::default()
    };
    let letter = |number| DeadLetter {
        stage: Stage::Reprocess,
        reason: "not today".to_owned(),
        form: Form::Sent,
        bytes: sent.as_bytes(),
        origin: None,
        message: None,
        about: Some(about(number)),
    };
    let kept: Vec<_> = (first..first + count).map(letter).collect();
    // Twice: by a run that was cut off, and its repeat.
    letters.keep(&kept[..1]).unwrap();
    letters.keep(&kept).unwrap();
}

fn tenant() -> Uuid {
    TENANT.parse().unwrap()
}

#[test]
fn letters_wait_on_disk_while_clickhouse_is_away_and_are_delivered_once() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("data/dead-letters");
    let away = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", "http://127.0.0.1:9");
    keep(home.path(), tenant(), "ann", (1, 3), 10);
    // A torn line: nobody was told that it is kept.
    let file = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let torn = fs::read_to_string(&file).unwrap() + "{\"letter_id\":\"00";
    fs::write(&file, torn).unwrap();
    let engine = away.start();
    let output = away.command("dead-letters list --json").to_end();
    assert_eq!(output.status.code(), Some(1), "not all was searched: {output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("only this node's files"), "{output:?}");
    let listed: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.len(), 3, "one that was kept twice is one: {listed:?}");
    assert!(listed.iter().all(|letter| letter["where"] == "on local disk"), "{listed:?}");
    let shown = command(&away, &format!("dead-letters show {}", listed[0]["letter_id"].as_str().unwrap()));
    assert!(shown.contains("not today") && shown.contains("\"filler\": \"xxxxxxxxxx\""), "{shown}");
    // Whether there is another one nobody knows now.
    let elsewhere = Uuid::from_u128(404);
    for action in ["show", "list"] {
        let (status, words) = away.run(&format!("dead-letters {action} {elsewhere}"));
        assert!(status.code() == Some(1) && words.contains("ClickHouse cannot be reached"), "{action}: {words}");
        assert!(!words.contains("there is no") && !words.contains("or there is none"), "{action}: {words}");
    }
    let (_, words) = away.run(&format!("dead-letters show {elsewhere}"));
    assert!(words.contains("is not on this node's disk, and the table dead_letters could not be asked"), "{words}");
    let (status, words) = away.run("dead-letters drop --all");
    assert!(status.code() == Some(1) && words.contains("ClickHouse cannot be reached"), "{words}");
    drop(engine);

    let setup = Setup::new(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    held(&clickhouse, 3);
    eventually("the files are gone", || read_files(&folder).unwrap().is_empty());
    // Kept and delivered again: a crash came before the file was removed.
    drop(engine);
    keep(home.path(), tenant(), "ann", (1, 4), 10);
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    held(&clickhouse, 4);
    eventually("the files are gone", || read_files(&folder).unwrap().is_empty());

    for action in ["drop", "replay"] {
        let (status, words) = setup.run(&format!("dead-letters {action}"));
        assert!(status.code() == Some(64) && words.contains("say which letters"), "{words}");
    }
    let one = list(&setup, "")[0]["letter_id"].as_str().unwrap().to_owned();
    assert_eq!(command(&setup, &format!("dead-letters drop {one}")), "1 dropped\n");
    assert_eq!(command(&setup, &format!("dead-letters drop {one}")), "0 dropped\n");
    let (status, words) = setup.run(&format!("dead-letters replay {one}"));
    assert!(status.code() == Some(1) && words.contains("of the 1 letters that were named 0 are held"), "{words}");
    let (status, words) = setup.run(&format!("dead-letters list {one}"));
    assert!(status.code() == Some(1) && words.contains("is not held (any more)"), "{words}");
    assert_eq!(list(&setup, &format!("--all-states {one}"))[0]["state"], "dropped");
    let nobody = Uuid::from_u128(404);
    for action in ["show", "drop", "replay", "list", "list --all-states"] {
        let (status, words) = setup.run(&format!("dead-letters {action} {nobody}"));
        assert!(status.code() == Some(1) && words.contains("dead-letters list --all-states"), "{action}: {words}");
    }
    let (status, words) =
        setup.run(&format!("dead-letters drop {nobody} {}", list(&setup, "")[0]["letter_id"].as_str().unwrap()));
    assert!(status.code() == Some(1) && words.contains("nothing is dropped"), "{words}");
    let (status, words) = setup.run(&format!("dead-letters list --tenant {nobody}"));
    assert!(status.success() && words.contains("there is no tenant") && words.contains("tenants list"), "{words}");
    held(&clickhouse, 3);
    // What became of a letter stands above its being delivered once more.
    drop(engine);
    keep(home.path(), tenant(), "ann", (1, 4), 10);
    let engine = setup.start();
    eventually("the files are gone", || read_files(&folder).unwrap().is_empty());
    held(&engine.clickhouse(), 3);
}

#[test]
fn a_look_where_nothing_was_stored_yet_begins_nothing() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let (status, words) = setup.run("dead-letters list");
    assert!(
        status.success() && words.contains("No dead letters.") && words.contains("nothing was ever stored"),
        "{words}"
    );
    let (status, words) = setup.run(&format!("dead-letters show {}", Uuid::from_u128(404)));
    assert!(status.code() == Some(1) && words.contains("there is no dead letter"), "{words}");
    assert!(words.contains("nothing was ever stored"), "{words}");
    assert!(!home.path().join("data").exists(), "made for a look");

    // What waits on disk is there all the same.
    keep(home.path(), tenant(), "ann", (1, 2), 10);
    let letters = list(&setup, "");
    assert_eq!(letters.len(), 2);
    let shown = command(&setup, &format!("dead-letters show {}", letters[0]["letter_id"].as_str().unwrap()));
    assert!(shown.contains("not today"), "{shown}");
    assert!(!home.path().join("data/clickhouse").exists(), "made for a look");

    // A ClickHouse that has no tables yet gets none.
    let server = tempfile::tempdir().unwrap();
    let database = Server::start(&server.path().join("clickhouse"));
    let url = format!("http://127.0.0.1:{}", database.port);
    let bare = Setup::new(home.path()).env("INGESTION_CLICKHOUSE_URL", &url);
    let (status, words) = bare.run("dead-letters list");
    assert!(status.success() && words.contains("ClickHouse has no table of dead letters yet"), "{words}");
    assert!(words.contains("on local disk"), "{words}");
    let databases = ClickHouse::at(&url).query("SELECT count() FROM system.databases WHERE name = 'overwatch'");
    assert_eq!(databases, "0");
}

#[test]
fn the_size_cap_is_announced_and_takes_the_oldest_of_whoever_has_most() {
    let (home, other) = (tempfile::tempdir().unwrap(), Uuid::from_u128(99));
    let setup = Setup::new(home.path()).config("[dead_letters]\nmax_bytes = \"1MiB\"");
    keep(home.path(), other, "bob", (100, 2), 100 << 10);
    keep(home.path(), tenant(), "ann", (1, 7), 100 << 10);
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    held(&clickhouse, 9);
    eventually("it is announced", || engine.component("dead_letters")["state"] == "degraded");
    let reason = engine.component("dead_letters")["reason"].to_string();
    assert!(reason.contains("9 dead letters hold") && reason.contains("dead_letters.max_bytes"), "{reason}");
    assert_eq!(engine.metric("ingestion_dead_letters_held"), 9);
    drop(engine);

    keep(home.path(), tenant(), "ann", (8, 3), 100 << 10);
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    eventually("letters are removed", || engine.metric_or_zero("ingestion_dead_letters_removed_total") > 0);
    // 12 letters of 100 kB, of which 9.2 fit into 0.9 MiB.
    held(&clickhouse, 9);
    let of = |tenant: Uuid, state: &str| {
        clickhouse.query(&format!(
            "SELECT toString(arraySort(groupArray(wal_seq))) FROM overwatch.dead_letters FINAL WHERE tenant_id = '{tenant}' AND state = '{state}'"
        ))
    };
    assert_eq!(of(other, "held"), "[100,101]");
    assert_eq!(of(other, "removed"), "[]");
    assert_eq!(engine.metric("ingestion_dead_letters_removed_total"), 3);
    let removed = of(tenant(), "removed");
    assert_eq!(removed, "[1,2,3]", "the oldest");
}

#[test]
fn a_table_that_takes_nothing_is_mended_and_no_row_becomes_a_letter() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"1s\"");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    clickhouse.query("ALTER TABLE overwatch.events ADD CONSTRAINT nothing CHECK name = 'nobody'");
    send(&engine, 0..500, &[]);
    eventually("health says so", || {
        engine.component("sink")["reason"].to_string().contains("refuses every row for table events")
    });
    assert_eq!(engine.component("sink")["state"], "down");
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT nothing");
    clickhouse.wait_for_events_once(500);
    assert_eq!(engine.metric_or_zero("ingestion_dead_letters_total"), 0);
}

#[test]
fn a_row_that_was_taken_lately_tells_bad_rows_from_a_bad_table() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"500ms\"");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    send(&engine, 0..10, &[]);
    clickhouse.wait_for_events_once(10);
    // One client sends nothing but bad rows: they hold up nobody.
    clickhouse.query(NO_EVIL);
    send(&engine, 10..110, &(10..110).collect::<Vec<_>>());
    held(&clickhouse, 100);
    send(&engine, 110..120, &[]);
    clickhouse.wait_for_events_once(20);
    // A table that takes nothing, and few events: they wait.
    clickhouse.query("ALTER TABLE overwatch.events ADD CONSTRAINT nothing CHECK name = 'nobody'");
    send(&engine, 120..125, &[]);
    eventually("health says so", || {
        engine.component("sink")["reason"].to_string().contains("refuses every row for table events")
    });
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT nothing");
    clickhouse.wait_for_events_once(25);
    held(&clickhouse, 100);
    setup.ledger().unwrap();
}

#[test]
fn rows_that_were_taken_once_and_would_be_refused_now_prove_nothing() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"100ms\"");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    // The last rows that were taken break the constraint that comes then; an older one does not.
    for place in 0..4 {
        send(&engine, place..place + 1, &[1, 2, 3]);
        clickhouse.wait_for_events_once(place + 1);
    }
    clickhouse.query(NO_EVIL);
    send(&engine, 4..5, &[4]);
    held(&clickhouse, 1);
    is_up(&engine);

    // None that was taken since the start would be taken now: that may be the table. What it takes next says that it is not.
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_evil");
    drop(engine);
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    send(&engine, 5..6, &[5]);
    clickhouse.wait_for_events_once(5);
    clickhouse.query(NO_EVIL);
    send(&engine, 6..7, &[6]);
    eventually("health says so", || {
        engine.component("sink")["reason"].to_string().contains("refuses every row for table events")
    });
    send(&engine, 7..8, &[]);
    clickhouse.wait_for_events_once(6);
    held(&clickhouse, 2);
    is_up(&engine);
    setup.ledger().unwrap();
}

#[test]
fn a_replay_that_is_cut_off_says_what_was_done_and_its_repeat_does_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    keep(home.path(), tenant(), "ann", (1, 1_500), 10);
    let mut engine = setup.start();
    held(&engine.clickhouse(), 1_500);
    let begin = |engine: &Engine, before: u64| {
        let mut replay = setup.command("dead-letters replay --all");
        let replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let replayed = || engine.metric_or_zero("ingestion_events_total{outcome=\"replayed\",code=\"\"}");
        eventually("some are replayed", || replayed() > before);
        // It cannot end now.
        signal(engine.pid(), "STOP");
        replay
    };
    let replay = begin(&engine, 0);
    signal(replay.id(), "INT");
    let output = replay.to_end();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1)
            && words.contains("cut off; ")
            && words.contains("repeating the command is safe"),
        "{words}"
    );
    signal(engine.pid(), "CONT");
    eventually("the engine sees it", || {
        !setup.run(&format!("dead-letters replay {}", Uuid::from_u128(404))).1.contains("another replay is at work")
    });

    // A repeat, in which the engine is killed.
    let replay = begin(&engine, engine.metric("ingestion_events_total{outcome=\"replayed\",code=\"\"}"));
    engine.kill();
    let output = replay.to_end();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && words.contains("letters were done before that"), "{words}");
    drop(engine);
    let engine = setup.start();
    is_up(&engine);
    command(&setup, "dead-letters replay --all");
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for_events_once(1_500);
    held(&clickhouse, 0);
}

#[test]
fn rows_that_are_stored_and_refused_now_are_no_letters() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).config("[sink]\nmax_age = \"500ms\"");
    let engine = setup.start();
    is_up(&engine);
    let clickhouse = engine.clickhouse();
    // The rows are in the table, and the view has none.
    clickhouse.query(
        "CREATE MATERIALIZED VIEW overwatch.bad ENGINE = MergeTree ORDER BY n AS SELECT throwIf(user_id = 'user-3') AS n FROM overwatch.events",
    );
    send(&engine, 0..10, &[3]);
    eventually("the view fails", || engine.component("sink")["reason"].to_string().contains("overwatch.bad fails"));
    clickhouse.query(NO_EVIL);
    clickhouse.query("DROP VIEW overwatch.bad");
    eventually("health says so", || {
        engine.component("sink")["reason"].to_string().contains("remove what refuses them until the range is stored")
    });
    clickhouse.query("ALTER TABLE overwatch.events DROP CONSTRAINT no_evil");
    clickhouse.wait_for_events_once(10);
    is_up(&engine);
    assert_eq!(engine.metric_or_zero("ingestion_dead_letters_total"), 0);
    setup.ledger().unwrap();
}

#[test]
fn an_erasure_finds_letters_and_what_is_no_event_stays() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    keep(home.path(), tenant(), "ann", (1, 2), 10);
    keep(home.path(), tenant(), "bob", (3, 1), 10);
    keep(home.path(), Uuid::from_u128(77), "ann", (4, 1), 10);
    let garbage = DeadLetters::new(home.path().join("data/dead-letters"), Limits::default(), Arc::new(Metrics::new()));
    let message = MessageLine { topic: "t".to_owned(), partition: 3, offset: 9, line: 1 };
    let letter = DeadLetter {
        stage: Stage::Source,
        reason: "not a row".to_owned(),
        form: Form::Line,
        bytes: b"\xff\x00 of ann",
        origin: None,
        message: Some(message),
        about: None,
    };
    garbage.keep(&[letter]).unwrap();
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    held(&clickhouse, 5);
    let erased = command(&setup, "erase --user ann --json");
    assert!(erased.contains("\"dead_letters\""), "{erased}");
    held(&clickhouse, 3);
    let left = "SELECT count() FROM overwatch.dead_letters WHERE user_id = 'ann' AND tenant_id != toUUID('00000000-0000-0000-0000-00000000004d')";
    assert_eq!(clickhouse.query(left), "0");

    let output = setup.command("dead-letters replay --all --json").to_end();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["replayed"], &summary["held"]), (&json!(1), &json!(2)), "{summary}");
    let reasons = summary["reasons"].to_string();
    assert!(reasons.contains("it is no event") && reasons.contains("there is no tenant"), "{reasons}");
    clickhouse.wait_for("SELECT user_id FROM overwatch.events", "bob");
    held(&clickhouse, 2);
}

#[test]
fn foreign_garbage_in_the_topic_holds_nothing_up() {
    let home = tempfile::tempdir().unwrap();
    let broker = Tansu::start();
    let setup = Setup::new(home.path()).broker(&broker.brokers());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    send(&engine, 0..100, &[]);
    clickhouse.wait_for_events_once(100);
    let stranger: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.brokers()).create().unwrap();
    let garbage: [&[u8]; 3] = [b"\xff\xfe\x00", b"{\"half\":\n{\"other\":\"half\"}", &[b'x'; 4096]];
    for bytes in garbage {
        stranger.send(BaseRecord::<(), _>::to("overwatch.events").payload(bytes)).map_err(|(error, _)| error).unwrap();
    }
    stranger.send(BaseRecord::<(), ()>::to("overwatch.events")).map_err(|(error, _)| error).unwrap();
    stranger.flush(Duration::from_secs(30)).unwrap();
    send(&engine, 100..200, &[]);
    clickhouse.wait_for_events_once(200);
    // One of two lines, and one without a value.
    held(&clickhouse, 5);
    let letters = list(&setup, "--stage source");
    assert!(letters.iter().all(|letter| letter["message"]["topic"] == "overwatch.events"), "{letters:?}");
    setup.ledger().unwrap();
    is_up(&engine);
}

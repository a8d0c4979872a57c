//! Plugins in a running engine: dropped in, replaced, removed, and whatever they do wrong.

use std::{collections::HashSet, fs, os::unix::process::ExitStatusExt};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    engine::{Answer, Engine, Setup, eventually},
    load::{Load, Sent},
    plugins::{built, copy_bytes_in, copy_in, folder, move_in, pilot, scaffolded, utm},
};

/// What `plugins list --json` says of the plugin `name`.
fn listed(setup: &Setup, name: &str) -> Value {
    let (status, text) = setup.run("plugins list --json");
    assert!(status.success(), "{text}");
    let plugins: Value = serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"));
    plugins.as_array().unwrap().iter().find(|plugin| plugin["name"] == name).cloned().unwrap_or_default()
}

fn signup(what: &str) -> Value {
    json!({ "id": Uuid::now_v7(), "type": "pilot", "plan": "pro", "do": what })
}

fn send(engine: &Engine, event: &Value) -> Answer {
    engine.ingest(event.to_string())
}

/// Waits until events of type `pilot` are taken.
fn wait_for_pilot(engine: &Engine) {
    let probe = json!({ "type": "pilot", "do": "drop" });
    eventually("the plugin's type is known", || send(engine, &probe).status == 200);
}

#[test]
fn a_library_dropped_into_a_running_engine_adds_a_type_and_takes_it_away_with_it() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = Setup::new(home.path()).start();
    let clickhouse = engine.clickhouse();
    let answer = send(&engine, &signup(""));
    assert_eq!((answer.status, &answer.json()["errors"][0]["code"]), (400, &json!("unknown_type")));

    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    wait_for_pilot(&engine);
    let events = [signup(""), signup("replace"), signup("drop"), signup("reject"), json!({"type": "pilot", "plan": 7})];
    let answer = engine.ingest(json!(events).to_string());
    let body = answer.json();
    assert_eq!(answer.status, 200, "{body}");
    assert_eq!(
        (&body["events_accepted"], &body["events_rejected"], &body["events_dropped"]),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(
        (
            &body["errors"][0]["code"],
            &body["errors"][0]["detail"],
            &body["errors"][0]["index"],
            &body["errors"][0]["id"]
        ),
        (&json!("pilot.told_to"), &json!("the event asked for it"), &json!(3), &events[3]["id"])
    );
    assert_eq!((&body["errors"][1]["code"], &body["errors"][1]["index"]), (&json!("schema_mismatch"), &json!(4)));

    clickhouse.wait_for(
        "SELECT JSONExtractString(properties, 'do'), JSONExtractString(properties, 'version') FROM overwatch.events \
         WHERE type = 'pilot' ORDER BY 1",
        "\t\nreplace\t1",
    );
    clickhouse.wait_for("SELECT count(), any(plan) FROM overwatch.plugin_pilot_rows", "2\tpro");
    clickhouse.wait_for("SELECT plan, events FROM overwatch.plugin_pilot_plans", "pro\t2");
    assert_eq!(engine.component("plugins")["state"], "up");

    fs::remove_file(folder(home.path()).join("pilot.so")).unwrap();
    eventually("the type is retired", || send(&engine, &signup("")).status == 400);
    let error = send(&engine, &signup("")).json()["errors"][0].clone();
    assert_eq!(error["code"], "unknown_type");
    assert!(
        error["detail"].as_str().unwrap().contains("plugin \"pilot\" added; that plugin has been removed"),
        "{error}"
    );
}

#[test]
fn a_plugin_is_replaced_a_hundred_times_under_load_and_nothing_is_refused_or_lost() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let library = fs::read(pilot(made.path(), "pilot", "1", &["-DENRICHES"])).unwrap();
    // What stands behind the last section of a library is not read, and changes its sum.
    let version = |number: usize| [library.as_slice(), format!("version {number}").as_bytes()].concat();
    move_in(&version(0), home.path(), "pilot.so");
    let setup = Setup::new(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let load = Load::start(&engine);
    load.wait_for_requests(20);
    let loaded = || engine.metric_or_zero("ingestion_plugin_loads_total{result=\"loaded\"}");
    for number in 1..=100 {
        let before = loaded();
        if number % 2 == 0 {
            copy_bytes_in(&version(number), home.path(), "pilot.so");
        } else {
            move_in(&version(number), home.path(), "pilot.so");
        }
        eventually("the new file is in use", || loaded() > before);
        load.wait_for_requests(2);
    }
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0));
    let kept = engine.metric("ingestion_plugin_events_total{plugin=\"pilot\",outcome=\"kept\"}");
    assert!(kept >= sent.acknowledged.len() as u64, "every event went through a plugin: {kept}");
    assert_eq!(engine.component("plugins")["state"], "up", "{}", engine.component("plugins"));
    sent.wait_until_stored(&clickhouse);
}

#[test]
fn an_event_that_crashes_a_plugin_cannot_crash_the_engine_for_ever() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_in(&pilot(made.path(), "pilot", "1", &["-DENRICHES"]), home.path(), "pilot.so");
    let setup = Setup::new(home.path());
    let poison = json!({ "id": Uuid::now_v7(), "type": "custom", "name": "n", "do": "segfault" });
    let mut acknowledged = HashSet::new();

    // An end that is nobody's fault does not count.
    let mut engine = setup.start();
    engine.kill();
    for crash in 1..=3 {
        let mut engine = setup.start();
        let load = Load::start(&engine);
        load.wait_for_requests(20);
        assert!(engine.try_ingest(poison.to_string()).is_none(), "no answer, for the engine is gone");
        assert_eq!(engine.wait_for_end().signal(), Some(11), "crash {crash} is a crash, for the supervisor to see");
        acknowledged.extend(load.stop().acknowledged);
    }
    let engine = setup.start();
    eventually("health says so", || engine.component("plugins")["state"] == "degraded");
    let report = engine.component("plugins");
    assert!(report["reason"].as_str().unwrap().contains("SIGSEGV"), "{report}");
    let load = Load::start(&engine);
    for _ in 0..3 {
        let answer = send(&engine, &poison);
        assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(1)), "{}", answer.text);
    }
    load.wait_for_requests(20);
    let sent = load.stop();
    assert_eq!((&sent.refused, sent.broken), (&Vec::new(), 0));
    // The plugin is given all events, so those of now are parked; those of before are rows.
    let clickhouse = engine.clickhouse();
    Sent { acknowledged, ..Sent::default() }.wait_until_stored(&clickhouse);
    let parked = sent.acknowledged.len() + 1;
    clickhouse.wait_for("SELECT uniqExact(event_id) FROM overwatch.parked_events", &parked.to_string());
    assert_eq!(listed(&setup, "pilot")["state"], "quarantined");
}

#[test]
fn a_plugin_that_hangs_is_given_up_then_quarantined_and_its_events_wait() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    copy_in(&pilot(made.path(), "closed", "1", &["-DFAIL_CLOSED"]), home.path(), "closed.so");
    let setup = Setup::new(home.path()).config("[plugins]\nfaults = 3\nfault_window = \"1h\"");
    let engine = setup.start();
    for _ in 0..3 {
        let answer = send(&engine, &signup("hang"));
        assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(1)), "{}", answer.text);
    }
    // Now it is not called any more, whatever the event.
    let answer = send(&engine, &signup(""));
    assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(1)));
    assert_eq!(send(&engine, &json!({"type": "custom", "name": "n"})).json()["events_parked"], Value::Null);
    eventually("health says so", || engine.component("plugins")["state"] == "degraded");
    assert!(engine.component("plugins")["reason"].as_str().unwrap().contains("pilot"));
    let clickhouse = engine.clickhouse();
    clickhouse
        .wait_for("SELECT count(), uniqExact(event_id) FROM overwatch.parked_events WHERE plugin = 'pilot'", "4\t4");
    assert_eq!(clickhouse.number("SELECT count() FROM overwatch.events WHERE type = 'pilot'"), 0);

    // Another one asks for its events to be sent again instead.
    let answer = send(&engine, &json!({"type": "closed", "do": "fail"}));
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("plugin_unavailable")));
    assert!(!answer.header("retry-after").is_empty());
    assert!(answer.text.contains("as told"), "{}", answer.text);
}

#[test]
fn what_was_parked_goes_on_through_its_plugin_once() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    let setup = Setup::new(home.path());
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let (status, text) = setup.run("plugins quarantine pilot --reason testing");
    assert!(status.success(), "{text}");
    let events: Vec<Value> = ["", "", "replace", "drop", "reject"].iter().map(|what| signup(what)).collect();
    let answer = engine.ingest(json!(events).to_string());
    assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(5)), "{}", answer.text);
    clickhouse.wait_for("SELECT count(), any(reason) FROM overwatch.parked_events", "5\tquarantined: testing");
    assert_eq!(listed(&setup, "pilot")["state"], "quarantined");

    let (status, text) = setup.run("plugins reprocess pilot");
    assert!(!status.success() && text.contains("resume"), "it must be resumed first: {text}");
    let (status, text) = setup.run("plugins resume pilot");
    assert!(status.success(), "{text}");
    for _ in 0..2 {
        let (status, text) = setup.run("plugins reprocess pilot");
        assert!(status.success(), "{text}");
        clickhouse.wait_for("SELECT count(), uniqExact(event_id) FROM overwatch.events WHERE type = 'pilot'", "3\t3");
        clickhouse.wait_for("SELECT count() FROM overwatch.plugin_pilot_rows", "3");
        clickhouse.wait_for("SELECT plan, events FROM overwatch.plugin_pilot_plans", "pro\t3");
        assert_eq!(clickhouse.number("SELECT count() FROM overwatch.parked"), 0);
    }
    let stored: HashSet<String> =
        clickhouse.query("SELECT event_id FROM overwatch.events FORMAT TSV").lines().map(str::to_owned).collect();
    let expected: HashSet<String> =
        events.iter().take(3).map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(stored, expected, "under their own ids");
    assert_eq!(send(&engine, &signup("")).json()["events_parked"], Value::Null);
}

#[test]
fn in_a_process_of_its_own_a_plugin_crashes_alone() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_in(&pilot(made.path(), "pilot", "1", &[]), home.path(), "pilot.so");
    let engine = Setup::new(home.path()).config("[plugins]\nisolation = \"process\"\nfaults = 100").start();
    let clickhouse = engine.clickhouse();
    for what in ["segfault", "abort", "hang", "garbage", "fail"] {
        let answer = send(&engine, &signup(what));
        assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(1)), "{what}: {}", answer.text);
        let answer = send(&engine, &signup("replace"));
        assert_eq!(
            (answer.status, &answer.json()["events_parked"]),
            (200, &Value::Null),
            "after {what}: {}",
            answer.text
        );
    }
    clickhouse.wait_for("SELECT count() FROM overwatch.plugin_pilot_rows", "5");
    clickhouse.wait_for("SELECT count() FROM overwatch.parked_events", "5");
    let reasons = clickhouse.query("SELECT reason FROM overwatch.parked_events ORDER BY received_at");
    for (reason, part) in reasons.lines().zip(["SIGSEGV", "SIGABRT", "did not return", "not usable", "as told"]) {
        assert!(reason.contains(part), "{reason} names {part}");
    }
}

/// What README, "Write a plugin", does, and then a mistake in it.
#[test]
fn a_plugin_goes_from_nothing_to_a_row_and_its_panic_costs_no_event() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Printing a panic's backtrace takes longer than a call may: the plugin would be late, and not seen to panic.
    let setup = Setup::new(home.path()).env("RUST_BACKTRACE", "0");
    let engine = setup.start();
    let clickhouse = engine.clickhouse();
    let (status, text) = setup.run(&format!("plugins new newcomer --path {}", made.path().display()));
    assert!(status.success(), "{text}");
    let crate_dir = made.path().join("newcomer");
    copy_in(&scaffolded(&crate_dir), home.path(), "libnewcomer.so");
    let event =
        || json!({ "id": Uuid::now_v7(), "type": "newcomer", "label": " Pro", "value": 12.5, "user_id": "u-7" });
    eventually("its type is known", || send(&engine, &event()).status == 200);
    clickhouse.wait_for(
        "SELECT any(label), any(label_key), any(value), any(user_id) FROM overwatch.plugin_newcomer_events",
        " Pro\tpro\t12.5\tu-7",
    );

    let source = crate_dir.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    let place = "let fields: NewcomerEvent = event.parse()?;";
    assert!(text.contains(place), "{text}");
    fs::write(&source, text.replace(place, &format!("{place} assert!(fields.value < 100.0, \"too much\");"))).unwrap();
    let loaded = || engine.metric_or_zero("ingestion_plugin_loads_total{result=\"loaded\"}");
    let before = loaded();
    copy_in(&scaffolded(&crate_dir), home.path(), "libnewcomer.so");
    eventually("the new file is in use", || loaded() > before);
    let mut large = event();
    large["value"] = json!(500);
    let answer = send(&engine, &large);
    assert_eq!((answer.status, &answer.json()["events_parked"]), (200, &json!(1)), "{}", answer.text);
    assert_eq!(send(&engine, &event()).json()["events_parked"], Value::Null);
    clickhouse.wait_for("SELECT count() FROM overwatch.parked_events", "1");
    let reason = clickhouse.query("SELECT reason FROM overwatch.parked_events");
    assert!(reason.contains("it panicked") && reason.contains("too much"), "{reason}");
}

#[test]
fn the_samples_work_side_by_side() {
    let (home, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = Setup::new(home.path()).start();
    let clickhouse = engine.clickhouse();
    for sample in ["purchase", "web_vitals_rating", "redact"] {
        copy_in(&built(sample), home.path(), &format!("{sample}.so"));
    }
    copy_in(&utm(made.path()), home.path(), "utm.so");
    eventually("all are in use", || engine.metric("ingestion_plugins_loaded") == 4);

    let order = |total: &str| {
        json!({
            "type": "purchase", "order_id": "A-1", "total": total, "currency": "eur", "shipping": "10.00",
            "user_id": "u-7", "items": [{ "sku": "SHOE-42", "quantity": 1, "price": "119.90" }]
        })
    };
    let page = json!({
        "type": "pageview", "url": "https://shop.test/?utm_source=news&email=jane%40example.com",
        "title": "Hello jane@example.com"
    });
    let load = json!({ "type": "performance", "path": "/", "lcp": 1840, "inp": 320 });
    let answer = engine.ingest(json!([order("129.90"), order("1"), page, load]).to_string());
    assert_eq!((answer.status, &answer.json()["events_accepted"]), (200, &json!(3)), "{}", answer.text);
    assert_eq!(answer.json()["errors"][0]["code"], "purchase.total_mismatch");

    clickhouse.wait_for(
        "SELECT order_id, total, currency, item_count, user_id FROM overwatch.plugin_purchase_orders",
        "A-1\t129.9\tEUR\t1\tu-7",
    );
    clickhouse.wait_for(
        "SELECT currency, revenue, orders, buyers FROM overwatch.plugin_purchase_revenue_daily",
        "EUR\t129.9\t1\t1",
    );
    clickhouse.wait_for(
        "SELECT url, title, JSONExtractString(properties, 'utm_source') FROM overwatch.events WHERE type = 'pageview'",
        "https://shop.test/?utm_source=news&email=***\tHello ***\tnews",
    );
    clickhouse.wait_for(
        "SELECT JSONExtractString(properties, 'lcp_rating'), JSONExtractString(properties, 'rating') \
         FROM overwatch.events WHERE type = 'performance'",
        "good\tneeds_improvement",
    );
    clickhouse.wait_for(
        "SELECT rating, page_loads FROM overwatch.plugin_web_vitals_rating_ratings_daily",
        "needs_improvement\t1",
    );
    assert_eq!(engine.component("plugins")["state"], "up", "{}", engine.component("plugins"));
}

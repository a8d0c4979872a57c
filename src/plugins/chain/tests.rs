#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::{
    ids::TenantId,
    plugins::{
        call::Backend,
        faults::FaultWindow,
        plugin::{Deadline, Parts, Quarantine},
        schema::Schemas,
    },
};

type Answer = dyn Fn(&[String]) -> Result<Vec<Verdict>, Fault> + Send + Sync;

/// A backend in this process without a library: the chain is what is tested here.
struct Scripted {
    answer: Box<Answer>,
    calls: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Backend for Scripted {
    fn process(&self, _: &Worker, call: &Call<'_>, _: Duration) -> Result<Vec<Verdict>, Fault> {
        let events: Vec<String> = call.events.iter().map(|event| event.json.to_owned()).collect();
        self.calls.lock().push(events.clone());
        (self.answer)(&events)
    }

    fn health(&self, _: &Worker) -> Result<(), String> {
        Ok(())
    }
}

struct Made {
    plugin: Arc<Plugin>,
    calls: Arc<Mutex<Vec<Vec<String>>>>,
    /// Reasons of quarantines that faults brought about.
    quarantines: Arc<Mutex<Vec<String>>>,
}

fn plugin(
    descriptor: &serde_json::Value,
    answer: impl Fn(&[String]) -> Result<Vec<Verdict>, Fault> + Send + Sync + 'static,
) -> Made {
    let descriptor: crate::plugins::descriptor::Descriptor = serde_json::from_str(&descriptor.to_string()).unwrap();
    let (calls, quarantines) = (Arc::<Mutex<Vec<Vec<String>>>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let noted = quarantines.clone();
    let plugin = Plugin::new(Parts {
        schemas: Schemas::compile(&descriptor).unwrap(),
        file: format!("{}.so", descriptor.name),
        descriptor,
        sha256: "00".into(),
        backend: Some(Box::new(Scripted { answer: Box::new(answer), calls: calls.clone() })),
        deadline: Deadline { base: Duration::from_millis(50), per_event: Duration::ZERO },
        faults: FaultWindow::new(3, Duration::from_secs(60)),
        quarantine: None,
        on_quarantine: Box::new(move |_, quarantine| noted.lock().push(quarantine.reason.clone())),
        metrics: Arc::new(Metrics::new()),
    });
    Made { plugin: Arc::new(plugin), calls, quarantines }
}

#[expect(clippy::unnecessary_wraps, reason = "an answer of a plugin")]
fn keep(events: &[String]) -> Result<Vec<Verdict>, Fault> {
    Ok(vec![Verdict::Keep; events.len()])
}

fn enriching(name: &str, types: &[&str]) -> serde_json::Value {
    json!({ "name": name, "version": "1", "enriches": types })
}

fn adding(name: &str, kind: &str, schema: &serde_json::Value) -> serde_json::Value {
    json!({ "name": name, "version": "1", "adds": [{ "type": kind, "schema": schema, "examples": [{ "type": kind }] }] })
}

fn acceptance() -> Acceptance {
    Acceptance {
        tenant_id: TenantId(Uuid::from_u128(1)),
        received_at_ms: 1_800_000_000_000,
        expires_at: 77,
        event_bytes: 300,
        oldest_ms: 0,
        latest_ms: i64::MAX,
    }
}

/// What becomes of `events`, as (number, end) with the properties of accepted ones.
fn run(plugins: &[&Made], events: &[&str], abandoned: &[Abandoned]) -> Result<Vec<(usize, String)>, Unavailable> {
    let set = Set::new(plugins.iter().map(|made| made.plugin.clone()).collect(), &BTreeMap::new());
    let (acceptance, metrics) = (acceptance(), Metrics::new());
    let mut chain = Chain::new(&set, &acceptance, &metrics);
    for (number, json) in events.iter().enumerate() {
        let row = event::read(json, &acceptance, set.types()).unwrap();
        chain.push(number, json, &row);
    }
    let ended = chain.run(&Worker::detached(), Purpose::LIVE, abandoned)?;
    let shown = |event: &EndedEvent<'_>| match &event.end {
        End::Accepted(range) => {
            let row::Row::Event(row) = row::decode(&ended.rows[range.clone()]).unwrap() else { panic!("a parked row") };
            assert_eq!((row.event_id, row.expires_at), (event.id, 77));
            format!("accepted {}{}", row.name.0, row.properties.0)
        }
        End::Rejected { code, detail } => format!("rejected {code}: {detail}"),
        End::Dropped => "dropped".to_owned(),
        End::Parked { plugin, reason } => format!("parked for {plugin}: {reason}"),
    };
    Ok(ended.events.iter().map(|event| (event.number, shown(event))).collect())
}

fn custom(name: &str) -> String {
    json!({ "type": "custom", "name": name }).to_string()
}

#[test]
fn every_verdict_has_its_end() {
    let four = plugin(&enriching("four", &["custom"]), |_| {
        Ok(vec![
            Verdict::Keep,
            Verdict::Replace(custom("new")),
            Verdict::Reject { code: "bad".into(), detail: "too bad".into() },
            Verdict::Drop { reason: "bot".into() },
        ])
    });
    let events = [custom("a"), custom("b"), custom("c"), custom("d")];
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let ended: Vec<String> = run(&[&four], &events, &[]).unwrap().into_iter().map(|(_, end)| end).collect();
    assert_eq!(ended, ["accepted a", "accepted new", "rejected four.bad: too bad", "dropped"]);
    assert_eq!(four.calls.lock().len(), 1, "one call for all events of a request");
}

#[test]
fn plugins_come_in_the_order_of_their_reach_and_see_what_the_ones_before_made() {
    let append = |suffix: &'static str| {
        move |events: &[String]| {
            let event = |json: &String| {
                let mut event: serde_json::Value = serde_json::from_str(json).unwrap();
                let trail = event["trail"].as_str().unwrap_or_default().to_owned();
                event["trail"] = format!("{trail}{suffix}").into();
                Verdict::Replace(event.to_string())
            };
            Ok(events.iter().map(event).collect())
        }
    };
    let all = plugin(&enriching("a_all", &["*"]), append("4"));
    let late = plugin(&enriching("z_named", &["order"]), append("3"));
    let early = plugin(&enriching("b_named", &["order"]), append("2"));
    let owner = plugin(&adding("y_owner", "order", &json!({})), append("1"));
    let ended = run(&[&all, &late, &early, &owner], &[r#"{"type":"order"}"#, r#"{"type":"click","x":1,"y":2}"#], &[]);
    assert_eq!(
        ended.unwrap(),
        [(0, r#"accepted {"trail":"1234"}"#.to_owned()), (1, r#"accepted {"trail":"4"}"#.to_owned())]
    );
}

#[test]
fn events_that_no_plugin_is_given_are_not_taken() {
    let clicks = plugin(&enriching("clicks", &["click"]), keep);
    assert_eq!(run(&[&clicks], &[&custom("a")], &[]).unwrap(), []);
    assert!(clicks.calls.lock().is_empty());
}

#[test]
fn who_adds_a_type_comes_before_who_enriches_it_whatever_else_both_do() {
    let names = |descriptors: &[serde_json::Value]| {
        let plugins = descriptors.iter().map(|descriptor| plugin(descriptor, keep).plugin).collect();
        let set = Set::new(plugins, &BTreeMap::new());
        set.plugins().iter().map(|plugin| plugin.name().to_owned()).collect::<Vec<_>>()
    };
    let both = |name: &str, adds: &str, enriches: &str| {
        let mut descriptor = adding(name, adds, &json!({}));
        descriptor["enriches"] = json!([enriches]);
        descriptor
    };
    assert_eq!(names(&[enriching("alpha", &["order"]), both("shop", "order", "pageview")]), ["shop", "alpha"]);
    assert_eq!(names(&[enriching("redact", &["*"]), both("zoo", "animal", "*")]), ["zoo", "redact"]);
    assert_eq!(
        names(&[both("zoo", "animal", "*"), enriching("redact", &["*"]), enriching("a", &["animal", "click"])]),
        ["zoo", "a", "redact"]
    );
    // A circle begins with the first by name.
    assert_eq!(names(&[both("b", "two", "one"), both("a", "one", "two")]), ["a", "b"]);
}

#[test]
fn an_event_is_held_against_its_schema_before_the_plugin_sees_it() {
    let schema = json!({ "properties": { "total": { "type": "number" } }, "required": ["total"] });
    let order = plugin(&adding("order", "order", &schema), keep);
    let ended = run(&[&order], &[r#"{"type":"order","total":"x"}"#, r#"{"type":"order","total":1}"#], &[]).unwrap();
    assert!(ended[0].1.starts_with("rejected schema_mismatch: ") && ended[0].1.contains("total"), "{ended:?}");
    assert_eq!(ended[1].1, r#"accepted {"total":1}"#);
    assert_eq!(*order.calls.lock(), [[r#"{"type":"order","total":1}"#]]);
}

#[test]
fn output_that_is_no_event_is_a_fault_and_all_events_of_the_call_are_parked() {
    let cases = [
        ("no JSON", "an event must be a JSON object"),
        (r#"{"type":"click","x":1,"y":2}"#, r#""type" was "custom" and must stay so"#),
        (r#"{"type":"custom","name":"n","id":"550e8400-e29b-41d4-a716-446655440000"}"#, "and must stay so"),
        (
            r#"{"type":"custom","name":"n","tenant_id":"550e8400-e29b-41d4-a716-446655440000"}"#,
            "not the tenant of the key",
        ),
        (&custom(&"x".repeat(300 << 10)), "more than the 262144 allowed"),
    ];
    for (output, problem) in cases {
        let output = output.to_owned();
        let bad = plugin(&enriching("bad", &["custom"]), move |_| {
            Ok(vec![Verdict::Replace(custom("fine")), Verdict::Replace(output.clone())])
        });
        let ended = run(&[&bad], &[&custom("a"), &custom("b")], &[]).unwrap();
        for (_, end) in ended {
            assert!(end.starts_with("parked for bad: its output is not usable: event 1"), "{end}");
            assert!(end.contains(problem), "{problem}: {end}");
        }
    }
    let few = plugin(&enriching("few", &["custom"]), |_| Ok(vec![Verdict::Keep]));
    let ended = run(&[&few], &[&custom("a"), &custom("b")], &[]).unwrap();
    assert!(ended.iter().all(|(_, end)| end.contains("1 verdicts for 2 events")), "{ended:?}");
}

#[test]
fn an_id_that_the_sender_gave_may_be_left_out_of_the_output() {
    let id = "550e8400-e29b-41d4-a716-446655440000";
    let forgetful = plugin(&enriching("forgetful", &["custom"]), |_| Ok(vec![Verdict::Replace(custom("new"))]));
    let set = Set::new(vec![forgetful.plugin.clone()], &BTreeMap::new());
    let (acceptance, metrics) = (acceptance(), Metrics::new());
    let json = json!({ "type": "custom", "name": "old", "id": id }).to_string();
    let row = event::read(&json, &acceptance, set.types()).unwrap();
    let mut chain = Chain::new(&set, &acceptance, &metrics);
    assert!(chain.push(0, &json, &row));
    let ended = chain.run(&Worker::detached(), Purpose::LIVE, &[]).unwrap();
    let End::Accepted(range) = ended.events[0].end.clone() else { panic!("{:?}", ended.events) };
    let row::Row::Event(row) = row::decode(&ended.rows[range]).unwrap() else { panic!("a parked row") };
    assert_eq!((row.event_id.to_string().as_str(), &*row.name), (id, "new"));
}

#[test]
fn repeated_faults_quarantine_and_then_nothing_is_called() {
    let panics = plugin(&enriching("panics", &["custom"]), |_| Err(Fault::Panicked { message: "oh".into() }));
    let fine = plugin(&enriching("fine", &["*"]), keep);
    for _ in 0..3 {
        let ended = run(&[&panics, &fine], &[&custom("a")], &[]).unwrap();
        assert_eq!(ended, [(0, "parked for panics: it panicked: oh".to_owned())]);
    }
    assert_eq!(*panics.quarantines.lock(), ["repeated faults, the last one: it panicked: oh"]);
    let ended = run(&[&panics, &fine], &[&custom("a"), r#"{"type":"click","x":1,"y":2}"#], &[]).unwrap();
    assert_eq!(ended[0].1, "parked for panics: quarantined: repeated faults, the last one: it panicked: oh");
    assert_eq!(ended[1].1, "accepted ", "other types go on");
    assert_eq!(panics.calls.lock().len(), 3);
    assert_eq!(*fine.calls.lock(), [[r#"{"type":"click","x":1,"y":2}"#]], "parked events are no work for others");
    panics.plugin.set_quarantine(None);
    run(&[&panics], &[&custom("a")], &[]).unwrap();
    assert_eq!(panics.calls.lock().len(), 4, "resumed");
    assert_eq!(panics.plugin.quarantine(), None, "its faults were forgotten");
}

#[test]
fn a_plugin_that_fails_closed_asks_for_the_events_to_come_again() {
    let mut descriptor = enriching("closed", &["custom"]);
    descriptor["fail_closed"] = true.into();
    let closed = plugin(&descriptor, keep);
    let since = Timestamp::now();
    closed.plugin.set_quarantine(Some(Quarantine { reason: "by hand".into(), since }));
    let error = run(&[&closed], &[&custom("a")], &[]).unwrap_err();
    assert_eq!(error.to_string(), "plugin \"closed\" is not available: quarantined: by hand");
    // A request that has none of its events is not concerned.
    assert_eq!(run(&[&closed], &[r#"{"type":"click","x":1,"y":2}"#], &[]).unwrap(), []);
}

#[test]
fn a_plugin_that_was_given_up_with_a_request_is_not_called_with_it_again() {
    let hangs = plugin(&enriching("hangs", &["custom"]), keep);
    let late = Abandoned { plugin: "hangs".into(), limit: Duration::from_millis(51) };
    let ended = run(&[&hangs], &[&custom("a")], &[late]).unwrap();
    assert_eq!(ended, [(0, "parked for hangs: it did not return within 51ms".to_owned())]);
    assert!(hangs.calls.lock().is_empty());
}

#[test]
fn names_and_types_have_one_plugin() {
    let shop = plugin(&adding("shop", "order", &json!({})), keep);
    let set = Set::new(vec![shop.plugin.clone()], &BTreeMap::from([("gone".to_owned(), "old".to_owned())]));
    let descriptor = |value: serde_json::Value| serde_json::from_str(&value.to_string()).unwrap();
    let conflict = |value, replaces| set.conflict(&descriptor(value), replaces);
    let same_name = conflict(enriching("shop", &["*"]), None).unwrap();
    assert!(same_name.contains("\"shop\"") && same_name.contains("shop.so"), "{same_name}");
    let same_type = conflict(adding("other", "order", &json!({})), None).unwrap();
    assert!(same_type.contains("\"order\"") && same_type.contains("shop.so"), "{same_type}");
    assert_eq!(conflict(adding("shop", "order", &json!({})), Some("shop")), None);
    assert_eq!(conflict(enriching("other", &["order"]), None), None);
    let (_, error) = event::read(r#"{"type":"gone"}"#, &acceptance(), set.types()).unwrap_err();
    assert_eq!(error.detail, "\"type\" is \"gone\", which plugin \"old\" added; that plugin has been removed");
}

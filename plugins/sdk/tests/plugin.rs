//! Plugins, called through the functions of the contract: what they say arrives, and nothing that they do wrong gets out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use ingestion_plugin_sdk::{
    Batch, Description, Error, Event, EventType, Host, Id, NoConfig, Plugin, Purpose, Rejection, Verdict, Verdicts,
    abi::Level,
    json,
    testing::{Fault, Harness},
};
use serde::Deserialize;

/// Does what the member `do` of an event says.
struct Obedient {
    host: Host,
    calls: AtomicU64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    refuse: bool,
    panic: bool,
}

#[derive(Deserialize)]
struct Order<'a> {
    #[serde(rename = "do")]
    what: &'a str,
    #[serde(default)]
    #[expect(dead_code, reason = "only reading it counts")]
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    #[expect(dead_code, reason = "only reading it counts")]
    price: f64,
}

impl Plugin for Obedient {
    type Config = Config;

    fn describe() -> Description {
        Description::new("obedient", "0.1.0", "Does what it is told").adds(
            EventType::new("order", "An order to the plugin")
                .schema(json!({ "type": "object", "required": ["do"] }))
                .example(json!({ "type": "order", "do": "keep" }))
                .example(json!({ "type": "order", "do": "replace" })),
        )
    }

    fn new(config: Config, host: Host) -> Result<Self, Error> {
        assert!(!config.panic, "told to");
        if config.refuse {
            return Err("told to refuse".into());
        }
        host.info("ready");
        host.debug(format_args!("at {}", host.now_ms()));
        Ok(Self { host, calls: AtomicU64::new(0) })
    }

    fn event(&self, event: &Event<'_>, batch: &Batch<'_>) -> Result<Verdict, Rejection> {
        let order: Order = event.parse()?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.host.count("orders", 1);
        self.host.gauge("lines", 0.5);
        match order.what {
            "replace" => Ok(Verdict::replace(&json!({ "type": "order", "do": "replaced" }))),
            "reject" => Err(Rejection::new("told_to", format!("the {} order says so", event.kind()))),
            "drop" => Ok(Verdict::drop("told_to")),
            "drop_owned" => Ok(Verdict::drop("told_".to_owned() + "to")),
            "fail" => Ok(Verdict::fail("told to fail")),
            "panic" => panic!("told to {}", order.what),
            "panic_static" => panic!("told to"),
            "panic_odd" => std::panic::panic_any(PanicsOnDrop),
            "who" => Ok(Verdict::replace(&json!({
                "id": event.id().to_string(),
                "tenant": batch.tenant_id().to_string(),
                "at": batch.received_at_ms(),
                "purpose": batch.purpose().0,
                "of": batch.len(),
            }))),
            _ => Ok(Verdict::keep()),
        }
    }

    fn health(&self) -> Result<(), String> {
        match self.calls.load(Ordering::Relaxed) {
            0 => Ok(()),
            1 => Err("one call is too many".to_owned()),
            _ => panic!("two are a panic"),
        }
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        assert!(self.calls.load(Ordering::Relaxed) < 100, "dropped after 100 calls");
    }
}

/// A panic's payload may do this.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("again");
    }
}

fn order(what: &str) -> serde_json::Value {
    json!({ "type": "order", "do": what })
}

fn obedient() -> Harness<Obedient> {
    Harness::new(json!({})).unwrap()
}

#[test]
fn every_verdict_arrives() {
    let harness = obedient();
    let verdicts = harness.process(["keep", "replace", "reject", "drop", "drop_owned"].map(order));
    assert_eq!(
        verdicts,
        [
            Verdict::keep(),
            Verdict::replace_json(r#"{"do":"replaced","type":"order"}"#.to_owned()),
            Verdict::reject("told_to", "the order order says so"),
            Verdict::drop("told_to"),
            Verdict::drop("told_to"),
        ]
    );
    assert_eq!(harness.process([]), []);
    assert_eq!(harness.counter("orders"), 5);
    assert!((harness.gauges()["lines"] - 0.5).abs() < f64::EPSILON);
    assert_eq!(harness.log(), [(Level::INFO, "ready".to_owned()), (Level::DEBUG, "at 1767225600000".to_owned())]);
    harness.check().unwrap();
}

#[test]
fn a_call_knows_what_it_is_about() {
    let mut harness = obedient();
    harness.set_now_ms(42);
    harness.set_purpose(Purpose::REPROCESS);
    let mut who = order("who");
    who["id"] = json!("01890a5d-ac96-774b-bcce-b302099a8057");
    let expected = json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "tenant": "01010101-0101-0101-0101-010101010101",
        "at": 42,
        "purpose": Purpose::REPROCESS.0,
        "of": 2,
    });
    assert_eq!(harness.process([who, order("keep")])[0].replaced(), expected);
}

#[test]
fn an_older_engine_has_no_counters_and_no_purpose() {
    let mut harness = Harness::<Obedient>::with_contract(json!({}), 0).unwrap();
    harness.set_purpose(Purpose::CHECK);
    let who = harness.event(order("who"));
    assert_eq!(who.replaced()["purpose"], Purpose::LIVE.0);
    assert_eq!((harness.counters().len(), harness.gauges().len()), (0, 0));
    assert_eq!(harness.log().len(), 2);
}

#[test]
fn a_fault_takes_the_whole_call() {
    let harness = obedient();
    let fault = |what| harness.try_process(["replace", what, "replace"].map(order)).unwrap_err();
    assert_eq!(fault("fail"), Fault::Failed("told to fail".to_owned()));
    assert_eq!(fault("panic"), Fault::Panicked("told to panic".to_owned()));
    assert_eq!(fault("panic_static"), Fault::Panicked("told to".to_owned()));
    assert_eq!(fault("panic_odd"), Fault::Panicked("a panic without a message".to_owned()));
    // The instance goes on.
    assert!(harness.event(order("keep")).is_keep());
}

#[test]
fn a_panic_leaves_no_callback() {
    let new = Harness::<Obedient>::new(json!({ "panic": true })).unwrap_err();
    assert_eq!(new.to_string(), "new() panicked: told to");
    let new = Harness::<Obedient>::new(json!({ "refuse": true })).unwrap_err();
    assert_eq!(new.to_string(), "told to refuse");

    let harness = obedient();
    assert_eq!(harness.health(), Ok(()));
    harness.event(order("keep"));
    assert_eq!(harness.health(), Err(Fault::Failed("one call is too many".to_owned())));
    harness.event(order("keep"));
    assert_eq!(harness.health(), Err(Fault::Panicked("two are a panic".to_owned())));
    harness.process((0..100).map(|_| order("keep")));
    drop(harness);
}

#[test]
fn a_wrong_key_is_named() {
    let new = Harness::<Obedient>::new(json!({ "refuse": false, "refuze": true })).unwrap_err();
    assert_eq!(new.to_string(), "unknown key `refuze`");
    let new = Harness::<Obedient>::new(json!({ "refuse": 1 })).unwrap_err();
    assert_eq!(new.to_string(), "`refuse`: invalid type: integer `1`, expected a boolean");
}

#[test]
fn an_event_that_does_not_fit_is_rejected_with_the_field() {
    let harness = obedient();
    let detail = |event| {
        let verdict = harness.event(event);
        assert_eq!(verdict.code(), Some("invalid"));
        verdict.detail().unwrap().to_owned()
    };
    assert_eq!(detail(json!({ "type": "order" })), "missing field `do`");
    assert_eq!(
        detail(json!({ "type": "order", "do": "keep", "lines": [{ "price": 1 }, { "price": "2" }] })),
        "`lines[1].price`: invalid type: string \"2\", expected f64"
    );
}

/// Gives as many verdicts as the first event says.
struct Miscounts(Mutex<Vec<Id>>);

impl Plugin for Miscounts {
    type Config = NoConfig;

    fn describe() -> Description {
        panic!("nobody told it how");
    }

    fn new(_config: NoConfig, _host: Host) -> Result<Self, Error> {
        Ok(Self(Mutex::default()))
    }

    fn process(&self, batch: &Batch<'_>, verdicts: &mut Verdicts<'_>) {
        self.0.lock().unwrap().extend(batch.iter().map(|event| event.id()));
        let wanted: serde_json::Value = batch.get(0).unwrap().parse().unwrap();
        for _ in 0..wanted["verdicts"].as_u64().unwrap() {
            verdicts.push(Verdict::replace_json("{}".to_owned()));
        }
    }
}

#[test]
fn a_wrong_number_of_verdicts_is_a_fault() {
    let harness = Harness::<Miscounts>::new(json!({})).unwrap();
    let call = |number| harness.try_process([json!({ "verdicts": number }), json!({})]);
    let words =
        |number| Fault::Failed(format!("it gave {number} verdicts for 2 events: `process` must push one for each"));
    assert_eq!(call(2).unwrap(), vec![Verdict::replace_json("{}".to_owned()); 2]);
    assert_eq!(call(1).unwrap_err(), words(1));
    assert_eq!(call(0).unwrap_err(), words(0));
    assert_eq!(call(3).unwrap_err(), words(3));
}

#[test]
fn a_description_that_panics_says_so() {
    let harness = Harness::<Miscounts>::new(json!({})).unwrap();
    for _ in 0..2 {
        let words = harness.descriptor().unwrap_err().to_string();
        assert!(words.ends_with("describe() panicked: nobody told it how"), "{words}");
    }
}

#[test]
fn one_instance_serves_many_threads() {
    let harness = Harness::<Obedient>::new(json!({})).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(harness.event(order("replace")).replaced()["do"], "replaced");
                }
            });
        }
    });
    assert_eq!(harness.counter("orders"), 80);
}

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use ingestion_plugin_abi::Purpose;
use uuid::Uuid;

use super::{CreateError, Instance, Limits, describe};
use crate::{
    ids::{EventId, TenantId},
    metrics::Metrics,
    plugins::{
        call::{Backend, Call, Fault, Input, Verdict},
        host::Hosts,
        library::{
            Library,
            fixture::{plugin, quoted},
        },
        threads::{Caller, Worker},
    },
};

const LIMITS: Limits = Limits { event_bytes: 64 << 10 };

struct Rig {
    instance: Instance,
    metrics: Metrics,
}

fn caller() -> Caller {
    Caller { plugin: "fixture".into(), sha256: "0".into() }
}

fn create(parts: &[(&str, &str)]) -> Result<Rig, CreateError> {
    let library = Library::open(&plugin(parts).path).unwrap();
    let metrics = Metrics::new();
    let host = Hosts::new(metrics.of_plugins()).of("fixture");
    let instance = Instance::create(&Worker::detached(), caller(), &library, host, "{}", LIMITS)?;
    Ok(Rig { instance, metrics })
}

impl Rig {
    /// Calls with as many events, and sees to it that `release` followed.
    fn call(&self, events: usize) -> Result<Vec<Verdict>, Fault> {
        let input = Input { json: r#"{"type":"fixture"}"#, kind: "fixture", id: EventId(Uuid::nil()) };
        let events = vec![input; events];
        let call = Call { tenant: TenantId(Uuid::nil()), received_at_ms: 5, purpose: Purpose::LIVE, events: &events };
        let verdicts = self.instance.process(&Worker::detached(), &call, Duration::from_secs(1));
        assert!(self.counted("released") > 0, "not released");
        assert_eq!(self.counted("released"), self.counted("processed"));
        verdicts
    }

    fn counted(&self, name: &str) -> u64 {
        self.metrics.of_plugins().counter("fixture", name).get()
    }
}

fn says(on_event: &str) -> Result<Vec<Verdict>, Fault> {
    create(&[("ON_EVENT", on_event)]).unwrap().call(2)
}

fn bad_output(on_event: &str) -> String {
    match says(on_event).unwrap_err() {
        Fault::BadOutput { problem } => problem,
        other => panic!("{other}"),
    }
}

fn describes(parts: &[(&str, &str)]) -> String {
    let library = Library::open(&plugin(parts).path).unwrap();
    match describe(&Worker::detached(), &caller(), &library) {
        Ok(descriptor) => descriptor.name,
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_outcome_arrives() {
    let keep = says("verdict->outcome = INGESTION_OUTCOME_KEEP").unwrap();
    assert_eq!(keep, [Verdict::Keep, Verdict::Keep]);
    let replace = says("verdict->outcome = INGESTION_OUTCOME_REPLACE; verdict->first = event->json").unwrap();
    assert_eq!(replace[1], Verdict::Replace(r#"{"type":"fixture"}"#.to_owned()));
    let reject =
        r#"verdict->outcome = INGESTION_OUTCOME_REJECT; verdict->first = text("no"); verdict->second = text("bad")"#;
    assert_eq!(says(reject).unwrap()[0], Verdict::Reject { code: "no".to_owned(), detail: "bad".to_owned() });
    let dropped = r#"verdict->outcome = INGESTION_OUTCOME_DROP; verdict->first = text("bot")"#;
    assert_eq!(says(dropped).unwrap()[0], Verdict::Drop { reason: "bot".to_owned() });
}

#[test]
fn a_description_is_read_with_care() {
    assert_eq!(describes(&[]), "fixture");
    for (body, expected) in [
        ("return bytes(NULL, 0)", "returned no description"),
        ("return bytes(NULL, 50)", "returned no description"),
        ("return bytes(\"\", UINT64_MAX)", "returned 18446744073709551615 bytes, more than"),
        ("return bytes((void *)64, 50)", "lies outside of memory"),
        ("return text(\"{\\\"name\\\":\\\"\\xff\\\"}\")", "is not UTF-8"),
        ("return text(\"it panicked: no reason\")", "does not describe itself, and says: it panicked: no reason"),
        ("return text(\"{]\")", "is not the JSON that it should be"),
    ] {
        let words = describes(&[("DESCRIBE", body)]);
        assert!(words.contains(expected), "{body}: {words}");
    }
    let built_in = r#"{"name":"fixture","version":"1","adds":[{"type":"click","examples":[{}]}]}"#;
    let words = describes(&[("DESCRIPTION", &quoted(built_in))]);
    assert!(words.contains("claims the engine's own type \"click\""), "{words}");
}

#[test]
fn an_instance_that_is_not_made_says_why() {
    let words =
        create(&[("CREATE", "say(failure, \"rate must be positive\"); return NULL")]).err().unwrap().to_string();
    assert!(words.starts_with("it does not start: rate must be positive; see its configuration"), "{words}");
    let silent = create(&[("CREATE", "return NULL")]).err().unwrap();
    assert_eq!(silent, CreateError::Silent);
    // A length beyond the room that it was given.
    let words = create(&[("CREATE", "failure->len = UINT64_MAX; failure->data[0] = 'x'; return NULL")]);
    assert!(words.err().unwrap().to_string().starts_with("it does not start: x"));
}

#[test]
fn another_status_than_ok_is_a_fault() {
    let fault = |end: &str| create(&[("END", end)]).unwrap().call(1).unwrap_err();
    let words = "say(failure, \"no dictionary\"); return";
    assert_eq!(
        fault(&format!("{words} INGESTION_STATUS_FAILED")),
        Fault::Failed { message: "no dictionary".to_owned() }
    );
    assert_eq!(
        fault(&format!("{words} INGESTION_STATUS_PANICKED")),
        Fault::Panicked { message: "no dictionary".to_owned() }
    );
    assert_eq!(fault("return 77").to_string(), "it failed: status 77, which is none: no words");
    assert_eq!(fault("return INGESTION_STATUS_FAILED").to_string(), "it failed: it does not say why");
}

#[test]
fn an_event_without_a_verdict_is_named() {
    assert_eq!(bad_output("if (i == 0) verdict->outcome = 1"), "events[1]: it got no verdict");
    assert_eq!(bad_output("verdict->outcome = 9"), "events[0]: its outcome is 9, which is none");
}

#[test]
fn garbage_is_never_read() {
    for (first, expected) in [
        ("bytes(\"\", UINT64_MAX)", "events[0]: its JSON has 18446744073709551615 bytes, more than the 65536 allowed"),
        ("bytes(NULL, 5)", "events[0]: its JSON has 5 bytes at a null address"),
        ("bytes((void *)64, 5)", "events[0]: its JSON has 5 bytes at 0x40, where no memory is"),
        ("bytes((void *)-4, 50)", "events[0]: its JSON has 50 bytes at 0xfffffffffffffffc, where no memory is"),
        ("bytes((void *)-64, 50)", "events[0]: its JSON has 50 bytes at 0xffffffffffffffc0, where no memory is"),
        ("bytes(NULL, 0)", "events[0]: it is replaced by nothing"),
        ("text(\"\\xff\")", "events[0]: its JSON is not UTF-8 (byte 0)"),
    ] {
        let words = bad_output(&format!("verdict->outcome = INGESTION_OUTCOME_REPLACE; verdict->first = {first}"));
        assert_eq!(words, expected);
    }
}

#[test]
fn output_beyond_the_limits_is_a_fault() {
    let replace = |len: &str| {
        format!("verdict->outcome = INGESTION_OUTCOME_REPLACE; verdict->first = filled(verdict, ' ', {len})")
    };
    assert!(says(&replace("64 << 10")).is_ok());
    assert!(bad_output(&replace("(64 << 10) + 1")).contains("its JSON has 65537 bytes, more than the 65536 allowed"));
    assert!(bad_output(&replace("256 << 10")).contains("more than the 65536 allowed"));
    assert!(bad_output(&replace("1 << 30")).contains("its JSON has 1073741824 bytes, more than the 65536 allowed"));
    // Each within its limit, all together too much.
    let fault = create(&[("ON_EVENT", &replace("64 << 10"))]).unwrap().call(17).unwrap_err().to_string();
    assert!(fault.contains("events[16]: with it the call returned more than the 1048576 bytes allowed"), "{fault}");
}

#[test]
fn codes_have_their_form_and_details_their_length() {
    let reject = |first: &str, second: &str| {
        format!("verdict->outcome = INGESTION_OUTCOME_REJECT; verdict->first = {first}; verdict->second = {second}")
    };
    let bad = |first: &str, second: &str| bad_output(&reject(first, second));
    assert!(bad("text(\"Not a code\")", "text(\"\")").contains("the code is \"Not a code\"; it must be a-z"));
    assert!(bad("text(\"\")", "text(\"\")").contains("the code is \"\""));
    assert!(bad("filled(verdict, 'a', 65)", "text(\"\")").contains("the code has 65 bytes, more than the 64 allowed"));
    assert!(bad("text(\"no\")", "text(\"\\xff\")").contains("the detail is not UTF-8 (byte 0)"));
    assert!(bad("text(\"no\")", "bytes(\"\", 1 << 30)").contains("the detail has 1073741824 bytes"));
    let detail = |second: &str| match says(&reject("text(\"no\")", second)).unwrap().remove(0) {
        Verdict::Reject { detail, .. } => detail,
        other => panic!("{other:?}"),
    };
    assert_eq!(detail("filled(verdict, 'x', 5000)"), format!("{}...", "x".repeat(1024)));
    // Cut within a character of two bytes.
    let split = "filled(verdict, 'x', 1025); ((char *)verdict->owner)[1023] = '\\xc3'; ((char *)verdict->owner)[1024] = '\\xa9'";
    assert_eq!(detail(split), format!("{}...", "x".repeat(1023)));
}

#[test]
fn health_is_asked_where_there_is_one() {
    let health = |parts: &[(&str, &str)]| create(parts).unwrap().instance.health(&Worker::detached());
    let ill = ("HEALTH", "say(failure, \"no licence\"); return INGESTION_STATUS_FAILED");
    assert_eq!(health(&[]), Ok(()));
    assert_eq!(health(&[ill]), Err("no licence".to_owned()));
    assert_eq!(health(&[ill, ("HEADER", "{INGESTION_MAGIC, 1, 0, 64}")]), Ok(()));
}

#[test]
fn only_retiring_destroys() {
    let Rig { instance, metrics } = create(&[]).unwrap();
    let destroyed = metrics.of_plugins().counter("fixture", "destroyed");
    drop(create(&[("DESTROY", "abort()")]).unwrap());
    instance.retire(&Worker::detached()).unwrap();
    assert_eq!(destroyed.get(), 1);
}

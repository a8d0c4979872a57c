#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{
    ids::{EventId, TenantId},
    row::{EXPIRES_NEVER, EventRow},
};

const DAY_MS: i64 = 86_400_000;
/// 2026-11-23T10:20:30.400Z
const NOW: i64 = 1_795_429_230_400;

fn tenant() -> TenantId {
    TenantId(Uuid::from_u128(1))
}

fn acceptance() -> Acceptance {
    Acceptance {
        tenant_id: tenant(),
        received_at_ms: NOW,
        expires_at: 77,
        event_bytes: 64 << 10,
        oldest_ms: 0,
        latest_ms: NOW + DAY_MS,
    }
}

fn accepted(json: &str) -> EventRow<'_> {
    read(json, &acceptance(), &Types::default()).unwrap_or_else(|(_, error)| panic!("{json}: {error}"))
}

fn refused(json: &str) -> (EventErrorCode, String) {
    let (_, error) = read(json, &acceptance(), &Types::default()).expect_err(json);
    (error.code, error.detail.into_owned())
}

fn properties(json: &str) -> Value {
    let row = accepted(json);
    if row.properties.is_empty() { Value::Null } else { serde_json::from_str(&row.properties).unwrap() }
}

#[test]
fn a_body_is_a_batch_an_array_or_one_event() {
    let split = |body: &'static str| {
        Batch::parse(body.as_bytes(), 3).map(|batch| batch.events().map(|event| event.text()).collect::<Vec<_>>())
    };
    assert_eq!(split(r#"{"events":[{"a":1}, {"b":2}]}"#).unwrap(), [r#"{"a":1}"#, r#"{"b":2}"#]);
    assert_eq!(split(r#" [ {"a":1},7 ] "#).unwrap(), [r#"{"a":1}"#, "7"]);
    assert_eq!(split("\n{\"type\":\"scroll\"}\n").unwrap(), [r#"{"type":"scroll"}"#]);
    assert_eq!(split(r#"{"sent_at":1,"events":[{}],"library":{"name":"x"}}"#).unwrap(), ["{}"]);
    assert_eq!(split("[1,2,3]").unwrap().len(), 3);
}

#[test]
fn a_body_that_is_none_of_these_is_refused_with_the_place() {
    let error = |body: &[u8]| Batch::parse(body, 3).unwrap_err().to_string();
    assert_eq!(error(b"[1,2,3,4]"), "the body holds more than 3 events: split it into several requests");
    assert_eq!(error(b"{\"events\":[1,2,3,4]}"), "the body holds more than 3 events: split it into several requests");
    assert_eq!(error(b"[{\"a\":\xff}]"), "the body is not UTF-8: byte 6 starts no character");
    assert_eq!(error(b"[{\"a\":1},\n{\"b\" 2}]"), "the body is not valid: expected `:`, at line 2 column 6");
    assert_eq!(error(b"[] trailing"), "the body is not valid: trailing characters, at line 1 column 4");
    assert_eq!(
        error(b"{\"events\":7}"),
        "the body is not valid: invalid type: integer `7`, expected \"events\" to be an array, at line 1 column 11"
    );
    assert!(error(b"\"text\"").contains("expected {\"events\":[...]}, an array of events, or one event object"));
    for empty in [&b""[..], b"  \n", b"[]", b"{\"events\":[]}"] {
        assert!(matches!(Batch::parse(empty, 3), Err(BodyError::NoEvents)), "{empty:?}");
    }
}

#[test]
fn the_first_event_that_anybody_sends_is_taken_whole() {
    let row = accepted(
        r#"{"id":"550e8400-e29b-41d4-a716-446655440000","tenant_id":"00000000-0000-0000-0000-000000000001",
            "session_id":"11111111-1111-1111-1111-111111111111","timestamp":"2024-01-01T00:00:00Z",
            "type":"pageview","title":"Home","path":"/"}"#,
    );
    assert_eq!(row.event_id, EventId(Uuid::parse_str("550e8400-e29b-41d4-a716-446655440000").unwrap()));
    assert_eq!((row.tenant_id, row.timestamp_ms, row.received_at_ms), (tenant(), 1_704_067_200_000, NOW));
    assert_eq!((&*row.kind, &*row.title, &*row.path, row.expires_at), ("pageview", "Home", "/", 77));
    assert_eq!(&*row.session_id, "11111111-1111-1111-1111-111111111111");
    assert_eq!(&*row.properties, "");
}

#[test]
fn every_type_reads_all_of_its_fields() {
    let row = accepted(
        r#"{"type":"pageview","url":"https://x.example/a/b?c#d","referrer":"r","load_time_ms":12.5,"user_agent":"ua",
            "screen":"1920x1080","locale":"de-CH","timezone":"Europe/Zurich","context":{"app":{"v":1}},
            "user_id":42,"anonymous_id":"a\u00e9"}"#,
    );
    assert_eq!((&*row.path, row.load_time_ms, &*row.user_id, &*row.anonymous_id), ("/a/b", Some(12.5), "42", "aé"));
    assert_eq!((&*row.screen, &*row.locale, &*row.timezone), ("1920x1080", "de-CH", "Europe/Zurich"));
    assert_eq!((&*row.referrer, &*row.user_agent, &*row.context), ("r", "ua", r#"{"app":{"v":1}}"#));
    let row = accepted(r##"{"type":"click","element":"button","selector":"#buy","text":"Buy","x":-1.5,"y":20}"##);
    assert_eq!(
        (&*row.element, &*row.selector, &*row.text, row.x, row.y),
        ("button", "#buy", "Buy", Some(-1.5), Some(20.0))
    );
    let row = accepted(r#"{"type":"scroll","depth":100,"direction":"down"}"#);
    assert_eq!((row.depth, &*row.direction), (Some(100.0), "down"));
    let row = accepted(
        r#"{"type":"performance","lcp":1,"fid":2,"inp":3,"cls":0.25,"ttfb":5,"fcp":6,"dom_content_loaded":7,"load_complete":8}"#,
    );
    assert_eq!((row.lcp, row.fid, row.inp, row.cls), (Some(1.0), Some(2.0), Some(3.0), Some(0.25)));
    assert_eq!(
        (row.ttfb, row.fcp, row.dom_content_loaded, row.load_complete),
        (Some(5.0), Some(6.0), Some(7.0), Some(8.0))
    );
    let row = accepted(r#"{"type":"custom","name":"signed up","properties":{"plan":"pro"}}"#);
    assert_eq!((&*row.name, &*row.properties), ("signed up", r#"{"plan":"pro"}"#));
}

#[test]
fn ids_and_times_are_made_when_missing() {
    let row = accepted(r#"{"type":"custom","name":"n","id":null,"timestamp":null}"#);
    assert_eq!(row.event_id.0.get_version_num(), 7);
    assert_eq!(row.timestamp_ms, NOW);
}

#[test]
fn timestamps_in_all_their_forms() {
    let at = |timestamp: &str| {
        let json = format!(r#"{{"type":"custom","name":"n","timestamp":{timestamp}}}"#);
        accepted(&json).timestamp_ms
    };
    for timestamp in [
        "1704067200123",
        "1704067200123.75",
        "1.704067200123e12",
        r#""2024-01-01T00:00:00.123Z""#,
        r#""2024-01-01T01:00:00.123+01:00""#,
        r#""2024-01-01 00:00:00.123""#,
        r#""2024-01-01T00:00:00.123""#,
    ] {
        assert_eq!(at(timestamp), 1_704_067_200_123, "{timestamp}");
    }
    assert_eq!(at("0"), 0);
    assert_eq!(at(r#""1970-01-01T00:00:00Z""#), 0);
}

#[test]
fn what_has_no_column_is_kept_under_properties() {
    assert_eq!(
        properties(r#"{"type":"scroll","depth":5,"lcp":7,"plan":"pro","nested":{"a":[1, 2]},"nothing":null}"#),
        json!({"lcp":7,"plan":"pro","nested":{"a":[1,2]},"nothing":null})
    );
    assert_eq!(
        properties(r#"{"type":"custom","name":"n","properties":{"plan":"pro"},"plan":"free","seats":3}"#),
        json!({"plan":"pro","event.plan":"free","seats":3})
    );
    assert_eq!(
        properties(r#"{"type":"custom","name":"n","x":1,"x":2,"x":3,"properties":{}}"#),
        json!({"x":1,"event.x":2,"event.x.2":3})
    );
    assert_eq!(properties(r#"{"type":"custom","name":"n","properties":{ }}"#), Value::Null);
    assert_eq!(properties(r#"{"type":"custom","name":"n","we\"ird\n":1}"#), json!({"we\"ird\n":1}));
}

#[test]
fn properties_stand_on_one_line() {
    let row = accepted(
        "{\"type\":\"custom\",\"name\":\"n\",\"properties\":{\r\n  \"a\": \"b c\",\n\t\"d\":\n[1,\n2]\n},\"e\":{\n}}",
    );
    assert_eq!(&*row.properties, r#"{"a": "b c","d":[1,2],"e":{}}"#);
    let row = accepted("{\"type\":\"custom\",\"name\":\"n\",\"context\":{\n\"a\":1}}");
    assert_eq!(&*row.context, r#"{"a":1}"#);
}

#[test]
fn a_refusal_says_what_where_and_how() {
    use EventErrorCode::*;
    let long = "x".repeat(1025);
    let table: Vec<(String, EventErrorCode, &str)> = vec![
        ("7".into(), NotAnObject, "an event must be a JSON object"),
        ("{}".into(), MissingField, "an event needs \"type\": pageview, click, scroll, performance or custom"),
        (
            r#"{"type":"purchase"}"#.into(),
            UnknownType,
            "\"type\" is \"purchase\"; this engine knows pageview, click, scroll, performance, custom",
        ),
        (r#"{"type":5}"#.into(), InvalidField, "\"type\" must be a string"),
        (r#"{"type":"pageview"}"#.into(), MissingField, "a pageview needs \"path\" or \"url\""),
        (
            r#"{"type":"click","x":1}"#.into(),
            MissingField,
            "a click needs \"element\", \"selector\" or \"text\", or both \"x\" and \"y\"",
        ),
        (r#"{"type":"scroll"}"#.into(), MissingField, "a scroll needs \"depth\", in percent from 0 to 100"),
        (r#"{"type":"custom","name":""}"#.into(), MissingField, "a custom event needs \"name\""),
        (r#"{"type":"scroll","depth":101}"#.into(), InvalidField, "\"depth\" is 101, and must be from 0 to 100"),
        (r#"{"type":"scroll","depth":"5"}"#.into(), InvalidField, "\"depth\" must be a number from 0 to 100"),
        (
            r#"{"type":"scroll","depth":5,"direction":"diagonal"}"#.into(),
            InvalidField,
            "\"direction\" must be one of up, down, left, right",
        ),
        (
            format!(r#"{{"type":"pageview","path":"/","title":"{long}"}}"#),
            InvalidField,
            "\"title\" has 1025 bytes, more than the 1024 allowed",
        ),
        (r#"{"type":"pageview","path":"/","title":[1]}"#.into(), InvalidField, "\"title\" must be a string"),
        (
            r#"{"type":"custom","name":"n","user_id":1.5}"#.into(),
            InvalidField,
            "\"user_id\" must be a string or a whole number",
        ),
        (r#"{"type":"custom","name":"n","properties":[1]}"#.into(), InvalidField, "\"properties\" must be an object"),
        (
            r#"{"type":"custom","name":"n","id":"nope"}"#.into(),
            InvalidField,
            "\"id\" must be a UUID like 550e8400-e29b-41d4-a716-446655440000; leave it out to have one made",
        ),
        (
            r#"{"type":"custom","name":"n","tenant_id":"00000000-0000-0000-0000-000000000002"}"#.into(),
            TenantMismatch,
            "\"tenant_id\" is not the tenant of the key; leave it out or send the key's own",
        ),
        (
            r#"{"type":"custom","name":"n","timestamp":"yesterday"}"#.into(),
            InvalidField,
            "\"timestamp\" must be ISO 8601 (\"2024-01-01T00:00:00Z\") or epoch milliseconds (1704067200000)",
        ),
        (
            r#"{"type":"custom","name":"n","timestamp":-1}"#.into(),
            TimestampOutOfRange,
            "\"timestamp\" -1 is before the oldest that is accepted, 1970-01-01T00:00:00Z",
        ),
        (
            r#"{"type":"custom","name":"n","timestamp":"2026-11-24T10:20:30.401Z"}"#.into(),
            TimestampOutOfRange,
            "\"timestamp\" \"2026-11-24T10:20:30.401Z\" is after the latest that is accepted, 2026-11-24T10:20:30.4Z",
        ),
        (r#"{"type":"custom","name":"n","name":"m"}"#.into(), DuplicateField, "\"name\" stands twice in the event"),
        (
            format!(r#"{{"type":"custom","name":"n","blob":"{}"}}"#, "x".repeat(65536)),
            EventTooLarge,
            "the event has 65574 bytes, more than the 65536 allowed",
        ),
    ];
    for (json, code, detail) in table {
        assert_eq!(refused(&json), (code, detail.to_owned()), "{}", &json[..json.len().min(200)]);
    }
}

#[test]
fn a_refused_event_is_found_by_its_id() {
    let json = r#"{"type":"scroll","id":"550e8400-e29b-41d4-a716-446655440000"}"#;
    let (id, _) = read(json, &acceptance(), &Types::default()).unwrap_err();
    assert_eq!(id.unwrap().to_string(), "550e8400-e29b-41d4-a716-446655440000");
}

#[test]
fn repeated_unknown_names_stay_cheap() {
    // Ten thousand repeats of one name, the most that fit into an event, must not cost ten thousand squared.
    let repeats = r#","a":1"#.repeat(10_000);
    let json = format!(r#"{{"type":"custom","name":"n"{repeats}}}"#);
    let kept = properties(&json);
    assert_eq!(kept.as_object().unwrap().len(), 10_000);
}

#[test]
fn retention_is_rounded_up_to_its_bucket() {
    let expires = |hours: u64, received: &str| {
        let received: jiff::Timestamp = received.parse().unwrap();
        let at = Retention::of(Some(Duration::from_secs(hours * 3600))).expires_at(received.as_millisecond());
        jiff::Timestamp::from_second(i64::from(at)).unwrap().to_string()
    };
    for (hours, received, expected) in [
        (24, "2026-11-23T10:20:30Z", "2026-11-24T11:00:00Z"),
        (24, "2026-11-23T10:00:00Z", "2026-11-24T10:00:00Z"),
        (24, "2026-11-23T10:00:00.001Z", "2026-11-24T11:00:00Z"),
        (168, "2026-11-23T10:20:30Z", "2026-11-30T11:00:00Z"),
        (192, "2026-11-23T10:20:30Z", "2026-12-02T00:00:00Z"),
        (2160, "2026-11-23T00:00:00Z", "2027-02-21T00:00:00Z"),
        (8784, "2026-11-23T10:20:30Z", "2027-11-25T00:00:00Z"),
        (8808, "2026-11-23T10:20:30Z", "2027-12-01T00:00:00Z"),
        (17520, "2026-12-01T00:00:00Z", "2028-12-01T00:00:00Z"),
    ] {
        assert_eq!(expires(hours, received), expected, "{hours} h from {received}");
    }
    assert_eq!(Retention::of(None).expires_at(NOW), EXPIRES_NEVER);
}

proptest! {
    #[test]
    fn no_row_is_dropped_before_its_time(days in 1_i64..25_000, received in 0_i64..4_102_444_800_000) {
        let kept = Retention::Seconds(days * 86_400);
        let expires = i64::from(kept.expires_at(received));
        let due = received + days * DAY_MS;
        if due < i64::from(EXPIRES_NEVER) * 1000 - 32 * DAY_MS {
            prop_assert!(expires * 1000 >= due);
            prop_assert!(expires * 1000 < due + 32 * DAY_MS);
        }
    }

    #[test]
    fn no_input_panics(body: Vec<u8>) {
        if let Ok(batch) = Batch::parse(&body, 100) {
            for event in batch.events() {
                drop(event.read(&acceptance(), &Types::default()));
            }
        }
    }

    #[test]
    fn no_json_panics(text in r#"\{("(type|id|timestamp|properties|path|x)":("(pageview|click|é\\u00e9)"|[0-9.e-]{1,9}|\{\}|null),?){0,6}\}"#) {
        drop(read(&text, &acceptance(), &Types::default()));
    }
}

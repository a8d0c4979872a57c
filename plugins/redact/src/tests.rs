#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::needless_pass_by_value, reason = "tests")]

use ingestion_plugin_sdk::{serde_json::Value, testing::Harness};

use super::*;

fn plugin(config: Value) -> Harness<Redact> {
    Harness::new(config).unwrap()
}

/// Only these paths: no e-mail addresses, no query parameters.
fn at(paths: &[&str], mode: &str) -> Harness<Redact> {
    let key = "0123456789abcdef";
    plugin(json!({ "paths": paths, "mode": mode, "emails": false, "query_parameters": [], "hash_key": key }))
}

fn stored(harness: &Harness<Redact>, json: &str) -> String {
    harness.event_json(json).replacement().unwrap_or("kept").to_owned()
}

#[test]
fn the_plugin_is_in_order() {
    plugin(json!({})).check().unwrap();
    for mode in ["remove", "mask", "hash"] {
        at(&["properties.email", "user_id"], mode).check().unwrap();
    }
}

#[test]
fn a_value_is_removed_with_one_comma() {
    let harness = at(&["properties.a", "properties.b"], "remove");
    for (properties, expected) in [
        ("{}", "kept"),
        (r#"{"c":1}"#, "kept"),
        (r#"{"a":1}"#, "{}"),
        (r#"{"a":1,"c":2}"#, r#"{"c":2}"#),
        (r#"{"c":2,"a":1}"#, r#"{"c":2}"#),
        (r#"{"a":1,"b":2}"#, "{}"),
        (r#"{"a":1,"b":2,"c":3}"#, r#"{"c":3}"#),
        (r#"{"c":3,"a":1,"b":2}"#, r#"{"c":3}"#),
        (r#"{"a":1,"c":3,"b":2,"d":4}"#, r#"{"c":3,"d":4}"#),
        (r#"{ "a" : [1, {"x":"}"}] , "c" : 1.50 }"#, r#"{  "c" : 1.50 }"#),
        (r#"{"c":{"a":1},"b":null}"#, "kept"),
        (r#"{"a":"x\\\"y","a":2}"#, "{}"),
        (r#"{"\u0061":1,"c":2}"#, r#"{"c":2}"#),
    ] {
        let event = |properties: &str| format!(r#"{{"type":"custom","name":"n","properties":{properties}}}"#);
        let expected = if expected == "kept" { expected.to_owned() } else { event(expected) };
        assert_eq!(stored(&harness, &event(properties)), expected, "{properties}");
    }
}

#[test]
fn a_property_is_found_beside_properties_too() {
    let harness = at(&["properties.email", "properties.user.phone", "properties.**.iban"], "mask");
    assert_eq!(
        stored(&harness, r#"{"type":"custom","name":"email","email":"x","iban":1,"user":{"phone":"y","age":7}}"#),
        r#"{"type":"custom","name":"email","email":"***","iban":"***","user":{"phone":"***","age":7}}"#
    );
    // A field with a column is none, but only for the types that have it.
    let harness = at(&["properties.text"], "mask");
    assert_eq!(stored(&harness, r#"{"type":"click","text":"Buy"}"#), "kept");
    assert_eq!(stored(&harness, r#"{"type":"note","text":"Buy"}"#), r#"{"type":"note","text":"***"}"#);
}

#[test]
fn paths_lead_through_objects_and_arrays() {
    let harness = at(
        &["context.user.*.phone", "properties.items[].name", "properties.**.iban", "properties.tags[]", "context.ip"],
        "mask",
    );
    let event = r#"{"type":"custom","name":"n","context":{"ip":"::1","user":{"home":{"phone":1},"work":{"phone":2,"x":3}}},
        "properties":{"items":[{"name":"a","sku":1},{"name":"b"},[{"name":"c"}]],"tags":["x",["y"]],
        "deep":[[{"iban":1}],{"iban":{"of":[2]}}],"iban":3,"phone":4}}"#;
    let expected = r#"{"type":"custom","name":"n","context":{"ip":"***","user":{"home":{"phone":"***"},"work":{"phone":"***","x":3}}},
        "properties":{"items":[{"name":"***","sku":1},{"name":"***"},[{"name":"c"}]],"tags":["***","***"],
        "deep":[[{"iban":"***"}],{"iban":"***"}],"iban":"***","phone":4}}"#;
    assert_eq!(stored(&harness, event), expected);
    assert_eq!(harness.counter("redacted_values"), 10);
    assert_eq!(harness.counter("redacted_events"), 1);
    let harness = at(&["properties.tags[]", "context"], "remove");
    assert_eq!(
        stored(&harness, r#"{"type":"scroll","context":{"a":1},"depth":1,"properties":{"tags":[1,[2],"3"]}}"#),
        r#"{"type":"scroll","depth":1,"properties":{"tags":[]}}"#
    );
}

#[test]
fn a_field_that_an_event_needs_is_masked_and_not_removed() {
    let harness = at(&["url", "user_id", "title", "name"], "remove");
    assert_eq!(
        stored(&harness, r#"{"type":"pageview","url":"https://x.test/","user_id":42,"title":"t","name":"n"}"#),
        r#"{"type":"pageview","url":"***"}"#
    );
    assert_eq!(stored(&harness, r#"{"type":"custom","name":"Jane"}"#), r#"{"type":"custom","name":"***"}"#);
}

#[test]
fn a_hash_is_the_same_for_the_same_value() {
    let harness = at(&["user_id", "properties.user"], "hash");
    let event: Value = serde_json::from_str(&stored(
        &harness,
        r#"{"type":"scroll","depth":1,"user_id":42,"user":"\u00342","properties":{"user":"43"}}"#,
    ))
    .unwrap();
    assert_eq!(event["user_id"].as_str().unwrap().len(), 32);
    assert_eq!(event["user_id"], event["user"]);
    assert_ne!(event["user_id"], event["properties"]["user"]);
}

#[test]
fn addresses_of_mail_are_found_everywhere() {
    let harness = plugin(json!({ "query_parameters": [] }));
    assert_eq!(
        stored(
            &harness,
            r#"{"type":"pageview","id":"550e8400-e29b-41d4-a716-446655440000","url":"/?m=a%40b.co","title":"of \"a@b.co\"",
                "user_id":"jane\u0040example.com","properties":{"jane@example.com":["x <a@b.co>",{"n":1.0}]},"a@b.co":1}"#
        ),
        r#"{"type":"pageview","id":"550e8400-e29b-41d4-a716-446655440000","url":"/?m=***","title":"of \"***\"",
                "user_id":"***","properties":{"***":["x <***>",{"n":1.0}]},"***":1}"#
    );
    assert_eq!(harness.counter("redacted_emails"), 6);
    assert_eq!(stored(&harness, r#"{"type":"custom","name":"no address, \u0061nd 5 @ 3.50"}"#), "kept");
}

#[test]
fn query_parameters_are_found_in_every_text() {
    let harness = plugin(json!({ "query_parameters": ["Token", "email"], "emails": false, "mode": "remove" }));
    assert_eq!(
        stored(
            &harness,
            r#"{"type":"pageview","url":"https://x.test/?token=abc&page=2","referrer":"/#Email=a@b.co","p":"?q=1"}"#
        ),
        r#"{"type":"pageview","url":"https://x.test/?token=&page=2","referrer":"/#Email=","p":"?q=1"}"#
    );
    assert_eq!(harness.counter("redacted_query_parameters"), 2);
    assert_eq!(harness.counter("redacted_events"), 1);
}

#[test]
fn by_default_the_usual_suspects_are_masked() {
    let harness = plugin(json!({}));
    assert_eq!(
        stored(&harness, r#"{"type":"pageview","url":"/?access_token=x","title":"Write to a@b.co"}"#),
        r#"{"type":"pageview","url":"/?access_token=***","title":"Write to ***"}"#
    );
    assert!(harness.log().is_empty());
}

#[test]
fn no_event_outgrows_what_the_engine_takes() {
    let harness = plugin(json!({ "mode": "hash", "hash_key": "0123456789abcdef" }));
    // A time zone has 64 bytes at most.
    assert_eq!(
        stored(&harness, r#"{"type":"scroll","depth":1,"timezone":"a@b.co,a@b.co,a@b.co"}"#),
        r#"{"type":"scroll","depth":1,"timezone":"***"}"#
    );
    let small = format!(r#"{{"type":"scroll","depth":1,"to":"{}"}}"#, "a@b.co,".repeat(100));
    assert!(stored(&harness, &small).len() < small.len());
    let many = format!(r#"{{"type":"scroll","depth":1,"to":"{}","user_id":"a@b.co"}}"#, "a@b.co,".repeat(5000));
    let redacted = stored(&harness, &many);
    assert!(redacted.len() < many.len() && !redacted.contains('@'), "{} bytes", redacted.len());
}

#[test]
fn no_nesting_is_too_deep() {
    let depth = 30_000;
    let deep = format!("{}\"a@b.co\"{}", r#"[{"a":"#.repeat(depth / 3), "}]".repeat(depth / 3));
    let harness = plugin(json!({ "paths": ["properties.**.b", "properties.**.a[].c"] }));
    let event = format!(r#"{{"type":"scroll","depth":1,"properties":{{"x":{deep}}}}}"#);
    assert_eq!(stored(&harness, &event), event.replace("a@b.co", "***"));
}

#[test]
fn what_stays_is_as_it_was_sent() {
    let harness = at(&["properties.x"], "mask");
    let event = r#"{ "type" : "scroll","depth":1.10, "big":12345678901234567890.10,"half":"\ud800","properties" : {"x" : 1e400 , "y":-0.0} }"#;
    assert_eq!(stored(&harness, event), event.replace("1e400", r#""***""#));
    let other = r#"{"type":"scroll","depth":1,"properties":{"half":"\ud800 x","y":"x"}}"#;
    assert_eq!(stored(&harness, other), "kept");
}

#[test]
fn events_of_a_batch_are_redacted_each_for_itself() {
    let harness = plugin(json!({}));
    let verdicts = harness.process([
        json!({ "type": "scroll", "depth": 1 }),
        json!({ "type": "custom", "name": "a@b.co" }),
        json!({ "type": "custom", "name": "n" }),
    ]);
    assert_eq!(verdicts.iter().map(Verdict::is_keep).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(verdicts[1].replaced(), json!({ "type": "custom", "name": "***" }));
    assert_eq!(harness.counters().len(), 2, "{:?}", harness.counters());
}

#[test]
fn a_wrong_configuration_is_refused_in_words() {
    for (config, words) in [
        (json!({ "paths": ["properties.a..b"] }), r#"`paths`: "properties.a..b" has an empty step"#),
        (json!({ "paths": ["properties"] }), r#"`paths`: "properties" must stay an object"#),
        (json!({ "emails": false, "query_parameters": [] }), "there is nothing to redact"),
        (json!({ "mode": "hash" }), "needs either `hash_key` or `hash_key_file`"),
        (json!({ "mode": "hash", "hash_key": "short" }), "has 5 bytes, and needs 16"),
        (json!({ "mode": "hash", "hash_key_file": "/no/such/file" }), "`hash_key_file`: /no/such/file: No such file"),
        (json!({ "mode": "delete" }), "`mode`: unknown variant `delete`"),
        (json!({ "path": ["user_id"] }), "unknown key `path`"),
    ] {
        let error = Harness::<Redact>::new(config.clone()).map(drop).unwrap_err().to_string();
        assert!(error.contains(words), "{config}: {error}");
    }
}

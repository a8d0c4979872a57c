//! The compiled plugin, called as the engine calls it.
#![allow(unsafe_code, reason = "loads a library")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{path::Path, sync::OnceLock};

use ingestion_plugin_abi::{Plugin, SYMBOL};
use ingestion_plugin_sdk::{
    json,
    testing::{Foreign, Harness},
};
use libloading::Library;
use proptest::prelude::*;
use serde_json::Value;

const PARAMETERS: [&str; 5] = ["utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"];

/// The plugin's exported constant; its library stays loaded.
fn plugin() -> Plugin {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libutm.so");
        utm_c::compile("utm.c", &["-shared", "-fPIC"], &path).unwrap();
        // SAFETY: it has no constructors.
        unsafe { Library::new(path) }.unwrap()
    });
    // SAFETY: it was compiled with today's header, so it exports today's struct.
    unsafe { **library.get::<*const Plugin>(SYMBOL).unwrap() }
}

fn harness() -> Harness<Foreign> {
    // SAFETY: that it keeps to the contract is what is tested; its library stays loaded.
    unsafe { Harness::foreign(plugin(), json!({})) }.unwrap()
}

/// The members that the plugin adds to an event.
fn added(harness: &Harness<Foreign>, event: &str) -> Value {
    let verdict = harness.event_json(event);
    let Some(replacement) = verdict.replacement() else { return Value::Null };
    let brace = event.rfind('}').unwrap();
    let before = replacement.strip_prefix(&event[..brace]).expect("what was sent stays in front");
    let added = before.strip_suffix(&event[brace..]).expect("and behind");
    serde_json::from_str(&format!("{{{}}}", added.strip_prefix(',').unwrap())).unwrap()
}

#[test]
fn passes_its_own_check() {
    let harness = harness();
    harness.check().unwrap();
    assert_eq!(harness.descriptor().unwrap().name, "utm");
}

#[test]
fn says_that_there_is_nothing_to_configure() {
    // SAFETY: as in `harness`.
    let refused = unsafe { Harness::foreign(plugin(), json!({ "a": 1 })) }.unwrap_err();
    assert_eq!(refused.to_string(), "there is nothing to configure: remove [plugins.config.utm]");
}

#[test]
fn takes_the_campaign_apart() {
    let harness = harness();
    let cases = [
        (r#"{"url":"https://a.test/?utm_source=news"}"#, json!({ "utm_source": "news" })),
        (
            r#"{"type":"pageview","url":"/?x=1&utm_medium=e%2Dmail&utm_campaign=spring+sale%21#utm_term=no","n":1.10}"#,
            json!({ "utm_medium": "e-mail", "utm_campaign": "spring sale!" }),
        ),
        // The first one counts, unless it is empty.
        (r#"{"url":"?utm_term=&utm_term=b&utm_term=c"}"#, json!({ "utm_term": "b" })),
        // A name and a value may be encoded in any way that forms and JSON know.
        (
            r#"{"\u0075rl":"?utm%5Fsource\u003dn\u00e9\ud83c\udf08\/\""}"#,
            json!({ "utm_source": "n\u{e9}\u{1f308}/\"" }),
        ),
        (r#"{"url":"?utm_content=%22%5c%00%0a%7f"}"#, json!({ "utm_content": "\"\\\u{0}\n\u{7f}" })),
        (r#"{"url":"?utm_content=a=b?c"}"#, json!({ "utm_content": "a=b?c" })),
        (r#"{"url":"?utm_content=100%&utm_term=%zz%4"}"#, json!({ "utm_content": "100%", "utm_term": "%zz%4" })),
        // What is no text is marked as such: a lone continuation, half a pair in UTF-8, one cut off.
        (r#"{"url":"?utm_term=a%80b%c3"}"#, json!({ "utm_term": "a\u{fffd}b\u{fffd}" })),
        (r#"{"url":"?utm_term=\ud83cx"}"#, json!({ "utm_term": "\u{fffd}x" })),
        // The sender's own value stays.
        (r#"{"utm_source":null,"url":"?utm_source=a&utm_term=b"}"#, json!({ "utm_term": "b" })),
        // White space, and other members that look alike.
        ("{ \"b\" : {\"url\":\"?utm_term=x\"} ,\n\"url\"\t: \"?utm_term=y\" } ", json!({ "utm_term": "y" })),
    ];
    for (event, expected) in cases {
        assert_eq!(added(&harness, event), expected, "{event}");
    }
    assert_eq!(harness.counter("events_enriched"), 11);
}

#[test]
fn keeps_what_names_no_campaign() {
    let harness = harness();
    let events = [
        r#"{"type":"pageview","path":"/"}"#,
        r#"{"url":"https://a.test/utm_source=a"}"#,
        r#"{"url":"?utm_sourc=a&utm_sources=b&Utm_source=c&utm_source&=d&utm_id=e&utm_source_is_a_long_name=f"}"#,
        r##"{"url":"#?utm_source=a"}"##,
        r#"{"url":["?utm_source=a"],"urls":"?utm_source=b","properties":{"url":"?utm_source=c"}}"#,
        r#"{"utm_source":"mine","url":"?utm_source=theirs"}"#,
        r#"{"a":"\"url\":\"?utm_source=a\""}"#,
        "{}",
    ];
    for event in events {
        assert!(harness.event_json(event).is_keep(), "{event}");
    }
    assert_eq!(harness.counters().len(), 0);
}

#[test]
fn cuts_a_long_value_between_characters() {
    let harness = harness();
    for at in 0..4 {
        let event = format!(r#"{{"url":"?utm_term={}{}"}}"#, "x".repeat(at), "\u{1f308}".repeat(100));
        let value = added(&harness, &event);
        let text = value["utm_term"].as_str().unwrap();
        assert!(!text.contains('\u{fffd}'));
        assert!((249..=256).contains(&text.len()), "{}", text.len());
    }
}

#[test]
fn serves_many_threads_with_one_instance() {
    let harness = harness();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let harness = &harness;
            scope.spawn(move || {
                for call in 0..200 {
                    let source = format!("{thread}_{call}");
                    let events = (0..3).map(|_| json!({ "url": format!("?utm_source={source}") }));
                    for verdict in harness.process(events) {
                        assert_eq!(verdict.replaced()["utm_source"], source.as_str());
                    }
                }
            });
        }
    });
    assert_eq!(harness.counter("events_enriched"), 4 * 200 * 3);
}

proptest! {
    /// Against a form decoder and a JSON library of others.
    #[test]
    fn agrees_with_other_decoders(
        pairs in prop::collection::vec(("(utm_(source|medium|term)|x|utm)", r#"[a-z&=+%#?"\\ /\n\u{0}é🌈]{0,12}"#), 0..5),
        fragment in "[a-z=&?]{0,6}",
        own in any::<bool>(),
    ) {
        let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        let mut event = json!({ "type": "pageview", "url": format!("https://a.test/?{query}#{fragment}"), "z": [1, { "a": "}" }] });
        if own {
            event["utm_term"] = json!("mine");
        }
        let mut expected = serde_json::Map::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if PARAMETERS.contains(&name.as_ref()) && !value.is_empty() && !(own && name == "utm_term") {
                expected.entry(name).or_insert_with(|| json!(value));
            }
        }
        let expected = if expected.is_empty() { Value::Null } else { Value::Object(expected) };
        prop_assert_eq!(added(&harness(), &event.to_string()), expected);
    }
}

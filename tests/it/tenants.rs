//! Tenants and keys, as senders and operators meet them.

mod commands;
mod external;
mod reload;
mod whose;

use serde_json::json;

use crate::support::engine::{Answer, Engine, Setup, tenant_section};

/// Tenants of these tests. The keys are named after what they are.
const ONE: &str = "00000000-0000-0000-0000-000000000001";
const TWO: &str = "00000000-0000-0000-0000-000000000002";
const NOBODY: &str = "00000000-0000-0000-0000-00000000000a";

fn event() -> Vec<u8> {
    json!({"type": "pageview", "path": "/"}).to_string().into_bytes()
}

/// The status and the code of an answer; no code for a good one.
fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

/// What becomes of an event sent with `key`.
fn send(engine: &Engine, key: &str) -> (u16, String) {
    outcome(&engine.post(&format!("Bearer {key}"), &[], &event()))
}

fn good() -> (u16, String) {
    (200, String::new())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn every_way_in_which_a_key_is_no_good_has_its_own_code() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let one = tenant_section(ONE, &["good"], "name = \"one\"\nretention = \"7d\"")
        + &section("reader", "scopes = [\"read\"]")
        + &section("admin", "scopes = [\"admin\", \"ingest\"]")
        + &section("old", "expires = 2026-01-01T00:00:00Z")
        + &section("new", "expires = 2100-01-01T00:00:00Z")
        + &section("revoked", "revoked = 2026-01-01T00:00:00Z")
        + &section("web", "origins = [\"https://shop.example\", \"https://*.shop.example\"]");
    let two = tenant_section(TWO, &["switched-off"], "disabled = true");
    std::fs::write(setup.tenants_file(), one + &two).unwrap();
    let engine = setup.start();

    assert_eq!(send(&engine, "good"), good());
    assert_eq!(send(&engine, &format!("{ONE}:good")), good());
    assert_eq!(send(&engine, "new"), good());
    assert_eq!(send(&engine, "admin"), good());
    for (key, status, code) in [
        ("old", 401, "key_expired"),
        ("revoked", 401, "key_revoked"),
        ("reader", 403, "scope_missing"),
        ("switched-off", 403, "tenant_disabled"),
        ("web", 403, "origin_not_allowed"),
        ("iek_short", 401, "key_malformed"),
    ] {
        assert_eq!(send(&engine, key), refused(status, code), "{key}");
    }
    // Nothing tells whether the tenant exists.
    let of = |key: &str| {
        let answer = engine.post(&format!("Bearer {key}"), &[], &event());
        let mut body = answer.json();
        body["instance"].take();
        (answer.status, body)
    };
    let wrong = of(&format!("{ONE}:wrong"));
    assert_eq!((wrong.0, &wrong.1["code"]), (401, &json!("key_invalid")));
    for other in ["wrong".to_owned(), format!("{NOBODY}:good"), format!("{TWO}:good"), format!("{ONE}:switched-off")] {
        assert_eq!(of(&other), wrong, "{other}");
    }

    let from = |origin| outcome(&engine.post("Bearer web", &[("origin", origin)], &event()));
    assert_eq!((from("https://shop.example"), from("https://eu.shop.example")), (good(), good()));
    assert_eq!(from("https://evil.example"), refused(403, "origin_not_allowed"));

    let header = |name: &str, value: &str| {
        let request = crate::support::engine::agent().post(format!("{}/ingest", engine.api()));
        outcome(&Answer::from(request.header(name, value).send(&event()[..]).unwrap()))
    };
    assert_eq!(header("x-api-key", "good"), good());
    assert_eq!(header("x-other", "good"), refused(401, "key_missing"));

    let usage = |key: &str| {
        let request = crate::support::engine::agent().get(format!("{}/usage", engine.api()));
        Answer::from(request.header("authorization", format!("Bearer {key}")).call().unwrap())
    };
    assert_eq!(outcome(&usage("good")), refused(403, "scope_missing"));
    assert_eq!(outcome(&usage("wrong")), refused(401, "key_invalid"));
    let seen = usage("reader").json();
    assert_eq!(
        (&seen["tenant_id"], &seen["name"], &seen["retention_seconds"]),
        (&json!(ONE), &json!("one"), &json!(604_800))
    );
    assert_eq!(usage("admin").json()["key"]["scopes"], json!(["ingest", "admin"]));
}

/// A further key of the tenant whose section stands before it.
fn section(key: &str, settings: &str) -> String {
    format!("[[tenants.keys]]\nname = \"{key}\"\nsha256 = \"{}\"\n{settings}\n", crate::support::engine::sha256(key))
}

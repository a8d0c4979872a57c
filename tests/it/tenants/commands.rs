//! `ingestion-engine tenants ...` and `keys ...`, beside an engine that runs.

use std::thread;

use serde_json::{Value, json};

use super::{event, good, outcome, refused, send};
use crate::support::{
    engine::{Setup, eventually},
    process::ToEnd,
};

/// What the command of these words prints on standard output.
fn run(setup: &Setup, words: &str) -> String {
    let output = setup.command(words).to_end();
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// What the command of these words says when it fails.
fn fail(setup: &Setup, words: &str) -> String {
    let output = setup.command(words).to_end();
    assert_eq!(output.status.code(), Some(64), "{words}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn tenants_and_keys_come_and_go_while_the_engine_runs() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    std::fs::write(setup.tenants_file(), "# ours\n").unwrap();
    let engine = setup.start();

    let added = run(&setup, "tenants add acme --tier paid");
    let [id, key] = added.lines().collect::<Vec<_>>()[..] else { panic!("{added}") };
    eventually("the key is taken", || send(&engine, key) == good());
    let text = std::fs::read_to_string(setup.tenants_file()).unwrap();
    assert!(text.starts_with("# ours\n") && !text.contains(key), "{text}");

    let web =
        run(&setup, "keys create acme --name web --origin https://a.example --scope ingest --scope read --expires 90d");
    let from = |origin| outcome(&engine.post(&format!("Bearer {web}"), &[("origin", origin)], &event()));
    eventually("the second key is taken", || from("https://a.example") == good());
    assert_eq!(from("https://b.example"), refused(403, "origin_not_allowed"));

    let listed: Value = serde_json::from_str(&run(&setup, "keys list acme --json")).unwrap();
    assert_eq!((&listed[0]["name"], &listed[1]["name"]), (&json!("default"), &json!("web")));
    assert_eq!(listed[1]["scopes"], json!(["ingest", "read"]));
    let table = run(&setup, &format!("keys list {id}"));
    assert!(table.contains("SHA256") && table.contains("https://a.example") && !table.contains("iek_"), "{table}");

    let rotated = run(&setup, "keys rotate acme default --grace 1h");
    eventually("the new key is taken", || send(&engine, &rotated) == good());
    assert_eq!(send(&engine, key), good(), "the old one has an hour");
    let old = listed[0]["sha256"].as_str().unwrap();
    run(&setup, &format!("keys revoke acme {}", &old[..8]));
    eventually("the old key is revoked", || send(&engine, key) == refused(401, "key_revoked"));
    assert_eq!(send(&engine, &rotated), good());
    let at_once = run(&setup, "keys rotate acme default");
    eventually("the old key has expired", || send(&engine, &rotated) == refused(401, "key_expired"));
    eventually("the newest is taken", || send(&engine, &at_once) == good());

    run(&setup, "tenants disable acme");
    eventually("the tenant is disabled", || send(&engine, &at_once) == refused(403, "tenant_disabled"));
    let tenants: Value = serde_json::from_str(&run(&setup, "tenants list --json")).unwrap();
    let expected =
        json!([{"id": id, "name": "acme", "state": "disabled", "tier": "paid", "retention": "90d", "keys": 2}]);
    assert_eq!(tenants, expected);
    run(&setup, &format!("tenants enable {id}"));
    eventually("the tenant is enabled", || send(&engine, &at_once) == good());
    assert!(run(&setup, "tenants list").contains("acme"));
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let id = "00000000-0000-0000-0000-000000000001";
    run(&setup, &format!("tenants add one --id {id}"));
    run(&setup, "tenants add twin --no-key");
    // What no command does, a hand may.
    let twin = "\n[[tenants]]\nid = \"00000000-0000-0000-0000-000000000002\"\nname = \"twin\"\n";
    let text = std::fs::read_to_string(setup.tenants_file()).unwrap() + twin;
    std::fs::write(setup.tenants_file(), text).unwrap();
    run(&setup, "keys create one --name a");
    run(&setup, "keys create one --name a");
    let before = std::fs::read_to_string(setup.tenants_file()).unwrap();
    for (words, parts) in [
        ("keys create nobody", &["no tenant \"nobody\"", "tenants list"][..]),
        ("keys create twin", &["2 tenants", "give the id"]),
        ("keys revoke one b", &["no key \"b\"", "keys list"]),
        ("keys revoke one a", &["2 keys", "SHA-256"]),
        ("keys rotate one default --grace soon", &["\"soon\"", "\"90d\""]),
        ("keys create one --expires 2020-01-01T00:00:00Z", &["2020-01-01T00:00:00Z", "to come"]),
        (&format!("tenants add other --id {id}"), &["the id of tenants[", "give every tenant its own id"]),
        ("tenants add one", &[id, "has the name \"one\" already"]),
        ("tenants add other --tier gold", &["tier = \"gold\"", "\"enterprise\""]),
        ("tenants add other --tier free --retention 9d", &["the tier \"free\" has its own"]),
    ] {
        let said = fail(&setup, words);
        assert!(parts.iter().all(|part| said.contains(part)), "{words}: {said}");
    }
    let nameless = setup.command("tenants add").arg("").to_end();
    assert_eq!(nameless.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&nameless.stderr).contains("the name is empty"), "{nameless:?}");
    for usage in ["tenants", "keys create", "keys create one --scope write", "keys create one --origin shop.example"] {
        assert_eq!(setup.command(usage).to_end().status.code(), Some(64), "{usage}");
    }
    assert_eq!(std::fs::read_to_string(setup.tenants_file()).unwrap(), before);
}

#[test]
fn several_people_at_a_time_all_get_theirs() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    // Made before the first of them runs: making one writes the configuration that they read.
    let commands: Vec<_> = (0..6).map(|number| setup.command(&format!("tenants add tenant-{number}"))).collect();
    thread::scope(|scope| {
        for mut command in commands {
            scope.spawn(move || assert!(command.to_end().status.success()));
        }
    });
    let tenants: Value = serde_json::from_str(&run(&setup, "tenants list --json")).unwrap();
    // The one that every test engine has, and six more.
    assert_eq!(tenants.as_array().unwrap().len(), 7, "{tenants}");
}

//! `config/default.toml` is complete, and right about itself.

use std::collections::BTreeSet;

use super::super::{
    Config, Origin, REFERENCE, Retention, environment as names, file,
    schema::KEYS,
    tenants::{KEY_KEYS, TENANT_KEYS},
};
use super::{development, environment, load};
use crate::tenants::key::KeySum;

#[test]
fn every_key_of_the_schema_has_a_default_and_no_other_key_stands_in_the_reference() {
    let reference = file::parse(REFERENCE, |_| Origin::Default);
    assert_eq!(reference.errors, []);
    let documented: BTreeSet<_> = reference.settings.keys().copied().collect();
    let schema: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(documented, schema);
    assert_eq!(schema.len(), KEYS.len(), "a key is in the schema twice");
}

#[test]
fn every_key_is_explained_by_a_comment_right_above_it() {
    let lines: Vec<&str> = REFERENCE.lines().collect();
    let keys = lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && line.contains(" = "));
    let mut explained = 0;
    for (index, line) in keys {
        assert!(lines[index - 1].starts_with("# "), "no comment above {line}");
        explained += 1;
    }
    assert_eq!(explained, KEYS.len());
}

#[test]
fn the_keys_of_tenants_are_explained_and_no_others() {
    let example = include_str!("../../../config/tenants.toml");
    let lines: Vec<&str> = example.lines().collect();
    let key_of = |line: &'static str| {
        let (key, _) = line.trim_start_matches("# ").split_once(" = ")?;
        (!key.contains(' ')).then_some(key)
    };
    let mut named = BTreeSet::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(key) = key_of(line) else { continue };
        named.insert(key);
        assert!(lines[index - 1].starts_with("# ") && key_of(lines[index - 1]).is_none(), "no comment above {line}");
    }
    let known = TENANT_KEYS.iter().chain(KEY_KEYS).copied().filter(|key| *key != "keys");
    assert_eq!(named, known.collect());
    // What is commented out would be taken too.
    let uncommented: Vec<_> =
        lines.iter().map(|line| if key_of(line).is_some() { line.trim_start_matches("# ") } else { line }).collect();
    let (config, _) = Config::load(None, &environment(&[])).unwrap();
    let tenants = config.tenant_defaults().parse(&uncommented.join("\n"), "example".as_ref());
    assert_eq!(tenants.unwrap_or_else(|errors| panic!("{errors}"))[0].keys.len(), 1);
}

#[test]
fn the_defaults_are_what_the_reference_promises() {
    let (config, warnings) = Config::load(None, &environment(&[])).unwrap();
    assert_eq!(config.server.host.to_string(), "0.0.0.0");
    assert_eq!(config.server.port, 8080);
    assert_eq!(config.limits.body_bytes, 8 << 20);
    assert_eq!(config.limits.event_bytes, 64 << 10);
    assert_eq!(config.wal.max_disk_bytes, 10_000_000_000);
    assert_eq!(config.events.max_age, None);
    assert_eq!(config.retention.default, Retention::Hours(90 * 24));
    assert_eq!(config.redpanda.brokers, [""; 0]);
    assert_eq!(config.clickhouse.url, None);
    assert_eq!(config.clickhouse_path(), std::path::Path::new("data").join("clickhouse"));
    assert!(config.tenants.tenants.is_empty());
    assert_eq!(config.development_warning(), None);
    let warned: Vec<_> = warnings.iter().map(|warning| warning.name.as_str()).collect();
    assert_eq!(warned, ["tenants"]);
}

#[test]
fn the_reference_itself_is_a_configuration_file() {
    let (config, _) = load(REFERENCE, &[]);
    assert!(config.effective().contains("[clickhouse.embedded]"));
}

#[test]
fn development_binds_to_this_machine_and_warns_of_its_key() {
    let (config, warnings) = Config::load(Some(&development()), &environment(&[])).unwrap();
    assert!(config.server.host.is_loopback());
    assert_eq!(config.server.admin_listen, None);
    let tenant = &config.tenants.tenants[0];
    assert_eq!(tenant.id.to_string(), "00000000-0000-0000-0000-000000000000");
    assert_eq!(tenant.keys[0].sum, KeySum::of("secret"));
    assert!(config.development_warning().unwrap().contains("00000000-0000-0000-0000-000000000000"));
    assert_eq!(warnings, []);
}

#[test]
fn no_two_names_of_the_environment_collide() {
    let all: Vec<String> = names::names().map(|(name, _)| name).collect();
    let distinct: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(distinct.len(), all.len());
    for name in &all {
        assert!(!distinct.contains(&format!("{name}_FILE")), "{name}_FILE means two things");
    }
    let nameless = "two keys, redpanda.properties and plugins.config, have no name";
    assert_eq!(all.len(), KEYS.len() - 2 + names::ALIASES.len(), "{nameless}");
}

#[test]
fn the_names_that_people_already_use_exist() {
    let all: BTreeSet<String> = names::names().map(|(name, _)| name).collect();
    for name in [
        "INGESTION_HOST",
        "INGESTION_PORT",
        "INGESTION_REDPANDA_BROKERS",
        "INGESTION_REDPANDA_BATCH_SIZE",
        "INGESTION_CLICKHOUSE_URL",
        "INGESTION_CLICKHOUSE_DATABASE",
        "INGESTION_CLICKHOUSE_EMBEDDED_PORT",
        "INGESTION_DATA_DIR",
    ] {
        assert!(all.contains(name), "{name}");
    }
}

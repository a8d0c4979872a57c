use std::path::Path;

use super::super::{Config, Retention, Tenant, TenantDefaults, Tier};
use super::{environment, errors, load};
use crate::tenants::key::{KeySum, Scope};

const ID: &str = "id = \"00000000-0000-0000-0000-000000000001\"\n";
const TENANT: &str = "[[tenants]]\nid = \"00000000-0000-0000-0000-000000000001\"\n";

fn defaults() -> TenantDefaults {
    Config::load(None, &environment(&[])).unwrap().0.tenant_defaults()
}

fn parse(text: &str) -> Vec<Tenant> {
    defaults().parse(text, Path::new("FILE")).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors as printed, each on a line.
fn wrong(defaults: &TenantDefaults, text: &str) -> Vec<String> {
    match defaults.parse(text, Path::new("FILE")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_tenant_takes_from_the_defaults_what_it_does_not_say() {
    let (config, _) = load("[quota]\nevents_per_second = 7\n[retention]\ndefault = \"30d\"", &[]);
    let (one, two) = (KeySum::of("secret"), KeySum::of("other"));
    let text = format!(
        "[[tenants]]\n{ID}bytes_per_second = 0\n[[tenants.keys]]\nsha256 = \"{one}\"\n[[tenants]]\n\
         id = \"00000000-0000-0000-0000-000000000002\"\nname = \"two\"\ndisabled = true\nretention = \"keep\"\n\
         [[tenants.keys]]\nname = \"web\"\nsha256 = \"{two}\"\nscopes = [\"read\", \"ingest\"]\n\
         origins = [\"https://Shop.example\"]\nexpires = 2030-01-01T00:00:00Z\nrevoked = \"2029-01-01T00:00:00+01:00\"\n"
    );
    let tenants = config.tenant_defaults().parse(&text, Path::new("FILE")).unwrap();
    let [one, two] = &tenants[..] else { panic!("{tenants:?}") };
    assert_eq!((one.quota.events_per_second, one.quota.bytes_per_second, one.quota.bytes_burst), (7, 0, 200 << 20));
    assert_eq!((one.retention, two.retention), (Retention::Hours(30 * 24), Retention::Keep));
    assert_eq!((one.name.as_str(), two.name.as_str(), one.disabled, two.disabled), ("", "two", false, true));
    let (plain, web) = (&one.keys[0], &two.keys[0]);
    assert_eq!((plain.sum, plain.scopes.iter().collect::<Vec<_>>()), (KeySum::of("secret"), vec![Scope::Ingest]));
    assert_eq!((&*web.name, web.scopes.iter().collect::<Vec<_>>()), ("web", vec![Scope::Ingest, Scope::Read]));
    assert_eq!(web.origins[0].as_str(), "https://shop.example");
    assert_eq!(web.expires, Some("2030-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(web.revoked, Some("2028-12-31T23:00:00Z".parse().unwrap()));
}

#[test]
fn a_tier_says_how_long_events_are_kept() {
    for (written, tier, retention) in [
        ("tier = \"free\"", Some(Tier::Free), Retention::Hours(24)),
        ("tier = \"paid\"", Some(Tier::Paid), Retention::Hours(90 * 24)),
        ("tier = \"enterprise\"\nretention = \"400d\"", Some(Tier::Enterprise), Retention::Hours(400 * 24)),
        ("tier = \"enterprise\"", Some(Tier::Enterprise), Retention::Keep),
        ("retention = \"7d\"", None, Retention::Hours(7 * 24)),
        ("", None, Retention::Hours(90 * 24)),
    ] {
        let tenant = parse(&format!("{TENANT}{written}")).remove(0);
        assert_eq!((tenant.tier, tenant.retention), (tier, retention), "{written}");
    }
}

#[test]
fn wrong_tenants_are_told_apart() {
    let sum = KeySum::of("k");
    let key = format!("[[tenants.keys]]\nsha256 = \"{sum}\"\n");
    for (text, expected) in [
        (
            "[[tenants]]\nname = \"a\"".to_owned(),
            &["tenants[0].id (FILE line 1): missing; give a UUID, or let `ingestion-engine tenants add` make one"][..],
        ),
        (
            "[[tenants]]\nid = \"7\"".to_owned(),
            &[
                "tenants[0].id = \"7\" (FILE line 2): not a UUID; give one, such as \"550e8400-e29b-41d4-a716-446655440000\"",
            ],
        ),
        (
            format!("{TENANT}{TENANT}"),
            &[
                "tenants[1].id = \"00000000-0000-0000-0000-000000000001\" (FILE line 4): the id of tenants[0] too; give \
               every tenant its own id",
            ],
        ),
        (
            format!("{TENANT}{key}[[tenants]]\nid = \"00000000-0000-0000-0000-000000000002\"\n{key}"),
            &[
                "tenants[1].keys[0].sha256 (FILE line 8): the key of tenants[0].keys[0] too, so that it says of nobody whose \
               it is; give every tenant keys of its own",
            ],
        ),
        (
            format!("{TENANT}[[tenants.keys]]\nname = \"x\"\n[[tenants.keys]]\nsha256 = \"2bb8\""),
            &[
                "tenants[0].keys[0].sha256 (FILE line 3): missing; give one, or let `ingestion-engine keys create` make a key",
                "tenants[0].keys[1].sha256 (FILE line 6): not a SHA-256; give the 64 hexadecimal digits of the key's \
                 SHA-256 (printf %s KEY | sha256sum)",
            ],
        ),
        (
            format!("{TENANT}{key}scopes = [\"write\"]\norigins = [\"shop.example\"]\nexpires = 2030-01-01"),
            &[
                "tenants[0].keys[0].scopes (FILE line 5): \"write\" is no scope; give \"ingest\", \"read\" or \"admin\"",
                "tenants[0].keys[0].origins (FILE line 6): \"shop.example\" is no origin; give scheme and host, as browsers \
                 send them: \"https://shop.example\", \"http://localhost:3000\", or \"https://*.shop.example\" for every \
                 host below",
                "tenants[0].keys[0].expires = 2030-01-01 (FILE line 7): not a moment; give one with its offset, such as \
                 2027-01-31T00:00:00Z",
            ],
        ),
        (
            format!("{TENANT}{key}scopes = []"),
            &[
                "tenants[0].keys[0].scopes (FILE line 5): no scope; give \"ingest\", \"read\", \"admin\" or several of them",
            ],
        ),
        (
            format!("{TENANT}evnts_burst = 1\nfoo = 1\n[[tenants.keys]]\nkey = \"iek_geheim\"\nsha256 = \"{sum}\""),
            &[
                "tenants[0].evnts_burst (FILE line 3): unknown key; did you mean events_burst?",
                "tenants[0].foo (FILE line 4): unknown key; remove it; a tenant has id, name, disabled, tier, retention, \
                 events_per_second, events_burst, bytes_per_second, bytes_burst, events_per_month, monthly_hard_stop, \
                 monthly_warn_ratio, keys",
                "tenants[0].keys[0].key (FILE line 6): unknown key; remove it; a key has name, sha256, scopes, origins, \
                 expires, revoked",
            ],
        ),
        (
            format!("{TENANT}[[tenants.keys]]\nsha256 = \"iek_geheim\""),
            &[
                "tenants[0].keys[0].sha256 (FILE line 4): the key itself, which must stand in no file; give the 64 hexadecimal \
               digits of the key's SHA-256 (printf %s KEY | sha256sum)",
            ],
        ),
        (
            format!("{TENANT}events_burst = 9999\nbytes_burst = \"8MB\""),
            &[
                "tenants[0].events_burst = 9999 (FILE line 3): below limits.events_per_request (10000), so that such a \
                 request could never pass; give at least 10000",
                "tenants[0].bytes_burst = \"8MB\" (FILE line 4): below limits.body_bytes (8MiB), so that such a request could \
                 never pass; give at least 8MiB",
            ],
        ),
        (
            format!("{TENANT}tier = \"gold\"\nretention = \"8d1h\""),
            &[
                "tenants[0].tier = \"gold\" (FILE line 3): unknown choice; give \"free\", \"paid\" or \"enterprise\"",
                "tenants[0].retention = \"8d1h\" (FILE line 4): unknown unit \"d1h\"; give hours up to 7 days (\"24h\"), else \
                 whole days (\"90d\") up to \"25000d\", or \"keep\" to store for ever",
            ],
        ),
        (
            format!("{TENANT}tier = \"free\"\nretention = \"90d\""),
            &[
                "tenants[0].retention = \"90d\" (FILE line 4): the tier \"free\" has its own; remove it, or give tier = \
               \"enterprise\"",
            ],
        ),
        (
            "tenants = \"all\"".to_owned(),
            &["tenants (FILE line 1): not a list of tables; write one section [[tenants]] for each"],
        ),
        (
            "tenants = [1]".to_owned(),
            &["tenants[0] (FILE line 1): not a table; write one section [[tenants]] for each"],
        ),
        ("[[tenant]]\nid = \"x\"".to_owned(), &["tenant (FILE line 1): unknown key; did you mean tenants?"]),
        ("[[tenants]]\nid = ".to_owned(), &["syntax (FILE line 2): string values must be quoted; correct the TOML"]),
    ] {
        let found = wrong(&defaults(), &text);
        if let [one] = &found[..]
            && one.starts_with("syntax")
        {
            assert!(one.contains("FILE line 2") && !one.contains('\n'), "{one}");
            continue;
        }
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn a_tenant_without_a_rate_needs_no_burst_and_one_with_its_own_needs_one() {
    assert_eq!(parse(&format!("{TENANT}events_per_second = 0\nevents_burst = 0"))[0].quota.events_per_second, 0);
    let (config, _) = load("[quota]\nevents_per_second = 0\nevents_burst = 5", &[]);
    let found = wrong(&config.tenant_defaults(), &format!("{TENANT}events_per_second = 10"));
    let expected = "tenants[0].events_burst (FILE line 1): below limits.events_per_request (10000), so that such a request \
                    could never pass; give at least 10000";
    assert_eq!(found, [expected]);
}

#[test]
fn tenants_in_the_configuration_are_told_where_they_belong() {
    assert_eq!(
        errors("[[tenants]]\nid = \"x\"", &[]),
        ["tenants (FILE line 1): tenants have a file of their own; put them into the file of auth.tenants_file \
          (config/tenants.toml shows how), or let `ingestion-engine tenants add` do it"]
    );
}

#[test]
fn what_is_wrong_with_the_tenants_file_is_said_with_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenants.toml");
    std::fs::write(&path, "[[tenants]]\nid = 1").unwrap();
    let text = format!("[auth]\ntenants_file = {:?}\n[server]\nport = \"x\"", path.display().to_string());
    let found = errors(&text, &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("server.port") && found[1].starts_with("tenants[0].id = 1"), "{found:?}");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let found = errors(&text.replace("\"x\"", "1"), &[]);
    assert!(found[0].starts_with("auth.tenants_file") && found[0].contains("cannot be read"), "{found:?}");
}

#[test]
fn no_form_of_a_configuration_shows_a_secret() {
    let text = "[redpanda]\nbrokers = [\"a:1\"]\nproperties = { \"security.protocol\" = \"sasl_ssl\", \"sasl.password\" = \
                \"geheim\" }\n[clickhouse]\npassword = \"geheim\"";
    let (config, _) = load(text, &[]);
    let effective = config.effective();
    for part in [r#""security.protocol" = "sasl_ssl""#, r#""sasl.password" = "<hidden>""#] {
        assert!(effective.contains(part), "{part} is missing in\n{effective}");
    }
    assert!(!effective.contains("geheim"), "{effective}");
    assert!(!format!("{config:?}").contains("geheim"));
    assert_eq!(config.redpanda.properties["sasl.password"].expose(), "geheim");
    let printed = format!("{} {:?}", config.clickhouse.password, config.clickhouse.password);
    assert_eq!(printed, "<hidden> <hidden>");
}

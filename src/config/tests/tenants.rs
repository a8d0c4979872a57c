use sha2::{Digest, Sha256};

use super::super::Retention;
use super::{errors, load};

const ID: &str = "id = \"00000000-0000-0000-0000-000000000001\"\n";
const KEYED: &str = "[[tenants]]\nid = \"00000000-0000-0000-0000-000000000001\"\napi_keys = [\"k\"]\n";

#[test]
fn a_tenant_takes_from_the_defaults_what_it_does_not_say() {
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let text = format!(
        "[quota]\nevents_per_second = 7\n[retention]\ndefault = \"24h\"\n[[tenants]]\n{ID}api_key_sha256 = [\"{hash}\"]\n\
         bytes_per_second = 0\n[[tenants]]\nid = \"00000000-0000-0000-0000-000000000002\"\napi_keys = [\"secret\", \"other\"]\n\
         retention = \"keep\"\nname = \"two\""
    );
    let (config, warnings) = load(&text, &[]);
    assert_eq!(warnings, []);
    let [one, two] = &config.tenants[..] else { panic!("{:?}", config.tenants) };
    assert_eq!((one.quota.events_per_second, one.quota.bytes_per_second, one.quota.bytes_burst), (7, 0, 200 << 20));
    assert_eq!((one.retention, two.retention), (Retention::Hours(24), Retention::Keep));
    // The hash is that of "secret".
    assert_eq!(one.key_hashes().collect::<Vec<_>>(), two.key_hashes().take(1).collect::<Vec<_>>());
    assert_eq!(two.key_hashes().nth(1).unwrap(), <[u8; 32]>::from(Sha256::digest("other")));
    assert_eq!((one.name.as_str(), two.name.as_str()), ("", "two"));
}

#[test]
fn wrong_tenants_are_told_apart() {
    for (text, expected) in [
        ("[[tenants]]\napi_keys = [\"k\"]".to_owned(), &["tenants[0].id (FILE line 1): missing; give a UUID"][..]),
        (
            "[[tenants]]\nid = \"7\"\napi_keys = [\"k\"]".to_owned(),
            &[
                "tenants[0].id = \"7\" (FILE line 2): not a UUID; give one, such as \"550e8400-e29b-41d4-a716-446655440000\"",
            ],
        ),
        (
            format!("{KEYED}{KEYED}"),
            &[
                "tenants[1].id = \"00000000-0000-0000-0000-000000000001\" (FILE line 5): the id of tenants[0] too; give every \
               tenant its own id",
            ],
        ),
        (
            format!("[[tenants]]\n{ID}"),
            &["tenants[0].api_key_sha256 (FILE line 1): the tenant has no key; give api_key_sha256, or api_keys"],
        ),
        (
            format!("[[tenants]]\n{ID}api_key_sha256 = [\"2bb8\"]"),
            &["tenants[0].api_key_sha256 = [\"<hidden>\"] (FILE line 3): a hash that is not SHA-256; give the 64 \
               hexadecimal digits of the key's SHA-256 (printf %s KEY | sha256sum)"],
        ),
        (
            format!("[[tenants]]\n{ID}api_keys = [\"a b\"]"),
            &[
                "tenants[0].api_keys = [\"<hidden>\"] (FILE line 3): a key that no header can carry; give 1 to 256 visible \
               ASCII characters",
            ],
        ),
        (
            format!("{KEYED}api_kyes = [\"x\"]\nfoo = 1"),
            &[
                "tenants[0].api_kyes (FILE line 4): unknown key; did you mean api_keys?",
                "tenants[0].foo (FILE line 5): unknown key; remove it; a tenant has id, name, api_keys, api_key_sha256, \
                 events_per_second, events_burst, bytes_per_second, bytes_burst, events_per_month, monthly_hard_stop, \
                 monthly_warn_ratio, retention",
            ],
        ),
        (
            format!("{KEYED}events_burst = 9999\nbytes_burst = \"8MB\""),
            &[
                "tenants[0].events_burst = 9999 (FILE line 4): below limits.events_per_request (10000), so that such a \
                 request could never pass; give at least 10000",
                "tenants[0].bytes_burst = \"8MB\" (FILE line 5): below limits.body_bytes (8MiB), so that such a request could \
                 never pass; give at least 8MiB",
            ],
        ),
        (
            format!("[quota]\nevents_per_second = 0\nevents_burst = 5\n{KEYED}events_per_second = 10"),
            &[
                "tenants[0].events_burst (FILE line 4): below limits.events_per_request (10000), so that such a request could \
               never pass; give at least 10000",
            ],
        ),
        (
            format!("{KEYED}retention = \"8d1h\""),
            &[
                "tenants[0].retention = \"8d1h\" (FILE line 4): unknown unit \"d1h\"; give hours up to 7 days (\"24h\"), else \
               whole days (\"90d\") up to \"25000d\", or \"keep\" to store for ever",
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
    ] {
        assert_eq!(errors(&text, &[]), expected, "{text}");
    }
}

#[test]
fn an_unlimited_tenant_needs_no_burst() {
    let (config, _) = load(&format!("{KEYED}events_per_second = 0\nevents_burst = 0"), &[]);
    assert_eq!(config.tenants[0].quota.events_per_second, 0);
}

#[test]
fn no_form_of_a_configuration_shows_a_secret() {
    let text = format!(
        "[redpanda]\nbrokers = [\"a:1\"]\nproperties = {{ \"security.protocol\" = \"sasl_ssl\", \"sasl.password\" = \"geheim\" }}\n\
         [clickhouse]\npassword = \"geheim\"\n[[tenants]]\n{ID}api_keys = [\"geheim\"]"
    );
    let (config, _) = load(&text, &[]);
    let effective = config.effective();
    for part in [r#""security.protocol" = "sasl_ssl""#, r#""sasl.password" = "<hidden>""#, r#"api_keys = ["<hidden>"]"#]
    {
        assert!(effective.contains(part), "{part} is missing in\n{effective}");
    }
    assert!(!effective.contains("geheim"), "{effective}");
    assert!(!format!("{config:?}").contains("geheim"));
    assert_eq!(config.redpanda.properties["sasl.password"].expose(), "geheim");
    let printed = format!("{} {:?}", config.clickhouse.password, config.clickhouse.password);
    assert_eq!(printed, "<hidden> <hidden>");
}

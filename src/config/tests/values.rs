//! Single values, right and wrong, and what is said about the wrong ones.

use std::{path::Path, time::Duration};

use super::super::{ByteSize, Config, Retention, Span};
use super::{environment, errors, load};

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1kB", 1000),
        ("1KB", 1000),
        ("8MB", 8_000_000),
        ("10 GB", 10_000_000_000),
        ("1TB", 1_000_000_000_000),
        ("64KiB", 65_536),
        ("512MiB", 536_870_912),
        ("1GiB", 1 << 30),
        ("1TiB", 1 << 40),
    ] {
        assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
    }
    for wrong in ["", "MB", "-1", "1.5MB", "1mb", "8 M", "99999999999999999999", "99999999TiB"] {
        assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
    }
    for shown in ["8MiB", "10GB", "64KiB", "1500kB", "17B", "0B"] {
        assert_eq!(shown.parse::<ByteSize>().unwrap().to_string(), shown);
    }
}

#[test]
fn spans() {
    for (text, milliseconds) in
        [("0s", 0), ("500ms", 500), ("30s", 30_000), ("15m", 900_000), ("24h", 86_400_000), ("14d", 1_209_600_000)]
    {
        assert_eq!(text.parse::<Span>().unwrap().duration(), Duration::from_millis(milliseconds), "{text}");
    }
    for wrong in ["", "5", "s", "-1s", "1.5h", "1h30m", "1w", "36501d", "99999999999999999999d"] {
        assert!(wrong.parse::<Span>().is_err(), "{wrong}");
    }
    for shown in ["500ms", "30s", "15m", "25h", "14d", "0ms"] {
        assert_eq!(shown.parse::<Span>().unwrap().to_string(), shown);
    }
}

#[test]
fn retentions() {
    for (text, retention) in [
        ("keep", Retention::Keep),
        ("1h", Retention::Hours(1)),
        ("24h", Retention::Hours(24)),
        ("60m", Retention::Hours(1)),
        ("167h", Retention::Hours(167)),
        ("7d", Retention::Hours(168)),
        ("192h", Retention::Hours(192)),
        ("400d", Retention::Hours(9600)),
        ("25000d", Retention::Hours(600_000)),
    ] {
        assert_eq!(text.parse::<Retention>().unwrap(), retention, "{text}");
    }
    for (wrong, what) in [
        ("", "not a span of time"),
        ("90", "no unit"),
        ("0h", "not a whole number of hours"),
        ("90m", "not a whole number of hours"),
        ("169h", "longer than 7 days and not a whole number of days"),
        ("25001d", "longer than 25000 days"),
        ("forever", "not a span of time"),
    ] {
        assert_eq!(wrong.parse::<Retention>().unwrap_err().what, what, "{wrong}");
    }
}

#[test]
fn wrong_values_say_what_and_how() {
    for (text, expected) in [
        ("roles = \"api\"", "roles = \"api\" (FILE line 1): not a list of strings; give one, such as [\"a\", \"b\"]"),
        ("roles = [\"web\"]", "roles = [\"web\"] (FILE line 1): unknown role \"web\"; give \"api\" or \"sink\""),
        ("data_dir = \"\"", "data_dir = \"\" (FILE line 1): empty; give a path"),
        (
            "[server]\nhost = \"example.com\"",
            "server.host = \"example.com\" (FILE line 2): not an IP address; give one, such as \"0.0.0.0\", \"127.0.0.1\" or \
             \"::\"",
        ),
        (
            "[server]\nport = 65536",
            "server.port = 65536 (FILE line 2): out of range; give a whole number from 0 to 65535",
        ),
        (
            "[server]\nadmin_listen = \"8081\"",
            "server.admin_listen = \"8081\" (FILE line 2): not an address with a port; give one, such as \
             \"127.0.0.1:8081\", or \"\" for the port of the API",
        ),
        (
            "[server]\nheader_timeout = 10",
            "server.header_timeout = 10 (FILE line 2): no unit; give a number with a unit: \"500ms\", \"30s\", \"15m\", \
             \"24h\" or \"14d\"",
        ),
        (
            "[limits]\nbody_bytes = \"8XB\"",
            "limits.body_bytes = \"8XB\" (FILE line 2): unknown unit \"XB\"; give a number of bytes, or a string such as \
             \"8MiB\" (2^20) or \"10GB\" (10^9)",
        ),
        (
            "[limits]\nbody_bytes = -1",
            "limits.body_bytes = -1 (FILE line 2): out of range; give a number of bytes that is not negative",
        ),
        (
            "[events]\nmax_age = \"long\"",
            "events.max_age = \"long\" (FILE line 2): not a span of time; give a number with a unit: \"500ms\", \"30s\", \
             \"15m\", \"24h\" or \"14d\", or \"unlimited\"",
        ),
        (
            "[wal]\nwarn_disk_ratio = 80",
            "wal.warn_disk_ratio = 80 (FILE line 2): not a share; give a number above 0 and up to 1, such as 0.8",
        ),
        (
            "[wal]\nmin_free_bytes = \"1MB\"",
            "wal.min_free_bytes = \"1MB\" (FILE line 2): out of range; give at least 64MB",
        ),
        (
            "[wal]\nsegment_bytes = \"6MiB\"",
            "wal.segment_bytes = \"6MiB\" (FILE line 2): not a segment size; give \"8MiB\" or \"16MiB\"",
        ),
        (
            "[wal]\ndurability = \"none\"",
            "wal.durability = \"none\" (FILE line 2): unknown choice; give \"fsync\" or \"os\"",
        ),
        (
            "[redpanda]\ncompression = \"brotli\"",
            "redpanda.compression = \"brotli\" (FILE line 2): unknown choice; give \"lz4\", \"zstd\", \"snappy\", \"gzip\" or \
             \"none\"",
        ),
        (
            "[redpanda]\nbrokers = [\"kafka://a:9092\"]",
            "redpanda.brokers = [\"kafka://a:9092\"] (FILE line 2): \"kafka://a:9092\" is not a broker's address; give \
             host:port without a scheme, such as \"redpanda-0:9092\"",
        ),
        (
            "[redpanda]\ntopic = \"a b\"",
            "redpanda.topic = \"a b\" (FILE line 2): not a name that Kafka takes; give 1 to 249 letters, digits, dots, \
             underscores or hyphens",
        ),
        (
            "[redpanda]\nproperties = { acks = \"1\", \"fetch.min.byte\" = \"1\", \"socket.timeout.ms\" = \"x\" }",
            "redpanda.properties = { \"acks\" = \"1\", \"fetch.min.byte\" = \"1\", \"socket.timeout.ms\" = \"x\" } (FILE line \
             2): \"acks\": not yours to set, an event leaves the log only when all in-sync replicas have it: always \"all\"; \
             \"fetch.min.byte\": librdkafka knows no such property; \"socket.timeout.ms\": librdkafka refuses its value; \
             remove or correct them",
        ),
        (
            "[clickhouse]\nurl = \"http://me:geheim@c:8123\"",
            "clickhouse.url = \"<hidden>\" (FILE line 2): a user or password in the URL; give clickhouse.user and \
             clickhouse.password",
        ),
        (
            "[clickhouse]\nurl = \"https://c:99999\"",
            "clickhouse.url = \"https://c:99999\" (FILE line 2): not the URL of a server; give one, such as \
             \"http://clickhouse:8123\" or \"https://clickhouse:8443\"",
        ),
        (
            "[clickhouse]\npassword = 7",
            "clickhouse.password = \"<hidden>\" (FILE line 2): not a string; give a string in quotes",
        ),
        (
            "[clickhouse]\ndatabase = \"my-db\"",
            "clickhouse.database = \"my-db\" (FILE line 2): not an identifier; give up to 64 letters, digits and underscores \
             that do not begin with a digit",
        ),
        ("[sink]\nmax_age = \"0s\"", "sink.max_age = \"0s\" (FILE line 2): too short; give at least \"1ms\""),
        (
            "[log]\nlevel = \"inof\"",
            "log.level = \"inof\" (FILE line 2): no level \"inof\", did you mean \"info\"; give a level (error, warn, info, \
             debug, trace) or parts such as \"info,ingestion_engine::relay=debug\"",
        ),
        (
            "[retention]\ndefault = \"169h\"",
            "retention.default = \"169h\" (FILE line 2): longer than 7 days and not a whole number of days; give hours up to \
             7 days (\"24h\"), else whole days (\"90d\") up to \"25000d\", or \"keep\" to store for ever",
        ),
    ] {
        assert_eq!(errors(text, &[]), [expected], "{text}");
    }
}

#[test]
fn unknown_keys_are_errors_that_name_the_nearest() {
    let text = "prot = 1\nport = 1\n[server]\nprot = 1\n[sever]\nport = 1\n[clickhouse]\npasword = \"geheim\"\nembedded = 1\n\
                [zebra]\n";
    assert_eq!(
        errors(text, &[]),
        [
            "clickhouse.embedded (FILE line 9): not a table; write a section [clickhouse.embedded]",
            "clickhouse.pasword (FILE line 8): unknown key; did you mean clickhouse.password?",
            "port (FILE line 2): unknown key; did you mean server.port?",
            "prot (FILE line 1): unknown key; did you mean server.port?",
            "server.prot (FILE line 4): unknown key; did you mean server.port?",
            "sever (FILE line 5): unknown key; did you mean server?",
            "zebra (FILE line 10): unknown key; remove it, or see config/default.toml for the keys there are",
        ]
    );
}

#[test]
fn every_wrong_key_is_reported_at_once() {
    let text = "rolls = []\n[server]\nport = \"x\"\nhost = 1\n[sink]\nmax_rows = 0\n[[tenants]]\nid = \"\"\n";
    let all = errors(text, &[("INGESTION_DATA_DIR", ""), ("INGESTION_LOG_FORMAT", "xml")]);
    let keys: Vec<_> = all.iter().map(|error| error.split([' ', ':']).next().unwrap()).collect();
    let expected = ["rolls", "tenants", "data_dir", "server.host", "server.port", "sink.max_rows", "log.format"];
    assert_eq!(keys, expected);
}

#[test]
fn a_syntax_error_names_its_line_and_never_quotes_it() {
    let all = errors("[clickhouse]\npassword = geheim\n", &[("INGESTION_PORT", "x")]);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("syntax (FILE line 2): "), "{all:?}");
    assert!(!all.concat().contains("geheim"), "{all:?}");
    assert!(all[1].starts_with("server.port = \"x\" (environment INGESTION_PORT)"), "{all:?}");
}

#[test]
fn a_file_that_is_missing_is_an_error_beside_the_others() {
    let result = Config::load(Some(Path::new("no/such/file.toml")), &environment(&[("INGESTION_PORT", "x")]));
    assert_eq!(
        result.unwrap_err().to_string(),
        "2 configuration errors:\n  --config = no/such/file.toml: cannot be read, No such file or directory (os error 2); \
         give a readable TOML file\n  server.port = \"x\" (environment INGESTION_PORT): not a whole number; give a whole \
         number from 0 to 65535"
    );
}

#[test]
fn the_effective_configuration_is_toml_that_gives_the_same_configuration() {
    let text =
        "[redpanda]\nbrokers = [\"a:9092\"]\nproperties = { \"client.id\" = \"x\" }\n[wal]\nwarn_disk_ratio = 1\n";
    let (config, _) = load(text, &[("INGESTION_PORT", "9000"), ("INGESTION_DATA_DIR", "a \"quoted\" path")]);
    let effective = config.effective();
    for line in [
        "port = 9000 # environment INGESTION_PORT\n",
        "data_dir = 'a \"quoted\" path' # environment INGESTION_DATA_DIR\n",
        "max_rows = 100000\n",
        " line 2\n",
    ] {
        assert!(effective.contains(line), "{line} is missing in\n{effective}");
    }
    let (again, _) = load(effective, &[]);
    assert_eq!(again.server.port, 9000);
    assert_eq!(again.process.data_dir, config.process.data_dir);
    assert_eq!(again.redpanda.brokers, config.redpanda.brokers);
    assert_eq!(again.redpanda.properties, config.redpanda.properties);
}

#[test]
fn every_property_that_the_broker_protects_is_refused() {
    for property in crate::broker::PROTECTED_PROPERTIES {
        let text = format!("[redpanda.properties]\n\"{property}\" = \"1\"");
        let wrong = errors(&text, &[]).join("\n");
        assert!(wrong.contains("not yours to set"), "{property}: {wrong}");
    }
}

#[test]
fn plugins_have_tables_of_their_own_and_their_secrets_are_not_shown() {
    let (config, _) = load(
        "[plugins]\nallow = [\"2BB80D537B1DA3E38BD30361AA855686BDE0EACD7162FEF6A25FE97BF527A25B\"]\nisolated = [\"shop\"]\n\
         [plugins.config.shop]\nlimit = 5\nhash_key = \"much too secret\"\n[plugins.config.shop.deep]\non = true\n",
        &[],
    );
    assert_eq!(
        config.plugins.config["shop"],
        serde_json::json!({ "limit": 5, "hash_key": "much too secret", "deep": { "on": true } })
    );
    assert!(config.plugins.allow.contains("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"));
    assert!(
        config.effective().contains(r#"{ "on" = true }, "hash_key" = "<hidden>", "limit" = 5 }"#),
        "{}",
        config.effective()
    );
    assert!(!config.effective().contains("much too secret"), "{}", config.effective());
    for (wrong, words) in [
        ("[plugins]\nallow = [\"abc\"]", "\"abc\" is not a SHA-256 sum"),
        ("[plugins]\nisolated = [\"Shop\"]", "\"Shop\" is not the name of a plugin"),
        ("[plugins]\nisolation = \"thread\"", "\"none\" or \"process\""),
        ("[plugins.config]\nshop = 7", "\"shop\" is not a table"),
        ("[plugins.config.\"no name\"]\na = 1", "\"no name\" is not the name of a plugin"),
    ] {
        let errors = errors(wrong, &[]);
        assert!(errors.len() == 1 && errors[0].contains(words), "{wrong}: {errors:?}");
    }
}

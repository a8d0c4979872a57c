use super::{errors, file, load};

fn warnings(entries: &[(&str, &str)]) -> Vec<String> {
    // Without tenants there would be a warning of that.
    let tenants: std::path::PathBuf = [env!("CARGO_MANIFEST_DIR"), "config", "tenants.toml"].iter().collect();
    let (_, warnings) = load(&format!("[auth]\ntenants_file = {:?}", tenants.display().to_string()), entries);
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
    let text = "[server]\nport = 1000\n[sink]\nmax_rows = 2000";
    let (config, _) = load(text, &[("INGESTION_SERVER_PORT", "3000")]);
    assert_eq!((config.server.port, config.sink.max_rows, config.sink.inserts_in_flight), (3000, 2000, 2));
}

#[test]
fn values_of_every_shape_can_be_given() {
    let (config, _) = load(
        "",
        &[
            ("INGESTION_HOST", "127.0.0.1"),
            ("INGESTION_PORT", "0"),
            ("INGESTION_ROLES", "api, sink"),
            ("INGESTION_DATA_DIR", "/var/lib/engine"),
            ("INGESTION_LIMITS_EVENT_BYTES", "32768"),
            ("INGESTION_WAL_WARN_DISK_RATIO", "0.5"),
            ("INGESTION_REDPANDA_BROKERS", "a:9092, b:9093,"),
            ("INGESTION_REDPANDA_CREATE_TOPIC", "false"),
            ("INGESTION_CLICKHOUSE_EMBEDDED_PORT", "9123"),
            ("INGESTION_SERVER_ADMIN_LISTEN", ""),
            ("PATH", "/bin"),
        ],
    );
    assert!(config.server.host.is_loopback());
    assert_eq!((config.server.port, config.server.admin_listen), (0, None));
    assert_eq!(config.process.data_dir.to_str(), Some("/var/lib/engine"));
    assert_eq!(config.limits.event_bytes, 32768);
    assert!((config.wal.warn_disk_ratio - 0.5).abs() < f64::EPSILON);
    assert_eq!(config.redpanda.brokers, ["a:9092", "b:9093"]);
    assert!(!config.redpanda.create_topic);
    assert_eq!(config.clickhouse.embedded.port, 9123);
    assert_eq!(config.clickhouse_path().to_str(), Some("/var/lib/engine/clickhouse"));
}

#[test]
fn rust_log_stands_for_the_level_unless_the_level_is_given() {
    let level = |entries| load("[log]\nlevel = \"error\"", entries).0.log.level;
    assert_eq!(level(&[("RUST_LOG", "debug")]), "debug");
    assert_eq!(level(&[("RUST_LOG", "debug"), ("INGESTION_LOG_LEVEL", "warn")]), "warn");
    assert_eq!(level(&[("RUST_LOG", "")]), "error");
}

#[test]
fn a_file_can_hold_the_value() {
    for (content, password) in [("pass word\n", "pass word"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" b ", " b ")] {
        let secret = file(content);
        let path = secret.path().to_str().unwrap();
        let (config, _) = load("", &[("INGESTION_CLICKHOUSE_PASSWORD_FILE", path)]);
        assert_eq!(config.clickhouse.password.expose(), password);
        assert!(
            config.effective().contains("password = \"<hidden>\" # environment INGESTION_CLICKHOUSE_PASSWORD_FILE")
        );
    }
}

#[test]
fn a_key_whose_own_name_ends_in_file_is_no_indirection() {
    let (config, _) = load(
        "",
        &[("INGESTION_CLICKHOUSE_CA_FILE", "/ca.pem"), ("INGESTION_CLICKHOUSE_URL", "https://clickhouse:8443")],
    );
    assert_eq!(config.clickhouse.ca_file.unwrap().to_str(), Some("/ca.pem"));
}

#[test]
fn a_value_given_twice_is_an_error() {
    let secret = file("geheim");
    let path = secret.path().to_str().unwrap();
    let given = [("INGESTION_CLICKHOUSE_PASSWORD", "geheim"), ("INGESTION_CLICKHOUSE_PASSWORD_FILE", path)];
    assert_eq!(
        errors("", &given),
        ["clickhouse.password (environment INGESTION_CLICKHOUSE_PASSWORD_FILE): \
          also given by environment INGESTION_CLICKHOUSE_PASSWORD; give one of the two"]
    );
    assert_eq!(
        errors("", &[("INGESTION_PORT", "1"), ("INGESTION_SERVER_PORT", "2")]),
        [
            "server.port (environment INGESTION_SERVER_PORT): also given by environment INGESTION_PORT; give one of the two"
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    assert_eq!(
        errors("", &[("INGESTION_CLICKHOUSE_PASSWORD_FILE", missing.to_str().unwrap())]),
        [format!(
            "clickhouse.password = \"{}\" (environment INGESTION_CLICKHOUSE_PASSWORD_FILE): the file cannot be read, No \
             such file or directory (os error 2); give the path of a readable file that holds the value",
            missing.display()
        )]
    );
}

#[test]
fn unknown_names_warn_with_the_nearest_known_one() {
    for (name, message) in [
        ("INGESTION_CLICKHOUSE_PASWORD", "ignored: no such setting, did you mean INGESTION_CLICKHOUSE_PASSWORD?"),
        ("INGESTION_REDPANDA_BROKER", "ignored: no such setting, did you mean INGESTION_REDPANDA_BROKERS?"),
        (
            "INGESTION_CLICKHOUSE_PASWORD_FILE",
            "ignored: no such setting, did you mean INGESTION_CLICKHOUSE_PASSWORD_FILE?",
        ),
        ("INGESTION_PROT", "ignored: no such setting, did you mean INGESTION_PORT?"),
        ("INGESTION_SOMETHING_ENTIRELY_DIFFERENT", "ignored: no such setting"),
        ("INGESTION_REDPANDA_PROPERTIES", "ignored: redpanda.properties can be given in the configuration file only"),
    ] {
        assert_eq!(warnings(&[(name, "geheim")]), [format!("{name}: {message}")]);
    }
}

#[test]
fn service_links_are_ignored_even_under_a_known_name() {
    let links = [
        ("INGESTION_PORT", "tcp://10.0.0.1:80"),
        ("INGESTION_SERVICE_HOST", "10.0.0.1"),
        ("INGESTION_SERVICE_PORT", "80"),
        ("INGESTION_SERVICE_PORT_HTTP", "80"),
        ("INGESTION_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("INGESTION_PORT_80_TCP_PROTO", "tcp"),
        ("INGESTION_PORT_80_TCP_PORT", "80"),
        ("INGESTION_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("INGESTION_SERVER_PORT", "udp://10.0.0.1:80"),
        ("INGESTION_CLICKHOUSE_EMBEDDED_PORT", "tcp://10.0.0.1:80"),
    ];
    let (config, warnings) = load("", &links);
    assert_eq!((config.server.port, config.clickhouse.embedded.port), (8080, 8123));
    let service_links = warnings.iter().filter(|warning| warning.message.starts_with("ignored: Kubernetes")).count();
    assert_eq!(service_links, links.len());
}

#[test]
fn a_tcp_url_that_kubernetes_cannot_have_set_is_not_ignored() {
    assert_eq!(
        errors("", &[("INGESTION_CLICKHOUSE_URL", "tcp://clickhouse:9000")]),
        [
            "clickhouse.url = \"tcp://clickhouse:9000\" (environment INGESTION_CLICKHOUSE_URL): not a URL that begins with \
          http:// or https://; give one, such as \"http://clickhouse:8123\" or \"https://clickhouse:8443\""
        ]
    );
}

#[test]
fn wrong_values_name_the_variable() {
    assert_eq!(
        errors("", &[("INGESTION_PORT", "http"), ("INGESTION_REDPANDA_CREATE_TOPIC", "yes"), ("INGESTION_ROLES", "")]),
        [
            "roles = [] (environment INGESTION_ROLES): no role; give \"api\", \"sink\" or both",
            "server.port = \"http\" (environment INGESTION_PORT): not a whole number; give a whole number from 0 to 65535",
            "redpanda.create_topic = \"yes\" (environment INGESTION_REDPANDA_CREATE_TOPIC): not a truth value; give true or \
             false",
        ]
    );
}

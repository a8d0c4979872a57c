//! Keys that are right by themselves and do not go together.

use super::{errors, load};

#[test]
fn conflicts_are_errors() {
    for (text, expected) in [
        (
            "roles = [\"sink\"]",
            &[
                "roles = [\"sink\"] (FILE line 1): without brokers the sink reads the log of this process, which needs both \
               roles; give [\"api\", \"sink\"], or redpanda.brokers",
            ][..],
        ),
        (
            "roles = [\"api\"]",
            &[
                "roles = [\"api\"] (FILE line 1): without brokers the sink reads the log of this process, which needs both \
               roles; give [\"api\", \"sink\"], or redpanda.brokers",
            ],
        ),
        (
            "[server]\nport = 8123",
            &["clickhouse.embedded.port = 8123 (default): the port of the API; give them different ports"],
        ),
        (
            "[clickhouse.embedded]\nport = 8081",
            &[
                "clickhouse.embedded.port = 8081 (FILE line 2): the port of server.admin_listen; give them different ports",
            ],
        ),
        (
            "[server]\nadmin_listen = \"127.0.0.1:8080\"",
            &[
                "server.admin_listen = \"127.0.0.1:8080\" (FILE line 2): the port of the API; give another port, or \"\" to \
               serve both on one",
            ],
        ),
        (
            "[limits]\ndecompressed_bytes = \"4MiB\"",
            &["limits.decompressed_bytes = \"4MiB\" (FILE line 2): below limits.body_bytes; give at least 8MiB"],
        ),
        (
            "[limits]\nin_flight_bytes = \"10MB\"",
            &[
                "limits.in_flight_bytes = \"10MB\" (FILE line 2): below limits.decompressed_bytes, so that such a request \
               could never pass; give at least 32MiB",
            ],
        ),
        (
            "[quota]\nevents_burst = 100\nbytes_burst = 100",
            &[
                "quota.events_burst = 100 (FILE line 2): below limits.events_per_request (10000), so that such a request \
                 could never pass; give at least 10000",
                "quota.bytes_burst = 100 (FILE line 3): below limits.body_bytes (8MiB), so that such a request could \
                 never pass; give at least 8MiB",
            ],
        ),
        (
            "[quota]\naddress_burst = 0",
            &[
                "quota.address_burst = 0 (FILE line 2): no request could ever fail to authenticate and be told so; give at \
               least 1",
            ],
        ),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.1/8\"]",
            &["server.trusted_proxies = [\"10.0.0.1/8\"] (FILE line 2): \"10.0.0.1/8\" is wrong: has bits after its \
               prefix; give addresses or blocks of them, such as [\"10.0.0.0/8\", \"2001:db8::/32\", \"192.0.2.7\"]"],
        ),
        (
            "[redpanda]\nreplication_factor = 1",
            &["redpanda.min_insync_replicas = 2 (default): above redpanda.replication_factor (1); give at most 1"],
        ),
        (
            "[limits]\nevent_bytes = \"1MiB\"",
            &[
                "redpanda.max_message_bytes = \"1MiB\" (default): below twice limits.event_bytes, so that a large event's row \
               might not fit; give at least 2MiB",
            ],
        ),
        (
            "[redpanda]\nmax_message_bytes = \"64MiB\"\n[sink]\nmax_rows = 10",
            &[
                "sink.max_rows = 10 (FILE line 4): below redpanda.batch_size, so that one message would not fit an insert; \
                 give at least 1000",
                "sink.max_bytes = \"20MiB\" (default): below redpanda.max_message_bytes, so that one message would not fit \
                 an insert; give at least 64MiB",
            ],
        ),
        (
            "[clickhouse]\ncluster = \"main\"",
            &[
                "clickhouse.cluster = \"main\" (FILE line 2): the embedded engine has no cluster; give clickhouse.url too, or \
               remove it",
            ],
        ),
        (
            "[clickhouse]\nurl = \"http://c:8123\"\nca_file = \"ca.pem\"",
            &[
                "clickhouse.ca_file = \"ca.pem\" (FILE line 3): no effect on a connection without TLS; give an https:// URL, \
               or remove it",
            ],
        ),
    ] {
        assert_eq!(errors(text, &[]), expected, "{text}");
    }
}

#[test]
fn what_looks_like_a_conflict_and_is_none() {
    for text in [
        "roles = [\"sink\"]\n[redpanda]\nbrokers = [\"a:9092\"]",
        // No embedded engine listens while there is a server.
        "[server]\nport = 8123\n[clickhouse]\nurl = \"http://c:8123\"",
        "[server]\nport = 0\nadmin_listen = \"127.0.0.1:0\"\n[clickhouse.embedded]\nport = 0",
        "[server]\nhost = \"127.0.0.2\"\nadmin_listen = \"127.0.0.1:8080\"",
        "[quota]\nevents_per_second = 0\nevents_burst = 0",
    ] {
        assert_eq!(errors(text, &[]), [""; 0], "{text}");
    }
}

#[test]
fn a_key_that_is_wrong_by_itself_makes_no_conflict() {
    // Without that rule the default of batch_size, which nobody chose here, would be compared with max_rows.
    assert_eq!(
        errors("[redpanda]\nbatch_size = \"ten\"\n[sink]\nmax_rows = 10", &[]),
        ["redpanda.batch_size = \"ten\" (FILE line 2): not a whole number; give a whole number from 1 to 1000000"]
    );
}

#[test]
fn risky_choices_are_warned_of() {
    let text = "[redpanda]\nbrokers = [\"a:9092\"]\nretention = \"13d\"\n[wal]\ndurability = \"os\"";
    let (_, warnings) = load(text, &[]);
    let names: Vec<_> = warnings.iter().map(|warning| warning.name.as_str()).collect();
    assert_eq!(names, ["redpanda.retention", "wal.durability", "tenants"]);
}

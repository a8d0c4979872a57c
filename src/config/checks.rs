//! What single values cannot show: whether they go together.

use std::time::Duration;

use super::{
    Config,
    error::{Problem, Warning},
    kinds::Durability,
    quota::TenantQuota,
    reader::Reader,
    units::ByteSize,
};

/// Records every conflict between keys.
pub(super) fn conflicts(config: &Config, reader: &mut Reader<'_>) {
    process(config, reader);
    limits(config, reader);
    broker(config, reader);
    clickhouse(config, reader);
}

fn process(config: &Config, reader: &mut Reader<'_>) {
    let roles = config.process.roles;
    if config.redpanda.brokers.is_empty() && roles.api != roles.sink {
        let what = "without brokers the sink reads the log of this process, which needs both roles";
        let fix = r#"give ["api", "sink"], or redpanda.brokers"#;
        reader.conflict("roles", &["redpanda.brokers"], Problem::new(what, fix));
    }
    if let Some(admin) = config.server.admin_listen {
        let shares_address =
            admin.ip() == config.server.host || admin.ip().is_unspecified() || config.server.host.is_unspecified();
        if admin.port() == config.server.port && admin.port() != 0 && shares_address {
            let problem = Problem::new("the port of the API", r#"give another port, or "" to serve both on one"#);
            reader.conflict("server.admin_listen", &["server.port", "server.host"], problem);
        }
    }
}

fn limits(config: &Config, reader: &mut Reader<'_>) {
    let limits = &config.limits;
    let least = |size: u64| format!("give at least {}", ByteSize::new(size));
    if limits.decompressed_bytes < limits.body_bytes {
        let problem = Problem::new("below limits.body_bytes", least(limits.body_bytes));
        reader.conflict("limits.decompressed_bytes", &["limits.body_bytes"], problem);
    }
    if limits.in_flight_bytes < limits.decompressed_bytes {
        let what = "below limits.decompressed_bytes, so that such a request could never pass";
        let problem = Problem::new(what, least(limits.decompressed_bytes));
        reader.conflict("limits.in_flight_bytes", &["limits.decompressed_bytes"], problem);
    }
    if limits.event_bytes > limits.decompressed_bytes {
        let fix = format!("give at most {}", ByteSize::new(limits.decompressed_bytes));
        let problem = Problem::new("above limits.decompressed_bytes", fix);
        reader.conflict("limits.event_bytes", &["limits.decompressed_bytes"], problem);
    }
    for (key, _, problem) in TenantQuota::of(&config.quota).small_bursts(limits) {
        match key {
            "events_burst" => reader.conflict(
                "quota.events_burst",
                &["quota.events_per_second", "limits.events_per_request"],
                problem,
            ),
            _ => reader.conflict("quota.bytes_burst", &["quota.bytes_per_second", "limits.body_bytes"], problem),
        }
    }
    let quota = &config.quota;
    if quota.address_requests_per_second > 0 && quota.address_burst == 0 {
        let problem = Problem::new("no request could ever fail to authenticate and be told so", "give at least 1");
        reader.conflict("quota.address_burst", &["quota.address_requests_per_second"], problem);
    }
}

fn broker(config: &Config, reader: &mut Reader<'_>) {
    let (redpanda, sink) = (&config.redpanda, &config.sink);
    if redpanda.min_insync_replicas > redpanda.replication_factor {
        let what = format!("above redpanda.replication_factor ({})", redpanda.replication_factor);
        let problem = Problem::new(what, format!("give at most {}", redpanda.replication_factor));
        reader.conflict("redpanda.min_insync_replicas", &["redpanda.replication_factor"], problem);
    }
    if redpanda.max_message_bytes < config.limits.event_bytes.saturating_mul(2) {
        // A row is the event with its escapes written out and some 600 bytes of provenance.
        let fix = format!("give at least {}", ByteSize::new(config.limits.event_bytes.saturating_mul(2)));
        let problem = Problem::new("below twice limits.event_bytes, so that a large event's row might not fit", fix);
        reader.conflict("redpanda.max_message_bytes", &["limits.event_bytes"], problem);
    }
    if redpanda.in_flight_bytes < redpanda.max_message_bytes {
        let fix = format!("give at least {}", ByteSize::new(redpanda.max_message_bytes));
        let problem = Problem::new("below redpanda.max_message_bytes", fix);
        reader.conflict("redpanda.in_flight_bytes", &["redpanda.max_message_bytes"], problem);
    }
    if sink.max_rows < redpanda.batch_size {
        let what = "below redpanda.batch_size, so that one message would not fit an insert";
        let problem = Problem::new(what, format!("give at least {}", redpanda.batch_size));
        reader.conflict("sink.max_rows", &["redpanda.batch_size"], problem);
    }
    if sink.max_bytes < redpanda.max_message_bytes {
        let what = "below redpanda.max_message_bytes, so that one message would not fit an insert";
        let problem = Problem::new(what, format!("give at least {}", ByteSize::new(redpanda.max_message_bytes)));
        reader.conflict("sink.max_bytes", &["redpanda.max_message_bytes"], problem);
    }
}

fn clickhouse(config: &Config, reader: &mut Reader<'_>) {
    let clickhouse = &config.clickhouse;
    let Some(url) = &clickhouse.url else {
        let port = clickhouse.embedded.port;
        let fix = "give them different ports";
        if port != 0 && port == config.server.port {
            let problem = Problem::new("the port of the API", fix);
            reader.conflict("clickhouse.embedded.port", &["server.port", "clickhouse.url"], problem);
        } else if port != 0 && config.server.admin_listen.is_some_and(|admin| admin.port() == port) {
            let problem = Problem::new("the port of server.admin_listen", fix);
            reader.conflict("clickhouse.embedded.port", &["server.admin_listen", "clickhouse.url"], problem);
        }
        if clickhouse.cluster.is_some() {
            let problem = Problem::new("the embedded engine has no cluster", "give clickhouse.url too, or remove it");
            reader.conflict("clickhouse.cluster", &["clickhouse.url"], problem);
        }
        return;
    };
    if clickhouse.ca_file.is_some() && !url.starts_with("https://") {
        let problem = Problem::new("no effect on a connection without TLS", "give an https:// URL, or remove it");
        reader.conflict("clickhouse.ca_file", &["clickhouse.url"], problem);
    }
}

/// What a working configuration should still make an operator think about.
pub(super) fn warnings(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let fortnight = Duration::from_hours(14 * 24);
    if !config.redpanda.brokers.is_empty() && config.redpanda.retention < fortnight {
        let message = "shorter than 14d: events are lost when ClickHouse is away for longer than that";
        warnings.push(Warning::new("redpanda.retention", message));
    }
    if config.wal.durability == Durability::Os {
        let message = "\"os\": a 2xx means the page cache, a power cut loses the last events that were accepted";
        warnings.push(Warning::new("wal.durability", message));
    }
    if config.process.roles.api && config.tenants.tenants.is_empty() && config.auth.url.is_none() {
        let file = config.tenants_file();
        let message = format!(
            "there is no tenant in {}: every request will be answered with 401 until `ingestion-engine tenants add`",
            file.display()
        );
        warnings.push(Warning::new("tenants", message));
    }
    warnings
}

//! From the configuration to what each part takes. No part knows the configuration; this file knows both.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};

use crate::{
    api, broker, clickhouse,
    config::{self, Config, TenantQuota},
    dead_letters, erasure,
    event::Retention,
    plugins::{faults::FaultWindow, instance, plugin::Deadline, registry, threads},
    sink::{self, source::RangeLimits},
    tenants::{
        AllowanceSettings, Description, Failures, QuotaSettings, Rate, RateError, Set, Tenants,
        external::{self, External},
        watch,
    },
    wal,
};

/// An insert touches at most this many partitions of the table: each of them becomes a part, and ClickHouse refuses an
/// insert that makes more than a hundred.
const EXPIRIES_PER_INSERT: usize = 20;

/// How long a start waits for the log's folder: `ledger` and `trace` hold it while they read a log that is stopped, some
/// seconds a gigabyte.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// On a platform where a size does not fit it is as good as unlimited.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(super) fn wal(config: &Config) -> wal::Settings {
    let wal = &config.wal;
    wal::Settings {
        dir: config.process.data_dir.join("wal"),
        max_disk_bytes: wal.max_disk_bytes,
        warn_disk_ratio: wal.warn_disk_ratio,
        min_free_bytes: wal.min_free_bytes,
        segment_bytes: size(wal.segment_bytes),
        cache_bytes: wal.cache_bytes,
        durability: match wal.durability {
            config::Durability::Fsync => wal::Durability::Fsync,
            config::Durability::Os => wal::Durability::Os,
        },
        dedup_span: config.dedup.window,
        dedup_ids: config.dedup.max_ids,
        lock_patience: LOCK_PATIENCE,
    }
}

pub(super) fn codec(config: &Config) -> wal::Codec {
    match config.wal.codec {
        config::WalCodec::Lz4 => wal::Codec::Lz4,
        config::WalCodec::Zstd => wal::Codec::Zstd,
    }
}

pub(super) fn limits(config: &Config) -> api::Limits {
    api::Limits {
        body_bytes: size(config.limits.body_bytes),
        decompressed_bytes: size(config.limits.decompressed_bytes),
        events_per_request: config.limits.events_per_request,
        event_bytes: size(config.limits.event_bytes),
        in_flight_bytes: size(config.limits.in_flight_bytes),
        request_timeout: config.server.request_timeout,
        max_age: config.events.max_age,
        max_ahead: config.events.max_ahead,
    }
}

pub(super) fn server(config: &Config) -> api::ServerSettings {
    api::ServerSettings {
        header_timeout: config.server.header_timeout,
        shutdown: config.shutdown.requests,
        connections: api::most_connections(),
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// A tenant of the file, as the front takes it.
fn described(tenant: config::Tenant, nodes: u32, limits: &config::Limits) -> Result<Description> {
    let config::Tenant { id, name, disabled, tier: _, keys, quota, retention } = tenant;
    let quota = self::quota(&quota, nodes, limits).with_context(|| format!("the quota of tenant {id}"))?;
    Ok(Description { id, name, disabled, retention: Retention::of(retention.duration()), quota, keys })
}

/// Reads the tenants' file as it is when this is called.
pub(super) fn read_tenants(config: &Config) -> watch::Read {
    let (defaults, path, nodes) = (config.tenant_defaults(), config.tenants_file(), config.quota.nodes);
    Arc::new(move || {
        let file = defaults.read(&path).map_err(|errors| errors.to_string())?;
        let tenants = file.tenants.into_iter().map(|tenant| described(tenant, nodes, &defaults.limits));
        tenants.collect::<Result<Vec<_>>>().map_err(|error| format!("{error:#}"))
    })
}

/// What the service of `auth.url` is asked with; none without one.
pub(super) fn external(config: &Config) -> Result<Option<external::Settings>> {
    let auth = &config.auth;
    let Some(url) = auth.url.clone() else { return Ok(None) };
    Ok(Some(external::Settings {
        url,
        timeout: auth.timeout,
        cache: auth.cache,
        negative_cache: auth.negative_cache,
        stale: auth.stale,
        cache_keys: auth.cache_keys,
        quota: quota(&TenantQuota::of(&config.quota), config.quota.nodes, &config.limits)?,
        retention: Retention::of(config.retention.default.duration()),
    }))
}

/// A rate, or none for no rate a second.
fn rate(per_second: u64, burst: u64) -> Result<Option<Rate>, RateError> {
    (per_second > 0).then(|| Rate::new(per_second, burst)).transpose()
}

/// One node's share of what a tenant may send: of rates and of the month at least one event or byte, and of the bursts as
/// much as one request may hold, which no division may make impossible.
pub(super) fn quota(quota: &TenantQuota, nodes: u32, limits: &config::Limits) -> Result<QuotaSettings, RateError> {
    let nodes = u64::from(nodes);
    let share = |whole: u64| if whole == 0 { 0 } else { (whole / nodes).max(1) };
    let burst = |whole: u64, request: u64| (whole / nodes).max(request.min(whole));
    Ok(QuotaSettings {
        events: rate(share(quota.events_per_second), burst(quota.events_burst, limits.events_per_request as u64))?,
        bytes: rate(share(quota.bytes_per_second), burst(quota.bytes_burst, limits.body_bytes))?,
        month: (quota.events_per_month > 0).then_some(AllowanceSettings {
            events: share(quota.events_per_month),
            hard_stop: quota.monthly_hard_stop,
            warn_ratio: quota.monthly_warn_ratio,
        }),
    })
}

/// Whose requests are taken.
pub(super) fn doors(config: &Config, external: Option<External>) -> Result<api::Doors> {
    let tenants = config.tenants.tenants.iter().cloned();
    let tenants = tenants.map(|tenant| described(tenant, config.quota.nodes, &config.limits));
    let tenants = tenants.collect::<Result<Vec<_>>>()?;
    let quota = &config.quota;
    let failures = rate(quota.address_requests_per_second, quota.address_burst).context("quota.address_burst")?;
    Ok(api::Doors {
        tenants: Tenants::new(Set::new(tenants, &Set::default()), external),
        failures: Failures::new(failures),
        trusted_proxies: config.server.trusted_proxies.clone(),
    })
}

/// What the registry of plugins takes.
pub(super) fn plugins(config: &Config) -> Result<registry::Settings> {
    let settings = &config.plugins;
    // Twice the processors, because a call may wait for something; and never so few that one slow plugin is felt at once.
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if settings.threads == 0 { (2 * processors).max(4) } else { settings.threads };
    let limits = limits(config);
    Ok(registry::Settings {
        dir: config.plugins_dir(),
        data_dir: config.process.data_dir.clone(),
        program: std::env::current_exe().context("finding this program's own file")?,
        allow: settings.allow.clone(),
        mode: if config.process.roles.api { registry::Mode::Run } else { registry::Mode::DeclareOnly },
        isolation: registry::Isolation {
            all: settings.isolation == config::Isolation::Process,
            named: settings.isolated.clone(),
            bytes: settings.isolated_bytes,
        },
        deadline: Deadline { base: settings.deadline, per_event: settings.deadline_per_event },
        threads: threads::Settings { threads, leaked: settings.leaked_threads },
        faults: FaultWindow::new(settings.faults, settings.fault_window),
        limits: instance::Limits { event_bytes: instance::output_bytes(limits.event_bytes) },
        config: settings.config.clone(),
    })
}

pub(super) fn range_limits(config: &Config) -> RangeLimits {
    RangeLimits {
        rows: config.sink.max_rows,
        bytes: size(config.sink.max_bytes),
        age: config.sink.max_age,
        expiries: EXPIRIES_PER_INSERT,
    }
}

pub(super) fn sink(config: &Config) -> sink::Settings {
    sink::Settings {
        inserts_in_flight: config.sink.inserts_in_flight,
        drain: config.shutdown.sink,
        ..sink::Settings::default()
    }
}

/// How far the sink behind a broker looks for events that were sent to several nodes.
pub(super) fn window(config: &Config) -> sink::Window {
    sink::Window { span: config.dedup.window, ids: config.dedup.max_ids }
}

/// The server's settings, or those of the child at `embedded`: on loopback, where compressing costs more than it saves,
/// and without a password.
pub(super) fn clickhouse(config: &Config, embedded: Option<String>) -> clickhouse::Settings {
    let settings = &config.clickhouse;
    let is_embedded = embedded.is_some();
    clickhouse::Settings {
        url: embedded.or_else(|| settings.url.clone()).unwrap_or_default(),
        user: if is_embedded { "default".to_owned() } else { settings.user.clone() },
        password: if is_embedded { String::new() } else { settings.password.expose().to_owned() },
        database: settings.database.clone(),
        ca_file: settings.ca_file.clone(),
        compression: match settings.compression {
            config::ClickHouseCompression::Lz4 if !is_embedded => clickhouse::Compression::Lz4,
            _ => clickhouse::Compression::None,
        },
        insert_timeout: settings.insert_timeout,
    }
}

/// Where a node keeps its dead letters.
pub(super) fn dead_letters_folder(config: &Config) -> PathBuf {
    config.process.data_dir.join("dead-letters")
}

pub(super) fn dead_letters(config: &Config) -> dead_letters::Limits {
    let config::DeadLetters { retention, max_bytes } = config.dead_letters;
    dead_letters::Limits { retention, max_bytes }
}

/// What `erase` and `tenants purge` take.
pub(super) fn erasure(config: &Config) -> erasure::commands::Settings {
    erasure::commands::Settings {
        topic_retention: (!config.redpanda.brokers.is_empty()).then_some(config.redpanda.retention),
        insert_timeout: config.clickhouse.insert_timeout,
        dead_letters: dead_letters_folder(config),
    }
}

pub(super) fn template(config: &Config, embedded: bool) -> clickhouse::Template {
    let settings = &config.clickhouse;
    clickhouse::Template { database: settings.database.clone(), cluster: settings.cluster.clone(), embedded }
}

pub(super) fn broker(config: &Config) -> broker::Settings {
    let settings = &config.redpanda;
    broker::Settings {
        brokers: settings.brokers.join(","),
        topic: settings.topic.clone(),
        partitions: settings.partitions.unsigned_abs(),
        replication_factor: settings.replication_factor.unsigned_abs(),
        min_insync_replicas: settings.min_insync_replicas.unsigned_abs(),
        retention: settings.retention,
        create_topic: settings.create_topic,
        format: match settings.format {
            config::TopicFormat::Binary => broker::Format::Binary,
            config::TopicFormat::Json => broker::Format::Json,
        },
        batch_size: settings.batch_size,
        max_message_bytes: size(settings.max_message_bytes),
        compression: settings.compression.as_str().to_owned(),
        in_flight_bytes: size(settings.in_flight_bytes),
        drain: config.shutdown.relay,
        group: settings.group.clone(),
        ranges_under_way: config.sink.inserts_in_flight + 1,
        properties: settings.properties.iter().map(|(key, value)| (key.clone(), value.expose().to_owned())).collect(),
        ..broker::Settings::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn nodes_divide_rates_bursts_and_the_month_but_never_below_a_request() {
        let (config, _) = Config::load(None, &BTreeMap::new()).unwrap();
        let whole = TenantQuota { events_per_month: 1001, ..TenantQuota::of(&config.quota) };
        let one = quota(&whole, 1, &config.limits).unwrap();
        assert_eq!(one.events, Some(Rate::new(100_000, 200_000).unwrap()));
        assert_eq!(one.bytes, Some(Rate::new(100 << 20, 200 << 20).unwrap()));
        let four = quota(&whole, 4, &config.limits).unwrap();
        assert_eq!(four.events, Some(Rate::new(25_000, 50_000).unwrap()));
        assert_eq!(four.bytes, Some(Rate::new(25 << 20, 50 << 20).unwrap()));
        assert_eq!(four.month.map(|month| month.events), Some(250));
        let many = quota(&whole, 10_000, &config.limits).unwrap();
        assert_eq!(many.events, Some(Rate::new(10, 10_000).unwrap()), "a request of 10,000 events still passes");
        assert_eq!(many.bytes, Some(Rate::new(10_485, 8 << 20).unwrap()), "and one of 8 MiB");
        assert_eq!(many.month.map(|month| month.events), Some(1));
        let unlimited = TenantQuota { events_per_second: 0, bytes_per_second: 0, events_per_month: 0, ..whole };
        assert_eq!(quota(&unlimited, 4, &config.limits).unwrap(), QuotaSettings::default());
    }
}

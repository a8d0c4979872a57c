//! The metric catalogue: every series that `GET /metrics` shows, with its labels, in the order in which an event
//! travels. A metric that is not here does not exist.
//!
//! No label takes a value that a sender chooses (no tenant, no path, no id), so the number of series is bounded by this
//! file and by the plugins that an operator has installed: a plugin names series of its own, at most a hundred
//! (`plugins::host`). Counters start at zero with the process; durations are in seconds, sizes in bytes.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// From 0.25 ms (an fsync on a good disk) to 16 s (a request that waited through a stall), doubling.
fn latency_histogram() -> Histogram {
    Histogram::new((0..17).map(|power| 0.000_25 * f64::from(1_u32 << power)))
}

/// From 10 microseconds (a call with one event) to 1.3 s (long past any deadline), doubling.
fn call_histogram() -> Histogram {
    Histogram::new((0..18).map(|power| 0.000_01 * f64::from(1_u32 << power)))
}

/// Label of `requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's pattern (`/ingest`), never the path as sent.
    pub route: &'static str,
    /// HTTP status.
    pub status: u16,
}

/// Label of `events`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `accepted`, `rejected`, `dropped` or `parked`.
    pub outcome: &'static str,
    /// For rejected events the stable error code (`plugin` for those of plugins), else empty.
    pub code: &'static str,
}

/// Label of `refusals`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The problem's code; `quota_exceeded_events` and `quota_exceeded_bytes` for the one of the two.
    pub reason: &'static str,
}

/// Label of `errors`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabels {
    /// `api`, `wal`, `relay`, `source`, `sink`, `clickhouse`, `reprocess`.
    pub stage: &'static str,
}

/// Label of `source_partitions`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CarriesLabels {
    /// `events` or `parked`: what the topic carries.
    pub carries: &'static str,
}

/// Label of `sink_left_out`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeftOutLabels {
    /// `expired` (their time was over when they arrived), `erased` (on request), `duplicate` (sent to another node as well) or
    /// `stored` (by another process, with a copy of the log).
    pub reason: &'static str,
}

/// Labels of `plugin_events`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginOutcomeLabels {
    /// The plugin's name.
    pub plugin: String,
    /// `kept`, `replaced`, `rejected`, `dropped` or `parked`.
    pub outcome: &'static str,
}

/// Label of `plugin_counter` and `plugin_gauge`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginSeriesLabels {
    /// The plugin.
    pub plugin: String,
    /// What the plugin calls the series.
    pub name: String,
}

/// A gauge with fractions.
pub type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Where plugins' own series are made.
#[derive(Clone, Debug, Default)]
pub struct PluginMetrics {
    counters: Family<PluginSeriesLabels, Counter>,
    gauges: Family<PluginSeriesLabels, FloatGauge>,
}

impl PluginMetrics {
    /// The counter `name` of `plugin`, from zero if it is new.
    pub fn counter(&self, plugin: &str, name: &str) -> Counter {
        self.counters.get_or_create_owned(&labels(plugin, name))
    }

    /// The gauge `name` of `plugin`, zero if it is new.
    pub fn gauge(&self, plugin: &str, name: &str) -> FloatGauge {
        self.gauges.get_or_create_owned(&labels(plugin, name))
    }
}

fn labels(plugin: &str, name: &str) -> PluginSeriesLabels {
    PluginSeriesLabels { plugin: plugin.to_owned(), name: name.to_owned() }
}

/// Label of `plugin_calls`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabels {
    /// The plugin's name.
    pub plugin: String,
}

impl PluginLabels {
    /// Of the plugin of that name.
    pub fn of(plugin: &str) -> Self {
        Self { plugin: plugin.to_owned() }
    }
}

/// Labels of `plugin_faults`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginFaultLabels {
    /// The plugin's name.
    pub plugin: String,
    /// `panic`, `failed`, `bad_output`, `deadline`, `crash`, `exhausted`.
    pub kind: &'static str,
}

/// Label of `plugin_loads`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoadLabels {
    /// `loaded`, `refused` or `removed`.
    pub result: &'static str,
}

/// Label of `reprocessed_events`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReprocessLabels {
    /// `stored`, `rejected` or `dropped`.
    pub outcome: &'static str,
}

macro_rules! catalogue {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty $([$unit:expr])? = $make:expr;)+) => {
        /// Handles of all metrics. Shared by reference; every handle is an atomic or a short lock.
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Metrics {
            /// A fresh set, all zero.
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix("ingestion");
                $(
                    let $name: $type = $make;
                    // The exposition format ends a help text with a full stop of its own.
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    catalogue!(@register registry, stringify!($name), help, $name.clone() $(, $unit)?);
                )+
                Self { registry, $($name,)+ }
            }
        }
    };
    (@register $registry:ident, $name:expr, $help:expr, $metric:expr) => {
        $registry.register($name, $help, $metric);
    };
    (@register $registry:ident, $name:expr, $help:expr, $metric:expr, $unit:expr) => {
        $registry.register_with_unit($name, $help, $unit, $metric);
    };
}

catalogue! {
    /// Requests answered, by route and status.
    requests: Family<RequestLabels, Counter> = Family::default();
    /// Requests to /ingest that were refused, by reason: the problem's code.
    refusals: Family<ReasonLabels, Counter> = Family::default();
    /// Bytes of request bodies as received, before decompression.
    request_body: Counter [Unit::Bytes] = Counter::default();
    /// Bytes of request bodies held in memory now (bounded by limits.in_flight_bytes).
    request_bodies_in_flight: Gauge [Unit::Bytes] = Gauge::default();
    /// Events by outcome; rejected ones with the code that the sender was told.
    events: Family<OutcomeLabels, Counter> = Family::default();
    /// From the first byte of a request to its 2xx, the fsync included.
    ack: Histogram [Unit::Seconds] = latency_histogram();

    /// Events that plugins were given, by what they said; parked ones wait for a plugin that cannot be called.
    plugin_events: Family<PluginOutcomeLabels, Counter> = Family::default();
    /// Duration of a call of a plugin, whatever the number of its events.
    plugin_calls: Family<PluginLabels, Histogram> [Unit::Seconds] = Family::new_with_constructor(call_histogram);
    /// What plugins did wrong, by plugin and kind.
    plugin_faults: Family<PluginFaultLabels, Counter> = Family::default();
    /// Plugins in use, quarantined ones included.
    plugins_loaded: Gauge = Gauge::default();
    /// 1 while the plugin is quarantined, else 0.
    plugin_quarantined: Family<PluginLabels, Gauge> = Family::default();
    /// Files of the plugins' folder that were taken into use, refused, or removed.
    plugin_loads: Family<LoadLabels, Counter> = Family::default();
    /// Threads that hang in calls of plugins that were given up.
    plugin_threads_leaked: Gauge = Gauge::default();

    /// Records in the write-ahead log.
    wal_records: Gauge = Gauge::default();
    /// Events in the write-ahead log.
    wal_events: Gauge = Gauge::default();
    /// Size of the write-ahead log's files.
    wal_disk: Gauge [Unit::Bytes] = Gauge::default();
    /// Free space on the write-ahead log's file system, as last seen.
    wal_disk_free: Gauge [Unit::Bytes] = Gauge::default();
    /// Payload bytes committed to the write-ahead log (compressed).
    wal_committed: Counter [Unit::Bytes] = Counter::default();
    /// Group commits: each one flush and one fdatasync.
    wal_commits: Counter = Counter::default();
    /// Duration of a group commit.
    wal_commit: Histogram [Unit::Seconds] = latency_histogram();
    /// Appends refused because the disk quota or the free-space reserve was reached.
    wal_refused: Counter = Counter::default();
    /// Ids of events that are remembered, so that a resend is recognised.
    dedup_ids: Gauge = Gauge::default();
    /// How far back a resend is recognised: dedup.window, or less when dedup.max_ids bites.
    dedup_window: FloatGauge [Unit::Seconds] = Gauge::default();
    /// Records found damaged and set aside.
    wal_damaged_records: Counter = Counter::default();

    /// Records of the log produced to the broker and acknowledged by it.
    relay_records: Counter = Counter::default();
    /// Messages acknowledged by the broker.
    relay_messages: Counter = Counter::default();
    /// Events acknowledged by the broker.
    relay_events: Counter = Counter::default();
    /// Producers rebuilt after a delivery error or a fatal error.
    relay_rebuilds: Counter = Counter::default();
    /// Times that the relay went over to another number of partitions.
    relay_repartitions: Counter = Counter::default();
    /// Events in the log that the broker has not acknowledged yet (0 without brokers).
    relay_lag_events: Gauge = Gauge::default();

    /// Partitions that the consumer group has given to this node, by what their topic carries: a sink that has none stores
    /// nothing.
    source_partitions: Family<CarriesLabels, Gauge> = Family::default();
    /// Messages read from the broker.
    source_messages: Counter = Counter::default();
    /// Events read from the broker or the log, repeats after a restart included.
    source_events: Counter = Counter::default();
    /// Offsets that the broker no longer had when they were due: records lost to retention.
    source_gap_offsets: Counter = Counter::default();
    /// Events that a relay had sent before, and that were dropped.
    source_repeats: Counter = Counter::default();
    /// Rows inserted into ClickHouse and acknowledged, parked events apart.
    sink_rows: Counter = Counter::default();
    /// Parked events inserted into ClickHouse and acknowledged: they wait for `plugins reprocess`.
    sink_parked_rows: Counter = Counter::default();
    /// Rows that were left out of inserts, by reason.
    sink_left_out: Family<LeftOutLabels, Counter> = Family::default();
    /// Ranges whose rows were counted in ClickHouse, because nobody knew whether they were stored.
    sink_recounts: Counter = Counter::default();
    /// Rows that ClickHouse had lost of an insert, and that were put back.
    sink_mended_rows: Counter = Counter::default();
    /// Inserts acknowledged.
    sink_inserts: Counter = Counter::default();
    /// Duration of an insert, retries apart.
    sink_insert: Histogram [Unit::Seconds] = latency_histogram();
    /// Age of the oldest row that was read and is not stored yet; 0 when none is.
    sink_lag: FloatGauge [Unit::Seconds] = Gauge::default();
    /// Rows read and not yet stored.
    sink_pending_rows: Gauge = Gauge::default();
    /// Parked events that were run through their plugin again, by what became of them.
    reprocessed_events: Family<ReprocessLabels, Counter> = Family::default();
    /// What could not be delivered and was kept by this node.
    dead_letters: Counter = Counter::default();
    /// Dead letters in ClickHouse of which nothing became yet, all nodes together.
    dead_letters_held: Gauge = Gauge::default();
    /// Bytes of these.
    dead_letters_size: Gauge [Unit::Bytes] = Gauge::default();
    /// Dead letters removed because they were above `dead_letters.max_bytes`.
    dead_letters_removed: Counter = Counter::default();

    /// Counters that plugins keep, each under its plugin and the plugin's own name for it.
    plugin_counter: Family<PluginSeriesLabels, Counter> = Family::default();
    /// Gauges that plugins set, each under its plugin and the plugin's own name for it.
    plugin_gauge: Family<PluginSeriesLabels, FloatGauge> = Family::default();

    /// Starts of the embedded ClickHouse child.
    clickhouse_starts: Counter = Counter::default();
    /// Errors by the stage in which they happened; each is also logged.
    errors: Family<StageLabels, Counter> = Family::default();
}

impl Metrics {
    /// The catalogue in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        // Writing to a String cannot fail.
        if text::encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }

    /// Where plugins' own series are made.
    pub fn of_plugins(&self) -> PluginMetrics {
        PluginMetrics { counters: self.plugin_counter.clone(), gauges: self.plugin_gauge.clone() }
    }

    /// Counts an error of `stage`.
    pub fn error(&self, stage: &'static str) {
        self.errors.get_or_create(&StageLabels { stage }).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_prefix_help_and_unit() {
        let metrics = Metrics::new();
        metrics.error("wal");
        metrics.ack.observe(0.003);
        let text = metrics.render();
        assert!(text.contains("# HELP ingestion_ack_seconds From the first byte of a request to its 2xx"), "{text}");
        assert!(text.contains("ingestion_errors_total{stage=\"wal\"} 1"), "{text}");
        assert!(text.contains("ingestion_ack_seconds_count 1"), "{text}");
        assert!(text.contains("ingestion_wal_disk_bytes 0"), "{text}");
        assert!(!text.contains(".."), "{text}");
    }
}

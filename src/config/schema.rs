//! The schema: every key, its kind, and the struct that holds its value, in one place.
//!
//! A section is written once; the struct, the list of keys (from which environment names and the order of reports
//! follow) and the reading of it are made from that. What a key means is told by `config/default.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    compound::{
        BrokerList, Identifier, KafkaName, Networks, OptionalEndpoint, OptionalIdentifier, OptionalUrl, Properties,
        RoleList, Roles,
    },
    kinds::{
        BrokerCompression, Bytes, ClickHouseCompression, Durability, FilePath, Flag, Host, Interval, Isolation, Kind,
        Listen, LogFilter, LogFormat, Migrate, OptionalInterval, OptionalPath, Ratio, RetentionText, Secret,
        SecretText, SegmentBytes, Text, TopicFormat, WalCodec, Whole,
    },
    plugins::{PluginNames, PluginTables, Sha256Sums},
    quota::{ByteBurst, ByteRate, EventBurst, EventRate, MonthlyEvents},
    raw::{Raw, Shape},
    reader::Reader,
    units::Retention,
};
use crate::api::Network;

/// A key of the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) shape: Shape,
    /// Its value as it may be printed.
    pub(super) shown: fn(&Raw) -> Raw,
}

impl Key {
    /// The environment variable that sets the key; none for tables.
    pub(super) fn environment(&self) -> Option<String> {
        let name = || format!("{}{}", super::environment::PREFIX, self.path.replace('.', "_").to_uppercase());
        (self.shape != Shape::Table).then(name)
    }
}

macro_rules! schema {
    ($(
        $(#[$doc:meta])*
        $name:ident at $prefix:literal {
            $($(#[$field_doc:meta])* $field:ident: $ty:ty = $kind:ty;)*
            $(.. $(#[$nested_doc:meta])* $nested:ident: $nested_ty:ident;)?
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $ty,)*
                $($(#[$nested_doc])* pub $nested: $nested_ty,)?
            }

            impl $name {
                /// Reads all its keys, so that the reader hears of every wrong one, and only then gives up.
                pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
                    $(let $field = reader.get::<$kind>(concat!($prefix, stringify!($field)));)*
                    $(let $nested = $nested_ty::read(reader);)?
                    Some(Self { $($field: $field?,)* $($nested: $nested?,)? })
                }
            }
        )*

        /// Every key, in the order of the reference.
        pub(super) const KEYS: &[Key] = &[$($(
            Key {
                path: concat!($prefix, stringify!($field)),
                shape: <$kind as Kind>::SHAPE,
                shown: <$kind as Kind>::shown,
            },
        )*)*];
    };
}

/// Kafka counts sizes in `i32`.
const KAFKA_MAX: u64 = 2_147_483_647;

schema! {
    /// Keys that belong to no section.
    Process at "" {
        /// What this process does.
        roles: Roles = RoleList;
        /// Folder of everything that the engine keeps.
        data_dir: PathBuf = FilePath;
    }

    /// `[server]`
    Server at "server." {
        /// Address of the API.
        host: IpAddr = Host;
        /// Port of the API; 0 lets the system choose.
        port: u16 = Whole<u16, 0, 65535>;
        /// Address of metrics and admin routes; absent: served with the API.
        admin_listen: Option<SocketAddr> = Listen;
        /// Proxies whose `X-Forwarded-For` is believed.
        trusted_proxies: Vec<Network> = Networks;
        /// From the connection, or the answer before, to the end of a request's head.
        header_timeout: Duration = Interval<1>;
        /// From a request's head to its answer.
        request_timeout: Duration = Interval<1>;
    }

    /// `[limits]`
    Limits at "limits." {
        /// Bytes of a request body as sent.
        body_bytes: u64 = Bytes<1024, { 1 << 30 }>;
        /// Bytes of a request body decompressed.
        decompressed_bytes: u64 = Bytes<1024, { 1 << 31 }>;
        /// Events in a request.
        events_per_request: usize = Whole<usize, 1, 1_000_000>;
        /// Bytes of one event's JSON.
        event_bytes: u64 = Bytes<1024, { 16 << 20 }>;
        /// Bytes of all request bodies in memory.
        in_flight_bytes: u64 = Bytes<1024, { u64::MAX }>;
    }

    /// `[events]`
    Events at "events." {
        /// Oldest timestamp taken, before now; absent: any since 1970.
        max_age: Option<Duration> = OptionalInterval;
        /// Furthest timestamp taken, after now.
        max_ahead: Duration = Interval<0>;
    }

    /// `[auth]`
    Auth at "auth." {
        /// File of the tenants; absent: `tenants.toml` in `data_dir` ([`super::Config::tenants_file`]).
        tenants_file: Option<PathBuf> = OptionalPath;
        /// Service that is asked for keys that the file does not have.
        url: Option<axum::http::Uri> = OptionalEndpoint;
        /// Longest wait for its answer.
        timeout: Duration = Interval<1>;
        /// How long an answer is used.
        cache: Duration = Interval<0>;
        /// How long a refusal is used.
        negative_cache: Duration = Interval<0>;
        /// How long an answer is used on while the service is away.
        stale: Duration = Interval<0>;
        /// Most keys whose answers are kept.
        cache_keys: usize = Whole<usize, 1, 10_000_000>;
    }

    /// `[quota]`
    Quota at "quota." {
        /// Events a second; 0 is unlimited.
        events_per_second: u64 = EventRate;
        /// Events at once.
        events_burst: u64 = EventBurst;
        /// Bytes a second; 0 is unlimited.
        bytes_per_second: u64 = ByteRate;
        /// Bytes at once.
        bytes_burst: u64 = ByteBurst;
        /// Events in a calendar month; 0 is unlimited.
        events_per_month: u64 = MonthlyEvents;
        /// Whether more than that is refused.
        monthly_hard_stop: bool = Flag;
        /// Share of it from which answers warn.
        monthly_warn_ratio: f64 = Ratio;
        /// Nodes that share what a tenant may send.
        nodes: u32 = Whole<u32, 1, 10_000>;
        /// Requests a second of one address that fail to authenticate; 0 is unlimited.
        address_requests_per_second: u64 = EventRate;
        /// Such requests at once.
        address_burst: u64 = EventBurst;
    }

    /// `[retention]`
    RetentionDefaults at "retention." {
        /// Of tenants that have none of their own.
        default: Retention = RetentionText;
    }

    /// `[plugins]`
    Plugins at "plugins." {
        /// Folder that plugins are dropped into; absent: `plugins` in `data_dir` ([`super::Config::plugins_dir`]).
        dir: Option<PathBuf> = OptionalPath;
        /// SHA-256 sums of the files that may be loaded; empty: any.
        allow: BTreeSet<String> = Sha256Sums;
        /// Where plugins run.
        isolation: Isolation = Isolation;
        /// Plugins that run in processes of their own whatever `isolation` says.
        isolated: BTreeSet<String> = PluginNames;
        /// Memory of such a process.
        isolated_bytes: u64 = Bytes<{ 16 << 20 }, { 1 << 40 }>;
        /// Plugin threads; 0: twice the processors, at least four.
        threads: usize = Whole<usize, 0, 200>;
        /// Time of a call.
        deadline: Duration = Interval<1>;
        /// More for each event of a call.
        deadline_per_event: Duration = Interval<0>;
        /// Threads that may hang in calls that were given up.
        leaked_threads: usize = Whole<usize, 1, 50>;
        /// Faults within `fault_window` that quarantine a plugin.
        faults: usize = Whole<usize, 1, 1000>;
        /// The time in which `faults` are counted.
        fault_window: Duration = Interval<1000>;
        /// A table for each plugin.
        config: BTreeMap<String, serde_json::Value> = PluginTables;
    }

    /// `[wal]`
    Wal at "wal." {
        /// Most bytes on disk.
        max_disk_bytes: u64 = Bytes<{ 64 << 20 }, { u64::MAX }>;
        /// Share of `max_disk_bytes` from which health warns.
        warn_disk_ratio: f64 = Ratio;
        /// Free bytes of the file system that are left alone.
        min_free_bytes: u64 = Bytes<64_000_000, { u64::MAX }>;
        /// Bytes of a segment.
        segment_bytes: u64 = SegmentBytes;
        /// Bytes of sled's page cache.
        cache_bytes: u64 = Bytes<{ 1 << 20 }, { u64::MAX }>;
        /// What a 2xx stands for.
        durability: Durability = Durability;
        /// Compression of records.
        codec: WalCodec = WalCodec;
    }

    /// `[dedup]`
    Dedup at "dedup." {
        /// How long an event's id is remembered.
        window: Duration = Interval<0>;
        /// How many ids are.
        max_ids: usize = Whole<usize, 0, 1_000_000_000>;
    }

    /// `[dead_letters]`
    DeadLetters at "dead_letters." {
        /// How long a letter is kept.
        retention: Duration = Interval<1000>;
        /// Most bytes of letters.
        max_bytes: u64 = Bytes<{ 1 << 20 }, { u64::MAX }>;
    }

    /// `[redpanda]`
    Redpanda at "redpanda." {
        /// Brokers as `host:port`; empty: no broker.
        brokers: Vec<String> = BrokerList;
        /// Topic of the events.
        topic: String = KafkaName;
        /// Partitions of a topic that the engine creates.
        partitions: i32 = Whole<i32, 1, 100_000>;
        /// Replicas of a topic that the engine creates.
        replication_factor: i32 = Whole<i32, 1, 1000>;
        /// Replicas that must have a message before it counts.
        min_insync_replicas: i32 = Whole<i32, 1, 1000>;
        /// How long the broker keeps a message.
        retention: Duration = Interval<1000>;
        /// How events are written into the topic.
        format: TopicFormat = TopicFormat;
        /// Most events in one message.
        batch_size: usize = Whole<usize, 1, 1_000_000>;
        /// Most bytes in one message.
        max_message_bytes: u64 = Bytes<1024, 1_000_000_000>;
        /// Compression of messages.
        compression: BrokerCompression = BrokerCompression;
        /// Consumer group of the sinks.
        group: String = KafkaName;
        /// Whether the engine creates the topic.
        create_topic: bool = Flag;
        /// Most bytes that are produced and not acknowledged.
        in_flight_bytes: u64 = Bytes<{ 1 << 20 }, KAFKA_MAX>;
        /// Anything for librdkafka.
        properties: BTreeMap<String, Secret> = Properties;
    }

    /// `[clickhouse]`
    ClickHouse at "clickhouse." {
        /// Server; absent: the embedded engine.
        url: Option<String> = OptionalUrl;
        /// User.
        user: String = Text;
        /// Password.
        password: Secret = SecretText;
        /// Database.
        database: String = Identifier;
        /// Certificate authorities (PEM) that are trusted besides the system's.
        ca_file: Option<PathBuf> = OptionalPath;
        /// Compression of requests.
        compression: ClickHouseCompression = ClickHouseCompression;
        /// Cluster for ON CLUSTER and replicated tables; absent: one server.
        cluster: Option<String> = OptionalIdentifier;
        /// What happens to the tables at start.
        migrate: Migrate = Migrate;
        /// Longest wait for an insert's answer.
        insert_timeout: Duration = Interval<1000>;
        ..
        /// `[clickhouse.embedded]`
        embedded: Embedded;
    }

    /// `[clickhouse.embedded]`
    Embedded at "clickhouse.embedded." {
        /// Port on 127.0.0.1; 0 lets the system choose.
        port: u16 = Whole<u16, 0, 65535>;
        /// Folder of its data; absent: `clickhouse` in `data_dir` ([`super::Config::clickhouse_path`]).
        path: Option<PathBuf> = OptionalPath;
        /// libchdb; absent: the user's cache folder.
        library: Option<PathBuf> = OptionalPath;
    }

    /// `[sink]`
    Sink at "sink." {
        /// Most rows of an insert.
        max_rows: usize = Whole<usize, 1, 1_000_000>;
        /// Most bytes of an insert.
        max_bytes: u64 = Bytes<{ 1 << 20 }, { 1 << 30 }>;
        /// Longest wait for an insert to fill.
        max_age: Duration = Interval<1>;
        /// Inserts at once.
        inserts_in_flight: usize = Whole<usize, 1, 64>;
    }

    /// `[shutdown]`
    Shutdown at "shutdown." {
        /// For requests in flight.
        requests: Duration = Interval<0>;
        /// For the relay to empty the log.
        relay: Duration = Interval<0>;
        /// For the sink's pending inserts.
        sink: Duration = Interval<0>;
    }

    /// `[log]`
    Log at "log." {
        /// Filter of the log.
        level: String = LogFilter;
        /// Form of the log.
        format: LogFormat = LogFormat;
    }
}

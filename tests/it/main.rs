//! Tests of the engine as a whole: the real binary against the real ClickHouse engine and the real broker.
//!
//! One binary, because each links librdkafka and sled.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "tests fail by panicking"
)]

mod support;

mod api;
mod ask;
mod broker;
mod chaos;
mod clickhouse_facade;
mod configuration;
mod dead_letters;
mod dedup;
mod durability;
mod erasure;
mod faults;
mod ledger;
mod migrations;
mod outages;
mod parked;
mod plugin_registry;
mod plugin_tables;
mod plugins;
mod power_loss;
mod quotas;
mod retention;
mod sink;
mod tenants;
mod trace;

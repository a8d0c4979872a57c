//! The embedded ClickHouse as its clients and its parent see it: the real binary, the real libchdb.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

#[path = "support/clickhouse_child.rs"]
pub(crate) mod clickhouse_child;

mod clients;
mod data;
mod http;
mod life;
mod supervision;

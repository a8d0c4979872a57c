//! Integration tests: real parts, on loopback, in temporary folders.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod clickhouse_facade;
mod clickhouse_tls;
mod migrations;
mod sink;
mod support;

//! The harness: real processes, started and stopped by the tests that need them.

pub mod clickhouse;
pub mod engine;
pub mod load;
pub mod proxy;
pub mod tansu;

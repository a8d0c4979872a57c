//! The faults that must be survived, each under load: every acknowledged event is stored once, in the rows and in the views.

mod broker;
mod broker_errors;
mod clickhouse;
mod clients;
mod clock;
mod disk;
mod engine;
mod log_copies;
pub mod sigterm;
mod switching;
mod topics;

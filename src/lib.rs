//! # Ingestion engine
//!
//! A 2xx means that the event is on this node's disk. From there it finds its way into ClickHouse, whatever crashes in
//! between.
//!
//! ## The path of an event
//!
//! The modules are declared in the order in which an event travels.
//!
//! | step | module | what holds once it is done |
//! | --- | --- | --- |
//! | a request comes in | [`api`] | its bytes are within the bounds, all bodies in flight within their budget |
//! | whose is it, may it | [`tenants`] | it is written as this tenant and as no other, within its quota |
//! | is it an event | [`event`] | every field was checked; a bad event was refused with its reason, the others go on |
//! | does somebody add to it | [`plugins`] | the plugins of its type have accepted, changed, rejected, dropped or parked it |
//! | what is kept of it | [`row`] | one encoding, which the log, the topic and the insert share |
//! | onto the disk | [`wal`] | the record is synced: now the client has its 2xx |
//! | to the broker | [`relay`] | acknowledged by all in-sync replicas, in order; only then does the log let go |
//! | from the broker | [`broker`] | read as ranges; the range in flight is recorded before it is given out |
//! | into the table | [`sink`] | a range is one block under one token: a repeat is dropped by ClickHouse |
//! | where it stays | [`clickhouse`] | tables, views, migrations; and the embedded engine |
//!
//! On a node without brokers the sink reads the log itself; the sink sees ranges in both cases
//! ([`sink::source::Source`]). [`serve`] puts a node together, starts it and stops it in order. What cannot be delivered
//! is kept with its reason ([`dead_letters`]); what happens is counted ([`metrics`]) and told ([`health`]), and that nothing is
//! missing is shown ([`ledger`]). Commands change what is stored: [`retention`], and [`erasure`], which also keeps what was
//! erased from coming back; and [`trace`] tells where an event is.
//!
//! Every stage knows the event and the handle of the next stage, never the one after. `event` knows nobody.

pub mod api;
pub mod tenants;
pub mod event;
pub mod plugins;
pub mod row;
pub mod wal;
pub mod relay;
pub mod broker;
pub mod sink;
pub mod clickhouse;

pub mod cli;
pub mod config;
pub mod control;
pub mod dead_letters;
pub mod erasure;
pub mod error_chain;
pub mod folder_lock;
pub mod health;
pub mod ids;
mod json;
pub mod ledger;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod month;
pub mod retention;
pub mod serve;
mod table;
pub mod trace;
pub mod urgent;

//! What the load generator (`main.rs`), the benchmark (`bench/`) and the growth curves (`growth/`) share: bodies that are made
//! before the clock runs, connections that remember what was acknowledged, the check that each of these events is stored once,
//! and the processes that a measurement runs on.

pub mod body;
pub mod client;
pub mod machine;
pub mod meter;
pub mod process;
pub mod rig;
pub mod sending;
pub mod stats;
pub mod verify;

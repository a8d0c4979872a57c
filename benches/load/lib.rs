//! What the load generator (`main.rs`) and the benchmark (`bench/`) share: bodies that are made before the clock runs,
//! connections that remember what was acknowledged, and the check that each of these events is stored once.

pub mod body;
pub mod client;
pub mod stats;
pub mod verify;

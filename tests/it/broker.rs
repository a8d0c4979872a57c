//! Relay and source against librdkafka's mock cluster, which can be told to fail, and against a real broker.

mod mock;
mod real;
pub mod rig;

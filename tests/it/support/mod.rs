//! The harness: real processes, started and stopped by the tests that need them.

use std::{future::Future, time::Duration};

pub mod clickhouse;
pub mod engine;
pub mod fault_proxy;
pub mod growing;
pub mod kafka_proxy;
pub mod kill_points;
pub mod links;
pub mod load;
pub mod plugins;
pub mod power;
pub mod process;
pub mod proxy;
pub mod rig;
pub mod rows;
pub mod tansu;

/// How long anything may take that should take a moment: long, because two cores may run several engines at once.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Looks again until `condition` holds; fails with `what` when it does not within [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "in vain waited for: {what}");
}

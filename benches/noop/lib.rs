//! A plugin that is given every event and keeps it.
//!
//! What an engine with it takes longer than without it is the cost of calling a plugin: the copy to a plugin thread, the
//! call, reading the verdicts. It never looks into an event.

use ingestion_plugin_sdk::{Description, Error, Host, NoConfig, Plugin, export_plugin, json};

/// The plugin.
#[derive(Debug)]
pub struct Noop;

impl Plugin for Noop {
    type Config = NoConfig;

    fn describe() -> Description {
        Description::new("noop", env!("CARGO_PKG_VERSION"), "Keeps every event: for measuring the cost of a call")
            .enriches(["*"])
            .example(json!({ "type": "pageview", "path": "/" }))
    }

    fn new(_: NoConfig, _: Host) -> Result<Self, Error> {
        Ok(Self)
    }
}

export_plugin!(Noop);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use ingestion_plugin_sdk::testing::Harness;

    use super::*;

    #[test]
    fn every_event_is_kept() {
        let harness = Harness::<Noop>::new(json!({})).unwrap();
        harness.check().unwrap();
        let verdicts = harness.process([json!({ "type": "pageview", "path": "/" }), json!({ "type": "anything" })]);
        assert!(verdicts.iter().all(ingestion_plugin_sdk::Verdict::is_keep));
    }
}

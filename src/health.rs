//! What each component says of itself: its state, since when, and why.
//!
//! A component holds a [`Component`] handle and reports; `/health` reads a [`Health::snapshot`]. Reporting the same
//! state again keeps its `since`, so that "since when" is the moment of the change and not of the last look. A change
//! is logged here, once, so that no component needs a log line of its own for it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::RwLock;
use serde::Serialize;

/// How a component is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Coming up: not yet known to work.
    Starting,
    /// Working.
    Up,
    /// Working, and somebody should look.
    Degraded,
    /// Not working; it tries again by itself unless the reason says otherwise.
    Down,
}

/// One component's report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The state.
    pub state: State,
    /// When the component entered this state (UTC).
    pub since: Timestamp,
    /// Why, in words for an operator; absent while all is well and there is nothing to be known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All components of this process. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub struct Health {
    components: Arc<RwLock<BTreeMap<&'static str, Report>>>,
}

impl Health {
    /// Registers `name` as starting and returns the handle through which it reports.
    pub fn component(&self, name: &'static str) -> Component {
        let report = Report { state: State::Starting, since: Timestamp::now(), reason: None };
        self.components.write().insert(name, report);
        Component { name, health: self.clone() }
    }

    /// Every component's report, by name.
    pub fn snapshot(&self) -> BTreeMap<&'static str, Report> {
        self.components.read().clone()
    }
}

/// The handle of one component. Cheap to clone.
#[derive(Clone)]
pub struct Component {
    name: &'static str,
    health: Health,
}

impl Component {
    /// Says for what it waits before it starts.
    pub fn starting(&self, waits: impl Into<String>) {
        self.report(State::Starting, Some(waits.into()));
    }

    /// Reports that all is well.
    pub fn up(&self) {
        self.report(State::Up, None);
    }

    /// Reports that all is well, and what is to be known of it all the same.
    pub fn up_noting(&self, note: impl Into<String>) {
        self.report(State::Up, Some(note.into()));
    }

    /// Reports that it works, but not as it should.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.report(State::Degraded, Some(reason.into()));
    }

    /// Reports that it does not work.
    pub fn down(&self, reason: impl Into<String>) {
        self.report(State::Down, Some(reason.into()));
    }

    /// This component's own latest report.
    pub fn current(&self) -> Option<Report> {
        self.health.components.read().get(self.name).cloned()
    }

    fn report(&self, state: State, reason: Option<String>) {
        // The common case, on busy paths, is "still up": answer it under the shared lock.
        if let Some(report) = self.health.components.read().get(self.name)
            && report.state == state
            && report.reason == reason
        {
            return;
        }
        let mut components = self.health.components.write();
        let now = Timestamp::now();
        let since = components.get(self.name).filter(|r| r.state == state).map_or(now, |r| r.since);
        let changed = components.get(self.name).is_none_or(|r| r.state != state);
        components.insert(self.name, Report { state, since, reason: reason.clone() });
        drop(components);
        if changed {
            let component = self.name;
            match (state, reason) {
                (State::Up, _) => tracing::info!(component, "component is up"),
                (State::Starting, why) => tracing::info!(component, reason = why, "component is starting"),
                (State::Degraded, why) => tracing::warn!(component, reason = why, "component is degraded"),
                (State::Down, why) => tracing::warn!(component, reason = why, "component is down"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn since_is_the_moment_of_the_change() {
        let health = Health::default();
        let wal = health.component("wal");
        wal.down("disk is full");
        let first = health.snapshot()["wal"].clone();
        wal.down("disk is still full");
        let second = health.snapshot()["wal"].clone();
        assert_eq!(first.since, second.since);
        assert_eq!(second.reason.as_deref(), Some("disk is still full"));
        wal.up();
        let third = health.snapshot()["wal"].clone();
        assert!(third.since > first.since);
        assert_eq!((third.state, third.reason), (State::Up, None));
    }
}

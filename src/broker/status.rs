//! The state of a broker client as health shows it, put together from several independent observations: the
//! connection, the topic's settings, lost offsets. Each is set and cleared on its own; the worst decides the state.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use crate::health::Component;

/// How bad an observation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// All is well, and somebody may want to know.
    Notice,
    Degraded,
    Down,
}

/// The observations of one component.
pub(crate) struct Status {
    component: Component,
    /// False until the broker answered once: until then the component is coming up, not up.
    contacted: AtomicBool,
    observations: Mutex<BTreeMap<&'static str, (Severity, String)>>,
}

impl Status {
    pub(crate) fn new(component: Component) -> Self {
        Self { component, contacted: AtomicBool::new(false), observations: Mutex::default() }
    }

    /// The broker answered.
    pub(crate) fn contacted(&self) {
        self.contacted.store(true, Ordering::Relaxed);
        self.clear("connection");
    }

    /// Whether the broker answered when it was last looked at.
    pub(crate) fn is_connected(&self) -> bool {
        self.contacted.load(Ordering::Relaxed) && !self.observations.lock().contains_key("connection")
    }

    /// Reports `reason` under `topic` until it is cleared or replaced.
    pub(crate) fn set(&self, topic: &'static str, severity: Severity, reason: impl Into<String>) {
        let mut observations = self.observations.lock();
        observations.insert(topic, (severity, reason.into()));
        self.report(&observations);
    }

    /// Takes back what was reported under `topic`.
    pub(crate) fn clear(&self, topic: &'static str) {
        let mut observations = self.observations.lock();
        observations.remove(topic);
        self.report(&observations);
    }

    fn report(&self, observations: &BTreeMap<&'static str, (Severity, String)>) {
        let worst = observations.values().map(|(severity, _)| *severity).max();
        let reasons = || observations.values().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>().join("; ");
        match worst {
            Some(Severity::Down) => self.component.down(reasons()),
            Some(Severity::Degraded) => self.component.degraded(reasons()),
            Some(Severity::Notice) if self.contacted.load(Ordering::Relaxed) => self.component.up_noting(reasons()),
            None if self.contacted.load(Ordering::Relaxed) => self.component.up(),
            Some(Severity::Notice) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::health::{Health, State};

    #[test]
    fn the_worst_observation_decides_and_each_clears_on_its_own() {
        let health = Health::default();
        let component = health.component("broker");
        let status = Status::new(component.clone());
        let seen = || component.current().map(|report| (report.state, report.reason)).unwrap();
        status.clear("topic");
        assert_eq!(seen(), (State::Starting, None));
        status.contacted();
        assert_eq!(seen(), (State::Up, None));
        status.set("assignment", Severity::Notice, "stands by");
        assert_eq!(seen(), (State::Up, Some("stands by".into())));
        status.clear("assignment");
        status.set("topic", Severity::Degraded, "weak");
        status.set("connection", Severity::Down, "gone");
        assert_eq!(seen(), (State::Down, Some("gone; weak".into())));
        assert!(!status.is_connected());
        status.contacted();
        assert!(status.is_connected());
        assert_eq!(seen(), (State::Degraded, Some("weak".into())));
        status.clear("topic");
        assert_eq!(seen(), (State::Up, None));
    }
}

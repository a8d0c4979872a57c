//! What the sink says of itself: which ranges cannot be stored, and why.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{bisect::BisectError, insert::AttemptError, recount::RecountError, source::RangeId};
use crate::{
    clickhouse::{Kind, MigrateError, QueryError},
    error_chain::chain,
    health::Component,
};

/// How often a search for refused rows is told in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The ranges that wait for ClickHouse, shared by all inserts.
#[derive(Clone)]
pub(super) struct Report {
    health: Component,
    database: Arc<str>,
    waiting: Arc<Mutex<HashMap<RangeId, Trouble>>>,
    /// When a search for refused rows was last told.
    told: Arc<Mutex<Option<Instant>>>,
}

struct Trouble {
    /// Whether ClickHouse as a whole does not work, or this range only.
    general: bool,
    reason: String,
}

impl Report {
    pub(super) fn new(health: Component, database: &str) -> Self {
        Self { health, database: database.into(), waiting: Arc::default(), told: Arc::default() }
    }

    pub(super) fn started(&self) {
        self.health.up();
    }

    /// Notes a failed attempt.
    pub(super) fn failed(&self, range: &RangeId, attempts: u32, error: &AttemptError) {
        let (general, cause) = match error {
            AttemptError::Query(error)
            | AttemptError::Schema(MigrateError::Records(error))
            | AttemptError::Recount(RecountError::Query(error))
            | AttemptError::Bisect(BisectError::Query(error)) => self.explain(error),
            AttemptError::Plugins(error) => match error.query() {
                Some(query) if *query.kind() == Kind::Infrastructure && query.code().is_none() => self.explain(query),
                _ => (true, error.to_string()),
            },
            AttemptError::Rows(error)
            | AttemptError::Recount(RecountError::Rows(error))
            | AttemptError::Bisect(BisectError::Rows(error)) => (false, chain(error)),
            AttemptError::Bisect(error @ BisectError::Table { .. }) => (true, chain(error)),
            AttemptError::Letters(error) => (false, format!("dead letters cannot be kept: {error}")),
            AttemptError::PutAside { .. } | AttemptError::StoredBefore(_) => (false, error.to_string()),
            AttemptError::Schema(error) => {
                (true, format!("database {} is not complete (has ClickHouse lost its data?): {error}", self.database))
            }
        };
        // The first failure is an event; the hundredth of an outage is not.
        if attempts.is_power_of_two() {
            tracing::warn!(%range, attempts, %error, "an insert failed and is repeated");
        }
        let reason = format!("{cause}; range {range} waits and nothing is lost");
        self.waiting.lock().insert(range.clone(), Trouble { general, reason });
        self.publish();
    }

    /// Notes that rows of `range` are refused for `table`, and that which they are is being looked for.
    pub(super) fn searching(&self, range: &RangeId, table: &str, left: usize, letters: usize, error: &QueryError) {
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            tracing::warn!(%range, table, left, letters, %error, "ClickHouse refuses rows; looking for which");
            *told = Some(Instant::now());
        }
        drop(told);
        let reason = format!(
            "ClickHouse refuses rows of range {range} for table {table}, which are being looked for: {left} rows are left to \
             ask, {letters} were found and become dead letters, and nothing is lost: {error}"
        );
        self.waiting.lock().insert(range.clone(), Trouble { general: false, reason });
        self.publish();
    }

    /// Notes that `range` is stored or somebody else's.
    pub(super) fn resolved(&self, range: &RangeId) {
        self.waiting.lock().remove(range);
        self.publish();
    }

    /// Whether the trouble is ClickHouse's as a whole, and what it is.
    fn explain(&self, error: &QueryError) -> (bool, String) {
        match error.kind() {
            Kind::Infrastructure if error.code().is_none() => (true, format!("ClickHouse cannot be reached: {error}")),
            Kind::Infrastructure => (true, format!("ClickHouse refuses inserts: {error}")),
            Kind::Configuration if error.is_missing_table() => {
                let database = &self.database;
                let advice = "if ClickHouse lost its data, run `ingestion-engine migrate`";
                (true, format!("a table of database {database} is missing; {advice}: {error}"))
            }
            Kind::Configuration => (true, format!("ClickHouse refuses this engine: {error}")),
            Kind::Data => (false, format!("ClickHouse refuses the rows: {error}")),
            Kind::ViewPush { view } if error.is_of_the_machine() => {
                (true, format!("ClickHouse cannot write to materialized view {view}: {error}"))
            }
            Kind::ViewPush { view } => {
                (false, format!("materialized view {view} fails and must be mended or dropped: {error}"))
            }
        }
    }

    fn publish(&self) {
        let waiting = self.waiting.lock();
        // Held while reporting: of two changes the later one must be the one that stays.
        match waiting.values().find(|trouble| trouble.general).or_else(|| waiting.values().next()) {
            Some(trouble) if trouble.general => self.health.down(trouble.reason.as_str()),
            Some(trouble) => self.health.degraded(trouble.reason.as_str()),
            None => self.health.up(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::health::{Health, State};

    fn error(text: &str) -> AttemptError {
        AttemptError::Query(clickhouse::error::Error::BadResponse(text.to_owned()).into())
    }

    fn range(partition: u32) -> RangeId {
        RangeId { topic: "events".into(), partition, first: 1, last: 9, mark: None }
    }

    #[test]
    fn health_names_the_range_and_the_cause_and_clears() {
        let health = Health::default();
        let report = Report::new(health.component("sink"), "o");
        let now = || health.snapshot()["sink"].clone();
        report.started();
        report.failed(&range(0), 1, &error("Code: 27. DB::Exception: bad row"));
        assert_eq!(now().state, State::Degraded);
        assert!(now().reason.unwrap_or_default().contains("events:0:1-9"));
        report.failed(&range(1), 1, &error("Code: 60. DB::Exception: Table o.events does not exist"));
        assert_eq!(now().state, State::Down);
        assert!(now().reason.unwrap_or_default().contains("`ingestion-engine migrate`"));
        report.resolved(&range(1));
        assert_eq!(now().state, State::Degraded);
        report.resolved(&range(0));
        assert_eq!((now().state, now().reason), (State::Up, None));
    }
}

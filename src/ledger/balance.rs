//! The sums: what was counted, held against each other. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::store::Found;
use crate::{
    ids::{TenantId, WalId},
    wal::{Account, Holdings},
};

/// Whose the records are of which nobody knows whose they are.
pub const UNKNOWN: TenantId = TenantId(Uuid::max());

/// The terms of the equation, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// In requests of which anything was taken, or everything was refused event by event.
    pub received: i64,
    /// Refused, each with a reason.
    pub rejected: i64,
    /// Not wanted by a plugin.
    pub dropped: i64,
    /// Of an id that was received before, by this node or, as the sink found, by another.
    pub duplicate: i64,
    /// On this node's disk, on its way.
    pub in_wal: i64,
    /// In the topic, not stored yet.
    pub in_broker: i64,
    /// Rows of `events`.
    pub stored: i64,
    /// Waiting for a plugin.
    pub parked: i64,
    /// Undeliverable, with a reason.
    pub dead_lettered: i64,
    /// On request.
    pub erased: i64,
    /// Their retention is over.
    pub expired: i64,
    /// Of records that were found damaged, where these say whose they are: lost, and not missing.
    pub damaged: i64,
}

impl Terms {
    /// The equation's right side.
    fn found(&self) -> i64 {
        let Self { rejected, dropped, duplicate, in_wal, in_broker, stored, parked, .. } = self;
        let Self { dead_lettered, erased, expired, damaged, .. } = self;
        rejected
            + dropped
            + duplicate
            + in_wal
            + in_broker
            + stored
            + parked
            + dead_lettered
            + erased
            + expired
            + damaged
    }

    /// What is missing; negative when there is more than was received.
    pub fn difference(&self) -> i64 {
        self.received - self.found()
    }

    fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.rejected += other.rejected;
        self.dropped += other.dropped;
        self.duplicate += other.duplicate;
        self.in_wal += other.in_wal;
        self.in_broker += other.in_broker;
        self.stored += other.stored;
        self.parked += other.parked;
        self.dead_lettered += other.dead_lettered;
        self.erased += other.erased;
        self.expired += other.expired;
        self.damaged += other.damaged;
    }
}

/// Where events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Between the request and the log.
    Front,
    /// In the log, or on the way from it.
    Wal,
    /// In the topic, or on the way from it.
    Broker,
    /// In ClickHouse's tables.
    Clickhouse,
}

impl StageName {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Wal => "wal",
            Self::Broker => "broker",
            Self::Clickhouse => "clickhouse",
        }
    }
}

/// A sum that does not come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Where.
    pub stage: StageName,
    /// Events that are missing; negative when there are more than there should be.
    pub missing: i64,
    /// Of how many of them it cannot be determined whether they are lost, or were replaced by a later repeat.
    pub undetermined: i64,
    /// Events that were damaged there. They are in the equation, and lost all the same.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub damaged: i64,
}

/// One tenant's ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantReport {
    /// Whose; the highest id that there is stands for records of which nobody knows whose they are.
    pub tenant_id: TenantId,
    /// Its name, where it has one and it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// The terms.
    #[serde(flatten)]
    pub terms: Terms,
    /// What is missing of `received`: of the stages that miss something, together.
    pub missing: i64,
    /// What there is too much: of the other stages. One does not make up for the other.
    pub too_many: i64,
    /// More may be missing: of some lost records nobody knows how many events they held, and each counts as one.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub at_least: bool,
    /// Nothing is missing, nothing damaged, and nothing too much.
    pub balanced: bool,
    /// Where it is not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stages: Vec<Stage>,
}

impl TenantReport {
    fn new(tenant_id: TenantId, terms: Terms, stages: Vec<Stage>) -> Self {
        let missing = stages.iter().map(|stage| stage.missing.max(0)).sum();
        let too_many = stages.iter().map(|stage| (-stage.missing).max(0)).sum();
        let balanced = stages.is_empty() && terms.difference() == 0;
        Self { tenant_id, name: None, terms, missing, too_many, at_least: false, balanced, stages }
    }
}

/// How far the log's books had come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The id of the log under which the last record was written.
    pub wal_id: Option<WalId>,
    /// The last record.
    pub seq: u64,
    /// Records up to here had left the log.
    pub done: u64,
}

/// A ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether every tenant's is balanced.
    pub balanced: bool,
    /// Since when events are in the books.
    pub since: Timestamp,
    /// Which events these are.
    pub cut: Cut,
    /// The sum of all tenants.
    pub total: Terms,
    /// What is missing, of all tenants together.
    pub missing: i64,
    /// What there is too much, of all tenants together: what one of them has too much is not another's that is missing.
    pub too_many: i64,
    /// Of how many of them it cannot be determined whether they are lost.
    pub undetermined: i64,
    /// By tenant.
    pub tenants: Vec<TenantReport>,
}

impl Report {
    pub(super) fn new(since: Timestamp, cut: Cut, tenants: Vec<TenantReport>) -> Self {
        let mut total = Terms::default();
        for tenant in &tenants {
            total.add(&tenant.terms);
        }
        let undetermined = tenants.iter().flat_map(|tenant| &tenant.stages).map(|stage| stage.undetermined).sum();
        let balanced = tenants.iter().all(|tenant| tenant.balanced);
        let missing = tenants.iter().map(|tenant| tenant.missing).sum();
        let too_many = tenants.iter().map(|tenant| tenant.too_many).sum();
        Self { balanced, since, cut, total, missing, too_many, undetermined, tenants }
    }
}

/// Holds what was found against the books.
pub(super) fn balance(holdings: &Holdings, found: &BTreeMap<TenantId, Found>) -> Report {
    let tenants: BTreeSet<TenantId> =
        holdings.accounts.keys().chain(holdings.events.keys()).chain(found.keys()).copied().collect();
    let mut reports: Vec<TenantReport> = tenants.into_iter().map(|tenant| of_tenant(tenant, holdings, found)).collect();
    if holdings.lost > 0 {
        let missing = signed(holdings.lost);
        let terms = Terms { received: missing, ..Terms::default() };
        let stages = vec![Stage { stage: StageName::Wal, missing, undetermined: 0, damaged: 0 }];
        let at_least = holdings.vague > 0;
        reports.push(TenantReport { at_least, ..TenantReport::new(UNKNOWN, terms, stages) });
    }
    let cut =
        Cut { wal_id: holdings.openings.last().map(|opening| opening.wal_id), seq: holdings.cut, done: holdings.done };
    let since = Timestamp::from_millisecond(holdings.since_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    Report::new(since, cut, reports)
}

fn of_tenant(tenant: TenantId, holdings: &Holdings, found: &BTreeMap<TenantId, Found>) -> TenantReport {
    let Account { received, rejected, dropped, duplicates, appended, damaged } =
        holdings.accounts.get(&tenant).copied().unwrap_or_default();
    let found = found.get(&tenant).copied().unwrap_or_default();
    let in_wal = signed(holdings.events.get(&tenant).copied().unwrap_or(0));
    // Rows that were inserted and whose time is not over: there, or erased, or missing.
    let missing = found.inserted_live - found.stored - found.parked - found.erased_stored_live;
    let undetermined = missing.clamp(0, found.may_be_replaced);
    let terms = Terms {
        received: signed(received),
        rejected: signed(rejected),
        dropped: signed(dropped) + found.left_dropped,
        duplicate: signed(duplicates) + found.left_duplicate,
        in_wal,
        in_broker: found.in_broker,
        stored: found.stored,
        parked: found.parked,
        dead_lettered: found.dead_lettered - found.letters_gone,
        // Rows that were erased before their time was over count here for ever, and not among those whose time is over.
        erased: found.erased_stored_live + found.erased_stored_over + found.left_erased,
        expired: found.inserted_over - found.erased_stored_over + found.left_expired,
        damaged: signed(damaged),
    };
    let arrived = found.inserted_live
        + found.inserted_over
        + found.left_erased
        + found.left_expired
        + found.left_dropped
        + found.left_duplicate
        + found.dead_lettered;
    let appended = signed(appended);
    let front = signed(received) - signed(rejected) - signed(dropped) - signed(duplicates) - appended;
    // What the log has lost it has named.
    let behind = if found.through_broker && holdings.missing == 0 { StageName::Broker } else { StageName::Wal };
    let damaged = signed(damaged);
    let left_wal = appended - in_wal - damaged - found.in_broker - arrived;
    let in_log = if behind == StageName::Wal { left_wal } else { 0 };
    let in_topic = if behind == StageName::Broker { left_wal } else { 0 };
    let stages: Vec<_> = [
        Stage { stage: StageName::Front, missing: front, undetermined: 0, damaged: 0 },
        Stage { stage: StageName::Wal, missing: in_log, undetermined: 0, damaged },
        Stage { stage: StageName::Broker, missing: in_topic, undetermined: 0, damaged: 0 },
        Stage { stage: StageName::Clickhouse, missing: missing + found.letters_gone, undetermined, damaged: 0 },
    ]
    .into_iter()
    .filter(|stage| stage.missing != 0 || stage.damaged != 0)
    .collect();
    TenantReport::new(tenant, terms, stages)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &i64) -> bool {
    *count == 0
}

/// A count, which a bug of the front may have made negative.
fn signed(count: u64) -> i64 {
    count.cast_signed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;

    const TENANT: TenantId = TenantId(Uuid::from_u128(7));

    fn report(account: Account, in_wal: u64, found: Found) -> TenantReport {
        let holdings =
            Holdings { accounts: [(TENANT, account)].into(), events: [(TENANT, in_wal)].into(), ..Holdings::default() };
        let report = balance(&holdings, &[(TENANT, found)].into());
        assert_eq!(report.total, report.tenants[0].terms);
        report.tenants[0].clone()
    }

    fn whole() -> (Account, u64, Found) {
        let account =
            Account { received: 125, rejected: 3, dropped: 2, duplicates: 20, appended: 100, ..Account::default() };
        let found = Found {
            inserted_live: 60,
            inserted_over: 10,
            stored: 50,
            parked: 5,
            erased_stored_live: 5,
            erased_stored_over: 1,
            left_erased: 1,
            left_expired: 2,
            left_dropped: 3,
            left_duplicate: 2,
            dead_lettered: 2,
            ..Found::default()
        };
        (account, 20, found)
    }

    fn stages(report: &TenantReport) -> Vec<(StageName, i64)> {
        report.stages.iter().map(|stage| (stage.stage, stage.missing)).collect()
    }

    #[test]
    fn what_is_whole_balances() {
        let (account, in_wal, found) = whole();
        let report = report(account, in_wal, found);
        assert!(report.balanced && report.stages.is_empty() && report.terms.difference() == 0, "{report:?}");
        assert_eq!((report.terms.erased, report.terms.expired, report.terms.dropped), (7, 11, 5));
        assert_eq!(report.terms.duplicate, 22);
    }

    #[test]
    fn what_is_missing_or_too_much_is_found_where_it_is() {
        let (account, in_wal, found) = whole();
        let row = report(account, in_wal, Found { stored: 49, ..found });
        assert_eq!((row.balanced, row.terms.difference(), stages(&row)), (false, 1, vec![(StageName::Clickhouse, 1)]));
        let twice = report(account, in_wal, Found { stored: 51, ..found });
        assert_eq!((twice.balanced, stages(&twice)), (false, vec![(StageName::Clickhouse, -1)]));
        let record = report(account, in_wal - 4, found);
        assert_eq!((record.balanced, record.terms.difference()), (false, 4));
        assert_eq!(stages(&record), [(StageName::Wal, 4)]);
        let message = Found { in_broker: 10, through_broker: true, ..found };
        assert!(report(account, in_wal - 10, message).balanced);
        let message = report(account, in_wal - 10, Found { in_broker: 9, ..message });
        assert_eq!((message.terms.difference(), stages(&message)), (1, vec![(StageName::Broker, 1)]));
        let front = report(Account { received: 126, ..account }, in_wal, found);
        assert_eq!((front.balanced, stages(&front)), (false, vec![(StageName::Front, 1)]));
    }

    #[test]
    fn rows_that_repeats_can_have_replaced_are_missed_and_said_to_be_undetermined() {
        let (account, in_wal, found) = whole();
        for (stored, missing, undetermined) in [(48, 2, 2), (46, 4, 3)] {
            let report = report(account, in_wal, Found { stored, may_be_replaced: 3, ..found });
            let stage = Stage { stage: StageName::Clickhouse, missing, undetermined, damaged: 0 };
            assert_eq!((report.balanced, report.missing, &report.stages[..]), (false, missing, &[stage][..]));
        }
        assert!(report(account, in_wal, Found { may_be_replaced: 3, ..found }).balanced);
    }

    #[test]
    fn letters_that_are_gone_are_missed() {
        let (account, in_wal, found) = whole();
        let report = report(account, in_wal, Found { letters_gone: 1, ..found });
        assert_eq!((report.missing, stages(&report)), (1, vec![(StageName::Clickhouse, 1)]));
        assert_eq!(report.terms.dead_lettered, 1);
    }

    #[test]
    fn what_one_has_too_much_hides_nothing_that_another_misses() {
        let (account, in_wal, found) = whole();
        // Of one tenant a row too many, of another one is missing, of a third both, at two stages.
        let tenants = [1, 2, 3].map(|id| TenantId(Uuid::from_u128(id)));
        let holdings = Holdings {
            accounts: tenants.map(|tenant| (tenant, account)).into(),
            events: tenants.map(|tenant| (tenant, in_wal - u64::from(tenant == tenants[2]))).into(),
            ..Holdings::default()
        };
        let stored = [51, 49, 51];
        let found = tenants.into_iter().zip(stored).map(|(tenant, stored)| (tenant, Found { stored, ..found }));
        let report = balance(&holdings, &found.collect());
        let sums = |tenant: &TenantReport| (tenant.balanced, tenant.missing, tenant.too_many);
        assert_eq!(report.tenants.iter().map(sums).collect::<Vec<_>>(), [(false, 0, 1), (false, 1, 0), (false, 1, 1)]);
        assert_eq!((report.total.difference(), report.missing, report.too_many), (0, 2, 2));
        let table = super::super::table(&report);
        let total = table.lines().find(|line| line.starts_with("total")).unwrap_or_default();
        assert!(total.split_whitespace().rev().take(2).eq(["2", "2"]), "{table}");
        let one = report.of(tenants[1]);
        assert_eq!((one.missing, one.too_many), (1, 0));
    }

    #[test]
    fn records_of_nobody_never_balance() {
        for vague in [0, 1] {
            let report = balance(&Holdings { lost: 2, vague, ..Holdings::default() }, &BTreeMap::new());
            assert!(!report.balanced);
            assert_eq!((report.tenants[0].tenant_id, stages(&report.tenants[0])), (UNKNOWN, vec![(StageName::Wal, 2)]));
            let text = crate::ledger::table(&report);
            let expected = if vague > 0 { "at least 2 events missing" } else { "unknown tenant: 2 events missing" };
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn what_was_damaged_is_not_missing_and_does_not_balance() {
        let (account, in_wal, found) = whole();
        let damaged = Account { damaged: 4, ..account };
        for through_broker in [false, true] {
            let found = Found { through_broker, ..found };
            let report = report(damaged, in_wal - 4, found);
            assert_eq!((report.terms.damaged, report.missing, report.balanced), (4, 0, false));
            let stage = Stage { stage: StageName::Wal, missing: 0, undetermined: 0, damaged: 4 };
            assert_eq!(report.stages, [stage]);
        }
        let report = report(damaged, in_wal - 6, found);
        let stage = Stage { stage: StageName::Wal, missing: 2, undetermined: 0, damaged: 4 };
        assert_eq!((report.missing, report.stages), (2, vec![stage]));
    }
}

//! The ledger for people.

use std::fmt::Write as _;

use super::{Report, StageName, TenantReport, Terms, UNKNOWN};
use crate::table::aligned;

/// A line for each tenant and one for all of them, and a sentence for each difference.
pub fn table(report: &Report) -> String {
    let row = |name: String, terms: &Terms, (missing, too_many): (i64, i64)| {
        [
            name,
            terms.received.to_string(),
            terms.rejected.to_string(),
            terms.dropped.to_string(),
            terms.duplicate.to_string(),
            terms.in_wal.to_string(),
            terms.in_broker.to_string(),
            terms.stored.to_string(),
            terms.parked.to_string(),
            terms.dead_lettered.to_string(),
            terms.erased.to_string(),
            terms.expired.to_string(),
            terms.damaged.to_string(),
            missing.to_string(),
            too_many.to_string(),
        ]
    };
    let name = |tenant: &TenantReport| match (&tenant.name, tenant.tenant_id) {
        (_, UNKNOWN) => "unknown tenant".to_owned(),
        (Some(name), id) => format!("{name} ({id})"),
        (None, id) => id.to_string(),
    };
    let of_tenant = |tenant: &TenantReport| row(name(tenant), &tenant.terms, (tenant.missing, tenant.too_many));
    let mut rows: Vec<_> = report.tenants.iter().map(of_tenant).collect();
    rows.push(row("total".to_owned(), &report.total, (report.missing, report.too_many)));
    let head = [
        "TENANT",
        "RECEIVED",
        "REJECTED",
        "DROPPED",
        "DUPLICATE",
        "IN WAL",
        "IN BROKER",
        "STORED",
        "PARKED",
        "DEAD",
        "ERASED",
        "EXPIRED",
        "DAMAGED",
        "MISSING",
        "TOO MANY",
    ];
    let mut text = aligned(head, &rows, "");
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        writeln!(text, "{arguments}").unwrap_or(());
    };
    line(format_args!("Events since {}, up to record {} of the log.", report.since, report.cut.seq));
    for tenant in &report.tenants {
        for stage in &tenant.stages {
            let name = name(tenant);
            let (count, what) = (stage.missing.unsigned_abs(), if stage.missing > 0 { "missing" } else { "too many" });
            let place = match stage.stage {
                StageName::Front => "front: between the request and the log",
                StageName::Wal => "wal: in the write-ahead log, or between it and ClickHouse",
                StageName::Broker => "broker: in the log, the topic, or between these and ClickHouse",
                StageName::Clickhouse => "clickhouse: among the rows that were inserted",
            };
            let at_least = if tenant.at_least { "at least " } else { "" };
            if stage.missing != 0 {
                line(format_args!("{name}: {at_least}{count} events {what} at stage {place}"));
            }
            if stage.damaged != 0 {
                let damaged = stage.damaged;
                line(format_args!(
                    "{name}: {damaged} events lost at stage wal: in records of the log that were damaged"
                ));
            }
            if stage.undetermined > 0 {
                line(format_args!(
                    "    cannot be determined: {} of them, lost or replaced by a later repeat (this tenant sends events late)",
                    stage.undetermined
                ));
            }
        }
    }
    line(format_args!("{}", if report.balanced { "Balanced." } else { "It does not balance." }));
    text
}

//! Medians, spread, targets and ratios, as Markdown and as JSON.

use std::collections::BTreeMap;

use load::stats::shown;
use serde_json::{Value, json};

use crate::{measure::Figures, options::Options};

/// Every figure of one build, by name.
#[derive(Clone, Default)]
pub struct Results(BTreeMap<&'static str, Vec<f64>>);

/// What the runs gave for one figure.
#[derive(Clone, Copy)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Results {
    pub fn add(&mut self, figures: Figures) {
        for (key, value) in figures {
            self.0.entry(key).or_default().push(value);
        }
    }

    fn summary(&self, key: &str) -> Option<Summary> {
        let mut values = self.0.get(key)?.clone();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) };
        Some(Summary { median, least: at(0), most: at(values.len().saturating_sub(1)) })
    }
}

#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    None,
}

impl Target {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::None => None,
        }
    }

    fn shown(self, value: f64) -> String {
        let met = |met: bool| if met { "met" } else { "missed" };
        match self {
            Self::AtLeast(least) => format!("≥ {}, {}", shown(least), met(value >= least)),
            Self::AtMost(most) => format!("≤ {}, {}", shown(most), met(value <= most)),
            Self::None => "–".to_owned(),
        }
    }
}

struct Row {
    key: &'static str,
    what: &'static str,
    unit: &'static str,
    target: Target,
    /// The limit that it is held against.
    limit: &'static str,
}

const fn row(key: &'static str, what: &'static str, unit: &'static str, target: Target, limit: &'static str) -> Row {
    Row { key, what, unit, target, limit }
}

use Target::{AtLeast, AtMost};

const ROWS: &[Row] = &[
    row("accept_100", "accepted with fsync, sink off, batches of 100", "events/s", AtLeast(600_000.0), "http_100"),
    row("accept_10", "the same, batches of 10", "events/s", AtLeast(250_000.0), "http_10"),
    row("accept_1", "the same, single events", "events/s", AtLeast(50_000.0), "http_1"),
    row("embedded", "end to end, embedded, batches of 100", "events/s", AtLeast(200_000.0), "insert"),
    row("broker", "end to end through the broker (Tansu), batches of 100", "events/s", AtLeast(150_000.0), "insert"),
    row("cpu", "engine's CPU, end to end, embedded", "s/million", AtMost(4.0), "parse_cpu"),
    row("broker_cpu", "engine's CPU, end to end through the broker", "s/million", Target::None, "parse_cpu"),
    row("clickhouse_cpu", "ClickHouse's CPU, end to end, embedded", "s/million", Target::None, "insert_cpu"),
    row("ack_p50", "acknowledgement p50 at the rate, batches of 10", "ms", Target::None, "append_p50"),
    row("ack_p99", "acknowledgement p99 at the rate, batches of 10", "ms", AtMost(10.0), "append_p99"),
    row("queryable_p50", "event to queryable p50 at the rate", "s", Target::None, ""),
    row("queryable_p99", "event to queryable p99 at the rate", "s", AtMost(1.0), ""),
    // 200 MB, in MiB.
    row("rss", "engine's peak memory, end to end, embedded", "MiB", AtMost(200e6 / 1_048_576.0), ""),
    row("broker_rss", "engine's peak memory, end to end through the broker", "MiB", Target::None, ""),
    row("ready", "kill -9 to ready, with a full log", "s", AtMost(1.0), ""),
    row("drain", "drain after an outage, in times the ingest rate", "times", AtLeast(3.0), "insert_drain"),
];

const LIMITS: &[Row] = &[
    row("http_100", "axum that only reads the body, batches of 100", "events/s", Target::None, ""),
    row("http_10", "the same, batches of 10", "events/s", Target::None, ""),
    row("http_1", "the same, single events", "events/s", Target::None, ""),
    row("append_mb", "append to a bare file with fdatasync, 64 KiB each", "MB/s", Target::None, ""),
    row("append_p50", "the same, p50 of one", "ms", Target::None, ""),
    row("append_p99", "the same, p99 of one", "ms", Target::None, ""),
    row("parse", "parsing alone (sonic-rs, borrowed), one core", "events/s", Target::None, ""),
    row("parse_cpu", "the same", "s/million", Target::None, ""),
    row(
        "insert",
        "direct insert of the same rows, views on (Native, 50,000 rows, two at once)",
        "rows/s",
        Target::None,
        "",
    ),
    row("insert_cpu", "the same, ClickHouse's CPU", "s/million", Target::None, ""),
    row("insert_drain", "the same, in times the ingest rate", "times", Target::None, ""),
    row("generator_cpu", "the load generator's CPU, end to end, embedded", "s/million", Target::None, ""),
];

fn spread(summary: Summary) -> String {
    format!("{} to {}", shown(summary.least), shown(summary.most))
}

/// The table for people.
pub fn print(options: &Options, machine: &[(&'static str, String)], results: &[Results], failed: &[String]) {
    println!();
    for (name, value) in machine {
        println!("- {name}: {value}");
    }
    println!(
        "- the rate: {} events/s; the outage: {} s; the full log: {} bytes",
        options.rate, options.outage, options.wal_bytes
    );
    println!();
    match results {
        [this, base] => compare(this, base),
        [this] => alone(this),
        _ => {}
    }
    println!();
    if failed.is_empty() {
        println!("Every acknowledged event of every run was stored once.");
    } else {
        println!("FAILED:");
        for failure in failed {
            println!("- {failure}");
        }
    }
}

fn alone(results: &Results) {
    println!("| what | unit | median | spread | target | ratio to the limit |");
    println!("|---|---|--:|--:|--:|--:|");
    for row in ROWS {
        let Some(found) = results.summary(row.key) else { continue };
        let limit = results.summary(row.limit);
        let ratio = limit.map_or_else(|| "–".to_owned(), |limit| format!("{:.2}", found.median / limit.median));
        let target = row.target.shown(found.median);
        println!("| {} | {} | {} | {} | {target} | {ratio} |", row.what, row.unit, shown(found.median), spread(found));
    }
    println!("\n| limit, in the same runs | unit | median | spread |");
    println!("|---|---|--:|--:|");
    for row in LIMITS {
        let Some(found) = results.summary(row.key) else { continue };
        println!("| {} | {} | {} | {} |", row.what, row.unit, shown(found.median), spread(found));
    }
}

fn compare(this: &Results, base: &Results) {
    println!("| what | unit | base | spread | this | spread | ratio |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for row in ROWS {
        let (Some(this), Some(base)) = (this.summary(row.key), base.summary(row.key)) else { continue };
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.3} |",
            row.what,
            row.unit,
            shown(base.median),
            spread(base),
            shown(this.median),
            spread(this),
            this.median / base.median
        );
    }
}

/// The same for machines.
pub fn json(options: &Options, machine: &[(&'static str, String)], results: &[Results], failed: &[String]) -> Value {
    let machine: BTreeMap<_, _> = machine.iter().cloned().collect();
    json!({
        "machine": machine,
        "settings": {
            "runs": options.runs,
            "seconds": options.seconds,
            "rate": options.rate,
            "outage_seconds": options.outage,
            "wal_bytes": options.wal_bytes,
            "backlog": options.backlog,
            "broker_backlog": options.broker_backlog,
        },
        "rows": ROWS.iter().filter_map(|row| row_json(row, results)).collect::<Vec<_>>(),
        "limits": LIMITS.iter().filter_map(|row| row_json(row, results)).collect::<Vec<_>>(),
        "failed": failed,
    })
}

fn row_json(row: &Row, results: &[Results]) -> Option<Value> {
    let this = results.first()?;
    let found = this.summary(row.key)?;
    let limit = this.summary(row.limit);
    let base = results.get(1).and_then(|base| base.summary(row.key));
    let target = match row.target {
        AtLeast(value) => json!({"at_least": value}),
        AtMost(value) => json!({"at_most": value}),
        Target::None => Value::Null,
    };
    Some(json!({
        "key": row.key,
        "what": row.what,
        "unit": row.unit,
        "median": found.median,
        "least": found.least,
        "most": found.most,
        "samples": this.0.get(row.key),
        "target": target,
        "met": row.target.is_met(found.median),
        "limit": limit.map(|limit| json!({"key": row.limit, "median": limit.median, "ratio": found.median / limit.median})),
        "base": base.map(|base| {
            json!({"median": base.median, "least": base.least, "most": base.most, "ratio": found.median / base.median})
        }),
    }))
}

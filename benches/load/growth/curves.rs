//! The curves in words: a table of each, whether it is flat, and if not why.

use std::fmt::Write as _;

use load::stats::shown;

use crate::{
    points::Dimension,
    results::{Curve, Document, Measured},
};

/// A curve that stays within this ratio, from its least to its most, is flat: what runs of the same point differ by on a
/// machine that others share.
const FLAT: f64 = 1.25;

/// A figure of a table: its key, or one made of several, and its head.
type Column = (&'static str, &'static str);

impl Dimension {
    /// What grows, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tenants => "Tenants",
            Self::Depth => "Bytes in the log",
            Self::Partitions => "Partitions, through a broker",
            Self::Batch => "Events in a request",
            Self::Connections => "Connections",
            Self::Size => "Size of an event",
            Self::Mix => "Types of events",
        }
    }

    /// What of it the table shows beside cost and rate.
    fn columns(self) -> &'static [Column] {
        match self {
            Self::Tenants => &[
                ("tenants_seen", "tenants that sent"),
                ("memory_idle", "MiB before"),
                ("memory", "MiB at most"),
                ("rows_per_insert", "rows an insert"),
                ("view_rows", "rows of views an event"),
            ],
            Self::Depth => &[
                ("writer_thread", "its writer thread s/M"),
                ("ack_p99", "ack p99, ms"),
                ("memory", "MiB"),
                ("killed_gb", "GB when killed"),
                ("ready", "kill -9 to ready, s"),
                ("memory_started", "MiB then"),
            ],
            Self::Partitions => &[
                ("relay_thread", "its relay thread s/M"),
                ("sink_cpu", "sink s/M"),
                ("poll_thread", "its polling thread s/M"),
                ("broker_cpu", "test broker s/M"),
                ("messages", "messages an event"),
                ("bytes_to_broker", "B to the broker an event"),
                ("rows_per_insert", "rows an insert"),
                ("inserts", "inserts/s"),
            ],
            Self::Batch | Self::Connections => &[
                ("ack_p50", "ack p50, ms"),
                ("ack_p99", "ack p99, ms"),
                ("commits", "fsyncs/s"),
                ("rows_per_insert", "rows an insert"),
                ("memory", "MiB at most"),
            ],
            Self::Size => &[
                ("engine_gb", "engine s/GB"),
                ("clickhouse_gb", "ClickHouse s/GB"),
                ("log_bytes", "log B an event"),
                ("stored_bytes", "stored B an event"),
            ],
            Self::Mix => &[
                ("body_bytes", "body B an event"),
                ("log_bytes", "log B an event"),
                ("stored_bytes", "stored B an event"),
            ],
        }
    }

    /// Why the engines' cost has a slope, where it is not flat.
    fn reason(self) -> &'static str {
        match self {
            Self::Tenants => {
                "A request is of one tenant, and so is a record of the log: a tenant is a look-up, whose tables no longer fit into \
                 the caches of the processor when there are many."
            }
            Self::Depth => {
                "The log is a row of generations of which only the last is written, and a start opens that one alone; those before \
                 it are closed files. What its writer takes more at 10 GB is the system's: there half of its time is the copy \
                 into the page cache (perf), and its own work is as before."
            }
            Self::Partitions => {
                "A message holds events of one partition, of the requests that waited together: the more partitions, the fewer in \
                 each, and each is produced, acknowledged, fetched and decoded by itself."
            }
            Self::Batch => {
                "What a request costs (its head, key, quota, answer, and system calls at both ends), its events share: a + b / \
                 batch. Of single events six tenths of the time are the system's (perf): waking the threads that hand a request \
                 on, and sockets."
            }
            Self::Connections => {
                "With few connections few requests share an fsync and what the writer does around it. Beyond that, more of them \
                 change nothing but memory: an event waits longer for its turn."
            }
            Self::Size => {
                "Bytes are read, checked, compressed and written, and read and compressed again for ClickHouse: a + b times the size. \
                 That of a byte falls until there is little in an event but bytes. Of events of 16 kB LZ4 takes a third of the time, and the system half (perf)."
            }
            Self::Mix => {
                "Types differ in what there is to check and store: a performance event has eight numbers, custom ones nested \
                 properties, and every field without a column of its own is written into `properties`."
            }
        }
    }

    /// Why ClickHouse's cost has a slope that its inserts do not explain.
    fn reason_of_clickhouse(self) -> &'static str {
        match self {
            Self::Tenants => {
                "Beside that the views keep more rows (the last column): one for each tenant, type and minute, and one for each \
                 tenant, path and day. How much of the cost is theirs was not told apart: it follows the rows of an insert more."
            }
            Self::Size => "The bytes are read, compressed and written, and again in each merge.",
            Self::Mix => {
                "A view has rows of its type alone: pageviews are counted by path and day, performance events go into states of \
                 quantiles, the others into the minutes only."
            }
            Self::Depth | Self::Partitions | Self::Batch | Self::Connections => "",
        }
    }
}

/// A figure, or one that is made of others.
pub fn value(point: &Measured, key: &str) -> Option<f64> {
    let per_gigabyte = |key: &str| Some(point.median(key)? * 1e3 / point.median("body_bytes")?);
    match key {
        "engine_gb" => per_gigabyte("engine_cpu"),
        "clickhouse_gb" => per_gigabyte("clickhouse_cpu"),
        _ => point.median(key),
    }
}

/// All curves as Markdown.
pub fn text(document: &Document) -> String {
    let mut text = String::new();
    // One of which every point failed is told of too.
    let curves = Dimension::ALL.into_iter().filter_map(|one| Some((one, document.curves.get(one.key())?)));
    for (dimension, curve) in curves {
        // Writing to a String cannot fail.
        writeln!(text, "\n### {}\n", dimension.title()).unwrap_or(());
        if !curve.points.is_empty() {
            text += &table(dimension, curve);
            writeln!(text, "\n{}", sentence(dimension, curve)).unwrap_or(());
        }
        let told = [("Left out", &curve.left_out), ("FAILED", &curve.failed)];
        for (what, points) in told.into_iter().filter(|(_, points)| !points.is_empty()) {
            writeln!(text, "\n{what}:\n").unwrap_or(());
            for point in points {
                writeln!(text, "- {}", point.trim().replace('\n', " ")).unwrap_or(());
            }
        }
    }
    text
}

fn table(dimension: Dimension, curve: &Curve) -> String {
    let usual = [("rate", "events/s"), ("engine_cpu", "engine s/M"), ("clickhouse_cpu", "ClickHouse s/M")];
    let columns = usual.iter().chain(dimension.columns());
    let columns: Vec<&Column> =
        columns.filter(|(key, _)| curve.points.iter().any(|point| value(point, key).is_some())).collect();
    let heads: Vec<&str> = columns.iter().map(|(_, head)| *head).collect();
    let mut text = format!("| | {} |\n|---|{}\n", heads.join(" | "), "--:|".repeat(heads.len()));
    for point in &curve.points {
        let cells = columns.iter().map(|(key, _)| value(point, key).map_or_else(|| "–".to_owned(), cell));
        let cells: Vec<String> = cells.collect();
        writeln!(text, "| {} | {} |", point.label, cells.join(" | ")).unwrap_or(());
    }
    text
}

/// A count has no decimals.
fn cell(value: f64) -> String {
    let text = shown(value);
    match text.split_once('.') {
        Some((whole, _)) if value >= 1.0 && value.fract() == 0.0 => whole.to_owned(),
        _ => text,
    }
}

/// Whether it is flat, and why not.
fn sentence(dimension: Dimension, curve: &Curve) -> String {
    let slope = |key, name| Slope::of(curve, key, name);
    let engines: Vec<Slope> =
        [slope("engine_cpu", "Engine"), slope("sink_cpu", "Sink")].into_iter().flatten().collect();
    let mut words: Vec<String> = engines.iter().map(Slope::words).collect();
    if !engines.iter().all(Slope::is_flat) {
        words.push(dimension.reason().to_owned());
    }
    if let Some(clickhouse) = slope("clickhouse_cpu", "ClickHouse") {
        words.push(clickhouse.words());
        if !clickhouse.is_flat() {
            words.extend(inserts(curve));
            words.push(dimension.reason_of_clickhouse().to_owned());
        }
    }
    words.retain(|words| !words.is_empty());
    words.join(" ")
}

/// What of ClickHouse's cost is that of its inserts, where they differ.
fn inserts(curve: &Curve) -> Option<String> {
    let rows = || curve.points.iter().filter_map(|point| point.median("rows_per_insert"));
    let (least, most) = (rows().fold(f64::INFINITY, f64::min), rows().fold(0.0, f64::max));
    (most > least * FLAT).then(|| {
        format!(
            "An insert costs what it costs whatever its rows (a part with its files and fsyncs in the table and in each of the \
             views' three targets), goes out after half a second (or when its turn comes, while inserts take longer), and \
             has {} to {} rows here.",
            shown(least),
            shown(most)
        )
    })
}

/// From the least to the most of a curve.
struct Slope<'a> {
    name: &'a str,
    least: (&'a str, f64),
    most: (&'a str, f64),
}

impl<'a> Slope<'a> {
    fn of(curve: &'a Curve, key: &str, name: &'a str) -> Option<Self> {
        let points = curve.points.iter().filter_map(|point| Some((point.label.as_str(), point.median(key)?)));
        let least = points.clone().min_by(|one, other| one.1.total_cmp(&other.1))?;
        let most = points.max_by(|one, other| one.1.total_cmp(&other.1))?;
        (least.1 > 0.0).then_some(Self { name, least, most })
    }

    fn ratio(&self) -> f64 {
        self.most.1 / self.least.1
    }

    fn is_flat(&self) -> bool {
        self.ratio() <= FLAT
    }

    fn words(&self) -> String {
        let Self { name, least, most } = self;
        if self.is_flat() {
            return format!("{name}: flat ({} to {} s a million).", shown(least.1), shown(most.1));
        }
        format!(
            "{name}: from {} s a million ({}) to {} ({}), a factor of {:.1}.",
            shown(least.1),
            least.0,
            shown(most.1),
            most.0,
            self.ratio()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::sentence;
    use crate::{
        points::Dimension,
        results::{Curve, Figure, Measured},
    };

    fn curve(costs: &[f64]) -> Curve {
        let points = costs.iter().map(|cost| Measured {
            x: 1.0,
            label: cost.to_string(),
            figures: BTreeMap::from([(
                "engine_cpu".to_owned(),
                Figure { median: *cost, least: *cost, most: *cost, samples: vec![*cost] },
            )]),
        });
        Curve { points: points.collect(), ..Curve::default() }
    }

    #[test]
    fn a_curve_is_flat_or_has_a_reason() {
        assert_eq!(sentence(Dimension::Depth, &curve(&[5.0, 5.5, 5.2])), "Engine: flat (5.00 to 5.50 s a million).");
        let steep = sentence(Dimension::Batch, &curve(&[40.0, 8.0]));
        assert!(steep.starts_with("Engine: from 8.00 s a million (8) to 40.0 (40), a factor of 5.0. What"), "{steep}");
    }
}

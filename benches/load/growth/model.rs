//! What N nodes, a Redpanda and a ClickHouse would carry, reckoned from the measured costs.
//!
//! ```text
//! figures --fit--> cost of an event, of a request, of a message, of an insert   (measured)
//!                  x  events/s, partitions, rows an insert                      (assumed, or by a formula)
//!                  /  utilization                                               (cited)     --> cores, bytes, disk, what is full first
//! ```
//! Every number in the text is marked: measured (M) with the curve that it comes from, cited (C), or assumed (A). Two cores that
//! the load, the broker and ClickHouse share say what things cost, not how they get along on many cores: see the end of the text.

use crate::{
    curves,
    points::Dimension,
    results::{Document, Measured},
};

/// Share of a machine's cores that is used: ClickHouse Cloud scales so that it is this (C).
pub const USED: f64 = 0.53;
/// Cores of an engine's node, and of a ClickHouse server (A).
pub const NODE_CORES: f64 = 8.0;
pub const CLICKHOUSE_CORES: f64 = 64.0;
/// Events of a request (A: clients that batch, or a collector in front of them).
pub const BATCH: f64 = 100.0;
/// MB/s that three brokers of 24 cores took with keys, whose batches are small (C), and without (C).
pub const BROKERS_KEYED: f64 = 330.0;
pub const BROKERS_BEST: f64 = 1_250.0;
/// Usable bytes a second of a node's network: 10 Gbit/s (A).
pub const NETWORK: f64 = 1.25e9;
/// The engine's defaults.
const MAX_AGE: f64 = 0.5;
const PARTITIONS: f64 = 6.0;
pub const MAX_ROWS: f64 = 100_000.0;
pub const TOPIC_DAYS: f64 = 14.0;
pub const EVENT_DAYS: f64 = 90.0;
pub const LOG_BYTES: f64 = 10e9;
pub const REPLICAS: f64 = 3.0;
pub const DAY: f64 = 86_400.0;

/// A line through points.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub at_zero: f64,
    pub slope: f64,
    /// The largest difference of a point from it, as a share of the point.
    pub off: f64,
}

impl Line {
    /// The one with the least squares of relative differences, so that small costs count as much as large ones. A cost does
    /// not fall below zero.
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        let sum =
            |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|(x, y)| of(*x, *y) / (y * y).max(1e-9)).sum::<f64>();
        let (weights, xs, ys) = (sum(&|_, _| 1.0), sum(&|x, _| x), sum(&|_, y| y));
        let (squares, products) = (sum(&|x, _| x * x), sum(&|x, y| x * y));
        let spread = weights * squares - xs * xs;
        if points.len() < 2 || spread <= 0.0 {
            return None;
        }
        let slope = ((weights * products - xs * ys) / spread).max(0.0);
        let at_zero = ((ys - slope * xs) / weights).max(0.0);
        let off = points.iter().map(|(x, y)| ((at_zero + slope * x) / y - 1.0).abs()).fold(0.0, f64::max);
        Some(Self { at_zero, slope, off })
    }

    pub fn at(self, x: f64) -> f64 {
        self.at_zero + self.slope * x
    }
}

/// What things cost, in CPU seconds, and how large they are, in bytes.
pub struct Costs {
    /// Of the node that takes events: a million events, and what a message an event adds.
    pub api: Line,
    /// Of the one that stores them, likewise.
    pub sink: Line,
    /// Events that a relay sends together.
    pub together: f64,
    /// Of a million requests, beside their events.
    pub request: f64,
    /// Of ClickHouse: a million rows, and a million inserts.
    pub clickhouse: Line,
    pub body: f64,
    pub log: f64,
    /// Of the log's files, which are larger than what is in them.
    pub log_disk: f64,
    pub topic: f64,
    pub stored: f64,
    /// Of the threads that a node has one of, in seconds a million events: the log's writer and the relay, and the one that polls
    /// and decodes.
    pub writer: f64,
    pub relay: f64,
    pub poll: f64,
    /// Engine and ClickHouse on one node, without a broker.
    pub alone: (f64, f64),
}

fn points(document: &Document, dimension: Dimension) -> impl Iterator<Item = &Measured> {
    document.curve(dimension).into_iter().flat_map(|curve| &curve.points)
}

fn line(document: &Document, dimensions: &[Dimension], x: &str, y: &str) -> Option<Line> {
    let points = dimensions.iter().flat_map(|dimension| points(document, *dimension));
    let pairs = points.filter_map(|point| Some((value(point, x)?, value(point, y)?)));
    Line::through(&pairs.collect::<Vec<_>>())
}

fn value(point: &Measured, key: &str) -> Option<f64> {
    match key {
        "inserts_an_event" => point.median("rows_per_insert").map(|rows| 1.0 / rows),
        "requests_an_event" => Some(1.0 / point.x),
        _ => curves::value(point, key),
    }
}

/// Curves of the same events, whose inserts differ in rows.
const INSERTS: [Dimension; 3] = [Dimension::Partitions, Dimension::Batch, Dimension::Connections];

impl Costs {
    pub fn of(document: &Document) -> Option<Self> {
        let usual = |key| document.median(Dimension::Batch, "100", key);
        Some(Self {
            api: line(document, &[Dimension::Partitions], "messages", "engine_cpu")?,
            sink: line(document, &[Dimension::Partitions], "messages", "sink_cpu")?,
            together: 64.0 / document.median(Dimension::Partitions, "64", "messages")?,
            request: line(document, &[Dimension::Batch], "requests_an_event", "engine_cpu")?.slope,
            clickhouse: line(document, &INSERTS, "inserts_an_event", "clickhouse_cpu")?,
            body: usual("body_bytes")?,
            log: usual("log_bytes")?,
            log_disk: document.median(Dimension::Depth, "0 GB", "log_disk_bytes").or_else(|| usual("log_bytes"))?,
            topic: document.median(Dimension::Partitions, "16", "bytes_to_broker")?,
            stored: usual("stored_bytes")?,
            writer: document.median(Dimension::Depth, "0 GB", "writer_thread").or_else(|| usual("writer_thread"))?,
            relay: document.median(Dimension::Partitions, "16", "relay_thread")?,
            poll: document.median(Dimension::Partitions, "16", "poll_thread")?,
            alone: (usual("engine_cpu")?, usual("clickhouse_cpu")?),
        })
    }
}

/// What a rate takes.
pub struct Plan {
    pub rate: f64,
    pub partitions: f64,
    /// Messages an event.
    pub messages: f64,
    pub api: f64,
    pub sink: f64,
    /// With the default of `sink.max_age` and with inserts as large as they may be.
    pub inserts: [Inserts; 2],
    serial: f64,
    poll: f64,
}

pub struct Inserts {
    pub rows: f64,
    pub a_second: f64,
    /// CPU seconds a million events.
    pub cost: f64,
}

/// Messages an event, where the relay sends so many events of different sessions at a time: how many of the partitions they
/// meet. It sends a whole request at least.
fn messages(together: f64, partitions: f64) -> f64 {
    let events = together.max(BATCH);
    partitions * (1.0 - (1.0 - 1.0 / partitions).powf(events)) / events
}

impl Plan {
    pub fn of(costs: &Costs, rate: f64) -> Self {
        // Twice as many as sinks, so that one which has more to do than others still shares; no fewer than by default.
        let sinks = rate * costs.poll / 1e6 / USED;
        let partitions = 2_f64.powf((2.0 * sinks.ceil()).max(1.0).log2().ceil()).max(PARTITIONS);
        let messages = messages(costs.together, partitions);
        let request = costs.request * (1.0 / BATCH - 1.0 / 100.0);
        let inserts = [(rate / partitions * MAX_AGE).clamp(1.0, MAX_ROWS), MAX_ROWS].map(|rows| Inserts {
            rows,
            a_second: rate / rows,
            cost: costs.clickhouse.at(1.0 / rows),
        });
        Self {
            rate,
            partitions,
            messages,
            api: costs.api.at(messages) + request,
            sink: costs.sink.at(messages),
            inserts,
            serial: costs.writer.max(costs.relay),
            poll: costs.poll,
        }
    }

    /// Nodes that take events: enough cores, and enough threads of those that a node has one of.
    pub fn api_nodes(&self) -> f64 {
        (self.cores(self.api) / NODE_CORES).max(self.cores(self.serial)).ceil()
    }

    /// Nodes that store them.
    pub fn sink_nodes(&self) -> f64 {
        (self.cores(self.sink) / NODE_CORES).max(self.cores(self.poll)).ceil()
    }

    /// Cores for so many CPU seconds a million events.
    pub fn cores(&self, cost: f64) -> f64 {
        self.rate * cost / 1e6 / USED
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, messages};

    #[test]
    fn a_line_goes_through_its_points() {
        let line =
            Line::through(&[(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)]).unwrap_or(Line { at_zero: 0.0, slope: 0.0, off: 1.0 });
        assert!((line.at_zero - 1.0).abs() < 1e-6 && (line.slope - 2.0).abs() < 1e-6 && line.off < 1e-6, "{line:?}");
        assert!(Line::through(&[(1.0, 3.0), (1.0, 5.0)]).is_none());
    }

    #[test]
    fn what_is_sent_together_meets_at_most_every_partition() {
        assert!((messages(100.0, 1.0) - 0.01).abs() < 1e-9);
        assert!((messages(1.0, 1.0) - 0.01).abs() < 1e-9, "a request is sent whole");
        // Measured when each request was sent by itself: 0.503.
        assert!((messages(100.0, 64.0) - 0.507).abs() < 1e-3);
        assert!((messages(6_400.0, 64.0) - 0.01).abs() < 1e-6);
    }
}

//! The dimensions and their points. What a point does not say is as in [`Point::usual`].

use clap::ValueEnum;
use load::body::{KINDS, Shape};

/// Sessions of every load: no more than one tenant's share of a busy hour.
pub const SESSIONS: usize = 100_000;
/// The largest size of a batch's body, over all connections, that an engine holds at once with its defaults.
const IN_FLIGHT: u64 = 64_000_000;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Dimension {
    Tenants,
    Depth,
    Partitions,
    Batch,
    Connections,
    Size,
    Mix,
}

/// A load, and what it is sent to.
#[derive(Clone, Debug)]
pub struct Point {
    /// Where it is on the axis.
    pub x: f64,
    pub label: String,
    pub tenants: u32,
    pub connections: u64,
    /// Events in a request.
    pub batch: u64,
    pub shape: Shape,
    /// Through a broker with so many partitions.
    pub partitions: Option<u32>,
    /// With so many bytes in the log, while ClickHouse is away.
    pub depth: Option<u64>,
}

impl Point {
    fn usual(x: f64, label: impl Into<String>) -> Self {
        Self {
            x,
            label: label.into(),
            tenants: 50,
            connections: 64,
            batch: 100,
            shape: Shape::default(),
            partitions: None,
            depth: None,
        }
    }

    /// Whether it is part of the run with that number. A log of gigabytes takes long to fill.
    pub fn is_due(&self, run: u64) -> bool {
        run == 1 || self.depth.is_none_or(|bytes| bytes < 1_000_000_000)
    }
}

impl Dimension {
    pub const ALL: [Self; 7] =
        [Self::Tenants, Self::Depth, Self::Partitions, Self::Batch, Self::Connections, Self::Size, Self::Mix];

    /// Its name in the figures and on the command line.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::Depth => "depth",
            Self::Partitions => "partitions",
            Self::Batch => "batch",
            Self::Connections => "connections",
            Self::Size => "size",
            Self::Mix => "mix",
        }
    }

    /// Its points, from small to large; depths of the log divided by `shallower`.
    pub fn points(self, shallower: u64) -> Vec<Point> {
        match self {
            // Batches of ten, so that a load of some seconds has a request of nearly every tenant.
            Self::Tenants => numbers(&[1, 10, 100, 1_000, 10_000, 100_000])
                .map(|(number, x, label)| Point { tenants: number, batch: 10, ..Point::usual(x, label) })
                .collect(),
            Self::Depth => [0, 100_000_000, 1_000_000_000, 3_000_000_000, 10_000_000_000]
                .into_iter()
                .map(|bytes: u64| {
                    let bytes = bytes / shallower;
                    let gigabytes = load::stats::real(bytes) / 1e9;
                    Point { depth: Some(bytes), ..Point::usual(gigabytes, format!("{gigabytes} GB")) }
                })
                .collect(),
            Self::Partitions => numbers(&[1, 4, 16, 64])
                .map(|(number, x, label)| Point { partitions: Some(number), ..Point::usual(x, label) })
                .collect(),
            Self::Batch => numbers(&[1, 10, 100, 1_000])
                .map(|(number, x, label)| Point { batch: number.into(), ..Point::usual(x, label) })
                .collect(),
            // Batches of ten, so that thousands of requests at once are not more than may wait to be stored.
            Self::Connections => numbers(&[1, 8, 64, 512, 5_000])
                .map(|(number, x, label)| Point { connections: number.into(), batch: 10, ..Point::usual(x, label) })
                .collect(),
            Self::Size => [100, 330, 1_000, 4_000, 16_000, 32_000].into_iter().map(sized).collect(),
            Self::Mix => {
                let alone = (0_u8..).zip(KINDS).map(|(kind, (name, _))| {
                    let shape = Shape { kind: Some(kind), ..Shape::default() };
                    Point { shape, ..Point::usual(f64::from(kind), name) }
                });
                alone.chain([Point::usual(5.0, "as they are")]).collect()
            }
        }
    }
}

fn numbers(numbers: &[u32]) -> impl Iterator<Item = (u32, f64, String)> {
    numbers.iter().map(|number| (*number, f64::from(*number), load::stats::shown_whole(u64::from(*number))))
}

/// Events of that size. Fewer connections hold all requests of this dimension within one bound.
fn sized(bytes: u32) -> Point {
    let label = if bytes < 1_000 { format!("{bytes} B") } else { format!("{} kB", bytes / 1_000) };
    // 330 is about what they have by themselves.
    let shape =
        Shape { bytes: (bytes != 330).then_some(usize::try_from(bytes).unwrap_or(usize::MAX)), ..Shape::default() };
    let connections = IN_FLIGHT / (100 * 32_000);
    Point { connections, shape, ..Point::usual(f64::from(bytes), label) }
}

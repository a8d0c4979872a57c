//! What the benchmark is asked for.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use load::rig::Setup;

/// Tenants, sessions and connections of every load.
pub const TENANTS: u32 = 50;
pub const SESSIONS: usize = 100_000;
pub const CONNECTIONS: u64 = 64;

/// Measures an engine: what it takes, stores, costs and how it recovers, beside what this machine could do at most
///
/// Every measurement starts an engine on an empty folder and ends with a check that every acknowledged event is stored once.
/// All of it with the defaults takes about half an hour. `make bench` starts this.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
pub struct Options {
    /// The engine
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/ingestion-engine")]
    pub engine: PathBuf,
    /// Another build of it, measured in turn with the first; the table then shows both and their ratio
    #[arg(long, value_name = "PROGRAM")]
    pub base: Option<PathBuf>,
    /// The broker Tansu
    #[arg(long, value_name = "PROGRAM")]
    pub tansu: Option<PathBuf>,
    /// Runs of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub runs: u64,
    /// Seconds of load in a run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Seconds of the outage whose drain is measured
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub outage: u64,
    /// Bytes in the log when the engine is killed
    #[arg(long, default_value_t = 1_000_000_000)]
    pub wal_bytes: u64,
    /// Events a second where the load has a rate
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Most events that are acknowledged and not stored, end to end, embedded
    #[arg(long, default_value_t = 250_000)]
    pub backlog: u64,
    /// The same through a broker, where the rows of each partition wait for an insert of their own
    #[arg(long, default_value_t = 400_000)]
    pub broker_backlog: u64,
    /// Seconds of load before an end-to-end measurement begins
    #[arg(long, default_value_t = 3)]
    pub warm_up: u64,
    /// What to measure, separated by commas; all of it by default
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Measurement>,
    /// Folder for the engine's data: on a disk whose fsync counts
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub dir: PathBuf,
    /// Writes the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only answers requests, after reading their bodies, as if each had so many events: the limit of every HTTP front
    #[arg(long, value_name = "BATCH", hide = true, requires = "port")]
    pub answer: Option<u64>,
    #[arg(long, hide = true)]
    pub port: Option<u16>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// The machine: HTTP without work, fdatasync, a parser alone
    Limits,
    /// Accepting with fsync while ClickHouse is away: batches of 100, of 10, single events
    Accept,
    /// End to end, embedded; CPU, memory
    Embedded,
    /// End to end through the broker
    Broker,
    /// Acknowledgements at a rate
    Ack,
    /// From sending an event until a query finds it, at a rate
    Queryable,
    /// kill -9 until ready, with a full log
    Ready,
    /// How fast the backlog of an outage drains while the load goes on
    Drain,
}

impl Measurement {
    pub const ALL: [Self; 8] = [
        Self::Limits,
        Self::Accept,
        Self::Embedded,
        Self::Broker,
        Self::Ack,
        Self::Queryable,
        Self::Ready,
        Self::Drain,
    ];

    /// Whether it is part of the run with that number. Filling a log takes long, and it can be killed several times.
    pub fn is_due(self, run: u64) -> bool {
        self != Self::Ready || run == 1
    }
}

impl Options {
    /// What every rig is made of.
    pub fn setup(&self, build: &Path) -> Setup {
        Setup {
            program: build.to_owned(),
            tansu: self.tansu.clone(),
            dir: self.dir.clone(),
            // One more than the load has, for the probe.
            tenants: TENANTS + 1,
            settings: Vec::new(),
        }
    }

    pub fn measures(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

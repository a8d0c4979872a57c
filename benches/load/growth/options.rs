//! What the growth curves are asked for.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use load::rig::Setup;

use crate::points::Dimension;

/// Measures what an event costs against tenants, depth of the log, partitions, batch, connections, size and type
///
/// Every point starts an engine on an empty folder and ends with a check that every acknowledged event is stored once. Writes
/// the figures, and beside them the curves (growth.svg) and the model made of them (capacity.md). `make bench-growth` starts
/// this.
#[derive(Parser)]
#[command(name = "growth", max_term_width = 100)]
pub struct Options {
    /// The engine
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/ingestion-engine")]
    pub engine: PathBuf,
    /// The broker Tansu, for the partitions
    #[arg(long, value_name = "PROGRAM")]
    pub tansu: Option<PathBuf>,
    /// Runs of each point; those of a log of 1 GB and more are measured once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub runs: u64,
    /// Seconds of load at a point
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Seconds of load before it
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    /// Most events that are acknowledged and not stored
    #[arg(long, default_value_t = 250_000)]
    pub backlog: u64,
    /// Divides the depths of the log, to try them out
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub shallower: u64,
    /// Above this depth of the log (bytes) its end is checked with the ledger and not by storing it all
    #[arg(long, default_value_t = 3_000_000_000)]
    pub store_up_to: u64,
    /// What to measure, separated by commas; all of it by default. What the file of --json has of the others is kept
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Dimension>,
    /// Folder for the engine's data: on a disk whose fsync counts
    #[arg(long, value_name = "DIR", default_value = "target/growth")]
    pub dir: PathBuf,
    /// The figures
    #[arg(long, value_name = "FILE", default_value = "docs/growth.json")]
    pub json: PathBuf,
    /// Only draws the curves and the model again, from these figures
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

impl Options {
    pub fn measures(&self, dimension: Dimension) -> bool {
        self.only.is_empty() || self.only.contains(&dimension)
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// What a rig is made of.
    pub fn setup(&self, program: &Path, tenants: u32, settings: Vec<(&'static str, String)>) -> Setup {
        Setup { program: program.to_owned(), tansu: self.tansu.clone(), dir: self.dir.clone(), tenants, settings }
    }
}

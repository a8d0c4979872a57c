//! How the cost of an event grows: with tenants, depth of the log, partitions, batch, connections, size and type of events.
//!
//! ```text
//! for each run, for each dimension, for each point (points):
//!     empty folder, engine, ClickHouse, broker --> load, CPU of each process (measure, depth) --> check: each event once
//! figures (results) --> docs/growth.json --> docs/growth.svg (plot), docs/capacity.md (model, capacity)
//! ```
//! One dimension changes at a time; all others are as in `points`. The log syncs in every figure. A point that fails makes the
//! exit code non-zero and is named; one for which the disk has no room is left out and named.

mod capacity;
mod curves;
mod depth;
mod measure;
mod model;
mod options;
mod plot;
mod points;
mod results;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use load::machine;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use options::Options;
use points::Dimension;
use results::{Document, Samples};

/// The longest that a point may take. Ten gigabytes are written and, in part, stored within it.
const POINT: Duration = Duration::from_secs(3600);

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Some(path) = &options.plot {
        draw(&Document::read(path)?, path)?;
        return Ok(ExitCode::SUCCESS);
    }
    allow_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&options))
}

/// As many open files as the system lets us have: thousands of connections here, and as many in the engine, which inherits it.
fn allow_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it is refused, the point that needs it says so.
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok();
}

async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let program = options.engine.canonicalize();
    let program = program.with_context(|| format!("there is no {}", options.engine.display()))?;
    fs::create_dir_all(&options.dir).with_context(|| format!("cannot create {}", options.dir.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let machine = machine::describe();
    let mut samples = Samples::default();
    for run in 1..=options.runs {
        for dimension in Dimension::ALL.into_iter().filter(|dimension| options.measures(*dimension)) {
            for point in dimension.points(options.shallower).into_iter().filter(|point| point.is_due(run)) {
                let name = format!("{}, {}, run {run}", dimension.key(), point.label);
                eprintln!("{name} of {}", options.runs);
                if let Some(reason) = depth::no_room(options, &point)? {
                    eprintln!("  left out: {reason}");
                    samples.skip(dimension, format!("{name}: {reason}"));
                    continue;
                }
                let measured = tokio::select! {
                    measured = timeout(POINT, measure::measure(options, &program, &point)) => measured,
                    // Processes and folders go with what is dropped.
                    _ = interrupt.recv() => anyhow::bail!("stopped by SIGINT"),
                    _ = terminate.recv() => anyhow::bail!("stopped by SIGTERM"),
                };
                match measured.unwrap_or_else(|_| Err(anyhow::anyhow!("it took more than {POINT:?}"))) {
                    Ok(figures) => samples.add(dimension, &point, figures),
                    Err(error) => {
                        eprintln!("FAILED: {error:#}");
                        samples.fail(dimension, format!("{name}: {error:#}"));
                    }
                }
            }
            // After each dimension, so that a campaign that is stopped keeps what it has.
            samples.document(options, &machine)?.write(&options.json)?;
        }
    }
    let document = Document::read(&options.json)?;
    draw(&document, &options.json)?;
    print!("{}", curves::text(&document));
    let failed = samples.failed();
    if failed.is_empty() {
        println!("\nEvery acknowledged event of every point is stored once; in the deepest logs, by the ledger.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nFAILED:");
    for failure in failed {
        println!("- {failure}");
    }
    Ok(ExitCode::FAILURE)
}

/// Writes the curves and the model beside the figures.
fn draw(document: &Document, json: &Path) -> anyhow::Result<()> {
    let beside = |name: &str| -> PathBuf { json.with_file_name(name) };
    for (name, text) in [("growth.svg", plot::svg(document)), ("capacity.md", capacity::markdown(document))] {
        let path = beside(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

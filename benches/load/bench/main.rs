//! The benchmark: starts engines, loads them, checks that nothing was lost or came twice, and prints a table.
//!
//! ```text
//! for each run, for each measurement, for each build:
//!     rig: empty folder, engine, ClickHouse, broker --> measure: load, figures --> check: each acknowledged event once
//! table: medians, spread, targets, and ratios to what this machine did without an engine in the same runs (limits)
//! ```
//! The load is made on this process's one thread; the engine's CPU time is its own process's, that of ClickHouse and of the
//! broker apart. Measurements take turns, so that a machine that slows down slows all of them down.

mod limits;
mod measure;
mod options;
mod table;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use load::machine;
use tokio::signal::unix::{SignalKind, signal};

use options::{Measurement, Options};
use table::Results;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let (Some(batch), Some(port)) = (options.answer, options.port) {
        return limits::answer(port, batch);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut builds = vec![options.engine.clone()];
    builds.extend(options.base.clone());
    for build in &mut builds {
        *build = build.canonicalize().with_context(|| format!("there is no {}", build.display()))?;
    }
    std::fs::create_dir_all(&options.dir).with_context(|| format!("cannot create {}", options.dir.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut results = vec![Results::default(); builds.len()];
    let mut failed = Vec::new();
    for run in 1..=options.runs {
        for measurement in Measurement::ALL.into_iter().filter(|measurement| options.measures(*measurement)) {
            for (build, results) in builds.iter().zip(&mut results) {
                if !measurement.is_due(run) {
                    continue;
                }
                let name = format!("run {run} of {}: {measurement:?}, {}", options.runs, build.display());
                eprintln!("{name}");
                let measured = tokio::select! {
                    measured = measure::measure(options, build, measurement) => measured,
                    // Processes and folders go with what is dropped.
                    _ = interrupt.recv() => anyhow::bail!("stopped by SIGINT"),
                    _ = terminate.recv() => anyhow::bail!("stopped by SIGTERM"),
                };
                match measured {
                    Ok(figures) => results.add(figures),
                    Err(error) => {
                        eprintln!("FAILED: {error:#}");
                        failed.push(format!("{name}: {error:#}"));
                    }
                }
            }
        }
    }
    let mut machine = machine::describe();
    machine.push(("runs", format!("{} of {} s", options.runs, options.seconds)));
    table::print(options, &machine, &results, &failed);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&table::json(options, &machine, &results, &failed))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

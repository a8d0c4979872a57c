//! `ingestion-engine`: reads the command line and the configuration, starts what they ask for, waits for its end.

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use ingestion_engine::{
    cli::{self, Cli, Command, EXIT_FAILURE, EXIT_NOT_ASKED, EXIT_USAGE, EraseArgs, LedgerArgs},
    clickhouse::{self, embedded::ChildArgs},
    config::{Config, LogFormat},
    dead_letters::commands::DeadLettersArgs,
    erasure::commands as erasure,
    error_chain::chain,
    ids::EventId,
    ledger, logging, memory,
    plugins::{
        commands::{self, PluginsArgs},
        instance::{Limits, output_bytes},
    },
    retention,
    serve::{self, Purpose},
    tenants::commands::{self as tenants, TenantsAction, TenantsArgs},
    trace::{Question, TraceArgs},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(words) => return words.print(),
    };
    let action = cli.action();
    if let Command::Clickhouse(arguments) = &action
        && arguments.watch_parent
    {
        return child(arguments.clone());
    }
    // Processes that the engine starts: everything that they need is told to them.
    if let Command::Plugins(arguments) = &action
        && let Some(code) = arguments.action.run_as_child()
    {
        return code;
    }

    memory::give_back_early();
    let config = match load(&cli) {
        Ok(config) => config,
        // One of its own: 1 says that the ledger does not balance.
        Err(_) if matches!(action, Command::Ledger(_)) => return ExitCode::from(EXIT_NOT_ASKED),
        Err(code) => return code,
    };
    let result = match action {
        Command::Plugins(arguments) => return plugins(arguments, &config),
        Command::Tenants(TenantsArgs { action: TenantsAction::Purge { tenant, json } }) => {
            return told(erase(&config, Some(&tenant), None, json));
        }
        Command::Erase(EraseArgs { user, tenant, json }) => {
            return told(erase(&config, tenant.as_deref(), Some(user), json));
        }
        Command::Tenants(arguments) => return told(tenants::tenants(arguments.action, &tenants_settings(&config))),
        Command::Keys(arguments) => return told(tenants::keys(arguments.action, &tenants_settings(&config))),
        Command::DeadLetters(arguments) => return told(dead_letters(arguments, &config)),
        Command::Retention(arguments) => {
            return told(runtime().and_then(|runtime| runtime.block_on(retention::run(arguments.action, &config))));
        }
        Command::Trace(arguments) => return trace(&config, &arguments),
        Command::Ledger(LedgerArgs { json }) => return ledger(&config, json),
        Command::Serve => run(config, Purpose::Serve),
        Command::Drain => run(config, Purpose::Drain),
        Command::Migrate => runtime().and_then(|runtime| runtime.block_on(serve::migrate(config))),
        Command::CheckConfig => {
            print!("{}", config.effective());
            Ok(())
        }
        Command::Clickhouse(arguments) => {
            let (path, embedded) = (config.clickhouse_path(), &config.clickhouse.embedded);
            let settings = arguments.settings(path, embedded.port, embedded.library.clone());
            clickhouse::embedded::run(settings).map_err(Into::into)
        }
    };
    finish(result)
}

/// The configuration and logging; what is wrong with them is said on standard error, all at once.
fn load(cli: &Cli) -> Result<Config, ExitCode> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (config, warnings) = Config::load(cli.config.as_deref().map(Path::new), &environment).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(EXIT_USAGE)
    })?;
    logging::init(&config.log.level, config.log.format).map_err(|error| {
        eprintln!("error: {error}");
        ExitCode::from(EXIT_USAGE)
    })?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// How long threads may take to end after their node has.
const LAST_THREADS: Duration = Duration::from_secs(5);

/// Runs the node until it ends by itself or SIGTERM or SIGINT asks it to.
fn run(config: Config, purpose: Purpose) -> Result<()> {
    let runtime = runtime()?;
    let stop = CancellationToken::new();
    let ended = runtime.block_on(async {
        stop_on_signal(stop.clone())?;
        serve::run(config, purpose, stop).await
    });
    // A thread that waits for something that is away does not keep the process: what it had in hand is on disk.
    runtime.shutdown_timeout(LAST_THREADS);
    ended
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

/// The first signal asks for an orderly end, which has a budget for every stage; a second one is not waited for.
fn stop_on_signal(stop: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let signal = next().await;
        tracing::info!(signal, "stopping; a second signal ends the process at once");
        stop.cancel();
        let signal = next().await;
        tracing::warn!(signal, "ending at once; everything acknowledged is on disk");
        std::process::exit(i32::from(EXIT_FAILURE));
    });
    Ok(())
}

/// The `clickhouse` subcommand as `serve` starts it: everything is on its command line, and its parent logs what it
/// prints.
fn child(arguments: ChildArgs) -> ExitCode {
    if let Err(error) = logging::init("info", LogFormat::Json) {
        eprintln!("error: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    finish(clickhouse::embedded::run(arguments.settings("data/clickhouse".into(), 0, None)).map_err(Into::into))
}

/// The `plugins` subcommand.
fn plugins(arguments: PluginsArgs, config: &Config) -> ExitCode {
    let done = std::env::current_exe().context("finding this program's own file").and_then(|program| {
        let settings = commands::Settings {
            data_dir: config.process.data_dir.clone(),
            plugins_dir: config.plugins_dir(),
            program,
            limits: Limits {
                event_bytes: output_bytes(usize::try_from(config.limits.event_bytes).unwrap_or(usize::MAX)),
            },
            config: config.plugins.config.clone().into_iter().collect(),
        };
        Ok(commands::run(arguments.action, &settings)?)
    });
    told(done)
}

/// The `erase` and `tenants purge` subcommands.
fn erase(config: &Config, tenant: Option<&str>, user: Option<String>, json: bool) -> Result<()> {
    let tenants = &config.tenants.tenants;
    let tenant = match (tenant, &tenants[..]) {
        (Some(tenant), _) => tenants::tenant_id(tenants, tenant)?,
        (None, [only]) => only.id,
        (None, _) => bail!(Usage("say of which tenant: --tenant, with its id or name")),
    };
    if user.as_deref() == Some("") {
        bail!(Usage("the user id is empty: `tenants purge` erases everything that a tenant has sent"));
    }
    let report = runtime()?.block_on(serve::erase(config, erasure::Request { tenant, user }))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

/// The `dead-letters` subcommand.
fn dead_letters(arguments: DeadLettersArgs, config: &Config) -> Result<()> {
    let find = |tenant: &str| Ok(tenants::tenant_id(&config.tenants.tenants, tenant)?);
    runtime()?.block_on(serve::dead_letters(config, arguments.action, find))
}

/// The `ledger` subcommand.
fn ledger(config: &Config, json: bool) -> ExitCode {
    let measured = || -> Result<bool> {
        let report = runtime()?.block_on(serve::ledger(config))?;
        if json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", ledger::table(&report));
        }
        Ok(report.balanced)
    };
    match measured() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::from(EXIT_NOT_ASKED)
        }
    }
}

/// The `trace` subcommand: 0 when the event is somewhere, or is gone for a reason.
fn trace(config: &Config, arguments: &TraceArgs) -> ExitCode {
    let traced = || -> Result<bool> {
        let tenants = &config.tenants.tenants;
        let tenant = arguments.tenant.as_deref().map(|tenant| tenants::tenant_id(tenants, tenant)).transpose()?;
        let since = arguments.since.moment(jiff::Timestamp::now());
        let question = Question { event: EventId(arguments.event), tenant, since };
        let report = runtime()?.block_on(serve::trace(config, question))?;
        if arguments.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", report.text());
        }
        Ok(report.is_accounted_for())
    };
    match traced() {
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        done => told(done.map(drop)),
    }
}

fn tenants_settings(config: &Config) -> tenants::Settings {
    tenants::Settings { file: config.tenants_file(), defaults: config.tenant_defaults() }
}

/// Arguments that are wrong together, or with this configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(&'static str);

/// What went wrong is told to the person who asked.
fn told(done: Result<(), impl Into<anyhow::Error>>) -> ExitCode {
    match done.map_err(Into::into) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            let wrong = error.is::<Usage>() || error.downcast_ref().is_some_and(tenants::CommandError::is_usage);
            ExitCode::from(if wrong { EXIT_USAGE } else { EXIT_FAILURE })
        }
    }
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&*error));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

//! The command line. Only its form; `main` acts on it.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use crate::{
    clickhouse::embedded::ChildArgs,
    dead_letters::commands::{CHOOSE, DeadLettersArgs},
    plugins::commands::PluginsArgs,
    retention::RetentionArgs,
    tenants::commands::{KeysArgs, TenantsArgs},
    trace::TraceArgs,
};

/// Exit code of a failure at run time.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of `ledger` when there is nothing to say: the ledger could not be measured.
pub const EXIT_NOT_ASKED: u8 = 2;
/// Exit code of wrong usage or a wrong configuration (`EX_USAGE` of sysexits).
pub const EXIT_USAGE: u8 = 64;

const ABOUT: &str = "\
Takes analytics events over HTTP and brings each of them into ClickHouse once.

A 2xx from POST /ingest means that the event is on this machine's disk (fsync). From there it goes to Redpanda, or any \
broker that speaks Kafka's protocol, and on to ClickHouse. With no broker configured the events go from disk to \
ClickHouse directly; with no ClickHouse configured the engine runs its own. Outages of both are waited out on disk.";

const AFTER: &str = "\
Configuration:
  Three layers, the later one wins: the compiled-in defaults, the file of --config, the environment.
  A key's environment name is INGESTION_ and its path in capitals:
    INGESTION_REDPANDA_BROKERS=redpanda-0:9092,redpanda-1:9092
    INGESTION_CLICKHOUSE_URL=https://clickhouse:8443
    INGESTION_CLICKHOUSE_PASSWORD_FILE=/run/secrets/clickhouse   (any name with _FILE reads the value from a file)
    INGESTION_DATA_DIR=/var/lib/ingestion-engine
  INGESTION_HOST and INGESTION_PORT set the address of the API. config/default.toml documents every key;
  `ingestion-engine check-config` shows what is in effect and where each value came from.

Exit codes:
  0   done, or stopped by SIGTERM or SIGINT with everything accepted safe on disk
  1   failed while running; the log says why
  64  wrong usage or configuration; every wrong key is named

Examples:
  ingestion-engine --config config/development.toml
      the engine alone on this machine, with a tenant and a key for trying it out
  INGESTION_REDPANDA_BROKERS=localhost:9092 ingestion-engine --config engine.toml
      the same binary with a broker
  ingestion-engine --config engine.toml check-config
      checks a configuration before it is rolled out
  ingestion-engine --config engine.toml drain
      empties the write-ahead log before a node is removed
  ingestion-engine --config engine.toml plugins list
      which plugins are in use, and why others are not (more: plugins --help)
  ingestion-engine --config engine.toml tenants add acme --tier paid
      a new tenant and its key (more: tenants --help, keys --help)
  ingestion-engine --config engine.toml dead-letters list
      what ClickHouse or a plugin has refused, and why (more: dead-letters --help)
  ingestion-engine --config engine.toml ledger
      where every received event is, and whether one is missing
  ingestion-engine --config engine.toml retention apply acme
      after its tier was changed: stored events are kept as long as new ones
  ingestion-engine --config engine.toml trace 01990b2c-5f5e-7a3c-8d1f-0c9a4a3e2b10
      where that event is, and when it passed each stage";

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "ingestion-engine", version, about = ABOUT, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    /// Configuration file (TOML); without it the defaults and the environment decide
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Take events and bring them into ClickHouse (the default)
    #[default]
    Serve,
    /// Run the embedded ClickHouse engine alone, with its HTTP interface on 127.0.0.1
    ///
    /// `serve` starts this by itself while no clickhouse.url is configured. Run it by hand to look into the data while
    /// the engine is stopped.
    Clickhouse(ChildArgs),
    /// Create and change the tables in ClickHouse, then exit
    Migrate,
    /// Check the configuration, print what is in effect and where each value came from, then exit
    CheckConfig,
    /// Take no requests, bring everything in the write-ahead log on its way, and exit 0 once it is empty
    Drain,
    /// Look at, check and steer plugins: event types of your own, in shared libraries
    Plugins(PluginsArgs),
    /// Add, list, disable and enable tenants: who may send events
    Tenants(TenantsArgs),
    /// Make, rotate, revoke and list the keys of a tenant
    Keys(KeysArgs),
    /// Look at what was accepted and could not be stored, send it again, or give it up
    DeadLetters(DeadLettersArgs),
    /// Give stored rows the retention that their tenant has now
    Retention(RetentionArgs),
    /// Erase what one person has sent so far, in all tables, for good
    ///
    /// Rows with the person's user id go, and rows with an anonymous id of theirs and no user id. What a log or a topic still
    /// holds of them is never stored. The report says what was removed and what remains where, until when. Started again it
    /// does the rest, or it all again.
    Erase(EraseArgs),
    /// Tell where an event is now, and when it passed each stage
    Trace(TraceArgs),
    /// Show where every event is that this node has received, and whether one is missing
    ///
    /// Asks the engine that runs with the data folder, or reads its log while none does, and changes nothing.
    Ledger(LedgerArgs),
}

const AFTER_LEDGER: &str = "\
While no engine runs, an engine that starts waits for the log until this command has read it (30 seconds at most), and the \
embedded ClickHouse is started for as long as it takes. A log that must be mended, and tables that must be migrated, are left as \
they are: the command says so.

Exit codes: 0 it balances, 1 it does not (the last lines say whose events are missing, how many, and where), 2 it could not be \
measured (no connection, wrong configuration, no log, a log in use), 64 wrong usage.";

/// Arguments of the `ledger` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = AFTER_LEDGER)]
pub struct LedgerArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the `erase` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct EraseArgs {
    /// The person's user id, or an anonymous id
    #[arg(long, value_name = "USER_ID")]
    pub user: String,
    /// Id or name of the tenant; may be left out where there is only one
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// What to do: the subcommand, or `serve`.
    pub fn action(&self) -> Command {
        self.command.clone().unwrap_or_default()
    }
}

/// A command line that asks for nothing but words: wrong usage, `--help` or `--version`.
#[derive(Debug)]
pub struct Words(clap::Error);

impl Words {
    /// Prints them, wrong usage to standard error and what was asked for to standard output.
    ///
    /// Returns the process's exit code.
    pub fn print(&self) -> ExitCode {
        // With standard output and error closed there is nobody to tell.
        drop(self.0.print());
        ExitCode::from(self.code())
    }

    /// The exit code: 0 for what was asked for, 64 for wrong usage.
    pub fn code(&self) -> u8 {
        if self.0.use_stderr() { EXIT_USAGE } else { 0 }
    }
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.render().fmt(f)
    }
}

/// Parses the arguments, the program's name first.
///
/// # Errors
/// What to print instead of running.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Words> {
    let cli = Cli::try_parse_from(arguments).map_err(Words)?;
    match &cli.command {
        Some(Command::DeadLetters(arguments)) if arguments.action.chooses_nothing() => {
            Err(Words(Cli::command().error(ErrorKind::MissingRequiredArgument, CHOOSE)))
        }
        _ => Ok(cli),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::time::Duration;

    use crate::{
        config::Span,
        plugins::{check::CHILD_FLAG, commands::Action},
        retention::RetentionAction,
        trace::Since,
    };

    fn run(arguments: &[&str]) -> Result<Cli, Words> {
        parse(["ingestion-engine"].iter().chain(arguments).map(OsString::from))
    }

    #[test]
    fn serve_is_the_default() {
        let cli = run(&["--config", "a.toml"]).unwrap();
        assert_eq!((cli.action(), cli.config), (Command::Serve, Some(PathBuf::from("a.toml"))));
        assert_eq!(run(&[]).unwrap().action(), Command::Serve);
        assert_eq!(run(&["serve"]).unwrap().action(), Command::Serve);
    }

    #[test]
    fn the_file_may_be_named_before_or_after_the_subcommand() {
        for arguments in [["--config", "a.toml", "check-config"], ["check-config", "--config", "a.toml"]] {
            let cli = run(&arguments).unwrap();
            assert_eq!((cli.action(), cli.config), (Command::CheckConfig, Some(PathBuf::from("a.toml"))));
        }
        assert_eq!(run(&["migrate"]).unwrap().action(), Command::Migrate);
        assert_eq!(run(&["drain"]).unwrap().action(), Command::Drain);
    }

    #[test]
    fn the_embedded_engine_takes_its_arguments() {
        let all = ["clickhouse", "--path", "d", "--port", "0", "--library", "l.so", "--port-file", "p"];
        let Command::Clickhouse(arguments) = run(&all).unwrap().action() else { panic!("another subcommand") };
        assert_eq!((arguments.path, arguments.port), (Some("d".into()), Some(0)));
        assert_eq!((arguments.library, arguments.port_file), (Some("l.so".into()), Some("p".into())));
        let Command::Clickhouse(given) = run(&["clickhouse", "--port", "7"]).unwrap().action() else {
            panic!("another subcommand")
        };
        let settings = given.settings("data/clickhouse".into(), 8123, None);
        assert_eq!((settings.path, settings.port, settings.library), (PathBuf::from("data/clickhouse"), 7, None));
    }

    #[test]
    fn plugins_have_commands_of_their_own() {
        let action = |arguments: &[&str]| match run(arguments).map(|cli| cli.action()) {
            Ok(Command::Plugins(arguments)) => Ok(arguments.action),
            Ok(other) => panic!("{other:?}"),
            Err(words) => Err((words.code(), words.to_string())),
        };
        assert_eq!(action(&["plugins", "list", "--json"]), Ok(Action::List { json: true }));
        let quarantine = Action::Quarantine { name: "p".to_owned(), reason: "it lies".to_owned() };
        assert_eq!(action(&["plugins", "quarantine", "p", "--reason", "it lies"]), Ok(quarantine));
        let check = Action::Check { file: "p.so".into(), json: false, as_child: true };
        assert_eq!(action(&["plugins", "check", CHILD_FLAG, "p.so"]), Ok(check));
        for wrong in [&["plugins"][..], &["plugins", "resume"], &["plugins", "lst"], &["plugins", "check"]] {
            assert_eq!(action(wrong).unwrap_err().0, EXIT_USAGE, "{wrong:?}");
        }
        let (code, help) = action(&["plugins", "--help"]).unwrap_err();
        assert_eq!(code, 0);
        for part in ["list", "check", "quarantine", "resume", "reprocess", "new", "Examples"] {
            assert!(help.contains(part), "{part} is missing in\n{help}");
        }
        assert!(!help.contains("host") && !help.contains("as-child"), "{help}");
    }

    #[test]
    fn an_event_is_traced_by_its_id() {
        let Command::Trace(arguments) = run(&["trace", "00000000-0000-0000-0000-000000000007"]).unwrap().action()
        else {
            panic!("another subcommand")
        };
        let hour = Since::Span(Span::new(Duration::from_hours(1)));
        let event = uuid::Uuid::from_u128(7);
        assert_eq!(arguments, TraceArgs { event, tenant: None, since: hour, json: false });
        let all = ["trace", "7", "--since", "2026-01-02T03:04:05Z", "--tenant", "acme", "--json"];
        assert!(run(&all).unwrap_err().to_string().contains("an event's id is a UUID"));
        for since in ["tomorrow", "9999-01-01T00:00:00Z", "5"] {
            let words = run(&["trace", "00000000-0000-0000-0000-000000000007", "--since", since]).unwrap_err();
            assert_eq!(words.code(), EXIT_USAGE, "{since}");
        }
    }

    #[test]
    fn retention_is_applied_to_one_tenant() {
        let Command::Retention(arguments) = run(&["retention", "apply", "acme", "--json"]).unwrap().action() else {
            panic!("another subcommand")
        };
        let expected = RetentionAction::Apply { tenant: "acme".to_owned(), json: true, stop_after: None };
        assert_eq!(arguments.action, expected);
        for wrong in [&["retention"][..], &["retention", "apply"]] {
            assert_eq!(run(wrong).unwrap_err().code(), EXIT_USAGE, "{wrong:?}");
        }
        let help = run(&["retention", "apply", "--help"]).unwrap_err().to_string();
        assert!(!help.contains("stop-after"), "{help}");
    }

    #[test]
    fn wrong_usage_is_64_and_help_is_0() {
        for wrong in [&["--confg", "a"][..], &["serv"], &["clickhouse", "--port", "99999"], &["--config"]] {
            assert_eq!(run(wrong).unwrap_err().code(), EXIT_USAGE, "{wrong:?}");
        }
        for action in ["replay", "drop"] {
            let words = run(&["dead-letters", action, "--json"]).unwrap_err();
            assert!(words.code() == EXIT_USAGE && words.to_string().contains("say which letters"), "{words}");
            for chosen in [&["--all"][..], &["--tenant", "acme"], &["--since", "2h"]] {
                assert!(run(&[&["dead-letters", action][..], chosen].concat()).is_ok(), "{action} {chosen:?}");
            }
        }
        for asked in ["--help", "--version", "-h"] {
            assert_eq!(run(&[asked]).unwrap_err().code(), 0, "{asked}");
        }
    }

    #[test]
    fn help_tells_the_layers_the_subcommands_and_the_exit_codes() {
        let help = run(&["--help"]).unwrap_err().to_string();
        for part in [
            "INGESTION_",
            "_FILE",
            "Exit codes",
            "64",
            "check-config",
            "drain",
            "migrate",
            "clickhouse",
            "plugins",
            "Examples",
        ] {
            assert!(help.contains(part), "{part} is missing in\n{help}");
        }
    }
}

//! `ingestion-engine dead-letters list|show|replay|drop`.

use std::{
    collections::HashSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    letter::Letter,
    read_files,
    replay::{Summary, event_of},
    store::{Entry, Fate, Filter, Store},
};
use crate::{
    clickhouse::Client,
    config::Span,
    control::{self, ClientError, Request},
    error_chain::chain,
    ids::TenantId,
    ledger::UNKNOWN,
    table::aligned,
};

/// How often a replay says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
A dead letter is an event that was accepted and could not be stored: ClickHouse refuses its row, a plugin refuses it when it \
is reprocessed, or what a log or a topic holds is no row. Mend the cause, then replay: the event goes through the front \
again, under its id.

Examples:
  ingestion-engine --config engine.toml dead-letters list --tenant acme --since 2h
  ingestion-engine --config engine.toml dead-letters show 0b3a6a1e-7d3f-8a52-9c07-8f5d6a7e1b22
  ingestion-engine --config engine.toml dead-letters replay --reason amount_is_positive
  ingestion-engine --config engine.toml dead-letters drop --tenant acme --until 2026-01-31T00:00:00Z";

/// Arguments of the `dead-letters` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct DeadLettersArgs {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// List the letters, the newest first
    List {
        /// Which
        #[command(flatten)]
        which: Which,
        /// Those of which something became, too: replayed, dropped, removed by the size cap
        #[arg(long)]
        all_states: bool,
        /// Most letters shown
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one letter, its bytes included
    Show {
        /// The letter's name
        letter: Uuid,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Send letters through the front again; the engine must be running
    Replay {
        /// Which
        #[command(flatten)]
        chosen: Chosen,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Give letters up: their bytes go, and they count as dropped
    Drop {
        /// Which
        #[command(flatten)]
        chosen: Chosen,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Action {
    /// Whether something is to become of letters, and it is not said of which.
    pub fn chooses_nothing(&self) -> bool {
        match self {
            Self::Replay { chosen, .. } | Self::Drop { chosen, .. } => chosen.is_nothing(),
            Self::List { .. } | Self::Show { .. } => false,
        }
    }
}

/// Which letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Which {
    /// Names of letters
    #[arg(value_name = "LETTER")]
    pub letters: Vec<Uuid>,
    /// Of this tenant (id or name), or of an "unknown" one
    #[arg(long, value_name = "TENANT", value_parser = NonEmptyStringValueParser::new())]
    pub tenant: Option<String>,
    /// Of this event
    #[arg(long, value_name = "EVENT_ID")]
    pub event: Option<Uuid>,
    /// Whose reason contains this
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub reason: Option<String>,
    /// That failed at this stage: relay, source, sink, reprocess
    #[arg(long, value_name = "STAGE", value_parser = ["relay", "source", "sink", "reprocess"])]
    pub stage: Option<String>,
    /// That failed since then: a span ("2h") or a moment (2026-01-31T00:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub since: Option<Timestamp>,
    /// That failed before then
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub until: Option<Timestamp>,
}

/// A span before now, or a moment.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = text.parse::<Span>() {
        return Timestamp::now().checked_sub(span.duration()).map_err(|error| error.to_string());
    }
    text.parse().map_err(|_| "give a span (\"2h\") or a moment with its offset (2026-01-31T00:00:00Z)".to_owned())
}

impl Which {
    /// The filter; `find` finds a tenant by id or name.
    ///
    /// # Errors
    /// There is no such tenant.
    pub fn filter(&self, find: impl Fn(&str) -> Result<TenantId>) -> Result<Filter> {
        let tenant = match &self.tenant {
            // A tenant that was removed, or letters of nobody known.
            Some(tenant) if tenant == "unknown" => Some(UNKNOWN.0),
            Some(tenant) => Some(match Uuid::try_parse(tenant) {
                Ok(id) => id,
                Err(_) => find(tenant)?.0,
            }),
            None => None,
        };
        Ok(Filter {
            letters: self.letters.clone(),
            tenant,
            event: self.event,
            reason: self.reason.clone(),
            stage: self.stage.clone(),
            since_ms: self.since.map(Timestamp::as_millisecond),
            until_ms: self.until.map(Timestamp::as_millisecond),
        })
    }
}

/// Which letters something is to become of: all of them only where that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Chosen {
    /// Which
    #[command(flatten)]
    pub which: Which,
    /// All that are held
    #[arg(long)]
    pub all: bool,
}

/// What to say when nothing was chosen.
pub const CHOOSE: &str =
    "say which letters: their names, --tenant, --event, --reason, --stage, --since, --until, or --all";

impl Chosen {
    fn is_nothing(&self) -> bool {
        !self.all && self.which == Which::default()
    }

    /// The filter; `find` finds a tenant by id or name.
    ///
    /// # Errors
    /// There is no such tenant.
    pub fn filter(&self, find: impl Fn(&str) -> Result<TenantId>) -> Result<Filter> {
        self.which.filter(find)
    }
}

/// The table of dead letters, to be looked at.
pub enum Table {
    /// In this ClickHouse, if it has one yet.
    In(Box<Client>),
    /// There is none yet, in words.
    NotYet(String),
    /// It cannot be reached.
    Away(anyhow::Error),
}

/// Where letters are: in the table, if ClickHouse can be reached, and in the files of this node.
pub struct Places {
    /// The table.
    pub table: Table,
    /// The files.
    pub folder: PathBuf,
}

/// Letters, each with whether it is only in a file of this node.
struct Found {
    letters: Vec<(Entry, bool)>,
    asked: Asked,
}

/// Whether the table was asked.
enum Asked {
    All,
    /// There is none yet.
    Nothing(String),
    /// It was not: there may be more letters.
    Failed(anyhow::Error),
}

impl Found {
    fn of(mut letters: Vec<(Entry, bool)>, limit: usize, asked: Asked) -> Self {
        letters.truncate(limit);
        Self { letters, asked }
    }
}

impl Places {
    /// The letters that `filter` names. Those in files first, whether or not ClickHouse answers.
    async fn letters(&self, filter: &Filter, state: Option<&str>, limit: usize, with_bytes: bool) -> Result<Found> {
        let local: Vec<Letter> =
            read_files(&self.folder).with_context(|| format!("reading {}", self.folder.display()))?;
        let mut found: Vec<(Entry, bool)> =
            local.iter().filter(|letter| filter.names(letter)).map(|letter| (Entry::from(letter), true)).collect();
        found.sort_by_key(|(entry, _)| std::cmp::Reverse((entry.died_at_ms, entry.letter_id)));
        // One that was kept twice is one.
        let mut seen = HashSet::new();
        found.retain(|(entry, _)| seen.insert(entry.letter_id));
        let listed = match &self.table {
            Table::In(client) => Store::new((**client).clone()).list(filter, state, None, limit, with_bytes).await,
            Table::NotYet(why) => return Ok(Found::of(found, limit, Asked::Nothing(why.clone()))),
            Table::Away(error) => return Ok(Found::of(found, limit, Asked::Failed(anyhow!(chain(&**error))))),
        };
        match listed {
            Ok(listed) => {
                // One that is being delivered stands in both.
                found.retain(|(local, _)| listed.iter().all(|entry| entry.letter_id != local.letter_id));
                found.extend(listed.into_iter().map(|entry| (entry, false)));
                Ok(Found::of(found, limit, Asked::All))
            }
            Err(error) if error.is_missing_table() => {
                Ok(Found::of(found, limit, Asked::Nothing("ClickHouse has no table of dead letters yet".to_owned())))
            }
            Err(error) => Ok(Found::of(found, limit, Asked::Failed(error.into()))),
        }
    }

    /// `dead-letters list`; what people must know beside it goes to stderr.
    ///
    /// # Errors
    /// ClickHouse's or the file system's, after what this node's files have is listed; a letter that was named is not among
    /// them.
    pub async fn list(&self, filter: &Filter, all_states: bool, limit: usize, json: bool) -> Result<()> {
        let state = if all_states { None } else { Some("held") };
        let Found { letters: found, asked } = self.letters(filter, state, limit, false).await?;
        if json {
            let list: Vec<Value> = found.iter().map(|(entry, local)| shown(entry, *local)).collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
        } else {
            let rows: Vec<[String; 7]> = found.iter().map(|(entry, local)| cells(entry, *local)).collect();
            let names = ["LETTER", "DIED", "TENANT", "EVENT", "STAGE", "STATE", "REASON"];
            let none = match asked {
                Asked::Failed(_) => "No dead letters on this node's disk.\n",
                Asked::All | Asked::Nothing(_) => "No dead letters.\n",
            };
            print!("{}", aligned(names, &rows, none));
        }
        match (asked, &self.table) {
            (Asked::Failed(error), _) => return Err(error.context("only this node's files were searched")),
            (Asked::Nothing(why), _) => eprintln!("{why}"),
            (Asked::All, Table::In(client)) => {
                let all = Store::new((**client).clone()).count(filter, state).await?;
                let shown = found.iter().filter(|(_, local)| !local).count() as u64;
                if all.letters > shown {
                    eprintln!("{} more letters are not shown: --limit", all.letters - shown);
                }
            }
            (Asked::All, _) => {}
        }
        let missing = filter.letters.iter().find(|name| found.iter().all(|(entry, _)| entry.letter_id != **name));
        match missing {
            Some(name) if found.len() < limit && all_states => {
                bail!("there is no such dead letter: {name}{ALL}")
            }
            Some(name) if found.len() < limit => {
                bail!("dead letter {name} is not held (any more), or there is none of that name{ALL}")
            }
            _ => Ok(()),
        }
    }

    /// `dead-letters show`.
    ///
    /// # Errors
    /// ClickHouse's or the file system's, unless the letter is on this node's disk; there is no such letter.
    pub async fn show(&self, letter: Uuid, json: bool) -> Result<String> {
        let filter = Filter { letters: vec![letter], ..Filter::default() };
        let Found { letters: found, asked } = self.letters(&filter, None, 1, true).await?;
        let (entry, local) = match (found.first(), asked) {
            (Some(found), Asked::All | Asked::Nothing(_)) => found,
            (Some(found), Asked::Failed(error)) => {
                eprintln!(
                    "warning: what became of the letter is not known, its table could not be asked: {}",
                    chain(&*error)
                );
                found
            }
            (None, Asked::All) => bail!("there is no dead letter {letter}{ALL}"),
            (None, Asked::Nothing(why)) => bail!("there is no dead letter {letter}: {why}"),
            (None, Asked::Failed(error)) => {
                let words = "is not on this node's disk, and the table dead_letters could not be asked";
                return Err(error.context(format!("letter {letter} {words}")));
            }
        };
        let mut shown = shown(entry, *local);
        let bytes = STANDARD.decode(&entry.bytes).unwrap_or_default();
        if let Value::Object(shown) = &mut shown {
            if let Ok(event) = event_of(entry) {
                let event = serde_json::from_str(&event.json).unwrap_or(Value::from(event.json));
                shown.insert("event".to_owned(), event);
            }
            if entry.bytes.is_empty() && entry.state != "held" {
                let words = format!("gone: its bytes went when it was {}", entry.state);
                shown.insert("content".to_owned(), Value::from(words));
            }
            if let Ok(text) = std::str::from_utf8(&bytes) {
                shown.insert("text".to_owned(), Value::from(text));
            }
            shown.insert("base64".to_owned(), Value::from(entry.bytes.clone()));
        }
        if json {
            return Ok(serde_json::to_string_pretty(&shown)? + "\n");
        }
        let mut text = String::new();
        let fields = ORDER.iter().filter_map(|name| Some((*name, shown.get(*name)?)));
        let fields = fields.filter(|(_, value)| value.as_str() != Some(""));
        for (name, value) in fields {
            match value {
                Value::String(value) => writeln!(text, "{name:<12} {value}")?,
                Value::Object(_) => writeln!(text, "{name:<12} {}", serde_json::to_string_pretty(value)?)?,
                value => writeln!(text, "{name:<12} {value}")?,
            }
        }
        Ok(text)
    }
}

/// The fields of a letter as people read them: which, whose, why, when, where from, what.
const ORDER: [&str; 21] = [
    "letter_id",
    "state",
    "where",
    "tenant_id",
    "event_id",
    "stage",
    "reason",
    "received_at",
    "died_at",
    "replayed_at",
    "dropped_at",
    "removed_at",
    "kept_until",
    "entered",
    "message",
    "form",
    "bytes",
    "content",
    "event",
    "text",
    "base64",
];

/// What shows the letters that there are.
const ALL: &str = "; `ingestion-engine dead-letters list --all-states` shows those that there are";

/// `dead-letters drop`: what is held and named by `filter` is given up. Returns how many letters that were.
///
/// # Errors
/// ClickHouse's; there is no letter of a name, and then nothing is dropped.
pub async fn drop_letters(client: &Client, filter: &Filter) -> Result<u64> {
    let store = Store::new(client.clone());
    if !filter.letters.is_empty() {
        let named = Filter { letters: filter.letters.clone(), ..Filter::default() };
        let there =
            store.list(&named, None, None, named.letters.len(), false).await.context("looking for the letters")?;
        if let Some(name) = named.letters.iter().find(|name| there.iter().all(|entry| entry.letter_id != **name)) {
            bail!("nothing is dropped: there is no dead letter {name} in ClickHouse{ALL}");
        }
        let settled = there.iter().filter(|entry| entry.state != "held");
        settled.for_each(|entry| eprintln!("letter {} was {} already", entry.letter_id, entry.state));
    }
    let held = store.count(filter, Some("held")).await.context("counting the letters")?;
    store.settle(filter, Fate::Dropped).await.context("dropping the letters; start the command again")?;
    Ok(held.letters)
}

/// `dead-letters replay`: the engine that runs with `data_dir` sends the letters that `filter` names; `done` has what is done so
/// far. Blocking.
///
/// # Errors
/// No engine runs, it could not do it, letters stay dead letters, or one that was named is not held.
pub fn replay(data_dir: &Path, filter: Filter, json: bool, done: &Mutex<Summary>) -> Result<()> {
    let named: HashSet<Uuid> = filter.letters.iter().copied().collect();
    let mut told = Instant::now();
    let progress = |progress| {
        let Ok(summary) = serde_json::from_value::<Summary>(progress) else { return };
        if told.elapsed() >= TELL_EVERY {
            eprintln!(
                "{} replayed, {} stored already, {} stay, so far",
                summary.replayed, summary.stored, summary.held
            );
            told = Instant::now();
        }
        *done.lock() = summary;
    };
    let summary = match control::ask::<Summary>(data_dir, &Request::Replay { filter }, progress) {
        Ok(summary) => summary,
        Err(error @ ClientError::NotRunning { .. }) => {
            bail!("{error}: start it, and run this beside it; letters go through its front")
        }
        // What the engine itself says has that in it.
        Err(error @ ClientError::Answer(_)) => bail!("{}; {}", chain(&error), done.lock().cut_off()),
        Err(error) => return Err(error.into()),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{}", replayed(&summary)?);
    }
    let were_held = summary.replayed + summary.stored + summary.held;
    if were_held < named.len() as u64 {
        bail!(
            "of the {} letters that were named {were_held} are held; `ingestion-engine dead-letters list --all-states LETTER` \
             shows what became of one",
            named.len()
        );
    }
    if summary.held > 0 {
        bail!("{} letters stay dead letters", summary.held);
    }
    Ok(())
}

/// The outcome of a replay, for people.
fn replayed(summary: &Summary) -> Result<String> {
    let mut text = String::new();
    match summary.replayed {
        0 => writeln!(text, "0 replayed")?,
        replayed => writeln!(text, "{replayed} replayed: the front has accepted them")?,
    }
    if summary.stored > 0 {
        writeln!(
            text,
            "{} of events that are stored already, or that another letter has brought back",
            summary.stored
        )?;
    }
    if summary.held > 0 {
        writeln!(text, "{} stay dead letters:", summary.held)?;
        for reason in &summary.reasons {
            writeln!(text, "  {}: {}", reason.letter_id, reason.reason)?;
        }
    }
    Ok(text)
}

fn shown(entry: &Entry, local: bool) -> Value {
    let mut shown = json!({
        "letter_id": entry.letter_id,
        "state": entry.state,
        "where": if local { "on local disk" } else { "in ClickHouse" },
        "died_at": time(entry.died_at_ms),
        "tenant_id": entry.tenant_id,
        "event_id": entry.event_id,
        "received_at": time(entry.received_at_ms),
        "kept_until": time(i64::from(entry.expires_at) * 1000),
        "stage": entry.stage,
        "reason": entry.reason,
        "form": entry.form,
        "bytes": entry.size,
    });
    if let Value::Object(shown) = &mut shown {
        if entry.state != "held" {
            let when = i64::try_from(entry.version).unwrap_or(i64::MAX);
            shown.insert(format!("{}_at", entry.state), Value::from(time(when)));
        }
        if !entry.wal_id.is_nil() {
            let place = json!({"wal_id": entry.wal_id, "seq": entry.wal_seq, "ordinal": entry.wal_ordinal});
            shown.insert("entered".to_owned(), place);
        }
        if !entry.topic.is_empty() {
            let Entry { topic, partition, offset, line, .. } = entry;
            let place = json!({"topic": topic, "partition": partition, "offset": offset, "line": line});
            shown.insert("message".to_owned(), place);
        }
    }
    shown
}

/// A line of the list.
fn cells(entry: &Entry, local: bool) -> [String; 7] {
    let event = if entry.event_id.is_nil() { "unknown".to_owned() } else { entry.event_id.to_string() };
    [
        entry.letter_id.to_string(),
        time(entry.died_at_ms),
        known(entry.tenant_id),
        event,
        entry.stage.clone(),
        if local { "on local disk".to_owned() } else { entry.state.clone() },
        short(&entry.reason),
    ]
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |time| time.to_string())
}

fn known(id: Uuid) -> String {
    if id == UNKNOWN.0 { "unknown".to_owned() } else { id.to_string() }
}

fn short(reason: &str) -> String {
    const MOST: usize = 100;
    let line = reason.lines().next().unwrap_or_default();
    if line.chars().count() <= MOST {
        return line.to_owned();
    }
    line.chars().take(MOST).chain("...".chars()).collect()
}

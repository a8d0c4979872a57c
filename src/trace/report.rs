//! What was found, put together: what each tenant's event has passed, and where it is now. No I/O.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;
use serde::Serialize;

use super::{Answers, Asked, Question, letters::Letter, stage::Stage, stage::Step, tables::InTable};
use crate::{
    broker::find::InTopic,
    erasure::Tombstone,
    ids::{EventId, TenantId, WalSeq},
    row::{EXPIRES_NEVER, Origin, Sighted},
    table::aligned,
    wal::InLog,
};

/// Where an event is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The event.
    pub event_id: EventId,
    /// Whether it was found anywhere.
    pub found: bool,
    /// By whom it was sent.
    pub tenants: Vec<OfTenant>,
    /// What was searched, and how far.
    pub searched: Vec<Place>,
    /// What could not be asked, or not wholly, and why.
    pub not_asked: Vec<Place>,
    /// What to try when it was found nowhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// A place where an event may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its name.
    pub place: &'static str,
    /// What is to be said of it.
    pub what: String,
}

/// An event of one tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfTenant {
    /// The tenant; none for a dead letter that does not say whose it is.
    pub tenant_id: Option<TenantId>,
    /// Its name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it has passed, the earliest first.
    pub steps: Vec<Step>,
    /// In one word: `stored`, `parked`, `released`, `dead_letter`, `erased`, `expired`, `dropped`, `in_topic`, `in_log`,
    /// `passed_on` (further on nobody could be asked), or `missing`.
    pub state: &'static str,
    /// Where it is, in a sentence.
    pub now: String,
}

const MISSING: &str = "missing";
const LOG: &str = "write-ahead log";
const TOPICS: &str = "broker";
const TABLES: &str = "ClickHouse";
const LETTERS: &str = "dead letters on disk";

impl Report {
    /// Puts together what was answered to `question`; `name` gives the name of a tenant.
    pub fn new(
        question: &Question,
        answers: &Answers,
        now: Timestamp,
        name: impl Fn(TenantId) -> Option<String>,
    ) -> Self {
        let (mut searched, mut not_asked) = (Vec::new(), Vec::new());
        let mut list = |place, state: (bool, Option<&String>)| match state {
            (true, Some(what)) => not_asked.push(Place { place, what: what.clone() }),
            (false, Some(what)) => searched.push(Place { place, what: what.clone() }),
            (_, None) => {}
        };
        list(LOG, words(&answers.log));
        list(TOPICS, words(&answers.topics));
        list(LETTERS, words(&answers.letters));
        list(TABLES, words(&answers.tables));

        let tenants: Vec<OfTenant> = gathered(answers)
            .into_iter()
            .map(|(tenant, met)| met.report(tenant, question, answers, now, &name))
            .collect();
        let found = !tenants.is_empty();
        let hints = if found { Vec::new() } else { hints(question, answers) };
        Self { event_id: question.event, found, tenants, searched, not_asked, hints }
    }

    /// Whether it is anywhere, or is nowhere for a reason that is known.
    pub fn is_accounted_for(&self) -> bool {
        self.tenants.iter().any(|of| of.state != MISSING)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            writeln!(text, "{arguments}").unwrap_or(());
        };
        for of in &self.tenants {
            match (of.tenant_id, &of.name) {
                (Some(tenant), Some(name)) => line(format_args!("Event {} of tenant {name} ({tenant})", self.event_id)),
                (Some(tenant), None) => line(format_args!("Event {} of tenant {tenant}", self.event_id)),
                (None, _) => line(format_args!("Event {}, it is not known of which tenant", self.event_id)),
            }
            let rows: Vec<_> = of.steps.iter().map(Step::cells).collect();
            line(format_args!("{}", aligned(["STAGE", "TIME", "WHERE"], &rows, "").trim_end()));
            line(format_args!("now: {}\n", of.now));
        }
        if !self.found {
            line(format_args!("Event {} was found nowhere.\nSearched:", self.event_id));
            self.searched.iter().for_each(|Place { place, what }| line(format_args!("  {place}: {what}")));
        }
        for Place { place, what } in &self.not_asked {
            line(format_args!("Could not be asked: {place}: {what}"));
        }
        self.hints.iter().for_each(|hint| line(format_args!("{hint}")));
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
        text
    }
}

impl Step {
    fn cells(&self) -> [String; 3] {
        let at = self.at.map_or_else(|| "not known".to_owned(), |at| format!("{at:.3}"));
        [self.stage.name().to_owned(), at, self.stage.to_string()]
    }
}

fn words<T>(asked: &Asked<T>) -> (bool, Option<&String>) {
    match asked {
        Asked::Absent(what) | Asked::Answered(_, what) => (false, Some(what)),
        Asked::Failed(_, why) => (true, Some(why)),
    }
}

fn hints(question: &Question, answers: &Answers) -> Vec<String> {
    let mut hints = Vec::new();
    let oldest = answers.log.said().and_then(|found| found.oldest_received_at_ms);
    if let Some(oldest) = oldest.and_then(|at| Timestamp::from_millisecond(at).ok()).filter(|at| *at < question.since) {
        hints.push(format!("The write-ahead log holds records since {oldest:.3}: --since reaches them."));
    }
    let made = question.event.0.get_timestamp().and_then(|made| {
        let (seconds, nanoseconds) = made.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
    });
    if let Some(made) = made.filter(|made| *made < question.since) {
        hints.push(format!("By its id it was made at {made:.3}: --since reaches back there."));
    }
    hints.push(
        "Not looked at: the write-ahead logs of other nodes (run this there). A row whose retention is over, or that was \
         erased, has left ClickHouse."
            .to_owned(),
    );
    hints
}

/// Where one tenant's event was met.
#[derive(Default)]
struct Met<'a> {
    in_log: Vec<&'a InLog>,
    remembered: Vec<i64>,
    in_topics: Vec<&'a InTopic>,
    stored: Vec<&'a InTable>,
    parked: Vec<&'a InTable>,
    letters: Vec<&'a Letter>,
}

/// Everything that was found, by tenant.
fn gathered(answers: &Answers) -> BTreeMap<Option<TenantId>, Met<'_>> {
    let mut all: BTreeMap<Option<TenantId>, Met<'_>> = BTreeMap::new();
    if let Some(found) = answers.log.said() {
        found.rows.iter().for_each(|row| all.entry(Some(row.row.tenant_id)).or_default().in_log.push(row));
        found.remembered.iter().for_each(|(tenant, at)| all.entry(Some(*tenant)).or_default().remembered.push(*at));
    }
    for row in answers.topics.said().into_iter().flatten() {
        all.entry(Some(row.row.tenant_id)).or_default().in_topics.push(row);
    }
    if let Some(found) = answers.tables.said() {
        found.stored.iter().for_each(|row| all.entry(Some(row.row.tenant_id)).or_default().stored.push(row));
        found.parked.iter().for_each(|row| all.entry(Some(row.row.tenant_id)).or_default().parked.push(row));
        found.letters.iter().for_each(|letter| all.entry(letter.tenant).or_default().letters.push(letter));
    }
    for letter in answers.letters.said().into_iter().flatten() {
        // One that has gone to the table meanwhile is met there.
        let letters = &mut all.entry(letter.tenant).or_default().letters;
        if letters.iter().all(|other| other.letter_id != letter.letter_id) {
            letters.push(letter);
        }
    }
    all
}

fn moment(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}

impl Met<'_> {
    fn report(
        &self,
        tenant_id: Option<TenantId>,
        question: &Question,
        answers: &Answers,
        now: Timestamp,
        name: impl Fn(TenantId) -> Option<String>,
    ) -> OfTenant {
        let tombstones = self.tombstones(tenant_id, answers);
        let (state, text) = self.now(tenant_id, &tombstones, question, answers, now);
        OfTenant { tenant_id, name: tenant_id.and_then(name), steps: self.steps(&tombstones), state, now: text }
    }

    /// What the rows say that were met, without repetition.
    fn rows(&self) -> impl Iterator<Item = &Sighted> {
        let in_log = self.in_log.iter().map(|row| &row.row);
        let in_topics = self.in_topics.iter().map(|row| &row.row);
        in_log.chain(in_topics).chain(self.stored.iter().chain(&self.parked).map(|row| &row.row))
    }

    /// The tombstones that name one of its rows; without a row, those of all of the tenant's rows.
    fn tombstones<'t>(&self, tenant_id: Option<TenantId>, answers: &'t Answers) -> Vec<&'t Tombstone> {
        let all = answers.tables.said().map(|found| &found.tombstones[..]).unwrap_or_default();
        let nameless = self.remembered.iter().filter_map(|at_ms| {
            let (user_id, anonymous_id, tenant_id) = (String::new(), String::new(), tenant_id?);
            Some(Sighted { tenant_id, received_at_ms: *at_ms, expires_at: 0, user_id, anonymous_id, parked: None })
        });
        let rows: Vec<Sighted> = self.rows().cloned().chain(nameless).collect();
        all.iter().filter(|tombstone| rows.iter().any(|row| tombstone.names_sighted(row))).collect()
    }

    fn steps(&self, tombstones: &[&Tombstone]) -> Vec<Step> {
        let mut steps = Steps::default();
        for row in &self.in_log {
            let (sequence, ordinal) = (row.seq, row.ordinal);
            let stage = Stage::Accepted { wal_id: row.wal_id, sequence, ordinal };
            steps.once(row.row.received_at_ms, stage);
        }
        for at_ms in &self.remembered {
            // Where a row or a letter says so too, it says more.
            if self.rows().next().is_none() && self.letters.iter().all(|letter| letter.accepted.is_none()) {
                steps.once(*at_ms, Stage::Remembered);
            }
        }
        for row in &self.in_topics {
            let InTopic { topic, partition, offset, .. } = *row;
            steps.before(&row.row, &row.origin, Some((topic, *partition, *offset)));
        }
        for row in self.stored.iter().chain(&self.parked) {
            let message = row.message.as_ref().map(|(topic, partition, offset)| (topic, *partition, *offset));
            steps.before(&row.row, &row.origin, message);
            // Each is a row of its own, even when two came in the same millisecond.
            steps.add(
                row.inserted_at_ms,
                match row.row.parked.clone() {
                    None => Stage::Stored,
                    Some((plugin, _)) if row.released => Stage::Released { plugin },
                    Some((plugin, reason)) => Stage::Parked { plugin, reason },
                },
            );
        }
        for letter in &self.letters {
            if let Some((at_ms, (wal_id, sequence, ordinal))) = letter.accepted {
                steps.once(at_ms, Stage::Accepted { wal_id, sequence: WalSeq(sequence), ordinal });
            }
            let stage = Stage::DeadLetter {
                letter_id: letter.letter_id.clone(),
                at_stage: letter.stage.clone(),
                reason: letter.reason.clone(),
                state: letter.state.clone(),
                kept: letter.kept.clone(),
            };
            steps.add(letter.died_at_ms, stage);
        }
        for tombstone in tombstones {
            steps.once(tombstone.before_ms, Stage::Erased { tombstone: tombstone.id });
        }
        let Steps(mut steps) = steps;
        steps.sort_by_key(|step| (step.at.is_none(), step.at, step.stage.rank()));
        steps
    }

    /// Where it is: in one word and in a sentence. What is furthest on counts.
    fn now(
        &self,
        tenant: Option<TenantId>,
        tombstones: &[&Tombstone],
        question: &Question,
        answers: &Answers,
        now: Timestamp,
    ) -> (&'static str, String) {
        let is_over = |row: &Sighted| i64::from(row.expires_at) <= now.as_second();
        if let Some(row) = self.stored.first() {
            let copies = self.copies();
            let kept = match kept_until(&row.row) {
                Some(until) if is_over(&row.row) => format!("; its retention was over at {until}, it leaves soon"),
                Some(until) => format!("; kept until {until}"),
                None => String::new(),
            };
            let buried = if tombstones.is_empty() {
                ""
            } else {
                "; an erasure names it and has not deleted it (yet): start `erase` or `tenants purge` again if none runs"
            };
            return ("stored", format!("stored in ClickHouse, table events{copies}{kept}{buried}"));
        }
        if let Some(letter) = self.letters.iter().rfind(|letter| letter.state == "held") {
            return (
                "dead_letter",
                format!(
                    "in the dead letters ({}): {}; `ingestion-engine dead-letters show {}` shows it",
                    letter.kept, letter.reason, letter.letter_id
                ),
            );
        }
        let is_released = |row: &InTable| {
            let same = |other: &&&InTable| other.released && other.origin.place() == row.origin.place();
            self.parked.iter().any(|other| same(&other))
        };
        let waits = self.parked.iter().find(|row| !row.released && !is_released(row));
        if let Some((plugin, reason)) = waits.and_then(|row| row.row.parked.as_ref()) {
            return (
                "parked",
                format!("parked for plugin {plugin} ({reason}); `plugins reprocess {plugin}` runs it through it again"),
            );
        }
        if let Some(letter) = self.letters.last() {
            let (state, kept) = (&letter.state, &letter.kept);
            return ("dead_letter", format!("a dead letter that was {state} ({kept}), and in no other place"));
        }
        if let Some(row) = self.parked.iter().find(|row| row.released) {
            let plugin = row.row.parked.as_ref().map_or("its plugin", |(plugin, _)| plugin);
            return (
                "released",
                format!(
                    "released from parking, and no row of events: {plugin} dropped or rejected it, or its row has left"
                ),
            );
        }
        if let Some(tombstone) = tombstones.first() {
            let left = match (self.in_topics.is_empty(), self.in_log.iter().all(|row| row.passed_on)) {
                (true, true) => "",
                _ => "; the copy that is on its way is not stored",
            };
            return ("erased", format!("erased by tombstone {}{left}", tombstone.id));
        }
        self.on_its_way(answers, is_over).unwrap_or_else(|| self.gone(tenant, question, answers, now, is_over))
    }

    /// Where it is when nothing behind the broker has it.
    fn on_its_way(&self, answers: &Answers, is_over: impl Fn(&Sighted) -> bool) -> Option<(&'static str, String)> {
        if let Some(row) = self.in_topics.last() {
            let InTopic { topic, partition, offset, .. } = row;
            let next = match (answers.tables.failed(), is_over(&row.row)) {
                (true, _) => "whether it is stored is not known, ClickHouse could not be asked",
                (false, true) => "its retention is over, so it is not stored any more",
                (false, false) => "waits for a sink to store it",
            };
            return Some(("in_topic", format!("in topic {topic}, partition {partition}, offset {offset}; {next}")));
        }
        let brokers = answers.topics.is_there();
        if let Some(row) = self.in_log.iter().rfind(|row| !row.passed_on) {
            let behind = if brokers { "the broker" } else { "ClickHouse" };
            let next = if is_over(&row.row) { "; its retention is over, so it will not be stored" } else { "" };
            return Some(("in_log", format!("in this node's write-ahead log, waits for {behind}{next}")));
        }
        let silent = [(answers.topics.failed(), "the broker"), (answers.tables.failed(), "ClickHouse")];
        let silent: Vec<&str> = silent.into_iter().filter(|(failed, _)| *failed).map(|(_, place)| place).collect();
        (!silent.is_empty()).then(|| {
            let further = format!("how far it has come is not known, {} could not be asked", silent.join(" and "));
            let left = if self.in_log.is_empty() { "no more in" } else { "passed on by" };
            ("passed_on", format!("{left} this node's write-ahead log; {further}"))
        })
    }

    /// Why nothing behind the log has it, when all were asked.
    fn gone(
        &self,
        tenant: Option<TenantId>,
        question: &Question,
        answers: &Answers,
        now: Timestamp,
        is_over: impl Fn(&Sighted) -> bool,
    ) -> (&'static str, String) {
        let gone = answers.tables.said().map(|found| &found.gone[..]).unwrap_or_default();
        if let Some(gone) = gone.iter().find(|gone| Some(gone.tenant) == tenant) {
            return match &*gone.reason {
                "erased" => ("erased", "erased from ClickHouse, or before it was stored there".to_owned()),
                "expired" => ("expired", "its retention was over before it could be stored".to_owned()),
                "dropped" => ("dropped", "its plugin did not want it when it was run again".to_owned()),
                // A letter that something became of keeps its row until then.
                "dead" if i64::from(gone.expires_at) > now.as_second() => {
                    let text =
                        "it became a dead letter, and its letter is in no place any more though it was to be kept";
                    (MISSING, format!("{text}: it was deleted by hand, or is lost; `ledger` counts what is missing"))
                }
                _ => ("dead_letter", "it became a dead letter, and its letter's retention is over".to_owned()),
            };
        }
        if let Some(until) = self.rows().filter(|row| is_over(row)).find_map(kept_until) {
            return ("expired", format!("it has left ClickHouse, its retention was over at {until}"));
        }
        let remembered = self.remembered.iter().min().copied();
        let all = answers.tables.said().map(|found| &found.tombstones[..]).unwrap_or_default();
        let later = |tombstone: &&Tombstone| {
            tenant.is_some_and(|tenant| tenant.0 == tombstone.tenant_id)
                && remembered.is_some_and(|at_ms| at_ms <= tombstone.before_ms)
        };
        let mut unless = String::new();
        // The window knows neither of whom it was nor where it went.
        if self.rows().next().is_none() {
            let erasures = all.iter().filter(later).count();
            if erasures > 0 {
                unless = format!(", unless one of the {erasures} erasures of this tenant since then named it");
            }
            if answers.topics.is_there() && remembered.is_some_and(|at_ms| at_ms < question.since.as_millisecond()) {
                unless.push_str(", unless it waits in the topic, which was not searched so far back (--since)");
            }
        }
        let left = if self.rows().next().is_some() {
            "passed on by this node's write-ahead log, and nothing behind it has it (any more)"
        } else {
            "acknowledged by this node, and neither in its write-ahead log nor behind it any more"
        };
        let text = format!(
            "{left}: it was deleted by hand, or is lost{unless}; `ledger` counts what is missing, and what damage took"
        );
        (if unless.is_empty() { MISSING } else { "passed_on" }, text)
    }

    /// What is to be said of several rows of one id.
    fn copies(&self) -> String {
        match self.stored.len() {
            1 => String::new(),
            rows => format!(
                ", in {rows} rows (sent again outside of the dedup window, or by another node: events_unique shows one)"
            ),
        }
    }
}

fn kept_until(row: &Sighted) -> Option<Timestamp> {
    (row.expires_at != EXPIRES_NEVER).then(|| Timestamp::from_second(i64::from(row.expires_at)).ok()).flatten()
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, at_ms: i64, stage: Stage) {
        self.0.push(Step { at: moment(at_ms), stage });
    }

    /// A stage that every place behind it tells of.
    fn once(&mut self, at_ms: i64, stage: Stage) {
        let step = Step { at: moment(at_ms), stage };
        if !self.0.contains(&step) {
            self.0.push(step);
        }
    }

    /// What a row says of the stages before the place where it was met.
    fn before(&mut self, row: &Sighted, origin: &Origin, message: Option<(&String, u32, u64)>) {
        let (wal_id, sequence, ordinal) = origin.place();
        self.once(row.received_at_ms, Stage::Accepted { wal_id, sequence: WalSeq(sequence), ordinal });
        if let Some((topic, partition, offset)) = message {
            self.once(origin.relayed_at_ms, Stage::Relayed { topic: topic.clone(), partition, offset });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use uuid::Uuid;

    use super::*;
    use crate::{
        ids::WalId,
        trace::tables::{Gone, InTables},
        wal::Findings,
    };

    const NOW: i64 = 1_790_000_000;

    fn tenant() -> TenantId {
        TenantId(Uuid::from_u128(1))
    }

    fn row(parked: bool) -> Sighted {
        Sighted {
            tenant_id: tenant(),
            received_at_ms: (NOW - 60) * 1000,
            expires_at: u32::try_from(NOW + 60).unwrap(),
            user_id: "ann".to_owned(),
            anonymous_id: String::new(),
            parked: parked.then(|| ("redact".to_owned(), "quarantined".to_owned())),
        }
    }

    fn origin() -> Origin {
        Origin { wal_id: WalId(Uuid::from_u128(9)), wal_seq: 42, wal_ordinal: 3, relayed_at_ms: (NOW - 50) * 1000 }
    }

    fn in_log(passed_on: bool) -> InLog {
        InLog { wal_id: origin().wal_id, seq: WalSeq(42), ordinal: 3, passed_on, row: row(false) }
    }

    fn in_topic() -> InTopic {
        InTopic { row: row(false), origin: origin(), topic: "t".to_owned(), partition: 2, offset: 5 }
    }

    fn in_table(parked: bool, released: bool) -> InTable {
        let message = Some(("t".to_owned(), 2, 5));
        InTable { row: row(parked), origin: origin(), message, inserted_at_ms: (NOW - 40) * 1000, released }
    }

    fn letter(state: &str) -> Letter {
        Letter {
            tenant: Some(tenant()),
            letter_id: "l".to_owned(),
            accepted: Some(((NOW - 60) * 1000, origin().place())),
            died_at_ms: (NOW - 30) * 1000,
            stage: "sink".to_owned(),
            reason: "no such day".to_owned(),
            state: state.to_owned(),
            kept: "table dead_letters".to_owned(),
        }
    }

    fn erased(user: &str) -> Tombstone {
        let (id, tenant_id) = (Uuid::from_u128(5), tenant().0);
        Tombstone { id, tenant_id, user_id: user.to_owned(), anonymous_ids: Vec::new(), before_ms: (NOW - 20) * 1000 }
    }

    fn answered<T>(said: T) -> Asked<T> {
        Asked::Answered(said, "searched".to_owned())
    }

    fn failed<T: Default>() -> Asked<T> {
        Asked::Failed(T::default(), "away".to_owned())
    }

    fn nothing() -> Answers {
        Answers {
            log: answered(Findings::default()),
            topics: answered(Vec::new()),
            tables: answered(InTables::default()),
            letters: answered(Vec::new()),
        }
    }

    fn report(answers: &Answers) -> Report {
        let question = Question { event: EventId(Uuid::from_u128(7)), tenant: None, since: Timestamp::UNIX_EPOCH };
        Report::new(&question, answers, Timestamp::from_second(NOW).unwrap(), |_| Some("acme".to_owned()))
    }

    /// The state of the one tenant, the names of its stages, and the sentence.
    fn told(answers: &Answers) -> (&'static str, Vec<&'static str>, String) {
        let report = report(answers);
        assert_eq!((report.found, report.tenants.len()), (true, 1), "{report:?}");
        let of = &report.tenants[0];
        (of.state, of.steps.iter().map(|step| step.stage.name()).collect(), of.now.clone())
    }

    #[test]
    fn what_is_furthest_on_counts_and_no_stage_is_told_twice() {
        let mut answers = nothing();
        assert!(!report(&answers).found);
        answers.log = answered(Findings { rows: vec![in_log(false)], ..Findings::default() });
        answers.tables = failed();
        let (state, stages, now) = told(&answers);
        assert_eq!((state, stages), ("in_log", vec!["accepted"]));
        assert!(now.contains("waits for the broker"), "{now}");

        answers.topics = answered(vec![in_topic()]);
        let (state, stages, now) = told(&answers);
        assert_eq!((state, stages), ("in_topic", vec!["accepted", "relayed"]));
        assert!(now.contains("offset 5") && now.contains("ClickHouse could not be asked"), "{now}");

        let stored = vec![in_table(false, false), in_table(false, false)];
        answers.tables = answered(InTables { stored, ..InTables::default() });
        let (state, stages, now) = told(&answers);
        assert_eq!((state, stages), ("stored", vec!["accepted", "relayed", "stored", "stored"]));
        assert!(now.contains("in 2 rows") && now.contains("kept until"), "{now}");
    }

    #[test]
    fn what_passed_on_is_said_to_be_unknown_only_while_somebody_could_not_be_asked() {
        let mut answers = nothing();
        answers.log = answered(Findings { remembered: vec![(tenant(), NOW * 1000)], ..Findings::default() });
        let (state, stages, now) = told(&answers);
        assert_eq!((state, stages), ("missing", vec!["accepted"]));
        assert!(now.contains("deleted by hand, or is lost;"), "{now}");
        assert!(!report(&answers).is_accounted_for());
        answers.tables = answered(InTables {
            tombstones: vec![Tombstone { before_ms: (NOW + 9) * 1000, ..erased("bob") }],
            ..InTables::default()
        });
        let (state, _, now) = told(&answers);
        assert!(state == "passed_on" && now.contains("unless one of the 1 erasures"), "{now}");
        (answers.topics, answers.tables) = (failed(), failed());
        assert!(told(&answers).2.contains("the broker and ClickHouse could not be asked"));
        answers.topics = Asked::Absent("none".to_owned());
        assert!(told(&answers).2.contains("not known, ClickHouse could not be asked"));
    }

    #[test]
    fn an_event_that_has_left_is_said_to_have_left_and_why() {
        let mut answers = nothing();
        answers.log = answered(Findings { rows: vec![in_log(true)], ..Findings::default() });
        assert_eq!(told(&answers).0, "missing");
        for (reason, kept, expected) in [
            ("erased", 60, "erased"),
            ("expired", -60, "expired"),
            ("dropped", 60, "dropped"),
            ("dead", -60, "dead_letter"),
            ("dead", 60, "missing"),
        ] {
            let (reason, expires_at) = (reason.to_owned(), u32::try_from(NOW + kept).unwrap());
            let gone = vec![Gone { tenant: tenant(), place: origin().place(), reason, expires_at }];
            answers.tables = answered(InTables { gone, ..InTables::default() });
            assert_eq!(told(&answers).0, expected);
            assert_eq!(report(&answers).is_accounted_for(), expected != "missing");
        }
        assert!(told(&answers).2.contains("its letter is in no place any more"));
        answers.tables = answered(InTables::default());
        let over = Sighted { expires_at: u32::try_from(NOW - 1).unwrap(), ..row(false) };
        answers.log = answered(Findings { rows: vec![InLog { row: over, ..in_log(true) }], ..Findings::default() });
        assert_eq!(told(&answers).0, "expired");

        // The window and a letter tell of one acceptance.
        let mut answers = nothing();
        answers.log = answered(Findings { remembered: vec![(tenant(), (NOW - 59) * 1000)], ..Findings::default() });
        answers.letters = answered(vec![letter("held")]);
        assert_eq!(told(&answers).1, ["accepted", "dead letter"]);
    }

    #[test]
    fn parked_events_dead_letters_and_erasures_have_their_words() {
        let tables = |parked: &[bool], letters: &[&str], tombstones: &[Tombstone]| InTables {
            parked: parked.iter().map(|released| in_table(true, *released)).collect(),
            letters: letters.iter().map(|state| letter(state)).collect(),
            tombstones: tombstones.to_vec(),
            ..InTables::default()
        };
        let mut answers = nothing();
        let mut state = |tables| {
            answers.tables = answered(tables);
            told(&answers)
        };
        assert_eq!(state(tables(&[false], &[], &[])).0, "parked");
        let (released, stages, _) = state(tables(&[false, true], &[], &[]));
        assert_eq!((released, stages), ("released", vec!["accepted", "relayed", "parked", "released"]));
        let (dead, stages, now) = state(tables(&[false, true], &["held"], &[]));
        assert_eq!((dead, *stages.last().unwrap()), ("dead_letter", "dead letter"));
        assert!(now.contains("no such day") && now.contains("dead-letters show l`"), "{now}");
        assert!(state(tables(&[], &["dropped"], &[])).2.contains("was dropped"));

        // The same letter on disk and in the table is one.
        answers.letters = answered(vec![letter("held")]);
        assert_eq!(told(&answers).1, ["accepted", "dead letter"]);

        let mut answers = nothing();
        answers.log = answered(Findings { rows: vec![in_log(false)], ..Findings::default() });
        answers.tables = answered(tables(&[], &[], &[erased("bob")]));
        assert_eq!(told(&answers).0, "in_log", "another person's");
        answers.tables = answered(tables(&[], &[], &[erased("bob"), erased("ann")]));
        let (state, stages, now) = told(&answers);
        assert_eq!((state, stages), ("erased", vec!["accepted", "erased"]));
        assert!(now.contains("is not stored"), "{now}");
    }

    #[test]
    fn nothing_found_says_where_it_was_searched_and_what_to_try() {
        let since = Timestamp::from_second(NOW).unwrap();
        let made = uuid::Timestamp::from_unix(uuid::NoContext, u64::try_from(NOW - 5000).unwrap(), 0);
        let question = Question { event: EventId(Uuid::new_v7(made)), tenant: None, since };
        let mut answers = nothing();
        let oldest_received_at_ms = Some((NOW - 9000) * 1000);
        answers.log = answered(Findings { oldest_received_at_ms, ..Findings::default() });
        answers.tables = failed();
        let report = Report::new(&question, &answers, since, |_| None);
        let text = report.text();
        for part in [
            "was found nowhere",
            "write-ahead log: searched",
            "broker: searched",
            "Could not be asked: ClickHouse: away",
            "holds records since",
            "By its id it was made at",
            "other nodes",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}

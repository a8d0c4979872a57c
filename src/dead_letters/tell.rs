//! What is kept is told in the log, and not letter by letter: a flood of bad rows is no flood of lines.
//!
//! The first letter of a stage is told at once, and whatever follows with the next line, some seconds later: how many, why,
//! whose, and one of them by name. The others can be listed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::letter::Letter;
use crate::{
    ids::{EventId, TenantId},
    ledger::UNKNOWN,
};

/// How often, at most, the letters of a stage are told.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// So many different reasons, and so many tenants, are named.
const MOST_NAMED: usize = 3;

/// What is not told yet, by stage.
#[derive(Default)]
pub(super) struct Telling {
    stages: Mutex<BTreeMap<&'static str, Gathered>>,
}

#[derive(Default)]
struct Gathered {
    told: Option<Instant>,
    letters: u64,
    reasons: Named<String>,
    tenants: Named<TenantId>,
    /// One of them.
    sample: Option<(Uuid, EventId)>,
}

/// The first of several values.
struct Named<T> {
    first: Vec<T>,
    and_more: bool,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { first: Vec::new(), and_more: false }
    }
}

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    stage: &'static str,
    letters: u64,
    reason: String,
    tenant: String,
    sample: Uuid,
    event: EventId,
}

impl Telling {
    /// Tells of `letters`, or notes them for the next line.
    pub(super) fn kept(&self, letters: &[Letter]) {
        let mut stages = self.stages.lock();
        for letter in letters {
            stages.entry(letter.stage.as_str()).or_default().add(letter);
        }
        write(due(&mut stages, Instant::now(), false));
    }

    /// Tells of those that wait for a next line: all of them, or those that have waited for long enough.
    pub(super) fn rest(&self, all: bool) {
        write(due(&mut self.stages.lock(), Instant::now(), all));
    }
}

fn write(lines: Vec<Line>) {
    for Line { stage, letters, reason, tenant, sample, event } in lines {
        tracing::warn!(stage, letters, reason, tenant, %sample, %event, "kept as dead letters");
    }
}

/// The lines of the stages whose turn it is.
fn due(stages: &mut BTreeMap<&'static str, Gathered>, now: Instant, all: bool) -> Vec<Line> {
    let is_due = |gathered: &Gathered| all || gathered.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
    let mut lines = Vec::new();
    for (stage, gathered) in stages.iter_mut().filter(|(_, gathered)| is_due(gathered)) {
        let Some((sample, event)) = gathered.sample else { continue };
        let Gathered { letters, reasons, tenants, .. } =
            std::mem::replace(gathered, Gathered { told: Some(now), ..Gathered::default() });
        let tenant = |tenant: &TenantId| if *tenant == UNKNOWN { "unknown".to_owned() } else { tenant.to_string() };
        lines.push(Line {
            stage,
            letters,
            reason: reasons.text(" | ", String::clone),
            tenant: tenants.text(", ", tenant),
            sample,
            event,
        });
    }
    lines
}

impl Gathered {
    fn add(&mut self, letter: &Letter) {
        self.letters += 1;
        self.reasons.add(&letter.reason);
        self.tenants.add(&letter.tenant_id);
        self.sample.get_or_insert((letter.letter_id, letter.event_id));
    }
}

impl<T: Clone + PartialEq> Named<T> {
    fn add(&mut self, value: &T) {
        if self.first.contains(value) {
            return;
        }
        if self.first.len() < MOST_NAMED {
            self.first.push(value.clone());
        } else {
            self.and_more = true;
        }
    }

    fn text(&self, between: &str, text: impl Fn(&T) -> String) -> String {
        let mut all: Vec<String> = self.first.iter().map(text).collect();
        if self.and_more {
            all.push("and more".to_owned());
        }
        all.join(between)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::dead_letters::{About, DeadLetter, Form, Stage};

    fn letter(stage: Stage, tenant: u128, reason: &str) -> Letter {
        let dead = DeadLetter {
            stage,
            reason: reason.to_owned(),
            form: Form::Line,
            bytes: b"{}",
            origin: None,
            message: None,
            about: Some(About { tenant_id: Some(Uuid::from_u128(tenant)), ..About::default() }),
        };
        Letter::of(&dead, jiff::Timestamp::now(), Duration::from_secs(60))
    }

    #[test]
    fn the_first_is_told_at_once_and_a_flood_with_one_line() {
        let mut stages: BTreeMap<&'static str, Gathered> = BTreeMap::new();
        let mut keep = |letters: &[Letter], now, all| {
            for letter in letters {
                stages.entry(letter.stage.as_str()).or_default().add(letter);
            }
            due(&mut stages, now, all)
        };
        let began = Instant::now();
        let one = letter(Stage::Sink, 1, "too long");
        let told = keep(std::slice::from_ref(&one), began, false);
        let expected = Line {
            stage: "sink",
            letters: 1,
            reason: "too long".to_owned(),
            tenant: one.tenant_id.to_string(),
            sample: one.letter_id,
            event: one.event_id,
        };
        assert_eq!(told, [expected]);
        for number in 0..1000_u32 {
            let kept =
                [letter(Stage::Sink, u128::from(number % 5), &format!("no number: {}", number % 4)), one.clone()];
            assert_eq!(keep(&kept, began + Duration::from_millis(number.into()), false), []);
        }
        // Another stage has its turn.
        assert_eq!(keep(&[letter(Stage::Source, UNKNOWN.0.as_u128(), "no row")], began, false)[0].tenant, "unknown");
        let told = keep(&[], began + TELL_EVERY, false);
        assert_eq!((told.len(), told[0].letters), (1, 2000));
        assert_eq!(told[0].reason, "no number: 0 | too long | no number: 1 | and more");
        assert!(told[0].tenant.ends_with(", and more"), "{}", told[0].tenant);
        // Nothing is told of nothing; at the end what is left is.
        assert_eq!(keep(&[], began + TELL_EVERY * 3, true), []);
        assert_eq!(keep(std::slice::from_ref(&one), began + TELL_EVERY, true)[0].letters, 1);
    }
}

//! The trial run: a plugin's own examples, and the same broken in a few ways.
//!
//! An example must be taken by everything that a sender's event must be taken by. A broken one is only tried if the engine
//! itself would take it, so that the plugin may be given its like any day; whatever the plugin says of it is right, as long
//! as it says something.

use jiff::Timestamp;
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use super::{
    child::TIME_LIMIT,
    leak::{self, Seen},
};
use crate::{
    event::{self, Acceptance, Types},
    ids::{EventId, TenantId},
    plugins::{
        call::{Backend, Call, Fault, Input, Purpose, Verdict},
        descriptor::{Descriptor, handles},
        instance::{Instance, Limits},
        schema::Schemas,
        threads::Worker,
    },
};

/// Most broken examples: a plugin with many types has many fields, and each costs calls.
const MOST_BROKEN: usize = 200;

/// Most broken examples at which the plugin fails that are tried for leaks: each needs a call of its own.
const MOST_FAULTY: usize = 4;

/// An event to try.
struct Sample {
    /// Where it comes from.
    place: String,
    json: String,
    kind: String,
    id: EventId,
}

/// What the trial run showed.
pub(super) struct Tried {
    examples: Vec<Sample>,
    /// Broken ones of which the plugin said something.
    broken: Vec<Sample>,
    /// Broken ones at which it failed.
    faulty: Vec<Sample>,
    rejected: usize,
    /// What it did wrong with broken ones, in words.
    pub faults: Vec<String>,
}

impl Tried {
    pub fn summary(&self) -> String {
        let (examples, broken) = (self.examples.len(), self.broken.len() + self.faulty.len());
        format!("examples taken: {examples}; broken ones rejected: {} of {broken}", self.rejected)
    }
}

pub(super) struct Trial<'a> {
    descriptor: &'a Descriptor,
    schemas: &'a Schemas,
    instance: &'a Instance,
    worker: &'a Worker,
    acceptance: Acceptance,
    types: Types,
}

impl<'a> Trial<'a> {
    pub fn new(
        descriptor: &'a Descriptor,
        schemas: &'a Schemas,
        instance: &'a Instance,
        worker: &'a Worker,
        limits: Limits,
    ) -> Self {
        let acceptance = Acceptance {
            tenant_id: TenantId(Uuid::nil()),
            received_at_ms: Timestamp::now().as_millisecond(),
            expires_at: u32::MAX,
            event_bytes: limits.event_bytes,
            // An example may be of any time: a plugin must not stop loading because its examples have aged.
            oldest_ms: i64::MIN,
            latest_ms: i64::MAX,
        };
        let added = descriptor.adds.iter().map(|added| added.name.as_str());
        // Types of other plugins that it enriches may stand in its examples, whether they are there now or not.
        let enriched = descriptor.enriches.iter().map(String::as_str).filter(|name| *name != "*");
        let types = Types::new(added.chain(enriched), []);
        Self { descriptor, schemas, instance, worker, acceptance, types }
    }

    /// Tries everything.
    ///
    /// # Errors
    /// What is wrong with the examples, or with what the plugin makes of them.
    pub fn run(&self) -> Result<Tried, Vec<String>> {
        let examples = self.examples()?;
        let mut problems = Vec::new();
        // Each alone first, so that a fault has a name; then all at once, as in a request.
        for example in &examples {
            match self.call(&[example]) {
                Ok(verdicts) => problems.extend(verdicts.iter().filter_map(|verdict| self.refused(example, verdict))),
                Err(fault) => problems.push(format!("{}: {fault}", example.place)),
            }
        }
        if problems.is_empty() && examples.len() > 1 {
            let together: Vec<&Sample> = examples.iter().collect();
            if let Err(fault) = self.call(&together) {
                problems.push(format!("all {} examples in one call: {fault}", examples.len()));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let broken = self.broken(&examples);
        let mut tried = Tried { examples, broken: Vec::new(), faulty: Vec::new(), rejected: 0, faults: Vec::new() };
        for sample in broken {
            match self.call(&[&sample]) {
                Ok(verdicts) => {
                    let rejected = |verdict: &Verdict| matches!(verdict, Verdict::Reject { .. });
                    tried.rejected += usize::from(verdicts.iter().any(rejected));
                    tried.faults.extend(verdicts.iter().filter_map(|verdict| self.replaced_badly(&sample, verdict)));
                    tried.broken.push(sample);
                }
                Err(fault) => {
                    tried.faults.push(format!("{}: {fault}", sample.place));
                    tried.faulty.push(sample);
                }
            }
        }
        Ok(tried)
    }

    /// Repeats what was tried and watches the memory.
    ///
    /// # Errors
    /// A leak, in words.
    pub fn leak(&self, tried: &Tried) -> Result<Seen, String> {
        let together: Vec<&Sample> = tried.examples.iter().chain(&tried.broken).collect();
        let mut calls: Vec<Vec<&Sample>> = tried.faulty.iter().take(MOST_FAULTY).map(|sample| vec![sample]).collect();
        if !together.is_empty() {
            calls.push(together);
        }
        leak::watch(calls.len(), || {
            // What it says was judged before.
            for samples in &calls {
                drop(self.call(samples));
            }
        })
    }

    fn examples(&self) -> Result<Vec<Sample>, Vec<String>> {
        let mut samples = Vec::new();
        let mut problems = Vec::new();
        let own = self
            .descriptor
            .adds
            .iter()
            .enumerate()
            .map(|(index, added)| (format!("adds[{index}].examples"), &added.examples, Some(added.name.as_str())));
        let rest = [("examples".to_owned(), &self.descriptor.examples, None)];
        for (place, examples, kind) in own.chain(rest) {
            for (index, example) in examples.iter().enumerate() {
                match self.example(format!("{place}[{index}]"), example, kind) {
                    Ok(sample) => samples.push(sample),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        if problems.is_empty() { Ok(samples) } else { Err(problems) }
    }

    fn example(&self, place: String, example: &RawValue, kind: Option<&str>) -> Result<Sample, String> {
        let sample = self.sample(place, example.get().to_owned())?;
        let handled = match kind {
            Some(kind) => sample.kind == kind,
            None => handles(self.descriptor, &sample.kind),
        };
        if handled {
            return Ok(sample);
        }
        let expected = kind.unwrap_or("one that the plugin adds or enriches");
        Err(format!("{} is of the type {:?}, and should be of {expected}", sample.place, sample.kind))
    }

    /// An event that the engine itself would take.
    fn sample(&self, place: String, json: String) -> Result<Sample, String> {
        let (kind, id) = match event::read(&json, &self.acceptance, &self.types) {
            Ok(row) => (row.kind.to_string(), row.event_id),
            Err((_, error)) => return Err(format!("{place} is no valid event: {error}")),
        };
        self.schemas
            .check(&kind, &json)
            .map_err(|problem| format!("{place} does not fit its own schema: {problem}"))?;
        Ok(Sample { place, json, kind, id })
    }

    fn call(&self, samples: &[&Sample]) -> Result<Vec<Verdict>, Fault> {
        let events: Vec<Input<'_>> =
            samples.iter().map(|sample| Input { json: &sample.json, kind: &sample.kind, id: sample.id }).collect();
        let call = Call {
            tenant: self.acceptance.tenant_id,
            received_at_ms: self.acceptance.received_at_ms,
            purpose: Purpose::CHECK,
            events: &events,
        };
        self.instance.process(self.worker, &call, TIME_LIMIT)
    }

    fn refused(&self, sample: &Sample, verdict: &Verdict) -> Option<String> {
        match verdict {
            Verdict::Reject { code, detail } => {
                Some(format!("{}: it rejects its own example, {code}: {detail}", sample.place))
            }
            verdict => self.replaced_badly(sample, verdict),
        }
    }

    /// What stands in an event's place must be an event again, as for the live engine.
    fn replaced_badly(&self, sample: &Sample, verdict: &Verdict) -> Option<String> {
        let Verdict::Replace(json) = verdict else { return None };
        let read = event::read_again(json, &self.acceptance, &self.types, sample.id, &sample.kind);
        read.err().map(|error| format!("{}: what it puts in its place is no valid event: {error}", sample.place))
    }

    /// The examples with a field taken away or replaced, as far as they are events still.
    fn broken(&self, examples: &[Sample]) -> Vec<Sample> {
        let events = examples.iter().filter_map(|example| {
            serde_json::from_str::<Map<String, Value>>(&example.json).ok().map(|event| (&example.place, event))
        });
        let variants = events.flat_map(|(place, event)| {
            variants(&event).into_iter().map(move |(what, event)| (format!("{place} with {what}"), event))
        });
        let samples = variants.filter_map(|(place, event)| self.sample(place, Value::Object(event).to_string()).ok());
        samples.take(MOST_BROKEN).collect()
    }
}

/// `event` with one field changed, of its own and of its `properties`.
fn variants(event: &Map<String, Value>) -> Vec<(String, Map<String, Value>)> {
    let mut all = Vec::new();
    // Without these it is no event of the type, or another one.
    for (field, value) in event.iter().filter(|(field, _)| *field != "type" && *field != "id") {
        all.extend(changes(event, field).map(|(what, changed)| (format!("\"{field}\" {what}"), changed)));
        let Value::Object(inner) = value else { continue };
        for name in inner.keys() {
            all.extend(changes(inner, name).map(|(what, changed)| {
                let mut event = event.clone();
                event.insert(field.clone(), Value::Object(changed));
                (format!("\"{field}.{name}\" {what}"), event)
            }));
        }
    }
    all
}

/// `object` with `field` changed in every way that is tried.
fn changes(object: &Map<String, Value>, field: &str) -> impl Iterator<Item = (&'static str, Map<String, Value>)> {
    let mut without = object.clone();
    without.remove(field);
    let values = [
        ("null", Value::Null),
        ("-1", Value::from(-1)),
        ("1e300", Value::from(1e300)),
        ("an empty text", Value::from("")),
        ("a long text", Value::from("\u{e9}".repeat(500))),
        ("an empty list", Value::Array(Vec::new())),
    ];
    let replaced = values.map(|(what, value)| {
        let mut changed = object.clone();
        changed.insert(field.to_owned(), value);
        (what, changed)
    });
    [("left out", without)].into_iter().chain(replaced)
}

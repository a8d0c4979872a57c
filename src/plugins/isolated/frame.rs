//! What the engine and a plugin's process say to each other, as bytes.
//!
//! ```text
//! frame    u32 length of what follows | u8 kind | body                     (little-endian; text: u32 length, UTF-8)
//! Start    u32 version, u8 log level, u64 memory, u64 event_bytes, text plugin, text sha256, text config
//! Call     16 tenant, i64 received, u32 purpose, u32 count, count x (16 id, text type, text JSON)
//! Health   -
//! answers  u32 count, count x (u8 0 counter | 1 gauge, text name, u64 increase | bits of the value), then:
//! Ready, Healthy   -
//! Refused, Ill     text why
//! Verdicts         u32 count, count x (u8 outcome, text first, text second)
//! Failed           u8 0 failed | 1 panicked | 2 bad output, text message
//! ```
//!
//! The engine's frames are trusted by the process, which is there to do what it is told. Nothing that comes from the
//! process is trusted: whoever wrote it may be a plugin that writes at random.

#![allow(unsafe_code, reason = "hands verdicts to the one reader that judges them")]

use ingestion_plugin_abi::{self as abi, Purpose};
use uuid::Uuid;

use crate::{
    ids::{EventId, TenantId},
    plugins::{
        call::{Call, Fault, Input, Verdict},
        host::MOST_SERIES,
        instance::{Limits, read_verdicts},
    },
};

/// Of these frames. Another program than the engine that runs may lie where it was started from.
pub(super) const VERSION: u32 = 1;

/// Bytes of a frame before its body: length and kind.
pub(super) const HEAD: usize = 5;

/// Most bytes of words that a process says: an error with its causes, a failure of 4 KiB in words around it.
const WORDS: usize = 16 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Start = 1,
    Call,
    Health,
    Ready = 65,
    Refused,
    Healthy,
    Ill,
    Verdicts,
    Failed,
}

impl Kind {
    pub(super) fn of(byte: u8) -> Result<Self, Malformed> {
        [
            Self::Start,
            Self::Call,
            Self::Health,
            Self::Ready,
            Self::Refused,
            Self::Healthy,
            Self::Ill,
            Self::Verdicts,
            Self::Failed,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
        .ok_or(Malformed("it is of no known kind"))
    }
}

/// A frame that makes no sense, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A frame in the making. Its memory is used again for the next one.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn begin(&mut self, kind: Kind) -> &mut Self {
        self.bytes.clear();
        // The length is known in the end.
        self.bytes.extend_from_slice(&[0; HEAD - 1]);
        self.u8(kind as u8)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    fn length(&mut self, length: usize) -> &mut Self {
        // Requests and limits are far below 4 GiB; what is not would be found malformed.
        self.u32(u32::try_from(length).unwrap_or(u32::MAX))
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.length(text.len()).raw(text.as_bytes())
    }

    /// The whole frame.
    pub(super) fn finish(&mut self) -> &[u8] {
        let length = u32::try_from(self.bytes.len() - (HEAD - 1)).unwrap_or(u32::MAX);
        if let Some(head) = self.bytes.first_chunk_mut() {
            *head = length.to_le_bytes();
        }
        &self.bytes
    }
}

/// What is left to read of a frame.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    fn raw(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (raw, rest) = self.rest.split_at_checked(length).ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(raw)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (raw, rest) = self.rest.split_first_chunk().ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(*raw)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.raw(length as usize)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("a text in it is not UTF-8"))
    }

    /// Words for people, as they come.
    pub(super) fn words(&mut self) -> Result<String, Malformed> {
        let words = self.bytes()?;
        Ok(String::from_utf8_lossy(words.get(..WORDS).unwrap_or(words)).into_owned())
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("it goes on after its end")) }
    }
}

/// What a process is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start<'a> {
    /// Most severe level that is not logged, as [`super::log`] numbers them.
    pub(super) level: u8,
    /// Address space that it may use beyond its own.
    pub(super) memory: u64,
    pub(super) event_bytes: usize,
    pub(super) plugin: &'a str,
    pub(super) sha256: &'a str,
    pub(super) config: &'a str,
}

impl<'a> Start<'a> {
    pub(super) fn write(&self, to: &mut Writer) {
        to.begin(Kind::Start).u32(VERSION).u8(self.level).u64(self.memory).u64(self.event_bytes as u64);
        to.text(self.plugin).text(self.sha256).text(self.config);
    }

    pub(super) fn read(mut from: Reader<'a>) -> Result<Self, Malformed> {
        if from.u32()? != VERSION {
            return Err(Malformed("the engine that asks is of another version than this program"));
        }
        let level = from.u8()?;
        let memory = from.u64()?;
        let event_bytes = usize::try_from(from.u64()?).unwrap_or(usize::MAX);
        let start =
            Self { level, memory, event_bytes, plugin: from.text()?, sha256: from.text()?, config: from.text()? };
        from.end()?;
        Ok(start)
    }
}

/// A call on its way to the process.
pub(super) fn write_call(to: &mut Writer, call: &Call<'_>) {
    to.begin(Kind::Call).raw(call.tenant.0.as_bytes()).raw(&call.received_at_ms.to_le_bytes()).u32(call.purpose.0);
    to.length(call.events.len());
    for event in call.events {
        to.raw(event.id.0.as_bytes()).text(event.kind).text(event.json);
    }
}

/// A call, its events apart because it borrows them.
pub(super) struct Called<'a> {
    tenant: TenantId,
    received_at_ms: i64,
    purpose: Purpose,
    events: Vec<Input<'a>>,
}

impl<'a> Called<'a> {
    pub(super) fn read(mut from: Reader<'a>) -> Result<Self, Malformed> {
        let tenant = TenantId(Uuid::from_bytes(from.array()?));
        let received_at_ms = i64::from_le_bytes(from.array()?);
        let purpose = Purpose(from.u32()?);
        let count = from.u32()?;
        let mut events = Vec::new();
        for _ in 0..count {
            let id = EventId(Uuid::from_bytes(from.array()?));
            events.push(Input { id, kind: from.text()?, json: from.text()? });
        }
        from.end()?;
        Ok(Self { tenant, received_at_ms, purpose, events })
    }

    pub(super) fn call(&self) -> Call<'_> {
        let Self { tenant, received_at_ms, purpose, events } = self;
        Call { tenant: *tenant, received_at_ms: *received_at_ms, purpose: *purpose, events }
    }
}

/// A change of a series of the plugin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    Counted(u64),
    Set(f64),
}

/// Begins an answer with what the plugin has counted since the last one.
pub(super) fn begin_answer<'a>(to: &'a mut Writer, kind: Kind, changes: &[(&str, Change)]) -> &'a mut Writer {
    to.begin(kind).length(changes.len());
    for (name, change) in changes {
        match change {
            Change::Counted(by) => to.u8(0).text(name).u64(*by),
            Change::Set(value) => to.u8(1).text(name).u64(value.to_bits()),
        };
    }
    to
}

/// Reads the beginning of an answer. Names are for [`crate::plugins::host`] to judge.
pub(super) fn read_changes<'a>(from: &mut Reader<'a>) -> Result<Vec<(&'a str, Change)>, Malformed> {
    let count = from.u32()?;
    if count as usize > MOST_SERIES {
        return Err(Malformed("it changes more series than a plugin may have"));
    }
    let mut changes = Vec::new();
    for _ in 0..count {
        let kind = from.u8()?;
        let name = from.text()?;
        let value = from.u64()?;
        changes.push((
            name,
            match kind {
                0 => Change::Counted(value),
                1 => Change::Set(f64::from_bits(value)),
                _ => return Err(Malformed("it changes a series of no known kind")),
            },
        ));
    }
    Ok(changes)
}

/// What came of a call, behind the changes.
pub(super) fn write_outcome(to: &mut Writer, changes: &[(&str, Change)], outcome: &Result<Vec<Verdict>, Fault>) {
    let verdicts = match outcome {
        Ok(verdicts) => verdicts,
        Err(fault) => {
            let (kind, message) = match fault {
                Fault::Panicked { message } => (1, message),
                Fault::BadOutput { problem } => (2, problem),
                Fault::Failed { message } => (0, message),
                other => (0, &other.to_string()),
            };
            begin_answer(to, Kind::Failed, changes).u8(kind).text(message);
            return;
        }
    };
    begin_answer(to, Kind::Verdicts, changes).length(verdicts.len());
    for verdict in verdicts {
        let (outcome, first, second) = match verdict {
            Verdict::Keep => (abi::Outcome::KEEP, "", ""),
            Verdict::Replace(json) => (abi::Outcome::REPLACE, json.as_str(), ""),
            Verdict::Reject { code, detail } => (abi::Outcome::REJECT, code.as_str(), detail.as_str()),
            Verdict::Drop { reason } => (abi::Outcome::DROP, reason.as_str(), ""),
        };
        // The outcomes of the contract are small numbers; another one would be refused as none.
        to.u8(u8::try_from(outcome.0).unwrap_or(u8::MAX)).text(first).text(second);
    }
}

/// Most bytes of the answer to a call with `events` events of `input` bytes together, the head apart.
pub(super) fn most_bytes(limits: Limits, events: usize, input: usize) -> usize {
    // Outcome, two lengths, and the points behind a detail that was cut; kind, length, name and value of a series.
    let (per_event, per_series) = (1 + 4 + 4 + 3, 1 + 4 + 64 + 8);
    limits.call_bytes(input) + events * per_event + MOST_SERIES * per_series + WORDS
}

/// Reads the verdicts of a call, and holds them against the contract as if the plugin had returned them here.
pub(super) fn read_verdicts_of(
    mut from: Reader<'_>,
    events: usize,
    input: usize,
    limits: Limits,
) -> Result<Result<Vec<Verdict>, Fault>, Malformed> {
    if from.u32()? as usize != events {
        return Err(Malformed("it has not one verdict for each event"));
    }
    let mut raw = Vec::with_capacity(events);
    for _ in 0..events {
        let outcome = abi::Outcome(u32::from(from.u8()?));
        let (first, second) = (abi::Bytes::of(from.bytes()?), abi::Bytes::of(from.bytes()?));
        raw.push(abi::Verdict { outcome, first, second, ..abi::Verdict::NONE });
    }
    from.end()?;
    // SAFETY: every verdict points to bytes of the frame, which is borrowed until after this.
    Ok(unsafe { read_verdicts(&raw, input, limits) })
}

/// Reads why a call has no verdicts.
pub(super) fn read_fault(mut from: Reader<'_>) -> Result<Fault, Malformed> {
    let kind = from.u8()?;
    let message = from.words()?;
    from.end()?;
    match kind {
        0 => Ok(Fault::Failed { message }),
        1 => Ok(Fault::Panicked { message }),
        2 => Ok(Fault::BadOutput { problem: message }),
        _ => Err(Malformed("it is a fault of no known kind")),
    }
}

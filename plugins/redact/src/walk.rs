//! The way through an event's JSON: once, from left to right, following the paths, without a copy of what stays.
//!
//! What is found is noted as an edit: a range of the text, and what stands there instead. Everything else stays as it was
//! sent, to the digit and the space. The engine has found the text to be JSON; nesting costs no stack, since a sender
//! decides on its depth.

use std::{borrow::Cow, ops::Range};

use crate::{
    fields::{self, Field},
    plan::{Child, Plan, State},
    replacement::{MASK, Replacement},
    scrub,
    text::{quoted, unescaped},
};

/// What was replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events in which something was.
    pub events: u64,
    /// Values at paths.
    pub values: u64,
    /// Addresses of e-mail.
    pub emails: u64,
    /// Values of query parameters.
    pub parameters: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.values += other.values;
        self.emails += other.emails;
        self.parameters += other.parameters;
    }
}

/// The text is not JSON after all. It says nothing of the text, which may be personal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// An object or an array that is being walked through.
struct Container {
    is_object: bool,
    /// Its states begin here.
    states: usize,
    /// The last comma, if a member before it stays.
    comma: Option<usize>,
}

/// A walk through one event.
pub struct Walk<'a> {
    json: &'a str,
    kind: &'a str,
    tenant: [u8; 16],
    plan: &'a Plan,
    replacement: &'a Replacement,
    at: usize,
    containers: Vec<Container>,
    /// States of all containers, those of the innermost last.
    states: Vec<State>,
    edits: Vec<(Range<usize>, String)>,
    counts: Counts,
}

impl<'a> Walk<'a> {
    /// A walk through `json`, an event of the type `kind`. `replacement` is the plan's, or another.
    pub fn new(json: &'a str, kind: &'a str, tenant: [u8; 16], plan: &'a Plan, replacement: &'a Replacement) -> Self {
        Self {
            json,
            kind,
            tenant,
            plan,
            replacement,
            at: 0,
            containers: Vec::new(),
            states: Vec::new(),
            edits: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The event without what was found, if anything was.
    ///
    /// # Errors
    /// [`NotJson`]
    pub fn redacted(mut self) -> Result<Option<(String, Counts)>, NotJson> {
        self.plan.start(&mut self.states);
        self.skip_space();
        if self.peek() != Some(b'{') {
            return Err(NotJson);
        }
        self.open(0, true);
        loop {
            self.skip_space();
            let Some(container) = self.containers.last_mut() else { break };
            match self.json.as_bytes().get(self.at) {
                Some(b',') => {
                    container.comma = Some(self.at);
                    self.at += 1;
                }
                Some(b'}' | b']') => {
                    self.states.truncate(container.states);
                    self.containers.pop();
                    self.at += 1;
                }
                Some(_) => self.child()?,
                None => return Err(NotJson),
            }
        }
        if self.edits.is_empty() {
            return Ok(None);
        }
        self.counts.events = 1;
        let mut out = String::with_capacity(self.json.len());
        let mut copied = 0;
        for (range, replacement) in &self.edits {
            out.push_str(self.json.get(copied..range.start).ok_or(NotJson)?);
            out.push_str(replacement);
            copied = range.end;
        }
        out.push_str(self.json.get(copied..).ok_or(NotJson)?);
        Ok(Some((out, self.counts)))
    }

    /// One member or element: its name, where the paths lead in it, and its value.
    fn child(&mut self) -> Result<(), NotJson> {
        let Some(container) = self.containers.last() else { return Err(NotJson) };
        let (is_object, parent) = (container.is_object, container.states);
        let (start, from) = (self.at, self.states.len());
        let mut ends = false;
        let mut field = Field::Property;
        let mut name = None;
        if is_object {
            let inside = self.string()?;
            let member = unescaped(self.json.get(inside.clone()).ok_or(NotJson)?);
            if self.containers.len() == 1 {
                field = fields::field(self.kind, &member);
                if field == Field::Property {
                    ends |= self.plan.follow_property(&member, from, &mut self.states);
                }
            }
            ends |= self.follow(parent..from, from, Child::Member(&member));
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(NotJson);
            }
            self.at += 1;
            self.skip_space();
            name = Some((inside, member));
        } else {
            ends |= self.follow(parent..from, from, Child::Element);
        }

        if field == Field::Fixed {
            self.states.truncate(from);
            return self.skip_value();
        }
        if ends {
            self.states.truncate(from);
            let value = self.at;
            self.skip_value()?;
            let needed = name.as_ref().is_some_and(|(_, name)| field != Field::Property && fields::is_needed(name));
            return self.replace(start, value..self.at, needed);
        }
        if let Some((inside, name)) = &name {
            self.scrub_name(inside.clone(), name);
        }
        match self.peek() {
            Some(opening @ (b'{' | b'[')) if self.states.len() > from || self.plan.scrubs() => {
                self.open(from, opening == b'{');
                return Ok(());
            }
            Some(b'"') => {
                let inside = self.string()?;
                self.scrub_value(inside, field)?;
            }
            _ => self.skip_value()?,
        }
        self.states.truncate(from);
        Ok(())
    }

    fn follow(&mut self, parents: Range<usize>, from: usize, child: Child<'_>) -> bool {
        let mut ends = false;
        for at in parents {
            if let Some(state) = self.states.get(at).copied() {
                ends |= self.plan.follow(state, child, from, &mut self.states);
            }
        }
        ends
    }

    fn open(&mut self, states: usize, is_object: bool) {
        self.containers.push(Container { is_object, states, comma: None });
        self.at += 1;
    }

    /// Notes that the value of the child that begins at `start` is replaced.
    fn replace(&mut self, start: usize, value: Range<usize>, needed: bool) -> Result<(), NotJson> {
        let json = self.json.get(value.clone()).ok_or(NotJson)?;
        // Nothing is there.
        if json == "null" {
            return Ok(());
        }
        self.counts.values += 1;
        match self.replacement {
            Replacement::Remove if !needed => self.remove(start),
            Replacement::Remove => self.edits.push((value, quoted(MASK))),
            replacement => {
                // A user is hashed alike as a text, with whatever escapes, and as a number.
                let inside = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                let text = inside.map_or(Cow::Borrowed(json), unescaped);
                self.edits.push((value, quoted(&replacement.text(self.tenant, &text))));
            }
        }
        Ok(())
    }

    /// Notes that the child from `start` to here is removed, with one comma.
    fn remove(&mut self, start: usize) {
        let end = self.at;
        self.skip_space();
        let Some(container) = self.containers.last_mut() else { return };
        match container.comma {
            Some(comma) => self.edits.push((comma..end, String::new())),
            // It is the first of those that stay, so the comma after it goes.
            None if self.json.as_bytes().get(self.at) == Some(&b',') => {
                self.at += 1;
                self.edits.push((start..self.at, String::new()));
            }
            None => self.edits.push((start..end, String::new())),
        }
    }

    fn scrub_name(&mut self, inside: Range<usize>, name: &str) {
        if !self.plan.emails {
            return;
        }
        let mut found = 0;
        let scrubbed = scrub::emails(name, |address| {
            found += 1;
            self.replacement.text(self.tenant, address)
        });
        if let Some(scrubbed) = scrubbed {
            self.counts.emails += found;
            self.edits.push((inside.start - 1..inside.end + 1, quoted(&scrubbed)));
        }
    }

    fn scrub_value(&mut self, inside: Range<usize>, field: Field) -> Result<(), NotJson> {
        let text = unescaped(self.json.get(inside.clone()).ok_or(NotJson)?);
        let (mut emails, mut parameters) = (0, 0);
        let mut scrubbed = None;
        if !self.plan.parameters.is_empty() && memchr::memchr(b'=', text.as_bytes()).is_some() {
            scrubbed = scrub::query_parameters(&text, &self.plan.parameters, |value| {
                parameters += 1;
                self.replacement.text(self.tenant, value)
            });
        }
        if self.plan.emails {
            let now = scrub::emails(scrubbed.as_deref().unwrap_or(&text), |address| {
                emails += 1;
                self.replacement.text(self.tenant, address)
            });
            scrubbed = now.or(scrubbed);
        }
        let Some(mut scrubbed) = scrubbed else { return Ok(()) };
        if let Field::Text(limit) = field
            && scrubbed.len() > limit.max(text.len())
        {
            MASK.clone_into(&mut scrubbed);
        }
        if scrubbed == text {
            return Ok(());
        }
        self.counts.emails += emails;
        self.counts.parameters += parameters;
        self.edits.push((inside.start - 1..inside.end + 1, quoted(&scrubbed)));
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Goes past a string; returns the range of its inside.
    fn string(&mut self) -> Result<Range<usize>, NotJson> {
        if self.peek() != Some(b'"') {
            return Err(NotJson);
        }
        let start = self.at + 1;
        let mut from = start;
        loop {
            let rest = self.json.as_bytes().get(from..).ok_or(NotJson)?;
            let found = from + memchr::memchr2(b'"', b'\\', rest).ok_or(NotJson)?;
            if self.json.as_bytes().get(found) == Some(&b'"') {
                self.at = found + 1;
                return Ok(start..found);
            }
            from = found + 2;
        }
    }

    /// Goes past a value, whatever it is.
    fn skip_value(&mut self) -> Result<(), NotJson> {
        let mut depth = 0_usize;
        loop {
            match self.peek().ok_or(NotJson)? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                _ if depth > 0 => self.at += 1,
                _ => {
                    let rest = self.json.as_bytes().get(self.at..).ok_or(NotJson)?;
                    let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                    let length = rest.iter().position(ends).ok_or(NotJson)?;
                    if length == 0 {
                        return Err(NotJson);
                    }
                    self.at += length;
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

//! What the configuration asks for, made ready: what is looked for, and what an event without any of it looks like.

use memchr::memmem::Finder;

use crate::{
    path::{MOST_PATHS, Path, Step},
    replacement::Replacement,
};

/// How far into a path an event has been followed: the path, and its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    path: usize,
    step: usize,
}

/// A member or an element, as a path sees it.
#[derive(Clone, Copy, Debug)]
pub enum Child<'a> {
    /// The member of an object.
    Member(&'a str),
    /// An element of an array.
    Element,
}

/// What is looked for, and what becomes of it.
pub struct Plan {
    pub replacement: Replacement,
    /// Whether addresses of e-mail are looked for in all texts.
    pub emails: bool,
    /// Names of query parameters, lower case.
    pub parameters: Vec<String>,
    paths: Vec<Path>,
    /// Names of which at least one stands in an event that a path leads into; `None` if a path leads into every event.
    needles: Option<Vec<Finder<'static>>>,
}

impl Plan {
    /// # Errors
    /// What is wrong with a path, in words.
    pub fn new(
        replacement: Replacement,
        emails: bool,
        parameters: Vec<String>,
        paths: &[String],
    ) -> Result<Self, String> {
        if paths.len() > MOST_PATHS {
            return Err(format!("`paths` has {} paths, more than {MOST_PATHS}", paths.len()));
        }
        let paths: Vec<Path> = paths.iter().map(|path| Path::parse(path)).collect::<Result<_, _>>()?;
        let whole = |name: &str| paths.iter().any(|path| path.is_whole_field() && path.begins_with(name));
        if let Some(name) = ["properties", "context"]
            .into_iter()
            .find(|name| whole(name) && !matches!(replacement, Replacement::Remove))
        {
            return Err(format!("`paths`: {name:?} must stay an object: name what is inside, or `{name}.*`"));
        }
        let needles = paths.iter().map(|path| path.needle().map(|name| Finder::new(name).into_owned())).collect();
        Ok(Self { replacement, emails, parameters, paths, needles })
    }

    /// Whether the event may hold something that is looked for. It is a search for bytes, which no escape deceives: an
    /// event with a `\u` in it may hold everything.
    pub fn may_concern(&self, json: &str) -> bool {
        let bytes = json.as_bytes();
        let has = |byte| memchr::memchr(byte, bytes).is_some();
        let named = || match &self.needles {
            Some(needles) => needles.iter().any(|needle| needle.find(bytes).is_some()),
            None => true,
        };
        named()
            || (self.emails && (has(b'@') || memchr::memmem::find(bytes, b"%40").is_some()))
            || (!self.parameters.is_empty() && has(b'='))
            || memchr::memmem::find(bytes, b"\\u").is_some()
    }

    /// Whether texts are looked into, wherever they stand.
    pub fn scrubs(&self) -> bool {
        self.emails || !self.parameters.is_empty()
    }

    /// Where all paths are at the start of an event.
    pub fn start(&self, states: &mut Vec<State>) {
        for path in 0..self.paths.len() {
            self.enter(State { path, step: 0 }, 0, states);
        }
    }

    /// Follows one path into a child, from `state` on. Adds where it is there to `states`, which has those of the child
    /// from `from` on. Returns whether the path ends at the child.
    pub fn follow(&self, state: State, child: Child<'_>, from: usize, states: &mut Vec<State>) -> bool {
        let next = State { step: state.step + 1, ..state };
        match (self.step(state), child) {
            (Some(Step::Name(name)), Child::Member(member)) if name == member => self.enter(next, from, states),
            (Some(Step::Any), Child::Member(_)) | (Some(Step::Each), Child::Element) => self.enter(next, from, states),
            (Some(Step::Deep), _) => self.enter(state, from, states),
            _ => false,
        }
    }

    /// Follows the paths into `properties` to a member that stands beside it.
    pub fn follow_property(&self, name: &str, from: usize, states: &mut Vec<State>) -> bool {
        let mut ends = false;
        for (path, steps) in self.paths.iter().enumerate().filter(|(_, path)| path.begins_with("properties")) {
            ends |= steps.is_whole_field();
            let first = State { path, step: 1 };
            ends |= self.follow(first, Child::Member(name), from, states);
            if self.step(first) == Some(&Step::Deep) {
                ends |= self.follow(State { path, step: 2 }, Child::Member(name), from, states);
            }
        }
        ends
    }

    fn step(&self, state: State) -> Option<&Step> {
        self.paths.get(state.path)?.step(state.step)
    }

    fn enter(&self, state: State, from: usize, states: &mut Vec<State>) -> bool {
        let Some(step) = self.step(state) else { return true };
        if !states.get(from..).is_some_and(|known| known.contains(&state)) {
            states.push(state);
        }
        // `**` may stand for no level at all. It is never the last step.
        *step == Step::Deep && self.enter(State { step: state.step + 1, ..state }, from, states)
    }
}

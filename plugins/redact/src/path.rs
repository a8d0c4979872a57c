//! Where personal data stand: the paths of the configuration.
//!
//! ```text
//! user_id                    a field of the event that has a column of its own
//! properties.email           a property, whether it was sent in `properties` or beside it
//! context.user.*.phone       * is every member of an object
//! properties.items[].name    [] is every element of an array
//! properties.**.iban         ** is any number of levels, none included, objects and arrays alike
//! properties."e.mail"        a name with other characters stands in quotes, as in JSON
//! ```

use crate::fields;

/// Most steps of a path, and most paths: more are a mistake, and all of them are tried at every level of an event.
const MOST_STEPS: usize = 16;
/// See [`MOST_STEPS`].
pub const MOST_PATHS: usize = 64;

/// One step down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member of this name.
    Name(String),
    /// Every member of an object.
    Any,
    /// Every element of an array.
    Each,
    /// Any number of levels.
    Deep,
}

/// A path: its first step is the name of a field of the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it, in words that name it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let steps = steps(text).map_err(|problem| format!("`paths`: {text:?} {problem}"))?;
        Ok(Self(steps))
    }

    /// The step at `at`; `None` at the path's end.
    pub fn step(&self, at: usize) -> Option<&Step> {
        self.0.get(at)
    }

    /// Whether the field that it begins with is `name`.
    pub fn begins_with(&self, name: &str) -> bool {
        matches!(self.0.first(), Some(Step::Name(first)) if first == name)
    }

    /// Whether it is the whole of a field.
    pub fn is_whole_field(&self) -> bool {
        self.0.len() == 1
    }

    /// A name without which nothing in an event matches; `None` if there is no such name.
    pub fn needle(&self) -> Option<&str> {
        // `properties` itself is no such name: a property may stand beside it.
        let from = usize::from(self.begins_with("properties"));
        let mut names = self.0.iter().skip(from).filter_map(|step| match step {
            // One that JSON writes with an escape does not stand in the event as it is.
            Step::Name(name) if name.bytes().all(|byte| !matches!(byte, b'"' | b'\\' | ..=0x1f | 0x7f)) => Some(name),
            _ => None,
        });
        names.next_back().map(String::as_str)
    }
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    loop {
        rest = step(rest, &mut steps)?;
        while let Some(after) = rest.strip_prefix("[]") {
            steps.push(Step::Each);
            rest = after;
        }
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None if rest.is_empty() => break,
            None => return Err(format!("cannot be read from {rest:?} on: steps are separated by points")),
        }
    }
    let Some(Step::Name(first)) = steps.first() else {
        return Err("must begin with the name of a field".to_owned());
    };
    fields::may_be_redacted(first)?;
    if steps.len() > 1 && !matches!(first.as_str(), "properties" | "context") {
        return Err(format!("goes on below `{first}`, which is a text: only `properties` and `context` have members"));
    }
    match (steps.last(), steps.iter().filter(|step| **step == Step::Deep).count()) {
        (Some(Step::Deep), _) => Err("must end with a name, `*` or `[]` after `**`".to_owned()),
        (_, 2..) => Err("has `**` more than once".to_owned()),
        _ if steps.len() > MOST_STEPS => Err(format!("has more than {MOST_STEPS} steps")),
        _ => Ok(steps),
    }
}

/// Reads one step from the start of `text`; returns what comes after it.
fn step<'a>(text: &'a str, steps: &mut Vec<Step>) -> Result<&'a str, String> {
    if let Some(rest) = text.strip_prefix("**") {
        steps.push(Step::Deep);
        return Ok(rest);
    }
    if let Some(rest) = text.strip_prefix('*') {
        steps.push(Step::Any);
        return Ok(rest);
    }
    if text.starts_with('"') {
        let mut names = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let name = names.next().and_then(Result::ok).ok_or("has a name in quotes that is not closed, or not JSON")?;
        steps.push(Step::Name(name));
        return Ok(text.get(names.byte_offset()..).unwrap_or_default());
    }
    let end = text.find(['.', '[', '*', '"', ']']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() || name.trim() != name {
        return Err("has an empty step; a name with points, brackets or spaces at its ends stands in quotes".to_owned());
    }
    steps.push(Step::Name(name.to_owned()));
    Ok(rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn name(name: &str) -> Step {
        Step::Name(name.to_owned())
    }

    #[test]
    fn paths_are_read_step_by_step() {
        for (text, expected) in [
            ("user_id", vec![name("user_id")]),
            ("properties.items[].name", vec![name("properties"), name("items"), Step::Each, name("name")]),
            ("properties.grid[][]", vec![name("properties"), name("grid"), Step::Each, Step::Each]),
            ("context.user.*.phone", vec![name("context"), name("user"), Step::Any, name("phone")]),
            ("properties.**.iban", vec![name("properties"), Step::Deep, name("iban")]),
            (r#"properties."e.mail\n".x"#, vec![name("properties"), name("e.mail\n"), name("x")]),
            ("properties.größe", vec![name("properties"), name("größe")]),
        ] {
            assert_eq!(Path::parse(text).unwrap(), Path(expected), "{text}");
        }
    }

    #[test]
    fn a_wrong_path_is_refused_in_words() {
        for (text, words) in [
            ("", "has an empty step"),
            ("properties..a", "has an empty step"),
            ("properties.a.", "has an empty step"),
            ("properties. a", "has an empty step"),
            ("properties.a[0]", "cannot be read from \"[0]\" on"),
            ("properties.a*", "cannot be read from \"*\" on"),
            (r#"properties."a"#, "not closed"),
            ("*.email", "must begin with the name of a field"),
            ("**.email", "must begin with the name of a field"),
            ("email", "a field without a column is a property: write `properties.email`"),
            ("id", "identifies the event"),
            ("lcp", "is a number, and says nothing of a person"),
            ("user_id.name", "goes on below `user_id`, which is a text"),
            ("properties.**", "must end with a name"),
            ("properties.**.a.**.b", "has `**` more than once"),
            ("properties.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a", "has more than 16 steps"),
        ] {
            let error = Path::parse(text).unwrap_err();
            assert!(error.contains(words) && error.starts_with("`paths`: "), "{text}: {error}");
        }
    }

    #[test]
    fn a_needle_is_a_name_that_cannot_be_missing() {
        for (text, expected) in [
            ("user_id", Some("user_id")),
            ("properties.a.b", Some("b")),
            ("properties.a[].*", Some("a")),
            ("properties.*", None),
            ("context.*", Some("context")),
            (r#"properties.a."\"""#, Some("a")),
        ] {
            assert_eq!(Path::parse(text).unwrap().needle(), expected, "{text}");
        }
    }
}

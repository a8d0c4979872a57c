//! `properties`: what the sender put there, and every field that has no column of its own.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use super::{
    error::EventError,
    field::{Field, one_line},
    scan::Checked,
};
use crate::row::Json;

/// So many names are compared one by one.
const FEW: usize = 16;

/// Joins the sender's `properties` object with the fields left over.
///
/// A leftover whose name is taken, inside `properties` or by another leftover, is kept beside it as `event.<name>`, then
/// `event.<name>.2` and so on, so that none hides another. Values stay the sender's own bytes.
pub(super) fn join<'a>(properties: Option<&Field<'a>>, leftovers: &[&Field<'a>]) -> Result<Json<'a>, EventError> {
    let sent = properties.map(Field::object).transpose()?.unwrap_or_default();
    if leftovers.is_empty() {
        return Ok(if is_empty_object(&sent) { Json::default() } else { sent });
    }
    let inner = match properties {
        Some(field) => {
            let inner = Checked::by_parser(field.value).fields();
            inner.ok_or_else(|| field.invalid("holds a name that is no text"))?
        }
        None => Vec::new(),
    };
    let size = sent.len() + leftovers.iter().map(|field| field.name.len() + field.value.len() + 16).sum::<usize>();
    let mut joined = String::with_capacity(size);
    joined.push_str(sent.strip_suffix('}').unwrap_or("{"));
    let mut write = |name: &Cow<'_, str>, field: &Field<'a>| {
        if !joined.trim_ascii_end().ends_with('{') {
            joined.push(',');
        }
        match name {
            // As it stands in the event, where it needed no escape.
            Cow::Borrowed(name) => joined.extend(["\"", name, "\""]),
            Cow::Owned(name) => joined.push_str(&serde_json::to_string(name).map_err(|error| field.invalid(error))?),
        }
        joined.push(':');
        joined.push_str(&one_line(field.value));
        Ok(())
    };
    if all_differ(&inner, leftovers) {
        leftovers.iter().try_for_each(|field| write(&field.name, field))?;
    } else {
        rename(&inner, leftovers, write)?;
    }
    joined.push('}');
    Ok(Json(Cow::Owned(joined)))
}

/// Whether no name stands twice, as far as that is seen without a table: of few names, which is the common case.
fn all_differ(inner: &[Field<'_>], leftovers: &[&Field<'_>]) -> bool {
    let differs = |(place, field): (usize, &&Field<'_>)| {
        let before = leftovers.iter().take(place).copied().chain(inner);
        before.into_iter().all(|other| other.name != field.name)
    };
    inner.len() + leftovers.len() <= FEW && leftovers.iter().enumerate().all(differs)
}

/// Gives each of `leftovers` to `write` with a name that no other has.
fn rename<'a>(
    inner: &[Field<'_>],
    leftovers: &[&Field<'a>],
    mut write: impl FnMut(&Cow<'_, str>, &Field<'a>) -> Result<(), EventError>,
) -> Result<(), EventError> {
    let mut taken: HashSet<Cow<'_, str>> = inner.iter().map(|inner| inner.name.clone()).collect();
    let mut repeats: HashMap<&str, usize> = HashMap::new();
    for field in leftovers {
        let mut name = field.name.clone();
        while taken.contains(&name) {
            // Counted by name, so that a thousand repeats cost a thousand steps and not a million.
            let count = repeats.entry(&field.name).and_modify(|count| *count += 1).or_insert(1);
            name = match *count {
                1 => Cow::Owned(format!("event.{}", field.name)),
                count => Cow::Owned(format!("event.{}.{count}", field.name)),
            };
        }
        write(&name, field)?;
        taken.insert(name);
    }
    Ok(())
}

fn is_empty_object(object: &str) -> bool {
    object.bytes().all(|byte| matches!(byte, b'{' | b'}' | b' ' | b'\t'))
}

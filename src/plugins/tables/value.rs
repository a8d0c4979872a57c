//! From a declared value to an expression of ClickHouse.
//!
//! An expression that throws fails the insert into `events`, after its rows are there ("while pushing to view"), and so
//! holds up everybody's. What the engine writes itself therefore never throws: a value that is missing, or is not one of
//! the column's type, is NULL where the column can hold that and the type's default where it cannot. Measured with
//! 26.7, and the reason for what looks like a detour:
//!
//! - `JSONExtract(.., 'Nullable(String)')` gives a string as its text, anything else as its JSON text, and NULL for null
//!   and for what is not there. Every other type is read from that text: `JSONExtract` to the type itself cannot tell a
//!   missing value from a wrong one.
//! - `accurateCastOrNull` of a text throws for an Enum, reads `127.0.0.1` as the Decimal 127.001, `12` as a date and
//!   `inf` as a Float64: texts are matched first.
//! - ClickHouse gives up the whole of `properties` when it holds a number beyond 64 bits or 1e308: every property of
//!   such an event is missing for it.

use super::kind::{Kind, quote};
use crate::plugins::descriptor::Value;

/// The text of a JSON number, and of nothing else.
const NUMBER: &str = r"'^-?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?$'";

/// How the text of a date begins, so that other numbers and words are not taken for one.
const DATE: &str = "'^[0-9]{4}-[0-9]{2}-[0-9]{2}'";

/// What an expression reads: its columns, called `e`.
pub(super) struct Source {
    pub(super) columns: Vec<(String, Kind)>,
    /// Whether it is `events`, which has `properties`.
    pub(super) is_events: bool,
}

/// The columns of `events`.
const EVENTS: &[(&str, &[&str])] = &[
    ("UUID", &["tenant_id", "event_id", "wal_id"]),
    ("DateTime64(3, 'UTC')", &["timestamp", "received_at", "relayed_at", "inserted_at"]),
    ("DateTime('UTC')", &["expires_at"]),
    (
        "LowCardinality(String)",
        &["type", "user_agent", "screen", "locale", "timezone", "name", "element", "direction", "topic"],
    ),
    (
        "String",
        &[
            "session_id",
            "user_id",
            "anonymous_id",
            "url",
            "path",
            "referrer",
            "title",
            "selector",
            "text",
            "context",
            "properties",
        ],
    ),
    (
        "Nullable(Float64)",
        &[
            "x",
            "y",
            "depth",
            "load_time_ms",
            "lcp",
            "fid",
            "inp",
            "cls",
            "ttfb",
            "fcp",
            "dom_content_loaded",
            "load_complete",
        ],
    ),
    ("UInt64", &["wal_seq", "offset"]),
    ("UInt32", &["wal_ordinal", "partition"]),
];

impl Source {
    pub(super) fn events() -> Self {
        let mut columns = Vec::new();
        for (kind, names) in EVENTS {
            if let Ok(kind) = Kind::read(kind) {
                columns.extend(names.iter().map(|name| ((*name).to_owned(), kind.clone())));
            }
        }
        Self { columns, is_events: true }
    }

    /// `value` as an expression of type `kind`, over columns of `e`.
    pub(super) fn expression(&self, value: &Value, kind: &Kind) -> Result<String, String> {
        match value {
            Value::Property(path) => Ok(from_json(kind, "e.properties", &self.property(path)?, 0)),
            Value::Column(name) => self.column(name, kind),
            Value::Sql(sql) => {
                check_sql(sql)?;
                // NULL has no place in a column that is not Nullable, and a CAST of it throws.
                Ok(if kind.is_container() {
                    format!("CAST(({sql}), {})", quote(&kind.to_string()))
                } else {
                    let bare = kind.bare().to_string();
                    unless_null(&format!("CAST(({sql}), {})", quote(&format!("Nullable({bare})"))), kind)
                })
            }
        }
    }

    /// The arguments of `JSONExtract` that lead to a property.
    fn property(&self, path: &str) -> Result<String, String> {
        if !self.is_events {
            return Err(format!("property {path}: a view of a table has that table's columns and no properties"));
        }
        if path.split('.').any(str::is_empty) || path.contains("${") {
            return Err(format!("`{path}` is no path of properties: names with points between them"));
        }
        Ok(path.split('.').map(|name| format!(", {}", quote(name))).collect())
    }

    fn column(&self, name: &str, kind: &Kind) -> Result<String, String> {
        let Some((_, found)) = self.columns.iter().find(|(other, _)| other == name) else {
            let place = if self.is_events { "`events` has" } else { "the table has" };
            return Err(format!("{place} no column {name}"));
        };
        let column = format!("e.`{name}`");
        if found == kind {
            return Ok(column);
        }
        let (from, to) = (found.bare(), kind.bare());
        if from == to {
            return Ok(unless_null(&column, kind));
        }
        match (from, to) {
            _ if found.is_container() || kind.is_container() => {
                Err(format!("column {name} is {found} and does not become {kind} by itself: give an expression"))
            }
            (Kind::String | Kind::FixedString(_), _) => {
                Ok(unless_null(&from_text(to, &format!("CAST({column}, 'Nullable(String)')")), kind))
            }
            (_, Kind::String) => Ok(unless_null(&format!("CAST({column}, 'Nullable(String)')"), kind)),
            // An exact conversion of a time to a date would be one of midnight only.
            (Kind::DateTime { .. } | Kind::DateTime64 { .. }, Kind::Date | Kind::Date32) => {
                Ok(unless_null(&date(to, &column), kind))
            }
            (_, Kind::Enum { .. }) => Err(format!("column {name} is {found}: an Enum takes its value from a text")),
            _ => Ok(unless_null(&format!("accurateCastOrNull({column}, {})", quote(&to.to_string())), kind)),
        }
    }
}

/// The value of type `kind` at `path` (arguments of `JSONExtract`) in the JSON text `json`.
fn from_json(kind: &Kind, json: &str, path: &str, depth: usize) -> String {
    // Names of lambda arguments that no column has, one for each level.
    let item = format!("__item{depth}");
    match kind {
        Kind::Array(inner) => {
            let each = from_json(inner, &item, "", depth + 1);
            format!("CAST(arrayMap({item} -> {each}, JSONExtractArrayRaw({json}{path})), {})", quote(&kind.to_string()))
        }
        Kind::Map(_, inner) => {
            let each = from_json(inner, &format!("{item}.2"), "", depth + 1);
            let pairs = format!("arrayMap({item} -> ({item}.1, {each}), JSONExtractKeysAndValuesRaw({json}{path}))");
            format!("CAST({pairs}, {})", quote(&kind.to_string()))
        }
        scalar => {
            unless_null(&from_text(scalar.bare(), &format!("JSONExtract({json}{path}, 'Nullable(String)')")), kind)
        }
    }
}

/// The value of type `kind`, without `Nullable` around it, in the text `text`; NULL if there is none.
fn from_text(kind: &Kind, text: &str) -> String {
    let cast = |text: &str| format!("accurateCastOrNull({text}, {})", quote(&kind.to_string()));
    let number = || cast(&format!("if(match({text}, {NUMBER}), {text}, NULL)"));
    let time = |precision: u8, zone: Option<&str>| {
        let zone = quote(zone.unwrap_or("UTC"));
        format!("parseDateTime64BestEffortOrNull(if(match({text}, {DATE}), {text}, NULL), {precision}, {zone})")
    };
    match kind {
        Kind::String => text.to_owned(),
        Kind::Decimal { .. } => number(),
        Kind::Float(_) => {
            let number = number();
            format!("if(isFinite({number}), {number}, NULL)")
        }
        Kind::Enum { values, .. } => {
            let names: Vec<_> = values.iter().map(|(name, _)| quote(name)).collect();
            let known = format!("if({text} IN ({}), {text}, NULL)", names.join(", "));
            format!("CAST({known}, {})", quote(&format!("Nullable({kind})")))
        }
        Kind::Date | Kind::Date32 => date(kind, &time(3, None)),
        // Milliseconds, so that years beyond 2106 are seen as such and become NULL.
        Kind::DateTime { zone } => cast(&time(3, zone.as_deref())),
        Kind::DateTime64 { precision, zone } => time(*precision, zone.as_deref()),
        _ => cast(text),
    }
}

/// The day of a time; NULL beyond the years that `kind` holds.
fn date(kind: &Kind, time: &str) -> String {
    let day = format!("toDate32({time})");
    match kind {
        Kind::Date => format!("accurateCastOrNull({day}, 'Date')"),
        _ => day,
    }
}

/// `value`, or what `kind` holds instead of NULL.
fn unless_null(value: &str, kind: &Kind) -> String {
    if kind.is_nullable() {
        value.to_owned()
    } else {
        format!("ifNull({value}, defaultValueOfTypeName({}))", quote(&kind.bare().to_string()))
    }
}

/// Finds the mistakes that would make another statement of the one that the expression is put into.
fn check_sql(sql: &str) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("expression `{sql}`: {what}"));
    if sql.trim().is_empty() {
        return refuse("it is empty");
    }
    if sql.contains("${") {
        return refuse("`${` is not for plugins");
    }
    let mut open: Vec<char> = Vec::new();
    let mut word = String::new();
    let mut previous = ' ';
    let mut characters = sql.chars().chain([' ']);
    while let Some(character) = characters.next() {
        if character.is_ascii_alphanumeric() || character == '_' {
            word.push(character.to_ascii_lowercase());
            previous = character;
            continue;
        }
        // It would be read anew for every insert, and from tables that nobody promises.
        if word == "select" {
            return refuse("a subquery is not possible here");
        }
        word.clear();
        match (previous, character) {
            ('-', '-') | ('/', '*') => return refuse("no comments, please"),
            (_, ';' | '#' | '{' | '}') => return refuse(&format!("`{character}` is not possible here")),
            (_, '(' | '[') => open.push(character),
            (_, ')') if open.pop() != Some('(') => return refuse("a `)` opens nowhere"),
            (_, ']') if open.pop() != Some('[') => return refuse("a `]` opens nowhere"),
            (_, quote @ ('\'' | '"' | '`')) => loop {
                match characters.next() {
                    None => return refuse(&format!("a {quote} is not closed")),
                    Some('\\') => drop(characters.next()),
                    Some(closing) if closing == quote => break,
                    Some(_) => {}
                }
            },
            _ => {}
        }
        previous = character;
    }
    match open.pop() {
        Some(bracket) => refuse(&format!("a `{bracket}` is not closed")),
        None => Ok(()),
    }
}

/// Words of an expression outside of its quotes: names of columns and functions.
pub(super) fn words(sql: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut quoted = false;
    for part in sql.split('\'') {
        if !quoted {
            let names = part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words.extend(names.filter(|name| !name.is_empty()));
        }
        quoted = !quoted;
    }
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::clickhouse::MIGRATIONS;

    #[test]
    fn the_columns_of_events_are_those_of_its_migration() {
        let sql = MIGRATIONS.first().unwrap().sql;
        let (_, body) = sql.split_once("(\n").unwrap();
        let (body, _) = body.split_once("\n)").unwrap();
        let mut expected: Vec<(String, Kind)> = body
            .lines()
            .filter_map(|line| line.trim().trim_end_matches(',').split_once(' '))
            .filter(|(name, _)| *name != "INDEX")
            .map(|(name, kind)| (name.to_owned(), Kind::read(kind.split(" DEFAULT").next().unwrap()).unwrap()))
            .collect();
        let mut columns = Source::events().columns;
        columns.sort_by(|one, other| one.0.cmp(&other.0));
        expected.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(columns, expected);
    }

    #[test]
    fn expressions_that_are_more_or_less_than_one_are_refused() {
        let table = [
            ("", "empty"),
            ("1; DROP TABLE x", "`;`"),
            ("1 -- one", "comments"),
            ("1 /* one */", "comments"),
            ("1 # one", "`#`"),
            ("lower(path", "`(` is not closed"),
            ("lower path)", "opens nowhere"),
            ("[path)", "opens nowhere"),
            ("lower('path", "' is not closed"),
            ("lower(`path)", "` is not closed"),
            ("'it\\'", "' is not closed"),
            ("(SELECT 1)", "subquery"),
            ("path in (select x from y)", "subquery"),
            ("{path:String}", "`{`"),
            ("'${settings}'", "not for plugins"),
        ];
        for (sql, expected) in table {
            let error = check_sql(sql).unwrap_err();
            assert!(error.contains(expected), "{sql}: {error}");
        }
        for sql in
            ["path", "toDate(timestamp)", "x - -1", "if(x > 1, [1, 2], [3])[1]", "'a;b--(' || selector", "'it''s'"]
        {
            check_sql(sql).unwrap();
        }
    }
}

//! Tables and views of a description, judged: what can be said before ClickHouse has seen them.
//!
//! Names are held to a form that needs no quotes. Types and expressions are ClickHouse's own language: here is only seen
//! to it that one cannot end the statement that it is put into (quotes and parentheses closed, no second statement, no
//! comment); whether ClickHouse takes it shows when the table is made.

use std::collections::HashSet;

use super::{Column, Descriptor, Function, Measure, NAME_BYTES, Problems, Table, Value, View, handles, is_name, shown};
use crate::row::{EVENT_COLUMNS, ORIGIN_COLUMNS, POSITION_COLUMNS};

/// Columns of every plugin's table, beside its own.
const COMMON: [&str; 8] =
    ["tenant_id", "event_id", "type", "timestamp", "received_at", "expires_at", "user_id", "anonymous_id"];

/// Common columns that a sort key may name: tenant and event stand in it anyway, and a row's expiry is its partition.
const SORTABLE: [&str; 5] = ["type", "timestamp", "received_at", "user_id", "anonymous_id"];

/// Most tables, and most views, of a plugin. Every one of them costs every insert.
const MOST_TABLES: usize = 16;
/// Most columns of a table or a view: wider ones are better as properties.
const MOST_COLUMNS: usize = 200;
/// Most columns of a sort key.
const MOST_KEY_COLUMNS: usize = 8;
/// Most bytes of a type or an expression.
const EXPRESSION_BYTES: usize = 4000;
/// Most bytes of a property's path.
const PATH_BYTES: usize = 256;

pub(super) fn judge(descriptor: &Descriptor, problems: &mut Problems) {
    problems.at_most("tables", "tables", descriptor.tables.len(), MOST_TABLES);
    problems.at_most("views", "views", descriptor.views.len(), MOST_TABLES);
    // Tables and views are objects of one database.
    let mut names = HashSet::new();
    for (index, table) in descriptor.tables.iter().enumerate() {
        let place = format!("tables[{index}]");
        object_name(&place, &table.name, &mut names, problems);
        judge_table(&place, descriptor, table, problems);
    }
    for (index, view) in descriptor.views.iter().enumerate() {
        let place = format!("views[{index}]");
        object_name(&place, &view.name, &mut names, problems);
        judge_view(&place, descriptor, view, problems);
    }
}

fn object_name<'a>(place: &str, name: &'a str, names: &mut HashSet<&'a str>, problems: &mut Problems) {
    problems.name(format_args!("{place}.name"), name, NAME_BYTES);
    if !names.insert(name) {
        problems.add(place, format_args!("is the second table or view of the name {}", shown(name)));
    }
}

fn judge_table(place: &str, descriptor: &Descriptor, table: &Table, problems: &mut Problems) {
    if table.types.is_empty() {
        problems.add(place, "has no types: name the types whose events it holds");
    }
    types(place, descriptor, &table.types, problems);
    if table.columns.is_empty() {
        problems.add(place, "has no columns of its own");
    }
    let mut names = HashSet::from(COMMON);
    columns(&format!("{place}.columns"), &table.columns, &mut names, &is_event_column, problems);
    key(place, table, problems);
}

fn key(place: &str, table: &Table, problems: &mut Problems) {
    problems.at_most(format_args!("{place}.order_by"), "columns", table.order_by.len(), MOST_KEY_COLUMNS);
    let mut seen = HashSet::new();
    for (index, name) in table.order_by.iter().enumerate() {
        let place = format!("{place}.order_by[{index}]");
        let own = table.columns.iter().find(|column| column.name == *name);
        if own.is_none() && !SORTABLE.contains(&&**name) {
            let problem = format!("is {}; use columns of the table, or {}", shown(name), SORTABLE.join(", "));
            problems.add(&place, problem);
        }
        if let Some(column) = own {
            not_nullable(&place, column, problems);
        }
        if !seen.insert(name) {
            problems.add(&place, format_args!("names {} a second time", shown(name)));
        }
    }
}

fn judge_view(place: &str, descriptor: &Descriptor, view: &View, problems: &mut Problems) {
    let table = view.from.as_ref().and_then(|from| descriptor.tables.iter().find(|table| table.name == *from));
    match &view.from {
        Some(from) if table.is_none() => {
            problems.add(place, format_args!("is made from {}, which is no table of the plugin", shown(from)));
        }
        Some(_) if !view.types.is_empty() => {
            problems.add(place, "has both from and types: the table's types are the view's");
        }
        None if view.types.is_empty() => {
            problems.add(
                place,
                "has neither from nor types: name a table of the plugin, or the types of `events` to count",
            );
        }
        _ => {}
    }
    types(place, descriptor, &view.types, problems);
    let readable = |name: &str| match table {
        Some(table) => COMMON.contains(&name) || table.columns.iter().any(|column| column.name == name),
        // With `from` naming nothing, which is a problem of its own, every column would be one more.
        None => view.from.is_some() || is_event_column(name),
    };
    let mut names = HashSet::from(["tenant_id"]);
    columns(&format!("{place}.group_by"), &view.group_by, &mut names, &readable, problems);
    for (index, column) in view.group_by.iter().enumerate() {
        not_nullable(&format!("{place}.group_by[{index}]"), column, problems);
    }
    if view.measures.is_empty() {
        problems.add(place, "has no measures: say what it adds up");
    }
    problems.at_most(format_args!("{place}.measures"), "measures", view.measures.len(), MOST_COLUMNS);
    for (index, measure) in view.measures.iter().enumerate() {
        let place = format!("{place}.measures[{index}]");
        column_name(&place, &measure.name, &mut names, problems);
        judge_measure(&place, measure, &readable, problems);
    }
}

fn judge_measure(place: &str, measure: &Measure, readable: &dyn Fn(&str) -> bool, problems: &mut Problems) {
    let (needs_type, needs_value) = match measure.function {
        Function::Count => (false, false),
        Function::Uniq => (false, true),
        Function::Sum | Function::Min | Function::Max => (true, true),
    };
    match (&measure.kind, needs_type) {
        (None, true) => problems.add(place, "needs a type: that of the result, like \"Decimal(38, 4)\""),
        (Some(_), false) => problems.add(place, "needs no type: the function has one of its own"),
        (Some(kind), true) => expression(&format!("{place}.type"), kind, problems),
        (None, false) => {}
    }
    match (&measure.value, needs_value) {
        (None, true) => problems.add(place, "needs a value: what it is made of"),
        (Some(_), false) => problems.add(place, "needs no value: it counts rows"),
        (Some(given), true) => value(place, given, readable, problems),
        (None, false) => {}
    }
}

fn types(place: &str, descriptor: &Descriptor, types: &[String], problems: &mut Problems) {
    let mut seen = HashSet::new();
    for (index, name) in types.iter().enumerate() {
        let place = format!("{place}.types[{index}]");
        if !is_name(name, NAME_BYTES) {
            problems.name(&place, name, NAME_BYTES);
        } else if !handles(descriptor, name) {
            problems.add(&place, format_args!("is {}, which the plugin neither adds nor enriches", shown(name)));
        }
        if !seen.insert(name) {
            problems.add(&place, format_args!("names {} a second time", shown(name)));
        }
    }
}

fn columns<'a>(
    place: &str,
    columns: &'a [Column],
    names: &mut HashSet<&'a str>,
    readable: &dyn Fn(&str) -> bool,
    problems: &mut Problems,
) {
    problems.at_most(place, "columns", columns.len(), MOST_COLUMNS);
    for (index, column) in columns.iter().enumerate() {
        let place = format!("{place}[{index}]");
        column_name(&place, &column.name, names, problems);
        expression(&format!("{place}.type"), &column.kind, problems);
        value(&place, &column.value, readable, problems);
    }
}

fn column_name<'a>(place: &str, name: &'a str, names: &mut HashSet<&'a str>, problems: &mut Problems) {
    problems.name(format_args!("{place}.name"), name, NAME_BYTES);
    if !names.insert(name) {
        problems
            .add(place, format_args!("has the name of another column, {}; every table has some already", shown(name)));
    }
}

fn value(place: &str, value: &Value, readable: &dyn Fn(&str) -> bool, problems: &mut Problems) {
    match value {
        Value::Property(path) => {
            let good = |level: &str| {
                !level.is_empty() && !level.contains(['"', '\'', '`', '\\']) && !level.chars().any(char::is_control)
            };
            if path.len() > PATH_BYTES || !path.split('.').all(good) {
                let shown = shown(path);
                problems
                    .add(place, format_args!("takes the property {shown}; write it like address.city, without quotes"));
            }
        }
        Value::Column(name) => {
            if !readable(name) {
                problems
                    .add(place, format_args!("takes the column {}, which what it reads does not have", shown(name)));
            }
        }
        Value::Sql(sql) => expression(&format!("{place}.value"), sql, problems),
    }
}

fn is_event_column(name: &str) -> bool {
    [EVENT_COLUMNS, ORIGIN_COLUMNS, POSITION_COLUMNS].iter().any(|columns| columns.contains(&name))
}

fn not_nullable(place: &str, column: &Column, problems: &mut Problems) {
    if column.kind.contains("Nullable(") {
        problems
            .add(place, format_args!("is {}, which may be null: a key needs a type that may not", shown(&column.name)));
    }
}

fn expression(place: &str, text: &str, problems: &mut Problems) {
    if text.trim().is_empty() || text.len() > EXPRESSION_BYTES {
        problems.add(place, format_args!("must have 1 to {EXPRESSION_BYTES} bytes"));
    } else if let Err(problem) = closed(text) {
        problems.add(place, problem);
    }
}

/// Whether `text` stays within itself when it is put into a statement.
fn closed(text: &str) -> Result<(), &'static str> {
    let mut open = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '\'' | '"' | '`' => loop {
                match rest.next() {
                    Some('\\') => drop(rest.next()),
                    // A doubled quote ends one text and begins the next: for this question the same.
                    Some(end) if end == character => break,
                    Some(_) => {}
                    None => return Err("has a quote that is not closed"),
                }
            },
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(character) => return Err("closes what it does not open"),
            ';' => return Err("has a semicolon: one expression, not a statement"),
            '#' => return Err("has a comment: leave it out"),
            '-' if rest.as_str().starts_with('-') => return Err("has a comment: leave it out"),
            '/' if rest.as_str().starts_with('*') => return Err("has a comment: leave it out"),
            '$' => return Err("has a \"$\": quote texts with '"),
            _ => {}
        }
    }
    if open.is_empty() { Ok(()) } else { Err("has a parenthesis that is not closed") }
}

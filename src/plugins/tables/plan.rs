//! From a declaration to what must stand in the database: pure, and the whole of it or a list of mistakes.
//!
//! ```text
//! table  orders         plugin_<plugin>_orders        <- plugin_<plugin>_orders_mv        <- events
//! view   revenue_daily  plugin_<plugin>_revenue_daily_data <- .._revenue_daily_mv         <- events or a table of it
//!                       plugin_<plugin>_revenue_daily      reads it, one row a group
//! ```
//!
//! - Everything is in the order in which it is made: what is written to comes before what writes to it, so that an
//!   insert in between finds either all of a chain or none of its beginning.
//! - A sort key holds only values that a repeat of the event carries again, as that of `events` does; partitions and
//!   expiry of a table are those of `events`.
//! - The aggregates of a view are kept until the last event of their group expires, and leave then: unlike the views of
//!   the engine they may be grouped by what names somebody.
//! - Expressions are evaluated in a subquery under names of their own. Beside each other in one SELECT, the alias of one
//!   would hide the column that the next one reads.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::{
    declared::Declaration,
    kind::{Kind, quote},
    value::{Source, words},
};
use crate::plugins::descriptor::{Column, Function, Measure, Table, Value, View};

/// Columns that every table has, in this order; all from `events`.
const COMMON: [(&str, &str); 8] = [
    ("tenant_id", "UUID"),
    ("event_id", "UUID"),
    ("type", "LowCardinality(String)"),
    ("timestamp", "DateTime64(3, 'UTC')"),
    ("received_at", "DateTime64(3, 'UTC')"),
    ("expires_at", "DateTime('UTC')"),
    ("user_id", "String"),
    ("anonymous_id", "String"),
];

/// Columns that every view has.
const COMMON_OF_VIEWS: [(&str, &str); 2] = [("tenant_id", "UUID"), ("expires_at", "DateTime('UTC')")];

/// What the engine sets itself and a repeat of the same event does not carry again.
const NOT_REPEATED: [&str; 10] = [
    "received_at",
    "expires_at",
    "relayed_at",
    "inserted_at",
    "wal_id",
    "wal_seq",
    "wal_ordinal",
    "topic",
    "partition",
    "offset",
];

/// Longest name of a table, view or column: names of files are made of it.
const LONGEST_NAME: usize = 64;

/// Something in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Its name in the database.
    pub(super) name: String,
    /// What a person calls it: `table orders`.
    pub(super) label: String,
    pub(super) role: Role,
    /// What it looks like; equal if and only if nothing is to be altered.
    pub(super) fingerprint: String,
    /// Text of its comment.
    pub(super) comment: String,
}

/// What an object is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Holds rows.
    Target {
        /// Its columns: name and type, as ClickHouse shows it.
        columns: Vec<(String, String)>,
        /// Engine, keys and settings.
        engine: String,
    },
    /// Fills a target.
    Filler {
        /// The target.
        to: String,
        select: String,
        /// What it reads: `events`, or a target.
        from: String,
        /// Its values, each with the name of its column.
        values: Vec<(String, String)>,
    },
    /// Reads a target.
    Reader { select: String },
}

impl Object {
    fn new(label: &str, name: String, role: Role, declaration: &Declaration) -> Self {
        let fingerprint = format!("{:x}", Sha256::digest(format!("{role:?}")));
        let fingerprint = fingerprint.get(..16).unwrap_or(&fingerprint).to_owned();
        let Declaration { plugin, version, .. } = declaration;
        let comment = format!("plugin {plugin} {version}, {label}, {fingerprint}");
        Self { name, label: label.to_owned(), role, fingerprint, comment }
    }

    /// The statement that makes it, unless it is there.
    pub(super) fn create(&self) -> String {
        let (name, comment) = (&self.name, quote(&self.comment));
        match &self.role {
            Role::Target { columns, engine } => {
                let columns: Vec<_> = columns.iter().map(|(column, kind)| format!("    `{column}` {kind}")).collect();
                let columns = columns.join(",\n");
                format!(
                    "CREATE TABLE IF NOT EXISTS ${{database}}.`{name}` ${{on_cluster}}\n(\n{columns}\n)\n{engine}\n\
                     COMMENT {comment}"
                )
            }
            Role::Filler { to, select, .. } => format!(
                "CREATE MATERIALIZED VIEW IF NOT EXISTS ${{database}}.`{name}` ${{on_cluster}}\n\
                 TO ${{database}}.`{to}` AS\n{select}\nCOMMENT {comment}"
            ),
            Role::Reader { select } => format!(
                "CREATE VIEW IF NOT EXISTS ${{database}}.`{name}` ${{on_cluster}} AS\n{select}\nCOMMENT {comment}"
            ),
        }
    }

    /// The statements that change an older one, which has the columns `present`, into it. Each bears repeats, and the
    /// comment comes last: it says that the rest is done.
    pub(super) fn alter(&self, present: &[(String, String)]) -> Vec<String> {
        let name = &self.name;
        let table = format!("ALTER TABLE ${{database}}.`{name}` ${{on_cluster}}");
        let comment = format!("{table} MODIFY COMMENT {}", quote(&self.comment));
        match &self.role {
            Role::Target { columns, .. } => columns
                .iter()
                .filter(|(column, _)| present.iter().all(|(other, _)| other != column))
                .map(|(column, kind)| format!("{table} ADD COLUMN IF NOT EXISTS `{column}` {kind}"))
                .chain([comment])
                .collect(),
            Role::Filler { select, .. } => vec![format!("{table} MODIFY QUERY\n{select}"), comment],
            Role::Reader { .. } => {
                vec![self.create().replacen("CREATE VIEW IF NOT EXISTS", "CREATE OR REPLACE VIEW", 1)]
            }
        }
    }
}

/// Everything that `declaration` needs, in the order in which it is made.
///
/// # Errors
/// Every mistake in it, in words.
pub(super) fn plan(declaration: &Declaration) -> Result<Vec<Object>, Vec<String>> {
    let mut planner = Planner { declaration, errors: Vec::new(), targets: Vec::new(), rest: Vec::new() };
    let fillers: Vec<_> = declaration.tables.iter().map(|table| planner.table(table)).collect();
    for view in &declaration.views {
        planner.view(view);
    }
    let Planner { mut errors, targets, mut rest, .. } = planner;
    // A filler of `events` comes last: from then on rows flow.
    rest.extend(fillers);
    rest.sort_by_key(|object| match &object.role {
        Role::Filler { from, .. } if from == "events" => 2,
        Role::Filler { .. } => 1,
        _ => 0,
    });
    let objects: Vec<_> = targets.into_iter().chain(rest).collect();
    let mut names = BTreeSet::new();
    for object in &objects {
        if !names.insert(&object.name) {
            errors.push(format!("{}: its name {} in the database is another one's too", object.label, object.name));
        }
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

struct Planner<'a> {
    declaration: &'a Declaration,
    errors: Vec<String>,
    targets: Vec<Object>,
    rest: Vec<Object>,
}

/// A column of which type and expression have been read.
struct Read {
    name: String,
    kind: Kind,
    expression: String,
}

impl Planner<'_> {
    fn full_name(&self, name: &str) -> String {
        format!("plugin_{}_{name}", self.declaration.plugin)
    }

    fn object(&self, label: &str, name: String, role: Role) -> Object {
        Object::new(label, name, role, self.declaration)
    }

    /// A result, or a note of what is wrong with `place`.
    fn note<T>(&mut self, place: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|error| self.errors.push(format!("{place}: {error}"))).ok()
    }

    fn table(&mut self, table: &Table) -> Object {
        let label = format!("table {}", table.name);
        self.note(&label, name(&table.name));
        let source = Source::events();
        let own = self.columns(&label, &table.columns, &COMMON, &source);
        let mut key = vec!["tenant_id".to_owned()];
        for column in &table.order_by {
            let checked = key_column(column, table, &own, &key);
            if let Some(column) = self.note(&label, checked) {
                key.push(column);
            }
        }
        if !table.order_by.iter().any(|column| column == "event_id") {
            key.push("event_id".to_owned());
        }
        let key: Vec<_> = key.iter().map(|column| format!("`{column}`")).collect();
        let filter = self.types(&label, &table.types);

        let mut columns: Vec<_> = COMMON.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect();
        let mut values: Vec<_> = COMMON.iter().map(|(name, _)| ((*name).to_owned(), format!("e.`{name}`"))).collect();
        for Read { name, kind, expression } in own {
            columns.push((name.clone(), kind.to_string()));
            values.push((name, expression));
        }
        let engine = format!(
            "ENGINE = ${{replicated}}ReplacingMergeTree\n\
             PARTITION BY if(expires_at = toDateTime(4294967295, 'UTC'), toYYYYMM(received_at), \
             toYYYYMMDDhhmmss(expires_at))\n\
             ORDER BY ({})\n\
             TTL expires_at\n\
             SETTINGS ttl_only_drop_parts = 1, merge_with_ttl_timeout = 600, min_bytes_for_wide_part = 134217728, \
             ${{settings}}",
            key.join(", ")
        );
        let to = self.full_name(&table.name);
        let target = self.object(&label, to.clone(), Role::Target { columns, engine });
        self.targets.push(target);

        let outer: Vec<_> = values.iter().enumerate().map(|(at, (name, _))| format!("`__{at}` AS `{name}`")).collect();
        let select = format!("SELECT {}\nFROM (\n{}\n)", outer.join(", "), inner(&values, "events", &filter));
        let role = Role::Filler { to, select, from: "events".to_owned(), values };
        self.object(&label, self.full_name(&format!("{}_mv", table.name)), role)
    }

    fn view(&mut self, view: &View) {
        let label = format!("view {}", view.name);
        self.note(&label, name(&view.name));
        let (from, source, filter) = match &view.from {
            None => ("events".to_owned(), Source::events(), self.types(&label, &view.types)),
            Some(table) => {
                if !view.types.is_empty() {
                    self.errors.push(format!("{label}: `types` is for views of events; the table has its own"));
                }
                let Some(source) = self.table_source(&label, table) else { return };
                (self.full_name(table), source, String::new())
            }
        };
        let groups = self.columns(&label, &view.group_by, &COMMON_OF_VIEWS, &source);
        for group in &groups {
            if group.kind.is_nullable() || matches!(group.kind, Kind::Map(..)) {
                self.errors.push(format!("{label}: {} cannot be grouped by: its type is {}", group.name, group.kind));
            }
        }
        if view.measures.is_empty() {
            self.errors.push(format!("{label}: it measures nothing"));
        }

        let mut columns = vec![("tenant_id".to_owned(), "UUID".to_owned())];
        let mut values = vec![("tenant_id".to_owned(), "e.`tenant_id`".to_owned())];
        let mut select = vec!["`__0` AS `tenant_id`".to_owned()];
        let mut keys = vec!["`__0`".to_owned()];
        let mut reading = vec!["d.`tenant_id` AS `tenant_id`".to_owned()];
        let mut order = vec!["`tenant_id`".to_owned()];
        for Read { name, kind, expression } in groups {
            let at = values.len();
            select.push(format!("`__{at}` AS `{name}`"));
            keys.push(format!("`__{at}`"));
            reading.push(format!("d.`{name}` AS `{name}`"));
            order.push(format!("`{name}`"));
            columns.push((name.clone(), kind.to_string()));
            values.push((name, expression));
        }
        let reading_keys: Vec<_> = order.iter().map(|name| format!("d.{name}")).collect();

        columns.push(("expires_at".to_owned(), "SimpleAggregateFunction(max, DateTime('UTC'))".to_owned()));
        select.push(format!("max(`__{}`) AS `expires_at`", values.len()));
        values.push(("expires_at".to_owned(), "e.`expires_at`".to_owned()));
        for measure in &view.measures {
            let place = format!("{label}, measure {}", measure.name);
            let taken = columns.iter().any(|(name, _)| *name == measure.name);
            let free = if taken { Err("there is another column of this name".to_owned()) } else { Ok(()) };
            let read = name(&measure.name).and(free).and_then(|()| aggregate(measure, &source, values.len()));
            if let Some(made) = self.note(&place, read) {
                columns.push((measure.name.clone(), made.column));
                select.push(format!("{} AS `{}`", made.gather, measure.name));
                reading.push(format!("{}(d.`{}`) AS `{}`", made.read, measure.name, measure.name));
                values.push((measure.name.clone(), made.value));
            }
        }

        let engine = format!(
            "ENGINE = ${{replicated}}AggregatingMergeTree\nORDER BY ({})\nTTL expires_at\nSETTINGS ${{settings}}",
            order.join(", ")
        );
        let to = self.full_name(&format!("{}_data", view.name));
        let gather = format!(
            "SELECT {}\nFROM (\n{}\n)\nGROUP BY {}",
            select.join(", "),
            inner(&values, &from, &filter),
            keys.join(", ")
        );
        let read = format!(
            "SELECT {}\nFROM ${{database}}.`{to}` AS d\nGROUP BY {}",
            reading.join(", "),
            reading_keys.join(", ")
        );
        let target = self.object(&label, to.clone(), Role::Target { columns, engine });
        let reader = self.object(&label, self.full_name(&view.name), Role::Reader { select: read });
        let role = Role::Filler { to, select: gather, from, values };
        let filler = self.object(&label, self.full_name(&format!("{}_mv", view.name)), role);
        self.targets.push(target);
        self.rest.extend([reader, filler]);
    }

    /// The columns of a table of the same plugin, as a view reads them.
    fn table_source(&mut self, label: &str, name: &str) -> Option<Source> {
        let Some(table) = self.declaration.tables.iter().find(|table| table.name == name) else {
            self.errors.push(format!("{label}: the plugin has no table {name}"));
            return None;
        };
        let common = COMMON.iter().map(|(name, kind)| (*name, *kind));
        let own = table.columns.iter().map(|column| (column.name.as_str(), column.kind.as_str()));
        // One whose type cannot be read is reported where its table is.
        let columns =
            common.chain(own).filter_map(|(name, kind)| Some((name.to_owned(), Kind::read(kind).ok()?))).collect();
        Some(Source { columns, is_events: false })
    }

    fn columns(&mut self, label: &str, columns: &[Column], taken: &[(&str, &str)], source: &Source) -> Vec<Read> {
        let mut found: Vec<Read> = Vec::new();
        for column in columns {
            let place = format!("{label}, column {}", column.name);
            if taken.iter().any(|(name, _)| *name == column.name) {
                self.errors.push(format!("{place}: every one has this column, the engine fills it"));
            }
            if found.iter().any(|other| other.name == column.name) {
                self.errors.push(format!("{place}: it is there twice"));
            }
            let read = name(&column.name).and_then(|()| Kind::read(&column.kind)).and_then(|kind| {
                let expression = source.expression(&column.value, &kind)?;
                Ok(Read { name: column.name.clone(), kind, expression })
            });
            found.extend(self.note(&place, read));
        }
        found
    }

    /// The condition that chooses the events of `types`.
    fn types(&mut self, label: &str, types: &[String]) -> String {
        if types.is_empty() {
            self.errors.push(format!("{label}: it names no event types"));
        }
        for kind in types {
            if !self.declaration.types.contains(kind) {
                self.errors.push(format!("{label}: the plugin neither adds nor enriches type {kind}"));
            }
            if kind.contains("${") {
                self.errors.push(format!("{label}: `{kind}` is no type"));
            }
        }
        if types.iter().any(|kind| kind == "*") {
            return String::new();
        }
        let types: Vec<_> = types.iter().map(|kind| quote(kind)).collect();
        format!("\n    WHERE e.`type` IN ({})", types.join(", "))
    }
}

fn inner(values: &[(String, String)], from: &str, filter: &str) -> String {
    let named = values.iter().enumerate().map(|(at, (_, expression))| format!("\n        {expression} AS `__{at}`"));
    let named: Vec<_> = named.collect();
    format!("    SELECT{}\n    FROM ${{database}}.`{from}` AS e{filter}", named.join(","))
}

/// Checks a name of a plugin's own making.
fn name(name: &str) -> Result<(), String> {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let goes_on = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if starts && goes_on && name.len() <= LONGEST_NAME {
        Ok(())
    } else {
        Err(format!("a name begins with a letter, goes on with a-z, 0-9 and _, and has at most {LONGEST_NAME} of them"))
    }
}

/// A column of the sort key, if it can be one.
fn key_column(column: &str, table: &Table, own: &[Read], key: &[String]) -> Result<String, String> {
    if key.iter().any(|other| other == column) {
        return Err(format!("sort key: {column} is there twice, or first anyway"));
    }
    let not_repeated = |name: &str| {
        Err(format!("sort key: {column} is made of {name}, which is another when the same event is sent again"))
    };
    if NOT_REPEATED.contains(&column) {
        return not_repeated(column);
    }
    if COMMON.iter().any(|(name, _)| *name == column) {
        return Ok(column.to_owned());
    }
    let declared = table.columns.iter().find(|other| other.name == column);
    let Some(declared) = declared else { return Err(format!("sort key: there is no column {column}")) };
    match &declared.value {
        Value::Column(source) if NOT_REPEATED.contains(&source.as_str()) => return not_repeated(source),
        Value::Sql(sql) => {
            let changing = ["now", "now64", "today", "rand", "rand64", "generateUUIDv4", "generateUUIDv7"];
            let found = words(sql).into_iter().find(|word| NOT_REPEATED.contains(word) || changing.contains(word));
            if let Some(found) = found {
                return not_repeated(found);
            }
        }
        _ => {}
    }
    match own.iter().find(|read| read.name == column) {
        Some(read) if read.kind.is_nullable() || matches!(read.kind, Kind::Map(..)) => {
            Err(format!("sort key: {column} is {}, which cannot be sorted by", read.kind))
        }
        _ => Ok(column.to_owned()),
    }
}

/// One measure in its three places.
struct Made {
    /// Type of its column.
    column: String,
    /// The value that is aggregated, of each row.
    value: String,
    /// The aggregate of an insert's rows.
    gather: String,
    /// The function that joins the aggregates when they are read.
    read: &'static str,
}

/// A measure of which the value is number `at` of the subquery. Values that are not there are left out of all but
/// `count`, as in SQL everywhere.
fn aggregate(measure: &Measure, source: &Source, at: usize) -> Result<Made, String> {
    let kind = match (&measure.kind, measure.function) {
        (Some(kind), Function::Sum | Function::Min | Function::Max) => Some(Kind::read(kind)?),
        (None, Function::Sum | Function::Min | Function::Max) => {
            return Err("`sum`, `min` and `max` need the type of their result".to_owned());
        }
        (Some(_), Function::Count | Function::Uniq) => {
            return Err("`count` and `uniq` have a type of their own".to_owned());
        }
        (None, Function::Count | Function::Uniq) => None,
    };
    let value = match (&measure.value, measure.function) {
        (None, Function::Count) => None,
        (Some(value), Function::Sum | Function::Min | Function::Max | Function::Uniq) => Some(value),
        (Some(_), Function::Count) => return Err("`count` counts rows and takes no value".to_owned()),
        (None, _) => return Err("it has no value".to_owned()),
    };
    let read = |kind: Kind| match value {
        Some(value) => source.expression(value, &Kind::Nullable(Box::new(kind))),
        None => Ok("1".to_owned()),
    };
    match (measure.function, kind) {
        (Function::Sum, Some(kind)) => {
            if !kind.is_sum() {
                return Err(format!("a sum is Int64, UInt64, Float64, Decimal(38, S) or wider, and not {kind}"));
            }
            let gather = format!("ifNull(sum(`__{at}`), defaultValueOfTypeName({}))", quote(&kind.to_string()));
            let column = format!("SimpleAggregateFunction(sum, {kind})");
            Ok(Made { column, value: read(kind)?, gather, read: "sum" })
        }
        (function @ (Function::Min | Function::Max), Some(kind)) => {
            if kind.is_container() || kind.bare() != &kind {
                return Err(format!("a least or greatest value has a plain type, and not {kind}"));
            }
            let function = if function == Function::Min { "min" } else { "max" };
            // Nullable: of a group without a value there is no least one. A measure that a later version adds, too,
            // must not find a zero in the groups that are there.
            let column = format!("SimpleAggregateFunction({function}, Nullable({kind}))");
            Ok(Made { column, value: read(kind)?, gather: format!("{function}(`__{at}`)"), read: function })
        }
        (Function::Uniq, _) => Ok(Made {
            column: "AggregateFunction(uniq, Nullable(String))".to_owned(),
            // Empty means absent in every column of text of `events`.
            value: format!("nullIf({}, '')", read(Kind::String)?),
            gather: format!("uniqState(`__{at}`)"),
            read: "uniqMerge",
        }),
        _ => Ok(Made {
            column: "SimpleAggregateFunction(sum, UInt64)".to_owned(),
            value: read(Kind::String)?,
            gather: "count()".to_owned(),
            read: "sum",
        }),
    }
}

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::{Value, json};

use super::{Tables, declared::is_newer};
use crate::plugins::descriptor::Descriptor;

fn plugin(name: &str, version: &str, tables: &Value, views: &Value) -> Descriptor {
    serde_json::from_value(json!({
        "name": name, "version": version, "enriches": ["pageview"], "tables": tables, "views": views,
    }))
    .unwrap()
}

fn table(columns: &Value, order_by: &Value) -> Value {
    json!([{ "name": "t", "types": ["pageview"], "columns": columns, "order_by": order_by }])
}

fn column(name: &str, kind: &str) -> Value {
    json!({ "name": name, "type": kind, "value": { "property": name } })
}

fn view(group_by: &Value, measures: &Value) -> Value {
    json!([{ "name": "v", "types": ["pageview"], "group_by": group_by, "measures": measures }])
}

fn opened() -> (tempfile::TempDir, Tables) {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    (folder, tables)
}

/// Declares, and makes it binding as if it stood.
fn stand(tables: &Tables, descriptor: &Descriptor) {
    tables.declare(descriptor).unwrap();
    let (_, declarations) = tables.snapshot();
    tables.note_applied(&declarations.values().collect::<Vec<_>>());
}

#[test]
fn mistakes_are_found_without_clickhouse() {
    let none = json!([]);
    let sql = |name: &str, kind: &str, sql: &str| json!({ "name": name, "type": kind, "value": { "sql": sql } });
    let of =
        |name: &str, kind: &str, column: &str| json!({ "name": name, "type": kind, "value": { "column": column } });
    let count = json!([{ "name": "n", "function": "count" }]);
    let sum = |kind: &str| json!([{ "name": "n", "function": "sum", "type": kind, "value": { "column": "x" } }]);
    let cases = [
        (json!([{ "name": "T", "types": ["pageview"], "columns": [] }]), none.clone(), "table T: a name begins"),
        (json!([{ "name": "t", "types": [], "columns": [] }]), none.clone(), "names no event types"),
        (json!([{ "name": "t", "types": ["click"], "columns": [] }]), none.clone(), "nor enriches type click"),
        (table(&json!([column("event_id", "UUID")]), &none), none.clone(), "every one has this column"),
        (table(&json!([column("a", "Strin")]), &none), none.clone(), "table t, column a: type `Strin` is not known"),
        (table(&json!([column("a", "UInt8"), column("a", "UInt8")]), &none), none.clone(), "there twice"),
        (table(&json!([column("a.b", "UInt8")]), &none), none.clone(), "a name begins"),
        (
            table(&json!([{ "name": "a", "type": "UInt8", "value": { "property": "a..b" } }]), &none),
            none.clone(),
            "no path of properties",
        ),
        (table(&json!([of("a", "UInt8", "nope")]), &none), none.clone(), "`events` has no column nope"),
        (table(&json!([of("a", "Array(String)", "path")]), &none), none.clone(), "give an expression"),
        (table(&json!([sql("a", "UInt8", "1; DROP TABLE t")]), &none), none.clone(), "`;` is not possible"),
        (table(&none, &json!(["nope"])), none.clone(), "no column nope"),
        (table(&none, &json!(["received_at"])), none.clone(), "another when the same event is sent again"),
        (table(&none, &json!(["event_id", "event_id"])), none.clone(), "twice"),
        (
            table(&json!([sql("a", "DateTime64(3)", "toStartOfHour(inserted_at)")]), &json!(["a"])),
            none.clone(),
            "made of inserted_at",
        ),
        (table(&json!([sql("a", "DateTime", "now()")]), &json!(["a"])), none.clone(), "made of now"),
        (table(&json!([column("a", "Nullable(UInt8)")]), &json!(["a"])), none.clone(), "cannot be sorted by"),
        (none.clone(), view(&none, &none), "measures nothing"),
        (none.clone(), view(&json!([column("a", "Nullable(String)")]), &count), "cannot be grouped by"),
        (none.clone(), view(&json!([column("n", "String")]), &count), "another column of this name"),
        (none.clone(), view(&none, &sum("UInt32")), "a sum is Int64"),
        (none.clone(), view(&none, &json!([{ "name": "n", "function": "min" }])), "need the type"),
        (none.clone(), view(&none, &json!([{ "name": "n", "function": "uniq" }])), "no value"),
        (
            none.clone(),
            json!([{ "name": "v", "from": "t", "group_by": [], "measures": count }]),
            "the plugin has no table t",
        ),
        (
            table(&none, &none),
            json!([{ "name": "v", "from": "t", "group_by": [column("a", "String")], "measures": count }]),
            "a view of a table",
        ),
        (
            table(&none, &none),
            json!([{ "name": "t", "types": ["pageview"], "group_by": [], "measures": count }]),
            "plugin_p_t in the database is another one's too",
        ),
    ];
    let (_folder, tables) = opened();
    for (declared, views, expected) in cases {
        let problems = tables.compatible(&plugin("p", "1", &declared, &views)).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
    }
}

#[test]
fn two_plugins_cannot_have_the_same_table() {
    let (_folder, tables) = opened();
    let named = |table: &str| json!([{ "name": table, "types": ["pageview"], "columns": [] }]);
    tables.declare(&plugin("a", "1", &named("b_c"), &json!([]))).unwrap();
    let problems = tables.compatible(&plugin("a_b", "1", &named("c"), &json!([]))).unwrap_err();
    assert_eq!(problems[0], "table c: plugin_a_b_c is plugin a's already");
    tables.compatible(&plugin("a_b", "1", &named("d"), &json!([]))).unwrap();
}

#[test]
fn what_stands_is_added_to_and_not_changed() {
    let (folder, tables) = opened();
    let day = column("day", "Date");
    let least = json!({ "name": "least", "function": "min", "type": "UInt8", "value": { "property": "a" } });
    let columns = json!([column("a", "UInt8"), column("b", "String")]);
    let old = plugin("p", "1.2", &table(&columns, &json!(["b"])), &view(&json!([day]), &json!([least])));
    stand(&tables, &old);

    let mut with = least.clone();
    with["type"] = json!("UInt16");
    let key = json!(["b"]);
    let same_view = view(&json!([day]), &json!([least]));
    let changes = [
        (table(&json!([column("a", "UInt16"), column("b", "String")]), &key), same_view.clone(), "a was UInt8 and"),
        (table(&json!([column("b", "String"), column("c", "UInt8")]), &key), same_view.clone(), "column a is gone"),
        (table(&columns, &json!(["a"])), same_view.clone(), "sort key was (b) and cannot become (a)"),
        (json!([]), same_view.clone(), "table t is gone"),
        (table(&columns, &key), json!([]), "view v is gone"),
        (table(&columns, &key), view(&json!([day, column("a", "UInt8")]), &json!([least])), "grouped by other columns"),
        (table(&columns, &key), view(&json!([day]), &json!([with])), "another function or type"),
    ];
    for (changed, views, expected) in changes {
        let problems = tables.compatible(&plugin("p", "1.3", &changed, &views)).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}: {problems:?}");
    }

    // A column more, and another source for one that is there.
    let mut more = columns.clone();
    more[0]["value"] = json!({ "property": "other" });
    more.as_array_mut().unwrap().push(column("c", "UInt8"));
    let newer = plugin("p", "1.10", &table(&more, &key), &same_view);
    tables.compatible(&newer).unwrap();
    stand(&tables, &newer);

    // Back to the version before, whose columns are all there: what stands stays declared, after a restart too.
    tables.compatible(&old).unwrap();
    let generation = tables.generation();
    tables.declare(&old).unwrap();
    assert_eq!(tables.generation(), generation);
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    let (_, declarations) = tables.snapshot();
    assert_eq!((declarations["p"].version.as_str(), declarations["p"].applied), ("1.10", true));
    assert_eq!((tables.generation(), tables.is_applied()), (1, false));
    tables.declare(&newer).unwrap();
    assert_eq!(tables.generation(), 1);
}

#[test]
fn a_damaged_file_is_an_error_and_none_is_not() {
    let (folder, tables) = opened();
    assert!(tables.is_applied());
    let path = folder.path().join("tables.json");
    for content in ["{", r#"{"format":2,"plugins":{}}"#] {
        std::fs::write(&path, content).unwrap();
        let error = Tables::open(path.clone()).map(drop).unwrap_err().to_string();
        assert!(error.contains("tables.json: "), "{error}");
    }
}

#[test]
fn versions_are_compared_number_by_number() {
    assert!(is_newer("1.10.0", "1.9.3") && is_newer("2", "1.9") && is_newer("1.0.1", "1.0"));
    assert!(!is_newer("1.0.0", "1.0.0") && !is_newer("1.0.0-rc1", "1.0.0") && !is_newer("0.9", "1"));
}

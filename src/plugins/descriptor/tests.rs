#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::{Value as Json, json};

use super::{DESCRIPTOR_BYTES, DescriptorError, parse};

fn shop() -> Json {
    json!({
        "name": "purchase", "version": "1.0.0", "description": "Orders of a shop",
        "adds": [{ "type": "purchase", "examples": [{ "type": "purchase" }] }],
        "enriches": ["click"],
        "tables": [{
            "name": "orders", "types": ["purchase"],
            "columns": [
                { "name": "total", "type": "Decimal(18, 4)", "value": { "property": "total.gross" } },
                { "name": "title", "type": "String", "value": { "column": "title" } },
                { "name": "maybe", "type": "Nullable(String)", "value": { "sql": "nullIf(name, 'a;b--c')" } },
            ],
            "order_by": ["total", "timestamp"],
        }],
        "views": [
            {
                "name": "revenue_daily", "from": "orders",
                "group_by": [{ "name": "day", "type": "Date", "value": { "sql": "toDate(timestamp)" } }],
                "measures": [
                    { "name": "revenue", "function": "sum", "type": "Decimal(38, 4)", "value": { "column": "total" } },
                    { "name": "orders", "function": "count" },
                    { "name": "users", "function": "uniq", "value": { "column": "user_id" } },
                ],
            },
            { "name": "clicks", "types": ["click"], "group_by": [], "measures": [{ "name": "n", "function": "count" }] },
        ],
    })
}

fn problems(json: &Json) -> Vec<String> {
    match parse(json.to_string().as_bytes()) {
        Ok(_) => Vec::new(),
        Err(DescriptorError::Wrong { problems }) => problems,
        Err(other) => panic!("{other}"),
    }
}

/// The problems of the shop with the value at `pointer` replaced.
fn with(pointer: &str, value: Json) -> Vec<String> {
    let mut json = shop();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Json::Object(fields) => drop(fields.insert(last.to_owned(), value)),
        Json::Array(items) => items[last.parse::<usize>().unwrap()] = value,
        other => panic!("{other}"),
    }
    problems(&json)
}

#[test]
fn a_good_description_is_taken() {
    assert_eq!(problems(&shop()), Vec::<String>::new());
    let all = json!({ "name": "redact", "version": "1", "enriches": ["*"], "later": { "unknown": true } });
    assert_eq!(problems(&all), Vec::<String>::new());
}

#[test]
fn what_is_no_description_has_its_error() {
    let words = |json: &[u8]| parse(json).unwrap_err().to_string();
    assert!(words(b"").starts_with("`describe` returned no description"));
    assert_eq!(words(b"{\"name\": \"\xff\"}"), "the description is not UTF-8 (byte 10)");
    assert_eq!(words(b"it panicked"), "it does not describe itself, and says: it panicked");
    assert!(words(b"{\"name\": 5}").starts_with("the description is not the JSON that it should be: invalid type"));
    assert!(words(b"{\"name\": \"a\"}").contains("missing field `version`"));
    assert!(words(&vec![b' '; DESCRIPTOR_BYTES + 1]).contains("more than the 1048576 of the longest description"));
}

#[test]
fn every_problem_is_named_with_its_place() {
    let long = "a".repeat(65);
    for (pointer, value, expected) in [
        ("/name", json!("Shop"), "name is \"Shop\"; use a-z"),
        ("/name", json!(long), "at most 40 bytes"),
        ("/name", json!("all"), "name \"all\" would be misread"),
        ("/version", json!(" "), "version is empty"),
        ("/description", json!("a\nb"), "description must be one line"),
        ("/adds/0/type", json!("9a"), "adds[0].type is \"9a\""),
        ("/adds/0/type", json!("click"), "adds[0] claims the engine's own type \"click\""),
        ("/adds/0/examples", json!([]), "adds[0] has no example"),
        ("/adds/0/examples", json!([5]), "adds[0].examples[0] is not a JSON object"),
        ("/enriches", json!(["*", "click"]), "enriches[0] is \"*\", which stands for all"),
        ("/enriches", json!(["a-b", "click"]), "enriches[0] is \"a-b\""),
        ("/enriches", json!(["click", "click"]), "enriches[1] names \"click\" a second time"),
        ("/enriches", json!(["click", "purchase"]), "enriches[1] is \"purchase\", which the plugin adds"),
        ("/tables/0/name", json!("a b"), "tables[0].name is \"a b\""),
        ("/tables/0/name", json!("clicks"), "views[1] is the second table or view of the name"),
        ("/tables/0/types", json!([]), "tables[0] has no types"),
        ("/tables/0/types", json!(["scroll"]), "tables[0].types[0] is \"scroll\", which the plugin neither adds nor"),
        ("/tables/0/columns/0/name", json!("user_id"), "tables[0].columns[0] has the name of another column"),
        ("/tables/0/columns/0/name", json!("a`b"), "tables[0].columns[0].name is \"a`b\""),
        ("/tables/0/columns/0/type", json!("String; DROP"), "tables[0].columns[0].type has a semicolon"),
        ("/tables/0/columns/0/type", json!("Array(String"), "tables[0].columns[0].type has a parenthesis that is not"),
        ("/tables/0/columns/0/type", json!("String)"), "tables[0].columns[0].type closes what it does not open"),
        ("/tables/0/columns/0/type", json!(""), "tables[0].columns[0].type must have 1 to"),
        ("/tables/0/columns/0/value", json!({ "property": "a..b" }), "takes the property \"a..b\""),
        ("/tables/0/columns/0/value", json!({ "property": "a'b" }), "takes the property \"a'b\""),
        ("/tables/0/columns/0/value", json!({ "column": "nowhere" }), "takes the column \"nowhere\""),
        (
            "/tables/0/columns/0/value",
            json!({ "sql": "'a" }),
            "tables[0].columns[0].value has a quote that is not closed",
        ),
        ("/tables/0/columns/0/value", json!({ "sql": "1 -- a" }), "tables[0].columns[0].value has a comment"),
        ("/tables/0/columns/0/value", json!({ "sql": "1 /* a" }), "tables[0].columns[0].value has a comment"),
        ("/tables/0/order_by/0", json!("nowhere"), "tables[0].order_by[0] is \"nowhere\"; use columns of the table"),
        ("/tables/0/order_by/0", json!("tenant_id"), "tables[0].order_by[0] is \"tenant_id\""),
        ("/tables/0/order_by/0", json!("maybe"), "tables[0].order_by[0] is \"maybe\", which may be null"),
        ("/views/0/from", json!("nowhere"), "views[0] is made from \"nowhere\", which is no table"),
        ("/views/0/types", json!(["purchase"]), "views[0] has both from and types"),
        ("/views/1/types", json!([]), "views[1] has neither from nor types"),
        ("/views/0/group_by/0/name", json!("tenant_id"), "views[0].group_by[0] has the name of another column"),
        (
            "/views/0/group_by/0/value",
            json!({ "column": "url" }),
            "takes the column \"url\", which what it reads does not",
        ),
        ("/views/0/measures", json!([]), "views[0] has no measures"),
        ("/views/0/measures/0/name", json!("day"), "views[0].measures[0] has the name of another column"),
        ("/views/0/measures/0/type", Json::Null, "views[0].measures[0] needs a type"),
        ("/views/0/measures/0/value", Json::Null, "views[0].measures[0] needs a value"),
        ("/views/0/measures/1/type", json!("Int64"), "views[0].measures[1] needs no type"),
        ("/views/0/measures/1/value", json!({ "sql": "1" }), "views[0].measures[1] needs no value"),
    ] {
        let problems = with(pointer, value.clone());
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{pointer} = {value}: {problems:?}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let nothing = json!({ "name": "", "version": "" });
    let problems = problems(&nothing);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[2].contains("would never be called"), "{problems:?}");
}

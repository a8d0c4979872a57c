//! What the builders write is what the contract reads, and what `check` finds wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use ingestion_plugin_sdk::{
    Batch, Description, Error, Event, EventType, Host, NoConfig, Plugin, Rejection, Verdict, json,
    schemars::{self, JsonSchema},
    tables::{Table, View, column, count, max, min, property, sql, sum, uniq},
    testing::Harness,
};
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only its schema counts")]
struct Purchase {
    /// What was paid.
    total: f64,
    #[serde(default)]
    coupon: Option<String>,
}

struct Shop;

impl Plugin for Shop {
    type Config = NoConfig;

    fn describe() -> Description {
        Description::new("shop", "1.0.0", "Orders of a shop")
            .adds(
                EventType::new("purchase", "An order was paid")
                    .schema_of::<Purchase>()
                    .example(json!({ "type": "purchase", "total": 1.5 })),
            )
            .enriches(["pageview"])
            .example(json!({ "type": "pageview", "path": "/" }))
            .fail_closed()
            .table(
                Table::new("orders", ["purchase"])
                    .column("total", "Decimal(18, 4)", property("total"))
                    .order_by(["total"]),
            )
            .view(
                View::of_table("revenue", "orders")
                    .group_by("day", "Date", sql("toDate(timestamp)"))
                    .measure(sum("revenue", "Decimal(38, 4)", column("total")))
                    .measure(min("least", "Decimal(18, 4)", column("total")))
                    .measure(max("most", "Decimal(18, 4)", column("total")))
                    .measure(count("orders"))
                    .measure(uniq("users", column("user_id"))),
            )
            .view(View::of_events("pages", ["pageview"]).measure(count("pages")))
    }

    fn new(_config: NoConfig, _host: Host) -> Result<Self, Error> {
        Ok(Self)
    }
}

#[test]
fn builders_write_what_the_contract_reads() {
    let harness = Harness::<Shop>::new(json!({})).unwrap();
    harness.check().unwrap();
    let written = serde_json::to_value(harness.descriptor().unwrap()).unwrap();
    let value = |name: &str| json!({ "column": name });
    assert_eq!(
        written,
        json!({
            "name": "shop", "version": "1.0.0", "description": "Orders of a shop",
            "adds": [{
                "type": "purchase", "description": "An order was paid",
                "schema": {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "title": "Purchase", "type": "object", "required": ["total"],
                    "properties": {
                        "total": { "description": "What was paid.", "type": "number", "format": "double" },
                        "coupon": { "type": ["string", "null"], "default": null },
                    },
                },
                "examples": [{ "type": "purchase", "total": 1.5 }],
            }],
            "enriches": ["pageview"],
            "examples": [{ "type": "pageview", "path": "/" }],
            "fail_closed": true,
            "tables": [{
                "name": "orders", "types": ["purchase"],
                "columns": [{ "name": "total", "type": "Decimal(18, 4)", "value": { "property": "total" } }],
                "order_by": ["total"],
            }],
            "views": [
                {
                    "name": "revenue", "from": "orders", "types": [],
                    "group_by": [{ "name": "day", "type": "Date", "value": { "sql": "toDate(timestamp)" } }],
                    "measures": [
                        { "name": "revenue", "function": "sum", "type": "Decimal(38, 4)", "value": value("total") },
                        { "name": "least", "function": "min", "type": "Decimal(18, 4)", "value": value("total") },
                        { "name": "most", "function": "max", "type": "Decimal(18, 4)", "value": value("total") },
                        { "name": "orders", "function": "count" },
                        { "name": "users", "function": "uniq", "value": value("user_id") },
                    ],
                },
                {
                    "name": "pages", "from": null, "types": ["pageview"], "group_by": [],
                    "measures": [{ "name": "pages", "function": "count" }],
                },
            ],
        })
    );
}

/// Everything that `check` looks for is wrong with it.
struct Wrong;

impl Plugin for Wrong {
    type Config = NoConfig;

    fn describe() -> Description {
        Description::new("Wrong", "1", "")
            .adds(EventType::new("bad", "").example(json!({ "type": "good" })).example(json!({ "type": "bad" })))
            .adds(EventType::new("empty", ""))
            .example(json!([]))
            .example(json!({ "type": "bad", "say": "panic" }))
            .example(json!({ "type": "bad", "id": "01890a5d-ac96-774b-bcce-b302099a8057", "say": "other id" }))
            .example(json!({ "type": "bad", "say": "bad code" }))
            .table(Table::new("t", ["worse"]).order_by(["nothing"]))
            .view(View::of_table("v", "u").measure(count("n")))
    }

    fn new(_config: NoConfig, _host: Host) -> Result<Self, Error> {
        Ok(Self)
    }

    fn event(&self, event: &Event<'_>, _batch: &Batch<'_>) -> Result<Verdict, Rejection> {
        let mut object = event.object()?;
        match object.read::<&str>("say") {
            Some("panic") => panic!("told to"),
            Some("other id") => object.set("id", "01890a5d-ac96-774b-bcce-b302099a8058"),
            Some("bad code") => return Ok(Verdict::drop("No!")),
            _ => return Err(Rejection::new("never", "nothing is good")),
        }
        Ok(object.into_verdict())
    }
}

#[test]
fn check_names_everything_that_is_wrong() {
    let problems = Harness::<Wrong>::new(json!({})).unwrap().check().unwrap_err().to_string();
    let expected = [
        "the name `Wrong` must be lower-case letters, digits and _, a letter first, at most 40 bytes",
        "the table `t` holds events of `worse`, which the plugin neither adds nor enriches",
        "the table `t` is ordered by `nothing`, which is none of its columns",
        "the view `v` reads the table `u`, which the plugin does not have",
        "an example of `bad` has another type: {\"type\":\"good\"}",
        "an example is rejected as `never` (nothing is good): {\"type\":\"bad\"}",
        "the type `empty` has no example",
        "an example is not an event (it is no JSON object): []",
        "the plugin panicked: told to, with the example: {\"say\":\"panic\",\"type\":\"bad\"}",
        "with another id, type or tenant_id",
        "the plugin's output is not usable: `No!` must be lower-case letters, digits and _",
    ];
    let lines: Vec<&str> = problems.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{problems}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line}\n  is not\n{expected}");
    }
}

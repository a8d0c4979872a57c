//! Tables and views of plugins against the real engine: what they are made of, what they hold, and when they are made.

use std::collections::HashMap;

use ingestion_engine::{
    clickhouse::{Client, Mode, Template},
    plugins::{
        descriptor::Descriptor,
        tables::{Tables, TablesError, TrialError, try_out},
    },
    row::{EventRow, Json},
};
use serde_json::{Value as JsonValue, json};
use tempfile::TempDir;

use crate::{
    sink::Running,
    support::{
        clickhouse::{ClickHouse, DATABASE, number, template, texts},
        eventually,
        rows::{event, range},
    },
};

fn descriptor(value: JsonValue) -> Descriptor {
    serde_json::from_value(value).unwrap()
}

/// A plugin `shop` of one type, `purchase`, with the given tables and views.
#[expect(clippy::needless_pass_by_value, reason = "its callers write `json!` there")]
fn shop(version: &str, tables: JsonValue, views: JsonValue) -> Descriptor {
    descriptor(json!({
        "name": "shop", "version": version,
        "adds": [{ "type": "purchase", "examples": [{ "type": "purchase" }] }],
        "tables": tables, "views": views,
    }))
}

fn column(name: &str, kind: &str, property: &str) -> JsonValue {
    json!({ "name": name, "type": kind, "value": { "property": property } })
}

fn orders(more: &[JsonValue]) -> JsonValue {
    let mut columns = vec![
        column("order_id", "String", "order.id"),
        column("total", "Decimal(18, 4)", "total"),
        json!({ "name": "site", "type": "String", "value": { "sql": "lower(path)" } }),
        // Named as a column of events that the next one reads: neither may hide the other.
        column("path", "String", "order.path"),
        json!({ "name": "page", "type": "String", "value": { "column": "path" } }),
    ];
    columns.extend_from_slice(more);
    json!([{ "name": "orders", "types": ["purchase"], "columns": columns, "order_by": ["order_id"] }])
}

fn views(more: &[JsonValue]) -> JsonValue {
    let day = json!({ "name": "day", "type": "Date", "value": { "sql": "toDate(timestamp)" } });
    let mut measures = vec![
        json!({ "name": "orders", "function": "count" }),
        json!({ "name": "total", "function": "sum", "type": "Decimal(38, 4)", "value": { "column": "total" } }),
        json!({ "name": "least", "function": "min", "type": "Decimal(18, 4)", "value": { "column": "total" } }),
        json!({ "name": "greatest", "function": "max", "type": "Decimal(18, 4)", "value": { "column": "total" } }),
        json!({ "name": "buyers", "function": "uniq", "value": { "column": "user_id" } }),
    ];
    measures.extend_from_slice(more);
    json!([
        { "name": "revenue_daily", "from": "orders", "group_by": [day], "measures": measures },
        { "name": "per_page", "types": ["purchase"],
          "group_by": [{ "name": "path", "type": "LowCardinality(String)", "value": { "column": "path" } }],
          "measures": [
              { "name": "events", "function": "count" },
              { "name": "total", "function": "sum", "type": "Float64", "value": { "property": "total" } },
          ] },
    ])
}

fn purchase(number: u64, properties: &str) -> EventRow<'_> {
    let mut row = event(number);
    row.kind = "purchase".into();
    row.properties = Json::from(properties);
    row
}

fn purchases(count: u64) -> Vec<EventRow<'static>> {
    let mut rows = Vec::new();
    for number in 0..count {
        let mut row = event(number);
        row.kind = "purchase".into();
        // One tenant, so that its buyers and its days are one group.
        row.tenant_id = event(0).tenant_id;
        row.user_id = ["ann", "bob", ""][usize::try_from(number % 3).unwrap()].into();
        let total = if number % 2 == 0 { r#""19.99""# } else { "0.01" };
        row.properties =
            Json(format!(r#"{{"order":{{"id":"o-{number}","path":"p"}},"total":{total},"coupon":"c"}}"#).into());
        rows.push(row);
    }
    rows
}

fn opened() -> (TempDir, Tables) {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    (folder, tables)
}

fn declared(descriptor: &Descriptor) -> (TempDir, Tables) {
    let (folder, tables) = opened();
    tables.compatible(descriptor).unwrap();
    tables.declare(descriptor).unwrap();
    (folder, tables)
}

async fn store(client: &Client, tables: &Tables, range: ingestion_engine::sink::source::Range) {
    let running = Running::start_with_tables(client.clone(), [range], tables.clone(), Mode::Auto);
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    running.stop().await;
}

const TOTALS: &str = "SELECT concat(toString(sum(orders)), ' ', toString(sum(total)), ' ', toString(assumeNotNull(min(least))), ' ', \
                      toString(assumeNotNull(max(greatest))), ' ', toString(max(buyers))) FROM {db}.plugin_shop_revenue_daily";

#[tokio::test]
async fn a_repeated_insert_counts_once_in_the_table_its_view_and_the_view_of_events() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let plugin = shop("1.0.0", orders(&[]), views(&[]));
    let (_folder, tables) = declared(&plugin);
    for _ in 0..3 {
        store(&client, &tables, range(0, 0, purchases(3000))).await;
    }
    let assert_stored = async || {
        assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 3000);
        assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_shop_orders").await, 3000);
        assert_eq!(texts(&client, TOTALS).await, ["3000 30000 0.01 19.99 2"]);
        let per_page = "SELECT concat(path, ' ', toString(sum(events)), ' ', toString(round(sum(total)))) \
                        FROM {db}.plugin_shop_per_page GROUP BY path";
        assert_eq!(texts(&client, per_page).await, ["/pricing 3000 30000"]);
    };
    assert_stored().await;
    for table in ["plugin_shop_orders", "plugin_shop_revenue_daily_data", "plugin_shop_per_page_data"] {
        client.execute(&format!("OPTIMIZE TABLE `{DATABASE}`.{table} FINAL")).await.unwrap();
    }
    assert_stored().await;
    let row = "SELECT concat(order_id, ' ', toString(total), ' ', site, ' ', path, ' ', page, ' ', type) \
               FROM {db}.plugin_shop_orders WHERE order_id = 'o-7'";
    assert_eq!(texts(&client, row).await, ["o-7 0.01 /pricing p /pricing purchase"]);

    // Not by luck: another token counts again.
    store(&client, &tables, range(0, 1, purchases(3000))).await;
    assert_eq!(texts(&client, TOTALS).await, ["6000 60000 0.01 19.99 2"]);
}

#[tokio::test]
async fn a_repeat_makes_good_what_a_crash_left_out_of_the_views() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let plugin = shop("1.0.0", orders(&[]), views(&[]));
    let (_folder, tables) = declared(&plugin);
    tables.apply(&client, &template()).await.unwrap();
    // The rows reach `events` and the table, and the view of the table fails: as a crash in between leaves it.
    let view = format!("`{DATABASE}`.plugin_shop_revenue_daily_mv");
    let broken = format!(
        "ALTER TABLE {view} MODIFY QUERY SELECT tenant_id, toDate(timestamp) AS day, expires_at, \
         throwIf(order_id != '', 'broken') AS orders FROM `{DATABASE}`.plugin_shop_orders"
    );
    client.execute(&broken).await.unwrap();
    let running = Running::start_with_tables(client.clone(), [range(0, 0, purchases(300))], tables, Mode::Auto);
    eventually("the view fails", || async { running.reason().contains("broken") }).await;
    assert_eq!(running.committed(), 0);
    // A node that knows the declaration puts the query back: the comment says another one's.
    client.execute(&format!("ALTER TABLE {view} MODIFY COMMENT 'plugin shop 0.9.0, view x, 0'")).await.unwrap();
    let (_other_folder, other) = declared(&plugin);
    other.apply(&client, &template()).await.unwrap();
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 300);
    assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_shop_orders").await, 300);
    assert_eq!(texts(&client, TOTALS).await, ["300 3000 0.01 19.99 2"]);
    running.stop().await;
}

/// Type, a good value and what it becomes, the default.
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("String", r#""a\"b""#, "a\"b", ""),
    ("LowCardinality(String)", r#""x""#, "x", ""),
    ("LowCardinality(Nullable(String))", r#""x""#, "x", "-"),
    ("Nullable(String)", r#""""#, "", "-"),
    ("FixedString(3)", r#""abc""#, "abc", ""),
    ("UInt8", "255", "255", "0"),
    ("Int64", "-9007199254740993", "-9007199254740993", "0"),
    ("UInt64", "18446744073709551615", "18446744073709551615", "0"),
    ("UInt256", r#""123456789012345678901234567890""#, "123456789012345678901234567890", "0"),
    ("Nullable(Int32)", r#""-7""#, "-7", "-"),
    ("Float32", "0.5", "0.5", "0"),
    ("Float64", "1e-3", "0.001", "0"),
    ("Nullable(Float64)", "12", "12", "-"),
    ("Decimal(18, 2)", "19.99", "19.99", "0"),
    ("Decimal(38, 10)", r#""12345678901234567890.0123456789""#, "12345678901234567890.0123456789", "0"),
    ("Decimal256(2)", "1e2", "100", "0"),
    ("Nullable(Decimal(9, 2))", r#""-0.5""#, "-0.5", "-"),
    ("Bool", "true", "true", "false"),
    ("Nullable(Bool)", "false", "false", "-"),
    (
        "UUID",
        r#""550e8400-e29b-41d4-a716-446655440000""#,
        "550e8400-e29b-41d4-a716-446655440000",
        "00000000-0000-0000-0000-000000000000",
    ),
    ("IPv4", r#""192.0.2.1""#, "192.0.2.1", "0.0.0.0"),
    ("IPv6", r#""2001:db8::1""#, "2001:db8::1", "::"),
    ("Date", r#""2026-01-02T23:30:00-05:00""#, "2026-01-03", "1970-01-01"),
    ("Date32", r#""1931-02-03""#, "1931-02-03", "1900-01-01"),
    ("DateTime", r#""2026-01-02 03:04:05""#, "2026-01-02 03:04:05", "1970-01-01 00:00:00"),
    ("DateTime('UTC')", r#""2026-01-02T03:04:05+02:00""#, "2026-01-02 01:04:05", "1970-01-01 00:00:00"),
    ("DateTime64(3, 'UTC')", r#""2026-01-02T03:04:05.678Z""#, "2026-01-02 03:04:05.678", "1970-01-01 00:00:00.000"),
    ("Nullable(DateTime64(6, 'UTC'))", r#""2026-01-02""#, "2026-01-02 00:00:00.000000", "-"),
    ("Enum8('red' = 1, 'blue' = 2)", r#""blue""#, "blue", "red"),
    ("Nullable(Enum16('red' = 1000))", r#""red""#, "red", "-"),
    ("Array(String)", r#"["a",1,null]"#, "['a','1','']", "[]"),
    ("Array(Nullable(Decimal(9, 2)))", r#"[1.1,"x",2]"#, "[1.1,NULL,2]", "[]"),
    ("Array(Array(UInt8))", r#"[[1,2],"x",[300]]"#, "[[1,2],[],[0]]", "[]"),
    ("Array(Enum8('a' = 1))", r#"["a","z"]"#, "['a','a']", "[]"),
    ("Map(String, Float64)", r#"{"a":1.5,"b":"x"}"#, "{'a':1.5,'b':0}", "{}"),
    ("Map(LowCardinality(String), Array(UInt8))", r#"{"a":[1]}"#, "{'a':[1]}", "{}"),
];

/// Values that are wrong for most types.
const WRONG: &[&str] = &[
    "null",
    r#""""#,
    r#""abcdefg""#,
    "-1",
    "300",
    "1e300",
    "12.5",
    "true",
    "{}",
    r#"{"k":{"l":1}}"#,
    "[]",
    "[{}]",
    r#""127.0.0.1""#,
    r#""nan""#,
    r#""inf""#,
    r#""1e999""#,
    r#""9999-12-31T23:59:59Z""#,
    r#""0001-01-01""#,
    r#""2026-13-45""#,
    r#""2026-01-02Tx""#,
    "99999999999999999999999",
    r#""\u0000""#,
    r#""é""#,
    r#""${database}'\\""#,
];

#[tokio::test]
async fn every_type_takes_good_missing_and_wrong_values_and_never_fails_an_insert() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let columns: Vec<_> =
        KINDS.iter().enumerate().map(|(at, (kind, ..))| column(&format!("c{at}"), kind, &format!("p.c{at}"))).collect();
    let table = json!([{ "name": "all", "types": ["purchase"], "columns": columns }]);
    let plugin = shop("1.0.0", table, json!([]));
    let (_folder, tables) = declared(&plugin);
    let object = |value: &dyn Fn(usize) -> String| {
        let members: Vec<_> = (0..KINDS.len()).map(|at| format!(r#""c{at}":{}"#, value(at))).collect();
        format!(r#"{{"p":{{{}}}}}"#, members.join(","))
    };
    let mut properties = vec![object(&|at| KINDS[at].1.to_owned()), String::new(), r#"{"p":7}"#.to_owned()];
    properties.extend(WRONG.iter().map(|wrong| object(&|_| (*wrong).to_owned())));
    let rows: Vec<_> =
        properties.iter().zip(0..).map(|(properties, number)| purchase(number, properties.as_str())).collect();
    store(&client, &tables, range(0, 0, rows)).await;
    let all = "SELECT count() FROM {db}.plugin_shop_all";
    assert_eq!(number(&client, all).await, u64::try_from(properties.len()).unwrap());

    for (at, (kind, _, good, default)) in KINDS.iter().enumerate() {
        let of = |number: u64| {
            format!(
                "SELECT ifNull(toString(c{at}), '-') FROM {{db}}.plugin_shop_all WHERE event_id = '{}'",
                event(number).event_id.0
            )
        };
        assert_eq!(texts(&client, &of(0)).await, [*good], "{kind}");
        assert_eq!(texts(&client, &of(1)).await, [*default], "{kind}: no properties");
        assert_eq!(texts(&client, &of(2)).await, [*default], "{kind}: not there");
        assert_eq!(texts(&client, &of(3)).await, [*default], "{kind}: null");
    }
    // What looks like a value and is none, by type.
    let strict: HashMap<&str, usize> = [("Decimal(18, 2)", 12), ("DateTime('UTC')", 4), ("Float64", 13)].into();
    for (kind, wrong) in strict {
        let at = KINDS.iter().position(|(other, ..)| *other == kind).unwrap();
        let sql = format!(
            "SELECT toString(c{at}) FROM {{db}}.plugin_shop_all WHERE event_id = '{}'",
            event(u64::try_from(wrong).unwrap() + 3).event_id.0
        );
        assert_eq!(texts(&client, &sql).await, [KINDS[at].3], "{kind} of {}", WRONG[wrong]);
    }
}

#[tokio::test]
async fn columns_of_events_become_other_types_without_failing() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let from =
        |name: &str, kind: &str, source: &str| json!({ "name": name, "type": kind, "value": { "column": source } });
    let columns = [
        from("user", "UInt64", "user_id"),
        from("session", "Nullable(UUID)", "session_id"),
        from("day", "Date", "timestamp"),
        from("second", "DateTime('UTC')", "timestamp"),
        from("place", "LowCardinality(String)", "path"),
        from("id", "String", "event_id"),
        from("lcp", "Float64", "lcp"),
        from("lcp_ms", "Nullable(UInt32)", "lcp"),
        from("seq", "Nullable(UInt8)", "wal_seq"),
        json!({ "name": "nothing", "type": "UInt8", "value": { "sql": "NULL" } }),
        json!({ "name": "list", "type": "Array(LowCardinality(String))", "value": { "sql": "splitByChar('/', path)" } }),
    ];
    let table = json!([{ "name": "t", "types": ["purchase"], "columns": columns }]);
    let (_folder, tables) = declared(&shop("1.0.0", table, json!([])));
    let mut full = purchase(1, "{}");
    (full.user_id, full.lcp) = ("42".into(), Some(1500.0));
    let mut odd = purchase(2, "{}");
    (odd.user_id, odd.lcp) = ("4 2".into(), Some(-1.5));
    store(&client, &tables, range(0, 300, [full, odd])).await;
    let row = "SELECT concat(toString(user), ' ', ifNull(toString(session), '-'), ' ', toString(day), ' ', \
               toString(second), ' ', place, ' ', toString(lcp), ' ', ifNull(toString(lcp_ms), '-'), ' ', \
               ifNull(toString(seq), '-'), ' ', toString(nothing), ' ', toString(list), ' ', right(id, 1)) \
               FROM {db}.plugin_shop_t ORDER BY id";
    let expected = [
        "42 - 2026-09-21 2026-09-21 14:13:20 /pricing 1500 1500 - 0 ['','pricing'] 1",
        "0 - 2026-09-21 2026-09-21 14:13:20 /pricing -1.5 - - 0 ['','pricing'] 2",
    ];
    assert_eq!(texts(&client, row).await, expected);
}

#[tokio::test]
async fn a_new_version_adds_columns_measures_and_tables_while_rows_flow() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let (_folder, tables) = declared(&shop("1.9.0", orders(&[]), views(&[])));
    let ranges = (0..40_u64).map(|number| range(u32::try_from(number % 4).unwrap(), number * 100, purchases(50)));
    let running = Running::start_with_tables(client.clone(), ranges, tables.clone(), Mode::Auto);
    eventually("rows flow", || async { running.committed() > 4 }).await;

    let coupon = column("coupon", "LowCardinality(Nullable(String))", "coupon");
    let mut more = orders(&[coupon]);
    more.as_array_mut().unwrap().push(json!({ "name": "coupons", "types": ["purchase"], "columns": [] }));
    let last = json!({ "name": "last", "function": "max", "type": "Int64", "value": { "sql": "-length(coupon)" } });
    let newer = shop("1.10.0", more, views(&[last]));
    tables.compatible(&newer).unwrap();
    let generation = tables.generation();
    tables.declare(&newer).unwrap();
    assert!(tables.generation() > generation && !tables.is_applied());
    eventually("all are stored", || async { running.committed() == 40 }).await;
    assert!(running.reason().is_empty(), "{}", running.reason());
    running.stop().await;
    // Every row from before and after, and the new column in those from after.
    assert_eq!(number(&client, "SELECT sum(orders) FROM {db}.plugin_shop_revenue_daily").await, 2000);
    store(&client, &tables, range(9, 0, purchases(1))).await;
    let coupons = "SELECT countIf(coupon = 'c') > 0 FROM {db}.plugin_shop_orders";
    assert_eq!(client.fetch::<u8>(&coupons.replace("{db}", "`over-watch`")).await.unwrap(), [1]);
    assert!(number(&client, "SELECT count() FROM {db}.plugin_shop_coupons").await > 0);
    // A group of rows from before and after has no zero that was never measured.
    let last = "SELECT toString(assumeNotNull(max(last))) FROM {db}.plugin_shop_revenue_daily";
    assert_eq!(texts(&client, last).await, ["-1"]);

    // The older version comes back, here and on a node that never saw the newer one: both leave the tables alone.
    let older = shop("1.9.0", orders(&[]), views(&[]));
    tables.compatible(&older).unwrap();
    tables.declare(&older).unwrap();
    let (_other_folder, other) = declared(&older);
    for tables in [&tables, &other] {
        tables.doubt();
        tables.apply(&client, &template()).await.unwrap();
    }
    let before = "SELECT countIf(coupon = 'c') FROM {db}.plugin_shop_orders";
    let with_coupon = number(&client, before).await;
    store(&client, &other, range(9, 1, purchases(10))).await;
    assert_eq!(number(&client, before).await, with_coupon + 10);
}

#[tokio::test]
async fn the_sink_waits_until_the_tables_can_be_made_and_says_for_what() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let stranger = format!("`{DATABASE}`.plugin_shop_orders");
    client.execute(&format!("CREATE TABLE {stranger} (x UInt8) ENGINE = MergeTree ORDER BY x")).await.unwrap();
    let (_folder, tables) = declared(&shop("1.0.0", orders(&[]), json!([])));
    let running = Running::start_with_tables(client.clone(), [range(0, 0, purchases(10))], tables.clone(), Mode::Auto);
    eventually("health names the table", || async { running.reason().contains("plugin_shop_orders is there") }).await;
    assert!(running.reason().starts_with("plugin shop: "), "{}", running.reason());
    assert_eq!(number(&client, "SELECT count() FROM {db}.events").await, 0);
    assert!(!tables.is_applied());
    client.execute(&format!("DROP TABLE {stranger} SYNC")).await.unwrap();
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_shop_orders").await, 10);
    assert!(running.reason().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_statement_that_fails_is_named_and_nothing_after_it_is_made() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let wrong = json!([{ "name": "t", "types": ["purchase"],
        "columns": [{ "name": "c", "type": "String", "value": { "sql": "nosuch(path)" } }] }]);
    let (folder, tables) = declared(&shop("1.0.0", wrong, json!([])));
    let good = descriptor(json!({ "name": "zoo", "version": "1", "enriches": ["*"],
        "tables": [{ "name": "all", "types": ["*"], "columns": [] }] }));
    tables.declare(&good).unwrap();
    let error = tables.apply(&client, &template()).await.unwrap_err().to_string();
    assert!(error.starts_with("plugin shop, table t, `CREATE MATERIALIZED VIEW IF NOT EXISTS"), "{error}");
    assert!(error.contains("nosuch"), "{error}");
    // Other plugins are not held back, and the insert into `events` is not broken.
    store(&client, &opened().1, range(0, 0, purchases(5))).await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_zoo_all").await, 5);

    // Nothing is bound to what never stood: after a restart, too, the mended version takes its place.
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    let mended = json!([{ "name": "t", "types": ["purchase"], "columns": [column("d", "UInt8", "d")] }]);
    let mended = shop("1.0.0", mended, json!([]));
    tables.compatible(&mended).unwrap();
    tables.declare(&mended).unwrap();
    tables.apply(&client, &template()).await.unwrap();
    assert!(tables.is_applied());
}

#[tokio::test]
async fn a_declaration_outlives_restarts_and_the_loss_of_clickhouses_data() {
    let mut clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let plugin = shop("1.0.0", orders(&[]), views(&[]));
    let (folder, tables) = declared(&plugin);
    drop(tables);
    // Declared, not applied, and nobody declares it again.
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    let running = Running::start_with_tables(client.clone(), [range(0, 0, purchases(100))], tables.clone(), Mode::Auto);
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    running.stop().await;
    assert_eq!(texts(&client, TOTALS).await, ["100 1000 0.01 19.99 2"]);

    // Once it stood it binds, after a restart too.
    let tables = Tables::open(folder.path().join("tables.json")).unwrap();
    let problems = tables.compatible(&shop("1.0.1", json!([]), json!([]))).unwrap_err();
    assert!(problems[0].contains("table orders is gone"), "{problems:?}");

    // The table is dropped behind the engine's back and ClickHouse restarts: the sink makes it again.
    tables.apply(&client, &template()).await.unwrap();
    for table in ["plugin_shop_orders_mv", "plugin_shop_revenue_daily_mv", "plugin_shop_orders"] {
        client.execute(&format!("DROP TABLE `{DATABASE}`.{table} SYNC")).await.unwrap();
    }
    clickhouse.kill();
    let running = Running::start_with_tables(client.clone(), [range(0, 100, purchases(100))], tables, Mode::Auto);
    eventually("the outage is noticed", || async { running.reason().contains("cannot be reached") }).await;
    clickhouse.launch().await;
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    running.stop().await;
    assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_shop_orders").await, 100);
}

#[tokio::test]
async fn verify_changes_nothing_and_names_what_is_missing() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let (_folder, tables) = declared(&shop("1.0.0", orders(&[]), json!([])));
    let running =
        Running::start_with_tables(client.clone(), [range(0, 0, purchases(10))], tables.clone(), Mode::Verify);
    eventually("health names them", || async {
        running.reason().contains("plugin_shop_orders, plugin_shop_orders_mv")
    })
    .await;
    assert!(running.reason().contains("`ingestion-engine migrate`"), "{}", running.reason());
    let error = tables.verify(&client).await.unwrap_err();
    assert!(matches!(error, TablesError::Missing { .. }), "{error}");
    // Somebody else makes them.
    let (_other_folder, other) = declared(&shop("1.0.0", orders(&[]), json!([])));
    other.apply(&client, &template()).await.unwrap();
    eventually("the range is stored", || async { running.committed() == 1 }).await;
    running.stop().await;
    tables.verify(&client).await.unwrap();
}

#[tokio::test]
async fn several_nodes_make_the_same_tables_at_once() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let nodes: Vec<_> = (0..4).map(|_| declared(&shop("1.0.0", orders(&[]), views(&[])))).collect();
    let template = template();
    let applied = nodes.iter().map(|(_, tables)| tables.apply(&client, &template));
    for result in futures_util::future::join_all(applied).await {
        result.unwrap();
    }
    assert_eq!(number(&client, "SELECT count() FROM system.tables WHERE name LIKE 'plugin_shop_%'").await, 8);
}

#[tokio::test]
async fn rows_and_aggregates_leave_with_their_events() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let (_folder, tables) = declared(&shop("1.0.0", orders(&[]), views(&[])));
    let mut rows = purchases(90);
    for row in rows.iter_mut().step_by(3) {
        // Ended in 2001, on a day of its own.
        (row.expires_at, row.timestamp_ms) = (1_000_000_800, 1_000_000_000_000);
    }
    store(&client, &tables, range(0, 0, rows)).await;
    for table in ["plugin_shop_orders", "plugin_shop_revenue_daily_data"] {
        let definition = format!("SELECT create_table_query FROM system.tables WHERE name = '{table}'");
        let definition = texts(&client, &definition).await;
        assert!(definition[0].contains("TTL expires_at"), "{definition:?}");
        assert!(definition[0].contains("non_replicated_deduplication_window = 10000"), "{definition:?}");
        assert!(definition[0].contains("fsync_after_insert = 1"), "{definition:?}");
        assert!(definition[0].contains("COMMENT 'plugin shop 1.0.0, "), "{definition:?}");
        client.execute(&format!("OPTIMIZE TABLE `{DATABASE}`.{table} FINAL")).await.unwrap();
    }
    assert_eq!(number(&client, "SELECT count() FROM {db}.plugin_shop_orders").await, 60);
    let days = "SELECT concat(toString(day), ' ', toString(orders)) FROM {db}.plugin_shop_revenue_daily";
    assert_eq!(texts(&client, days).await, ["2026-09-21 60"]);
}

#[tokio::test]
async fn a_trial_finds_what_would_fail_by_its_column_and_leaves_nothing() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let template = template();
    let sql = |name: &str, kind: &str, sql: &str| json!({ "name": name, "type": kind, "value": { "sql": sql } });
    let table = |column: JsonValue| json!([{ "name": "t", "types": ["purchase"], "columns": [column] }]);
    let view = |measure: JsonValue| {
        json!([{ "name": "v", "from": "orders", "measures": [measure],
            "group_by": [sql("day", "Date", "toDate(timestamp)")] }])
    };
    let cases = [
        (shop("1", table(sql("c", "String", "nosuch(path)")), json!([])), "table t, column c: ", "nosuch"),
        (shop("1", table(sql("c", "String", "no_column")), json!([])), "table t, column c: ", "no_column"),
        // Fails for events without that property only.
        (
            shop("1", table(sql("c", "UInt8", "toUInt8(JSONExtractString(properties, 'x'))")), json!([])),
            "table t, column c: ",
            "",
        ),
        (shop("1", table(sql("c", "Array(UInt8)", "path")), json!([])), "table t, column c: ", ""),
        (shop("1", table(sql("c", "UInt8", "1, 2")), json!([])), "table t, column c: ", ""),
        (
            shop(
                "1",
                orders(&[]),
                view(json!({ "name": "m", "function": "sum", "type": "UInt64", "value": { "sql": "lower(total)" } })),
            ),
            "view v, column m: ",
            "lower",
        ),
    ];
    for (plugin, place, detail) in cases {
        let error = try_out(&client, &template, &plugin, &[]).await.unwrap_err().to_string();
        assert!(error.starts_with(place) && error.contains(detail), "{error}");
    }
    let strict = shop("1", table(sql("c", "UInt8", "throwIf(path = '/bad')")), json!([]));
    try_out(&client, &template, &strict, &[]).await.unwrap();
    let mut example = purchase(1, "{}");
    example.path = "/bad".into();
    let error = try_out(&client, &template, &strict, &[example]).await.unwrap_err();
    assert!(matches!(&error, TrialError::Value { column, .. } if column == "c"), "{error}");

    try_out(&client, &template, &shop("1.0.0", orders(&[]), views(&[])), &purchases(10)).await.unwrap();
    let left = "SELECT count() FROM system.databases WHERE name LIKE '%plugin_check%'";
    assert_eq!(number(&client, left).await, 0);
    assert_eq!(number(&client, "SELECT count() FROM system.tables WHERE name LIKE 'plugin_%'").await, 0);

    // Away is no verdict.
    let away = ClickHouse::absent();
    let error = try_out(&away.client(), &template, &strict, &[]).await.unwrap_err();
    assert!(matches!(error, TrialError::NoDatabase(_)), "{error}");
}

#[tokio::test]
async fn every_statement_is_valid_for_a_cluster_too() {
    let clickhouse = ClickHouse::start().await;
    let client = clickhouse.migrated().await;
    let cluster = Template { cluster: Some("main".into()), embedded: false, ..template() };
    let statements = Tables::statements(&shop("1.0.0", orders(&[]), views(&[]))).unwrap();
    assert_eq!(statements.len(), 8);
    for statement in statements {
        let statement = cluster.render(&statement);
        assert!(statement.contains("ON CLUSTER 'main'"), "{statement}");
        assert!(!statement.contains("MergeTree") || statement.contains("ENGINE = Replicated"), "{statement}");
        client.execute(&format!("EXPLAIN AST {statement}")).await.unwrap();
    }
}

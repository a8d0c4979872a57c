//! Unmodified client libraries.

use std::process::Command;

use clickhouse::{Client, Compression, Row};
use serde::{Deserialize, Serialize};

use super::clickhouse_child::{ClickHouse, cached};

#[derive(Clone, Debug, PartialEq, Row, Serialize, Deserialize)]
struct Sale {
    id: u64,
    item: String,
    price: f64,
    tags: Vec<String>,
    note: Option<String>,
}

fn sale(id: u64) -> Sale {
    Sale {
        id,
        item: format!("item\n\n{id}"),
        price: 0.5,
        tags: vec!["a".to_owned(), String::new()],
        note: id.is_multiple_of(2).then(|| "even".to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clickhouse_crate_plain() {
    the_clickhouse_crate(Compression::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clickhouse_crate_with_lz4() {
    the_clickhouse_crate(Compression::Lz4).await;
}

async fn the_clickhouse_crate(compression: Compression) {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let client = Client::default()
        .with_url(server.url())
        .with_user("default")
        .with_password("any")
        .with_setting("async_insert", "0")
        .with_compression(compression);
    client.query("CREATE DATABASE shop").execute().await.unwrap();
    let client = client.with_database("shop");
    client
        .query(
            "CREATE TABLE sale (id UInt64, item String, price Float64, tags Array(String), note Nullable(String)) \
             ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100",
        )
        .execute()
        .await
        .unwrap();
    let count = async || client.query("SELECT count() FROM sale").fetch_one::<u64>().await.unwrap();

    // Typed, with the columns looked up first and without; more than one chunk.
    let mut insert = client.insert::<Sale>("sale").await.unwrap();
    for id in 0..20_000 {
        insert.write(&sale(id)).await.unwrap();
    }
    insert.end().await.unwrap();
    let mut insert = client.clone().with_validation(false).insert::<Sale>("sale").await.unwrap();
    insert.write(&sale(20_000)).await.unwrap();
    insert.end().await.unwrap();
    let rows = client.query("SELECT ?fields FROM sale ORDER BY id").fetch_all::<Sale>().await.unwrap();
    assert_eq!(rows, (0..=20_000).map(sale).collect::<Vec<_>>());

    // Values bound by the client, and by the server.
    let bound = client.query("SELECT item FROM sale WHERE id = ?").bind(7).fetch_one::<String>().await.unwrap();
    assert_eq!(bound, sale(7).item);
    let parameter = client
        .query("SELECT id FROM sale WHERE item = {item:String}")
        .param("item", "item\n\n8")
        .fetch_one::<u64>()
        .await
        .unwrap();
    assert_eq!(parameter, 8);
    let threads = client
        .query("SELECT toUInt64(getSetting('max_threads'))")
        .with_setting("max_threads", "3")
        .fetch_one::<u64>()
        .await;
    assert_eq!(threads.unwrap(), 3);

    // Rows that the caller encoded, under a deduplication token: the second copy stores nothing.
    for _ in 0..2 {
        let mut insert = client
            .insert_formatted_with("INSERT INTO sale (id, item) FORMAT RowBinary")
            .with_setting("insert_deduplication_token", "topic:0:1-2");
        for id in [30_001_u64, 30_002] {
            let row = [&id.to_le_bytes()[..], b"\x02\n\n"].concat();
            insert.send(row.into()).await.unwrap();
        }
        insert.end().await.unwrap();
    }
    assert_eq!(count().await, 20_003);

    // An insert that the client gives up.
    let mut insert = client.insert::<Sale>("sale").await.unwrap();
    for id in 40_000..60_000 {
        insert.write(&sale(id)).await.unwrap();
    }
    drop(insert);
    assert_eq!(count().await, 20_003);

    let error = client.query("SELECT * FROM nothing").execute().await.unwrap_err();
    assert!(error.to_string().contains("Code: 60."), "{error}");
    let error =
        client.query("SELECT throwIf(number = 150000) FROM numbers(200000)").fetch_all::<u8>().await.unwrap_err();
    assert!(error.to_string().contains("Code: 395."), "{error}");
    let mut insert = client.insert_formatted_with("INSERT INTO sale (id) FORMAT JSONEachRow");
    insert.send("{\"id\": \"no number\"}".into()).await.unwrap();
    let error = insert.end().await.unwrap_err();
    assert!(error.to_string().contains("Code: "), "{error}");
    assert_eq!(count().await, 20_003);
}

/// Run by the Python that `make setup` prepares; each assertion ends it with an error.
const SCRIPT: &str = r#"
import sys, datetime
import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError

port = int(sys.argv[1])
for compress in (False, "lz4", "zstd", "gzip"):
    client = clickhouse_connect.get_client(host="127.0.0.1", port=port, username="default", password="any", compress=compress)
    client.command("CREATE DATABASE IF NOT EXISTS py")
    client.command("DROP TABLE IF EXISTS py.t SYNC")
    client.command("CREATE TABLE py.t (id UInt64, name LowCardinality(String), at DateTime64(3, 'UTC'), m Map(String, String), j Nullable(Float64)) ENGINE = MergeTree ORDER BY id")
    rows = [[1, "a\n\nb", datetime.datetime(2026, 1, 2, 3, 4, 5), {"k": "v"}, None], [2, "\u00e9", datetime.datetime(1970, 1, 1), {}, 0.5]]
    client.insert("py.t", rows, column_names=["id", "name", "at", "m", "j"])
    assert [list(row) for row in client.query("SELECT * FROM py.t ORDER BY id").result_rows] == rows
    client.insert("py.t", [[n, "x", datetime.datetime(2026, 1, 1), {}, None] for n in range(10, 50010)], column_names=["id", "name", "at", "m", "j"])
    assert client.query("SELECT count() FROM py.t").result_rows == [(50002,)]
    assert client.query("SELECT {a:String}, {b:Array(UInt8)}", parameters={"a": "it's", "b": [1, 2]}).result_rows == [("it's", [1, 2])]
    assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 3}).result_rows == [(3,)]
    assert client.raw_query("SELECT 1 FORMAT CSV") == b"1\n"
    client.command("CREATE TEMPORARY TABLE mine (n UInt8)")
    client.command("INSERT INTO mine VALUES (1), (2)")
    assert client.command("SELECT sum(n) FROM mine") == 3
    try:
        client.query("SELECT * FROM py.nothing")
        sys.exit("an unknown table gave no error")
    except DatabaseError as error:
        assert "60" in str(error), error
    try:
        client.insert("py.t", [["no number"]], column_names=["id"])
        sys.exit("a wrong type gave no error")
    except Exception as error:
        assert "no number" in str(error) or "int" in str(error), error
    client.close()
print("all passed")
"#;

#[test]
fn clickhouse_connect_from_pypi() {
    let python = cached("venv-clickhouse-connect-1.12.0/bin/python");
    assert!(
        python.is_file(),
        "there is no Python with clickhouse-connect 1.12.0 at {}: `make setup` creates it",
        python.display()
    );
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let output = Command::new(&python).args(["-c", SCRIPT, &server.port.to_string()]).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("all passed"), "{out}{errors}{}", server.log());
}

//! curl, and what a server promises over HTTP.

use super::clickhouse_child::{ClickHouse, curl, post, wait_for, with_query};

#[test]
fn curl_queries_inserts_and_gets_errors() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let url = server.url();

    let answer = curl(&[&format!("{url}/?query=SELECT+1")], b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "1\n"));
    assert_eq!(answer.header("x-clickhouse-format"), Some("TabSeparated"));
    assert_eq!(answer.header("x-clickhouse-query-id").unwrap().len(), 36);
    assert!(answer.header("x-clickhouse-summary").unwrap().contains("\"result_rows\":\"1\""));
    assert!(answer.header("x-clickhouse-timezone").is_some());
    assert_eq!(curl(&[&format!("{url}/ping")], b"").text(), "Ok.\n");
    assert_eq!(curl(&[&format!("{url}/")], b"").text(), "Ok.\n");
    assert_eq!(curl(&[&format!("{url}/replicas_status")], b"").text(), "Ok.\n");
    assert_eq!(curl(&[&format!("{url}/elsewhere")], b"").status, 404);

    server.run("CREATE DATABASE shop");
    server.run("CREATE TABLE shop.sale (id UInt32, item String) ENGINE = MergeTree ORDER BY id");
    let insert = with_query(&url, "INSERT INTO sale FORMAT CSV", &[("database", "shop")]);
    let answer = post(&insert, b"1,apple\n2,pear\n");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-clickhouse-summary").unwrap().contains("\"written_rows\":\"2\""));
    assert_eq!(server.run("SELECT item FROM shop.sale ORDER BY id FORMAT CSV"), "\"apple\"\n\"pear\"\n");

    // The statement's start in the URL, its end in the body.
    let answer = post(&with_query(&url, "SELECT count() FROM", &[("default_format", "JSONEachRow")]), b"shop.sale");
    assert_eq!(answer.text(), "{\"count()\":2}\n");
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson; charset=UTF-8"));

    for (sql, status, code) in [
        ("SELECT * FROM shop.nothing", 404, 60),
        ("SELEC 1", 400, 62),
        ("", 400, 62),
        ("SELECT 1; SELECT 2", 400, 62),
        ("SELECT throwIf(number = 150000) FROM numbers(200000)", 500, 395),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", 501, 48),
    ] {
        let answer = post(&url, sql.as_bytes());
        assert_eq!((answer.status, answer.code()), (status, Some(code)), "{sql}: {}", answer.text());
        assert!(answer.text().starts_with(&format!("Code: {code}. DB::Exception: ")), "{}", answer.text());
    }
    let answer = post(&with_query(&url, "SELECT 1", &[("no_such_setting", "1")]), b"");
    assert_eq!((answer.status, answer.code()), (404, Some(115)), "{}", answer.text());
}

#[test]
fn get_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    server.run("CREATE TABLE d.t (a UInt8) ENGINE = MergeTree ORDER BY a");
    for sql in ["INSERT INTO d.t VALUES (1)", "INSERT INTO d.t SELECT 1", "DROP TABLE d.t", "CREATE DATABASE e"] {
        for more in [&[][..], &[("readonly", "0")], &[("session_id", "s")]] {
            let answer = curl(&[&with_query(&server.url(), sql, more)], b"");
            assert_eq!(answer.code(), Some(164), "{sql} with {more:?}: {}", answer.text());
        }
    }
    assert_eq!(server.run("SELECT count() FROM d.t"), "0\n");
    // What GET may do: settings for its own query.
    let url = with_query(&server.url(), "SELECT getSetting('max_threads')", &[("max_threads", "3")]);
    assert_eq!(curl(&[&url], b"").text(), "3\n");
}

#[test]
fn pages_of_other_sites_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let url = format!("{}/?query=SELECT+1", server.url());
    assert_eq!(curl(&["-H", "Host: rebound.example", &url], b"").status, 403);
    assert_eq!(curl(&["-H", "Origin: https://evil.example", "-X", "POST", &url], b"").status, 403);
    assert_eq!(curl(&["-H", "Origin: http://localhost:3000", "-X", "POST", &url], b"").status, 200);
}

#[test]
fn the_port_is_no_way_to_files_networks_and_users() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    let file = scratch.path().join("secret");
    std::fs::write(&file, "secret").unwrap();
    let file = file.display();
    for sql in [
        format!("SELECT * FROM file('{file}', 'LineAsString')"),
        format!("SELECT file('{file}')"),
        format!("SELECT * FROM `{file}`"),
        format!("INSERT INTO FUNCTION file('{file}', 'CSV', 'a String') SELECT 'x'"),
        format!("INSERT INTO FUNCTION file('{file}', 'CSV', 'a String') VALUES ('x')"),
        format!("CREATE TABLE d.f (a String) ENGINE = File(CSV, '{file}')"),
        format!("CREATE DATABASE f ENGINE = Filesystem('{}')", scratch.path().display()),
        format!(
            "CREATE DICTIONARY d.y (a String) PRIMARY KEY a SOURCE(FILE(PATH '{file}' FORMAT 'CSV')) LAYOUT(FLAT())"
        ),
        format!("BACKUP DATABASE d TO File('{file}.backup')"),
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')".to_owned(),
        "SELECT * FROM remote('127.0.0.1', 'system.one')".to_owned(),
        "CREATE USER u".to_owned(),
    ] {
        let answer = post(&server.url(), sql.as_bytes());
        assert_eq!(answer.code(), Some(497), "{sql}: {}", answer.text());
    }
    assert_eq!(std::fs::read_to_string(scratch.path().join("secret")).unwrap(), "secret");
}

#[test]
fn an_answer_too_large_for_memory_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let answer = post(&server.url(), b"SELECT randomString(1000000) FROM numbers(600)");
    assert_eq!(answer.code(), Some(396), "{}", answer.text());
    assert_eq!(server.run("SELECT 1"), "1\n");
}

#[test]
fn bodies_and_answers_may_be_compressed() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    server.run("CREATE TABLE d.t (encoding String, n UInt32) ENGINE = MergeTree ORDER BY n");
    for encoding in ["gzip", "deflate", "zstd", "lz4", "br"] {
        let rows = (0..1000).map(|n| format!("{encoding}\t{n}\n")).collect::<Vec<_>>().concat();
        let body = encode(encoding, rows.as_bytes());
        let url = with_query(&server.url(), "INSERT INTO d.t FORMAT TSV", &[]);
        let header = format!("Content-Encoding: {encoding}");
        let answer = curl(&["-H", &header, "--data-binary", "@-", &url], &body);
        assert_eq!(answer.status, 200, "{encoding}: {}", answer.text());
        let damaged = curl(&["-H", &header, "--data-binary", "@-", &url], b"damaged");
        assert_eq!(damaged.code(), Some(354), "{encoding}");
    }
    assert_eq!(
        server.run("SELECT encoding, count(), sum(n) FROM d.t GROUP BY encoding ORDER BY encoding"),
        "br\t1000\t499500\ndeflate\t1000\t499500\ngzip\t1000\t499500\nlz4\t1000\t499500\nzstd\t1000\t499500\n"
    );
    let url = with_query(&server.url(), "SELECT number FROM numbers(10000)", &[]);
    let plain = curl(&[&url], b"");
    let packed = curl(&["-H", "Accept-Encoding: gzip", "--compressed", &url], b"");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.body, plain.body);
    let unknown = curl(&["-H", "Content-Encoding: rot13", "--data-binary", "@-", &server.url()], b"SELECT 1");
    assert_eq!(unknown.code(), Some(89));
}

fn encode(encoding: &str, data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::bulk::compress(data, 3).unwrap(),
        "lz4" => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(data).unwrap();
            encoder.into_inner()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_session_keeps_its_tables_and_a_request_its_settings() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let url = server.url();
    let ask = |session: &str, sql: &str, more: &[(&str, &str)]| {
        let mut parameters = vec![("session_id", session)];
        parameters.extend_from_slice(more);
        let answer = post(&with_query(&url, "", &parameters), sql.as_bytes());
        (answer.code(), answer.text())
    };
    server.run("CREATE DATABASE d");
    assert_eq!(ask("a", "CREATE TEMPORARY TABLE mine (n UInt8)", &[]).0, None);
    assert_eq!(ask("a", "INSERT INTO mine VALUES (7)", &[]).0, None);
    assert_eq!(ask("a", "SELECT n FROM mine", &[]), (None, "7\n".to_owned()));
    assert_eq!(ask("b", "SELECT n FROM mine", &[]).0, Some(60));
    assert_eq!(ask("b", "SELECT 1", &[("session_check", "1"), ("close_session", "1")]).0, None);
    assert_eq!(ask("b", "SELECT 1", &[("session_check", "1")]).0, Some(372));
    assert_eq!(ask("c", "SELECT 1", &[("session_check", "1")]).0, Some(372));

    let threads = "SELECT getSetting('max_threads'), currentDatabase()";
    assert_eq!(ask("a", "SET max_threads = 5", &[]).0, None);
    assert_eq!(ask("a", threads, &[]).1, "5\tdefault\n");
    assert_eq!(ask("a", threads, &[("max_threads", "3"), ("database", "d")]).1, "3\td\n");
    assert_eq!(ask("a", threads, &[]).1, "5\tdefault\n");

    // While a request has the session, another one is told so.
    std::thread::scope(|scope| {
        let slow =
            scope.spawn(|| ask("a", "SELECT sleepEachRow(0.2) FROM numbers(15) SETTINGS max_block_size = 1", &[]));
        wait_for("the request to run", || (server.run("SELECT count() FROM system.processes") != "1\n").then_some(()));
        assert_eq!(ask("a", "SELECT 1", &[]).0, Some(373));
        assert_eq!(slow.join().unwrap().0, None);
    });
}

//! Insert data reaches the table byte for byte, or not at all.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use super::clickhouse_child::{ClickHouse, post, with_query};

/// A text with everything that could be mistaken for an end of data.
const TEXT: &str = "a\n\nb;\r\n\r\n';\nFORMAT CSV\n\n";

fn row_binary(id: u32) -> Vec<u8> {
    let mut row = id.to_le_bytes().to_vec();
    row.push(u8::try_from(TEXT.len()).unwrap());
    row.extend_from_slice(TEXT.as_bytes());
    row
}

#[test]
fn empty_lines_do_not_end_data() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    // The id 0x0a0a0a0a consists of line ends.
    let ids = [1, 0x0a0a_0a0a, 3];
    let sql_text = TEXT.replace('\'', "\\'");
    let json = serde_json::to_string(TEXT).unwrap();
    let escaped = TEXT.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
    let each = |row: &dyn Fn(u32) -> String, between: &str| ids.map(row).join(between).into_bytes();
    let formats: Vec<(&str, Vec<u8>)> = vec![
        ("CSV", each(&|id| format!("{id},\"{TEXT}\""), "\n")),
        ("TabSeparated", each(&|id| format!("{id}\t{escaped}\n"), "")),
        ("JSONEachRow", each(&|id| format!("{{\"id\":{id},\n\n\"s\":{json}}}"), "\n\n")),
        ("Values", each(&|id| format!("({id}, '{sql_text}')"), ",\n\n")),
        ("RowBinary", ids.map(row_binary).concat()),
        ("RowBinaryWithNames", [&b"\x02\x02id\x01s"[..], &ids.map(row_binary).concat()].concat()),
    ];
    for (number, (format, data)) in formats.iter().enumerate() {
        for in_body in [false, true] {
            let table = format!("d.t{number}_{in_body}");
            server.run(&format!("CREATE TABLE {table} (id UInt32, s String) ENGINE = MergeTree ORDER BY id"));
            let insert = format!("INSERT INTO {table} (id, s) FORMAT {format}");
            let answer = if in_body {
                post(&server.url(), &[insert.as_bytes(), b"\n", data].concat())
            } else {
                post(&with_query(&server.url(), &insert, &[]), data)
            };
            assert_eq!(answer.status, 200, "{format}, in the body {in_body}: {}", answer.text());
            let stored = server.run(&format!(
                "SELECT groupArray((id, s)) FROM (SELECT * FROM {table} ORDER BY id) FORMAT JSONEachRow"
            ));
            let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
            let expected = serde_json::json!([[1, TEXT], [3, TEXT], [0x0a0a_0a0a, TEXT]]);
            assert_eq!(stored.as_object().unwrap().values().next(), Some(&expected), "{format}, in the body {in_body}");
        }
    }
    server.run("CREATE TABLE d.v (id UInt32, s String) ENGINE = MergeTree ORDER BY id");
    server.run("INSERT INTO d.v VALUES (1, 'a;\n\nb'), (2, concat('x', 'y'));");
    assert_eq!(server.run("SELECT s FROM d.v ORDER BY id"), "a;\\n\\nb\nxy\n");
}

#[test]
fn an_insert_whose_client_goes_away_inserts_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    server.run("CREATE TABLE d.t (n UInt32) ENGINE = MergeTree ORDER BY n");
    let path = with_query("", "INSERT INTO d.t FORMAT TSV", &[]);
    for head in ["Content-Length: 1000000\r\n\r\n1\n2\n3\n", "Transfer-Encoding: chunked\r\n\r\n6\r\n1\n2\n3\n\r\n"] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The server is done with the request when it closes its side.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(server.run("SELECT count() FROM d.t"), "0\n");
    // Data that breaks off inside a row, with the request complete: nothing of it either.
    let answer = post(&with_query(&server.url(), "INSERT INTO d.t FORMAT RowBinary", &[]), &[1, 0, 0, 0, 2, 0]);
    assert_eq!(answer.code(), Some(33), "{}", answer.text());
    assert_eq!(server.run("SELECT count() FROM d.t"), "0\n");
}

#[test]
fn a_too_large_body_is_refused_before_it_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(stream, "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 300000000\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("larger than 268435456 bytes"), "{answer}");
}

#[test]
fn concurrent_inserts_and_queries_keep_apart() {
    const CLIENTS: u32 = 12;
    const BATCHES: u32 = 5;
    const ROWS: u32 = 500;
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    server.run("CREATE DATABASE d");
    server.run("CREATE TABLE d.t (client UInt32, n UInt32, s String) ENGINE = MergeTree ORDER BY (client, n)");
    let insert = with_query(&server.url(), "INSERT INTO d.t FORMAT RowBinary", &[]);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, insert) = (&server, &insert);
            scope.spawn(move || {
                for batch in 0..BATCHES {
                    let rows: Vec<u8> = (0..ROWS)
                        .flat_map(|row| [&client.to_le_bytes()[..], &row_binary(batch * ROWS + row)].concat())
                        .collect();
                    let answer = post(insert, &rows);
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let count = server.run(&format!("SELECT count() FROM d.t WHERE client = {client}"));
                    assert_eq!(count, format!("{}\n", (batch + 1) * ROWS));
                }
            });
        }
    });
    let all = CLIENTS * BATCHES * ROWS;
    assert_eq!(server.run("SELECT count(), uniqExact(client, n), uniqExact(s) FROM d.t"), format!("{all}\t{all}\t1\n"));
}

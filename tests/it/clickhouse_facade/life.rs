//! One child: its path, its parent, its end.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::clickhouse_child::{ClickHouse, PROGRAM, curl, post, wait_for, with_query};
use crate::support::process::ToEnd;

#[test]
fn the_tables_have_the_defaults_of_this_engine() {
    let scratch = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let base = server.run("SELECT value FROM system.merge_tree_settings WHERE name = 'merge_selector_base'");
    assert_eq!(base, "20\n");
}

#[test]
fn acknowledged_rows_survive_kill_9() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("clickhouse");
    let mut server = ClickHouse::start(&path);
    server.run("CREATE DATABASE d");
    server.run(
        "CREATE TABLE d.t (n UInt32) ENGINE = MergeTree ORDER BY n \
         SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1",
    );
    let insert = with_query(&server.url(), "INSERT INTO d.t FORMAT TSV", &[]);
    let mut acknowledged = 0;
    for round in 0..3_u32 {
        // Inserts go on while the process is killed: the one under way may or may not count.
        let until = acknowledged + 20;
        let insert = insert.replace(&insert[..insert.find("/?").unwrap()], &server.url());
        let inserter = std::thread::spawn(move || {
            let mut next = acknowledged;
            loop {
                let output = Command::new("curl")
                    .args(["--silent", "--fail", "--max-time", "60", "--data-binary", &format!("{next}\n"), &insert])
                    .output()
                    .unwrap();
                if !output.status.success() {
                    return next;
                }
                next += 1;
            }
        });
        wait_for("rows to be inserted", || {
            let rows: u32 = server.run("SELECT max(n) FROM d.t").trim().parse().unwrap();
            (rows >= until).then_some(())
        });
        server.signal(Signal::KILL);
        assert!(!server.ended().success());
        acknowledged = inserter.join().unwrap();
        assert!(acknowledged > until, "round {round}");
        server = ClickHouse::start(&path);
        let stored = server.run(&format!("SELECT uniqExact(n) FROM d.t WHERE n < {acknowledged}"));
        assert_eq!(stored, format!("{acknowledged}\n"), "round {round}");
    }
}

#[test]
fn the_child_ends_when_its_parent_is_killed() {
    let scratch = tempfile::tempdir().unwrap();
    // The holder of the pipe's other end stands for the parent: after the start nobody else has it.
    let mut parent = Command::new("sleep").arg("1000").stdout(Stdio::piped()).spawn().unwrap();
    let pipe = Stdio::from(parent.stdout.take().unwrap());
    let path = scratch.path().join("clickhouse");
    let mut server = ClickHouse::start_with(&path, &["--watch-parent"], pipe);
    assert_eq!(server.run("SELECT 1"), "1\n");
    // A request that would take a minute does not keep it.
    let url = with_query(&server.url(), "SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1", &[]);
    let mut request = Command::new("curl").args(["--silent", &url]).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the request to run", || (server.run("SELECT count() FROM system.processes") != "1\n").then_some(()));
    parent.kill().unwrap();
    parent.wait().unwrap();
    server.ended();
    request.wait().unwrap();
    // Path and port are free again.
    let again = ClickHouse::start(&path);
    assert_eq!(again.run("SELECT 1"), "1\n");
}

#[test]
fn an_orphan_ends_although_nobody_reads_its_log() {
    let scratch = tempfile::tempdir().unwrap();
    let port_file = scratch.path().join("port");
    let mut child = Command::new(PROGRAM)
        .args(["clickhouse", "--watch-parent", "--port", "0", "--path"])
        .arg(scratch.path().join("clickhouse"))
        .arg("--port-file")
        .arg(&port_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let port = wait_for("the port file", || std::fs::read_to_string(&port_file).ok());
    assert_eq!(post(&format!("http://127.0.0.1:{}", port.trim()), b"SELECT 1").text(), "1\n");
    // A killed parent closes all its ends at once: the log breaks before the child knows.
    drop((child.stdout.take(), child.stderr.take()));
    drop(child.stdin.take());
    let status = wait_for("the orphan's end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let scratch = tempfile::tempdir().unwrap();
    let mut server = ClickHouse::start(&scratch.path().join("clickhouse"));
    let url =
        with_query(&server.url(), "SELECT sum(sleepEachRow(0.1)) FROM numbers(20) SETTINGS max_block_size = 1", &[]);
    let request = std::thread::spawn(move || curl(&[&url], b""));
    wait_for("the request to run", || (server.run("SELECT count() FROM system.processes") != "1\n").then_some(()));
    server.signal(Signal::TERM);
    let answer = request.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "0\n"));
    let status = server.ended();
    assert!(status.success(), "{status}: {}", server.log());
}

#[test]
fn a_second_process_on_the_path_is_refused_and_told_who_has_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("clickhouse");
    let first = ClickHouse::start(&path);
    let output = Command::new(PROGRAM).args(["clickhouse", "--port", "0", "--path"]).arg(&path).to_end();
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&format!("pid {}", first.process.id())), "{log}");
    assert_eq!(first.run("SELECT 1"), "1\n");
}

#[test]
fn tables_are_there_after_an_orderly_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("clickhouse");
    let mut server = ClickHouse::start(&path);
    server.run("CREATE DATABASE d");
    server.run("CREATE TABLE d.t (n UInt32) ENGINE = MergeTree ORDER BY n");
    assert_eq!(post(&with_query(&server.url(), "INSERT INTO d.t FORMAT CSV", &[]), b"1\n2\n").status, 200);
    server.signal(Signal::INT);
    assert!(server.ended().success(), "{}", server.log());
    let server = ClickHouse::start(&path);
    assert_eq!(server.run("SELECT sum(n) FROM d.t"), "3\n");
}

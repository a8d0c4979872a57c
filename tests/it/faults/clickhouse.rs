//! What ClickHouse, and the network before it, can do to inserts.

use std::time::Duration;

use crate::{
    clickhouse_facade::clickhouse_child::ClickHouse as Server,
    support::{
        engine::{ClickHouse, Engine, Setup, eventually, signal},
        fault_proxy::{Fault, FaultProxy},
        load::Load,
    },
};

struct Rig {
    engine: Engine,
    clickhouse: ClickHouse,
    server: Server,
    proxy: FaultProxy,
    setup: Setup,
    /// Its files go with it.
    _home: tempfile::TempDir,
}

/// An engine whose inserts go through a proxy. They are given up after some seconds, so that a server that hangs is met.
fn rig() -> Rig {
    rig_with("")
}

fn rig_with(sink: &str) -> Rig {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&home.path().join("clickhouse"));
    let proxy = FaultProxy::start(server.port);
    let setup = Setup::new(home.path())
        .config(&format!("[clickhouse]\ninsert_timeout = \"5s\"\n[sink]\nmax_age = \"50ms\"\n{sink}"))
        .env("INGESTION_CLICKHOUSE_URL", proxy.url());
    let engine = setup.start();
    eventually("all is up", || engine.get("/health").json()["status"] == "up");
    let clickhouse = ClickHouse::at(&format!("http://127.0.0.1:{}", server.port));
    clickhouse.stop_merges();
    Rig { engine, clickhouse, server, proxy, setup, _home: home }
}

#[test]
fn refusals_slowness_and_lost_answers_of_inserts_lose_and_double_nothing() {
    let Rig { engine, clickhouse, proxy, setup, .. } = &rig();
    let load = Load::start(engine);
    let faults = [
        Fault::Answer(500, None, "Internal Server Error"),
        Fault::Answer(502, None, "<html>Bad Gateway</html>"),
        Fault::Answer(500, Some(252), "Code: 252. DB::Exception: Too many parts (300). (TOO_MANY_PARTS)"),
        Fault::Answer(500, Some(241), "Code: 241. DB::Exception: memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)"),
        Fault::LoseAnswer,
        Fault::CutInTheMiddle,
        Fault::Slow(Duration::from_secs(1)),
        // Longer than the limit of an insert: it takes effect after it was given up.
        Fault::Slow(Duration::from_secs(6)),
    ];
    for fault in faults {
        load.wait_for_requests(20);
        proxy.set(fault.clone());
        eventually(&format!("inserts meet {fault:?}"), || proxy.hit() >= 2);
        let before = proxy.inserts();
        proxy.set(Fault::None);
        eventually(&format!("inserts go on after {fault:?}"), || proxy.inserts() > before + 1);
    }
    let sent = load.stop();
    assert_eq!((sent.refused.clone(), sent.broken), (Vec::new(), 0), "accepted throughout");
    sent.is_stored_once(clickhouse);
    setup.ledger().unwrap();
    eventually("health clears by itself", || engine.get("/health").json()["status"] == "up");
}

#[test]
fn a_view_that_fails_is_named_and_holds_up_its_partition_until_it_is_mended() {
    let Rig { engine, clickhouse, setup, .. } = &rig();
    let load = Load::start(engine);
    load.wait_for_requests(20);
    clickhouse.query(
        "CREATE MATERIALIZED VIEW overwatch.broken_mv ENGINE = Memory AS \
         SELECT throwIf(path != '', 'broken on purpose') AS x FROM overwatch.events",
    );
    eventually("health names the view", || {
        engine.component("sink")["reason"].as_str().is_some_and(|reason| reason.contains("broken_mv"))
    });
    load.wait_for_requests(20);
    clickhouse.query("DROP VIEW overwatch.broken_mv");
    eventually("health clears by itself", || engine.component("sink")["state"] == "up");
    load.stop().is_stored_once(clickhouse);
    setup.ledger().unwrap();
}

#[test]
fn a_server_that_hangs_and_goes_on_loses_and_doubles_nothing() {
    let Rig { engine, clickhouse, server, setup, .. } = &rig();
    let load = Load::start(engine);
    for _ in 0..2 {
        load.wait_for_requests(20);
        signal(server.process.id(), "STOP");
        // Longer than the limit of an insert: those in flight are given up, and take effect later.
        eventually("health names ClickHouse", || engine.component("clickhouse")["state"] == "down");
        eventually("inserts are given up", || engine.component("sink")["state"] != "up");
        load.wait_for_requests(20);
        signal(server.process.id(), "CONT");
        eventually("health clears by itself", || engine.get("/health").json()["status"] == "up");
    }
    let sent = load.stop();
    assert_eq!((sent.refused.clone(), sent.broken), (Vec::new(), 0), "accepted throughout");
    sent.is_stored_once(clickhouse);
    setup.ledger().unwrap();
}

/// What a crash between the log of tokens and the part, or a disk, can do: the token is known and the rows are not there.
#[test]
fn a_part_that_is_missing_while_its_token_is_logged_is_put_back_without_the_views() {
    let Rig { engine, clickhouse, proxy, setup, .. } = &rig_with("inserts_in_flight = 1");
    let load = Load::start(engine);
    load.wait_for_requests(20);
    // Stored, as nobody knows: the sink repeats it. Before it does, the part is gone and its token is not.
    proxy.set(Fault::LoseAnswer);
    eventually("an insert is stored and its answer lost", || proxy.lost() >= 1);
    proxy.set(Fault::Answer(500, None, "away"));
    let sent = load.stop();
    // Inserts go one after the other here: the newest part is that insert's.
    let newest = "SELECT concat(path, ' ', toString(rows)) FROM system.parts WHERE active AND database = 'overwatch' \
                  AND table = 'events' ORDER BY max_block_number DESC LIMIT 1";
    let newest = clickhouse.query(newest);
    let (part, rows) = newest.rsplit_once(' ').unwrap();
    // Under the running server: at a start it would see for itself that the part of the token is missing.
    clickhouse.query("DETACH TABLE overwatch.events SYNC");
    std::fs::remove_dir_all(part).unwrap();
    clickhouse.query("ATTACH TABLE overwatch.events");
    clickhouse.stop_merges();
    proxy.set(Fault::None);

    sent.is_stored_once(clickhouse);
    setup.ledger().unwrap();
    assert!(engine.metric("ingestion_sink_recounts_total") >= 1);
    let mended = engine.metric("ingestion_sink_mended_rows_total");
    let tables = "SELECT count() FROM system.tables WHERE database = 'overwatch' AND name LIKE '%_missing_%'";
    assert_eq!((mended, clickhouse.number(tables)), (rows.parse().unwrap(), 0));
}

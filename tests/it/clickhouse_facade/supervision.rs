//! The parent's side: starting, watching, restarting.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use ingestion_engine::{
    clickhouse::embedded::{Supervisor, SupervisorError, SupervisorSettings},
    health::{Health, State},
    metrics::Metrics,
};
use rustix::process::Signal;

use super::clickhouse_child::{ClickHouse, DEADLINE, PROGRAM, cached, post, send_signal};

fn settings(path: &Path) -> SupervisorSettings {
    SupervisorSettings { program: PROGRAM.into(), path: path.to_owned(), port: 0, library: None }
}

/// A way to the library that can be closed: without it a child cannot start again, so that a test sees the time between.
struct Way {
    link: PathBuf,
}

impl Way {
    fn open(scratch: &Path) -> Self {
        let way = Self { link: scratch.join("libchdb.so") };
        way.reopen();
        way
    }

    fn reopen(&self) {
        std::os::unix::fs::symlink(cached("libchdb-26.7.3-stable.1/libchdb.so"), &self.link).unwrap();
    }

    fn close(&self) {
        std::fs::remove_file(&self.link).unwrap();
    }
}

/// Waits until `condition` holds, without holding up the runtime.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn ask(url: &str, sql: &'static str) -> String {
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || {
        let answer = post(&url, sql.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_child_is_restarted_on_its_port() {
    let scratch = tempfile::tempdir().unwrap();
    let (health, metrics) = (Health::default(), Arc::new(Metrics::new()));
    let state = || health.snapshot()["clickhouse"].state;
    let component = health.component("clickhouse");
    let way = Way::open(scratch.path());
    let settings =
        SupervisorSettings { library: Some(way.link.clone()), ..settings(&scratch.path().join("clickhouse")) };
    let supervisor = Supervisor::start(settings, component, Arc::clone(&metrics)).await.unwrap();
    let (url, pid) = (supervisor.url(), supervisor.pid().unwrap());
    assert_eq!((state(), metrics.clickhouse_starts.get()), (State::Up, 1));
    ask(&url, "CREATE DATABASE d").await;
    ask(&url, "CREATE TABLE d.t ENGINE = MergeTree ORDER BY n AS SELECT 1 AS n").await;

    way.close();
    send_signal(pid, Signal::KILL);
    eventually("the death to show in health", || state() == State::Down).await;
    let reason = || health.snapshot()["clickhouse"].reason.clone().unwrap();
    assert!(reason().contains("signal: 9"), "{}", reason());
    eventually("a start that fails", || reason().contains("did not start again: there is no libchdb at")).await;
    assert_eq!(supervisor.pid(), None);
    way.reopen();
    eventually("a new child", || supervisor.pid().is_some_and(|new| new != pid)).await;
    eventually("health", || state() == State::Up).await;
    assert_eq!(supervisor.url(), url);
    assert_eq!(metrics.clickhouse_starts.get(), 2);
    assert_eq!(ask(&url, "SELECT n FROM d.t").await, "1\n");

    let last = supervisor.pid().unwrap();
    supervisor.stop().await;
    assert!(!Path::new(&format!("/proc/{last}")).exists(), "the child is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_child_is_killed_and_restarted() {
    let scratch = tempfile::tempdir().unwrap();
    let health = Health::default();
    let component = health.component("clickhouse");
    let way = Way::open(scratch.path());
    let settings =
        SupervisorSettings { library: Some(way.link.clone()), ..settings(&scratch.path().join("clickhouse")) };
    let supervisor = Supervisor::start(settings, component, Arc::new(Metrics::new())).await.unwrap();
    let pid = supervisor.pid().unwrap();
    way.close();
    send_signal(pid, Signal::STOP);
    eventually("the hang to show in health", || health.snapshot()["clickhouse"].state == State::Down).await;
    let reason = health.snapshot()["clickhouse"].reason.clone().unwrap();
    assert!(reason.contains("hung"), "{reason}");
    way.reopen();
    eventually("a new child", || supervisor.pid().is_some_and(|new| new != pid)).await;
    assert_eq!(ask(&supervisor.url(), "SELECT 1").await, "1\n");
    supervisor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_trying_again_cannot_mend_is_an_error_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("clickhouse");
    let start = |settings| {
        let health = Health::default();
        let component = health.component("clickhouse");
        async move { Supervisor::start(settings, component, Arc::new(Metrics::new())).await }
    };
    let refusal = |started: Result<Supervisor, SupervisorError>| match started {
        Err(SupervisorError::Refused { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    };

    let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = stranger.local_addr().unwrap().port();
    let reason = refusal(start(SupervisorSettings { port, ..settings(&path) }).await);
    assert!(reason.contains(&format!("port {port} on 127.0.0.1 is taken by another process")), "{reason}");

    let missing = scratch.path().join("missing.so");
    let reason = refusal(start(SupervisorSettings { library: Some(missing), ..settings(&path) }).await);
    assert!(reason.contains("missing.so") && reason.contains("make setup"), "{reason}");

    let broken = scratch.path().join("broken.so");
    std::fs::write(&broken, "no library").unwrap();
    let reason = refusal(start(SupervisorSettings { library: Some(broken), ..settings(&path) }).await);
    assert!(reason.contains("libchdb could not be loaded"), "{reason}");

    let holder = ClickHouse::start(&path);
    let reason = refusal(start(settings(&path)).await);
    assert!(reason.contains(&format!("pid {}", holder.process.id())), "{reason}");

    let program = scratch.path().join("nothing");
    let started = start(SupervisorSettings { program, ..settings(&path) }).await;
    assert!(matches!(started, Err(SupervisorError::Spawn { .. })));
}

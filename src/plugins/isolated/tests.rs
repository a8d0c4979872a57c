#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{io::Write, path::Path, process::ExitCode, sync::Arc};

use ingestion_plugin_abi::Purpose;
use tracing_subscriber::fmt::MakeWriter;
use uuid::Uuid;

use super::*;
use crate::{
    ids::{EventId, TenantId},
    plugins::{call::Input, host::Hosts},
};

mod frames;

const LIBRARY: &str = "ISOLATED_TEST_LIBRARY";

/// Long enough for a machine that has much else to do; a call that is meant to return is never held against it.
const LONG: Duration = Duration::from_secs(60);

const MEMORY: u64 = 1 << 30;

/// Not a test of its own: the plugin's process.
#[test]
fn child() {
    let Ok(library) = std::env::var(LIBRARY) else { return };
    assert_eq!(host_main(Path::new(&library)), ExitCode::SUCCESS);
}

struct Rig {
    isolated: Isolated,
    metrics: Arc<Metrics>,
    _home: tempfile::TempDir,
}

fn compile(folder: &Path) -> PathBuf {
    let library = folder.join("contained.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plugins/contained.c");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O0", "-shared", "-fPIC", source, "-o"])
        .arg(&library)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

fn start(config: &str, memory_bytes: u64) -> Result<Rig, StartError> {
    let home = tempfile::tempdir().unwrap();
    let library = compile(home.path());
    let metrics = Arc::new(Metrics::new());
    let settings = Settings {
        program: std::env::current_exe().unwrap(),
        library: library.clone(),
        caller: Caller { plugin: "contained".into(), sha256: "a".repeat(64).into() },
        config: config.to_owned(),
        limits: Limits { event_bytes: 4096 },
        memory_bytes,
        host: Hosts::new(metrics.of_plugins()).of("contained"),
    };
    let command = move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "plugins::isolated::tests::child", "--nocapture"]).env(LIBRARY, &library);
        command
    };
    let isolated = Isolated::start_with(Box::new(command), settings, &metrics)?;
    Ok(Rig { isolated, metrics, _home: home })
}

impl Rig {
    fn new() -> Self {
        start("{}", MEMORY).unwrap()
    }

    /// One event for each of `what`.
    fn call(&self, what: &[&str], limit: Duration) -> Result<Vec<Verdict>, Fault> {
        call_on(&self.isolated, what, limit)
    }

    /// The process that is used next.
    fn pid(&self) -> Option<u32> {
        self.isolated.idle.lock().last().and_then(Process::id)
    }
}

fn call_on(backend: &dyn Backend, what: &[&str], limit: Duration) -> Result<Vec<Verdict>, Fault> {
    let events: Vec<String> = what.iter().map(|what| format!(r#"{{"type":"a","do":"{what}"}}"#)).collect();
    let events: Vec<Input<'_>> =
        events.iter().map(|json| Input { json, kind: "a", id: EventId(Uuid::from_bytes([7; 16])) }).collect();
    let tenant = TenantId(Uuid::from_bytes([3; 16]));
    let call = Call { tenant, received_at_ms: -1, purpose: Purpose::LIVE, events: &events };
    Backend::process(backend, &Worker::detached(), &call, limit)
}

#[test]
fn verdicts_counters_and_health_come_back() {
    let rig = Rig::new();
    let verdicts = rig.call(&["nothing", "replace", "reject", "drop", "stdin", "count"], LONG).unwrap();
    assert_eq!(
        verdicts,
        [
            Verdict::Keep,
            Verdict::Replace("{\"replaced\":true}".to_owned()),
            Verdict::Reject { code: "told_to".to_owned(), detail: "the event asked for it".to_owned() },
            Verdict::Drop { reason: "told_to".to_owned() },
            Verdict::Keep,
            Verdict::Keep,
        ]
    );
    assert_eq!(rig.call(&["count"; 3], LONG), Ok(vec![Verdict::Keep; 3]));
    let text = rig.metrics.render();
    for line in [
        "ingestion_plugin_counter_total{plugin=\"contained\",name=\"seen\"} 8",
        "ingestion_plugin_gauge{plugin=\"contained\",name=\"level\"} 1.5",
        "ingestion_plugin_calls_seconds_count{plugin=\"contained\"} 2",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("No name"), "{text}");
    let health = || Backend::health(&rig.isolated, &Worker::detached());
    assert_eq!(health(), Ok(()));
    rig.call(&["ill"], LONG).unwrap();
    assert_eq!(health(), Err("as told".to_owned()));
}

#[test]
fn large_calls_fit_and_large_results_are_refused() {
    let rig = Rig::new();
    let large = "x".repeat(100_000);
    // More than any buffer between the two.
    assert_eq!(rig.call(&vec![large.as_str(); 50], LONG), Ok(vec![Verdict::Keep; 50]));
    // The plugin's own limit holds here too: sixteen events of 4096 bytes, or four times of what was sent.
    assert_eq!(rig.call(&["replace"; 1000], LONG).unwrap().len(), 1000);
}

#[test]
fn what_the_plugin_says_it_did_wrong_leaves_its_process_alone() {
    let rig = Rig::new();
    let pid = rig.pid();
    assert_eq!(rig.call(&["fail"], LONG), Err(Fault::Failed { message: "as told".to_owned() }));
    let problem = "events[0]: its JSON is not UTF-8 (byte 0)".to_owned();
    assert_eq!(rig.call(&["garbage"], LONG), Err(Fault::BadOutput { problem }));
    assert_eq!((rig.call(&["nothing"], LONG), rig.pid()), (Ok(vec![Verdict::Keep]), pid));
}

#[test]
fn an_end_of_the_process_costs_one_call() {
    let rig = Rig::new();
    for (what, how) in [("segfault", "SIGSEGV"), ("exit", "exit status 3"), ("abort", "SIGABRT")] {
        rig.call(&["nothing"], LONG).unwrap();
        let pid = rig.pid();
        assert_eq!(rig.call(&["nothing", what], LONG), Err(Fault::Crashed { how: how.to_owned() }), "{what}");
        assert_eq!(rig.pid(), None);
        assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]), "after {what}");
        assert_ne!(rig.pid(), pid);
    }
}

#[test]
fn a_hang_is_killed() {
    let rig = Rig::new();
    let pid = rig.pid().unwrap();
    let limit = Duration::from_millis(20);
    assert_eq!(rig.call(&["hang"], limit), Err(Fault::Deadline { limit }));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and waited for");
    assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]));
}

#[test]
fn a_process_that_writes_at_random_is_killed() {
    let rig = Rig::new();
    let pid = rig.pid().unwrap();
    let Err(Fault::BadOutput { problem }) = rig.call(&["frame"], LONG) else { panic!("taken for an answer") };
    assert!(problem.starts_with("it says that its answer has 4294967295 bytes, of at most"), "{problem}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    rig.call(&["nothing"], LONG).unwrap();
    let Err(Fault::BadOutput { problem }) = rig.call(&["close", "hang"], LONG) else { panic!("no fault") };
    assert_eq!(problem, "it has closed its connection and lives on");
    assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]));
}

#[test]
fn memory_is_limited() {
    let rig = Rig::new();
    assert_eq!(rig.call(&["memory"], LONG), Err(Fault::Failed { message: "no memory".to_owned() }));
    assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]));
    // Four times as much as it asks for.
    let rig = start("{}", 1 << 34).unwrap();
    assert_eq!(rig.call(&["memory"], LONG), Ok(vec![Verdict::Keep]));
}

#[test]
fn a_process_that_ended_with_nothing_to_do_is_replaced_without_a_fault() {
    let rig = Rig::new();
    rig.call(&["nothing"], LONG).unwrap();
    let pid = rig.pid().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    // It is over when the engine can see it.
    while rig.isolated.idle.lock().last().is_some_and(|process| !process.is_over()) {
        std::thread::yield_now();
    }
    assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]));
    assert_ne!(rig.pid(), Some(pid));
}

#[test]
fn there_are_as_many_processes_as_calls_at_once() {
    let rig = Rig::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(rig.call(&["nothing"], LONG), Ok(vec![Verdict::Keep]));
                }
            });
        }
    });
    assert!((1..=4).contains(&rig.isolated.idle.lock().len()));
}

#[test]
fn a_plugin_that_does_not_start_says_why() {
    let error = |config| start(config, MEMORY).err().unwrap().to_string();
    let refused = error(r#"{"create":"refuse"}"#);
    assert!(refused.contains("as configured"), "{refused}");
    assert_eq!(error(r#"{"create":"exit"}"#), "its process ended while it started: exit status 4");
    assert_eq!(error(r#"{"create":"crash"}"#), "its process ended while it started: SIGSEGV");
}

#[test]
fn early_deaths_make_the_next_start_wait() {
    let rig = Rig::new();
    // The first process, and the one that is started at once, die at their first call; the third has to wait.
    for _ in 0..2 {
        assert_eq!(rig.call(&["segfault"], LONG), Err(Fault::Crashed { how: "SIGSEGV".to_owned() }));
    }
    let Err(fault @ Fault::Waiting { .. }) = rig.call(&["nothing"], LONG) else { panic!("started at once") };
    assert!(!fault.counts(), "it follows from faults that were counted");
    let how = fault.to_string();
    let begins =
        "it was not called: its process has died 2 times in a row before its first answer, the last time: SIGSEGV";
    assert!(how.starts_with(begins), "{how}");
}

#[test]
fn waits_double_up_to_a_limit_and_end_with_an_answer() {
    let now = Instant::now();
    let mut deaths = Deaths::default();
    let mut waits = Vec::new();
    for _ in 0..11 {
        deaths.died(now, "SIGSEGV".to_owned());
        waits.push(match deaths.may_start(now) {
            Ok(()) => 0,
            Err(StartError::Waiting { wait, .. }) => wait.as_millis(),
            Err(other) => panic!("{other}"),
        });
    }
    assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    assert!(deaths.may_start(now + LAST_WAIT).is_ok());
    // One at a time, as long as none has answered.
    assert!(deaths.may_start(now + LAST_WAIT).is_err());
    deaths.started(now, None);
    assert!(deaths.may_start(now + LAST_WAIT).is_ok());
    deaths.answered();
    assert!(deaths.may_start(now).is_ok());
    deaths.died(now, "SIGSEGV".to_owned());
    assert!(deaths.may_start(now).is_ok());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn what_it_logs_and_prints_is_in_the_log() {
    // Through a pipe and a thread of its own, as `forward` is used; the thread's subscriber is this test's.
    let home = tempfile::tempdir().unwrap();
    let library = compile(home.path());
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let (words, said) = io::pipe().unwrap();
    let (stream, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plugins::isolated::tests::child", "--nocapture"]).env(LIBRARY, &library);
    command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(said.try_clone().unwrap()).stderr(said);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut out = frame::Writer::default();
    let (plugin, sha256, config) = ("contained", "a", "{}");
    Start { level: 4, memory: MEMORY, event_bytes: 4096, plugin, sha256, config }.write(&mut out);
    (&stream).write_all(out.finish()).unwrap();
    let json = r#"{"do":"print"}"#;
    let events = [Input { json, kind: "a", id: EventId(Uuid::nil()) }];
    let tenant = TenantId(Uuid::nil());
    frame::write_call(&mut out, &Call { tenant, received_at_ms: 0, purpose: Purpose::LIVE, events: &events });
    (&stream).write_all(out.finish()).unwrap();
    // The end of what is sent: it does what it was told, ends its instance, and ends.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    tracing::subscriber::with_default(subscriber, || log::forward(words, "contained"));
    assert!(child.wait().unwrap().success());
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let find =
        |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what}: {text}"));
    assert!(find("printed").contains(" WARN "), "{text}");
    assert!(find("logged").contains(" ERROR "), "{text}");
    assert!(find("in two lines").contains("plugin=\"contained\""), "{text}");
    assert!(find("destroyed").contains(" WARN "), "{text}");
}

/// What a call costs: `cargo test --lib plugins::isolated -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn cost_of_a_call() {
    const CALLS: u32 = 2000;
    let rig = Rig::new();
    let Settings { library, caller, limits, host, .. } = &rig.isolated.settings;
    let library = crate::plugins::library::Library::open(library).unwrap();
    let worker = Worker::detached();
    let here =
        crate::plugins::instance::Instance::create(&worker, caller.clone(), &library, *host, "{}", *limits).unwrap();
    // Events of about 300 bytes.
    let filled = format!("nothing\",\"filler\":\"{}", "x".repeat(260));
    for (what, events) in [("nothing", 1), (filled.as_str(), 1), (filled.as_str(), 100), (filled.as_str(), 1000)] {
        let call = vec![what; events];
        rig.call(&call, LONG).unwrap();
        let began = Instant::now();
        for _ in 0..CALLS {
            rig.call(&call, LONG).unwrap();
        }
        let isolated = began.elapsed() / CALLS;
        let began = Instant::now();
        for _ in 0..CALLS {
            call_on(&here, &call, LONG).unwrap();
        }
        let in_process = began.elapsed() / CALLS;
        println!("{events} events of {} bytes: {isolated:?}, in this process {in_process:?}", what.len() + 20);
    }
}

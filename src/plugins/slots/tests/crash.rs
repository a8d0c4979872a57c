//! Real crashes: this test binary starts itself again as a process that crashes.

#![allow(unsafe_code, reason = "it crashes on purpose")]

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    ptr,
    sync::mpsc,
    time::Duration,
};

use super::*;
use crate::{
    metrics::Metrics,
    plugins::threads::{Settings, Threads, Worker},
};

const PATH: &str = "SLOTS_CRASH_TEST_PATH";
const HOW: &str = "SLOTS_CRASH_TEST_HOW";

fn segfault() {
    // SAFETY: There is none: it is a crash.
    unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
}

fn raise(signal: i32) {
    // SAFETY: No memory is involved.
    unsafe { libc::raise(signal) };
}

/// Uses up the stack.
#[expect(unconditional_recursion, reason = "it crashes on purpose")]
fn recurse(n: u64) -> u64 {
    let kept = std::hint::black_box([n; 64]);
    recurse(n + 1) + kept[0]
}

fn in_call(worker: &Worker, code: impl FnOnce()) {
    worker.call(&caller("crashing", 'a'), Duration::from_secs(3600), code).unwrap();
}

/// Not a test of its own: the process that crashes.
#[tokio::test]
async fn child() {
    let (Ok(path), Ok(how)) = (std::env::var(PATH), std::env::var(HOW)) else { return };
    let (slots, crashes) = open(Path::new(&path)).unwrap();
    assert_eq!(crashes, []);
    install_handlers().unwrap();
    install_handlers().unwrap();
    let threads = Threads::start(Settings { threads: 2, leaked: 2 }, Some(slots), Arc::new(Metrics::new())).unwrap();
    // So that both threads are there, and have been in a call.
    threads.run(|worker| in_call(worker, || {})).await.unwrap();
    let crash: Box<dyn FnOnce(&Worker) + Send> = match how.as_str() {
        "segfault" => Box::new(|worker| in_call(worker, segfault)),
        "abort" => Box::new(|worker| in_call(worker, || std::process::abort())),
        "stack overflow" => Box::new(|worker| in_call(worker, || drop(Box::new(recurse(0))))),
        "kill" => Box::new(|worker| in_call(worker, || raise(libc::SIGKILL))),
        "segfault outside of the call" => Box::new(|worker| {
            in_call(worker, || {});
            segfault();
        }),
        "segfault in another thread" => {
            let (entered, wait) = mpsc::channel();
            let (_stay, stays) = mpsc::channel::<()>();
            let waiting = threads.run(move |worker| {
                in_call(worker, || {
                    entered.send(()).unwrap();
                    // Until the process ends.
                    assert!(stays.recv().is_ok());
                });
            });
            let crashing = tokio::task::spawn_blocking(move || {
                wait.recv().unwrap();
                segfault();
            });
            let (waited, crashed) = tokio::join!(waiting, crashing);
            waited.unwrap();
            return crashed.unwrap();
        }
        "sent by another process" => Box::new(|worker| {
            in_call(worker, || {
                // SAFETY: No memory is involved.
                let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
                // SAFETY: The child does nothing but send a signal and end.
                unsafe {
                    if libc::fork() == 0 {
                        libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGSEGV);
                        libc::_exit(0);
                    }
                }
                // Until the signal ends the process.
                std::thread::sleep(Duration::from_secs(3600));
            });
        }),
        "forked" => Box::new(|worker| {
            in_call(worker, || {
                // SAFETY: The child does nothing but crash.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    segfault();
                }
                // SAFETY: It waits for that child.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                raise(libc::SIGKILL);
            });
        }),
        signal => {
            let signal = signal.parse().unwrap();
            Box::new(move |worker| in_call(worker, || raise(signal)))
        }
    };
    threads.run(crash).await.unwrap();
}

/// Lets a process end so; returns its status, standard error, and what the next one finds.
fn crash(how: &str) -> (ExitStatus, String, Vec<Crash>) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plugins::slots::tests::crash::child", "--nocapture"])
        .env(PATH, &path)
        .env(HOW, how)
        // No cores in the tests' folder.
        .current_dir(home.path())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let (_, crashes) = open(&path).unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned(), crashes)
}

#[test]
fn the_plugin_in_call_is_named_and_the_process_ends_by_the_signal() {
    for (how, marked, ended_by) in [
        ("segfault".to_owned(), libc::SIGSEGV, libc::SIGSEGV),
        ("abort".to_owned(), libc::SIGABRT, libc::SIGABRT),
        // As Rust ends it.
        ("stack overflow".to_owned(), libc::SIGSEGV, libc::SIGABRT),
        (libc::SIGFPE.to_string(), libc::SIGFPE, libc::SIGFPE),
        (libc::SIGILL.to_string(), libc::SIGILL, libc::SIGILL),
        (libc::SIGBUS.to_string(), libc::SIGBUS, libc::SIGBUS),
        (libc::SIGSEGV.to_string(), libc::SIGSEGV, libc::SIGSEGV),
        (libc::SIGABRT.to_string(), libc::SIGABRT, libc::SIGABRT),
    ] {
        let before = Timestamp::now();
        let (status, stderr, crashes) = crash(&how);
        assert_eq!(status.signal(), Some(ended_by), "{how}: {status}\n{stderr}");
        assert_eq!(crashes.len(), 1, "{how}: {stderr}");
        let found = &crashes[0];
        assert_eq!(
            (found.plugin.as_str(), found.sha256.as_str(), found.signal),
            ("crashing", "a".repeat(64).as_str(), marked),
            "{how}"
        );
        let (early, late) = (before - jiff::SignedDuration::from_secs(1), Timestamp::now());
        assert!(early <= found.at && found.at <= late, "{how}: {early} {} {late}", found.at);
        if how == "stack overflow" {
            assert!(stderr.contains("has overflowed its stack"), "Rust still tells of it: {stderr}");
        }
    }
}

#[test]
fn other_ends_blame_nobody() {
    for (how, ended_by) in [
        ("segfault outside of the call", libc::SIGSEGV),
        ("segfault in another thread", libc::SIGSEGV),
        ("kill", libc::SIGKILL),
        ("sent by another process", libc::SIGSEGV),
        ("forked", libc::SIGKILL),
    ] {
        let (status, stderr, crashes) = crash(how);
        assert_eq!(status.signal(), Some(ended_by), "{how}: {status}\n{stderr}");
        assert_eq!(crashes, [], "{how}");
    }
}

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use super::*;
use crate::plugins::call::Fault;

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(3600);

fn caller(plugin: &str) -> Caller {
    Caller { plugin: plugin.into(), sha256: "0".repeat(64).into() }
}

fn start(threads: usize, leaked: usize) -> Threads {
    Threads::start(Settings { threads, leaked }, None, Arc::new(Metrics::new())).unwrap()
}

/// Waits until `done`: for what another thread does in its own time.
async fn until(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "it never happens");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Hangs in a call of `plugin` until the sender is dropped; the task's result is what became of the job.
async fn hang(threads: &Threads, plugin: &str) -> (mpsc::Sender<()>, RunError) {
    let (release, wait) = mpsc::channel::<()>();
    let caller = caller(plugin);
    let error = threads
        .run(move |worker| {
            // Ends with an error when the sender is dropped.
            let fault = worker.call(&caller, SHORT, || wait.recv()).unwrap_err();
            assert_eq!(fault, Fault::Abandoned);
        })
        .await
        .unwrap_err();
    (release, error)
}

#[tokio::test]
async fn jobs_run_in_order_on_threads_of_their_own() {
    let threads = start(1, 1);
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (first, second) = (Arc::clone(&seen), Arc::clone(&seen));
    let (name, ()) = tokio::join!(
        async {
            threads
                .run(move |worker| {
                    first.lock().push(1);
                    worker.call(&caller("a"), LONG, || thread::current().name().unwrap().to_owned())
                })
                .await
                .unwrap()
        },
        async { threads.run(move |_| second.lock().push(2)).await.unwrap() }
    );
    assert_eq!((name.unwrap().as_str(), &**seen.lock()), ("plugin-1", &[1, 2][..]));
}

#[tokio::test]
async fn a_hanging_call_is_given_up_and_its_thread_replaced() {
    let metrics = Arc::new(Metrics::new());
    let threads = Threads::start(Settings { threads: 1, leaked: 8 }, None, Arc::clone(&metrics)).unwrap();
    let (release, error) = hang(&threads, "slow").await;
    assert_eq!(error, RunError::Abandoned { plugin: "slow".into(), limit: SHORT });
    assert_eq!((threads.leaked(), threads.leaked_by("slow"), threads.leaked_by("other")), (1, 1, 0));
    assert!(!threads.is_exhausted());
    assert_eq!(metrics.plugin_threads_leaked.get(), 1);
    // Every other plugin goes on, and so does this one.
    for name in ["other", "slow"] {
        assert_eq!(threads.run(move |worker| worker.call(&caller(name), LONG, || 7)).await.unwrap(), Ok(7));
    }
    drop(release);
    until(|| threads.leaked() == 0).await;
    assert_eq!((threads.leaked_by("slow"), metrics.plugin_threads_leaked.get()), (0, 0));
    let text = metrics.render();
    assert!(text.contains("ingestion_plugin_calls_seconds_count{plugin=\"slow\"} 2"), "{text}");
}

#[tokio::test]
async fn after_a_late_return_the_job_enters_no_plugin_and_its_result_is_thrown_away() {
    let threads = start(1, 8);
    let (release, wait) = mpsc::channel::<()>();
    let (ended, end) = mpsc::channel();
    let result = threads
        .run(move |worker| {
            let first = worker.call(&caller("slow"), SHORT, || wait.recv());
            let entered = AtomicBool::new(false);
            let second = worker.call(&caller("other"), LONG, || entered.store(true, Ordering::Relaxed));
            ended.send((first, second, entered.into_inner())).unwrap();
            "a result"
        })
        .await;
    assert_eq!(result, Err(RunError::Abandoned { plugin: "slow".into(), limit: SHORT }));
    drop(release);
    let (first, second, entered) = end.recv().unwrap();
    assert_eq!((first, second), (Err(Fault::Abandoned), Err(Fault::Abandoned)));
    assert!(!entered);
}

#[tokio::test]
async fn at_the_most_leaked_threads_the_plugin_that_hangs_is_not_entered_and_the_others_are() {
    let threads = start(2, 1);
    let (release, _) = hang(&threads, "slow").await;
    assert!(threads.is_exhausted());
    // As many as there are threads, at once: none is missing.
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let refused = || {
        let barrier = Arc::clone(&barrier);
        threads.run(move |worker| {
            barrier.wait();
            worker.call(&caller("slow"), LONG, || 7)
        })
    };
    let (one, two) = tokio::join!(refused(), refused());
    assert_eq!((one, two), (Ok(Err(Fault::Exhausted { leaked: 1 })), Ok(Err(Fault::Exhausted { leaked: 1 }))));
    assert_eq!(threads.run(|worker| worker.call(&caller("other"), LONG, || 7)).await.unwrap(), Ok(7));
    // Another file of the same plugin, which may be the mended one.
    let mended = Caller { plugin: "slow".into(), sha256: "1".repeat(64).into() };
    assert_eq!(threads.run(move |worker| worker.call(&mended, LONG, || 7)).await.unwrap(), Ok(7));
    assert_eq!(threads.leaked_by("slow"), 1);
    drop(release);
    until(|| !threads.is_exhausted()).await;
    assert_eq!(threads.run(|worker| worker.call(&caller("slow"), LONG, || 7)).await.unwrap(), Ok(7));
}

#[tokio::test]
async fn a_call_that_is_given_up_is_told_of_although_nobody_waits() {
    let threads = start(1, 8);
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    threads.on_given_up(move |caller, limit| seen.lock().push((caller.plugin.to_string(), limit)));
    let (release, wait) = mpsc::channel::<()>();
    let (began, begun) = mpsc::channel();
    let mut job = Box::pin(threads.run(move |worker| {
        worker.call(&caller("slow"), SHORT, || {
            began.send(()).unwrap();
            wait.recv()
        })
    }));
    tokio::select! { biased; _ = &mut job => panic!("it hangs"), () = std::future::ready(()) => {} }
    begun.recv().unwrap();
    drop(job);
    until(|| !told.lock().is_empty()).await;
    assert_eq!(*told.lock(), [("slow".to_owned(), SHORT)]);
    drop(release);
}

#[tokio::test]
async fn a_panic_costs_its_job_and_not_the_thread() {
    let threads = start(1, 1);
    for in_call in [false, true] {
        let panicked = threads
            .run(move |worker| {
                assert!(in_call, "outside of a call");
                worker.call(&caller("a"), LONG, || panic!("in a call"))
            })
            .await;
        assert_eq!(panicked, Err::<Result<(), _>, _>(RunError::Panicked));
    }
    let name = threads.run(|_| thread::current().name().map(str::to_owned)).await.unwrap();
    assert_eq!(name.as_deref(), Some("plugin-1"));
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_is_not_begun() {
    let threads = start(1, 1);
    let (release, wait) = mpsc::channel::<()>();
    let ran = Arc::new(AtomicBool::new(false));
    let busy = threads.run(move |_| wait.recv());
    let forgotten = {
        let ran = Arc::clone(&ran);
        threads.run(move |_| ran.store(true, Ordering::Relaxed))
    };
    // Given, the second one behind the first, and then the second one is dropped.
    let mut busy = Box::pin(busy);
    tokio::select! { biased; _ = &mut busy => {}, () = std::future::ready(()) => {} }
    let mut forgotten = Box::pin(forgotten);
    tokio::select! { biased; _ = &mut forgotten => {}, () = std::future::ready(()) => {} }
    drop(forgotten);
    drop(release);
    busy.await.unwrap().unwrap_err();
    threads.run(|_| ()).await.unwrap();
    assert!(!ran.load(Ordering::Relaxed));
}

#[tokio::test]
async fn the_last_handle_ends_the_idle_threads() {
    let threads = start(3, 1);
    let (release, _) = hang(&threads, "slow").await;
    let pool: Weak<Pool> = Arc::downgrade(&threads.handle.pool);
    drop(threads.clone());
    assert_eq!(threads.run(|_| 7).await, Ok(7));
    drop(threads);
    // The hanging one, and whoever looks at it.
    until(|| pool.upgrade().is_none_or(|pool| pool.threads.lock().len() == 1)).await;
    drop(release);
    until(|| pool.strong_count() == 0).await;
}

#[tokio::test]
async fn a_sleeping_watchdog_wakes_for_a_call() {
    let threads = start(1, 8);
    for _ in 0..2 {
        until(|| threads.handle.pool.alarm.is_asleep()).await;
        let (release, error) = hang(&threads, "slow").await;
        assert_eq!(error, RunError::Abandoned { plugin: "slow".into(), limit: SHORT });
        drop(release);
    }
}

/// What a call costs: `cargo test --lib plugins::threads -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "measures"]
async fn cost_of_a_call() {
    const CALLS: u32 = 1_000_000;
    let threads = start(1, 8);
    let took = threads
        .run(|worker| {
            let caller = caller("a");
            let began = Instant::now();
            for n in 0..CALLS {
                worker.call(&caller, LONG, || std::hint::black_box(n)).unwrap();
            }
            began.elapsed()
        })
        .await
        .unwrap();
    println!("{} ns a call", took.as_nanos() / u128::from(CALLS));
}

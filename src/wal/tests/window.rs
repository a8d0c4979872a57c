//! The dedup window: which events are known, across crashes, full generations and failures, against a plain model.

use std::{collections::VecDeque, fs};

use proptest::prelude::*;

use super::{faults::Told, model::image, *};
use crate::{
    ids::EventId,
    row::{self, EventRow},
};

pub(super) const TENANT: TenantId = TenantId(Uuid::from_u128(7));

pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Small generations, so that a run goes through several.
pub(super) fn small(dir: &Path) -> Settings {
    Settings { max_disk_bytes: 128 << 20, ..settings(dir) }
}

/// One request of `tenant` with events of these ids. `filler` bytes that do not compress make them large.
pub(super) fn events(tenant: TenantId, ids: impl IntoIterator<Item = u128>, filler: usize) -> Append {
    let mut packer = Packer::new(Codec::Lz4);
    for (index, id) in (0_u64..).zip(ids) {
        let mut row = EventRow::new(tenant, EventId(Uuid::from_u128(id)), "custom");
        let text: String = noise(index + 1, filler / 2).iter().map(|byte| format!("{byte:02x}")).collect();
        row.text = text.as_str().into();
        let mut bytes = Vec::new();
        row::encode(&row, &mut bytes);
        packer.push(&bytes);
    }
    Append { tenant, received_at_ms: now_ms(), chunks: packer.finish(), counted: true, answer: None, again: false }
}

async fn send(rig: &Rig, ids: impl IntoIterator<Item = u128>) -> u64 {
    rig.wal.append(events(TENANT, ids, 0)).await.unwrap().duplicates
}

/// Ids of all events in the log, in order.
async fn stored(mut rig: Rig) -> Vec<u128> {
    let count = usize::try_from(rig.wal.stats().records).unwrap();
    let records = read(&mut rig.reader, count).await;
    rig.wal.close().await.unwrap();
    records.iter().flat_map(|record| rows_of(record)).map(|row| row::event_id(&row).0.as_u128()).collect()
}

#[tokio::test]
async fn an_id_is_stored_once_for_its_tenant_and_the_rest_of_the_request_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    assert_eq!(send(&rig, 1..=5).await, 0);
    assert_eq!(send(&rig, 1..=5).await, 5, "all of it");
    assert_eq!(send(&rig, [9, 4, 10, 5, 11]).await, 2, "in the middle");
    assert_eq!(send(&rig, [12, 12, 12]).await, 2, "within one request");
    assert_eq!(send(&rig, [0, 0]).await, 0, "the nil id is none");
    let other = events(TenantId(Uuid::from_u128(8)), 1..=5, 0);
    assert_eq!(rig.wal.append(other).await.unwrap().duplicates, 0, "another tenant's");
    assert_eq!(rig.wal.counted(TENANT, Month::of(now_ms())), 5 + 3 + 1 + 2);
    assert_eq!(stored(rig).await, [1, 2, 3, 4, 5, 9, 10, 11, 12, 0, 0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn copies_that_are_sent_at_the_same_time_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    let sent = (0..50).map(|_| rig.wal.append(events(TENANT, 1..=20, 0)));
    let duplicates: u64 =
        futures_util::future::join_all(sent).await.into_iter().map(|answer| answer.unwrap().duplicates).sum();
    assert_eq!(duplicates, 49 * 20);
    assert_eq!(stored(rig).await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_commit_that_fails_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let device = Told::new();
    let rig = try_open(small(dir.path()), device.clone()).unwrap();
    device.fail(&[disk::Point::Apply], std::io::ErrorKind::StorageFull);
    rig.wal.append(events(TENANT, 1..=5, 0)).await.unwrap_err();
    device.heal();
    eventually("there is space again", || rig.wal.accepting().is_ok()).await;
    assert_eq!(send(&rig, 1..=5).await, 0, "it was not stored");
    assert_eq!(stored(rig).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn ids_outlive_their_records_and_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = open(small(dir.path()));
    let mut last = rig.wal.append(events(TENANT, 1..=5, 0)).await.unwrap().last;
    for id in 0..400 {
        last = rig.wal.append(events(TENANT, [1000 + id], 60_000)).await.unwrap().last;
    }
    rig.wal.truncate_through(last);
    let mut id = 2000;
    // The files go a moment after the truncation, and something must be written for the writer to look.
    while generations(dir.path()).len() > 1 {
        send(&rig, [id]).await;
        id += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let killed = image(dir.path());
    assert_eq!(send(&rig, [3, 1399, 2000]).await, 3);
    rig.wal.close().await.unwrap();
    for dir in [killed.path(), dir.path()] {
        rig = open(small(dir));
        assert_eq!(send(&rig, [3, 1000, 1399, 2000, id - 1, 5000]).await, 5);
        assert_eq!(rig.metrics.errors.get_or_create(&crate::metrics::StageLabels { stage: "wal" }).get(), 0);
        rig.wal.close().await.unwrap();
    }
}

/// Found by the model: what an open had read from the records went with them.
#[tokio::test]
async fn ids_that_were_read_from_records_outlive_these_too() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    let last = rig.wal.append(events(TENANT, [13], 0)).await.unwrap().last;
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    let rig = open(small(killed.path()));
    rig.wal.truncate_through(last);
    rig.wal.close().await.unwrap();
    let rig = open(small(killed.path()));
    assert_eq!(generations(killed.path()).len(), 1, "only the new one");
    assert_eq!(send(&rig, [13]).await, 1);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn what_is_too_old_or_too_many_is_forgotten_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let few = || Settings { dedup_ids: 10, ..small(dir.path()) };
    let rig = open(few());
    for first in [1, 11, 21] {
        assert_eq!(send(&rig, first..first + 10).await, 0);
    }
    assert_eq!(send(&rig, 21..=30).await, 10, "the newest ten are known");
    assert_eq!(send(&rig, 1..=10).await, 0, "older ones are not");
    assert_eq!(send(&rig, [31]).await, 0);
    assert_eq!(send(&rig, 2..=10).await, 9, "one came, and one of the request before went");
    eventually("the metric tells", || rig.metrics.dedup_ids.get() <= 20 && rig.metrics.dedup_window.get() < 900.0)
        .await;
    rig.wal.close().await.unwrap();

    let short = || Settings { dedup_span: Duration::from_millis(1), ..small(dir.path()) };
    let rig = open(short());
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(send(&rig, 1..=10).await, 0);
    rig.wal.close().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    let rig = open(short());
    rig.wal.append(append(b"x")).await.unwrap();
    eventually("the files are gone", || fs::read_dir(dir.path().join("wal/window")).unwrap().count() <= 1).await;
    rig.wal.close().await.unwrap();

    let rig = open(Settings { dedup_ids: 0, ..small(dir.path()) });
    assert_eq!((send(&rig, 1..=3).await, send(&rig, 1..=3).await), (0, 0), "switched off");
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_kept_does_not_keep_the_ids_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let few = || Settings { dedup_ids: 10, ..small(dir.path()) };
    let rig = open(few());
    let key = rig.wal.answer_key(TENANT, b"k");
    let answer = Some(Answer { key, request: 77, body: b"taken".to_vec() });
    rig.wal.append(Append { answer, ..events(TENANT, [1], 0) }).await.unwrap();
    rig.wal.close().await.unwrap();
    // Its generation is full; what follows is in the next one.
    let rig = open(few());
    for first in (11..=201).step_by(10) {
        assert_eq!(send(&rig, first..first + 10).await, 0);
    }
    eventually("ids are let go of", || rig.metrics.dedup_ids.get() <= 20).await;
    assert_eq!(send(&rig, [1]).await, 0, "its id is out of the window");
    assert!(rig.wal.answered(key).is_some(), "the answer is not");
    rig.wal.close().await.unwrap();
    let rig = open(few());
    assert!(rig.wal.answered(key).is_some(), "nor after a start");
    assert_eq!(send(&rig, [1]).await, 1);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_told_and_its_ids_come_from_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    send(&rig, 1..=5).await;
    rig.wal.close().await.unwrap();
    let file = fs::read_dir(dir.path().join("wal/window")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let rig = open(small(dir.path()));
    assert_eq!(send(&rig, 1..=5).await, 5);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn an_answer_is_given_again_after_a_crash_and_once_its_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    let (key, other) = (rig.wal.answer_key(TENANT, b"k"), rig.wal.answer_key(TenantId(Uuid::from_u128(8)), b"k"));
    assert_ne!(key, other, "keys are the tenant's own");
    assert!(rig.wal.answered(key).is_none());
    send(&rig, [1]).await;
    let request =
        |ids| Append { answer: Some(Answer { key, request: 77, body: b"taken".to_vec() }), ..events(TENANT, ids, 0) };
    let (first, second) = futures_util::join!(rig.wal.append(request([1, 2])), rig.wal.append(request([1, 2])));
    assert_eq!(first.unwrap().duplicates, 1);
    let Err(AppendError::Answered(answered)) = second else { panic!("{second:?}") };
    let expected = Answered { request: 77, duplicates: 1, body: b"taken".to_vec() };
    assert_eq!(*answered, expected);
    let killed = image(dir.path());
    rig.wal.truncate_through(crate::ids::WalSeq(1000));
    rig.wal.close().await.unwrap();
    for dir in [killed.path(), dir.path()] {
        let mut rig = open(small(dir));
        assert_eq!(rig.wal.answered(key).as_deref(), Some(&expected));
        let Err(AppendError::Answered(answered)) = rig.wal.append(request([5, 6])).await else { panic!("taken") };
        assert_eq!(*answered, expected);
        let stored = rig.wal.append(append(b"end")).await.unwrap();
        while rig.reader.next(100, 1 << 20).await.unwrap().iter().all(|record| record.seq != stored.last) {}
        assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
        rig.wal.close().await.unwrap();
    }
}

#[derive(Clone, Debug)]
enum Operation {
    /// Requests at the same time, each with events of these ids.
    Send(Vec<Vec<u8>>),
    /// The next commit fails for want of space, as these requests find out.
    Fail(Vec<u8>),
    /// Everything read is done, and large events follow until its files may go.
    Drain,
    Reopen,
    Crash,
}

fn operation() -> impl Strategy<Value = Operation> {
    let ids = || prop::collection::vec(1_u8..60, 1..12);
    prop_oneof![
        8 => prop::collection::vec(ids(), 1..4).prop_map(Operation::Send),
        1 => ids().prop_map(Operation::Fail),
        1 => Just(Operation::Drain),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Crash),
    ]
}

/// Bounds the model's window, as [`Settings::dedup_ids`] does: before a commit the oldest go, if more are known.
const MOST: usize = 25;

async fn run(operations: Vec<Operation>) {
    let mut dir = tempfile::tempdir().unwrap();
    let device = Told::new();
    let few = |dir: &Path| Settings { dedup_ids: MOST, ..small(dir) };
    let mut rig = try_open(few(dir.path()), device.clone()).unwrap();
    let mut known: VecDeque<u128> = VecDeque::new();
    let mut filler = 1_u128 << 64;
    for operation in operations {
        let forget = |known: &mut VecDeque<u128>| drop(known.drain(..known.len().saturating_sub(MOST)));
        match operation {
            Operation::Send(requests) => {
                // One after the other: what shares a commit is the writer's choice, and with it what is forgotten when.
                for ids in requests {
                    forget(&mut known);
                    let mut expected = 0;
                    let before = known.clone();
                    for id in ids.iter().map(|id| u128::from(*id)) {
                        if known.contains(&id) { expected += 1 } else { known.push_back(id) }
                    }
                    assert_eq!(send(&rig, ids.iter().map(|id| u128::from(*id))).await, expected, "{ids:?} {before:?}");
                }
            }
            Operation::Fail(ids) => {
                device.fail(&[disk::Point::Apply], std::io::ErrorKind::StorageFull);
                let sent = events(TENANT, ids.iter().map(|id| u128::from(*id)), 0);
                let all_known = {
                    forget(&mut known);
                    ids.iter().all(|id| known.contains(&u128::from(*id)))
                };
                let answer = rig.wal.append(sent).await;
                assert_eq!(answer.is_ok(), all_known, "a request of which everything is known needs no disk");
                device.heal();
                eventually("there is space again", || rig.wal.accepting().is_ok()).await;
            }
            Operation::Drain => {
                filler += 1;
                forget(&mut known);
                let last = rig.wal.append(events(TENANT, [filler], 60_000)).await.unwrap().last;
                known.push_back(filler);
                rig.wal.truncate_through(last);
            }
            Operation::Reopen => {
                rig.wal.close().await.unwrap();
                rig = try_open(few(dir.path()), device.clone()).unwrap();
            }
            Operation::Crash => {
                let killed = image(dir.path());
                rig.wal.close().await.unwrap();
                dir = killed;
                rig = try_open(few(dir.path()), device.clone()).unwrap();
            }
        }
    }
    rig.wal.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_requests_failures_and_crashes_agrees_with_the_model(
        operations in prop::collection::vec(operation(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(operations));
    }
}

//! Events by month: what is counted, what it costs the others, and what damage does to it. That crashes do nothing to it is
//! shown by `model` and `crash`.

use std::fs;

use super::{model::image, *};
use crate::{
    ids::WalSeq,
    wal::record::{MAGIC, check},
};

const TENANT: TenantId = TenantId(Uuid::from_u128(7));

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn counted(row: &[u8], received_at_ms: i64) -> Append {
    Append { received_at_ms, counted: true, ..append(row) }
}

fn file(dir: &Path) -> std::path::PathBuf {
    dir.join("wal/state/months")
}

#[tokio::test]
async fn only_those_that_ask_are_counted_and_without_them_there_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (now, month) = (now_ms(), Month::of(now_ms()));
    let rig = open(settings(dir.path()));
    rig.wal.append(Append { received_at_ms: now, ..append(b"not asked for") }).await.unwrap();
    assert_eq!(rig.wal.counted(TENANT, month), 0);
    rig.wal.close().await.unwrap();
    assert!(!file(dir.path()).exists());

    let rig = open(settings(dir.path()));
    rig.wal.append(counted(b"asked for", now)).await.unwrap();
    assert!(file(dir.path()).exists(), "on disk before the first one that counts");
    rig.wal.append(Append { received_at_ms: now, ..append(b"not asked for") }).await.unwrap();
    rig.wal.append(counted(b"the month before", month.before().starts_at_ms())).await.unwrap();
    let tenant = TenantId(Uuid::from_u128(8));
    rig.wal.append(Append { tenant, ..counted(b"another one's", now) }).await.unwrap();
    let counts =
        |wal: &Wal| [wal.counted(TENANT, month), wal.counted(TENANT, month.before()), wal.counted(tenant, month)];
    assert_eq!(counts(&rig.wal), [1, 1, 1]);
    rig.wal.close().await.unwrap();
    let rig = open(settings(dir.path()));
    assert_eq!(counts(&rig.wal), [1, 1, 1]);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn records_go_only_when_they_are_counted_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let small = || Settings { max_disk_bytes: 128 << 20, ..settings(dir.path()) };
    let (now, month) = (now_ms(), Month::of(now_ms()));
    let rig = open(small());
    rig.wal.append(counted(b"first", now)).await.unwrap();
    // A folder in the place of the temporary file: the counts cannot be saved.
    let in_the_way = file(dir.path()).with_extension("tmp");
    fs::create_dir(&in_the_way).unwrap();
    let mut last = WalSeq(0);
    for tag in 0..30 {
        let append = Append { received_at_ms: now, counted: true, ..large(tag, 10, 60_000) };
        last = rig.wal.append(append).await.unwrap().last;
    }
    let before = generations(dir.path()).len();
    assert!(before >= 2, "{before}");
    rig.wal.truncate_through(last);
    eventually("the writer has tried", || rig.metrics.render().contains("ingestion_errors_total{stage=\"wal\"}")).await;
    assert_eq!(generations(dir.path()).len(), before, "kept");
    fs::remove_dir(&in_the_way).unwrap();
    rig.wal.truncate_through(WalSeq(last.0));
    rig.wal.append(counted(b"last", now)).await.unwrap();
    rig.wal.truncate_through(WalSeq(last.0 + 1));
    eventually("the generations are gone", || generations(dir.path()).len() < before).await;
    assert_eq!(rig.wal.counted(TENANT, month), 302);
    rig.wal.close().await.unwrap();
    let rig = open(small());
    assert_eq!(rig.wal.counted(TENANT, month), 302);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_counts_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (now, month) = (now_ms(), Month::of(now_ms()));
    let rig = open(settings(dir.path()));
    for _ in 0..5 {
        rig.wal.append(counted(b"row", now)).await.unwrap();
    }
    rig.wal.close().await.unwrap();
    let mut bytes = fs::read(file(dir.path())).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file(dir.path()), bytes).unwrap();
    let rig = open(settings(dir.path()));
    assert_eq!(rig.wal.counted(TENANT, month), 5, "all of them are still in the log");
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_folder_whose_marks_are_gone_goes_on_behind_what_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (now, month) = (now_ms(), Month::of(now_ms()));
    let rig = open(settings(dir.path()));
    let last = rig.wal.append(counted(b"row", now)).await.unwrap().last;
    rig.wal.close().await.unwrap();
    fs::remove_dir_all(dir.path().join("wal/log")).unwrap();
    fs::remove_file(dir.path().join("wal/meta")).unwrap();
    let rig = open(settings(dir.path()));
    let first = rig.wal.append(counted(b"row", now)).await.unwrap().first;
    assert!(first > last, "{first} would not be counted after a crash");
    assert_eq!(rig.wal.counted(TENANT, month), 2);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_salvage_after_a_crash_counts_every_intact_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let (now, month) = (now_ms(), Month::of(now_ms()));
    let small = |dir: &Path| Settings { max_disk_bytes: 128 << 20, ..settings(dir) };
    let rig = open(small(dir.path()));
    // More than one generation: the counts of the first are saved, those of the last are not.
    for tag in 0..40 {
        let append = Append { received_at_ms: now, counted: true, ..large(tag, 10, 40_000) };
        rig.wal.append(append).await.unwrap();
    }
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    let last = generations(killed.path()).pop().unwrap().join("db");
    let mut bytes = fs::read(&last).unwrap();
    // The storage engine writes a page again when it grows: every copy of one record.
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &MAGIC).collect();
    let seq_at = |bytes: &[u8], at: usize| check(&bytes[at..]).ok().map(|(seq, _)| seq);
    let lost = places.iter().find_map(|at| seq_at(&bytes, *at)).unwrap();
    for at in places {
        if seq_at(&bytes, at) == Some(lost) {
            bytes[at + 1000] ^= 1;
        }
    }
    fs::write(&last, bytes).unwrap();

    let rig = open(small(killed.path()));
    assert_eq!(rig.metrics.wal_damaged_records.get(), 1);
    assert_eq!(rig.wal.counted(TENANT, month), 399, "without the one that is lost");
    rig.wal.close().await.unwrap();
    let rig = open(small(killed.path()));
    assert_eq!(rig.wal.counted(TENANT, month), 399);
    rig.wal.close().await.unwrap();
}

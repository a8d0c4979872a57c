use super::*;
use crate::{health::State, ids::WalSeq};

#[tokio::test]
async fn what_is_appended_is_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, mut reader, health, .. } = open(settings(dir.path()));
    for n in 0..10_u32 {
        let appended = wal.append(append(&n.to_le_bytes())).await.unwrap();
        assert_eq!(
            (appended.wal_id, appended.first, appended.last),
            (wal.wal_id(), WalSeq(u64::from(n) + 1), appended.first)
        );
    }
    let records = read(&mut reader, 10).await;
    for (n, record) in (0_u32..).zip(&records) {
        assert_eq!(record.seq, WalSeq(u64::from(n) + 1));
        assert_eq!(record.cumulative, u64::from(n) + 1);
        assert_eq!((record.wal_id, record.event_count, record.received_at_ms), (wal.wal_id(), 1, 1_700_000_000_000));
        assert_eq!(rows_of(record), vec![n.to_le_bytes().to_vec()]);
    }
    assert_eq!(health.snapshot()["wal"].state, State::Up);
    let stats = wal.stats();
    assert_eq!((stats.records, stats.events, stats.next_seq), (10, 10, WalSeq(11)));
    assert_eq!(stats.oldest_received_at_ms, Some(1_700_000_000_000));
    wal.close().await.unwrap();
    assert!(matches!(reader.next(1, 1).await, Err(ReadError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appends_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, mut reader, metrics, .. } = open(settings(dir.path()));
    let tasks: Vec<_> = (0..64_u32)
        .map(|task| {
            let wal = wal.clone();
            tokio::spawn(async move {
                let mut placed = Vec::new();
                for n in 0..20_u32 {
                    let row = [task.to_le_bytes(), n.to_le_bytes()].concat();
                    placed.push((wal.append(append(&row)).await.unwrap().first, row));
                }
                placed
            })
        })
        .collect();
    let mut placed = Vec::new();
    for task in tasks {
        placed.extend(task.await.unwrap());
    }
    placed.sort();
    let records = read(&mut reader, 64 * 20).await;
    let got: Vec<_> = records.iter().map(|record| (record.seq, rows_of(record).remove(0))).collect();
    assert_eq!(got, placed);
    let commits = metrics.wal_commits.get();
    assert!(commits < 64 * 20 / 2, "{commits} commits for {} appends", 64 * 20);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn a_large_append_is_several_records_and_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, mut reader, metrics, .. } = open(settings(dir.path()));
    let appended = wal.append(large(1, 300, 60_000)).await.unwrap();
    assert_eq!((appended.first, appended.last), (WalSeq(1), WalSeq(300)));
    assert_eq!(metrics.wal_commits.get(), 1);
    let records = read(&mut reader, 300).await;
    for (index, record) in (0..).zip(&records) {
        assert_eq!(rows_of(record), vec![noise(1000 + index, 60_000)]);
    }
    wal.close().await.unwrap();
}

#[tokio::test]
async fn an_append_without_chunks_takes_no_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    let empty = Append { chunks: Vec::new(), ..append(b"x") };
    assert_eq!(wal.append(empty.clone()).await.unwrap().last, WalSeq(0));
    assert_eq!(wal.append(append(b"x")).await.unwrap().first, WalSeq(1));
    assert_eq!(wal.append(empty).await.unwrap().last, WalSeq(1));
    wal.close().await.unwrap();
}

#[tokio::test]
async fn reopened_it_goes_on_with_a_new_id_and_new_sequences() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    let first_id = wal.wal_id();
    for n in 0..5_u8 {
        wal.append(append(&[n])).await.unwrap();
    }
    wal.truncate_through(WalSeq(2));
    wal.close().await.unwrap();

    let Rig { wal, mut reader, .. } = open(settings(dir.path()));
    assert_ne!(wal.wal_id(), first_id);
    assert_eq!(wal.done_through(), Some(WalSeq(2)));
    let appended = wal.append(append(&[5])).await.unwrap();
    assert_eq!(appended.first, WalSeq(6), "a clean close leaves no gap");
    let records = read(&mut reader, 4).await;
    let got: Vec<_> = records.iter().map(|r| (r.seq.0, r.wal_id == first_id, r.cumulative, rows_of(r)[0][0])).collect();
    assert_eq!(got, vec![(3, true, 3, 2), (4, true, 4, 3), (5, true, 5, 4), (6, false, 6, 5)]);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn sequences_never_repeat_even_when_the_log_was_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    let last = wal.append(large(1, 10, 100)).await.unwrap().last;
    wal.truncate_through(last);
    wal.close().await.unwrap();
    // The records' folder vanishes altogether, the marks stay.
    std::fs::remove_dir_all(dir.path().join("wal/log")).unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    assert_eq!(wal.append(append(b"x")).await.unwrap().first, WalSeq(11));
    wal.close().await.unwrap();
    // And the other way round: the marks vanish.
    std::fs::remove_file(dir.path().join("wal/meta")).unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    assert!(wal.append(append(b"x")).await.unwrap().first > WalSeq(11));
    wal.close().await.unwrap();
}

#[tokio::test]
async fn a_second_engine_is_refused_and_told_who_holds_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    let Err(refused) = try_open(settings(dir.path()), Arc::new(disk::System)) else { panic!("opened twice") };
    let text = refused.to_string();
    assert!(text.contains(&format!("pid {}, since 2", std::process::id())), "{text}");
    wal.close().await.unwrap();
    open(settings(dir.path())).wal.close().await.unwrap();
}

#[tokio::test]
async fn a_log_whose_handles_are_all_gone_closes_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, reader, .. } = open(settings(dir.path()));
    wal.append(append(b"x")).await.unwrap();
    drop(wal);
    drop(reader);
    eventually("the folder is free again", || lock::FolderLock::acquire(&dir.path().join("wal")).is_ok()).await;
}

#[tokio::test]
async fn the_reader_waits_survives_cancellation_and_rewinds() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, mut reader, .. } = open(settings(dir.path()));
    for _ in 0..3 {
        let waiting = reader.next(10, 1 << 20);
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
    }
    wal.append(large(1, 3, 100)).await.unwrap();
    let one = reader.next(1, 1 << 20).await.unwrap();
    assert_eq!(one.iter().map(|r| r.seq.0).collect::<Vec<_>>(), vec![1]);
    let two = reader.next(10, 1 << 20).await.unwrap();
    assert_eq!(two.iter().map(|r| r.seq.0).collect::<Vec<_>>(), vec![2, 3]);
    reader.rewind(WalSeq(2));
    assert_eq!(read(&mut reader, 2).await[0].seq, WalSeq(2));
    wal.truncate_through(WalSeq(2));
    reader.rewind(WalSeq(1));
    assert_eq!(read(&mut reader, 1).await[0].seq, WalSeq(3));
    wal.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_far_behind_reads_every_generation_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    // Generations of 8 MiB.
    let small = Settings { max_disk_bytes: 128 << 20, ..settings(dir.path()) };
    let Rig { wal, .. } = open(small.clone());
    for tag in 0..60 {
        wal.append(large(tag, 10, 60_000)).await.unwrap();
    }
    wal.close().await.unwrap();
    assert!(generations(dir.path()).len() > 3);

    let Rig { wal, mut reader, .. } = open(small);
    assert_eq!(wal.stats().records, 600);
    assert_eq!(wal.stats().events, 600);
    // A call that is given up half-way takes nothing with it.
    for _ in 0..5 {
        let read = reader.next(100, 1 << 20);
        assert!(tokio::time::timeout(Duration::from_nanos(1), read).await.is_err());
    }
    let appended = wal.append(append(b"last")).await.unwrap();
    let records = read(&mut reader, 601).await;
    for (index, record) in (0_u64..600).zip(&records) {
        assert_eq!(record.seq, WalSeq(index + 1));
        assert_eq!(rows_of(record), vec![noise(index / 10 * 1000 + index % 10, 60_000)]);
    }
    assert_eq!(records[600].seq, appended.first);
    wal.truncate_through(appended.last);
    eventually("finished generations are deleted", || generations(dir.path()).len() == 1).await;
    assert_eq!(wal.stats().records, 0);
    assert_eq!(wal.stats().oldest_received_at_ms, None);
    wal.close().await.unwrap();
    assert!(generations(dir.path()).len() <= 1);
}

#[tokio::test]
async fn records_of_any_size_make_no_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, mut reader, .. } = open(settings(dir.path()));
    for tag in 0..60 {
        let append = large(tag, 3, 96_000);
        assert!(append.chunks.iter().all(|chunk| chunk.compressed.len() > 90_000), "incompressible");
        wal.append(append).await.unwrap();
        for folder in generations(dir.path()) {
            assert_eq!(std::fs::read_dir(folder.join("blobs")).unwrap().count(), 0);
        }
    }
    assert_eq!(rows_of(&read(&mut reader, 180).await[179]), vec![noise(59_002, 96_000)]);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn a_record_that_does_become_a_blob_is_kept_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    wal.append(large(1, 2, 3 << 20)).await.unwrap();
    let blobs = generations(dir.path())
        .iter()
        .map(|folder| std::fs::read_dir(folder.join("blobs")).unwrap().count())
        .sum::<usize>();
    assert!(blobs > 0, "3 MiB in one value is more than a quarter of a segment");
    wal.close().await.unwrap();
    let Rig { wal, mut reader, .. } = open(settings(dir.path()));
    let records = read(&mut reader, 2).await;
    assert_eq!(rows_of(&records[1]), vec![noise(1001, 3 << 20)]);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn states_are_saved_apart_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(settings(dir.path()));
    assert_eq!(wal.load_state("range").unwrap(), None);
    wal.save_state("range", vec![1, 2, 3]).await.unwrap();
    wal.save_state("range", vec![4]).await.unwrap();
    wal.save_state("other", Vec::new()).await.unwrap();
    assert!(matches!(wal.save_state("../evil", vec![1]).await, Err(StateError::Name { .. })));
    wal.clone().close().await.unwrap();
    assert!(matches!(wal.save_state("range", vec![5]).await, Err(StateError::Closed)));
    let Rig { wal, .. } = open(settings(dir.path()));
    assert_eq!(wal.load_state("range").unwrap(), Some(vec![4]));
    assert_eq!(wal.load_state("other").unwrap(), Some(Vec::new()));
    std::fs::write(dir.path().join("wal/state/range"), b"IWS1\0\0\0\0x").unwrap();
    assert!(matches!(wal.load_state("range"), Err(StateError::Damaged { .. })));
    wal.close().await.unwrap();
}

#[test]
fn settings_that_cannot_work_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = settings(dir.path());
    for (settings, name) in [
        (Settings { segment_bytes: 4 << 20, ..base.clone() }, "segment_bytes"),
        (Settings { segment_bytes: 9 << 20, ..base.clone() }, "segment_bytes"),
        (Settings { max_disk_bytes: 1 << 20, ..base.clone() }, "max_disk_bytes"),
        (Settings { warn_disk_ratio: 80.0, ..base }, "warn_disk_ratio"),
    ] {
        let Err(OpenError::Setting { name: named, .. }) = try_open(settings, Arc::new(disk::System)) else {
            panic!("{name}")
        };
        assert_eq!(named, name);
    }
}

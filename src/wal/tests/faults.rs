//! Full and failing disks.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::*;
use crate::{
    health::State,
    ids::WalSeq,
    wal::disk::{Device, Point},
};

/// A disk that does as it is told.
pub(super) struct Told {
    fault: Mutex<Option<(Vec<Point>, io::ErrorKind)>>,
    sync_fails: Mutex<Option<io::ErrorKind>>,
    syncs: AtomicUsize,
    free: AtomicU64,
}

impl Told {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            fault: Mutex::new(None),
            sync_fails: Mutex::new(None),
            syncs: AtomicUsize::new(0),
            free: AtomicU64::new(u64::MAX),
        })
    }

    pub(super) fn fail(&self, points: &[Point], kind: io::ErrorKind) {
        *self.fault.lock() = Some((points.to_vec(), kind));
    }

    pub(super) fn heal(&self) {
        *self.fault.lock() = None;
    }
}

impl Device for Told {
    fn fault(&self, at: Point) -> io::Result<()> {
        match &*self.fault.lock() {
            Some((points, kind)) if points.contains(&at) => Err((*kind).into()),
            _ => Ok(()),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Relaxed);
        match *self.sync_fails.lock() {
            Some(kind) => Err(kind.into()),
            None => file.sync_data(),
        }
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free.load(Relaxed))
    }
}

/// Sequences and rows of everything that can be read, up to a last append that is made for it.
async fn everything(rig: &mut Rig) -> Vec<(u64, Vec<u8>)> {
    let end = rig.wal.append(append(b"end")).await.unwrap().first;
    let mut got = Vec::new();
    loop {
        for record in rig.reader.next(100, 1 << 20).await.unwrap() {
            if record.seq == end {
                return got;
            }
            got.push((record.seq.0, rows_of(&record).remove(0)));
        }
    }
}

async fn full_disk_at(point: Point) {
    let dir = tempfile::tempdir().unwrap();
    let device = Told::new();
    let mut rig = try_open(settings(dir.path()), Arc::clone(&device) as Arc<dyn Device>).unwrap();
    rig.wal.append(append(b"one")).await.unwrap();
    device.fail(&[point, Point::Create], io::ErrorKind::StorageFull);
    assert!(matches!(rig.wal.append(append(b"lost")).await, Err(AppendError::NoSpace(_))));
    assert!(matches!(rig.wal.accepting(), Err(AppendError::NoSpace(_))));
    assert_eq!(rig.health.snapshot()["wal"].state, State::Down);
    assert!(!rig.wal.poisoned().is_cancelled());
    // What was acknowledged can be read while the disk is full.
    assert_eq!(rows_of(&read(&mut rig.reader, 1).await[0]), vec![b"one".to_vec()]);

    device.heal();
    let wal = rig.wal.clone();
    eventually("the log accepts again", || wal.accepting().is_ok()).await;
    eventually("health is up again", || rig.health.snapshot()["wal"].state == State::Up).await;
    let two = rig.wal.append(append(b"two")).await.unwrap().first;
    assert!(two > WalSeq(2), "the lost append's sequence is not given out again");
    assert_eq!(everything(&mut rig).await, vec![(two.0, b"two".to_vec())]);
    rig.wal.close().await.unwrap();

    let mut rig = open(settings(dir.path()));
    let got = everything(&mut rig).await;
    let rows: Vec<_> = got.into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows, vec![b"one".to_vec(), b"two".to_vec(), b"end".to_vec()], "what failed never shows up");
    assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_full_before_the_write_refuses_and_recovers() {
    full_disk_at(Point::Apply).await;
}

#[tokio::test]
async fn a_disk_that_runs_full_during_the_write_refuses_and_recovers() {
    full_disk_at(Point::Flush).await;
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    rig.wal.append(append(b"one")).await.unwrap();
    rig.wal.close().await.unwrap();
    let device = Told::new();
    device.fail(&[Point::Create], io::ErrorKind::StorageFull);
    let mut rig = try_open(settings(dir.path()), Arc::clone(&device) as Arc<dyn Device>).unwrap();
    assert!(matches!(rig.wal.append(append(b"no")).await, Err(AppendError::NoSpace(_))));
    assert_eq!(rows_of(&read(&mut rig.reader, 1).await[0]), vec![b"one".to_vec()]);
    device.heal();
    let wal = rig.wal.clone();
    eventually("the log accepts", || wal.accepting().is_ok()).await;
    rig.wal.append(append(b"two")).await.unwrap();
    assert_eq!(rows_of(&read(&mut rig.reader, 1).await[0]), vec![b"two".to_vec()]);
    rig.wal.close().await.unwrap();
}

async fn poisoned_by(break_it: impl Fn(&Told)) {
    let dir = tempfile::tempdir().unwrap();
    let device = Told::new();
    let mut rig = try_open(settings(dir.path()), Arc::clone(&device) as Arc<dyn Device>).unwrap();
    rig.wal.append(append(b"one")).await.unwrap();
    break_it(&device);
    let Err(AppendError::Poisoned { reason }) = rig.wal.append(append(b"unknown")).await else { panic!("accepted") };
    assert!(!reason.is_empty());
    rig.wal.poisoned().cancelled().await;
    // A disk that works again changes nothing: what it lost is unknown.
    device.heal();
    *device.sync_fails.lock() = None;
    assert!(matches!(rig.wal.append(append(b"no")).await, Err(AppendError::Poisoned { .. })));
    assert!(matches!(rig.reader.next(1, 1).await, Err(ReadError::Poisoned { .. })));
    assert_eq!(rig.health.snapshot()["wal"].state, State::Down);
    assert!(matches!(rig.wal.close().await, Err(CloseError::Poisoned { .. })));

    let mut rig = open(settings(dir.path()));
    let got = everything(&mut rig).await;
    assert_eq!(got[0], (1, b"one".to_vec()));
    assert!(got.len() == 1 || got[1].1 == b"unknown", "{got:?}");
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn an_input_output_error_poisons() {
    poisoned_by(|device| device.fail(&[Point::Flush], io::ErrorKind::Other)).await;
}

#[tokio::test]
async fn a_failed_fsync_poisons_whatever_the_reason() {
    poisoned_by(|device| *device.sync_fails.lock() = Some(io::ErrorKind::StorageFull)).await;
}

#[tokio::test]
async fn durability_os_does_not_wait_for_the_disk_and_fsync_does() {
    for (durability, syncs) in [(Durability::Os, 0), (Durability::Fsync, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let device = Told::new();
        let settings = Settings { durability, ..settings(dir.path()) };
        let rig = try_open(settings, Arc::clone(&device) as Arc<dyn Device>).unwrap();
        rig.wal.append(append(b"one")).await.unwrap();
        rig.wal.append(append(b"two")).await.unwrap();
        assert_eq!(device.syncs.load(Relaxed), syncs);
        assert_eq!(rig.wal.durability(), durability);
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_free_space_reserve_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let device = Told::new();
    let settings = Settings { min_free_bytes: 1000, ..settings(dir.path()) };
    let rig = try_open(settings, Arc::clone(&device) as Arc<dyn Device>).unwrap();
    rig.wal.append(append(b"one")).await.unwrap();
    device.free.store(999, Relaxed);
    eventually("the reserve refuses", || {
        matches!(rig.wal.accepting(), Err(AppendError::DiskReserve { free: 999, reserve: 1000 }))
    })
    .await;
    assert!(matches!(rig.wal.append(append(b"no")).await, Err(AppendError::DiskReserve { .. })));
    assert_eq!(rig.metrics.wal_refused.get(), 1);
    assert_eq!(rig.wal.stats().free_bytes, 999);
    let report = rig.health.snapshot()["wal"].clone();
    assert_eq!(report.state, State::Down);
    assert!(report.reason.unwrap().contains("must stay free"));
    device.free.store(1500, Relaxed);
    eventually("degraded", || rig.health.snapshot()["wal"].state == State::Degraded).await;
    rig.wal.append(append(b"two")).await.unwrap();
    device.free.store(5000, Relaxed);
    eventually("up", || rig.health.snapshot()["wal"].state == State::Up).await;
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn the_quota_warns_refuses_and_recovers_as_the_reader_truncates() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 64 << 20;
    let settings = Settings { max_disk_bytes: quota, warn_disk_ratio: 0.5, ..settings(dir.path()) };
    let mut rig = open(settings.clone());
    let mut last = WalSeq(0);
    let mut degraded = false;
    for tag in 0.. {
        match rig.wal.append(large(tag, 10, 60_000)).await {
            Ok(appended) => last = appended.last,
            Err(AppendError::DiskQuota { used, quota: limit }) => {
                assert!(used >= limit && used < limit + (24 << 20), "{used}");
                assert_eq!(limit, quota);
                break;
            }
            Err(other) => panic!("{other}"),
        }
        degraded |= rig.health.snapshot()["wal"].state == State::Degraded;
    }
    assert!(degraded, "the early watermark shows before the quota");
    assert_eq!(rig.health.snapshot()["wal"].state, State::Down);
    // Half is read and done: it accepts again, and the disk has the space back.
    let records = read(&mut rig.reader, usize::try_from(last.0).unwrap()).await;
    assert_eq!(records.last().unwrap().seq, last);
    rig.wal.truncate_through(WalSeq(last.0 / 2));
    eventually("it accepts again", || rig.wal.accepting().is_ok()).await;
    let folder = dir.path().join("wal/log");
    eventually("the disk has the space back", || disk::folder_bytes(&folder) < quota).await;
    rig.wal.append(append(b"more")).await.unwrap();
    rig.wal.truncate_through(WalSeq(last.0 + 1));
    eventually("what is done frees its space", || rig.wal.stats().disk_bytes < quota / 4).await;
    rig.wal.close().await.unwrap();
    assert_eq!(open(settings).wal.done_through(), Some(WalSeq(last.0 + 1)));
}

#[tokio::test]
async fn a_full_quota_whose_only_generation_is_done_recovers_too() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { max_disk_bytes: 32 << 20, ..settings(dir.path()) };
    let mut rig = open(settings);
    // One append larger than the quota: a single generation, never full before it.
    let last = rig.wal.append(large(1, 700, 60_000)).await.unwrap().last;
    eventually("refused", || matches!(rig.wal.accepting(), Err(AppendError::DiskQuota { .. }))).await;
    assert_eq!(read(&mut rig.reader, 700).await.len(), 700);
    rig.wal.truncate_through(last);
    eventually("accepted again", || rig.wal.accepting().is_ok()).await;
    rig.wal.append(append(b"x")).await.unwrap();
    rig.wal.close().await.unwrap();
}

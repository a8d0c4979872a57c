//! Any order of operations against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::WalSeq;

#[derive(Clone, Debug)]
enum Operation {
    /// Records and their length.
    Append(usize, usize),
    /// Several appends at once.
    Together(usize),
    Read(usize, usize),
    /// How far behind what was read.
    Truncate(u64),
    Rewind(u64),
    Reopen,
    /// The process is killed: what is in the folder at this moment is opened.
    Crash,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0_usize..5, 8_usize..70_000).prop_map(|(records, len)| Operation::Append(records, len)),
        2 => (2_usize..6).prop_map(Operation::Together),
        4 => (1_usize..40, 1_usize..400_000).prop_map(|(records, bytes)| Operation::Read(records, bytes)),
        2 => (0_u64..30).prop_map(Operation::Truncate),
        1 => (0_u64..30).prop_map(Operation::Rewind),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Crash),
    ]
}

#[derive(Default)]
struct Model {
    rows: BTreeMap<u64, Vec<u8>>,
    done: u64,
    /// The next sequence that the reader gives.
    cursor: u64,
    tag: u64,
    /// Events of the month.
    events: u64,
    now_ms: i64,
}

impl Model {
    fn append(&mut self, records: usize, len: usize) -> (u64, Append) {
        self.tag += 1;
        self.events += records as u64;
        (self.tag, Append { received_at_ms: self.now_ms, counted: true, ..large(self.tag, records, len) })
    }

    fn stored(&mut self, tag: u64, appended: Appended, records: usize, len: usize) {
        for index in 0..records as u64 {
            let old = self.rows.insert(appended.first.0 + index, noise(tag * 1000 + index, len));
            assert!(old.is_none(), "sequence {} given out twice", appended.first.0 + index);
        }
        if records > 0 {
            assert_eq!(appended.last.0, appended.first.0 + records as u64 - 1);
        }
    }
}

/// What a kill would leave of an idle log: the records first, because what says that they may go is written before they do.
pub(super) fn image(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        // The housekeeper may be deleting what is done.
        let Ok(entries) = std::fs::read_dir(from) else { return };
        std::fs::create_dir_all(to).unwrap();
        for entry in entries.map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target);
            } else if let Err(error) = std::fs::copy(entry.path(), target) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (from.join("wal"), dir.path().join("wal"));
    for part in ["log", "state", "window"] {
        copy(&from.join(part), &to.join(part));
    }
    std::fs::copy(from.join("meta"), to.join("meta")).unwrap();
    dir
}

/// The books have every event once, and those that are not done are in the log.
fn agrees(wal: &Wal, model: &Model) {
    let holdings = wal.holdings().unwrap();
    let (mut events, mut waiting) = ([0, 0], 0);
    for account in holdings.accounts.values() {
        events = [events[0] + account.received, events[1] + account.appended];
    }
    assert_eq!(events, [model.events; 2]);
    for (seq, _) in model.rows.range(holdings.done + 1..) {
        waiting += u64::from(*seq <= holdings.cut);
    }
    assert_eq!((holdings.events.values().sum::<u64>(), holdings.lost), (waiting, 0));
}

async fn run(operations: Vec<Operation>) {
    let mut dir = tempfile::tempdir().unwrap();
    // Generations of 8 MiB: a run goes through several.
    let small = |dir: &Path| Settings { max_disk_bytes: 128 << 20, ..settings(dir) };
    let mut rig = open(small(dir.path()));
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let mut model = Model { cursor: 1, now_ms, ..Model::default() };
    let (tenant, month) = (TenantId(Uuid::from_u128(7)), Month::of(now_ms));
    for operation in operations {
        match operation {
            Operation::Append(records, len) => {
                let (tag, append) = model.append(records, len);
                let appended = rig.wal.append(append).await.unwrap();
                model.stored(tag, appended, records, len);
            }
            Operation::Together(count) => {
                let appends: Vec<_> = (0..count).map(|_| model.append(3, 20_000)).collect();
                let answers =
                    futures_util::future::join_all(appends.iter().map(|(_, append)| rig.wal.append(append.clone())))
                        .await;
                for ((tag, _), answer) in appends.iter().zip(answers) {
                    model.stored(*tag, answer.unwrap(), 3, 20_000);
                }
            }
            Operation::Read(records, bytes) => {
                let start = model.cursor.max(model.done + 1);
                if model.rows.range(start..).next().is_none() {
                    continue;
                }
                let got = rig.reader.next(records, bytes).await.unwrap();
                assert!(!got.is_empty() && got.len() <= records);
                for (record, (&seq, row)) in got.iter().zip(model.rows.range(start..)) {
                    assert_eq!((record.seq.0, &rows_of(record)[0]), (seq, row));
                    model.cursor = seq + 1;
                }
            }
            Operation::Truncate(behind) => {
                model.done = model.done.max(model.cursor.saturating_sub(1 + behind));
                rig.wal.truncate_through(WalSeq(model.done));
            }
            Operation::Rewind(by) => {
                model.cursor = model.cursor.saturating_sub(by);
                rig.reader.rewind(WalSeq(model.cursor));
            }
            Operation::Reopen => {
                rig.wal.close().await.unwrap();
                rig = open(small(dir.path()));
                model.cursor = model.done + 1;
            }
            Operation::Crash => {
                let killed = image(dir.path());
                rig.wal.close().await.unwrap();
                dir = killed;
                rig = open(small(dir.path()));
                // The last truncations may be forgotten; what they were for is then still there.
                model.done = rig.wal.done_through().map_or(0, |seq| seq.0);
                model.cursor = model.done + 1;
            }
        }
        assert_eq!(rig.wal.counted(tenant, month), model.events);
        agrees(&rig.wal, &model);
        assert_eq!(rig.metrics.wal_damaged_records.get(), 0, "nothing of this is damage");
        assert_eq!(rig.wal.done_through().map_or(0, |seq| seq.0), model.done);
    }
    // In the end everything that is not done is there, and nothing else.
    rig.wal.close().await.unwrap();
    let mut rig = open(small(dir.path()));
    assert_eq!(rig.wal.counted(tenant, month), model.events);
    let expected: Vec<_> = model.rows.range(model.done + 1..).collect();
    let got = read(&mut rig.reader, expected.len()).await;
    for (record, (&seq, row)) in got.iter().zip(expected) {
        assert_eq!((record.seq.0, &rows_of(record)[0]), (seq, row));
    }
    assert_eq!(rig.metrics.wal_damaged_records.get(), 0, "nothing of this is damage");
    rig.wal.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_operations_agrees_with_the_model(operations in prop::collection::vec(operation(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(operations));
    }
}

//! The books through crashes: what stands beside records, what waits for them, and what damage does.

use std::{collections::BTreeMap, path::PathBuf};

use super::{model::image, window::small, *};
use crate::wal::{
    books::{Books, NAME},
    record::{MAGIC, check},
};

const ONE: TenantId = TenantId(Uuid::from_u128(7));
const TWO: TenantId = TenantId(Uuid::from_u128(8));

fn intake(received: u64, rejected: u64, dropped: u64) -> Intake {
    Intake { received, rejected, dropped }
}

fn balanced(account: &Account) -> bool {
    account.received == account.rejected + account.dropped + account.duplicates + account.appended + account.damaged
}

/// One record of rows with these ids.
fn with_ids(ids: &[u128]) -> Append {
    let mut packer = Packer::new(Codec::Lz4);
    for id in ids {
        let event = crate::row::EventRow::new(ONE, crate::ids::EventId(Uuid::from_u128(*id)), "custom");
        let mut row = Vec::new();
        crate::row::encode(&event, &mut row);
        packer.push(&row);
    }
    Append { chunks: packer.finish(), ..append(b"") }
}

#[tokio::test]
async fn everything_is_in_the_books_once_also_after_a_crash_and_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    rig.wal.append_of(with_ids(&[1, 2, 3]), intake(6, 2, 1)).await.unwrap();
    assert_eq!(rig.wal.append_of(with_ids(&[3, 4]), intake(2, 0, 0)).await.unwrap().duplicates, 1);
    let expected = Account { received: 8, rejected: 2, dropped: 1, duplicates: 1, appended: 4, ..Account::default() };
    let books = |wal: &Wal| wal.holdings().unwrap().accounts;
    assert_eq!(books(&rig.wal), [(ONE, expected)].into());
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    for folder in [&killed, &dir] {
        let rig = open(settings(folder.path()));
        let holdings = rig.wal.holdings().unwrap();
        assert_eq!(holdings.accounts, [(ONE, expected)].into());
        assert_eq!((holdings.events, holdings.cut, holdings.openings.len()), ([(ONE, 4)].into(), 2, 1));
        // One of which nothing is committed goes with the next that is.
        rig.wal.note(TWO, intake(3, 3, 0));
        rig.wal.append(Append { tenant: TWO, ..append(b"x") }).await.unwrap();
        let killed = image(folder.path());
        rig.wal.close().await.unwrap();
        let rig = open(settings(killed.path()));
        let holdings = rig.wal.holdings().unwrap();
        let two = Account { received: 4, rejected: 3, appended: 1, ..Account::default() };
        assert_eq!((holdings.accounts, holdings.openings.len()), ([(ONE, expected), (TWO, two)].into(), 2));
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_of_what_a_crash_has_left_knows_when_it_has_read_all() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    rig.wal.append(with_ids(&[1])).await.unwrap();
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    let mut rig = open(settings(killed.path()));
    assert!(rig.reader.is_behind());
    assert_eq!(rig.reader.next(10, 1 << 20).await.unwrap().len(), 1);
    // Sequences that were reserved and never given out lie before the next record.
    assert!(!rig.reader.is_behind());
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn what_no_commit_carries_is_saved_within_a_second_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    rig.wal.append(with_ids(&[1])).await.unwrap();
    rig.wal.note(TWO, intake(3, 2, 1));
    // All of its events are known: nothing is committed.
    rig.wal.append(with_ids(&[1])).await.unwrap();
    let two = Account { received: 3, rejected: 2, dropped: 1, ..Account::default() };
    let one = Account { received: 2, duplicates: 1, appended: 1, ..Account::default() };
    let saved = || rig.wal.load_state(NAME).unwrap().and_then(|bytes| Books::decode(&bytes));
    eventually("the notes are on disk", || {
        saved().is_some_and(|books| books.accounts == [(ONE, one), (TWO, two)].into())
    })
    .await;
    let killed = image(dir.path());
    rig.wal.note(TWO, intake(1, 1, 0));
    rig.wal.close().await.unwrap();
    for (folder, more) in [(&killed, 0), (&dir, 1)] {
        let rig = open(settings(folder.path()));
        let two = Account { received: two.received + more, rejected: two.rejected + more, ..two };
        assert_eq!(rig.wal.holdings().unwrap().accounts, [(ONE, one), (TWO, two)].into());
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_record_that_is_lost_is_missed_or_said_to_be_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    for row in [&b"one"[..], b"two", b"three"] {
        rig.wal.append(append(row)).await.unwrap();
    }
    // Before the books are saved, and after.
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    for (folder, appended, lost) in [(&killed, 2, 1), (&dir, 3, 0)] {
        let db = generations(folder.path())[0].join("db");
        let mut bytes = std::fs::read(&db).unwrap();
        let second = memchr::memmem::find_iter(&bytes, &MAGIC).nth(1).unwrap();
        bytes[second] ^= 1;
        std::fs::write(&db, bytes).unwrap();
        let rig = open(settings(folder.path()));
        let holdings = rig.wal.holdings().unwrap();
        assert_eq!((holdings.accounts[&ONE].appended, holdings.lost), (appended, lost));
        assert!(balanced(&holdings.accounts[&ONE]));
        assert_eq!(holdings.events, [(ONE, 2)].into());
        rig.wal.close().await.unwrap();
    }
}

/// Every file of a log but that of its lock.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "LOCK" {
                let bytes = std::fs::read(&path).unwrap();
                files.insert(path, bytes);
            }
        }
    }
    files
}

#[tokio::test]
async fn a_closed_log_is_counted_as_the_next_open_would_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Wal::holdings_in(&small(dir.path())).unwrap().is_none());
    let rig = open(small(dir.path()));
    let mut last = WalSeq(0);
    for tag in 0..40 {
        last = rig.wal.append_of(large(tag, 10, 30_000), intake(12, 1, 1)).await.unwrap().last;
    }
    assert!(generations(dir.path()).len() > 1);
    rig.wal.truncate_through(WalSeq(last.0 - 300));
    eventually("the mark is written", || {
        crate::wal::meta::MetaFile::peek(&dir.path().join("wal")).unwrap().unwrap().done == last.0 - 300
    })
    .await;
    let held = Wal::holdings_in(&small(dir.path())).unwrap_err();
    assert!(matches!(held, OpenError::Lock(_)), "{held}");
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    for folder in [&killed, &dir] {
        for damage in [false, true] {
            if damage {
                // Every copy of the last record.
                let db = generations(folder.path()).pop().unwrap().join("db");
                let mut bytes = std::fs::read(&db).unwrap();
                let seq_at = |at: usize| check(&bytes[at..]).map_or(0, |(seq, _)| seq);
                let places: Vec<_> = memchr::memmem::find_iter(&bytes, &MAGIC).collect();
                let seq = places.iter().map(|at| seq_at(*at)).max().unwrap();
                let places: Vec<_> = places.into_iter().filter(|at| seq_at(*at) == seq).collect();
                for at in places {
                    bytes[at] ^= 1;
                }
                std::fs::write(&db, bytes).unwrap();
            }
            let before = files(folder.path());
            let closed = Wal::holdings_in(&small(folder.path())).unwrap().unwrap();
            assert_eq!(before, files(folder.path()), "nothing is changed");
            assert_eq!(closed.unreadable.is_empty(), !damage, "{:?}", closed.unreadable);
            let copy = image(folder.path());
            let rig = open(small(copy.path()));
            // The first count may find damage that no open has seen, and the second is of it.
            rig.wal.holdings().unwrap();
            let closed = Holdings { unreadable: Vec::new(), ..closed };
            assert_eq!(closed, rig.wal.holdings().unwrap(), "damage: {damage}");
            rig.wal.close().await.unwrap();
        }
    }
    std::fs::remove_file(dir.path().join("wal/meta")).unwrap();
    let error = Wal::holdings_in(&small(dir.path())).unwrap_err();
    assert!(error.to_string().contains("start the engine, which mends it"), "{error}");
}

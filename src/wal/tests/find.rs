//! Looking for an event: in a log that is open and in one that is not, in every generation, and changing nothing.

use std::{collections::BTreeMap, fs};

use super::{
    model::image,
    window::{TENANT, events, now_ms, small},
    *,
};
use crate::ids::{EventId, WalSeq};

const OTHER: TenantId = TenantId(Uuid::from_u128(8));

fn sought(event: u128) -> Sought {
    let event = EventId(Uuid::from_u128(event));
    Sought { event, tenant: None, asked: vec![TENANT, OTHER], since_ms: now_ms() - 60_000 }
}

/// Sequence, ordinal, tenant and whether it was passed on.
fn places(found: &Findings) -> Vec<(u64, u32, TenantId, bool)> {
    found.rows.iter().map(|row| (row.seq.0, row.ordinal, row.row.tenant_id, row.passed_on)).collect()
}

/// Every file of the log but its lock.
fn contents(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "LOCK" {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

#[tokio::test]
async fn an_event_is_found_in_every_generation_of_an_open_log_and_of_a_closed_one() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    let first = rig.wal.append(events(TENANT, [1, 2, 3], 0)).await.unwrap().last;
    for id in 0..200 {
        rig.wal.append(events(TENANT, [1000 + id], 60_000)).await.unwrap();
    }
    assert!(generations(dir.path()).len() > 1, "several generations");
    let others = rig.wal.append(events(OTHER, [7, 2], 0)).await.unwrap().last;
    let expected = vec![(first.0, 1, TENANT, false), (others.0, 1, OTHER, false)];
    let found = rig.wal.find(sought(2)).await.unwrap();
    assert_eq!(places(&found), expected);
    assert_eq!(found.rows[0].wal_id, rig.wal.wal_id());
    assert!(found.remembered.is_empty() && found.oldest_received_at_ms.is_some());
    assert_eq!(rig.wal.find(sought(4)).await.unwrap().rows, []);
    let one = rig.wal.find(Sought { tenant: Some(OTHER), ..sought(2) }).await.unwrap();
    assert_eq!(places(&one), expected[1..]);
    rig.wal.truncate_through(first);
    assert_eq!(places(&rig.wal.find(sought(2)).await.unwrap())[0], (first.0, 1, TENANT, true));
    // The window knows the moment; without its word nothing from before `since` is looked at.
    let later = Sought { since_ms: now_ms() + 1, ..sought(2) };
    assert_eq!(rig.wal.find(later.clone()).await.unwrap().rows.len(), 2);
    assert_eq!(rig.wal.find(Sought { asked: Vec::new(), ..later }).await.unwrap().rows, []);

    let held = Wal::find_in(&small(dir.path()), &sought(2)).unwrap_err();
    assert!(matches!(held, OpenError::Lock(_)), "{held}");
    let killed = image(dir.path());
    rig.wal.close().await.unwrap();
    for (dir, passed_on) in [(dir.path(), true), (killed.path(), false)] {
        let before = contents(dir);
        let found = Wal::find_in(&small(dir), &sought(2)).unwrap().unwrap();
        let mut places = places(&found);
        // The mark of a killed log may be behind.
        places[0].3 &= passed_on;
        assert_eq!(places, [(first.0, 1, TENANT, passed_on), (others.0, 1, OTHER, false)]);
        assert!(contents(dir) == before, "nothing is changed");
        let rig = open(small(dir));
        assert_eq!(rig.wal.find(sought(7)).await.unwrap().rows[0].seq, WalSeq(others.0), "a log that was opened again");
        rig.wal.close().await.unwrap();
    }
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(Wal::find_in(&small(nowhere.path()), &sought(2)).unwrap(), None);
    assert!(!nowhere.path().join("wal").exists());
}

#[tokio::test]
async fn an_event_whose_record_is_gone_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(small(dir.path()));
    let before = now_ms();
    let first = rig.wal.append(events(TENANT, [1, 2], 0)).await.unwrap().last;
    let mut id = 1000;
    while generations(dir.path()).len() == 1 {
        rig.wal.append(events(TENANT, [id], 60_000)).await.unwrap();
        id += 1;
    }
    rig.wal.truncate_through(first);
    rig.wal.truncate_through(WalSeq(rig.wal.stats().next_seq.0 - 1));
    eventually("the first generation is deleted", || generations(dir.path()).len() == 1).await;
    let is_remembered = |found: &Findings| {
        assert_eq!(found.rows, []);
        assert_eq!(found.remembered.len(), 1, "{found:?}");
        assert_eq!(found.remembered[0].0, TENANT);
        // The window counts whole milliseconds from a beginning that it knows in whole milliseconds.
        assert!((before - 2..=now_ms()).contains(&found.remembered[0].1), "{found:?}");
    };
    is_remembered(&rig.wal.find(sought(2)).await.unwrap());
    assert_eq!(
        rig.wal.find(sought(3)).await.unwrap(),
        Findings {
            oldest_received_at_ms: rig.wal.find(sought(3)).await.unwrap().oldest_received_at_ms,
            ..Findings::default()
        }
    );
    rig.wal.close().await.unwrap();
    is_remembered(&Wal::find_in(&small(dir.path()), &sought(2)).unwrap().unwrap());
}

//! kill -9: this test binary starts itself again as a process that appends, and kills it at any instant.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::*;
use crate::ids::WalSeq;

const DIR: &str = "WAL_CRASH_TEST_DIR";
const RECORDS: u64 = 3;
/// Appends at once.
const TASKS: u64 = 8;

fn small(dir: &Path) -> Settings {
    // Generations of 8 MiB, so that kills hit their beginning, sealing and deletion too.
    Settings { max_disk_bytes: 128 << 20, ..settings(dir) }
}

/// An append of this month that counts.
fn counted(append: Append) -> Append {
    Append { received_at_ms: jiff::Timestamp::now().as_millisecond(), counted: true, ..append }
}

/// The tag of the append whose first record is `first`: unique in the folder.
fn tag_of(record: &Record) -> u64 {
    u64::from_le_bytes(rows_of(record)[0][..8].try_into().unwrap())
}

/// Not a test of its own: the process that is killed. Says `a <seq> <tag>` for each acknowledged append and
/// `t <seq>` before each truncation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    // Ends the line that the test runner has begun.
    writeln!(std::io::stdout()).unwrap();
    let Rig { wal, mut reader, .. } = open(small(Path::new(&dir)));
    for task in 0..TASKS {
        let wal = wal.clone();
        tokio::spawn(async move {
            let base = u64::from(std::process::id()) * 1_000_000 + task * 100_000;
            for n in 0.. {
                let len = usize::from(noise(base + n, 9)[8]) * 100 + 64;
                let append = counted(large(base + n, usize::try_from(RECORDS).unwrap(), len));
                let appended = loop {
                    match wal.append(append.clone()).await {
                        Ok(appended) => break appended,
                        // The reader is behind; it gives space back.
                        Err(AppendError::DiskQuota { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                        Err(other) => panic!("{other}"),
                    }
                };
                writeln!(std::io::stdout(), "a {} {}", appended.first, base + n).unwrap();
            }
        });
    }
    loop {
        let records = reader.next(500, 1 << 20).await.unwrap();
        // Half of them: the rest is for the parent to find.
        let seq = records[records.len() / 2].seq;
        writeln!(std::io::stdout(), "t {seq}").unwrap();
        wal.truncate_through(seq);
    }
}

#[tokio::test]
async fn whatever_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut truncated = 0;
    let began = jiff::Timestamp::now().as_millisecond();
    for round in 0..8_u8 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wal::tests::crash::child", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let kill_after = 1 + usize::from(rand::random::<u16>() % 600) * usize::from(round > 0);
        let mut seen = 0;
        // After the kill what was said before it is still in the pipe.
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "a" => {
                    let (seq, tag) = (number(1), number(2));
                    assert!(acknowledged.insert(seq, tag).is_none(), "sequence {seq} given out twice");
                    seen += 1;
                    if seen == kill_after {
                        process.kill().unwrap();
                    }
                }
                "t" => truncated = truncated.max(number(1)),
                _ => {}
            }
        }
        process.wait().unwrap();

        // With room for its own records, whatever the child left.
        let Rig { wal, mut reader, metrics, .. } = open(settings(dir.path()));
        // Every acknowledged event is counted, and no event twice: at most one append of each task had no answer yet.
        let mut months = vec![Month::of(began), Month::of(jiff::Timestamp::now().as_millisecond())];
        months.dedup();
        let count: u64 = months.iter().map(|month| wal.counted(TenantId(Uuid::from_u128(7)), *month)).sum();
        let (least, ends) = (acknowledged.len() as u64 * RECORDS, u64::from(round));
        let most = least + TASKS * RECORDS * (ends + 1);
        assert!((least..=most).contains(&(count - ends)), "round {round}: {count} of {least} to {most}");
        let end = wal.append(counted(append(b"end"))).await.unwrap().first;
        let mut found = BTreeMap::new();
        let mut of_append: BTreeMap<(u64, u64), BTreeSet<u64>> = BTreeMap::new();
        let mut last = WalSeq(0);
        while last < end {
            for record in reader.next(1000, 8 << 20).await.unwrap() {
                assert!(record.seq > last, "in order");
                last = record.seq;
                if rows_of(&record)[0].len() > 8 {
                    let tag = tag_of(&record);
                    found.insert(record.seq.0, tag);
                    let first = record.seq.0 - tag % 1000;
                    of_append.entry((first, tag / 1000)).or_default().insert(tag % 1000);
                }
            }
        }
        for (&first, &tag) in acknowledged.range(truncated + 1..) {
            for index in 0..RECORDS {
                assert_eq!(
                    found.get(&(first + index)),
                    Some(&(tag * 1000 + index)),
                    "round {round}: record {}",
                    first + index
                );
            }
        }
        // Answered or not, an append is there whole or not at all, but for one that a truncation cut.
        for ((_, tag), indexes) in of_append.iter().filter(|((first, _), _)| *first > truncated) {
            assert_eq!(indexes.len() as u64, RECORDS, "round {round}: append {tag} is torn");
        }
        assert_eq!(metrics.wal_damaged_records.get(), 0, "a crash is no damage");
        assert!(!dir.path().join("wal-damaged").exists(), "a crash is no damage");
        wal.close().await.unwrap();
    }
}

//! Logs that an earlier engine left behind, whole and damaged, in `tests/fixtures/wal`: they load for ever.
//!
//! Each is the folder of a log of [`RECORDS`] records in three generations, two sealed and one that was being written
//! when the engine was killed; record `n` holds `row(n)`. A format that changes gets folders beside `v1`, and these stay.
#![allow(clippy::print_stdout, reason = "the tool that writes them says what it wrote")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use super::{model::image, *};
use crate::{
    ids::WalSeq,
    wal::record::{HEADER_LEN, MAGIC, check},
};

const RECORDS: u64 = 120;
const A_GENERATION: u64 = 40;

/// What one of them must give.
struct Expected {
    name: &'static str,
    /// Sequences that are lost, first and last.
    lost: &'static [(u64, u64)],
    /// What the engine must say at the open; what is found when a sealed generation is read is said on another thread.
    said: &'static str,
    /// Whether there is anything aside for the operator.
    aside: bool,
}

const VERSION_1: &[Expected] = &[
    Expected { name: "intact", lost: &[], said: "", aside: false },
    Expected {
        name: "truncated-tail",
        lost: &[(101, 120)],
        said: "files of the write-ahead log are damaged",
        aside: true,
    },
    Expected { name: "flipped-bits", lost: &[(47, 47), (60, 60), (71, 71)], said: "", aside: true },
    Expected { name: "data-file-missing", lost: &[(41, 80)], said: "", aside: true },
    Expected {
        name: "generation-missing",
        lost: &[(41, 80)],
        said: "a generation of the write-ahead log is missing",
        aside: true,
    },
    Expected { name: "configuration-damaged", lost: &[], said: "", aside: true },
    Expected { name: "seal-missing", lost: &[], said: "", aside: false },
    Expected { name: "marks-missing", lost: &[], said: "marks are damaged or missing", aside: false },
    Expected { name: "marks-damaged", lost: &[], said: "marks are damaged or missing", aside: false },
    // Without marks nobody knows how far the last generation went: what can be said is where it breaks off.
    Expected { name: "marks-and-tail-missing", lost: &[], said: "\"cut_off\":101", aside: false },
    Expected { name: "segment-header-flipped", lost: &[], said: "", aside: true },
];

fn row(seq: u64) -> Vec<u8> {
    noise(seq, 60)
}

fn archive(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wal/v1").join(format!("{name}.tar.gz"))
}

fn tar(arguments: &[&str], archive: &Path, folder: &Path) {
    let status = Command::new("tar").args(arguments).arg(archive).arg("-C").arg(folder).arg("wal").status().unwrap();
    assert!(status.success(), "tar {arguments:?} {}", archive.display());
}

/// What is logged while it lives, on this thread.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }

    pub(super) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn delivered(rig: &mut Rig) -> BTreeSet<u64> {
    let end = rig.wal.append(append(b"end")).await.unwrap().first;
    let mut seqs = BTreeSet::new();
    loop {
        for record in rig.reader.next(64, 1 << 20).await.unwrap() {
            if record.seq == end {
                return seqs;
            }
            assert!(seqs.last().is_none_or(|last| *last < record.seq.0), "in order");
            if record.seq.0 <= RECORDS {
                assert_eq!(rows_of(&record), vec![row(record.seq.0)]);
                seqs.insert(record.seq.0);
            }
        }
    }
}

#[tokio::test]
async fn logs_of_version_1_load_for_ever() {
    for Expected { name, lost, said, aside } in VERSION_1 {
        let dir = tempfile::tempdir().unwrap();
        tar(&["-xzf"], &archive(name), dir.path());
        let logged = Said::default();
        let listening = logged.listen();
        let mut rig = open(settings(dir.path()));
        let got = delivered(&mut rig).await;
        drop(listening);
        let tail_unknown = *name == "marks-and-tail-missing";
        let all = 1..=if tail_unknown { 100 } else { RECORDS };
        let expected: BTreeSet<u64> = all.filter(|seq| !lost.iter().any(|(a, b)| (a..=b).contains(&seq))).collect();
        assert_eq!(got, expected, "{name}: every intact record is delivered");
        let text = logged.text();
        let mut named: Vec<(u64, u64)> = Vec::new();
        for generation in rig.wal.shared.generations.read().iter() {
            named.extend(generation.lost.lock().ranges());
        }
        assert_eq!(&named, lost, "{name}: what is lost is named");
        let count: u64 = lost.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(rig.metrics.wal_damaged_records.get(), count, "{name}");
        // The books begin with this open, and every record holds one event: of nobody, or with its header left.
        let holdings = rig.wal.holdings().unwrap();
        let damaged: u64 = holdings.accounts.values().map(|account| account.damaged).sum();
        assert_eq!((holdings.lost + damaged, holdings.vague, holdings.missing), (count, 0, 0), "{name}");
        assert_eq!(damaged > 0, ["flipped-bits", "truncated-tail"].contains(name), "{name}");
        assert!(text.contains(said), "{name}: {said:?} is not in\n{text}");
        let errors = rig.metrics.errors.get_or_create(&crate::metrics::StageLabels { stage: "wal" }).get();
        assert_eq!(errors > 0, *aside || !lost.is_empty() || tail_unknown, "{name}: damage is an error");
        assert_eq!(dir.path().join("wal-damaged").exists(), *aside, "{name}");
        assert!(rig.wal.stats().next_seq > WalSeq(RECORDS + 1), "{name}: no sequence is given out again");
        rig.wal.close().await.unwrap();
        // A second start has nothing new to say.
        let mut rig = open(settings(dir.path()));
        assert_eq!(delivered(&mut rig).await, expected, "{name}, again");
        assert_eq!(rig.metrics.wal_damaged_records.get(), 0, "{name}: counted once");
        rig.wal.close().await.unwrap();
    }
}

/// Where the intact record `seq` is in a file; the storage engine writes it more than once.
fn places(bytes: &[u8], seq: u64) -> Vec<usize> {
    let is_it = |at: &usize| check(&bytes[*at..]).is_ok_and(|(found, _)| found == seq);
    memchr::memmem::find_iter(bytes, &MAGIC).filter(is_it).collect()
}

fn flip(file: &Path, at: usize) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at as u64).unwrap();
}

fn cut(file: &Path, at: usize) {
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(at as u64).unwrap();
}

/// Wrote the fixtures, once: `cargo test --lib wal::tests::fixtures -- --ignored --nocapture`. Not for what is committed.
#[tokio::test]
#[ignore = "a tool: it writes the fixtures"]
async fn write_the_fixtures() {
    let dir = tempfile::tempdir().unwrap();
    let mut killed = None;
    for first in (1..=RECORDS).step_by(usize::try_from(A_GENERATION).unwrap()) {
        let Rig { wal, .. } = open(settings(dir.path()));
        for seq in (first..first + A_GENERATION).step_by(4) {
            let mut chunks = Vec::new();
            for seq in seq..seq + 4 {
                let mut packer = Packer::new(Codec::Lz4);
                packer.push(&row(seq));
                chunks.append(&mut packer.finish());
            }
            assert_eq!(wal.append(Append { chunks, ..append(b"") }).await.unwrap().first, WalSeq(seq));
        }
        if first + A_GENERATION > RECORDS {
            killed = Some(image(dir.path()));
        }
        wal.close().await.unwrap();
    }
    let killed = killed.unwrap();
    fs::create_dir_all(archive("").parent().unwrap()).unwrap();
    for Expected { name, .. } in VERSION_1 {
        let copy = image(killed.path());
        let folders = generations(copy.path());
        assert_eq!(folders.len(), 3);
        let (second, third) = (folders[1].join("db"), folders[2].join("db"));
        let meta = copy.path().join("wal/meta");
        let tail = places(&fs::read(&third).unwrap(), 101)[0];
        match *name {
            "intact" => {}
            "truncated-tail" => cut(&third, tail + HEADER_LEN),
            "flipped-bits" => {
                let bytes = fs::read(&second).unwrap();
                for at in [47, 60, 71].into_iter().flat_map(|seq| places(&bytes, seq)) {
                    flip(&second, at + HEADER_LEN + 9);
                }
            }
            "data-file-missing" => fs::remove_file(&second).unwrap(),
            "generation-missing" => fs::remove_dir_all(&folders[1]).unwrap(),
            "configuration-damaged" => fs::write(folders[1].join("conf"), b"garbage in the file").unwrap(),
            "seal-missing" => fs::remove_file(folders[1].join("SEAL")).unwrap(),
            "marks-missing" => fs::remove_file(&meta).unwrap(),
            "marks-damaged" => [20, 4096 + 20].into_iter().for_each(|at| flip(&meta, at)),
            "marks-and-tail-missing" => {
                fs::remove_file(&meta).unwrap();
                cut(&third, tail + HEADER_LEN);
            }
            _ => flip(&second, 4),
        }
        tar(&["-czf"], &archive(name), copy.path());
        println!("{name}: {} bytes", fs::metadata(archive(name)).unwrap().len());
    }
}

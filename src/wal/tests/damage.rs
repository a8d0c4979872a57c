//! Deliberate damage, one kind a test: every intact record is delivered, and what is lost is counted exactly.

use std::{collections::BTreeSet, fs, io::Write, os::unix::fs::FileExt, path::PathBuf};

use super::fixtures::Said;
use super::*;
use crate::{
    ids::WalSeq,
    wal::{
        meta::MetaFile,
        record::{HEADER_LEN, MAGIC, check},
    },
};

const RECORDS: u64 = 400;

fn small(dir: &Path) -> Settings {
    Settings { max_disk_bytes: 128 << 20, ..settings(dir) }
}

fn row(seq: u64) -> Vec<u8> {
    noise(seq, 30_000)
}

/// A closed log of several sealed generations; record `n` holds `row(n)`.
async fn filled(dir: &Path) {
    let Rig { wal, .. } = open(small(dir));
    for seq in (1..=RECORDS).step_by(8) {
        let mut chunks = Vec::new();
        for seq in seq..seq + 8 {
            let mut packer = Packer::new(Codec::Lz4);
            packer.push(&row(seq));
            chunks.append(&mut packer.finish());
        }
        let appended = wal.append(Append { chunks, ..append(b"") }).await.unwrap();
        assert_eq!(appended.first, WalSeq(seq));
    }
    wal.close().await.unwrap();
    assert!(generations(dir).len() >= 3, "{}", generations(dir).len());
}

/// Sequences of intact records in a file, whatever else is in it.
fn intact(file: &Path) -> BTreeSet<u64> {
    let bytes = fs::read(file).unwrap_or_default();
    memchr::memmem::find_iter(&bytes, &MAGIC).filter_map(|at| check(&bytes[at..]).ok()).map(|(seq, _)| seq).collect()
}

/// What the folder's generations hold.
fn all_intact(dir: &Path) -> BTreeSet<u64> {
    let mut all: BTreeSet<u64> = generations(dir).iter().flat_map(|folder| intact(&folder.join("db"))).collect();
    all.retain(|seq| *seq <= RECORDS);
    all
}

/// Opens the log and reads all of it; gives the sequences, having checked every row.
async fn delivered(dir: &Path) -> (BTreeSet<u64>, Rig) {
    let mut rig = open(small(dir));
    let end = rig.wal.append(append(b"end")).await.unwrap().first;
    let seqs = read_until(&mut rig.reader, end).await;
    (seqs, rig)
}

async fn read_until(reader: &mut Reader, end: WalSeq) -> BTreeSet<u64> {
    let mut seqs = BTreeSet::new();
    loop {
        for record in reader.next(64, 1 << 20).await.unwrap() {
            if record.seq == end {
                return seqs;
            }
            assert_eq!(rows_of(&record), vec![row(record.seq.0)]);
            assert!(seqs.last().is_none_or(|last| *last < record.seq.0), "in order");
            seqs.insert(record.seq.0);
        }
    }
}

/// The log delivers exactly `expected`, counts the rest, stays usable, and does not count it again.
async fn delivers(dir: &Path, expected: &BTreeSet<u64>, moved_aside: bool) {
    let (seqs, rig) = delivered(dir).await;
    assert_eq!(&seqs, expected);
    assert_eq!(rig.metrics.wal_damaged_records.get(), RECORDS - expected.len() as u64);
    assert_eq!(dir.join("wal-damaged").exists(), moved_aside);
    rig.wal.close().await.unwrap();
    let (again, rig) = delivered_again(dir).await;
    assert_eq!(&again, expected);
    assert_eq!(rig.metrics.errors.get_or_create(&crate::metrics::StageLabels { stage: "wal" }).get(), 0);
    rig.wal.close().await.unwrap();
}

/// A second reading, past the end mark that the first one appended.
async fn delivered_again(dir: &Path) -> (BTreeSet<u64>, Rig) {
    let mut rig = open(small(dir));
    let end = rig.wal.append(append(b"end")).await.unwrap().first;
    let mut seqs = BTreeSet::new();
    let mut last = WalSeq(0);
    while last < end {
        for record in rig.reader.next(64, 1 << 20).await.unwrap() {
            last = record.seq;
            if rows_of(&record) == vec![row(record.seq.0)] {
                seqs.insert(record.seq.0);
            }
        }
    }
    (seqs, rig)
}

fn flip(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn db(dir: &Path, generation: usize) -> PathBuf {
    generations(dir)[generation].join("db")
}

fn everything() -> BTreeSet<u64> {
    (1..=RECORDS).collect()
}

#[tokio::test]
async fn without_damage_everything_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    delivers(dir.path(), &everything(), false).await;
}

#[tokio::test]
async fn one_flipped_byte_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let length = fs::metadata(db(dir.path(), 1)).unwrap().len();
    // The header of a segment, a message's header, and all over the file, by a fixed stride that is no power of two.
    let positions = [0, 4, 13, 20, 24, 25].into_iter().chain((1..12).map(|n| n * 786_433));
    for at in positions.filter(|at| *at < length) {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&dir.path().join("wal"), &copy.path().join("wal"));
        flip(&db(copy.path(), 1), at);
        let expected = all_intact(copy.path());
        assert!(expected.len() as u64 >= RECORDS - 1, "byte {at}: one byte is at most one record");
        let (seqs, rig) = delivered(copy.path()).await;
        assert_eq!(seqs, expected, "byte {at}");
        assert_eq!(rig.metrics.wal_damaged_records.get(), RECORDS - expected.len() as u64, "byte {at}");
        rig.wal.close().await.unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_stretch_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let file = fs::OpenOptions::new().write(true).open(db(dir.path(), 1)).unwrap();
    file.write_all_at(&vec![0xA5; 3 << 20], 1 << 20).unwrap();
    let expected = all_intact(dir.path());
    assert!(expected.len() as u64 + 10 < RECORDS && !expected.is_empty());
    delivers(dir.path(), &expected, true).await;
}

#[tokio::test]
async fn a_data_file_cut_in_half() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = db(dir.path(), 1);
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let expected = all_intact(dir.path());
    assert!((expected.len() as u64) < RECORDS);
    delivers(dir.path(), &expected, true).await;
}

#[tokio::test]
async fn a_data_file_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    fs::remove_file(db(dir.path(), 1)).unwrap();
    let expected = all_intact(dir.path());
    assert!((expected.len() as u64) < RECORDS - 50);
    delivers(dir.path(), &expected, true).await;
}

#[tokio::test]
async fn a_generation_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    fs::remove_dir_all(&generations(dir.path())[1]).unwrap();
    let expected = all_intact(dir.path());
    let (seqs, rig) = delivered(dir.path()).await;
    assert_eq!(seqs, expected);
    assert_eq!(rig.metrics.wal_damaged_records.get(), RECORDS - expected.len() as u64);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn the_first_generation_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    fs::remove_dir_all(&generations(dir.path())[0]).unwrap();
    let expected = all_intact(dir.path());
    let (seqs, rig) = delivered(dir.path()).await;
    assert_eq!(seqs, expected);
    assert_eq!(rig.metrics.wal_damaged_records.get(), RECORDS - expected.len() as u64);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn a_configuration_file_gone_or_garbled() {
    for garbled in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let conf = generations(dir.path())[1].join("conf");
        if garbled {
            fs::write(&conf, b"garbage in the file").unwrap();
        } else {
            fs::remove_file(&conf).unwrap();
        }
        delivers(dir.path(), &everything(), true).await;
    }
}

#[tokio::test]
async fn a_snapshot_gone_or_garbled() {
    for garbled in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        // A first reading leaves snapshots behind.
        delivered(dir.path()).await.1.wal.close().await.unwrap();
        let mut found = 0;
        for folder in generations(dir.path()) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("snap.") {
                    found += 1;
                    if garbled {
                        fs::write(&path, b"garbage in the file").unwrap();
                    } else {
                        fs::remove_file(&path).unwrap();
                    }
                }
            }
        }
        assert!(found > 0);
        let (seqs, rig) = delivered_again(dir.path()).await;
        assert_eq!(seqs, everything());
        assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn seals_and_blob_folders_gone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    for folder in generations(dir.path()) {
        fs::remove_file(folder.join("SEAL")).unwrap();
        fs::remove_dir(folder.join("blobs")).unwrap();
    }
    delivers(dir.path(), &everything(), false).await;
}

#[tokio::test]
async fn marks_gone_cut_or_garbled() {
    for kind in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let meta = dir.path().join("wal/meta");
        match kind {
            0 => fs::remove_file(&meta).unwrap(),
            1 => fs::File::create(&meta).unwrap().write_all(&[7; 100]).unwrap(),
            _ => {
                flip(&meta, 20);
                flip(&meta, 4096 + 20);
            }
        }
        let (seqs, rig) = delivered(dir.path()).await;
        assert_eq!(seqs, everything());
        assert!(rig.wal.stats().next_seq > WalSeq(RECORDS + 1), "no sequence is given out twice");
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn damage_in_what_is_done_is_nobodys_loss() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let Rig { wal, .. } = open(small(dir.path()));
    wal.truncate_through(WalSeq(RECORDS / 2));
    wal.close().await.unwrap();
    // Where the first generation's first records are.
    let first = fs::read(db(dir.path(), 0)).unwrap();
    let at = memchr::memmem::find(&first, &MAGIC).unwrap() as u64;
    assert!(check(&first[usize::try_from(at).unwrap()..]).unwrap().0 <= RECORDS / 2);
    let file = fs::OpenOptions::new().write(true).open(db(dir.path(), 0)).unwrap();
    file.write_all_at(&[0xA5; 1000], at).unwrap();
    let (seqs, rig) = delivered(dir.path()).await;
    assert_eq!(seqs, (RECORDS / 2 + 1..=RECORDS).collect());
    assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
    rig.wal.close().await.unwrap();
}

#[tokio::test]
async fn damage_that_comes_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let mut rig = open(small(dir.path()));
    let end = rig.wal.append(append(b"end")).await.unwrap().first;
    assert_eq!(rig.reader.next(1, 1).await.unwrap()[0].seq, WalSeq(1));
    // The first generation is open now, and most of it not yet read into memory.
    let path = db(dir.path(), 0);
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in (1..8).map(|n| n * length / 9) {
        file.write_all_at(&[0xA5; 64], at).unwrap();
    }
    let mut expected = all_intact(dir.path());
    expected.remove(&1);
    rig.reader.rewind(WalSeq(2));
    let seqs = read_until(&mut rig.reader, end).await;
    let lost: BTreeSet<_> = expected.symmetric_difference(&seqs).collect();
    // What was in the storage engine's memory already may be delivered although its bytes are gone.
    assert!(lost.iter().all(|seq| seqs.contains(seq)), "missing: {lost:?}");
    assert!(seqs.len() as u64 + rig.metrics.wal_damaged_records.get() >= RECORDS - 1);
    rig.wal.close().await.unwrap();
}

#[test]
fn two_that_find_the_same_damage_at_a_time_both_go_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (read, counted) = runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        // Every copy: one of a page that was written again may be no loss.
        damage(dir.path(), &[10], IN_HEADER);
        let mut rig = open(small(dir.path()));
        let end = rig.wal.append(append(b"end")).await.unwrap().first;
        let wal = rig.wal.clone();
        let counting = tokio::task::spawn_blocking(move || wal.holdings().unwrap().events.values().sum::<u64>());
        let reading = tokio::spawn(async move { read_until(&mut rig.reader, end).await.len() as u64 });
        let limit = std::time::Duration::from_mins(2);
        (tokio::time::timeout(limit, reading).await, tokio::time::timeout(limit, counting).await)
    });
    // A thread that waits for ever must not keep the test from failing.
    runtime.shutdown_background();
    let (read, counted) = (read.expect("it reads on").unwrap(), counted.expect("it counts").unwrap());
    assert_eq!((read, counted), (RECORDS - 1, RECORDS));
}

#[tokio::test]
async fn a_damaged_record_in_an_intact_frame_is_set_aside_and_its_neighbours_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { wal, .. } = open(small(dir.path()));
    wal.append(large(1, 3, 100)).await.unwrap();
    wal.close().await.unwrap();
    {
        let config = sled::Config::new().path(&generations(dir.path())[0]).segment_size(8 << 20).flush_every_ms(None);
        let db = config.open().unwrap();
        let (key, frame) = db.first().unwrap().unwrap();
        let mut bytes = frame.to_vec();
        let second = bytes.len() / 3 + HEADER_LEN + 5;
        bytes[second] ^= 1;
        db.insert(key, bytes).unwrap();
        db.flush().unwrap();
    }
    for counted in [1, 0] {
        let mut rig = open(small(dir.path()));
        let seqs: Vec<_> = read(&mut rig.reader, 2).await.iter().map(|record| record.seq.0).collect();
        assert_eq!(seqs, vec![1, 3]);
        assert_eq!(rig.metrics.wal_damaged_records.get(), counted, "counted once, with its bytes kept");
        rig.wal.close().await.unwrap();
    }
    let mut kept: Vec<_> =
        fs::read_dir(dir.path().join("wal-damaged")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(fs::read_to_string(dir.path().join("wal-damaged/LOST")).unwrap().lines().last(), Some("2"));
    kept.retain(|path| path.extension().is_some_and(|extension| extension == "record"));
    assert_eq!(kept.len(), 1);
    assert!(fs::read(&kept[0]).unwrap().starts_with(&MAGIC));
}

#[tokio::test]
async fn a_salvage_that_was_interrupted_is_done_again_or_finished() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let folders = generations(dir.path());
    // Begun: the new folder is half there, the old one still in place.
    let begun = folders[0].with_extension("salvage");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join("db"), b"half").unwrap();
    // Done but for the last rename.
    fs::rename(&folders[1], folders[1].with_extension("salvage")).unwrap();
    delivers(dir.path(), &everything(), false).await;
    assert!(!begun.exists());
}

#[tokio::test]
async fn a_generation_that_was_begun_and_not_made_is_tidied_up() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let closed = generations(dir.path()).len();
    // As a start leaves it that fails on a full disk: the marks name it, and its files are not whole.
    let next = MetaFile::peek(&dir.path().join("wal")).unwrap().unwrap().active + 1;
    let half = dir.path().join(format!("wal/log/{next:020}"));
    fs::create_dir_all(half.join("blobs")).unwrap();
    fs::write(half.join("db"), [0; 4096]).unwrap();
    let said = Said::default();
    let listening = said.listen();
    let rig = open(small(dir.path()));
    drop(listening);
    let text = said.text();
    assert!(text.contains("holds nothing: it is removed") && !text.contains("ERROR"), "{text}");
    assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
    assert!(!dir.path().join("wal-damaged").exists());
    assert_eq!(generations(dir.path()).len(), closed + 1);
    rig.wal.close().await.unwrap();
    assert_eq!(delivered(dir.path()).await.0.len() as u64, RECORDS);
}

#[tokio::test]
async fn generations_that_are_missing_are_counted_once_also_several_in_a_row() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let folders = generations(dir.path());
    let (before, after) = (intact(&folders[0].join("db")), intact(&folders[folders.len() - 1].join("db")));
    for folder in &folders[1..folders.len() - 1] {
        fs::remove_dir_all(folder).unwrap();
    }
    let lost = after.first().unwrap() - before.last().unwrap() - 1;
    for counted in [lost, 0] {
        let (seqs, rig) = delivered_again(dir.path()).await;
        assert_eq!(rig.metrics.wal_damaged_records.get(), counted);
        assert_eq!(rig.wal.holdings().unwrap().missing, lost);
        assert_eq!(seqs.iter().filter(|seq| **seq <= RECORDS).count() as u64, RECORDS - lost);
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_end_that_is_gone_with_the_marks_is_missed_by_the_books() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let mut folders = generations(dir.path());
    fs::remove_dir_all(folders.pop().unwrap()).unwrap();
    fs::remove_file(dir.path().join("wal/meta")).unwrap();
    let lost = RECORDS - intact(&folders.pop().unwrap().join("db")).last().unwrap();
    let said = Said::default();
    let listening = said.listen();
    let rig = open(small(dir.path()));
    drop(listening);
    let text = said.text();
    assert!(
        text.contains("marks are damaged or missing") && text.contains("the end of the write-ahead log is missing")
    );
    assert_eq!((rig.metrics.wal_damaged_records.get(), rig.wal.holdings().unwrap().missing), (lost, lost));
    rig.wal.close().await.unwrap();
}

/// What a misdirected write leaves: the last segment of a data file once more behind it. Every record is whole, so that the
/// engine lets the storage engine open the file, and that panics.
fn repeat_the_last_segment(db: &Path) {
    const SEGMENT: usize = 8 << 20;
    let mut bytes = fs::read(db).unwrap();
    bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
    let last = bytes[bytes.len() - SEGMENT..].to_vec();
    bytes.extend(last);
    fs::write(db, bytes).unwrap();
}

/// The storage engine's last words when it opens a copy of the database in `dir`.
fn panic_of_open(dir: &Path) -> String {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(dir, copy.path());
    let config = sled::Config::new().path(copy.path()).segment_size(8 << 20).flush_every_ms(None);
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open().map(drop)));
    opened.unwrap_err().downcast_ref::<String>().unwrap().clone()
}

#[tokio::test]
async fn a_data_file_on_which_the_storage_engine_panics_when_it_opens_it() {
    // Full, begun, and before and after it was opened once, which leaves a snapshot.
    for (generation, opened_before) in [(1, false), (1, true), (3, false)] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        if opened_before {
            delivered(dir.path()).await.1.wal.close().await.unwrap();
        }
        repeat_the_last_segment(&db(dir.path(), generation));
        let words = panic_of_open(&generations(dir.path())[generation]);
        assert!(words.contains("duplicate segment LSN"), "{words}");
        if opened_before {
            let (seqs, rig) = delivered_again(dir.path()).await;
            assert_eq!(seqs, everything());
            assert_eq!(rig.metrics.wal_damaged_records.get(), 0);
            assert!(dir.path().join("wal-damaged").exists());
            rig.wal.close().await.unwrap();
        } else {
            delivers(dir.path(), &everything(), true).await;
        }
    }
}

/// The same with records that are lost: these are named by their sequences.
#[tokio::test]
async fn a_data_file_on_which_the_storage_engine_panics_and_that_has_lost_records() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let file = db(dir.path(), 1);
    let bytes = fs::read(&file).unwrap();
    let second: Vec<u64> = intact(&file).into_iter().collect();
    let lost = [second[10], second[11], second[50]];
    for at in memchr::memmem::find_iter(&bytes, &MAGIC) {
        if check(&bytes[at..]).is_ok_and(|(seq, _)| lost.contains(&seq)) {
            flip(&file, (at + HEADER_LEN + 9) as u64);
        }
    }
    repeat_the_last_segment(&file);
    let words = panic_of_open(&generations(dir.path())[1]);
    assert!(words.contains("duplicate segment LSN"), "{words}");
    let expected: BTreeSet<u64> = everything().into_iter().filter(|seq| !lost.contains(seq)).collect();
    let (seqs, rig) = delivered(dir.path()).await;
    assert_eq!(seqs, expected);
    let mut named = Vec::new();
    for generation in rig.wal.shared.generations.read().iter() {
        named.extend(generation.lost.lock().ranges());
    }
    assert_eq!(named, [(lost[0], lost[1]), (lost[2], lost[2])]);
    assert_eq!(rig.metrics.wal_damaged_records.get(), 3);
    rig.wal.close().await.unwrap();
}

const ONE: TenantId = TenantId(Uuid::from_u128(7));
const TWO: TenantId = TenantId(Uuid::from_u128(8));

/// Record `seq` of the logs below: whose, and how many events.
fn contents(seq: u64) -> (TenantId, u64) {
    (if seq.is_multiple_of(3) { TWO } else { ONE }, seq % 7 + 1)
}

/// The events of some records.
fn events_of(seqs: &[u64], tenant: Option<TenantId>) -> u64 {
    let those = seqs.iter().map(|seq| contents(*seq)).filter(|(whose, _)| tenant.is_none_or(|tenant| tenant == *whose));
    those.map(|(_, events)| events).sum()
}

/// Appends records whose contents are those of `seqs`; gives the sequences that they got.
async fn append_contents(wal: &Wal, seqs: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    let mut got = Vec::new();
    for seq in seqs {
        let (tenant, events) = contents(seq);
        let mut packer = Packer::new(Codec::Lz4);
        (0..events).for_each(|row| packer.push(&noise(100 * seq + row, 1000)));
        let appended = wal.append(Append { tenant, chunks: packer.finish(), ..append(b"") }).await.unwrap();
        assert_eq!(appended.first, appended.last);
        got.push(appended.first.0);
    }
    got
}

/// Which byte of a record changes.
const IN_HEADER: usize = 1;
const IN_PAYLOAD: usize = HEADER_LEN + 9;

/// Changes a byte of every copy of some records, in whatever generation they are.
fn damage(dir: &Path, seqs: &[u64], at: usize) {
    let mut damaged = BTreeSet::new();
    for folder in generations(dir) {
        let bytes = fs::read(folder.join("db")).unwrap_or_default();
        for place in memchr::memmem::find_iter(&bytes, &MAGIC) {
            if let Some((seq, _)) = check(&bytes[place..]).ok().filter(|(seq, _)| seqs.contains(seq)) {
                flip(&folder.join("db"), (place + at) as u64);
                damaged.insert(seq);
            }
        }
    }
    assert_eq!(damaged.len(), seqs.len());
}

/// What a ledger would make of it.
fn books_of(holdings: &Holdings) -> [Account; 2] {
    [holdings.accounts[&ONE], holdings.accounts[&TWO]]
}

fn waiting(holdings: &Holdings) -> u64 {
    holdings.events.values().sum()
}

#[tokio::test]
async fn the_events_of_damaged_records_are_counted_exactly_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    let seqs = append_contents(&rig.wal, 1..=60).await;
    assert_eq!(seqs, (1..=60).collect::<Vec<_>>());
    // Before any of it is in the saved books.
    let dir = model::image(dir.path());
    rig.wal.close().await.unwrap();
    let all: Vec<u64> = (1..=60).collect();
    // Of some nothing is left, of some the header; of one it is left and what comes before is gone; and the end is gone.
    let gone = [10, 11, 12, 13, 51, 59, 60];
    let labelled = [30, 31, 32, 50];
    let unproven = [52];
    damage(dir.path(), &gone, IN_HEADER);
    damage(dir.path(), &[&labelled[..], &unproven].concat(), IN_PAYLOAD);
    let lost = events_of(&gone, None) + events_of(&unproven, None);
    let of = |tenant, more: &[u64]| {
        let nobodys = events_of(&gone, Some(tenant)) + events_of(&unproven, Some(tenant));
        let received = events_of(&all, Some(tenant)) - nobodys + events_of(more, Some(tenant));
        let damaged = events_of(&labelled, Some(tenant));
        Account { received, appended: received, damaged, ..Account::default() }
    };
    let expected = [of(ONE, &[]), of(TWO, &[])];
    assert!(expected.iter().all(|account| account.damaged > 0));
    let closed = Wal::holdings_in(&settings(dir.path())).unwrap().unwrap();
    assert_eq!((books_of(&closed), closed.lost, closed.vague, closed.missing), (expected, lost, 0, 0));
    assert_eq!(waiting(&closed) + lost + events_of(&labelled, None), events_of(&all, None));

    let rig = open(settings(dir.path()));
    let holdings = rig.wal.holdings().unwrap();
    assert_eq!(Holdings { unreadable: Vec::new(), ..closed }, holdings);
    assert_eq!(rig.metrics.wal_damaged_records.get(), 12);

    // A second damage, after a crash of the next opening, whose sequences are others: counted beside the first.
    let more = append_contents(&rig.wal, 1..=6).await;
    let killed = model::image(dir.path());
    rig.wal.close().await.unwrap();
    damage(killed.path(), &more[2..4], IN_HEADER);
    let lost = lost + events_of(&[3, 4], None);
    let mut dir = killed;
    for crash in [true, false] {
        let rig = open(settings(dir.path()));
        let holdings = rig.wal.holdings().unwrap();
        let expected = [of(ONE, &[1, 2, 5]), of(TWO, &[6])];
        assert_eq!((books_of(&holdings), holdings.lost, holdings.vague, holdings.missing), (expected, lost, 0, 0));
        if crash {
            let killed = model::image(dir.path());
            rig.wal.close().await.unwrap();
            dir = killed;
        } else {
            rig.wal.close().await.unwrap();
        }
    }
    let closed = Wal::holdings_in(&settings(dir.path())).unwrap().unwrap();
    assert_eq!((closed.lost, closed.unreadable.len()), (lost, 0));
}

#[tokio::test]
async fn of_damaged_records_in_the_books_those_with_a_header_are_not_missing_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    append_contents(&rig.wal, 1..=20).await;
    rig.wal.close().await.unwrap();
    damage(dir.path(), &[5, 9], IN_HEADER);
    damage(dir.path(), &[10, 15, 16], IN_PAYLOAD);
    let all: Vec<u64> = (1..=20).collect();
    // What stands before the tenth is gone, so that nothing vouches for its header.
    let of = |tenant| {
        let received = events_of(&all, Some(tenant));
        let damaged = events_of(&[15, 16], Some(tenant));
        Account { received, appended: received, damaged, ..Account::default() }
    };
    let closed = Wal::holdings_in(&settings(dir.path())).unwrap().unwrap();
    for _ in 0..2 {
        let rig = open(settings(dir.path()));
        // The first count finds the damage, and the second is of it.
        rig.wal.holdings().unwrap();
        let holdings = rig.wal.holdings().unwrap();
        assert_eq!(books_of(&holdings), [of(ONE), of(TWO)]);
        assert_eq!((holdings.lost, holdings.vague, holdings.missing), (0, 0, 5));
        assert_eq!(waiting(&holdings), events_of(&all, None) - events_of(&[5, 9, 10, 15, 16], None));
        assert_eq!(Holdings { unreadable: Vec::new(), ..closed.clone() }, holdings);
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_done_is_nobodys_loss_also_when_it_was_not_in_the_books() {
    for (done, lost, vague) in [(20, 0, 0), (10, 2, 2), (4, 13, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = open(settings(dir.path()));
        append_contents(&rig.wal, 1..=20).await;
        rig.wal.truncate_through(WalSeq(done));
        let marked = || MetaFile::peek(&dir.path().join("wal")).unwrap().unwrap().done == done;
        eventually("the mark is written", marked).await;
        let killed = model::image(dir.path());
        rig.wal.close().await.unwrap();
        damage(killed.path(), &[9, 10, 11, 12], IN_HEADER);
        let rig = open(settings(killed.path()));
        let holdings = rig.wal.holdings().unwrap();
        // Of four records two are done, and how many events the other two held nobody knows.
        let lost = if vague == 0 && lost > 0 { events_of(&[9, 10, 11, 12], None) } else { lost };
        assert_eq!((holdings.lost, holdings.vague), (lost, vague), "done: {done}");
        rig.wal.close().await.unwrap();
    }
}

#[tokio::test]
async fn health_says_what_is_lost_until_somebody_has_seen_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(settings(dir.path()));
    append_contents(&rig.wal, 1..=20).await;
    rig.wal.close().await.unwrap();
    damage(dir.path(), &[5, 6, 9], IN_HEADER);
    let report = |rig: &Rig| rig.health.snapshot()["wal"].clone();
    let says = |rig: &Rig| report(rig).reason.is_some_and(|reason| reason.contains("has taken records 5-6, 9;"));
    let mut rig = open(settings(dir.path()));
    read(&mut rig.reader, 17).await;
    eventually("what the reader has found lost is said", || says(&rig)).await;
    assert_eq!(report(&rig).state, crate::health::State::Degraded);
    assert!(rig.wal.accepting().is_ok());
    rig.wal.close().await.unwrap();
    let rig = open(settings(dir.path()));
    assert!(says(&rig), "at once after a restart");
    fs::remove_file(dir.path().join("wal-damaged/LOST")).unwrap();
    eventually("it is acknowledged", || report(&rig).state == crate::health::State::Up).await;
    rig.wal.close().await.unwrap();
    let rig = open(settings(dir.path()));
    assert_eq!(report(&rig).state, crate::health::State::Up);
    rig.wal.close().await.unwrap();
}

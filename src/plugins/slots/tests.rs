#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use super::*;

mod crash;

fn caller(plugin: &str, sha256: char) -> Caller {
    Caller { plugin: plugin.into(), sha256: sha256.to_string().repeat(64).into() }
}

/// The file as `plugin` leaves it that crashed with SIGSEGV in the first slot, one second after 1970.
fn crashed(plugin: &str) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    let (slots, _) = open(&path).unwrap();
    let entry = slots.entry(&caller(plugin, 'a')).unwrap();
    let slot = slots.map.layout().slot(0).unwrap();
    slot.caller.store(entry.number(), std::sync::atomic::Ordering::Relaxed);
    slot.mark(11, 1000);
    fs::read(&path).unwrap()
}

/// What the process before this one left at `path`, and the file of this one in its place.
fn open(path: &Path) -> io::Result<(Arc<Slots>, Vec<Crash>)> {
    let crashes = crashes(path)?;
    Ok((Slots::open(path)?, crashes))
}

#[test]
fn a_mark_is_read_back_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    fs::write(&path, crashed("purchase")).unwrap();
    let (slots, crashes) = open(&path).unwrap();
    let at = Timestamp::from_second(1).unwrap();
    let crash = Crash { plugin: "purchase".to_owned(), sha256: "a".repeat(64), signal: 11, at };
    assert_eq!(crash.to_string(), "SIGSEGV in plugin purchase at 1970-01-01T00:00:01Z");
    assert_eq!(crashes, [crash]);
    drop(slots);
    assert_eq!(open(&path).unwrap().1, []);
}

#[test]
fn a_slot_outside_of_a_call_is_not_marked_and_the_first_mark_stays() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    let (slots, _) = open(&path).unwrap();
    let entry = slots.entry(&caller("a", 'a')).unwrap();
    let seat = Seat::take(&slots).unwrap();
    let slot = slots.map.layout().slot(0).unwrap();
    slot.mark(11, 1000);
    seat.enter(entry.number());
    slot.mark(8, 2000);
    slot.mark(6, 3000);
    let (_, crashes) = open(&path).unwrap();
    assert_eq!(crashes.iter().map(|crash| crash.signal).collect::<Vec<_>>(), [8]);
    seat.leave();
}

#[test]
fn entries_are_shared_while_kept_and_used_again_after() {
    let home = tempfile::tempdir().unwrap();
    let (slots, _) = open(&home.path().join("calls")).unwrap();
    let first = slots.entry(&caller("a", 'a')).unwrap();
    // By value: another load of the same file.
    assert_eq!(slots.entry(&caller("a", 'a')).unwrap().number(), first.number());
    let other = slots.entry(&caller("a", 'b')).unwrap();
    assert_ne!(other.number(), first.number());
    // Many more files than there are entries, one after the other.
    for n in 0..2000 {
        let caller = Caller { plugin: "b".into(), sha256: format!("{n:064}").into() };
        assert!(slots.entry(&caller).is_some(), "{n}");
    }
    // At once: the last one has no room.
    let kept: Vec<_> = (0..layout::CALLERS - 2)
        .map(|n| slots.entry(&Caller { plugin: "b".into(), sha256: format!("{n:064}").into() }).unwrap())
        .collect();
    assert!(slots.entry(&caller("c", 'c')).is_none());
    drop(kept);
    assert!(slots.entry(&caller("c", 'c')).is_some());
}

#[test]
fn slots_are_given_back() {
    let home = tempfile::tempdir().unwrap();
    let (slots, _) = open(&home.path().join("calls")).unwrap();
    let all: Vec<_> = (0..layout::SLOTS).map(|_| Seat::take(&slots).unwrap()).collect();
    assert!(Seat::take(&slots).is_none());
    // Each has kept what the thread had before it.
    all.into_iter().rev().for_each(drop);
    assert!(Seat::take(&slots).is_some());
}

#[test]
fn what_is_no_file_of_slots_blames_nobody() {
    let good = crashed("purchase");
    assert_eq!(layout::read(&good).unwrap().crashes.len(), 1);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let slot = layout::SIZE - layout::SLOTS * 64;
    for (file, problem) in [
        (vec![], "its size is not that of crash slots"),
        (good[..good.len() - 1].to_vec(), "its size is not that of crash slots"),
        ([&good[..], &[0]].concat(), "its size is not that of crash slots"),
        (with(0, b"X"), "it does not begin as crash slots do"),
        (with(8, &[2]), "it has another version"),
    ] {
        assert_eq!(layout::read(&file).unwrap_err(), problem);
    }
    for (file, what) in [
        (with(64, &[0; 4]), "an entry without a name"),
        (with(64, &[41]), "a name that is too long"),
        (with(64, &[0xff; 4]), "a name that is much too long"),
        (with(68, &[0xff]), "a name that is no text"),
        (with(108, b"!"), "a sum that is none"),
        (with(slot, &[0]), "no call"),
        (with(slot, &[2]), "a caller that is not there"),
        (with(slot, &[0xff; 4]), "a caller beyond the table"),
        (with(slot + 4, &[0]), "no signal"),
        (with(slot + 8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), "a time that is none"),
    ] {
        assert_eq!(layout::read(&file).unwrap().crashes, [], "{what}");
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    fs::write(&path, b"something else").unwrap();
    assert_eq!(open(&path).unwrap().1, []);
    assert_eq!(fs::read(&path).unwrap().len(), layout::SIZE, "replaced");
}

#[test]
fn the_file_of_a_process_that_runs_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("calls");
    let mut file = crashed("purchase");
    // Another process that runs for sure, with its own beginning: the first one.
    let stat = fs::read_to_string("/proc/1/stat").unwrap();
    let began: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    file[12..16].copy_from_slice(&1_u32.to_le_bytes());
    file[16..24].copy_from_slice(&began.to_le_bytes());
    fs::write(&path, &file).unwrap();
    let error = open(&path).err().unwrap();
    assert!(error.to_string().ends_with("calls is in use by process 1"), "{error}");
    // The same id, but of a process that began at another time: it has ended.
    file[16..24].copy_from_slice(&(began + 1).to_le_bytes());
    fs::write(&path, &file).unwrap();
    assert_eq!(open(&path).unwrap().1.len(), 1);
}

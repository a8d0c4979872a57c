//! What the engine leaves to the file system, made durable: a statement that changed something is answered after this.
//!
//! With the settings of our tables the engine syncs a part's files and folder. It syncs neither the folder of the table,
//! where the part gets its name, nor the deduplication log, nor the folders of a new table. ext4 and XFS write a name
//! down with any later sync, the lines of a log not; POSIX promises neither. Without this a power loss could take rows
//! that the write-ahead log has let go of, or the token of an insert whose rows it leaves.
//!
//! # Tokens before parts
//! The deduplication logs are synced before the folders that name the parts. A power loss in between leaves a token
//! without its part, which the engine would take for stored; so at a start, before the engine reads them, such tokens
//! are taken out ([`forget_lost`]), and the repeat of the insert stores its rows. The other way round it would leave a
//! part without its token, and the repeat would store the rows twice.
//!
//! The file system may also write a part's name by itself before this module has synced the log. So the logs have the
//! attribute of files that are written synchronously (`chattr +S`; ext4, XFS and Btrfs have it): the engine writes the
//! line before it names the part. On a file system without it an insert that is under way in the very milliseconds of a
//! power loss may be stored twice.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

const LOGS: &str = "deduplication_logs";

/// A change this young may be followed by another with the same time stamp (ticks of up to 10 ms).
const YOUNG: Duration = Duration::from_millis(50);

/// Syncs what changed since it last looked.
pub(super) struct Keeper {
    root: PathBuf,
    seen: Mutex<HashMap<PathBuf, Stamp>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            seconds: metadata.ctime(),
            nanoseconds: metadata.ctime_nsec(),
        }
    }

    fn is_young(self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = Duration::new(self.seconds.try_into().unwrap_or(0), self.nanoseconds.try_into().unwrap_or(0));
        now.saturating_sub(at) < YOUNG
    }
}

impl Keeper {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), seen: Mutex::default() }
    }

    /// Returns when everything that statements changed before the call is on disk. After an error nobody knows what is.
    pub(super) fn settle(&self) -> io::Result<()> {
        let mut seen = self.seen.lock();
        let tables = tables(&self.root)?;
        for logs in tables.iter().map(|table| table.join(LOGS)) {
            for (log, is_folder) in entries(&logs)? {
                if !is_folder {
                    write_through(&seen, &log)?;
                    sync_if_new(&mut seen, &log)?;
                }
            }
            write_through(&seen, &logs)?;
            sync_if_new(&mut seen, &logs)?;
        }
        // From the leaves to the root: a name is written when what it stands for is.
        let mut folders = tables;
        for top in ["store", "metadata", "data"].map(|name| self.root.join(name)) {
            folders.extend(entries(&top)?.into_iter().filter(|(_, is_folder)| *is_folder).map(|(path, _)| path));
            folders.push(top);
        }
        folders.push(self.root.clone());
        for folder in folders {
            sync_folder_if_new(&mut seen, &folder)?;
        }
        // Parts come and go, tables too.
        seen.retain(|path, _| path.exists());
        Ok(())
    }
}

/// From now on what is written to a file is on disk when the write returns. A file that is made in such a folder is one.
fn write_through(seen: &HashMap<PathBuf, Stamp>, path: &Path) -> io::Result<()> {
    if seen.contains_key(path) {
        return Ok(());
    }
    let Some(file) = found(File::open(path))? else { return Ok(()) };
    let set = ioctl_getflags(&file).and_then(|flags| {
        if flags.contains(IFlags::SYNC) { Ok(()) } else { ioctl_setflags(&file, flags | IFlags::SYNC) }
    });
    if let Err(error) = set {
        tracing::debug!(%error, path = %path.display(), "the file system has no files that are written synchronously");
    }
    Ok(())
}

/// Syncs a folder whose entries changed, and the files in it.
fn sync_folder_if_new(seen: &mut HashMap<PathBuf, Stamp>, folder: &Path) -> io::Result<()> {
    let Some(metadata) = found(fs::metadata(folder))? else { return Ok(()) };
    if seen.get(folder) == Some(&Stamp::of(&metadata)) {
        return Ok(());
    }
    for (path, is_folder) in entries(folder)? {
        if !is_folder {
            sync_if_new(seen, &path)?;
        }
    }
    sync_if_new(seen, folder)
}

fn sync_if_new(seen: &mut HashMap<PathBuf, Stamp>, path: &Path) -> io::Result<()> {
    let Some(metadata) = found(fs::symlink_metadata(path))?.filter(|found| found.is_file() || found.is_dir()) else {
        return Ok(());
    };
    // Looked at before the sync: what comes later is news.
    let stamp = Stamp::of(&metadata);
    if seen.get(path) == Some(&stamp) {
        return Ok(());
    }
    let Some(file) = found(File::open(path))? else { return Ok(()) };
    file.sync_all()?;
    if !stamp.is_young() {
        seen.insert(path.to_owned(), stamp);
    }
    Ok(())
}

/// Nothing for what is gone.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is in a folder, and whether it is a folder. Links are not followed.
fn entries(folder: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let Some(read) = found(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in read {
        let entry = entry?;
        if let Some(kind) = found(entry.file_type())? {
            all.push((entry.path(), kind.is_dir()));
        }
    }
    Ok(all)
}

/// The folders of the tables: `store/<three letters>/<uuid>`.
fn tables(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for (prefix, is_folder) in entries(&root.join("store"))? {
        if is_folder {
            all.extend(entries(&prefix)?.into_iter().filter(|(_, is_folder)| *is_folder).map(|(path, _)| path));
        }
    }
    Ok(all)
}

/// A part that is in use and has nothing in it but, perhaps, columns: a merge on a file system that was full has left it in the
/// place of those that it was made of (seen on tmpfs: every small file of it was empty, and the engine took it all the same).
///
/// The engine deletes what a merge has replaced after eight minutes. Until then a start finds the part broken, sets it aside,
/// and takes those again.
pub(super) fn hollow_part(root: &Path) -> io::Result<Option<PathBuf>> {
    // Written before a part gets its name, and never empty.
    let is_hollow = |part: &Path| {
        let sums = found(fs::metadata(part.join("checksums.txt")))?;
        io::Result::Ok(sums.is_some_and(|sums| sums.len() == 0))
    };
    for table in tables(root)? {
        for (part, is_folder) in entries(&table)? {
            let is_part =
                part.file_name().and_then(|name| name.to_str()).is_some_and(|name| Part::read(name).is_some());
            if is_folder && is_part && is_hollow(&part)? {
                return Ok(Some(part));
            }
        }
    }
    Ok(None)
}

/// A part by its name: `partition_first_last_level`, and behind it the number of a mutation.
struct Part<'n> {
    partition: &'n str,
    first: u64,
    last: u64,
}

impl<'n> Part<'n> {
    fn read(name: &'n str) -> Option<Self> {
        let pieces: Vec<&str> = name.split('_').collect();
        let [partition, first, last, rest @ ..] = pieces.as_slice() else { return None };
        let numbers = (1..=2).contains(&rest.len()) && rest.iter().all(|number| number.parse::<u64>().is_ok());
        numbers.then_some(Self { partition, first: first.parse().ok()?, last: last.parse().ok()? })
    }

    fn covers(&self, other: &Self) -> bool {
        self.partition == other.partition && self.first <= other.first && other.last <= self.last
    }
}

/// Takes out of the deduplication logs the tokens of parts that are not there, and lines that are no lines. Before the
/// engine reads them.
pub(super) fn forget_lost(root: &Path) -> io::Result<()> {
    for table in tables(root)? {
        let names: Vec<String> =
            entries(&table)?.iter().filter_map(|(path, _)| path.file_name()?.to_str().map(str::to_owned)).collect();
        let parts: Vec<Part<'_>> = names.iter().filter_map(|name| Part::read(name)).collect();
        for (log, is_folder) in entries(&table.join(LOGS))? {
            if !is_folder {
                forget_in(&log, &parts)?;
            }
        }
    }
    Ok(())
}

fn forget_in(log: &Path, parts: &[Part<'_>]) -> io::Result<()> {
    let text = fs::read(log)?;
    let kept: Vec<u8> =
        text.split_inclusive(|byte| *byte == b'\n').filter(|line| stays(line, parts)).flatten().copied().collect();
    if kept.len() == text.len() {
        return Ok(());
    }
    let count = |text: &[u8]| text.split_inclusive(|byte| *byte == b'\n').count();
    tracing::warn!(
        log = %log.display(),
        tokens = count(&text) - count(&kept),
        "took tokens out of a deduplication log whose parts are not there: a power loss came before their inserts were answered, or they have expired"
    );
    let temporary = log.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&kept)?;
    file.sync_all()?;
    fs::rename(&temporary, log)?;
    log.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// A line is `1` (added) or `2` (dropped), the part, the token.
fn stays(line: &[u8], parts: &[Part<'_>]) -> bool {
    let Some(line) = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()) else { return false };
    let mut fields = line.split('\t');
    let (Some(operation), Some(name), Some(_), None) = (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    match (operation, Part::read(name)) {
        ("1", Some(part)) => parts.iter().any(|there| there.covers(&part)),
        ("2", Some(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn tokens_go_with_their_parts() {
        let home = tempfile::tempdir().unwrap();
        let table = home.path().join("store/abc/abcdef");
        // Two were merged, one carries a mutation, one is half-written, and one is of another partition.
        for part in ["all_1_2_1", "all_4_4_0_9", "tmp_insert_all_5_5_0", "202601_6_6_0", LOGS, "detached"] {
            fs::create_dir_all(table.join(part)).unwrap();
        }
        let log = table.join(LOGS).join("deduplication_log_1.txt");
        let kept = "1\tall_1_1_0\ta\n1\tall_2_2_1\tb\n2\tall_3_3_0\tc\n1\tall_4_4_0\td\n1\t202601_6_6_0\tf\n";
        let lost = "1\tall_5_5_0\te\n1\tall_6_6_0\tg\n\0\0\0\n1\tall_1_1_0\tcut short";
        fs::write(&log, format!("{kept}{lost}")).unwrap();
        forget_lost(home.path()).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), kept);
        assert_eq!(fs::read_dir(log.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_changed_is_synced_again() {
        let home = tempfile::tempdir().unwrap();
        let table = home.path().join("store/abc/abcdef");
        fs::create_dir_all(table.join(LOGS)).unwrap();
        let keeper = Keeper::new(home.path());
        keeper.settle().unwrap();
        assert!(keeper.seen.lock().is_empty(), "what is young may change unseen");
        std::thread::sleep(YOUNG);
        keeper.settle().unwrap();
        let before = keeper.seen.lock().clone();
        assert!(before.contains_key(&table) && before.contains_key(home.path()));
        fs::create_dir(table.join("all_1_1_0")).unwrap();
        assert!(before.get(&table) != Some(&Stamp::of(&fs::metadata(&table).unwrap())));
        fs::remove_dir_all(home.path().join("store")).unwrap();
        keeper.settle().unwrap();
        assert!(!keeper.seen.lock().contains_key(&table));
    }
}

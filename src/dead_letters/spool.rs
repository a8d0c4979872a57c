//! The files of dead letters on this node: numbered, one JSON object a line, each append synced.
//!
//! A file is only appended to by the process that made it, and a line counts once its append was synced. So a torn line can
//! only be the last of a file, and nobody was told that it is kept.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::letter::Letter;
use crate::folder_lock::create_folder;

/// A file that is larger is not appended to: a file is delivered as a whole.
const FILE_BYTES: u64 = 8 << 20;
const EXTENSION: &str = "ndjson";

pub(super) struct Spool {
    folder: PathBuf,
    most: u64,
    writing: Mutex<Writing>,
    /// Something was appended.
    pub(super) news: Notify,
}

#[derive(Default)]
struct Writing {
    open: Option<Open>,
    /// Bytes of all files; none before they were looked at.
    bytes: Option<u64>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl Spool {
    pub(super) fn new(folder: PathBuf, most: u64) -> Self {
        Self { folder, most, writing: Mutex::default(), news: Notify::new() }
    }

    /// Appends durably. Blocking.
    pub(super) fn append(&self, letters: &[Letter]) -> io::Result<()> {
        let mut lines = Vec::new();
        for letter in letters {
            serde_json::to_writer(&mut lines, letter)?;
            lines.push(b'\n');
        }
        let mut writing = self.writing.lock();
        let bytes = match writing.bytes {
            Some(bytes) => bytes,
            None => size(&self.folder)?,
        };
        let after = bytes + lines.len() as u64;
        if after > self.most {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the dead letters in {} take {bytes} of at most {} bytes (dead_letters.max_bytes); they leave once \
                     ClickHouse can be reached",
                    self.folder.display(),
                    self.most
                ),
            ));
        }
        // Whatever fails from here on: the file is not appended to again, and what it holds is looked at anew.
        let open = writing.open.take();
        writing.bytes = None;
        let mut open = match open.filter(|open| open.bytes < FILE_BYTES) {
            Some(open) => open,
            None => Open { file: self.create()?, bytes: 0 },
        };
        open.file.write_all(&lines)?;
        open.file.sync_all()?;
        open.bytes += lines.len() as u64;
        writing.open = Some(open);
        writing.bytes = Some(after);
        drop(writing);
        self.news.notify_one();
        Ok(())
    }

    fn create(&self) -> io::Result<File> {
        create_folder(&self.folder)?;
        let last = numbered(&self.folder)?.last().map_or(0, |(number, _)| *number);
        let path = self.folder.join(format!("{:012}.{EXTENSION}", last + 1));
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(file)
    }

    /// The files that nobody appends to any more, in their order. Blocking.
    pub(super) fn take(&self) -> io::Result<Vec<PathBuf>> {
        let mut writing = self.writing.lock();
        writing.open = None;
        Ok(numbered(&self.folder)?.into_iter().map(|(_, path)| path).collect())
    }

    /// Removes a file whose letters are in the table. Blocking.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut writing = self.writing.lock();
        writing.bytes = None;
        fs::remove_file(path)
    }

    /// Bytes of all files. Blocking.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        size(&self.folder)
    }

    pub(super) fn letters(&self) -> io::Result<Vec<Letter>> {
        // Held, so that no file is removed meanwhile whose letters a look into the table came too early for.
        let _writing = self.writing.lock();
        letters(&self.folder)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The letters in the files of `folder`.
pub(super) fn letters(folder: &Path) -> io::Result<Vec<Letter>> {
    let mut all = Vec::new();
    for (_, path) in numbered(folder)? {
        match read(&path) {
            Ok(letters) => all.extend(letters),
            // It was delivered meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The letters of a file. A last line that was torn is none.
pub(super) fn read(path: &Path) -> io::Result<Vec<Letter>> {
    let text = fs::read(path)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = text.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("line {} of {} is no dead letter: {error}", number + 1, path.display()),
                )
            })
        })
        .collect()
}

fn numbered(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION);
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number.filter(|_| is_ours) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for (_, path) in numbered(folder)? {
        match fs::metadata(&path) {
            Ok(metadata) => bytes += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::time::Duration;

    use super::*;
    use crate::dead_letters::{DeadLetter, Form, Stage};

    fn letter(number: u8, bytes: usize) -> Letter {
        let dead = DeadLetter {
            stage: Stage::Source,
            reason: "not a row".to_owned(),
            form: Form::Line,
            bytes: &vec![number; bytes],
            origin: None,
            message: None,
            about: None,
        };
        Letter::of(&dead, jiff::Timestamp::now(), Duration::from_secs(60))
    }

    #[test]
    fn letters_keep_their_bytes_until_their_file_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::new(home.path().join("made/when/needed"), 1 << 20);
        assert_eq!((spool.letters().unwrap(), spool.bytes().unwrap()), (Vec::new(), 0));
        let (first, second) = (letter(0xff, 3), letter(b'a', 3));
        spool.append(std::slice::from_ref(&first)).unwrap();
        spool.append(std::slice::from_ref(&second)).unwrap();
        assert_eq!(spool.letters().unwrap(), [first.clone(), second.clone()]);
        let taken = spool.take().unwrap();
        assert_eq!(taken.len(), 1);
        // What comes while a file is delivered goes into another.
        spool.append(std::slice::from_ref(&first)).unwrap();
        assert_eq!(read(&taken[0]).unwrap(), [first.clone(), second]);
        spool.remove(&taken[0]).unwrap();
        assert_eq!(spool.letters().unwrap(), [first]);
        // Another process leaves it alone too.
        let next = Spool::new(home.path().join("made/when/needed"), 1 << 20);
        next.append(&[letter(1, 1)]).unwrap();
        assert_eq!(next.take().unwrap().len(), 2);
    }

    #[test]
    fn a_torn_last_line_is_none_and_a_strange_one_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::new(home.path().to_owned(), 1 << 20);
        spool.append(&[letter(1, 1)]).unwrap();
        let path = spool.take().unwrap().remove(0);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{}", &text[..50])).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        fs::write(&path, format!("{text}{{}}\n")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2 of") && error.contains("is no dead letter"), "{error}");
    }

    #[test]
    fn at_the_cap_nothing_is_kept_and_nothing_removed() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::new(home.path().to_owned(), 2000);
        spool.append(&[letter(1, 300)]).unwrap();
        let error = spool.append(&[letter(2, 1200)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("dead_letters.max_bytes"), "{error}");
        assert_eq!(spool.letters().unwrap().len(), 1);
        let path = spool.take().unwrap().remove(0);
        spool.remove(&path).unwrap();
        spool.append(&[letter(2, 800)]).unwrap();
    }
}

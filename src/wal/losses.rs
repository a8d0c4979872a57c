//! What damage has taken from the log: which records, what is left to say of them, and the word of it to the operator.
//!
//! # How many events
//! A record says how many events the log had taken in up to and with it. So of what is lost between two intact records, or
//! behind the last one that the marks know of, the number of events is known, whatever became of the bytes. Whose they were
//! is known where the header of a damaged record is left. It is believed if the books know its tenant, and its number of
//! events and its sum go on where the record before it ends: those of a header that changed would not.
//!
//! # The notice
//! `<log folder>-damaged/LOST` names the lost sequences, a line for each range, and says when books were lost. While it is
//! there `/health` says so, across restarts; removing it says that somebody has seen it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{record::Claim, state::write_atomically};

const FILE: &str = "LOST";
/// Begins the line of lost books.
const BOOKS: &str = "books ";
const HEAD: &str = "# Records of the write-ahead log that were lost to damage, by sequence. What is left of them is in this folder.\n\
    # A line with `books` says when the books began anew because they were damaged.\n\
    # /health says so until this file is removed.\n";
/// So many ranges are named in health; the file has them all.
const NAMED: usize = 10;

/// What is found lost at an open, or by a salvage.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Sequences, first and last, none of which was named before.
    pub gaps: Vec<(u64, u64)>,
    /// Headers of damaged records.
    pub claims: Vec<Claim>,
    /// Those of records in `gaps` that go on where an intact record ends.
    pub proven: Vec<Claim>,
    /// Those of damaged records that the storage engine still gives: the reader sets these aside, and counts them.
    pub waiting: Vec<Claim>,
}

impl Losses {
    pub(super) fn extend(&mut self, other: Self) {
        let Self { gaps, claims, proven, waiting } = other;
        self.gaps.extend(gaps);
        self.claims.extend(claims);
        self.proven.extend(proven);
        self.waiting.extend(waiting);
    }
}

/// Keeps the claims of records in `gaps`.
pub(super) fn within(gaps: &[(u64, u64)], claims: &mut Vec<Claim>) {
    claims.retain(|claim| gaps.iter().any(|(first, last)| (*first..=*last).contains(&claim.seq)));
}

/// Ranges of sequences for people.
pub(super) fn named(ranges: &[(u64, u64)]) -> Vec<String> {
    ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect()
}

/// The operator's notice of lost records.
pub(super) struct Notice {
    folder: PathBuf,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Ranges, as they are named.
    lost: Vec<String>,
    /// When the books were lost, the last time.
    books: Option<String>,
    /// The file says them.
    written: bool,
}

impl Told {
    fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.books.is_none()
    }
}

impl Notice {
    /// What was said before and is not acknowledged stands.
    pub(super) fn open(folder: PathBuf) -> Self {
        let text = match fs::read(folder.join(FILE)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(folder = %folder.display(), %error, "the notice of lost records cannot be read");
                }
                String::new()
            }
        };
        let mut told = Told { written: true, ..Told::default() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix(BOOKS) {
                Some(when) => told.books = Some(when.to_owned()),
                None => told.lost.push(line.to_owned()),
            }
        }
        Self { folder, told: Mutex::new(told) }
    }

    fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Says that records are lost.
    pub(super) fn add(&self, gaps: &[(u64, u64)]) {
        if gaps.is_empty() {
            return;
        }
        self.change(|told| {
            for range in named(gaps) {
                if !told.lost.contains(&range) {
                    told.lost.push(range);
                }
            }
        });
    }

    /// Says that the books, whose damaged file is at `file`, begin anew at `when`. The file is kept beside the notice.
    pub(super) fn add_books(&self, file: &Path, when: Timestamp) {
        let kept = self.folder.join(format!("books-{when:.0}"));
        if let Err(error) = fs::create_dir_all(&self.folder).and_then(|()| fs::copy(file, &kept)) {
            tracing::warn!(file = %kept.display(), %error, "the damaged books are not kept");
        }
        self.change(|told| told.books = Some(format!("{when:.0}")));
    }

    fn change(&self, change: impl FnOnce(&mut Told)) {
        let mut told = self.told.lock();
        // A file that was removed was seen.
        if told.written && !there(&self.file()) {
            *told = Told::default();
        }
        change(&mut told);
        let lines = told.lost.iter().map(|range| format!("{range}\n"));
        let lines = lines.chain(told.books.iter().map(|when| format!("{BOOKS}{when}\n")));
        let text: String = std::iter::once(HEAD.to_owned()).chain(lines).collect();
        let written = fs::create_dir_all(&self.folder).and_then(|()| write_atomically(&self.file(), text.as_bytes()));
        told.written = written.is_ok();
        if let Err(error) = written {
            let file = self.file();
            tracing::warn!(file = %file.display(), %error, "the notice of lost records is not written: a restart forgets it");
        }
    }

    /// What health has to say; nothing when nothing is lost, or somebody has seen it.
    pub(super) fn reason(&self) -> Option<String> {
        let mut told = self.told.lock();
        if !told.is_empty() && told.written && !there(&self.file()) {
            *told = Told::default();
        }
        if told.is_empty() {
            return None;
        }
        let mut parts = Vec::new();
        if !told.lost.is_empty() {
            let more = match told.lost.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more ranges"),
            };
            let lost: Vec<&str> = told.lost.iter().take(NAMED).map(String::as_str).collect();
            parts.push(format!(
                "damage to its files has taken records {}{more}; everything else goes on. `ingestion-engine ledger` says how \
                 many events that are, and whose where that is known: have these sent again where you can, when the dedup window \
                 is over (until then their ids are taken for duplicates)",
                lost.join(", "),
            ));
        }
        if let Some(when) = &told.books {
            parts.push(format!(
                "its books were damaged, and begin anew at {when}: the ledger counts from there on, and cannot tell whether an \
                 event of before is missing"
            ));
        }
        let (file, folder) = (self.file(), self.folder.display());
        parts.push(if told.written {
            format!("What is left of the files is in {folder}; remove {} once you have seen this", file.display())
        } else {
            let file = file.display();
            format!(
                "What is left of the files is in {folder}; a restart forgets this, because {file} cannot be written"
            )
        });
        Some(parts.join(". "))
    }
}

/// Only what is certainly gone is gone.
fn there(file: &Path) -> bool {
    file.try_exists().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_notice_stands_across_restarts_until_its_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("wal-damaged");
        let notice = Notice::open(folder.clone());
        notice.add(&[]);
        assert!(notice.reason().is_none() && !folder.exists());
        notice.add(&[(3, 3), (7, 9)]);
        let notice = Notice::open(folder.clone());
        notice.add(&[(7, 9), (12, 12)]);
        let reason = notice.reason().unwrap();
        assert!(reason.contains("has taken records 3, 7-9, 12;") && reason.contains("wal-damaged/LOST"), "{reason}");
        fs::remove_file(folder.join(FILE)).unwrap();
        assert!(notice.reason().is_none());
        notice.add(&(0..12).map(|n| (2 * n + 20, 2 * n + 20)).collect::<Vec<_>>());
        let reason = Notice::open(folder).reason().unwrap();
        assert!(reason.contains("records 20, 22,") && reason.contains("38 and 2 more ranges;"), "{reason}");
    }

    #[test]
    fn damaged_books_are_kept_and_told_until_the_notice_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, books) = (dir.path().join("wal-damaged"), dir.path().join("books"));
        fs::write(&books, b"damaged").unwrap();
        let when: Timestamp = "2026-11-30T10:00:00.5Z".parse().unwrap();
        Notice::open(folder.clone()).add_books(&books, when);
        assert_eq!(fs::read(folder.join("books-2026-11-30T10:00:00Z")).unwrap(), b"damaged");
        let notice = Notice::open(folder.clone());
        let reason = notice.reason().unwrap();
        assert!(reason.starts_with("its books were damaged, and begin anew at 2026-11-30T10:00:00Z"), "{reason}");
        notice.add(&[(3, 3)]);
        let reason = Notice::open(folder.clone()).reason().unwrap();
        assert!(reason.contains("has taken records 3;") && reason.contains("its books were damaged"), "{reason}");
        fs::remove_file(folder.join(FILE)).unwrap();
        assert!(notice.reason().is_none());
    }

    #[test]
    fn a_notice_that_cannot_be_written_stands_until_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("wal-damaged");
        fs::write(&folder, b"in the way").unwrap();
        let notice = Notice::open(folder.clone());
        notice.add(&[(3, 3)]);
        assert!(notice.reason().unwrap().contains("a restart forgets this"));
        fs::remove_file(folder).unwrap();
        assert!(notice.reason().is_some());
    }
}

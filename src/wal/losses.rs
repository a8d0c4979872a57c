//! What damage has taken from the log: which records, what is left to say of them, and the word of it to the operator.
//!
//! # How many events
//! A record says how many events the log had taken in up to and with it. So of what is lost between two intact records, or
//! behind the last one that the marks know of, the number of events is known, whatever became of the bytes. Whose they were
//! is known where the header of a damaged record is left. It is believed if the books know its tenant, and its number of
//! events and its sum go on where the record before it ends: those of a header that changed would not.
//!
//! # The notice
//! `<log folder>-damaged/LOST` names the lost sequences, a line for each range. While it is there `/health` says so, across
//! restarts; removing it says that somebody has seen it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::{record::Claim, state::write_atomically};

const FILE: &str = "LOST";
const HEAD: &str = "# Records of the write-ahead log that were lost to damage, by sequence. What is left of them is in this folder.\n\
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
    /// The file says them.
    written: bool,
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
        let lost = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
        Self { folder, told: Mutex::new(Told { lost, written: true }) }
    }

    fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Says that records are lost.
    pub(super) fn add(&self, gaps: &[(u64, u64)]) {
        if gaps.is_empty() {
            return;
        }
        let mut told = self.told.lock();
        // A file that was removed was seen.
        if told.written && !there(&self.file()) {
            told.lost.clear();
        }
        for range in named(gaps) {
            if !told.lost.contains(&range) {
                told.lost.push(range);
            }
        }
        let text = told.lost.iter().fold(HEAD.to_owned(), |text, range| text + range + "\n");
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
        if told.lost.is_empty() {
            return None;
        }
        if told.written && !there(&self.file()) {
            told.lost.clear();
            return None;
        }
        let more = match told.lost.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more ranges"),
        };
        let lost: Vec<&str> = told.lost.iter().take(NAMED).map(String::as_str).collect();
        let file = self.file();
        let acknowledge = if told.written {
            format!("remove {} once you have seen this", file.display())
        } else {
            format!("a restart forgets this, because {} cannot be written", file.display())
        };
        Some(format!(
            "damage to its files has taken records {}{more}; everything else goes on. `ingestion-engine ledger` says how many events \
             that are, and whose where that is known: have these sent again where you can, when the dedup window is over (until \
             then their ids are taken for duplicates). What is left of the files is in {}; {acknowledge}",
            lost.join(", "),
            self.folder.display()
        ))
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

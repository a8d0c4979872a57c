//! What cannot be delivered is kept here, with its bytes and the reason, and counted: nothing is dropped.
//!
//! One file a day under the data folder, one JSON object a line, synced before the caller may let go of the original.
//! Rare by construction (validated rows are always accepted), so every letter is worth its own fsync.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use crate::metrics::Metrics;

/// The dead-letter files of this node. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    folder: Arc<PathBuf>,
    // One writer at a time, so that lines of two stages never mix.
    writing: Arc<Mutex<()>>,
    metrics: Arc<Metrics>,
}

/// One thing that could not be delivered.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    /// Where it failed: `relay` or `source`.
    pub stage: &'static str,
    /// Why, in words.
    pub reason: String,
    /// Where it stood: log and sequence, or topic, partition and offset.
    pub position: String,
    /// The original bytes.
    pub bytes: &'a [u8],
}

#[derive(Serialize)]
struct Line<'a> {
    at: Timestamp,
    stage: &'a str,
    reason: &'a str,
    position: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl DeadLetters {
    /// Uses `folder`, which is made when the first letter arrives.
    pub fn new(folder: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self { folder: Arc::new(folder), writing: Arc::default(), metrics }
    }

    /// Keeps `letter` durably. Blocking: one append and one fsync.
    ///
    /// # Errors
    /// The file system's error; the caller must then keep the original where it is and try again.
    pub fn keep(&self, letter: &DeadLetter<'_>) -> io::Result<()> {
        let at = Timestamp::now();
        let text = std::str::from_utf8(letter.bytes).ok();
        let base64 = text.is_none().then(|| STANDARD.encode(letter.bytes));
        let DeadLetter { stage, reason, position, .. } = letter;
        let mut line = serde_json::to_vec(&Line { at, stage, reason, position, text, base64 })?;
        line.push(b'\n');

        let _one_at_a_time = self.writing.lock();
        fs::create_dir_all(&*self.folder)?;
        let path = self.folder.join(format!("{}.ndjson", at.strftime("%Y-%m-%d")));
        let is_new = !path.exists();
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(&line)?;
        file.sync_all()?;
        if is_new {
            sync_folder(&self.folder)?;
        }
        self.metrics.dead_letters.inc();
        tracing::error!(stage, position, reason, file = %path.display(), "kept as a dead letter");
        Ok(())
    }
}

/// Makes the folder's entries durable, its own in its parent included.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn letters_keep_their_bytes_and_their_reason() {
        let home = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let letters = DeadLetters::new(home.path().join("dead-letters"), metrics.clone());
        let keep = |bytes: &[u8]| {
            let letter = DeadLetter { stage: "source", reason: "not a row".into(), position: "t:0:7".into(), bytes };
            letters.keep(&letter).unwrap();
        };
        keep(b"{\"half\":");
        keep(&[0xff, 0x00]);
        let files: Vec<_> =
            fs::read_dir(home.path().join("dead-letters")).unwrap().map(|f| f.unwrap().path()).collect();
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["text"], "{\"half\":");
        assert_eq!(lines[1]["base64"], "/wA=");
        assert_eq!((lines.len(), metrics.dead_letters.get()), (2, 2));
    }
}

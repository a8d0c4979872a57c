//! Which files of the folder to take at a look: pure, from what was seen and what is known.

use std::collections::{BTreeMap, BTreeSet};

use crate::plugins::{folder::Stamp, watch::Change};

/// What to do after a look at the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Files to take, by name.
    pub take: Vec<String>,
    /// Known files that are not there any more.
    pub gone: BTreeSet<String>,
    /// Some file may still be being written: look again soon.
    pub again: bool,
}

/// What the events have said, and which states of files were seen without an event.
#[derive(Debug, Default)]
pub(super) struct Looks {
    settled: BTreeSet<String>,
    writing: BTreeSet<String>,
    seen: BTreeMap<String, Stamp>,
}

impl Looks {
    /// Takes in an event.
    pub fn note(&mut self, change: Change) {
        match change {
            Change::Settled(name) => {
                self.writing.remove(&name);
                self.settled.insert(name);
            }
            Change::Written(name) => {
                self.settled.remove(&name);
                self.writing.insert(name);
            }
            // Whoever was writing may have ended unseen.
            Change::Look { lost: true } => self.writing.clear(),
            Change::Look { lost: false } => {}
        }
    }

    /// Compares the folder with what is `known`: for each name the state of the file that was dealt with last, nothing
    /// where it is to be dealt with again.
    ///
    /// A file in a new state is taken when an event said that it is whole. Without an event, as on file systems that
    /// tell of none, it is taken when two looks have seen it in the same state.
    pub fn look(&mut self, found: &BTreeMap<String, Stamp>, known: &BTreeMap<String, Option<Stamp>>) -> Look {
        let gone = known.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut look = Look { gone, ..Look::default() };
        let settled = std::mem::take(&mut self.settled);
        let seen = std::mem::take(&mut self.seen);
        self.writing.retain(|name| found.contains_key(name));
        for (name, stamp) in found {
            let dealt_with = known.get(name).is_some_and(|known| known.as_ref() == Some(stamp));
            // One that an event names is taken although it looks the same: it may have been refused for a passing reason.
            if settled.contains(name) && !dealt_with {
                look.take.push(name.clone());
            } else if dealt_with || self.writing.contains(name) {
            } else if seen.get(name) == Some(stamp) || known.get(name).is_some_and(Option::is_none) {
                look.take.push(name.clone());
            } else {
                self.seen.insert(name.clone(), stamp.clone());
                look.again = true;
            }
        }
        look
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{fs, path::Path};

    use super::*;
    use crate::plugins::folder::Folder;

    fn found(home: &Path) -> BTreeMap<String, Stamp> {
        Folder::open(home.join("plugins"), home.join("copies"), BTreeSet::new()).unwrap().scan().unwrap()
    }

    #[test]
    fn without_an_event_two_looks_must_see_the_same() {
        let home = tempfile::tempdir().unwrap();
        let (mut looks, nothing) = (Looks::default(), BTreeMap::new());
        found(home.path());
        let path = home.path().join("plugins/a.so");
        fs::write(&path, "half").unwrap();
        let half = found(home.path());
        assert_eq!(looks.look(&half, &nothing), Look { again: true, ..Look::default() });
        fs::write(&path, "all of it").unwrap();
        let whole = found(home.path());
        assert_eq!(looks.look(&whole, &nothing), Look { again: true, ..Look::default() });
        assert_eq!(looks.look(&whole, &nothing).take, ["a.so"]);
        let known = whole.iter().map(|(name, stamp)| (name.clone(), Some(stamp.clone()))).collect();
        assert_eq!(looks.look(&whole, &known), Look::default());
        let look = looks.look(&BTreeMap::new(), &known);
        assert_eq!(look.gone, BTreeSet::from(["a.so".to_owned()]));
    }

    #[test]
    fn an_event_says_when_a_file_is_whole() {
        let home = tempfile::tempdir().unwrap();
        let (mut looks, nothing) = (Looks::default(), BTreeMap::new());
        found(home.path());
        fs::write(home.path().join("plugins/a.so"), "a").unwrap();
        let found = found(home.path());
        looks.note(Change::Written("a.so".to_owned()));
        assert_eq!(looks.look(&found, &nothing), Look::default());
        assert_eq!(looks.look(&found, &nothing), Look::default(), "however often");
        looks.note(Change::Settled("a.so".to_owned()));
        assert_eq!(looks.look(&found, &nothing).take, ["a.so"]);
        // The end of the writing was lost.
        looks.note(Change::Written("a.so".to_owned()));
        looks.note(Change::Look { lost: true });
        assert!(looks.look(&found, &nothing).again);
        assert_eq!(looks.look(&found, &nothing).take, ["a.so"]);
    }
}

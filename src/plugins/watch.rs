//! What happens in the plugins' folder, as far as it matters.
//!
//! The kernel tells (inotify, through `notify`); this file turns that into few words. A file counts once it was closed
//! after writing, or took its name in a rename: in between, a copy is half there.
//!
//! - Events are a hint to look, never the truth: they can be lost (a full queue, NFS, some container file systems), and
//!   the folder can be removed and made again. So whoever listens also looks from time to time by itself, and asks
//!   [`Watch::is_current`] then.
//! - What it is not: it decides nothing, and it does not read the files.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};

use super::folder::is_library;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The library of this name is whole: it was closed after writing, renamed into its place, or given another mode.
    Settled(String),
    /// The library of this name is being written.
    Written(String),
    /// Look at everything: a library went, something that a link may lead to changed, or events were lost.
    Look {
        /// Events were lost, so that what was told of single files may have come to its end unseen.
        lost: bool,
    },
}

/// A watch on one folder, until dropped.
pub struct Watch {
    dir: PathBuf,
    identity: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Tells `tell` what happens in `dir`, from a thread of its own.
    ///
    /// # Errors
    /// There is no such folder, or the system has no watch to give (`fs.inotify.max_user_watches`).
    pub fn start(dir: &Path, tell: impl Fn(Change) + Send + 'static) -> io::Result<Self> {
        let identity = identity(dir)?;
        // Events name absolute paths, whatever was asked for: they would match no relative one, and every change would wait
        // for the next look.
        let absolute = std::path::absolute(dir)?;
        let watched = absolute.clone();
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) => changes(&watched, &event).for_each(&tell),
            // The queue could not be read; whatever it held is not known.
            Err(_) => tell(Change::Look { lost: true }),
        };
        let other = |error: notify::Error| match error.kind {
            notify::ErrorKind::Io(error) => error,
            _ => io::Error::other(error),
        };
        let mut watcher = notify::recommended_watcher(handler).map_err(other)?;
        watcher.watch(&absolute, RecursiveMode::NonRecursive).map_err(other)?;
        Ok(Self { dir: dir.to_owned(), identity, _watcher: watcher })
    }

    /// Whether the folder of that name is still the one that is watched.
    pub fn is_current(&self) -> bool {
        identity(&self.dir).is_ok_and(|identity| identity == self.identity)
    }
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(dir).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// What an event of the folder `dir` means.
fn changes<'a>(dir: &'a Path, event: &'a Event) -> impl Iterator<Item = Change> + 'a {
    let lost = event.need_rescan().then_some(Change::Look { lost: true });
    let named = event.paths.iter().filter_map(move |path| {
        let name = path.file_name().and_then(|name| name.to_str()).filter(|_| path.parent() == Some(dir));
        let library = name.filter(|name| is_library(name)).map(str::to_owned);
        let whole = matches!(
            event.kind,
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Metadata(_))
        );
        match (event.kind, library) {
            (_, Some(name)) if whole => Some(Change::Settled(name)),
            (EventKind::Modify(ModifyKind::Data(_)), Some(name)) => Some(Change::Written(name)),
            // Into or out of its place: which of the two is seen in the folder.
            (EventKind::Modify(ModifyKind::Name(_)), Some(name)) if path.exists() => Some(Change::Settled(name)),
            // A new file is about to be written, or was linked into its place: a look finds the latter.
            (EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_), _) | (EventKind::Create(_), Some(_)) => {
                Some(Change::Look { lost: false })
            }
            // What a library's link leads through.
            (EventKind::Create(_), None) if path.is_symlink() => Some(Change::Look { lost: false }),
            _ => None,
        }
    });
    lost.into_iter().chain(named)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Until everything before it was told: the events of one folder keep their order.
    const MARK: &str = "mark.so";
    /// Only so that a failure is a failure and not a hanging test.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Told {
        home: tempfile::TempDir,
        watch: Watch,
        changes: mpsc::Receiver<Change>,
    }

    fn watch() -> Told {
        watch_as(Path::to_owned)
    }

    /// A watch on a folder that is named as `name` makes of its absolute path.
    fn watch_as(name: impl Fn(&Path) -> PathBuf) -> Told {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("plugins");
        fs::create_dir(&dir).unwrap();
        let (tell, changes) = mpsc::channel();
        let watch = Watch::start(&name(&dir), move |change| drop(tell.send(change))).unwrap();
        Told { home, watch, changes }
    }

    impl Told {
        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join("plugins").join(name)
        }

        fn until_now(&self) -> Vec<Change> {
            fs::rename(self.outside(MARK), self.path(MARK)).unwrap();
            let mut told = Vec::new();
            loop {
                let change = self.changes.recv_timeout(PATIENCE).unwrap();
                if change == Change::Settled(MARK.to_owned()) {
                    fs::remove_file(self.path(MARK)).unwrap();
                    while self.changes.recv_timeout(PATIENCE).unwrap() != (Change::Look { lost: false }) {}
                    return told;
                }
                told.push(change);
            }
        }

        fn outside(&self, name: &str) -> PathBuf {
            let path = self.home.path().join(name);
            fs::write(&path, name).unwrap();
            path
        }
    }

    #[test]
    fn a_file_counts_when_it_is_closed_and_not_before() {
        use std::io::Write as _;
        let told = watch();
        let mut file = fs::File::create(told.path("a.so")).unwrap();
        file.write_all(b"half").unwrap();
        let settled = Change::Settled("a.so".to_owned());
        let before = told.until_now();
        assert!(before.contains(&Change::Written("a.so".to_owned())) && !before.contains(&settled), "{before:?}");
        drop(file);
        assert!(told.until_now().contains(&settled));
    }

    #[test]
    fn a_rename_into_the_folder_counts_at_once_and_one_out_of_it_asks_to_look() {
        let told = watch();
        fs::rename(told.outside("a.so"), told.path("a.so")).unwrap();
        assert_eq!(told.until_now(), [Change::Settled("a.so".to_owned())]);
        fs::rename(told.path("a.so"), told.home.path().join("a.so")).unwrap();
        assert_eq!(told.until_now(), [Change::Look { lost: false }]);
    }

    #[test]
    fn a_folder_may_be_named_from_here() {
        // As `data/plugins` of an engine that is started in the folder beside it.
        let told = watch_as(|dir| {
            let here = std::env::current_dir().unwrap();
            let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
            up.join(dir.strip_prefix("/").unwrap())
        });
        fs::rename(told.outside("a.so"), told.path("a.so")).unwrap();
        assert_eq!(told.until_now(), [Change::Settled("a.so".to_owned())]);
    }

    #[test]
    fn reading_and_other_files_are_no_news() {
        let told = watch();
        fs::rename(told.outside("a.so"), told.path("a.so")).unwrap();
        told.until_now();
        fs::read(told.path("a.so")).unwrap();
        fs::write(told.path("notes.txt"), b"x").unwrap();
        fs::write(told.path(".a.so.tmp"), b"x").unwrap();
        assert_eq!(told.until_now(), []);
    }

    #[test]
    fn a_folder_that_was_made_again_is_another_one() {
        let told = watch();
        assert!(told.watch.is_current());
        fs::rename(told.home.path().join("plugins"), told.home.path().join("elsewhere")).unwrap();
        assert_eq!(told.changes.recv_timeout(PATIENCE).unwrap(), Change::Look { lost: false });
        assert!(!told.watch.is_current());
        fs::create_dir(told.home.path().join("plugins")).unwrap();
        assert!(!told.watch.is_current());
    }

    #[test]
    fn lost_events_ask_for_a_look() {
        let event = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert_eq!(changes(Path::new("/p"), &event).collect::<Vec<_>>(), [Change::Look { lost: true }]);
    }
}

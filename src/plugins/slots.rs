//! Which plugin was in call when the process crashed: a mapped file with a slot for each plugin thread, and a signal handler
//! that marks the slot of the thread that faulted.
//!
//! The file outlives the process, so that the next start knows whom to blame: a client that keeps sending the event on
//! which a plugin crashes must not make a crash loop.
//!
//! ```text
//! offset  size       what (little-endian; see `layout`)
//!      0  8          magic "INGCALLS"
//!      8  4          version of this layout, 1
//!     12  4          process id of the writer
//!     16  8          when that process began, clock ticks since boot
//!     24  16         boot id
//!     40  24         zero
//!     64  512 x 128  callers: u32 length of the name (0: unused), 40 name, 64 sha256 (hexadecimal), 20 zero
//!  65600  256 x 64   slots: u32 number of the caller in call (from 1; 0: none), u32 signal (0: none),
//!                    i64 when, milliseconds since 1970, 48 zero
//! ```
//!
//! - Entering and leaving a call is one store each; a slot has a cache line to itself.
//! - A mark is made by the thread that faults, in its own slot, and only while it is in call. A fault elsewhere, a signal
//!   that another process sent, `kill -9` and the kernel's out-of-memory killer mark nothing.
//! - The file is replaced as a whole (`rename`) when it is opened: its marks are there completely or not at all.
//! - Not durable across a power cut, and it need not be: no plugin causes one.

use std::{
    collections::HashMap,
    fmt, fs, io,
    path::Path,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::threads::Caller;

mod handler;
mod layout;
mod map;

pub use handler::{Seat, install_handlers};
use layout::{CALLERS, Found, SLOTS};
use map::Map;

/// A process that crashed while a plugin was in call on the thread that faulted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// The plugin's name.
    pub plugin: String,
    /// Its file's sum, hexadecimal.
    pub sha256: String,
    /// The signal's number; [`signal_name`] says it in words.
    pub signal: i32,
    /// When.
    pub at: Timestamp,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in plugin {} at {}", signal_name(self.signal), self.plugin, self.at)
    }
}

/// `SIGSEGV` and the like, of the signals that end a process; `signal 42` of others.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGALRM => "SIGALRM",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGXCPU => "SIGXCPU",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// The file of this process.
pub struct Slots {
    map: Map,
    callers: Mutex<Callers>,
    /// Slots that no thread has.
    free: Mutex<Vec<usize>>,
}

struct Callers {
    known: HashMap<(Arc<str>, Arc<str>), Weak<Entry>>,
    free: Vec<u32>,
}

/// A caller's place in the table of callers, until it is dropped.
pub struct Entry {
    slots: Arc<Slots>,
    key: (Arc<str>, Arc<str>),
    number: u32,
}

impl Entry {
    /// What a slot says when it is in call.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut callers = self.slots.callers.lock();
        // Another one may have come for the same caller since the last handle of this one was dropped.
        if callers.known.get(&self.key).is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self)) {
            callers.known.remove(&self.key);
        }
        callers.free.push(self.number);
    }
}

/// How long the process before this one may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the process that wrote `path` left there. A file that is no such file is logged: it blames nobody.
///
/// # Errors
/// It cannot be read, or the process that it belongs to still runs.
pub fn crashes(path: &Path) -> io::Result<Vec<Crash>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Found { owner, crashes } = match layout::read(&bytes) {
        Ok(found) => found,
        Err(problem) => {
            tracing::warn!(path = %path.display(), problem, "crash slots cannot be read; no plugin is blamed for a crash");
            return Ok(Vec::new());
        }
    };
    // One that was killed a moment ago takes some time to go.
    let deadline = Instant::now() + PATIENCE;
    while owner.pid != std::process::id() && owner.runs() {
        if Instant::now() >= deadline {
            let message = format!("{} is in use by process {}", path.display(), owner.pid);
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(crashes)
}

impl Slots {
    /// Opens `path` for this process. What the process before it left there is gone then: ask [`crashes`] first.
    ///
    /// # Errors
    /// It cannot be written or mapped.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let beside = path.with_extension("new");
        // Written in full: a mapped page without room on the disk would end the process when it is touched.
        fs::write(&beside, layout::empty(&layout::Owner::this_process()?))?;
        let map = Map::open(&beside)?;
        fs::rename(&beside, path)?;
        let slots = Self {
            map,
            // Backwards: the first ones are given out first.
            callers: Mutex::new(Callers { known: HashMap::new(), free: (1..=CALLERS).rev().collect() }),
            free: Mutex::new((0..SLOTS).rev().collect()),
        };
        Ok(Arc::new(slots))
    }

    /// The place of `caller` in the table of callers; one for all who ask while one of them keeps it. None when the table
    /// is full: the caller is not blamed for a crash then.
    pub fn entry(self: &Arc<Self>, caller: &Caller) -> Option<Arc<Entry>> {
        let key = (Arc::clone(&caller.plugin), Arc::clone(&caller.sha256));
        let mut callers = self.callers.lock();
        if let Some(entry) = callers.known.get(&key).and_then(Weak::upgrade) {
            return Some(entry);
        }
        let Some(number) = callers.free.pop() else {
            tracing::warn!(
                plugin = &*caller.plugin,
                "no room for another plugin in the crash slots: it goes unwatched"
            );
            return None;
        };
        self.map.layout().name(number, caller);
        let entry = Arc::new(Entry { slots: Arc::clone(self), key: key.clone(), number });
        callers.known.insert(key, Arc::downgrade(&entry));
        Some(entry)
    }
}

#[cfg(test)]
mod tests;

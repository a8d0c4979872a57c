//! A plugin's process as the engine holds it: one frame out, one frame back, within a time; or its end.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::unix::process::CommandExt,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixStream, process::ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::{
    frame::{HEAD, Kind, Malformed, Writer},
    log,
};
use crate::plugins::{instance::LIFECYCLE_DEADLINE, slots::signal_name, threads::waited_for_a_processor};

/// How often a wait looks whether its time is up.
const LOOK: Duration = Duration::from_millis(5);

/// The most that one look counts as passed: see the watchdog of the plugin threads, which does the same.
const MOST: Duration = Duration::from_millis(20);

/// How long a process that has let go of its socket is given to end by itself, so that its own status is seen: writing its
/// memory away and taking its mappings down.
const END: Duration = Duration::from_secs(1);

/// Room that is kept for the next answer; more is given back.
const KEPT: usize = 1 << 20;

/// Why there is no answer. The process is of no use any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// It took too long, and was killed.
    Late,
    /// It has ended, and how.
    Ended(String),
    /// It said what makes no sense, and was killed.
    Garbage(String),
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self::Garbage(malformed.0.to_owned())
    }
}

/// A process that runs a plugin.
pub(super) struct Process {
    /// None once it has been waited for.
    child: Option<Child>,
    /// Becomes readable when the process ends.
    end: OwnedFd,
    stream: UnixStream,
    /// Of its main thread, which the plugin is called on.
    schedstat: Option<File>,
    /// The frame that goes out next.
    pub(super) out: Writer,
    answer: Vec<u8>,
    /// Calls that it has answered.
    pub(super) answered: u64,
}

impl Process {
    /// Starts `command` with a socket as its standard input, and everything that it prints in the log.
    pub(super) fn spawn(mut command: Command, plugin: &str) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let (words, said) = io::pipe()?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(said.try_clone()?).stderr(said);
        // A group of its own: what a plugin starts ends with it, and Ctrl-C at a terminal is for the engine.
        let mut child = command.process_group(0).spawn()?;
        // Closes our ends of what is the child's.
        drop(command);
        let watched = (|| {
            // Both ends wake up every so often, to look at the clock.
            stream.set_read_timeout(Some(LOOK))?;
            stream.set_write_timeout(Some(LOOK))?;
            let name = plugin.to_owned();
            thread::Builder::new().name("plugin-log".to_owned()).spawn(move || log::forward(words, &name))?;
            Ok(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?)
        })();
        let end = match watched {
            Ok(end) => end,
            Err(error) => {
                kill_and_wait(&mut child);
                return Err(error);
            }
        };
        let schedstat = File::open(format!("/proc/{}/schedstat", child.id())).ok();
        let (out, answer) = (Writer::default(), Vec::new());
        Ok(Self { child: Some(child), end, stream, schedstat, out, answer, answered: 0 })
    }

    /// Sends the frame `out` and waits for one of at most `most` bytes, for `limit`.
    pub(super) fn exchange(&mut self, limit: Duration, most: usize) -> Result<(Kind, &[u8]), Broken> {
        match self.frames(limit, most) {
            Ok(kind) => {
                self.answered += 1;
                Ok((kind, self.answer.get(HEAD..).unwrap_or_default()))
            }
            Err(broken) => Err(broken),
        }
    }

    fn frames(&mut self, limit: Duration, most: usize) -> Result<Kind, Broken> {
        let mut patience = Patience::new(limit);
        self.send(&mut patience)?;
        self.answer.clear();
        self.answer.shrink_to(KEPT);
        let mut wanted = HEAD;
        // The first piece is large enough for most answers, so that one read is enough.
        self.answer.resize(16 << 10, 0);
        let mut have = 0;
        loop {
            let room = self.answer.get_mut(have..).unwrap_or_default();
            match (&self.stream).read(room) {
                Ok(0) => return Err(self.ended()),
                Ok(read) => have += read,
                Err(error) => self.not_yet(&error)?,
            }
            if have >= HEAD && wanted == HEAD {
                let length = self.answer.first_chunk().map_or(0, |head| u32::from_le_bytes(*head) as usize);
                // The kind is part of it.
                if length == 0 || length > most.saturating_add(1) {
                    return Err(Broken::Garbage(format!(
                        "it says that its answer has {length} bytes, of at most {most}"
                    )));
                }
                wanted = HEAD - 1 + length;
                self.answer.resize(wanted.max(have), 0);
            }
            if have > wanted {
                return Err(Broken::Garbage("it says more than it was asked for".to_owned()));
            }
            if have == wanted && wanted > HEAD - 1 && have >= HEAD {
                self.answer.truncate(wanted);
                let kind = self.answer.get(HEAD - 1).copied().unwrap_or(0);
                return Ok(Kind::of(kind)?);
            }
            patience.look(self.schedstat.as_ref())?;
        }
    }

    fn send(&mut self, patience: &mut Patience) -> Result<(), Broken> {
        // Taken for the time of the loop, which needs the rest of `self`.
        let mut out = std::mem::take(&mut self.out);
        let frame = out.finish();
        let mut sent = 0;
        let result = loop {
            match frame.get(sent..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match (&self.stream).write(rest) {
                    Ok(more) => sent += more,
                    Err(error) => {
                        if let Err(broken) = self.not_yet(&error) {
                            break Err(broken);
                        }
                    }
                },
            }
            if let Err(broken) = patience.look(self.schedstat.as_ref()) {
                break Err(broken);
            }
        };
        self.out = out;
        result
    }

    /// Whether an error of the socket only means that nothing has happened yet.
    fn not_yet(&mut self, error: &io::Error) -> Result<(), Broken> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// It has let go of its socket: usually because it has ended.
    fn ended(&mut self) -> Broken {
        if !is_over(&self.end, END) {
            return Broken::Garbage("it has closed its connection and lives on".to_owned());
        }
        Broken::Ended(self.finish().map_or_else(|| "unknown".to_owned(), how))
    }

    /// How it has ended, if it has.
    pub(super) fn over(&mut self) -> Option<String> {
        is_over(&self.end, Duration::ZERO).then(|| self.finish().map_or_else(|| "unknown".to_owned(), how))
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    #[cfg(test)]
    pub(super) fn is_over(&self) -> bool {
        is_over(&self.end, Duration::ZERO)
    }

    /// Kills it and everything that it has started; returns its status.
    pub(super) fn finish(&mut self) -> Option<ExitStatus> {
        kill_and_wait(&mut self.child.take()?)
    }
}

impl Drop for Process {
    /// Lets the process end by itself: it sees that its socket is closed, and ends its instance. A thread waits for that.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // An error means that it is closed already.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
        let Ok(end) = self.end.try_clone() else {
            kill_and_wait(&mut child);
            return;
        };
        let waiting = thread::Builder::new().name("plugin-end".to_owned()).spawn(move || {
            is_over(&end, LIFECYCLE_DEADLINE + END);
            kill_and_wait(&mut child);
        });
        if let Err(error) = waiting {
            tracing::warn!(%error, "no thread to wait for the end of a plugin's process, which ends by itself");
        }
    }
}

/// Its group first: until it is waited for, the id is nobody else's.
fn kill_and_wait(child: &mut Child) -> Option<ExitStatus> {
    // An error means that nobody is left.
    kill_process_group(Pid::from_child(child), Signal::KILL).ok();
    child.wait().ok()
}

/// Waits for an end for at most `limit`.
fn is_over(end: &OwnedFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).ok();
    let mut ends = [PollFd::new(end, PollFlags::IN)];
    matches!(poll(&mut ends, timeout.as_ref()), Ok(1..))
}

/// How a process has ended, in words.
fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => signal_name(signal),
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => status.to_string(),
    }
}

/// The time that a process has for an answer: its own, without what it waits for a processor.
struct Patience {
    limit: Duration,
    last: Instant,
    /// From the first look on: it comes after one [`LOOK`] at the latest, and most answers come before it.
    spent: Option<(Duration, Duration)>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, last: Instant::now(), spent: None }
    }

    /// Whether the time is up.
    fn look(&mut self, schedstat: Option<&File>) -> Result<(), Broken> {
        let elapsed = self.last.elapsed();
        if elapsed < LOOK.min(self.limit) {
            return Ok(());
        }
        self.last += elapsed;
        let waited = || {
            let mut buffer = [0; 64];
            let read = schedstat.and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
            waited_for_a_processor(buffer.get(..read).unwrap_or_default())
        };
        let (spent, waited_before) = match self.spent {
            None => (Duration::ZERO, waited()),
            Some((spent, waited_before)) => (spent + elapsed.min(MOST), waited_before),
        };
        self.spent = Some((spent, waited_before));
        if spent >= self.limit && spent.saturating_sub(waited().saturating_sub(waited_before)) >= self.limit {
            return Err(Broken::Late);
        }
        Ok(())
    }
}

//! Both ends of the process that a check runs in.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Report, Request, Step, check_here, system};

/// What a check may take. The longest part, the trial for leaks, keeps itself to a few seconds.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Argument of `plugins check` that makes the process the child of a check: all that it does is to call [`serve_child`].
pub const CHILD_FLAG: &str = "--as-child";

/// The child's own end, should its parent be gone: later than the parent would end it.
const OWN_TIME_LIMIT: Duration = Duration::from_secs(TIME_LIMIT.as_secs() + 10);

/// Most bytes that a child says: a report holds a description of at most 1 MiB, its quotes escaped, and words about it.
const MOST_SAID: u64 = 8 << 20;

/// Of standard error, the last bytes are shown: a panic or an assertion says there what happened.
const LAST_WORDS: usize = 1000;

/// How long what a process left in its pipes is waited for: it is there already when the process has ended, but the end of
/// a pipe does not come while another process, which the plugin left behind, holds it.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// A line of the child's.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begins(Step),
    Report(Box<Report>),
}

/// Why there is no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The child cannot be started or talked to.
    #[error("cannot run the check in a process of its own")]
    Start(#[from] io::Error),
    /// The plugin crashed it.
    #[error("it crashed with {signal} while the step \"{step}\" was taken{words}")]
    Crashed {
        /// Name of the signal.
        signal: String,
        /// The step that it was in.
        step: Step,
        /// The last of its standard error, or empty.
        words: String,
    },
    /// The plugin did not come back.
    #[error("it hung: after {limit:?} the step \"{step}\" was still being taken")]
    Hung {
        /// What it was given.
        limit: Duration,
        /// The step that it was in.
        step: Step,
    },
    /// The plugin ended it.
    #[error("it ended the process ({status}) while the step \"{step}\" was taken{words}")]
    Ended {
        /// In words.
        status: String,
        /// The step that it was in.
        step: Step,
        /// The last of its standard error, or empty.
        words: String,
    },
    /// The child is not what it should be.
    #[error("the check said what cannot be understood: {problem}")]
    Garbled {
        /// What.
        problem: String,
    },
}

/// Checks `file` in a process of its own: `program` is this engine's executable. Blocking, for at most [`TIME_LIMIT`].
///
/// # Errors
/// [`CheckError`] when the plugin left no report, most of all by a crash.
pub fn check_in_child(program: &Path, file: &Path, request: &Request) -> Result<Report, CheckError> {
    let mut command = Command::new(program);
    command.args(["plugins", "check", CHILD_FLAG]).arg(file);
    run(command, request, TIME_LIMIT)
}

/// Starts `command`, whose process calls [`serve_child`], and hears it out.
pub(super) fn run(mut command: Command, request: &Request, limit: Duration) -> Result<Report, CheckError> {
    let request = serde_json::to_vec(request).map_err(io::Error::from)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that processes that the plugin starts end with it.
    let mut child = command.process_group(0).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Threads, because each of the three may block for as long as a process that has inherited them lives.
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&request)));
    let (say, said) = mpsc::channel();
    let also_say = say.clone();
    thread::spawn(move || stdout.map(|stdout| read_lines(stdout, |line| say.send(Said::Line(line)).is_ok())));
    let (say, words) = mpsc::channel();
    thread::spawn(move || stderr.map(|stderr| say.send(last_words(stderr))));
    let group = Pid::from_child(&child);
    thread::spawn(move || also_say.send(Said::Exit(child.wait())));

    let (step, heard) = hear(&said, limit);
    // It has said everything, or has ended and may have left processes behind, or is to end. An error means that nobody is
    // left.
    kill_process_group(group, Signal::KILL).ok();
    let last_words = || words.recv_timeout(LEFTOVERS).unwrap_or_default();
    match heard {
        Heard::Report(report) => Ok(*report),
        Heard::Garbage(problem) => Err(CheckError::Garbled { problem }),
        Heard::Silence => Err(CheckError::Hung { limit, step }),
        Heard::Exit(status) => match status.signal() {
            Some(signal) => Err(CheckError::Crashed { signal: signal_name(signal), step, words: last_words() }),
            None => Err(CheckError::Ended { status: status_words(status), step, words: last_words() }),
        },
    }
}

/// What comes from the child.
enum Said {
    Line(io::Result<Line>),
    Exit(io::Result<ExitStatus>),
}

/// How the child's words ended.
enum Heard {
    Report(Box<Report>),
    Garbage(String),
    /// It still lives, and says nothing.
    Silence,
    Exit(ExitStatus),
}

/// Hears the child until its report or its end, for at most `limit`; also the last step that it began.
fn hear(said: &Receiver<Said>, limit: Duration) -> (Step, Heard) {
    let mut deadline = Instant::now() + limit;
    let (mut step, mut exit) = (Step::File, None);
    loop {
        let heard = match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Said::Line(Ok(Line::Begins(begins)))) => {
                step = begins;
                continue;
            }
            // What it said before may still be in the pipe.
            Ok(Said::Exit(Ok(status))) => {
                exit = Some(status);
                deadline = deadline.min(Instant::now() + LEFTOVERS);
                continue;
            }
            Ok(Said::Line(Ok(Line::Report(report)))) => Heard::Report(report),
            Ok(Said::Line(Err(error)) | Said::Exit(Err(error))) => Heard::Garbage(error.to_string()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => exit.map_or(Heard::Silence, Heard::Exit),
        };
        return (step, heard);
    }
}

/// Gives the lines of `stdout` to `say`, until one of them is not wanted any more. A line that is no JSON object is not
/// the check's: whatever is loaded into a process may greet before the check has standard output for itself.
fn read_lines(stdout: impl Read, say: impl Fn(io::Result<Line>) -> bool) {
    for line in BufReader::new(stdout.take(MOST_SAID)).lines() {
        if line.as_ref().is_ok_and(|line| !line.starts_with('{')) {
            continue;
        }
        let line = line.and_then(|line| serde_json::from_str(&line).map_err(io::Error::from));
        let last = line.is_err();
        if !say(line) || last {
            return;
        }
    }
}

/// The end of what a child wrote to standard error, ready to be put behind other words.
fn last_words(mut stderr: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let surplus = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; its last words: {text}") }
}

/// The child's side: reads a [`Request`] from standard input, checks `file`, and says on standard output what it does and
/// finds. Returns whether the plugin can be used.
///
/// # Errors
/// Standard input or output is not that of [`check_in_child`].
pub fn serve_child(file: &Path) -> io::Result<bool> {
    let request: Request = serde_json::from_reader(io::stdin().lock())?;
    let mut out = system::take_stdout()?;
    system::limit_self(OWN_TIME_LIMIT)?;
    let mut say = |line: &Line| {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        out.write_all(&text)
    };
    let mut said = Ok(());
    let report = check_here(file, &request, &mut |step| {
        if said.is_ok() {
            said = say(&Line::Begins(step));
        }
    });
    said?;
    let ok = report.ok;
    say(&Line::Report(Box::new(report)))?;
    Ok(ok)
}

fn status_words(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGSEGV => "SIGSEGV".to_owned(),
        libc::SIGBUS => "SIGBUS".to_owned(),
        libc::SIGILL => "SIGILL".to_owned(),
        libc::SIGFPE => "SIGFPE".to_owned(),
        libc::SIGABRT => "SIGABRT".to_owned(),
        libc::SIGKILL => "SIGKILL (by hand, or for want of memory)".to_owned(),
        other => format!("signal {other}"),
    }
}

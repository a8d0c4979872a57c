//! Processes that must end.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// Far above what any command takes: a test that hangs is to fail and to say where.
const LIMIT: Duration = Duration::from_mins(3);

/// Waiting for the end of a process, and of everything that it has started and that holds its output.
pub trait ToEnd {
    /// How it ended, and its output; fails when it does not end.
    fn to_end(self) -> Output;
}

impl ToEnd for &mut Command {
    fn to_end(self) -> Output {
        let what = format!("{self:?}");
        // A group of its own, so that whatever it starts goes with it.
        let child = self.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        output(child, &what)
    }
}

impl ToEnd for Child {
    fn to_end(self) -> Output {
        output(self, "a command that was begun before")
    }
}

fn output(mut child: Child, what: &str) -> Output {
    let (stdout, stderr) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
    let deadline = Instant::now() + LIMIT;
    let status = ends(&mut child, deadline);
    let texts = [stdout, stderr].map(|pipe| text(&pipe, deadline));
    match (status, texts) {
        (Some(status), [(stdout, true), (stderr, true)]) => Output { status, stdout, stderr },
        (status, texts) => {
            drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status());
            drop(child.kill());
            let texts = texts.map(|(text, _)| String::from_utf8_lossy(&text).into_owned());
            panic!(
                "not ended within {LIMIT:?} ({status:?}; its output may be held by what it started): {what}: {texts:?}"
            );
        }
    }
}

/// How `child` has ended, if it does in time.
fn ends(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        let status = child.try_wait().unwrap();
        if status.is_some() || Instant::now() >= deadline {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What comes out of `pipe`, in pieces.
fn read(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut piece = [0; 8192];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    pieces
}

/// What came out until the end, or until the time was over; and whether it was the end.
fn text(pieces: &Receiver<Vec<u8>>, deadline: Instant) -> (Vec<u8>, bool) {
    let mut text = Vec::new();
    loop {
        match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => text.extend(piece),
            Err(mpsc::RecvTimeoutError::Disconnected) => return (text, true),
            Err(mpsc::RecvTimeoutError::Timeout) => return (text, false),
        }
    }
}

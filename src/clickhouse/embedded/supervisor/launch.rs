//! One child process: starting it, hearing from it, ending it.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, ChildStdin, Command},
    sync::oneshot,
};
use uuid::Uuid;

use super::{
    super::handshake::{Message, NONCE_VARIABLE},
    SupervisorSettings, log, ping,
};

/// How long a start may take. Loading many parts after a crash takes long and cannot be told from hanging.
const STARTING: Duration = Duration::from_mins(5);

/// How long the new child may take to its first answer over HTTP after it said that it is ready.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// How long a child may take to end after it closed its output.
const ENDING: Duration = Duration::from_secs(10);

/// Why a child did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("it cannot be executed: {0}")]
    Spawn(#[source] io::Error),
    /// The child's own words.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Died(String),
}

/// A child that answered.
pub(super) struct Running {
    child: Child,
    /// The child exits when this closes. Nobody writes to it.
    _lifeline: Option<ChildStdin>,
    pub(super) port: u16,
    pub(super) nonce: String,
}

/// Starts a child and waits until it answers with the nonce of this start.
pub(super) async fn launch(settings: &SupervisorSettings, port: u16) -> Result<Running, LaunchError> {
    let nonce = Uuid::new_v4().simple().to_string();
    let mut command = Command::new(&settings.program);
    command.arg("clickhouse").arg("--watch-parent");
    command.arg("--path").arg(&settings.path);
    command.arg("--port").arg(port.to_string());
    if let Some(library) = &settings.library {
        command.arg("--library").arg(library);
    }
    command.env(NONCE_VARIABLE, &nonce);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A Ctrl-C at the terminal goes to the parent's group only: the child is told last, when the sink is done.
    command.process_group(0);
    command.kill_on_drop(true);
    let mut child = command.spawn().map_err(LaunchError::Spawn)?;

    let (heard, message) = oneshot::channel();
    if let Some(out) = child.stdout.take() {
        tokio::spawn(listen(out, Some(heard)));
    }
    if let Some(errors) = child.stderr.take() {
        tokio::spawn(listen(errors, None));
    }
    let lifeline = child.stdin.take();
    let mut running = Running { child, _lifeline: lifeline, port, nonce };
    // A dropped sender: standard output closed, so the child is ending.
    let Ok(message) = tokio::time::timeout(STARTING, message).await else {
        running.kill().await;
        return Err(LaunchError::Died(format!("not ready after {} s, killed", STARTING.as_secs())));
    };
    match message {
        Ok(Message::Ready { port, nonce }) if nonce == running.nonce => running.port = port,
        Ok(Message::Ready { .. }) => {
            running.kill().await;
            return Err(LaunchError::Died("it answered with another start's nonce".to_owned()));
        }
        Ok(Message::Failed { reason }) => {
            running.kill().await;
            return Err(LaunchError::Refused(reason));
        }
        Err(_) => {
            if let Ok(how) = tokio::time::timeout(ENDING, running.ended()).await {
                return Err(LaunchError::Died(how));
            }
            running.kill().await;
            return Err(LaunchError::Died("it closed its output and did not end, killed".to_owned()));
        }
    }
    let answered = tokio::select! {
        ended = running.child.wait() => return Err(LaunchError::Died(describe(ended))),
        answered = ping::ping(running.port, &running.nonce, FIRST_ANSWER) => answered,
    };
    if let Err(error) = answered {
        running.kill().await;
        return Err(LaunchError::Died(format!("port {}: {error}", running.port)));
    }
    Ok(running)
}

impl Running {
    /// The process id, until the child was waited for.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the end of the child and says how it ended.
    pub(super) async fn ended(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// Kills the child and reaps it.
    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "the embedded ClickHouse could not be killed");
        }
    }

    /// Asks the child to end, waits for at most `patience`, then kills it.
    pub(super) async fn end(mut self, patience: Duration) {
        let pid = self.pid().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            tracing::debug!(%error, "the embedded ClickHouse could not be signalled");
        }
        if let Ok(how) = tokio::time::timeout(patience, self.ended()).await {
            tracing::info!("{how}");
        } else {
            tracing::warn!(seconds = patience.as_secs(), "the embedded ClickHouse does not end and is killed");
            self.kill().await;
        }
    }
}

fn describe(ended: io::Result<std::process::ExitStatus>) -> String {
    match ended {
        Ok(status) => format!("the embedded ClickHouse ended ({status})"),
        Err(error) => format!("the embedded ClickHouse cannot be waited for: {error}"),
    }
}

/// Puts what the child prints into this process's log; the first line of the handshake goes to `heard`.
async fn listen(output: impl AsyncRead + Unpin, mut heard: Option<oneshot::Sender<Message>>) {
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if heard.is_some()
            && let Some(message) = Message::parse(line)
        {
            // A receiver that is gone has given up on this child.
            if heard.take().is_some_and(|heard| heard.send(message).is_err()) {
                tracing::debug!("a child that was given up has answered");
            }
        } else if !line.is_empty() {
            log::forward(line);
        }
    }
}

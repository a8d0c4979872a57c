//! A real broker: Tansu, which speaks Kafka's protocol and keeps everything in memory. `make test` puts it into the
//! user's cache folder.

use std::{
    env,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A running broker; it is killed when this is dropped.
///
/// Tansu 0.6.0 keeps a member as the leader of a group that is forming also when that member has left it, and then lets nobody in
/// for good. So nobody may leave a group in a clean stop before it has formed, which takes a few seconds: wait until its sink has
/// stored something.
pub struct Tansu {
    child: Child,
    listen: SocketAddr,
    advertise: SocketAddr,
}

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn binary() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache"), PathBuf::from);
    let binary = cache.join("ingestion-engine/tansu-0.6.0/tansu");
    assert!(binary.exists(), "{} is missing; `make test` fetches it", binary.display());
    binary
}

impl Tansu {
    /// Starts a broker on a free port.
    pub fn start() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self::start_on(listen, listen)
    }

    /// Starts a broker that tells its clients to come to `advertise`, which leads to `listen`.
    pub fn start_on(listen: SocketAddr, advertise: SocketAddr) -> Self {
        let child = Command::new(binary())
            .args(["broker", "--storage-engine", "memory://tansu/"])
            .args(["--listener-url", &format!("tcp://{listen}")])
            .args(["--advertised-listener-url", &format!("tcp://{advertise}")])
            // Its log would fill the pipe; its environment must not come from the test's.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
            .unwrap();
        let mut broker = Self { child, listen, advertise };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(listen).is_err() {
            assert!(broker.child.try_wait().unwrap().is_none(), "the broker ended at once");
            assert!(Instant::now() < deadline, "the broker does not listen on {listen}");
            thread::sleep(Duration::from_millis(20));
        }
        broker
    }

    /// `host:port` for clients.
    pub fn brokers(&self) -> String {
        self.advertise.to_string()
    }

    /// Stops it from running: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it with everything that it holds, and starts it again on the same port, empty.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Starts it again on the same port, empty, after it was killed.
    pub fn restart(&mut self) {
        *self = Self::start_on(self.listen, self.advertise);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it with everything that it holds.
    pub fn kill(&mut self) {
        // A process that is gone already is what is wanted.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

impl Drop for Tansu {
    fn drop(&mut self) {
        self.kill();
    }
}

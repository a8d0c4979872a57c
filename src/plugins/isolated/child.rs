//! The process's side: reads frames from its standard input, which is a socket, runs the plugin, and answers.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{self, ExitCode},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Resource, Rlimit, setrlimit},
    stdio,
};

use super::{
    frame::{self, Called, Change, HEAD, Kind, Malformed, Reader, Start, Writer},
    log,
};
use crate::{
    error_chain::chain,
    metrics::PluginMetrics,
    plugins::{
        call::Backend,
        host::{Host, Hosts},
        instance::{Instance, LIFECYCLE_DEADLINE, Limits},
        library::Library,
        threads::{Caller, Worker},
    },
};

/// Stack of the thread that waits for the engine's end: it calls nothing of the plugin's.
const STACK_BYTES: usize = 64 << 10;

/// The whole of `ingestion-engine plugins host LIBRARY`, which only the engine itself starts. Returns when the engine closes
/// the socket.
pub fn host_main(library: &Path) -> ExitCode {
    match serve(library) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "a plugin's process ends");
            ExitCode::FAILURE
        }
    }
}

/// A frame of the engine's that is none.
fn malformed(Malformed(problem): Malformed) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("a frame of the engine cannot be understood: {problem}"))
}

fn serve(library: &Path) -> io::Result<()> {
    let stream = take_stdin()?;
    let mut input = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let mut body = Vec::new();
    let Some(Kind::Start) = read(&mut input, &mut body)? else {
        return Err(io::Error::new(ErrorKind::InvalidData, "only the engine itself can start this"));
    };
    let start = Start::read(Reader::new(&body)).map_err(malformed)?;
    log::install(start.level);
    end_with(stream.try_clone()?)?;
    limit(start.memory)?;

    let host = Hosts::new(PluginMetrics::default()).of(start.plugin);
    let mut served = Served { stream, out: Writer::default(), host, counted: HashMap::new(), set: HashMap::new() };
    let worker = Worker::detached();
    let instance = match instance(&worker, library, &start, host) {
        Ok(instance) => instance,
        Err(words) => {
            return served.answer(|to, changes| {
                frame::begin_answer(to, Kind::Refused, changes).text(&words);
            });
        }
    };
    served.answer(|to, changes| {
        frame::begin_answer(to, Kind::Ready, changes);
    })?;
    // Most of what it held was for the start.
    body = Vec::new();
    while let Some(kind) = read(&mut input, &mut body)? {
        match kind {
            Kind::Call => {
                let called = Called::read(Reader::new(&body)).map_err(malformed)?;
                // The engine keeps the time.
                let outcome = instance.process(&worker, &called.call(), LIFECYCLE_DEADLINE);
                served.answer(|to, changes| frame::write_outcome(to, changes, &outcome))?;
            }
            Kind::Health => {
                let health = instance.health(&worker);
                served.answer(|to, changes| match &health {
                    Ok(()) => {
                        frame::begin_answer(to, Kind::Healthy, changes);
                    }
                    Err(words) => {
                        frame::begin_answer(to, Kind::Ill, changes).text(words);
                    }
                })?;
            }
            _ => return Err(malformed(Malformed("it is none that can come now"))),
        }
    }
    instance.retire(&worker).map_err(io::Error::other)
}

fn instance(worker: &Worker, library: &Path, start: &Start<'_>, host: Host) -> Result<Instance, String> {
    let library = Library::open(library).map_err(|error| chain(&error))?;
    let caller = Caller { plugin: start.plugin.into(), sha256: start.sha256.into() };
    let limits = Limits { event_bytes: start.event_bytes };
    Instance::create(worker, caller, &library, host, start.config, limits).map_err(|error| chain(&error))
}

/// The socket, for this code alone: a plugin that reads standard input finds it empty.
fn take_stdin() -> io::Result<UnixStream> {
    let socket = stdio::stdin().try_clone_to_owned()?;
    stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(socket))
}

/// Ends this process some time after the engine has let go of it, whatever the plugin does.
fn end_with(stream: UnixStream) -> io::Result<()> {
    let wait = move || {
        // Nothing is asked for but the end, which is always told.
        let mut ends = [PollFd::new(&stream, PollFlags::RDHUP)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut ends, None) {}
        // The main thread sees it too, and ends the instance in this time.
        thread::sleep(LIFECYCLE_DEADLINE);
        process::exit(1);
    };
    thread::Builder::new().name("engine-end".to_owned()).stack_size(STACK_BYTES).spawn(wait)?;
    Ok(())
}

/// Limits this process: `memory` beyond what it has now, and no core file.
fn limit(memory: u64) -> io::Result<()> {
    let exactly = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let own = pages.saturating_mul(rustix::param::page_size() as u64);
    setrlimit(Resource::As, exactly(own.saturating_add(memory)))?;
    setrlimit(Resource::Core, exactly(0))?;
    Ok(())
}

/// The next frame's kind, its body in `body`. None when the engine has closed the socket.
fn read(input: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    let mut head = [0; HEAD];
    match input.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, kind] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    body.resize(length.saturating_sub(1), 0);
    input.read_exact(body)?;
    Kind::of(kind).map(Some).map_err(malformed)
}

/// What answers need.
struct Served {
    stream: UnixStream,
    out: Writer,
    host: Host,
    /// Series as they were told last.
    counted: HashMap<Box<str>, u64>,
    set: HashMap<Box<str>, f64>,
}

impl Served {
    fn answer(&mut self, write: impl FnOnce(&mut Writer, &[(&str, Change)])) -> io::Result<()> {
        let (counters, gauges) = self.host.series();
        let mut changes = Vec::new();
        for (name, value) in &counters {
            let told = self.counted.insert(name.clone(), *value);
            let by = value.wrapping_sub(told.unwrap_or(0));
            if by > 0 || told.is_none() {
                changes.push((&**name, Change::Counted(by)));
            }
        }
        for (name, value) in &gauges {
            let told = self.set.insert(name.clone(), *value);
            if told.is_none_or(|told| told.to_bits() != value.to_bits()) {
                changes.push((&**name, Change::Set(*value)));
            }
        }
        write(&mut self.out, &changes);
        (&self.stream).write_all(self.out.finish())
    }
}

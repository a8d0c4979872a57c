//! What a run cost and what it gave: CPU time by process, and the report.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    client::{Outcome, Seen},
    verify::Verdict,
};

/// CPU time of a process, user and system.
#[derive(Clone, Debug)]
struct Process {
    name: String,
    parent: u32,
    cpu: Duration,
}

/// CPU time by process id.
#[derive(Clone, Debug, Default)]
pub struct Cpu(BTreeMap<u32, Process>);

impl Cpu {
    /// Looks at this process and, when given, at the engine and its children.
    pub fn now(engine: Option<u32>) -> Self {
        let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let processes = ids.filter_map(|id| Some((id, process(id)?)));
        let wanted = |(id, process): &(u32, Process)| {
            *id == std::process::id() || engine.is_some_and(|engine| *id == engine || process.parent == engine)
        };
        Self(processes.filter(wanted).collect())
    }

    /// CPU seconds since `before`, by what the process is. A process that came in between (a child that was started
    /// again) counts in full; what one used that has ended since is not known.
    pub fn since(&self, before: &Self, engine: Option<u32>) -> BTreeMap<String, f64> {
        let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
        for (id, process) in &self.0 {
            let earlier = before.0.get(id).map_or(Duration::ZERO, |process| process.cpu);
            let name = match *id {
                id if id == std::process::id() => "load generator".to_owned(),
                id if Some(id) == engine => "engine".to_owned(),
                _ => format!("child ({})", process.name),
            };
            *seconds.entry(name).or_default() += process.cpu.saturating_sub(earlier).as_secs_f64();
        }
        seconds
    }
}

/// CPU seconds of the process `id` until now, its children's not counted.
pub fn cpu_of(id: u32) -> Option<f64> {
    process(id).map(|process| process.cpu.as_secs_f64())
}

/// CPU seconds of the children of the process `id` that live.
pub fn children_cpu(id: u32) -> f64 {
    let Cpu(processes) = Cpu::now(Some(id));
    let children = processes.values().filter(|process| process.parent == id);
    children.map(|process| process.cpu.as_secs_f64()).sum()
}

/// CPU seconds of each thread of the process `id`, with its name, by its number: older ones first.
pub fn threads(id: u32) -> BTreeMap<u32, (String, f64)> {
    let entries = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let threads = numbers.filter_map(|number| {
        let thread = parse(&fs::read_to_string(format!("/proc/{id}/task/{number}/stat")).ok()?)?;
        Some((number, (thread.name, thread.cpu.as_secs_f64())))
    });
    threads.collect()
}

fn process(id: u32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Process> {
    // The name is in parentheses and may hold some itself.
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    // Counted from the state, the third field of proc_pid_stat(5).
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let millis = ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1);
    Some(Process { name, parent: u32::try_from(number(1)?).ok()?, cpu: Duration::from_millis(millis) })
}

/// Resident memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub now: f64,
    pub most: f64,
}

impl Memory {
    /// That of the process `id`.
    pub fn now(id: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let field = |name: &str| {
            let kib = status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
            Some(real(kib.parse().ok()?) / 1024.0)
        };
        Some(Self { now: field("VmRSS:")?, most: field("VmHWM:")? })
    }
}

/// Everything there is to say about a run.
pub struct Report {
    /// Events that were to be sent.
    pub asked: u64,
    pub seen: Seen,
    /// From the first request to the last 2xx.
    pub elapsed: Duration,
    pub bytes_per_event: f64,
    /// CPU seconds by process until the last answer, and until everything was stored.
    pub cpu: BTreeMap<String, f64>,
    pub cpu_drained: Option<BTreeMap<String, f64>>,
    /// The engine's memory before the first request and after the last look.
    pub memory: Option<(Memory, Memory)>,
    pub verdict: Option<Verdict>,
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
pub fn real(number: u64) -> f64 {
    number as f64
}

/// Three significant digits at least, thousands apart.
pub fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.1 || small == 0.0 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", apart(whole)),
        None => apart(&text),
    }
}

/// A whole number, thousands apart.
pub fn shown_whole(number: u64) -> String {
    apart(&number.to_string())
}

fn apart(digits: &str) -> String {
    let mut spaced = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digit.is_ascii_digit() && !spaced.ends_with('-') {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced
}

impl Report {
    fn acknowledged(&self) -> u64 {
        self.seen.events.iter().filter(|event| event.outcome == Outcome::Acknowledged).count() as u64
    }

    fn millis(&self, quantile: f64) -> f64 {
        real(self.seen.latency.value_at_quantile(quantile)) / 1000.0
    }

    /// The report for machines.
    pub fn json(&self) -> Value {
        let seconds = self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let events = self.acknowledged();
        let per_million = |cpu: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
            cpu.iter().map(|(name, seconds)| (name.clone(), seconds * 1e6 / real(events.max(1)))).collect()
        };
        json!({
            "events_asked": self.asked,
            "events_acknowledged": events,
            "events_unknown": self.seen.events.len() as u64 - events,
            "events_rejected": self.seen.rejected,
            "bytes_per_event": self.bytes_per_event,
            "seconds": seconds,
            "events_per_second": real(events) / seconds,
            "requests_per_second": real(self.seen.latency.len()) / seconds,
            "ack_ms": {
                "p50": self.millis(0.5),
                "p90": self.millis(0.9),
                "p99": self.millis(0.99),
                "max": real(self.seen.latency.max()) / 1000.0,
            },
            "statuses": self.seen.statuses,
            "samples": self.seen.samples,
            "retries": self.seen.retries,
            "requests_failed": self.seen.failed,
            "requests_unanswered": self.seen.unanswered,
            "connects_failed": self.seen.not_connected,
            "odd_answers": self.seen.odd_answers,
            "cpu_seconds_per_million": per_million(&self.cpu),
            "cpu_seconds_per_million_until_stored": self.cpu_drained.as_ref().map(per_million),
            "engine_mib": self.memory.map(|(before, after)| {
                json!({"before": before.now, "after": after.now, "most": after.most})
            }),
            "verification": self.verdict.as_ref().map(Verdict::json),
        })
    }

    /// The report for people.
    pub fn print(&self) {
        let seconds = self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let events = self.acknowledged();
        println!(
            "acknowledged   {events} events (of {}) of {:.0} bytes in {seconds:.2} s: {:.0} events/s, {:.0} requests/s",
            self.asked,
            self.bytes_per_event,
            real(events) / seconds,
            real(self.seen.latency.len()) / seconds
        );
        println!(
            "ack            p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            self.millis(0.5),
            self.millis(0.9),
            self.millis(0.99),
            real(self.seen.latency.max()) / 1000.0
        );
        println!(
            "requests       statuses {:?}, {} sent again, {} failed, {} unanswered, {} connects failed, {} odd answers",
            self.seen.statuses,
            self.seen.retries,
            self.seen.failed,
            self.seen.unanswered,
            self.seen.not_connected,
            self.seen.odd_answers
        );
        if !self.seen.rejected.is_empty() {
            println!("rejected       {:?}", self.seen.rejected);
        }
        for (status, sample) in &self.seen.samples {
            println!("a {status} said     {sample}");
        }
        let per_million = |used: f64| used * 1e6 / real(events.max(1));
        for (name, used) in self.cpu.iter().filter(|_| events > 0) {
            let stored = self.cpu_drained.as_ref().and_then(|cpu| cpu.get(name));
            let stored = stored.map_or(String::new(), |used| format!(", {:.2} s until stored", per_million(*used)));
            println!("cpu            {name}: {:.2} s a million events{stored}", per_million(*used));
        }
        if let Some((before, after)) = self.memory {
            println!(
                "memory         {:.0} MiB before, {:.0} MiB after, at most {:.0} MiB",
                before.now, after.now, after.most
            );
        }
        if let Some(verdict) = &self.verdict {
            verdict.print();
        }
    }
}

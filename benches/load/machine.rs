//! On what and of what the figures are.

use std::{fs, process::Command, thread};

use crate::stats::real;

/// Names and values, for the head of a table.
pub fn describe() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| format!("{cores}"));
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    vec![
        ("date", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        ("cores", cores),
        ("memory", format!("{:.1} GiB", real(memory) / f64::from(1 << 20))),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("revision", revision()),
    ]
}

/// Of the working copy from which this is started.
fn revision() -> String {
    let command = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = command.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() }
}

//! Threads that somebody waits for: those between a request and its answer.
//!
//! They work for some tens of microseconds at a time, beside threads that compute for as long as they may: the embedded
//! ClickHouse's, and the sink's. Linux lets whoever runs finish its slice (3 ms and more) before another gets the core, unless
//! that other one asks for a shorter slice ([EEVDF](https://docs.kernel.org/scheduler/sched-eevdf.html)). An answer crosses four
//! threads, and so waited for several slices. Asking for a short one takes nothing from anybody: how much a thread may
//! compute in all stays what it was.
#![allow(unsafe_code, reason = "a call of the system that nobody wraps")]

use std::fs;

/// The slice that they ask for, in nanoseconds.
#[cfg(target_os = "linux")]
const SLICE: u64 = 100_000;

/// Makes the calling thread, and those that it starts from now on, urgent. Kernels before 6.12 refuse or ignore it; then all
/// is as it was.
pub fn this_thread() {
    set(0);
}

/// Makes the threads of this process urgent whose name begins with `prefix`: those of a library.
pub fn threads_named(prefix: &str) {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let named = fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix));
        if named && let Some(id) = task.file_name().to_str().and_then(|id| id.parse().ok()) {
            set(id);
        }
    }
}

/// `struct sched_attr` of its first version (`sched_setattr(2)`).
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Of the thread `id`; 0 for the calling one.
#[cfg(target_os = "linux")]
fn set(id: i32) {
    let mut attributes = Attributes::default();
    let size = u32::try_from(size_of::<Attributes>()).unwrap_or_default();
    // SAFETY: the structure is the kernel's, of the size that is given, and lives until the call returns.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, id, &raw mut attributes, size, 0) };
    // Somebody may have given the process another policy, whose runtime means something else.
    let ordinary = attributes.policy == u32::try_from(libc::SCHED_OTHER).unwrap_or_default();
    attributes.size = size;
    attributes.runtime = SLICE;
    // SAFETY: as above; it is only read.
    let set =
        read == 0 && ordinary && unsafe { libc::syscall(libc::SYS_sched_setattr, id, &raw const attributes, 0) } == 0;
    if !set {
        tracing::debug!(thread = id, ordinary, "a thread cannot be given a short slice");
    }
}

#[cfg(not(target_os = "linux"))]
fn set(_: i32) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::undocumented_unsafe_blocks, clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn attributes() -> Attributes {
        let mut attributes = Attributes::default();
        let size = u32::try_from(size_of::<Attributes>()).unwrap();
        assert_eq!(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) }, 0);
        attributes
    }

    #[test]
    fn nothing_but_the_slice_changes_and_by_name_it_does_too() {
        let look = |urgent: fn()| {
            let thread = std::thread::Builder::new().name("urgent-test".into());
            let looked = thread.spawn(move || {
                let before = attributes();
                urgent();
                (before, attributes())
            });
            looked.unwrap().join().unwrap()
        };
        for (before, after) in [look(this_thread), look(|| threads_named("urgent-t"))] {
            assert_eq!((before.policy, before.nice, before.priority), (after.policy, after.nice, after.priority));
            // A kernel that does not know slices shows none.
            assert!(after.runtime == before.runtime || after.runtime == 100_000, "{}", after.runtime);
        }
        let (before, after) = look(|| threads_named("nobody"));
        assert_eq!(before.runtime, after.runtime);
    }
}

//! What the check asks of the operating system.

#![allow(unsafe_code, reason = "calls of the C library that nobody wraps")]

use std::{fs::File, io, os::fd::AsFd, time::Duration};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Address space of a check: far more than any plugin needs for its examples, and too little to take the machine's.
const ADDRESS_SPACE: u64 = 4 << 30;

/// Takes this process's standard output for the caller alone: whatever a plugin prints goes to standard error from now on.
pub(super) fn take_stdout() -> io::Result<File> {
    let own = io::stdout().as_fd().try_clone_to_owned()?;
    // SAFETY: both are open descriptors of this process, and dup2 touches nothing else.
    if unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(own))
}

/// Limits this process: memory, no core file, and an end by SIGALRM after `time`, for the case that its parent is gone.
pub(super) fn limit_self(time: Duration) -> io::Result<()> {
    let exactly = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::As, exactly(ADDRESS_SPACE))?;
    setrlimit(Resource::Core, exactly(0))?;
    let seconds = libc::c_uint::try_from(time.as_secs()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: sets a timer of this process; the alarm that it replaces does not matter.
    unsafe { libc::alarm(seconds) };
    Ok(())
}

/// Bytes that the C library's allocator has given out and not got back, in this process. A plugin has the same allocator
/// unless it brings one of its own.
#[cfg(target_env = "gnu")]
#[allow(clippy::unnecessary_wraps, reason = "other C libraries do not count")]
pub(super) fn bytes_in_use() -> Option<u64> {
    // SAFETY: reads counters under the allocator's own locks.
    let heap = unsafe { libc::mallinfo2() };
    Some(heap.uordblks as u64 + heap.hblkhd as u64)
}

/// Only glibc counts.
#[cfg(not(target_env = "gnu"))]
pub(super) fn bytes_in_use() -> Option<u64> {
    None
}

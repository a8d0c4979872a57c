//! When freed memory goes back to the system.
#![allow(unsafe_code, reason = "a call of the C library that nobody wraps")]

/// Pieces of so many bytes are the system's own. Smaller ones are kept for the next who asks.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 256 << 10;

/// Has large pieces of memory asked of the system one by one, and given back as soon as they are freed.
///
/// The GNU C library does so too, but by itself: it takes for large what is larger than any piece that was ever freed (up to
/// 32 MiB), and keeps the others, in an arena for each few threads. The columns of an insert have some MiB, live for a second,
/// and come from any thread: what was kept of them was a third of the engine's memory at full load (365 and 378 MiB, with this
/// 241 to 270), at the same cost of CPU.
///
/// To be called before there is a second thread. Does nothing with other C libraries.
pub fn give_back_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only sets a number of the allocator. It refuses a bound above 32 MiB, and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

//! Where memory comes from, and when it goes back to the system.
//!
//! ```text
//! below 256 KiB   mimalloc: an event's way is a hundred small pieces, on threads that give them to one another
//! from there on   the system's own: asked for one by one, and given back as soon as they are freed
//! ```
//!
//! Small pieces of the GNU C library cost a sixth of the CPU of accepting an event. Large ones are the columns of inserts, some
//! MiB that live for a second and are made and freed on any thread: both allocators keep what is freed for the next who asks,
//! in each thread's own place, and held a third of the engine's memory at full load with it.
#![allow(unsafe_code, reason = "an allocator, and a call of the C library that nobody wraps")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
};

use mimalloc::MiMalloc;

/// Pieces of so many bytes are the system's own.
const LARGE: usize = 256 << 10;

/// The allocator of the program: `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

fn is_large(size: usize) -> bool {
    size >= LARGE
}

// SAFETY: every piece is made, changed and freed by one of two allocators, and its size, which a caller must give as it is,
// says by which. What they promise is promised on.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { if is_large(layout.size()) { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { if is_large(layout.size()) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: a piece of this size came from this allocator.
        unsafe { if is_large(layout.size()) { System.dealloc(piece, layout) } else { MiMalloc.dealloc(piece, layout) } }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: a piece of this size came from this allocator, which goes on with it unless it comes to be the other's:
        // then it is copied, as far as both reach, and freed where it came from.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => System.realloc(piece, layout, size),
                (false, false) => MiMalloc.realloc(piece, layout, size),
                _ => {
                    let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(piece, moved, layout.size().min(size));
                        self.dealloc(piece, layout);
                    }
                    moved
                }
            }
        }
    }
}

/// mimalloc's `mi_option_purge_delay`, which the crate has no name for: milliseconds after which a page without pieces goes back.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// In milliseconds; mimalloc takes it times ten for what no thread has any more. As long as a few commits of the log, whose pieces
/// are those of the next.
const SOON: libc::c_long = 1;

/// Has both allocators give memory back soon after it is free.
///
/// mimalloc waits for a second: with 60 MiB in small pieces at most it held 173 (at 225,000 events a second, stored as fast). Without
/// any wait, pages go and come with every commit (single events, in turn: 43,100 a second, with this 45,200, with 100 ms 45,200; the
/// engine's peak end to end: 181, 179 and 205 MiB).
///
/// The GNU C library does so too, but by itself: it takes for large what is larger than any piece that was ever freed (up to
/// 32 MiB), and keeps the others, in an arena for each few threads (at full load 365 and 378 MiB, with this 241 to 270, at the
/// same cost of CPU).
///
/// To be called before there is a second thread. Large pieces of other C libraries are theirs.
pub fn give_back_early() {
    // SAFETY: it only sets a number.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, SOON) };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only sets a number of the allocator. It refuses a bound above 32 MiB, and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::try_from(LARGE).unwrap_or(libc::c_int::MAX));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::undocumented_unsafe_blocks, clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Options have no names but their numbers: this one is before one that has.
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        assert_eq!(PURGE_DELAY, libmimalloc_sys::mi_option_use_numa_nodes - 1);
        unsafe {
            let before = libmimalloc_sys::mi_option_get(PURGE_DELAY);
            // By itself it waits longer.
            assert!(before > SOON, "{before}");
            give_back_early();
            assert_eq!(libmimalloc_sys::mi_option_get(PURGE_DELAY), SOON);
            libmimalloc_sys::mi_option_set(PURGE_DELAY, before);
        }
    }

    /// Whatever a piece grows to and shrinks to, it keeps what is in it.
    #[test]
    fn a_piece_keeps_its_bytes_from_one_allocator_to_the_other() {
        for align in [1, 8, 64, 4096] {
            let layout = |size| Layout::from_size_align(size, align).unwrap();
            unsafe {
                let mut piece = Allocator.alloc_zeroed(layout(100));
                assert_eq!(std::slice::from_raw_parts(piece, 100), [0; 100]);
                std::slice::from_raw_parts_mut(piece, 100).fill(7);
                let mut size = 100;
                for next in [LARGE - 1, LARGE, 3 * LARGE, 1 << 24, LARGE + 5, LARGE - 1, 200, LARGE, 100] {
                    piece = Allocator.realloc(piece, layout(size), next);
                    assert!(piece.addr().is_multiple_of(align), "{align}, {size} to {next}");
                    assert_eq!(std::slice::from_raw_parts(piece, 100), [7; 100], "{align}, {size} to {next}");
                    size = next;
                }
                Allocator.dealloc(piece, layout(size));
                let piece = Allocator.alloc_zeroed(layout(2 * LARGE));
                assert!(std::slice::from_raw_parts(piece, 2 * LARGE).iter().all(|byte| *byte == 0));
                Allocator.dealloc(piece, layout(2 * LARGE));
            }
        }
    }
}

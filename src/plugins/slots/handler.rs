//! The signal handler, and a thread's place in its sight.
//!
//! The handler runs on the stack of its own that a thread has here, because a plugin may have used up the thread's. It does
//! only what is async-signal-safe: it reads a thread-local cell without constructor and destructor, asks the clock, stores
//! into mapped memory, and hands the signal on to whoever had it before: Rust's own handler, which tells of stack overflows,
//! or the default action. The process ends by the same signal as without it.

#![allow(unsafe_code, reason = "signal handlers are C")]

use std::{
    cell::Cell,
    io,
    marker::PhantomData,
    mem, ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering, compiler_fence},
    },
};

use libc::{c_int, c_void};
use memmap2::MmapMut;

use super::{Slots, layout::Slot};

/// What a crash can look like. SIGKILL cannot be caught, and is nobody's fault here.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Room for this handler, Rust's and the registers of wide vector units, which alone take 11 KB on some machines.
const STACK_BYTES: usize = 64 << 10;

thread_local! {
    /// This thread's slot, or null. Without destructor and made at compile time, so that the handler may read it.
    static SLOT: Cell<*const Slot> = const { Cell::new(ptr::null()) };
}

/// What was there before, in the order of [`SIGNALS`].
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// The process whose slots are marked: a plugin may have forked another one, whose end is its own affair.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Installs the handler for the whole process, once; further calls do nothing. Threads without a [`Seat`] see no difference.
///
/// # Errors
/// The system refused, which it does not do for these signals.
pub fn install_handlers() -> io::Result<()> {
    let mut previous = [const { mem::MaybeUninit::<libc::sigaction>::zeroed() }; SIGNALS.len()];
    for (signal, previous) in SIGNALS.iter().zip(&mut previous) {
        // SAFETY: No new action is given; the old one is written to memory of its size.
        check(unsafe { libc::sigaction(*signal, ptr::null(), previous.as_mut_ptr()) })?;
    }
    // SAFETY: All were written, and all zeros are an action too.
    let previous = previous.map(|previous| unsafe { previous.assume_init() });
    if PREVIOUS.set(previous).is_err() {
        return Ok(());
    }
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    for (signal, previous) in SIGNALS.iter().zip(&previous) {
        // Whoever wants a signal ignored goes on ignoring it.
        if previous.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
        let action = libc::sigaction {
            sa_sigaction: handler as libc::sighandler_t,
            sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
            ..*previous
        };
        // SAFETY: The action is complete, and its handler does only what a signal handler may do.
        check(unsafe { libc::sigaction(*signal, &raw const action, ptr::null_mut()) })?;
    }
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: The kernel gives a handler with SA_SIGINFO a valid siginfo.
    let code = unsafe { (*info).si_code };
    // By raise, abort, kill: not by what the thread was doing.
    let sent = code <= 0;
    // SAFETY: As above; a signal that was sent says by whom.
    let by_itself = !sent || u32::try_from(unsafe { (*info).si_pid() }) == Ok(std::process::id());
    let slot = SLOT.get();
    if by_itself && !slot.is_null() && PROCESS.load(Ordering::Relaxed) == std::process::id() {
        // SAFETY: The thread's Seat keeps the map, and takes the pointer away before it lets go.
        unsafe { &*slot }.mark(signal.unsigned_abs(), now_ms());
    }
    hand_on(signal, info, context, sent);
}

/// Gives the signal to whoever had it before.
fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, sent: bool) {
    let previous = PREVIOUS.get().and_then(|all| SIGNALS.iter().zip(all).find(|(of, _)| **of == signal));
    if let Some((_, previous)) = previous
        && previous.sa_sigaction != libc::SIG_DFL
    {
        if previous.sa_flags & libc::SA_SIGINFO == 0 {
            // SAFETY: Without SA_SIGINFO an action that is neither the default nor "ignore" is such a function.
            let handler: extern "C" fn(c_int) = unsafe { mem::transmute(previous.sa_sigaction) };
            handler(signal);
        } else {
            // SAFETY: With SA_SIGINFO it is such a function.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { mem::transmute(previous.sa_sigaction) };
            handler(signal, info, context);
        }
        // Rust's handler restores the default action and returns, so that the same instruction faults again. A signal that
        // was sent has no such instruction.
        if !sent || !is_default(signal) {
            return;
        }
    } else {
        // SAFETY: All zeros are the default action with an empty mask.
        let default: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: The action is complete. If it fails the same signal comes back here, to the same end.
        unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) };
    }
    if sent {
        // SAFETY: Blocked until this handler returns, then it takes the default action.
        unsafe { libc::raise(signal) };
    }
}

fn is_default(signal: c_int) -> bool {
    let mut action = mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: No new action is given; the old one is written to memory of its size, or it stays all zeros, which is one too.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_DFL
}

fn now_ms() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: Async-signal-safe, and writes to memory of its size.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// The calling thread's slot, and the stack that its signals are handled on. Given back when it is dropped.
pub struct Seat {
    slots: Arc<Slots>,
    index: usize,
    /// What the thread had before.
    previous: *const Slot,
    stack: Option<SignalStack>,
    /// Of one thread only.
    _not_send: PhantomData<*const ()>,
}

impl Seat {
    /// A free slot for the calling thread. None when there is none: crashes of that thread blame nobody then.
    pub fn take(slots: &Arc<Slots>) -> Option<Self> {
        let Some(index) = slots.free.lock().pop() else {
            tracing::warn!("no crash slot is free for another plugin thread: it goes unwatched");
            return None;
        };
        let stack = SignalStack::new()
            .inspect_err(|error| tracing::warn!(%error, "no signal stack: a stack overflow of a plugin goes unmarked"))
            .ok();
        let previous = SLOT.get();
        let seat = Self { slots: Arc::clone(slots), index, previous, stack, _not_send: PhantomData };
        SLOT.set(ptr::from_ref(seat.slot()?));
        Some(seat)
    }

    /// The thread enters the plugin whose entry has this number.
    pub(in super::super) fn enter(&self, entry: u32) {
        if let Some(slot) = self.slot() {
            slot.caller.store(entry, Ordering::Release);
            // The handler runs between two instructions of this thread: only the compiler must not move the store.
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// The thread has left it.
    pub(in super::super) fn leave(&self) {
        if let Some(slot) = self.slot() {
            compiler_fence(Ordering::SeqCst);
            slot.caller.store(0, Ordering::Release);
        }
    }

    fn slot(&self) -> Option<&Slot> {
        self.slots.map.layout().slot(self.index)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        SLOT.set(self.previous);
        self.stack = None;
        if let Some(slot) = self.slot() {
            slot.clear();
        }
        self.slots.free.lock().push(self.index);
    }
}

/// A stack for the calling thread's signal handlers.
struct SignalStack {
    previous: libc::stack_t,
    /// Unmapped after the previous one is in place again.
    _memory: MmapMut,
}

impl SignalStack {
    fn new() -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(STACK_BYTES)?;
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_BYTES };
        let mut previous = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: The memory is mapped until this value is dropped, and nothing else uses it.
        check(unsafe { libc::sigaltstack(&raw const stack, &raw mut previous) })?;
        Ok(Self { previous, _memory: memory })
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: The stack that Rust made for the thread lives until after its closure has ended; and this runs on no
        // signal stack. It cannot fail then.
        unsafe { libc::sigaltstack(&raw const self.previous, ptr::null_mut()) };
    }
}

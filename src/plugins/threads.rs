//! (skeleton, owned by the helper "runtime")
use std::{sync::Arc, time::Duration};

use super::call::Fault;

/// A job was given up because a plugin in it did not return in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Name of the plugin that was in call.
    pub plugin: Arc<str>,
    /// What it was given.
    pub limit: Duration,
}

/// The thread that a job runs on.
pub struct Worker {
    _private: (),
}

/// Who is named in the crash slot during a call.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Its file's sum, hexadecimal.
    pub sha256: Arc<str>,
}

impl Worker {
    /// This thread, with no slot and no watchdog: for a process that does nothing but enter one plugin, and for tests.
    pub fn detached() -> Self {
        Self { _private: () }
    }

    /// Runs `code`, which enters a plugin, under `deadline`, and names the plugin in this thread's crash slot meanwhile.
    ///
    /// # Errors
    /// [`Fault::Deadline`] when it took longer: the job was given up already, and this thread should end it at once.
    pub fn call<T>(&self, _caller: &Caller, _deadline: Duration, code: impl FnOnce() -> T) -> Result<T, Fault> {
        Ok(code())
    }
}

//! What must not hold up commits: closing databases and deleting files, on a thread of its own, in order.

use std::{
    fs, io,
    sync::{Arc, mpsc},
    thread,
};

use super::generation::Generation;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Housekeeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Housekeeper {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("wal-housekeeper".to_owned()).spawn(move || {
            for job in queue {
                job();
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues `job`; runs it here when the thread is gone.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        match &self.jobs {
            Some(jobs) => {
                if let Err(mpsc::SendError(job)) = jobs.send(job) {
                    job();
                }
            }
            None => job(),
        }
    }

    /// Waits until everything queued is done.
    pub(super) fn finish(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the write-ahead log's housekeeper panicked");
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Deletes a generation's files. What cannot be deleted now is at the next open.
pub(super) fn delete(generation: &Arc<Generation>) {
    generation.close();
    if let Err(error) = fs::remove_dir_all(&generation.dir) {
        tracing::warn!(%error, folder = %generation.dir.display(), "a finished generation was not removed");
    }
}

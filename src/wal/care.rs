//! Between commits: deletes what is done, saves the counts before, measures space, opens and shuts the gate, keeps the marks on disk.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    books,
    disk::{Limits, Reserve, Space, folder_bytes, human, judge},
    error::{AppendError, StateError},
    generation::Generation,
    housekeeper::delete,
    state, tally,
    writer::Writer,
};
use crate::{error_chain::chain, month::Month};

/// After so long without a commit, what would go with the next one is saved.
const IDLE_NOTES: Duration = Duration::from_secs(1);

impl Writer {
    /// Whether something waits that [`Writer::care`] would do.
    pub(super) fn work_waits(&self) -> bool {
        !self.unsealed.is_empty() || self.shared.done.load(Relaxed) > self.marks.done
    }

    pub(super) fn care(&mut self, now: Instant) {
        if !self.care_due(now) || self.shared.poison_reason().is_some() {
            return;
        }
        self.last_care = now;
        self.shared.reminded.store(false, Relaxed);
        self.since_care = 0;
        self.seal_rest();
        self.evict();
        if self.shared.done.load(Relaxed) > self.marks.done {
            self.forget_done();
        }
        let alive = self.revive();
        self.measure(alive);
        // While records are committed notes go with them.
        if now.duration_since(self.last_commit) >= IDLE_NOTES && self.shared.books.lock().has_notes() {
            self.books_are_saved();
        }
        if self.marks_due(now) {
            self.last_marks = now;
            if let Err(error) = self.meta.sync() {
                self.shared.poison(&format!("the marks cannot be synced: {error}"));
            }
        }
    }

    pub(super) fn seal_rest(&mut self) {
        self.unsealed.retain(|generation| generation.seal().is_err());
    }

    /// Deletes the generations that are done.
    fn forget_done(&mut self) {
        // What is being counted stays until it is.
        let done = self.shared.done_and_counted();
        self.marks.done = done;
        self.shared.tail.lock().forget_through(done);
        let active = self.active.as_ref().map(|(generation, _)| generation.ordinal);
        let may_go = |generation: &Arc<Generation>| Some(generation.ordinal) != active && generation.last() <= done;
        // Only this thread takes generations out.
        let last = self.shared.generations.read().iter().take_while(|generation| may_go(generation)).last().cloned();
        let counted = last.is_none_or(|last| self.tally_is_saved_through(last.last()) && self.books_are_saved());
        let gone: Vec<Arc<Generation>> = if counted {
            let mut generations = self.shared.generations.write();
            let keep = generations.iter().position(|generation| !may_go(generation)).unwrap_or(generations.len());
            generations.drain(..keep).collect()
        } else {
            Vec::new()
        };
        self.marks.oldest = self.shared.generations.read().front().map_or(self.ordinal, |oldest| oldest.ordinal);
        self.write_marks();
        if gone.is_empty() {
            return;
        }
        // A crash must not find the files gone and the mark of it not.
        if let Err(error) = self.meta.sync() {
            self.shared.poison(&format!("the marks cannot be synced: {error}"));
            return;
        }
        for generation in gone {
            self.housekeeper.run(move || delete(&generation));
        }
    }

    /// Has the ids of the generation `ordinal`, which ends, written to a file, before its records can go.
    pub(super) fn save_window(&self, ordinal: u64) {
        let Some(save) = self.shared.window.lock().save(ordinal) else { return };
        let metrics = Arc::clone(&self.shared.metrics);
        self.housekeeper.run(move || {
            if let Err(error) = save.run() {
                metrics.error("wal");
                tracing::error!(
                    %error,
                    "the dedup window is not saved: after a crash, resends of some events may be stored a second time"
                );
            }
        });
    }

    /// Lets ids go that are too old or too many, and the files that only they needed.
    fn evict(&self) {
        let mut window = self.shared.window.lock();
        window.evict();
        let files = window.garbage();
        self.shared.metrics.dedup_ids.set(i64::try_from(window.len()).unwrap_or(i64::MAX));
        self.shared.metrics.dedup_window.set(window.spans().as_secs_f64());
        drop(window);
        for file in files {
            self.housekeeper.run(move || {
                // There is none of a generation that never became full. What stays is removed at the next open.
                std::fs::remove_file(file).ok();
            });
        }
    }

    /// Saves the counts of events by month, as of the last commit; returns when they are on disk.
    pub(super) fn save_tally(&self) -> Result<(), StateError> {
        let now = Month::of(jiff::Timestamp::now().as_millisecond());
        let through = self.next - 1;
        let bytes = self.shared.tally.lock().encode(through, now);
        state::save(&self.shared.settings.dir, tally::NAME, &bytes)?;
        self.shared.tally.lock().saved(through);
        Ok(())
    }

    /// Saves the counts unless they are saved through `seq`; says whether they are now.
    pub(super) fn tally_is_saved_through(&self, seq: u64) -> bool {
        if self.shared.tally.lock().is_saved_through(seq) {
            return true;
        }
        match self.save_tally() {
            Ok(()) => true,
            Err(error) => {
                self.shared.metrics.error("wal");
                let error = chain(&error);
                tracing::error!(error, "the counts of events by month are not saved; the records behind them are kept");
                false
            }
        }
    }

    /// Saves the books unless they are saved; says whether they are now.
    pub(super) fn books_are_saved(&self) -> bool {
        let (bytes, changes) = {
            let mut books = self.shared.books.lock();
            if books.is_saved() && !books.has_notes() {
                return true;
            }
            books.encode()
        };
        match state::save(&self.shared.settings.dir, books::NAME, &bytes) {
            Ok(()) => {
                self.shared.books.lock().saved(changes);
                true
            }
            Err(error) => {
                self.shared.metrics.error("wal");
                let error = chain(&error);
                tracing::error!(
                    error,
                    "the books of the write-ahead log are not saved; the records behind them are kept"
                );
                false
            }
        }
    }

    /// Measures the disk and tells everybody what follows.
    pub(super) fn measure(&mut self, alive: bool) {
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let free = match shared.device.free_bytes(&settings.dir) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, "free disk space cannot be read");
                u64::MAX
            }
        };
        if let Err(error) = Reserve::of(&settings.dir).take(free, settings.min_free_bytes) {
            tracing::debug!(%error, "no space is kept for opening the log on a full disk");
        }
        let mut used = 0;
        for generation in shared.generations.read().iter() {
            // Sealed ones change no more.
            if !generation.sealed.load(Relaxed) || generation.bytes.load(Relaxed) == 0 {
                generation.bytes.store(folder_bytes(&generation.dir), Relaxed);
            }
            used += generation.bytes.load(Relaxed);
        }
        shared.disk_bytes.store(used, Relaxed);
        shared.free_bytes.store(free, Relaxed);
        let stats = shared.stats();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        shared.metrics.wal_records.set(gauge(stats.records));
        shared.metrics.wal_events.set(gauge(stats.events));
        shared.metrics.wal_disk.set(gauge(used));
        shared.metrics.wal_disk_free.set(gauge(free));
        if !alive {
            return;
        }
        let limits = Limits {
            quota: settings.max_disk_bytes,
            warn_ratio: settings.warn_disk_ratio,
            reserve: settings.min_free_bytes,
        };
        let space = judge(used, free, &limits);
        self.announce(space);
        // What is done already frees its space only with its generation.
        let finished = |(generation, _): &(Arc<Generation>, _)| {
            !generation.is_empty() && generation.last() <= shared.done.load(Relaxed)
        };
        if matches!(space, Space::Quota { .. } | Space::Reserve { .. }) && self.active.as_ref().is_some_and(finished) {
            self.retire();
            self.forget_done();
        }
    }

    fn announce(&self, space: Space) {
        let health = &self.shared.health;
        let lost = self.shared.notice.reason();
        let with_lost = |reason: String| match &lost {
            Some(lost) => format!("{reason}; {lost}"),
            None => reason,
        };
        let state = match space {
            Space::Ample => {
                match &lost {
                    Some(lost) => health.degraded(lost.as_str()),
                    None => health.up(),
                }
                Ok(())
            }
            Space::Near { used, quota } => {
                health.degraded(with_lost(format!("uses {} of the {} it may use", human(used), human(quota))));
                Ok(())
            }
            Space::Scarce { free, reserve } => {
                let (free, reserve) = (human(free), human(reserve));
                health.degraded(with_lost(format!("{free} are free on its disk, {reserve} must stay free")));
                Ok(())
            }
            Space::Quota { used, quota } => {
                let (used_text, quota_text) = (human(used), human(quota));
                health.down(with_lost(format!("refuses appends: it uses {used_text} of the {quota_text} it may use")));
                Err(AppendError::DiskQuota { used, quota })
            }
            Space::Reserve { free, reserve } => {
                let (free_text, reserve_text) = (human(free), human(reserve));
                let reason =
                    format!("refuses appends: {free_text} are free on its disk, {reserve_text} must stay free");
                health.down(with_lost(reason));
                Err(AppendError::DiskReserve { free, reserve })
            }
        };
        self.shared.set_gate(state);
    }
}

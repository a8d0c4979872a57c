//! Disk space: how much the log uses, how much is free, and what follows from it. And the seam through which tests
//! break the disk.

use std::{
    fs,
    fs::File,
    io,
    io::Read as _,
    path::{Path, PathBuf},
};

/// Where a test may make the disk fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Before a new generation's files are created.
    Create,
    /// Before a commit writes anything.
    Apply,
    /// When a commit is written and not yet flushed.
    Flush,
}

/// The calls to the system that decide durability.
pub(super) trait Device: Send + Sync + 'static {
    /// Fails on purpose in tests.
    fn fault(&self, _at: Point) -> io::Result<()> {
        Ok(())
    }

    /// Waits until the file's data is on disk.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Bytes that an unprivileged process may still use on `dir`'s file system.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The real system.
pub(super) struct System;

impl Device for System {}

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub quota: u64,
    pub warn_ratio: f64,
    pub reserve: u64,
}

/// What the log's space means for appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Ample,
    /// Accepting, and the quota is near.
    Near {
        used: u64,
        quota: u64,
    },
    /// Accepting, and the reserve is near.
    Scarce {
        free: u64,
        reserve: u64,
    },
    /// The quota is reached.
    Quota {
        used: u64,
        quota: u64,
    },
    /// The free-space reserve is reached.
    Reserve {
        free: u64,
        reserve: u64,
    },
}

/// Decides on `used` bytes in the log's folder and `free` bytes on its file system.
pub(super) fn judge(used: u64, free: u64, limits: &Limits) -> Space {
    let Limits { quota, warn_ratio, reserve } = *limits;
    #[expect(clippy::cast_precision_loss, reason = "a watermark is no exact number")]
    let near = used as f64 >= quota as f64 * warn_ratio;
    if free < reserve {
        Space::Reserve { free, reserve }
    } else if used >= quota {
        Space::Quota { used, quota }
    } else if near {
        Space::Near { used, quota }
    } else if free < reserve.saturating_mul(2) {
        Space::Scarce { free, reserve }
    } else {
        Space::Ample
    }
}

/// A file whose space is for opening databases on a full disk: the storage engine fills up the last segment of a database when
/// it opens it, and without that it does not open. A crash leaves one database in that state, and on a full disk perhaps the one
/// before it, which could not be sealed.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// That of the log in `dir`, whose databases have segments of at most 16 MiB.
    pub(super) fn of(dir: &Path) -> Self {
        Self { path: dir.join("reserve"), bytes: 32 << 20 }
    }

    /// Takes the space, unless it is taken already. `free` bytes are there, of which `others` are for others.
    pub(super) fn take(&self, free: u64, others: u64) -> io::Result<()> {
        let taken = fs::metadata(&self.path).is_ok_and(|file| file.len() >= self.bytes);
        if taken || free < others.saturating_add(self.bytes.saturating_mul(2)) {
            return Ok(());
        }
        let file = File::create(&self.path)?;
        let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes);
        match taken.map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                io::copy(&mut io::repeat(0).take(self.bytes), &mut &file).map(drop)
            }
            result => result,
        }
        .inspect_err(|_| {
            self.give_up();
        })
    }

    /// Gives the space back; false when there was none.
    pub(super) fn give_up(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

/// Sizes of all files below `folder`; what vanishes meanwhile counts nothing.
pub(super) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Bytes as an operator reads them.
pub(super) fn human(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "rounded for reading")]
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.0} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_judged_by_the_worst_limit() {
        let limits = Limits { quota: 1000, warn_ratio: 0.8, reserve: 100 };
        for (used, free, expected) in [
            (0, 10_000, Space::Ample),
            (799, 10_000, Space::Ample),
            (800, 10_000, Space::Near { used: 800, quota: 1000 }),
            (999, 200, Space::Near { used: 999, quota: 1000 }),
            (1000, 10_000, Space::Quota { used: 1000, quota: 1000 }),
            (0, 199, Space::Scarce { free: 199, reserve: 100 }),
            (0, 100, Space::Scarce { free: 100, reserve: 100 }),
            (0, 99, Space::Reserve { free: 99, reserve: 100 }),
            (2000, 99, Space::Reserve { free: 99, reserve: 100 }),
        ] {
            assert_eq!(judge(used, free, &limits), expected, "used {used} free {free}");
        }
    }
}

//! kill -9 of the engine at a named point of its log, and what the log was doing at any other kill: see
//! `tests/kill_points/shim.c`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{engine::Setup, power::compile};

/// Where the engine kills itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The records of a commit are encoded; nothing of them is written.
    BeforeAppend = 1,
    /// Half of the bytes are written.
    HalfAppend,
    /// All is written; fdatasync has not begun.
    BeforeFlush,
    /// fdatasync is through; nobody has been answered.
    AfterFlush,
}

/// The stages that an event passes. A fault hits one when a call of that stage is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Append,
    Flush,
    Produce,
    Insert,
    Commit,
}

/// The shim, and what it shares with the engine.
pub struct KillPoints {
    shim: PathBuf,
    state: PathBuf,
    wal: PathBuf,
}

impl KillPoints {
    /// For an engine whose files are in `home`.
    pub fn new(home: &Path) -> Self {
        let home = fs::canonicalize(home).unwrap();
        let points =
            Self { shim: home.join("kill_points.so"), state: home.join("kill_points"), wal: home.join("data/wal") };
        compile("tests/kill_points/shim.c", &points.shim);
        fs::write(&points.state, [0; 12]).unwrap();
        points
    }

    /// `setup` with the shim in its engine.
    pub fn over(&self, setup: Setup) -> Setup {
        let text = |path: &Path| path.display().to_string();
        setup
            .env("LD_PRELOAD", text(&self.shim))
            .env("KILL_POINTS_STATE", text(&self.state))
            .env("KILL_POINTS_WAL", text(&self.wal))
    }

    /// The engine kills itself the next time that it is at `point`.
    pub fn arm(&self, point: Point) {
        self.set(0, point as u32);
    }

    /// It does not any more.
    pub fn disarm(&self) {
        self.set(0, 0);
    }

    /// What the log of an engine that is dead was doing when it died.
    pub fn stages(&self) -> Vec<Stage> {
        [(1, Stage::Append), (2, Stage::Flush)]
            .into_iter()
            .filter(|(at, _)| self.get(*at) > 0)
            .map(|(_, stage)| stage)
            .collect()
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.state).unwrap()
    }

    fn get(&self, index: u64) -> u32 {
        let mut bytes = [0; 4];
        self.file().read_exact_at(&mut bytes, index * 4).unwrap();
        u32::from_ne_bytes(bytes)
    }

    fn set(&self, index: u64, value: u32) {
        self.file().write_all_at(&value.to_ne_bytes(), index * 4).unwrap();
    }
}

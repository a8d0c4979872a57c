//! The mapping of the file.

#![allow(unsafe_code, reason = "a mapped file as a struct of atomics")]

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::Path,
};

use memmap2::{MmapOptions, MmapRaw};

use super::layout::{Layout, SIZE};

/// The file, mapped shared: what is written to it is there after the process has crashed.
pub(super) struct Map {
    map: MmapRaw,
}

impl Map {
    /// Maps `path`, which has the size of a [`Layout`] and is nobody else's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let map = MmapOptions::new().map_raw(&file)?;
        if map.len() != SIZE {
            return Err(io::Error::new(ErrorKind::InvalidData, "crash slots of a wrong size"));
        }
        Ok(Self { map })
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a map begins on a page")]
    pub(super) fn layout(&self) -> &Layout {
        // SAFETY: The map is as long as a Layout, begins on a page and so is aligned for it, and lives as long as `self`.
        // A Layout is made of atomic integers: every bit pattern is one, and they may change while they are shared.
        unsafe { &*self.map.as_ptr().cast::<Layout>() }
    }
}

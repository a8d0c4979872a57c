//! Small named values beside the records, each in a file of its own: durable before a save returns, and never half
//! written (temporary file, fsync, rename, fsync of the folder).

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::error::StateError;

const MAGIC: &[u8; 4] = b"IWS1";

pub(super) fn path(dir: &Path, name: &str) -> Result<PathBuf, StateError> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { Ok(dir.join("state").join(name)) } else { Err(StateError::Name { name: name.to_owned() }) }
}

pub(super) fn save(dir: &Path, name: &str, value: &[u8]) -> Result<(), StateError> {
    let path = path(dir, name)?;
    let failed = |action| move |source| StateError::Io { name: name.to_owned(), action, source };
    let folder = dir.join("state");
    if !folder.exists() {
        fs::create_dir_all(&folder).and_then(|()| sync_folder(dir)).map_err(failed("create its folder"))?;
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(value).to_le_bytes());
    bytes.extend_from_slice(value);
    write_atomically(&path, &bytes).map_err(failed("write"))
}

pub(super) fn load(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, StateError> {
    let path = path(dir, name)?;
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { name: name.to_owned(), action: "read", source }),
    };
    let value = bytes
        .split_first_chunk::<4>()
        .filter(|(magic, _)| *magic == MAGIC)
        .and_then(|(_, rest)| rest.split_first_chunk::<4>())
        .filter(|(checksum, value)| u32::from_le_bytes(**checksum) == crc32c::crc32c(value))
        .map(|(_, value)| value.to_vec());
    value.map(Some).ok_or_else(|| StateError::Damaged { name: name.to_owned() })
}

/// Replaces the file at `path`: after a crash it has the old bytes or the new ones.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes created, renamed and removed names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

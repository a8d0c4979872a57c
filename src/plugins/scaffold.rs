//! `plugins new`: a plugin's crate that builds, with a test.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why no crate was made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScaffoldError {
    /// There is nothing to make it from.
    #[error("this build has no template for the plugin {name:?}; copy one of the samples in plugins/ instead")]
    NoTemplate {
        /// The name that was given.
        name: String,
    },
}

/// Makes the crate of a plugin `name` in a folder of that name in `parent`. Returns the folder.
///
/// # Errors
/// [`ScaffoldError`]
pub fn create(name: &str, _parent: &Path) -> Result<PathBuf, ScaffoldError> {
    Err(ScaffoldError::NoTemplate { name: name.to_owned() })
}

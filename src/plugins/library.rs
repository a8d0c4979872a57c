//! A shared library: looked at as a file, opened, its header checked before anything else is touched.
//!
//! ```text
//! file --image: ELF, this machine, whole, exports the symbol, header--> dlopen --> header again --> functions
//! ```
//!
//! - Opening runs the library's constructors, so everything that can be seen in the file is seen before.
//! - The path must be that of a private copy: a library whose file is changed while it is mapped crashes the process.
//! - A library is never unloaded. Threads that a plugin started, and destructors that it registered for thread exit, would
//!   run code that is no longer there. A plugin that was replaced a hundred times costs a hundred mappings.

#![allow(unsafe_code, reason = "opens foreign code and reads what it exports")]

mod image;
mod lent;

use std::{
    ffi::c_void,
    io,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
};

use ingestion_plugin_abi::{ABI_MAJOR, Batch, Bytes, Failure, Header, Host, MAGIC, PLUGIN_SIZE_1_0, Plugin, SYMBOL};
use ingestion_plugin_abi::{Status, Verdict};
use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};
use thiserror::Error;

pub(super) use lent::{Unreadable, lent};

/// Why a library cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else than a library.
    #[error("the file is no shared library (it does not begin as ELF does): copy the .so that the build made")]
    NotElf,
    /// A copy that was interrupted or is still under way.
    #[error(
        "the file is cut off: it has {bytes} bytes and names {expected}; copy it to another name in the same folder and \
         rename it when it is whole"
    )]
    CutOff {
        /// The file's length.
        bytes: u64,
        /// The length that its own headers call for.
        expected: u64,
    },
    /// Compiled for something else than this machine.
    #[error("the library is for another machine: {problem}; build it for the machine that the engine runs on")]
    OtherMachine {
        /// What differs.
        problem: String,
    },
    /// An ELF file, but a program or an object file.
    #[error(
        "the file is a program or an object file, not a shared library: link it with -shared (Rust: crate-type \"cdylib\")"
    )]
    NotShared,
    /// ELF whose tables make no sense.
    #[error("the file is damaged: {problem}; build or copy it again")]
    Damaged {
        /// What makes no sense.
        problem: String,
    },
    /// A library, but no plugin.
    #[error(
        "the library exports no \"{SYMBOL}\", so it is no plugin: export one (Rust: the SDK's macro), and do not strip it"
    )]
    NoSymbol,
    /// The name is taken by a function.
    #[error("\"{SYMBOL}\" is not a constant: export a struct of that name, not a function")]
    NotData,
    /// Less than a header.
    #[error("\"{SYMBOL}\" has {bytes} bytes, less than a header: it is another struct")]
    SymbolTooSmall {
        /// The symbol's size.
        bytes: u64,
    },
    /// The system's loader refused it.
    #[error("the system cannot load it: {words}")]
    NotLoaded {
        /// In the loader's words; a missing dependency is named there.
        words: String,
    },
    /// Not our struct.
    #[error("the header's magic is {found:#018x} and not {MAGIC:#018x}: \"{SYMBOL}\" is another struct")]
    WrongMagic {
        /// What stands there.
        found: u64,
    },
    /// Another major version.
    #[error(
        "it was built for version {found} of the plugin contract, and this engine speaks version {ABI_MAJOR}: {mend}"
    )]
    OtherMajor {
        /// The plugin's.
        found: u32,
        /// What to do.
        mend: &'static str,
    },
    /// Smaller than the contract's first version.
    #[error(
        "the header says that the struct has {found} bytes, less than the {PLUGIN_SIZE_1_0} of version 1.0: set struct_size to its size"
    )]
    TooSmall {
        /// What the header says.
        found: u64,
    },
    /// The header promises more than the library holds.
    #[error(
        "the header says that the struct has {says} bytes, but the library holds {holds}: set struct_size to its size"
    )]
    SizeMismatch {
        /// What the header says.
        says: u64,
        /// Size of the exported symbol.
        holds: u64,
    },
    /// A function that every plugin has is not there.
    #[error("its function `{name}` is null: every plugin needs it")]
    NullFunction {
        /// The field.
        name: &'static str,
    },
}

/// What a plugin exports, with every pointer known to be there.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    pub describe: unsafe extern "C" fn() -> Bytes,
    pub create: unsafe extern "C" fn(*const Host, Bytes, *mut Failure) -> *mut c_void,
    pub process: unsafe extern "C" fn(*mut c_void, *const Batch, *mut Verdict, *mut Failure) -> Status,
    pub release: unsafe extern "C" fn(*mut c_void, *mut Verdict, u64),
    pub destroy: unsafe extern "C" fn(*mut c_void),
    pub health: Option<unsafe extern "C" fn(*mut c_void, *mut Failure) -> Status>,
}

/// An opened library. It stays loaded when this is dropped.
#[derive(Clone)]
pub struct Library {
    path: PathBuf,
    header: Header,
    pub(super) functions: Functions,
}

impl Library {
    /// Opens the library at `path`, a private copy that nobody changes any more. Runs its constructors. Blocking.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        let image = image::look(path)?;
        judge(&image.header, image.symbol_size)?;
        let read = |source: io::Error| LibraryError::Read { path: path.to_owned(), source };
        // A name without a slash would be looked for in the system's folders.
        let path = std::path::absolute(path).map_err(read)?;
        let not_loaded = |error: libloading::Error| LibraryError::NotLoaded { words: words(&error) };
        // SAFETY: the constructors of a foreign library run. That they are sound is what whoever installed it answers for;
        // what could be checked of the file was checked. RTLD_LOCAL keeps its symbols from being taken for ours.
        let library = unsafe { unix::Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(not_loaded)?;
        // Never unloaded, also when it is refused below: its constructors may have left threads or destructors behind.
        let library = ManuallyDrop::new(library);
        // SAFETY: the symbol is read as an address only.
        let symbol = unsafe { library.get::<*const Plugin>(SYMBOL) };
        let plugin = symbol.map_err(not_loaded)?.as_raw_ptr().cast::<Plugin>().cast_const();
        if plugin.is_null() {
            return Err(LibraryError::NoSymbol);
        }
        // SAFETY: the symbol is an object of at least a header's size in a loaded library, which stays for good. It need
        // not be aligned, hence the copy.
        let header = unsafe { (&raw const (*plugin).header).read_unaligned() };
        judge(&header, image.symbol_size)?;
        // SAFETY: the header says, and the symbol's size agrees, that the struct is at least PLUGIN_SIZE_1_0 bytes long.
        let functions = unsafe { functions(plugin, &header) }?;
        Ok(Self { path, header, functions })
    }

    /// Minor version of the contract that the plugin was compiled with; may be newer than the engine's.
    pub fn abi_minor(&self) -> u32 {
        self.header.abi_minor
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("path", &self.path).field("header", &self.header).finish_non_exhaustive()
    }
}

/// The header, field by field, before anything behind it is read.
fn judge(header: &Header, symbol_size: u64) -> Result<(), LibraryError> {
    if header.magic != MAGIC {
        return Err(LibraryError::WrongMagic { found: header.magic });
    }
    if header.abi_major != ABI_MAJOR {
        let mend = if header.abi_major > ABI_MAJOR {
            "use a newer engine, or build it with an older SDK"
        } else {
            "build it with a newer SDK"
        };
        return Err(LibraryError::OtherMajor { found: header.abi_major, mend });
    }
    if header.struct_size < PLUGIN_SIZE_1_0 {
        return Err(LibraryError::TooSmall { found: header.struct_size });
    }
    if header.struct_size > symbol_size {
        return Err(LibraryError::SizeMismatch { says: header.struct_size, holds: symbol_size });
    }
    Ok(())
}

macro_rules! function {
    ($plugin:expr, $field:ident) => {{
        // A null would not be a valid `fn`: it is looked at as a number first.
        let field = &raw const (*$plugin).$field;
        if field.cast::<usize>().read_unaligned() == 0 {
            return Err(LibraryError::NullFunction { name: stringify!($field) });
        }
        field.read_unaligned()
    }};
}

/// # Safety
/// `plugin` points to `header.struct_size` readable bytes, at least [`PLUGIN_SIZE_1_0`], that begin with `header`.
unsafe fn functions(plugin: *const Plugin, header: &Header) -> Result<Functions, LibraryError> {
    let health_end = std::mem::offset_of!(Plugin, health) + size_of::<usize>();
    // SAFETY: the caller's promise; `health` is read only if the plugin says that it has it.
    unsafe {
        Ok(Functions {
            describe: function!(plugin, describe),
            create: function!(plugin, create),
            process: function!(plugin, process),
            release: function!(plugin, release),
            destroy: function!(plugin, destroy),
            health: if header.abi_minor >= 1 && header.struct_size >= health_end as u64 {
                (&raw const (*plugin).health).read_unaligned()
            } else {
                None
            },
        })
    }
}

/// The loader's own words, without libloading's "dlopen failed".
fn words(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
pub(super) mod fixture;
#[cfg(test)]
mod tests;

//! Bytes that a plugin lends, judged before they are read.

use std::slice;

use ingestion_plugin_abi::Bytes;
use thiserror::Error;

/// No process has anything in its first page: an address there is a small number that was taken for a pointer.
const FIRST_PAGE: usize = 4096;

/// Why lent bytes are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(in crate::plugins) enum Unreadable {
    /// A length without an address.
    #[error("{len} bytes at a null address")]
    Null { len: u64 },
    /// A length that is garbage, or output without end.
    #[error("{len} bytes, more than the {most} allowed")]
    TooLong { len: u64, most: usize },
    /// An address that is garbage.
    #[error("{len} bytes at {address:#x}, where no memory is")]
    NoMemory { len: u64, address: usize },
}

/// The bytes that `lent` names, if they may be read: at most `most` of them, at an address that can be one.
///
/// # Safety
/// `lent` comes from a plugin that keeps the contract in this: a length within the limit, at an address that can be one,
/// is the length of what lies there, and stays so for `'a`. This cannot be checked; a plugin that breaks it can crash
/// the process, here as anywhere else in its code.
pub(in crate::plugins) unsafe fn lent<'a>(lent: Bytes, most: usize) -> Result<&'a [u8], Unreadable> {
    let len = lent.len;
    if len == 0 {
        return Ok(&[]);
    }
    if lent.data.is_null() {
        return Err(Unreadable::Null { len });
    }
    let Some(length) = usize::try_from(len).ok().filter(|length| *length <= most) else {
        return Err(Unreadable::TooLong { len, most });
    };
    let address = lent.data.addr();
    if address < FIRST_PAGE || address.checked_add(length).is_none_or(|end| isize::try_from(end).is_err()) {
        return Err(Unreadable::NoMemory { len, address });
    }
    // SAFETY: not null, no longer than the caller allows, within the address space; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(lent.data, length) })
}

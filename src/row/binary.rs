//! ClickHouse's `RowBinary` encoding of the column types that a row has.
//!
//! Source: <https://clickhouse.com/docs/interfaces/formats/RowBinary>. Integers are little-endian, a string is its
//! length as LEB128 and its bytes, a UUID is two little-endian `u64`, the high one first, a `Nullable` is one byte
//! (1 = null) and the value, `DateTime64(3)` is milliseconds as `i64`. `LowCardinality(String)` is a plain string.

use std::{borrow::Cow, ops::Deref};

use thiserror::Error;
use uuid::Uuid;

use super::native::Layout;
use crate::ids::{EventId, TenantId, WalId};

/// Bytes that are not a row.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinaryError {
    /// The row was written by a version that this one does not know.
    #[error("row layout {layout} is unknown to this version")]
    UnknownLayout {
        /// The layout byte found.
        layout: u8,
    },
    /// The bytes end inside of a column.
    #[error("row ends inside column {column}")]
    Truncated {
        /// The column.
        column: &'static str,
    },
    /// A column's bytes are not a value of its type.
    #[error("column {column} does not hold a valid value")]
    InvalidValue {
        /// The column.
        column: &'static str,
    },
    /// More bytes than columns.
    #[error("{count} bytes follow the last column")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

/// Text of a column: borrowed from the request or the log where possible. Empty means absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

/// A JSON object as text, without line breaks outside of strings; empty means absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Json<'a>(pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl Deref for Json<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Json<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// A value of a column, in both of its encodings.
pub(super) trait ColumnValue<'a>: Sized {
    /// How a column of such values is laid out in ClickHouse.
    const LAYOUT: Layout;
    fn write_binary(&self, out: &mut Vec<u8>);
    fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError>;
}

pub(super) fn take<'a>(input: &mut &'a [u8], count: usize, column: &'static str) -> Result<&'a [u8], BinaryError> {
    let (head, tail) = input.split_at_checked(count).ok_or(BinaryError::Truncated { column })?;
    *input = tail;
    Ok(head)
}

/// Appends a `UUID`: its halves, the low byte of each first.
pub fn write_uuid_binary(id: Uuid, out: &mut Vec<u8>) {
    id.write_binary(out);
}

/// Appends a `String`, which ClickHouse takes for bytes of any kind.
pub fn write_bytes_binary(bytes: &[u8], out: &mut Vec<u8>) {
    write_length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends a number as LEB128: seven bits a byte, the lowest first, the high bit set on all but the last.
pub(super) fn write_length(mut length: usize, out: &mut Vec<u8>) {
    while length >= 0x80 {
        out.push(low_byte(length) | 0x80);
        length >>= 7;
    }
    out.push(low_byte(length));
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    write_bytes_binary(text.as_bytes(), out);
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the seven bits that LEB128 puts into a byte")]
fn low_byte(value: usize) -> u8 {
    (value & 0x7f) as u8
}

fn read_string<'a>(input: &mut &'a [u8], column: &'static str) -> Result<&'a str, BinaryError> {
    std::str::from_utf8(take_string(input, column)?).map_err(|_| BinaryError::InvalidValue { column })
}

/// The bytes of a `String`.
pub(super) fn take_string<'a>(input: &mut &'a [u8], column: &'static str) -> Result<&'a [u8], BinaryError> {
    let mut length = 0_usize;
    for shift in (0..35).step_by(7) {
        let byte = take(input, 1, column)?.first().copied().unwrap_or_default();
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return take(input, length, column);
        }
    }
    Err(BinaryError::InvalidValue { column })
}

impl<'a> ColumnValue<'a> for Text<'a> {
    const LAYOUT: Layout = Layout::Text;

    fn write_binary(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }

    fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
        read_string(input, column).map(Text::from)
    }
}

impl<'a> ColumnValue<'a> for Json<'a> {
    const LAYOUT: Layout = Layout::Text;

    fn write_binary(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }

    fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
        read_string(input, column).map(Json::from)
    }
}

impl<'a> ColumnValue<'a> for Uuid {
    const LAYOUT: Layout = Layout::Fixed("UUID", 16);

    fn write_binary(&self, out: &mut Vec<u8>) {
        let (high, low) = self.as_u64_pair();
        out.extend_from_slice(&high.to_le_bytes());
        out.extend_from_slice(&low.to_le_bytes());
    }

    fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
        let high = u64::read_binary(input, column)?;
        let low = u64::read_binary(input, column)?;
        Ok(Uuid::from_u64_pair(high, low))
    }
}

macro_rules! id_column {
    ($($id:ident)+) => {$(
        impl<'a> ColumnValue<'a> for $id {
            const LAYOUT: Layout = Uuid::LAYOUT;

            fn write_binary(&self, out: &mut Vec<u8>) {
                self.0.write_binary(out);
            }

            fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
                Uuid::read_binary(input, column).map($id)
            }
        }
    )+};
}

id_column!(TenantId EventId WalId);

macro_rules! number_column {
    ($($number:ident $type:literal)+) => {$(
        impl<'a> ColumnValue<'a> for $number {
            const LAYOUT: Layout = Layout::Fixed($type, size_of::<$number>());

            fn write_binary(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
                let bytes = take(input, size_of::<$number>(), column)?;
                bytes.try_into().map($number::from_le_bytes).map_err(|_| BinaryError::Truncated { column })
            }
        }
    )+};
}

// Whatever is signed is a moment.
number_column!(u32 "UInt32" u64 "UInt64" i64 "DateTime64(3, 'UTC')" f64 "Float64");

impl<'a> ColumnValue<'a> for Option<f64> {
    const LAYOUT: Layout = Layout::Nullable("Float64", size_of::<f64>());

    fn write_binary(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => {
                out.push(0);
                value.write_binary(out);
            }
            None => out.push(1),
        }
    }

    fn read_binary(input: &mut &'a [u8], column: &'static str) -> Result<Self, BinaryError> {
        match take(input, 1, column)? {
            [0] => f64::read_binary(input, column).map(Some),
            [1] => Ok(None),
            _ => Err(BinaryError::InvalidValue { column }),
        }
    }
}

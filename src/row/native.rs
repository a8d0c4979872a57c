//! ClickHouse's `Native` format: the rows of an insert by column instead of by row.
//!
//! Source: <https://clickhouse.com/docs/interfaces/formats/Native>, and for dictionaries `SerializationLowCardinality` in
//! ClickHouse's source. Reading rows costs ClickHouse three to four CPU seconds a million, reading columns a quarter of that.
//!
//! ```text
//! block       columns: LEB128 | rows: LEB128 | column ...
//! column      name | type | values, both texts as in RowBinary
//! String      as in RowBinary, one after the other; so are numbers and UUIDs
//! Nullable    one byte a value (1 = null) | the values, 0 for null
//! dictionary  1: u64 | keys follow and width of indices: u64 | keys: u64, String ... | rows: u64, index ...
//! ```
//! Values are copied as they are: their encoding is that of `RowBinary`.

use bytes::Bytes;
use hashbrown::{HashMap, hash_map::Entry};

use super::{
    BinaryError, EventRow, ORIGIN_COLUMNS, Origin, POSITION_COLUMNS, ParkedRow, Position, Table,
    binary::{take, take_string, write_bytes_binary, write_length},
};

/// Columns that ClickHouse keeps as dictionaries. Only the cost depends on it: it converts what it is sent.
const DICTIONARIES: [&str; 9] =
    ["type", "user_agent", "screen", "locale", "timezone", "name", "element", "direction", "topic"];

/// Values of so many bytes are not copied once more.
const LONG: usize = 64 << 10;

/// The first word of a dictionary: its version.
const DICTIONARY_VERSION: u64 = 1;
/// In its second word: the keys follow. The lowest byte is the width of the indices, 2 for `u32`.
const KEYS_FOLLOW: u64 = 1 << 9;
const INDICES_U32: u64 = 2;

/// How the values of a column are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Each of this type has so many bytes.
    Fixed(&'static str, usize),
    /// `Nullable` of a type of so many bytes.
    Nullable(&'static str, usize),
    Text,
}

/// A column being filled.
enum Column<'a> {
    Fixed { name: &'static str, width: usize, values: Vec<u8> },
    Nullable { name: &'static str, width: usize, nulls: Vec<u8>, values: Vec<u8> },
    Text { values: Vec<u8> },
    Dictionary(Dictionary<'a>),
}

/// Texts that repeat.
#[derive(Default)]
struct Dictionary<'a> {
    numbers: HashMap<&'a [u8], u32>,
    keys: Vec<u8>,
    indices: Vec<u8>,
    /// The text of the row before, which is mostly the next one's too.
    last: Option<(&'a [u8], u32)>,
}

impl<'a> Dictionary<'a> {
    fn push(&mut self, text: &'a [u8]) {
        let number = match self.last {
            Some((last, number)) if last == text => number,
            _ => self.number(text),
        };
        self.last = Some((text, number));
        self.indices.extend_from_slice(&number.to_le_bytes());
    }

    fn number(&mut self, text: &'a [u8]) -> u32 {
        // A block has far fewer than 2^32 rows.
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        match self.numbers.entry(text) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                place.insert(next);
                write_bytes_binary(text, &mut self.keys);
                next
            }
        }
    }
}

impl<'a> Column<'a> {
    fn new(name: &str, layout: Layout, rows: usize) -> Self {
        match layout {
            Layout::Fixed(name, width) => Self::Fixed { name, width, values: Vec::with_capacity(rows * width) },
            Layout::Nullable(name, width) => {
                let (nulls, values) = (Vec::with_capacity(rows), Vec::with_capacity(rows * width));
                Self::Nullable { name, width, nulls, values }
            }
            Layout::Text if DICTIONARIES.contains(&name) => Self::Dictionary(Dictionary::default()),
            Layout::Text => Self::Text { values: Vec::new() },
        }
    }

    /// Takes the next value of `input`.
    fn push(&mut self, input: &mut &'a [u8], column: &'static str) -> Result<(), BinaryError> {
        match self {
            Self::Fixed { width, values, .. } => values.extend_from_slice(take(input, *width, column)?),
            Self::Nullable { width, nulls, values, .. } => {
                let null = take(input, 1, column)?;
                nulls.extend_from_slice(null);
                if null == [0] {
                    values.extend_from_slice(take(input, *width, column)?);
                } else {
                    values.resize(values.len() + *width, 0);
                }
            }
            Self::Text { values } => {
                let before = *input;
                take_string(input, column)?;
                values.extend_from_slice(before.get(..before.len() - input.len()).unwrap_or_default());
            }
            Self::Dictionary(dictionary) => dictionary.push(take_string(input, column)?),
        }
        Ok(())
    }

    fn write(self, rows: usize, out: &mut Pieces) {
        match self {
            Self::Fixed { name, values, .. } => {
                write_bytes_binary(name.as_bytes(), &mut out.last);
                out.push(values);
            }
            Self::Nullable { name, nulls, values, .. } => {
                write_bytes_binary(format!("Nullable({name})").as_bytes(), &mut out.last);
                out.push(nulls);
                out.push(values);
            }
            Self::Text { values } => {
                write_bytes_binary(b"String", &mut out.last);
                out.push(values);
            }
            Self::Dictionary(dictionary) => {
                write_bytes_binary(b"LowCardinality(String)", &mut out.last);
                out.last.extend_from_slice(&DICTIONARY_VERSION.to_le_bytes());
                out.last.extend_from_slice(&(KEYS_FOLLOW | INDICES_U32).to_le_bytes());
                out.last.extend_from_slice(&(dictionary.numbers.len() as u64).to_le_bytes());
                out.push(dictionary.keys);
                out.last.extend_from_slice(&(rows as u64).to_le_bytes());
                out.push(dictionary.indices);
            }
        }
    }
}

/// What is long is passed on as it is; what is short is gathered.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    fn push(&mut self, values: Vec<u8>) {
        if values.len() < LONG {
            self.last.extend_from_slice(&values);
        } else {
            self.done.push(std::mem::take(&mut self.last).into());
            self.done.push(values.into());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.done.push(self.last.into());
        self.done
    }
}

/// The `rows` rows of `body`, which [`super::write_insert_row`] wrote for `table`, as one block of the `Native` format, in
/// pieces.
///
/// # Errors
/// [`BinaryError`] when `body` is not that.
pub fn to_native(table: Table, body: &[u8], rows: usize) -> Result<Vec<Bytes>, BinaryError> {
    let own = match table {
        Table::Events => EventRow::LAYOUTS,
        Table::Parked | Table::Released => ParkedRow::LAYOUTS,
    };
    let names = table.columns().iter().chain(ORIGIN_COLUMNS).chain(POSITION_COLUMNS);
    let layouts = own.iter().chain(Origin::LAYOUTS).chain(Position::LAYOUTS);
    let mut columns: Vec<(&'static str, Column<'_>)> =
        names.zip(layouts).map(|(name, layout)| (*name, Column::new(name, *layout, rows))).collect();
    if table == Table::Released {
        columns.push(("released", Column::new("released", Layout::Fixed("UInt8", 1), rows)));
    }
    let mut input = body;
    for _ in 0..rows {
        for (name, column) in &mut columns {
            column.push(&mut input, name)?;
        }
    }
    if !input.is_empty() {
        return Err(BinaryError::TrailingBytes { count: input.len() });
    }
    let mut out = Pieces::default();
    write_length(columns.len(), &mut out.last);
    write_length(rows, &mut out.last);
    for (name, column) in columns {
        write_bytes_binary(name.as_bytes(), &mut out.last);
        column.write(rows, &mut out);
    }
    Ok(out.finish())
}

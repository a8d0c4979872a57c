//! Rows by column, and ClickHouse's `Native` format, in which an insert carries them.
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
//! Values are copied as they are: their encoding is that of `RowBinary`. Rows can be had back from columns, byte for byte.
//!
//! A block waits in memory until it is stored, and what can be put in when it is sent is not kept until then: the zeros for
//! null (most numbers of an event are null), and a value that is that of the row before, in columns where it mostly is.

use std::{fmt, hash::BuildHasher as _, iter, mem, ops::Range, slice, sync::Arc};

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{
    BinaryError, EventRow, ORIGIN_COLUMNS, Origin, POSITION_COLUMNS, ParkedRow, Position, Table,
    binary::{take, take_string, write_bytes_binary, write_length},
    columns,
};

/// Columns that ClickHouse keeps as dictionaries. Only the cost depends on it: it converts what it is sent.
const DICTIONARIES: [&str; 9] =
    ["type", "user_agent", "screen", "locale", "timezone", "name", "element", "direction", "topic"];

/// Columns in which rows that follow each other mostly have the same value: those of a request, and those of a record.
const RUNS: [&str; 8] =
    ["tenant_id", "received_at", "expires_at", "wal_id", "wal_seq", "relayed_at", "partition", "offset"];

/// Values of so many bytes are not copied once more.
const LONG: usize = 64 << 10;

/// Bytes of a folded column that are made at a time: pieces that memory is kept for.
const FOLDED_BYTES: usize = 128 << 10;

/// What stands before a value that is not null.
const NOT_NULL: u8 = 0;

/// The first word of a dictionary: its version.
const DICTIONARY_VERSION: u64 = 1;
/// In its second word: the keys follow. The lowest byte is the width of the indices, as the power of two of its bytes.
const KEYS_FOLLOW: u64 = 1 << 9;

/// How the values of a column are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Each of this type has so many bytes.
    Fixed(&'static str, usize),
    /// `Nullable` of a type of so many bytes.
    Nullable(&'static str, usize),
    Text,
}

impl Layout {
    /// Moves `input` past a value, if it is one.
    pub(super) fn check(self, input: &mut &[u8], column: &'static str) -> Result<(), BinaryError> {
        match self {
            Self::Fixed(_, width) => take(input, width, column).map(drop),
            Self::Nullable(_, width) => match take(input, 1, column)? {
                [0] => take(input, width, column).map(drop),
                [1] => Ok(()),
                _ => Err(BinaryError::InvalidValue { column }),
            },
            Self::Text => match std::str::from_utf8(take_string(input, column)?) {
                Ok(_) => Ok(()),
                Err(_) => Err(BinaryError::InvalidValue { column }),
            },
        }
    }
}

/// A column being filled.
enum Filling {
    Fixed {
        kind: &'static str,
        width: usize,
        values: Vec<u8>,
    },
    /// Of each run its value, and of how many rows it is.
    Runs {
        kind: &'static str,
        width: usize,
        values: Vec<u8>,
        counts: Vec<u32>,
    },
    Nullable {
        kind: &'static str,
        width: usize,
        nulls: Vec<u8>,
        values: Vec<u8>,
    },
    Text {
        values: Vec<u8>,
    },
    Dictionary(Dictionary),
}

/// Texts that repeat.
struct Dictionary {
    /// The keys' numbers, found by the hash of the key.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// As they are sent.
    keys: Vec<u8>,
    /// Where the text of each key stands in `keys`.
    places: Vec<Range<usize>>,
    /// Bytes of an index: 1, 2 or 4, as few as there are keys for.
    width: usize,
    indices: Vec<u8>,
    /// The number of the row before, whose text is mostly the next one's too.
    last: u32,
}

impl Dictionary {
    fn new() -> Self {
        Self {
            numbers: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            keys: Vec::new(),
            places: Vec::new(),
            width: 1,
            indices: Vec::new(),
            last: 0,
        }
    }

    fn push(&mut self, text: &[u8]) {
        if self.key(self.last) != Some(text) {
            self.last = self.number(text);
            while u64::from(self.last) >> (8 * self.width) > 0 {
                self.widen();
            }
        }
        self.indices.extend(self.last.to_le_bytes().iter().take(self.width));
    }

    /// Gives each index twice as many bytes. The new ones are the high ones, which stand behind.
    fn widen(&mut self) {
        let narrow = mem::take(&mut self.indices);
        self.indices.reserve(2 * narrow.len());
        for index in narrow.chunks(self.width) {
            self.indices.extend_from_slice(index);
            self.indices.extend(iter::repeat_n(0, self.width));
        }
        self.width *= 2;
    }

    fn key(&self, number: u32) -> Option<&[u8]> {
        key(&self.keys, &self.places, number)
    }

    fn number(&mut self, text: &[u8]) -> u32 {
        let Self { numbers, hasher, keys, places, .. } = self;
        // A block has far fewer than 2^32 rows.
        let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let is_it = |number: &u32| key(keys, places, *number) == Some(text);
        let hash = |number: &u32| hasher.hash_one(key(keys, places, *number).unwrap_or_default());
        match numbers.entry(hasher.hash_one(text), is_it, hash) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                place.insert(next);
                write_bytes_binary(text, keys);
                places.push(keys.len() - text.len()..keys.len());
                next
            }
        }
    }
}

fn key<'a>(keys: &'a [u8], places: &[Range<usize>], number: u32) -> Option<&'a [u8]> {
    keys.get(places.get(usize::try_from(number).ok()?)?.clone())
}

impl Filling {
    fn new(name: &str, layout: Layout) -> Self {
        match layout {
            Layout::Fixed(kind, width) if RUNS.contains(&name) => {
                Self::Runs { kind, width, values: Vec::new(), counts: Vec::new() }
            }
            Layout::Fixed(kind, width) => Self::Fixed { kind, width, values: Vec::new() },
            Layout::Nullable(kind, width) => Self::Nullable { kind, width, nulls: Vec::new(), values: Vec::new() },
            Layout::Text if DICTIONARIES.contains(&name) => Self::Dictionary(Dictionary::new()),
            Layout::Text => Self::Text { values: Vec::new() },
        }
    }

    /// Takes the next value of `input`.
    fn push(&mut self, input: &mut &[u8], column: &'static str) -> Result<(), BinaryError> {
        match self {
            Self::Fixed { width, values, .. } => values.extend_from_slice(take(input, *width, column)?),
            Self::Runs { width, values, counts, .. } => {
                let value = take(input, *width, column)?;
                match counts.last_mut() {
                    // A block has far fewer than 2^32 rows.
                    Some(count) if values.ends_with(value) => *count = count.saturating_add(1),
                    _ => {
                        values.extend_from_slice(value);
                        counts.push(1);
                    }
                }
            }
            Self::Nullable { width, nulls, values, .. } => {
                let null = take(input, 1, column)?;
                nulls.extend_from_slice(null);
                if null == [NOT_NULL] {
                    values.extend_from_slice(take(input, *width, column)?);
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

    fn finish(self) -> Column {
        match self {
            Self::Fixed { kind, width, values } => Column::Fixed { kind, width, values: exact(values) },
            Self::Runs { kind, width, values, counts } => Column::Runs {
                kind,
                runs: Runs { width, values: exact(values), counts: counts.into(), at: 0, taken: 0 },
            },
            Self::Nullable { kind, width, nulls, values } => {
                Column::Nullable { kind, spread: Spread { width, nulls: exact(nulls), values: exact(values) } }
            }
            Self::Text { values } => Column::Text { values: exact(values) },
            Self::Dictionary(Dictionary { keys, places, width, indices, .. }) => {
                Column::Dictionary { keys: exact(keys), count: places.len(), width, indices: exact(indices) }
            }
        }
    }
}

/// Without the room that a growing vector has left; large ones the system moves without copying.
fn exact(mut values: Vec<u8>) -> Bytes {
    values.shrink_to_fit();
    values.into()
}

/// Columns being filled row by row.
pub struct Filler {
    table: Table,
    rows: usize,
    columns: Vec<(&'static str, Filling)>,
    /// Where a row comes from, encoded.
    provenance: Vec<u8>,
}

impl Filler {
    /// Of no row yet.
    pub fn new(table: Table) -> Self {
        let own = match table {
            Table::Events => EventRow::LAYOUTS,
            Table::Parked | Table::Released => ParkedRow::LAYOUTS,
        };
        let names = table.columns().iter().chain(ORIGIN_COLUMNS).chain(POSITION_COLUMNS);
        let layouts = own.iter().chain(Origin::LAYOUTS).chain(Position::LAYOUTS);
        let columns = names.zip(layouts).map(|(name, layout)| (*name, Filling::new(name, *layout)));
        let released =
            (table == Table::Released).then(|| ("released", Filling::new("released", Layout::Fixed("UInt8", 1))));
        Self { table, rows: 0, columns: columns.chain(released).collect(), provenance: Vec::new() }
    }

    /// How many rows there are.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row as [`super::encode`] or [`super::encode_parked`] wrote it, with where it comes from.
    ///
    /// # Errors
    /// [`BinaryError`] when the bytes do not form exactly one row. The columns are of different lengths then, and of no use any
    /// more: [`super::decode`] tells beforehand.
    pub fn push(&mut self, encoded: &[u8], origin: &Origin, position: &Position<'_>) -> Result<(), BinaryError> {
        self.provenance.clear();
        origin.write_binary(&mut self.provenance);
        position.write_binary(&mut self.provenance);
        let mut row = columns(encoded)?.1;
        let mut provenance = &self.provenance[..];
        let own = self.table.columns().len();
        for (place, (name, column)) in self.columns.iter_mut().enumerate() {
            column.push(if place < own { &mut row } else { &mut provenance }, name)?;
        }
        self.rows += 1;
        if row.is_empty() { Ok(()) } else { Err(BinaryError::TrailingBytes { count: row.len() }) }
    }

    /// Adds the rows of `body` as [`super::write_insert_row`] wrote them.
    ///
    /// # Errors
    /// [`BinaryError`] when `body` is not that.
    pub fn push_rows(&mut self, body: &[u8]) -> Result<(), BinaryError> {
        let mut input = body;
        while !input.is_empty() {
            for (name, column) in &mut self.columns {
                column.push(&mut input, name)?;
            }
            self.rows += 1;
        }
        Ok(())
    }

    /// The columns as they are now.
    pub fn finish(self) -> Columns {
        let columns = self.columns.into_iter().map(|(name, column)| (name, column.finish())).collect();
        Columns { rows: self.rows, columns }
    }
}

impl fmt::Debug for Filler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filler").field("table", &self.table).field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// A column.
enum Column {
    Fixed {
        kind: &'static str,
        width: usize,
        values: Bytes,
    },
    Runs {
        kind: &'static str,
        runs: Runs,
    },
    Nullable {
        kind: &'static str,
        spread: Spread,
    },
    Text {
        values: Bytes,
    },
    /// `width` is that of an index in bytes.
    Dictionary {
        keys: Bytes,
        count: usize,
        width: usize,
        indices: Bytes,
    },
}

/// Values of rows that follow each other, each once, and for how many rows it stands.
#[derive(Clone, Debug)]
struct Runs {
    width: usize,
    values: Bytes,
    counts: Arc<[u32]>,
    /// The run that is sent next, and how many of its rows were sent.
    at: usize,
    taken: u32,
}

/// Values that are not null, to be spread over a column.
#[derive(Clone, Debug)]
struct Spread {
    width: usize,
    nulls: Bytes,
    values: Bytes,
}

/// Rows of one insert, by column.
pub struct Columns {
    rows: usize,
    columns: Vec<(&'static str, Column)>,
}

impl fmt::Debug for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Columns").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Columns {
    /// One block of the `Native` format, in pieces. Large columns are shared, not copied.
    pub fn native(&self) -> Vec<Piece> {
        let mut out = Pieces::default();
        write_length(self.columns.len(), &mut out.last);
        write_length(self.rows, &mut out.last);
        for (name, column) in &self.columns {
            write_bytes_binary(name.as_bytes(), &mut out.last);
            column.write(self.rows, &mut out);
        }
        out.finish()
    }

    /// The first rows, `most` of them if there are so many, as [`super::write_insert_row`] wrote them.
    pub fn by_row(&self, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cursors: Vec<Cursor<'_>> = self.columns.iter().map(|(_, column)| Cursor::of(column)).collect();
        for _ in 0..self.rows.min(most) {
            for cursor in &mut cursors {
                cursor.next(&mut out);
            }
        }
        out
    }
}

impl Column {
    fn write(&self, rows: usize, out: &mut Pieces) {
        match self {
            Self::Fixed { kind, values, .. } => {
                write_bytes_binary(kind.as_bytes(), &mut out.last);
                out.push(values);
            }
            Self::Runs { kind, runs } => {
                write_bytes_binary(kind.as_bytes(), &mut out.last);
                out.push_folded(Folded::Runs(runs.clone()));
            }
            Self::Nullable { kind, spread } => {
                write_bytes_binary(format!("Nullable({kind})").as_bytes(), &mut out.last);
                out.push(&spread.nulls);
                out.push_folded(Folded::Spread(spread.clone()));
            }
            Self::Text { values } => {
                write_bytes_binary(b"String", &mut out.last);
                out.push(values);
            }
            Self::Dictionary { keys, count, width, indices } => {
                write_bytes_binary(b"LowCardinality(String)", &mut out.last);
                out.last.extend_from_slice(&DICTIONARY_VERSION.to_le_bytes());
                out.last.extend_from_slice(&(KEYS_FOLLOW | u64::from(width.trailing_zeros())).to_le_bytes());
                out.last.extend_from_slice(&(*count as u64).to_le_bytes());
                out.push(keys);
                out.last.extend_from_slice(&(rows as u64).to_le_bytes());
                out.push(indices);
            }
        }
    }
}

/// The values of a column, one after the other, as a row has them.
enum Cursor<'a> {
    Fixed {
        width: usize,
        values: &'a [u8],
    },
    /// The run that the next value is of, how often it is still to come, and the runs behind it.
    Runs {
        value: &'a [u8],
        left: u32,
        width: usize,
        values: &'a [u8],
        counts: slice::Iter<'a, u32>,
    },
    Nullable {
        width: usize,
        nulls: &'a [u8],
        values: &'a [u8],
    },
    Text {
        values: &'a [u8],
    },
    /// The keys with their lengths.
    Dictionary {
        keys: Vec<&'a [u8]>,
        width: usize,
        indices: &'a [u8],
    },
}

impl<'a> Cursor<'a> {
    fn of(column: &'a Column) -> Self {
        match column {
            Column::Fixed { width, values, .. } => Self::Fixed { width: *width, values },
            Column::Runs { runs: Runs { width, values, counts, .. }, .. } => {
                Self::Runs { value: &[], left: 0, width: *width, values, counts: counts.iter() }
            }
            Column::Nullable { spread: Spread { width, nulls, values }, .. } => {
                Self::Nullable { width: *width, nulls, values }
            }
            Column::Text { values } => Self::Text { values },
            Column::Dictionary { keys, width, indices, .. } => {
                let mut rest = &keys[..];
                let keys = std::iter::from_fn(|| Some(text(&mut rest)).filter(|key| !key.is_empty())).collect();
                Self::Dictionary { keys, width: *width, indices }
            }
        }
    }

    /// Appends the next value. What is in a column was read from rows, so that nothing is ever short.
    fn next(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Fixed { width, values } => out.extend_from_slice(head(values, *width)),
            Self::Runs { value, left, width, values, counts } => {
                if *left == 0 {
                    (*value, *left) = (head(values, *width), counts.next().copied().unwrap_or(1));
                }
                *left -= 1;
                out.extend_from_slice(value);
            }
            Self::Nullable { width, nulls, values } => {
                let null = head(nulls, 1);
                out.extend_from_slice(null);
                if null == [NOT_NULL] {
                    out.extend_from_slice(head(values, *width));
                }
            }
            Self::Text { values } => out.extend_from_slice(text(values)),
            Self::Dictionary { keys, width, indices } => {
                let number =
                    head(indices, *width).iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
                out.extend_from_slice(keys.get(number).copied().unwrap_or_default());
            }
        }
    }
}

fn head<'a>(values: &mut &'a [u8], count: usize) -> &'a [u8] {
    take(values, count, "of a block").unwrap_or_default()
}

/// The next text of `values` with its length.
fn text<'a>(values: &mut &'a [u8]) -> &'a [u8] {
    let before = *values;
    if take_string(values, "of a block").is_err() {
        *values = &[];
    }
    before.get(..before.len() - values.len()).unwrap_or_default()
}

/// A part of a block.
#[derive(Debug)]
pub struct Piece(Part);

#[derive(Debug)]
enum Part {
    Whole(Bytes),
    Folded(Folded),
}

/// A column of which less is kept than is sent.
#[derive(Debug)]
enum Folded {
    Runs(Runs),
    Spread(Spread),
}

impl Piece {
    /// Its bytes, in their order; those of a folded column are made when they are asked for, some at a time: memory of their
    /// size, taken anew for each column, costs more than they do.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> + Send {
        let (whole, folded) = match self.0 {
            Part::Whole(bytes) => (Some(bytes), None),
            Part::Folded(folded) => (None, Some(folded)),
        };
        whole.into_iter().chain(folded.into_iter().flatten())
    }
}

/// About so many bytes at a time.
impl Iterator for Folded {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(self.len().min(FOLDED_BYTES));
        match self {
            Self::Runs(runs) => runs.write(FOLDED_BYTES, &mut out),
            Self::Spread(spread) => spread.write(FOLDED_BYTES, &mut out),
        }
        (!out.is_empty()).then(|| out.into())
    }
}

impl Folded {
    /// Bytes as sent.
    fn len(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.len(),
            Self::Spread(spread) => spread.len(),
        }
    }
}

impl Runs {
    fn len(&self) -> usize {
        self.counts.iter().filter_map(|count| usize::try_from(*count).ok()).sum::<usize>() * self.width
    }

    /// Takes out rows of `most` bytes, if there are so many, and at least one.
    fn write(&mut self, most: usize, out: &mut Vec<u8>) {
        while let Some(left) = self.counts.get(self.at).map(|count| count - self.taken)
            && (out.is_empty() || out.len() + self.width <= most)
        {
            let room = ((most - out.len().min(most)) / self.width).max(1);
            let rows = left.min(u32::try_from(room).unwrap_or(u32::MAX));
            let value = self.values.chunks(self.width).nth(self.at).unwrap_or_default();
            for _ in 0..rows {
                out.extend_from_slice(value);
            }
            self.taken += rows;
            if rows == left {
                (self.at, self.taken) = (self.at + 1, 0);
            }
        }
    }
}

impl Spread {
    fn len(&self) -> usize {
        self.nulls.len() * self.width
    }

    /// Takes out rows of `most` bytes, if there are so many, and at least one.
    fn write(&mut self, most: usize, out: &mut Vec<u8>) {
        let nulls = self.nulls.split_to(self.nulls.len().min((most / self.width).max(1)));
        let mut rest = &nulls[..];
        while !rest.is_empty() {
            let null = rest.iter().take_while(|null| **null != NOT_NULL).count();
            out.resize(out.len() + null * self.width, 0);
            rest = rest.get(null..).unwrap_or_default();
            let not_null = rest.iter().take_while(|null| **null == NOT_NULL).count();
            out.extend_from_slice(&self.values.split_to((not_null * self.width).min(self.values.len())));
            rest = rest.get(not_null..).unwrap_or_default();
        }
    }
}

/// What is long is passed on as it is; what is short is gathered.
#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    last: Vec<u8>,
}

impl Pieces {
    fn push(&mut self, values: &Bytes) {
        if values.len() < LONG {
            self.last.extend_from_slice(values);
        } else {
            self.push_long(Part::Whole(values.clone()));
        }
    }

    fn push_folded(&mut self, folded: Folded) {
        if folded.len() < LONG {
            folded.for_each(|part| self.last.extend_from_slice(&part));
        } else {
            self.push_long(Part::Folded(folded));
        }
    }

    fn push_long(&mut self, part: Part) {
        self.done.push(Piece(Part::Whole(mem::take(&mut self.last).into())));
        self.done.push(Piece(part));
    }

    fn finish(mut self) -> Vec<Piece> {
        self.done.push(Piece(Part::Whole(self.last.into())));
        self.done
    }
}

/// The rows of `parts`, each of which [`super::write_insert_row`] wrote for `table`, by column.
///
/// # Errors
/// [`BinaryError`] when a part is not that.
pub fn by_column<'a>(table: Table, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<Columns, BinaryError> {
    let mut filler = Filler::new(table);
    for part in parts {
        filler.push_rows(part)?;
    }
    Ok(filler.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// A folded column, in as many parts as it takes, is what it would be in one.
    #[test]
    fn a_folded_column_is_made_in_parts() {
        let counts: Vec<u32> = (0..900_u32).map(|n| if n == 450 { 40_000 } else { n % 7 + 1 }).collect();
        let values: Vec<u8> = (0..900 * 16_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let all: Vec<u8> = values
            .chunks(16)
            .zip(&counts)
            .flat_map(|(value, count)| value.repeat(usize::try_from(*count).unwrap()))
            .collect();
        let runs = Runs { width: 16, values: values.into(), counts: counts.into(), at: 0, taken: 0 };
        assert_parts(Folded::Runs(runs), &all);

        let nulls: Vec<u8> = (0..70_000_u32).map(|n| u8::from(n % 11 < 8)).collect();
        let mut number = 0_u64;
        let (mut values, mut all) = (Vec::new(), Vec::new());
        for null in &nulls {
            if *null == NOT_NULL {
                number += 1;
                values.extend_from_slice(&number.to_le_bytes());
                all.extend_from_slice(&number.to_le_bytes());
            } else {
                all.extend_from_slice(&[0; 8]);
            }
        }
        assert_parts(Folded::Spread(Spread { width: 8, nulls: nulls.into(), values: values.into() }), &all);
    }

    fn assert_parts(folded: Folded, all: &[u8]) {
        assert_eq!(folded.len(), all.len());
        let parts: Vec<Bytes> = Piece(Part::Folded(folded)).into_parts().collect();
        assert!(parts.len() > 2 && parts.iter().all(|part| !part.is_empty() && part.len() <= FOLDED_BYTES));
        assert!(parts.concat() == all);
    }
}

//! Tables on a terminal.

use std::fmt::Write as _;

/// A line for `head` and one for each row, the cells of a column aligned; or `none` when there is no row.
pub(crate) fn aligned<const N: usize>(head: [&str; N], rows: &[[String; N]], none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String cannot fail.
            write!(line, "{cell:<width$}  ").unwrap_or(());
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

//! The quick way to read a line of JSON: as this engine writes it, column after column in their order, without blanks.
//!
//! Lines of a topic are nearly always such. Whatever is not, with columns in another order, or with an escape in a text, is
//! left to the parser of [`super::json`]: here it is only said yes, and the values are those that the parser would give.

use jiff::{civil::DateTime, tz::TimeZone};
use uuid::Uuid;

use super::{
    binary::{Json, Text},
    columns::{EventRow, Origin},
};
use crate::{
    ids::{EventId, TenantId, WalId},
    json,
};

/// `tenant_id` to `expires_at`, and then the columns that a row has or not.
pub(super) fn read<'a>(
    line: &'a [u8],
    optional: impl FnOnce(&mut Reader<'a>, &mut EventRow<'a>) -> Option<()>,
) -> Option<(EventRow<'a>, Origin)> {
    let mut reader = Reader { text: std::str::from_utf8(line).ok()?, at: 0 };
    let reader = &mut reader;
    let tenant_id = TenantId(reader.expect(b"{\"tenant_id\":")?.uuid()?);
    let event_id = EventId(reader.expect(b",\"event_id\":")?.uuid()?);
    let mut row = EventRow::new(tenant_id, event_id, "");
    row.timestamp_ms = reader.expect(b",\"timestamp\":")?.time()?;
    row.received_at_ms = reader.expect(b",\"received_at\":")?.time()?;
    row.expires_at = u32::try_from(reader.expect(b",\"expires_at\":")?.whole()?).ok()?;
    optional(reader, &mut row)?;
    if reader.begins(b",\"context\":") {
        row.context = reader.object()?;
    }
    if reader.begins(b",\"properties\":") {
        row.properties = reader.object()?;
    }
    let origin = Origin {
        wal_id: WalId(reader.expect(b",\"wal_id\":")?.uuid()?),
        wal_seq: reader.expect(b",\"wal_seq\":")?.whole()?,
        wal_ordinal: u32::try_from(reader.expect(b",\"wal_ordinal\":")?.whole()?).ok()?,
        relayed_at_ms: reader.expect(b",\"relayed_at\":")?.time()?,
    };
    reader.expect(b"}")?;
    (reader.at == line.len()).then_some((row, origin))
}

/// A line, and how far it was read.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Goes past `wanted` if it stands here.
    pub(super) fn begins(&mut self, wanted: &[u8]) -> bool {
        let begins = self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(wanted));
        if begins {
            self.at += wanted.len();
        }
        begins
    }

    fn expect(&mut self, wanted: &[u8]) -> Option<&mut Self> {
        self.begins(wanted).then_some(self)
    }

    /// What stands here up to `ends`, where reading goes on.
    fn up_to(&mut self, ends: usize) -> Option<&'a str> {
        let text = self.text.get(self.at..ends)?;
        self.at = ends;
        Some(text)
    }

    /// A string without an escape in it.
    pub(super) fn text(&mut self) -> Option<Text<'a>> {
        Some(Text::from(self.quoted()?))
    }

    fn quoted(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.at)? != &b'"' {
            return None;
        }
        let (ends, plain) = json::string(bytes, self.at)?;
        if !plain {
            return None;
        }
        self.up_to(ends)?.strip_prefix('"')?.strip_suffix('"')
    }

    fn object(&mut self) -> Option<Json<'a>> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.at)? != &b'{' {
            return None;
        }
        let (ends, _) = json::value(bytes, self.at, json::DEPTH)?;
        self.up_to(ends).map(Json::from)
    }

    /// A number, with a point or without.
    pub(super) fn number(&mut self) -> Option<f64> {
        let ends = json::number(self.text.as_bytes(), self.at)?;
        serde_json::from_str(self.up_to(ends)?).ok()
    }

    fn whole(&mut self) -> Option<u64> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = self.up_to(self.at + count)?;
        // JSON has no leading zeros.
        if digits.len() > 1 && digits.starts_with('0') { None } else { digits.parse().ok() }
    }

    fn uuid(&mut self) -> Option<Uuid> {
        Uuid::try_parse_ascii(self.quoted()?.as_bytes()).ok()
    }

    /// `"2024-01-01 00:00:00.000"`, UTC, as Unix milliseconds.
    fn time(&mut self) -> Option<i64> {
        let text = self.quoted()?.as_bytes();
        let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b' ', h0, h1, b':', i0, i1, b':', s0, s1, b'.', f0, f1, f2] =
            text
        else {
            return None;
        };
        let number = |digits: &[&u8]| {
            let digit = |byte: &&u8| byte.is_ascii_digit().then(|| i16::from(**byte - b'0'));
            digits.iter().try_fold(0, |sum: i16, byte| Some(sum * 10 + digit(byte)?))
        };
        let small = |digits: &[&u8]| number(digits).and_then(|number| i8::try_from(number).ok());
        let (year, month, day) = (number(&[y0, y1, y2, y3])?, small(&[m0, m1])?, small(&[d0, d1])?);
        let (hour, minute, second) = (small(&[h0, h1])?, small(&[i0, i1])?, small(&[s0, s1])?);
        // A leap second is the parser's.
        let nanosecond = i32::from(number(&[f0, f1, f2])?) * 1_000_000;
        let civil = DateTime::new(year, month, day, hour, minute, second, nanosecond).ok()?;
        TimeZone::UTC.to_timestamp(civil).ok().map(jiff::Timestamp::as_millisecond)
    }
}

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{
    ids::{EventId, TenantId, WalId},
    row::{EventRow, Origin},
};

const LIMITS: RangeLimits = RangeLimits { rows: 10, bytes: 1000, age: Duration::from_secs(1), expiries: 3 };

fn piece(offset: u64, rows: usize, bytes: usize, expiries: &[u32], arrived: Instant) -> Piece {
    let origin = |row: usize| Origin {
        wal_id: WalId(Uuid::from_u128(1)),
        wal_seq: offset,
        wal_ordinal: u32::try_from(row).unwrap(),
        relayed_at_ms: 0,
    };
    let end = |row: usize| if row + 1 == rows { bytes } else { bytes / rows * (row + 1) };
    Piece {
        origins: (0..rows).map(|row| (origin(row), end(row))).collect(),
        offset,
        rows,
        body: vec![7; bytes],
        expiries: expiries.to_vec(),
        oldest_received_at_ms: 1000 - i64::try_from(offset).unwrap(),
        newest_received_at_ms: 1000 - i64::try_from(offset).unwrap(),
        arrived,
        letters: Vec::new(),
    }
}

/// Pieces as (rows, bytes, expiries), and the ranges that they make: number of pieces, or what stays open.
#[test]
fn each_limit_closes_a_range() {
    type Case<'a> = (&'a str, &'a [(usize, usize, &'a [u32])], &'a [usize], usize);
    let cases: [Case<'_>; 7] = [
        ("nothing", &[], &[], 0),
        ("below every limit", &[(4, 10, &[1]), (4, 10, &[1])], &[], 2),
        ("exactly full", &[(5, 10, &[1]), (5, 10, &[1]), (1, 10, &[1])], &[2], 1),
        ("a message is never split", &[(6, 10, &[1]), (6, 10, &[1]), (6, 10, &[1])], &[1, 1], 1),
        ("larger than a range on its own", &[(50, 10, &[1]), (1, 5000, &[1]), (1, 1, &[1])], &[1, 1], 1),
        ("bytes", &[(1, 600, &[1]), (1, 300, &[1]), (1, 200, &[1])], &[2], 1),
        ("expiries", &[(1, 1, &[1, 2]), (1, 1, &[2, 3]), (1, 1, &[1]), (1, 1, &[4])], &[3], 1),
    ];
    let now = Instant::now();
    for (name, pieces, expected, left) in cases {
        let mut buffer = Buffer::default();
        for (offset, (rows, bytes, expiries)) in (0..).zip(pieces) {
            buffer.push(piece(offset, *rows, *bytes, expiries, now), &LIMITS);
        }
        let mut ranges = Vec::new();
        let mut next = 0;
        while let Some(count) = buffer.ready(&LIMITS, now, false) {
            let block = buffer.take(count, &LIMITS, &mut Marks::default()).unwrap();
            assert_eq!(block.first, next, "{name}");
            assert_eq!(block.last, next + count as u64 - 1, "{name}");
            next = block.last + 1;
            ranges.push(count);
        }
        assert_eq!(ranges, expected, "{name}");
        assert_eq!(buffer.pieces.len(), left, "{name}");
    }
}

#[test]
fn age_closes_a_range_and_hurry_too() {
    let start = Instant::now();
    let mut buffer = Buffer::default();
    assert_eq!(buffer.due(&LIMITS), None);
    buffer.push(piece(5, 1, 1, &[1], start), &LIMITS);
    buffer.push(piece(6, 1, 1, &[1], start + Duration::from_millis(900)), &LIMITS);
    assert_eq!(buffer.due(&LIMITS), Some(start + LIMITS.age));
    assert_eq!(buffer.ready(&LIMITS, start + Duration::from_millis(999), false), None);
    assert_eq!(buffer.ready(&LIMITS, start, true), Some(2));
    assert_eq!(buffer.ready(&LIMITS, start + LIMITS.age, false), Some(2));
    let block = buffer.take(2, &LIMITS, &mut Marks::default()).unwrap();
    assert_eq!((block.first, block.last, block.rows, block.oldest_received_at_ms), (5, 6, 2, 994));
    assert_eq!((buffer.size(), buffer.rows), (0, 0));
}

#[test]
fn a_recorded_range_is_formed_again_whatever_the_limits_and_the_age() {
    let start = Instant::now();
    let late = start + Duration::from_hours(1);
    let mut buffer = Buffer::new(Some(13));
    assert!(buffer.must_read_on());
    for offset in 10..13 {
        buffer.push(piece(offset, 9, 900, &[1, 2, 3, 4], start), &LIMITS);
        assert_eq!(buffer.ready(&LIMITS, late, true), None, "not complete before offset 13");
        assert!(!buffer.is_ample(&LIMITS), "reading on must not stop before offset 13");
    }
    buffer.push(piece(13, 9, 900, &[1], start), &LIMITS);
    buffer.push(piece(14, 1, 1, &[1], start), &LIMITS);
    let count = buffer.ready(&LIMITS, start, false).unwrap();
    let block = buffer.take(count, &LIMITS, &mut Marks::default()).unwrap();
    assert_eq!((block.first, block.last, block.rows), (10, 13, 36));
    assert_eq!(buffer.ready(&LIMITS, start, false), None, "from here on the limits hold");
    assert_eq!(buffer.ready(&LIMITS, late, false), Some(1));
}

#[test]
fn a_recorded_range_of_which_a_part_or_all_is_gone_holds_nothing_up() {
    let now = Instant::now();
    let mut partly = Buffer::new(Some(13));
    partly.push(piece(12, 1, 1, &[1], now), &LIMITS);
    partly.push(piece(15, 1, 1, &[1], now), &LIMITS);
    assert_eq!(partly.ready(&LIMITS, now, false), Some(1));
    let mut all = Buffer::new(Some(13));
    all.push(piece(20, 1, 1, &[1], now), &LIMITS);
    assert_eq!(all.ready(&LIMITS, now + LIMITS.age, false), Some(1));
}

fn event(id: u128, expires_at: u32) -> EventRow<'static> {
    let mut row = EventRow::new(TenantId(Uuid::from_u128(1)), EventId(Uuid::from_u128(id)), "click");
    row.received_at_ms = 5000 + i64::try_from(id).unwrap();
    row.expires_at = expires_at;
    row
}

const ORIGIN: Origin = Origin { wal_id: WalId(Uuid::from_u128(2)), wal_seq: 3, wal_ordinal: 4, relayed_at_ms: 5 };

fn line(id: u128, expires_at: u32) -> Vec<u8> {
    let mut line = Vec::new();
    row::write_json(&event(id, expires_at), &ORIGIN, &mut line);
    line
}

/// A message in binary; a row of no events is one of nonsense.
fn binary(events: &[Option<EventRow<'_>>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for event in events {
        let mut encoded = Vec::new();
        match event {
            Some(event) => row::encode(event, &mut encoded),
            None => encoded.extend_from_slice(&[99, 1, 2]),
        }
        message::append_row(&mut payload, &encoded, &ORIGIN);
    }
    payload
}

#[test]
fn a_bad_line_costs_no_good_one() {
    let now = Instant::now();
    let payload = [line(1, 10), b"{\"half\":".to_vec(), line(2, 20), b"\xff".to_vec(), line(3, 10)].join(&b'\n');
    let piece = Piece::decode(Carries::Events, "events", 3, 77, Some(&payload), now);
    assert_eq!((piece.offset, piece.rows, piece.oldest_received_at_ms), (77, 3, 5001));
    assert_eq!(piece.expiries, [10, 20]);
    let letters: Vec<_> =
        piece.letters.iter().map(|letter| (letter.line, letter.form, letter.bytes.as_slice())).collect();
    assert_eq!(letters, [(1, Form::Line, &b"{\"half\":"[..]), (3, Form::Line, b"\xff")]);

    let good = [line(1, 10), line(2, 20), line(3, 10)].join(&b'\n');
    assert_eq!(piece.body, Piece::decode(Carries::Events, "events", 3, 77, Some(&good), now).body);

    let none = Piece::decode(Carries::Events, "events", 3, 78, None, now);
    assert_eq!((none.rows, none.letters.len()), (0, 1));
}

#[test]
fn a_bad_row_in_binary_costs_no_good_one_and_both_formats_are_the_same_rows() {
    let now = Instant::now();
    let lines = [line(1, 10), line(2, 20), line(3, 10)].join(&b'\n');
    let lines = Piece::decode(Carries::Events, "events", 3, 77, Some(&lines), now);
    let mut payload = binary(&[Some(event(1, 10)), None, Some(event(2, 20)), Some(event(3, 10))]);
    payload.extend_from_slice(&[200, 0, 0, 0, 1]);
    let piece = Piece::decode(Carries::Events, "events", 3, 77, Some(&payload), now);
    assert_eq!((piece.rows, &piece.body, &piece.expiries), (3, &lines.body, &lines.expiries));
    assert_eq!(piece.oldest_received_at_ms, lines.oldest_received_at_ms);
    assert_eq!(piece.newest_received_at_ms, lines.newest_received_at_ms);
    assert_eq!(piece.origins, lines.origins);
    let letters: Vec<_> = piece.letters.iter().map(|letter| (letter.line, letter.form, letter.bytes.len())).collect();
    assert_eq!(letters, [(1, Form::TopicRow, 39), (4, Form::Rows, 5)]);
    assert!(piece.letters[0].reason.contains("layout 99"), "{}", piece.letters[0].reason);

    let parked = Piece::decode(Carries::Parked, "events.parked", 0, 77, Some(&binary(&[Some(event(1, 10))])), now);
    assert_eq!((parked.rows, parked.letters.len()), (0, 1));
}

#[test]
fn what_was_read_before_is_left_out_and_its_offsets_pass() {
    let now = Instant::now();
    let mut buffer = Buffer::default();
    let mut marks = Marks::default();
    marks.learn(WalId(Uuid::from_u128(1)), Some((1, 0)));
    // Record 1 has two rows, of which the first was read; then it comes a second time, and the next one behind it.
    for (offset, record) in [(10, 1), (11, 1), (12, 2)] {
        let mut piece = piece(record, 2, 20, &[7], now);
        piece.offset = offset;
        buffer.push(piece, &LIMITS);
    }
    assert_eq!(buffer.first(3).flat_map(Piece::wal_ids).count(), 3);
    let block = buffer.take(3, &LIMITS, &mut marks).unwrap();
    let bytes: usize = block.parts.iter().map(|part| part.body.len()).sum();
    assert_eq!((block.first, block.last, block.rows, block.repeats, bytes), (10, 12, 3, 3, 30));
    let mut again = Buffer::default();
    again.push(piece(2, 2, 20, &[7], now), &LIMITS);
    let block = again.take(1, &LIMITS, &mut marks).unwrap();
    assert_eq!((block.rows, block.repeats, block.last), (0, 2, 2));
}

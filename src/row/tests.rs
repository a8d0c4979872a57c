#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ids::{EventId, TenantId, WalId};

fn sample() -> EventRow<'static> {
    let tenant = TenantId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
    let mut row = EventRow::new(tenant, EventId(Uuid::from_u128(7)), "pageview");
    row.timestamp_ms = 1_704_067_200_123;
    row.received_at_ms = 1_795_000_000_000;
    row.expires_at = 1_802_779_200;
    row.session_id = "s-1".into();
    row.title = "Home \"quoted\"\n".into();
    row.lcp = Some(1234.5);
    row.properties = r#"{"a":{"b":[1,2]}}"#.into();
    row
}

/// What [`super::decode`] says; [`check`] says the same, of columns by the names that they have in the table.
fn decode(encoded: &[u8]) -> Result<Row<'_>, BinaryError> {
    let row = super::decode(encoded);
    match (check(encoded), &row) {
        (Ok(said), Ok(row)) => {
            let table = if matches!(row, Row::Event(_)) { Table::Events } else { Table::Parked };
            assert_eq!(said, (table, row.expires_at()));
        }
        (Err(said), Err(error)) => {
            assert_eq!(said.to_string(), error.to_string().replace("column kind", "column type"));
        }
        (said, row) => panic!("{said:?}, {row:?}"),
    }
    row
}

fn origin() -> Origin {
    Origin { wal_id: WalId(Uuid::from_u128(9)), wal_seq: 42, wal_ordinal: 3, relayed_at_ms: 1_795_000_000_500 }
}

#[test]
fn a_row_survives_the_log() {
    let mut bytes = Vec::new();
    encode(&sample(), &mut bytes);
    assert_eq!(decode(&bytes).unwrap(), Row::Event(sample()));
    assert_eq!(expires_at(&bytes).unwrap(), 1_802_779_200);
}

#[test]
fn a_row_survives_the_broker() {
    let mut line = Vec::new();
    write_json(&sample(), &origin(), &mut line);
    assert!(!line.contains(&b'\n'), "one row must be one line");
    assert_eq!(read_json(&line).unwrap(), (sample(), origin()));
}

/// The layout of rows that wait in somebody's log: it may grow by a new layout number, never change.
#[test]
fn layout_1_is_frozen() {
    let mut bytes = Vec::new();
    encode(&sample(), &mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "01",                                   // layout
            "44443333222211118888777766665555",     // tenant_id
            "00000000000000000700000000000000",     // event_id
            "7bf451c28c010000",                     // timestamp
            "005e56eea1010000",                     // received_at
            "403a746b",                             // expires_at
            "087061676576696577",                   // type
            "03732d31",                             // session_id
            "0000000000",                           // user_id anonymous_id url path referrer
            "0e486f6d65202271756f746564220a",       // title
            "00000000",                             // user_agent screen locale timezone
            "00000000",                             // name element selector text
            "010101",                               // x y depth
            "00",                                   // direction
            "01",                                   // load_time_ms
            "0000000000004a9340",                   // lcp
            "01010101010101",                       // fid inp cls ttfb fcp dom_content_loaded load_complete
            "00",                                   // context
            "117b2261223a7b2262223a5b312c325d7d7d"  // properties
        )
    );
}

fn parked() -> ParkedRow<'static> {
    let tenant = TenantId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
    ParkedRow {
        tenant_id: tenant,
        event_id: EventId(Uuid::from_u128(7)),
        timestamp_ms: 1_704_067_200_123,
        received_at_ms: 1_795_000_000_000,
        expires_at: 1_802_779_200,
        plugin: "redact".into(),
        kind: "custom".into(),
        reason: "quarantined".into(),
        raw: "{\"type\":\t\"custom\"}\n".into(),
    }
}

#[test]
fn a_parked_row_survives_the_log_and_the_broker() {
    let mut bytes = Vec::new();
    encode_parked(&parked(), &mut bytes);
    assert_eq!(decode(&bytes).unwrap(), Row::Parked(parked()));
    assert_eq!(expires_at(&bytes).unwrap(), 1_802_779_200);
    assert_eq!(EVENT_COLUMNS[..5], PARKED_COLUMNS[..5], "the expiry of both kinds is in one place");

    let mut line = Vec::new();
    write_parked_json(&parked(), &origin(), &mut line);
    assert!(!line.contains(&b'\n'), "one row must be one line");
    assert_eq!(read_parked_json(&line).unwrap(), (parked(), origin()));
    assert!(read_json(&line).is_err(), "a reader of events must not take it for one");
    let mut event = Vec::new();
    write_json(&sample(), &origin(), &mut event);
    assert!(read_parked_json(&event).is_err());
}

/// As for layout 1.
#[test]
fn layout_2_is_frozen() {
    let mut bytes = Vec::new();
    encode_parked(&parked(), &mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "02",                                       // layout
            "44443333222211118888777766665555",         // tenant_id
            "00000000000000000700000000000000",         // event_id
            "7bf451c28c010000",                         // timestamp
            "005e56eea1010000",                         // received_at
            "403a746b",                                 // expires_at
            "06726564616374",                           // plugin
            "06637573746f6d",                           // type
            "0b71756172616e74696e6564",                 // reason
            "137b2274797065223a0922637573746f6d227d0a", // raw
        )
    );
}

#[test]
fn what_is_not_a_row_is_refused_by_name() {
    let mut bytes = Vec::new();
    encode(&sample(), &mut bytes);
    assert_eq!(decode(&[]), Err(BinaryError::Truncated { column: "layout" }));
    assert_eq!(decode(&[9, 0]), Err(BinaryError::UnknownLayout { layout: 9 }));
    assert_eq!(decode(&bytes[..20]), Err(BinaryError::Truncated { column: "event_id" }));
    assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(BinaryError::Truncated { column: "properties" }));
    // The first byte of the type's name is no text of its own.
    let mut wrong = bytes.clone();
    wrong[54] = 0xff;
    assert_eq!(decode(&wrong), Err(BinaryError::InvalidValue { column: "kind" }));
    bytes.push(0);
    assert_eq!(decode(&bytes), Err(BinaryError::TrailingBytes { count: 1 }));

    let mut line = Vec::new();
    write_json(&sample(), &origin(), &mut line);
    let text = String::from_utf8(line).unwrap();
    assert!(read_json(text.replace("\"title\"", "\"tilte\"").as_bytes()).is_err());
    assert!(read_json(text.replace("\"wal_seq\":42,", "").as_bytes()).is_err());
    assert!(read_json(b"garbage").is_err());
}

#[test]
fn a_session_decides_the_partition_before_a_user() {
    let key = |row: &EventRow<'_>| {
        let mut key = Vec::new();
        let mut encoded = Vec::new();
        encode(row, &mut encoded);
        assert_eq!(write_partition_key(&encoded, &mut key).unwrap(), Table::Events);
        String::from_utf8(key).unwrap()
    };
    let mut row = sample();
    row.session_id = "".into();
    assert_eq!(key(&row), "11112222-3333-4444-5555-666677778888:00000000-0000-0000-0000-000000000007");
    row.anonymous_id = "anon".into();
    assert_eq!(key(&row), "11112222-3333-4444-5555-666677778888:anon");
    row.user_id = "user".into();
    assert_eq!(key(&row), "11112222-3333-4444-5555-666677778888:user");
    row.session_id = "session".into();
    assert_eq!(key(&row), "11112222-3333-4444-5555-666677778888:session");
}

proptest! {
    #[test]
    fn any_row_survives_both_ways(
        texts in prop::collection::vec(".{0,300}", 17),
        numbers in prop::collection::vec(prop::option::of(-1e15_f64..1e15), 12),
        timestamp_ms in 0_i64..4_000_000_000_000,
        expires_at: u32,
        object in prop_oneof![Just(String::new()), Just("{}".to_owned()), Just("{\"k\":\"v\"}".to_owned())],
    ) {
        let mut row = sample();
        let fields = [
            &mut row.kind, &mut row.session_id, &mut row.user_id, &mut row.anonymous_id, &mut row.url, &mut row.path,
            &mut row.referrer, &mut row.title, &mut row.user_agent, &mut row.screen, &mut row.locale,
            &mut row.timezone, &mut row.name, &mut row.element, &mut row.selector, &mut row.text, &mut row.direction,
        ];
        for (field, text) in fields.into_iter().zip(&texts) {
            *field = text.as_str().into();
        }
        let fields = [
            &mut row.x, &mut row.y, &mut row.depth, &mut row.load_time_ms, &mut row.lcp, &mut row.fid, &mut row.inp,
            &mut row.cls, &mut row.ttfb, &mut row.fcp, &mut row.dom_content_loaded, &mut row.load_complete,
        ];
        for (field, number) in fields.into_iter().zip(&numbers) {
            *field = *number;
        }
        row.timestamp_ms = timestamp_ms;
        row.expires_at = expires_at;
        row.context = object.as_str().into();

        let mut bytes = Vec::new();
        encode(&row, &mut bytes);
        prop_assert_eq!(decode(&bytes).unwrap(), Row::Event(row.clone()));
        let mut line = Vec::new();
        write_json(&row, &origin(), &mut line);
        let read = read_json(&line).unwrap();
        prop_assert_eq!(&read, &json::parse_json(&line).unwrap());
        prop_assert_eq!(&read.0, &row);
        let plain = texts.iter().all(|text| !text.chars().any(|c| c < ' ' || matches!(c, '"' | '\\')));
        prop_assert_eq!(json::read_own(&line).is_some(), plain);
        survives_as_columns(&[row.clone(), sample(), row]);
    }
}

/// A line with every column, none of which has an escape.
fn full_line() -> Vec<u8> {
    let mut row = sample();
    (row.title, row.user_id, row.direction, row.x) = ("é".into(), "u".into(), "down".into(), Some(-0.25));
    row.context = r#"{"a":"\u00e9\n","b":[1e3,true,null]}"#.into();
    let mut line = Vec::new();
    write_json(&row, &origin(), &mut line);
    line
}

/// Each byte of a line replaced by, and followed by, each of those that mean something.
#[test]
fn of_a_line_with_a_byte_changed_it_takes_what_the_parser_takes() {
    let line = full_line();
    assert!(json::read_own(&line).is_some());
    let mut taken = 0;
    for place in 0..line.len() {
        for byte in b"\"\\/{}[]:, \n\x01aeEu019.-+tx\xc3\xff" {
            for kept in [place, place + 1] {
                let changed = [&line[..place], &[*byte], &line[kept..]].concat();
                if let Some(read) = json::read_own(&changed) {
                    taken += 1;
                    assert_eq!(read, json::parse_json(&changed).unwrap(), "{}", String::from_utf8_lossy(&changed));
                }
            }
        }
    }
    assert!(taken > 1000, "{taken}");
}

#[test]
fn what_is_written_otherwise_is_left_to_the_parser() {
    let text = String::from_utf8(full_line()).unwrap();
    let otherwise = [
        text.replace(",\"event_id\"", ", \"event_id\""),
        text.replace("\"user_id\":\"u\"", "\"user_id\":\"\\u0075\""),
        text.replace(",\"user_id\":\"u\"", "").replace(",\"wal_id\"", ",\"user_id\":\"u\",\"wal_id\""),
        format!("{text} "),
    ];
    for line in otherwise {
        assert!(json::read_own(line.as_bytes()).is_none(), "{line}");
        assert_eq!(read_json(line.as_bytes()).unwrap(), json::read_own(text.as_bytes()).unwrap(), "{line}");
    }
    for (from, to) in [
        ("\"wal_seq\":42", "\"wal_seq\":042"),
        ("00.123\"", "00.12\"x"),
        ("\"wal_ordinal\":3", "\"wal_ordinal\":4294967296"),
    ] {
        let line = text.replace(from, to);
        assert_ne!(line, text, "{from}");
        assert!(json::read_own(line.as_bytes()).is_none() && read_json(line.as_bytes()).is_err(), "{line}");
    }
}

/// Rows by column are had back as they were, and columns are the same from rows of the log and from rows of an insert.
fn survives_as_columns(rows: &[EventRow<'_>]) {
    let mut filler = Filler::new(Table::Events);
    let (mut body, mut ends) = (Vec::new(), Vec::new());
    for (offset, row) in (0..).zip(rows) {
        let mut encoded = Vec::new();
        encode(row, &mut encoded);
        let position = Position { topic: "wal".into(), partition: 0, offset };
        filler.push(&encoded, &origin(), &position).unwrap();
        write_insert_row(&encoded, &origin(), &position, &mut body).unwrap();
        ends.push(body.len());
    }
    assert_eq!(filler.rows(), rows.len());
    let columns = filler.finish();
    assert_eq!(columns.by_row(usize::MAX), body);
    assert_eq!(columns.by_row(2), body[..ends[1]]);
    let native =
        |columns: &Columns| columns.native().into_iter().flat_map(Piece::into_parts).flatten().collect::<Vec<u8>>();
    assert_eq!(native(&columns), native(&by_column(Table::Events, [&body[..]]).unwrap()));
}

/// Indices of one, two and four bytes, and runs of one row and of many.
#[test]
fn columns_grow_with_what_is_in_them() {
    for keys in [1, 256, 257, 65_536, 65_537] {
        let rows = (0..keys.max(300)).map(|number| EventRow {
            name: Text((number % keys).to_string().into()),
            received_at_ms: i64::from(number / 100),
            expires_at: number,
            ..sample()
        });
        survives_as_columns(&rows.collect::<Vec<_>>());
    }
}

#[test]
fn parked_rows_survive_as_columns() {
    let (mut encoded, mut body) = (Vec::new(), Vec::new());
    encode_parked(&parked(), &mut encoded);
    let position = Position { topic: "wal".into(), partition: 3, offset: 4 };
    let mut filler = Filler::new(Table::Parked);
    filler.push(&encoded, &origin(), &position).unwrap();
    write_insert_row(&encoded, &origin(), &position, &mut body).unwrap();
    assert_eq!(filler.finish().by_row(usize::MAX), body);
    body.push(1);
    assert_eq!(by_column(Table::Released, [&body[..]]).unwrap().by_row(usize::MAX), body);
}

#[test]
fn what_is_not_a_row_is_no_columns() {
    let (mut encoded, mut body) = (Vec::new(), Vec::new());
    encode(&sample(), &mut encoded);
    let position = Position { topic: "wal".into(), partition: 0, offset: 0 };
    write_insert_row(&encoded, &origin(), &position, &mut body).unwrap();
    for cut in 1..body.len() {
        assert!(matches!(by_column(Table::Events, [&body[..cut]]), Err(BinaryError::Truncated { .. })), "{cut}");
    }
    encoded.push(0);
    let error = Filler::new(Table::Events).push(&encoded, &origin(), &position).unwrap_err();
    assert_eq!(error, BinaryError::TrailingBytes { count: 1 });
}

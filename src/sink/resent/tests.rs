#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::{
    clickhouse::{Compression, Settings},
    row::Origin,
    sink::source::{Beside, Block, RangeId},
};

const SPAN_MS: i64 = 10;

fn row(event: u8, log: u8, seq: usize, received_at_ms: i64) -> Row {
    let origin =
        Origin { wal_id: WalId(Uuid::from_u128(log.into())), wal_seq: seq as u64, wal_ordinal: 0, relayed_at_ms: 0 };
    let event = (TenantId(Uuid::from_u128(1)), EventId(Uuid::from_u128(event.into())));
    Row { event, received_at_ms, origin, start: 0, end: 0 }
}

fn stored(row: &Row) -> Stored {
    Stored { event: row.event, place: row.place(), received_at_ms: row.received_at_ms }
}

/// What is decided of `rows` when all of their events are in question.
fn copies(rows: &[Row], there: &[&Row]) -> Vec<u64> {
    let suspects = rows.iter().map(|row| row.event).collect();
    let there: Vec<Stored> = there.iter().map(|row| stored(row)).collect();
    let mut seqs: Vec<u64> = decide(rows, &suspects, &there, SPAN_MS).into_iter().map(|(_, seq, _)| seq).collect();
    seqs.sort_unstable();
    seqs
}

#[test]
fn a_copy_is_of_the_same_event_from_another_place_and_received_within_the_window() {
    let first = row(1, 1, 1, 100);
    assert_eq!(copies(&[row(1, 2, 2, 110), row(2, 2, 3, 100)], &[&first]), [2]);
    assert_eq!(copies(&[row(1, 2, 2, 90)], &[&first]), [2], "received before it and delivered after it");
    assert!(copies(&[row(1, 2, 2, 111)], &[&first]).is_empty());
    assert!(copies(&[row(1, 2, 2, 100)], &[]).is_empty(), "the other is not stored: a dead letter, say");
    // Within one range: against those that are kept, and not against those that are not.
    assert_eq!(copies(&[row(1, 1, 1, 0), row(1, 2, 2, 8), row(1, 3, 3, 16)], &[]), [2]);
}

#[test]
fn a_row_that_is_stored_is_kept_whatever_else_is() {
    let (first, second) = (row(1, 1, 1, 100), row(1, 2, 2, 100));
    assert!(copies(&[row(1, 2, 2, 100)], &[&first, &second]).is_empty());
    assert_eq!(copies(&[row(1, 1, 1, 100), row(1, 2, 2, 100)], &[&second]), [1]);
}

#[test]
fn the_nil_id_is_no_id() {
    let rows = [row(0, 1, 1, 0), row(0, 2, 2, 0), row(1, 1, 3, 0), row(1, 2, 4, 0)];
    assert_eq!(Seen::new(0).examine(&rows, 100, SPAN_MS), [rows[2].event].into());
}

#[test]
fn a_log_alone_is_nothing_to_compare_with() {
    let (a, b) = (WalId(Uuid::from_u128(1)), WalId(Uuid::from_u128(2)));
    let mut logs = Logs::new(std::iter::empty());
    logs.take(&[a], (100, 100), SPAN_MS);
    assert!(!logs.are_several());
    logs.take(&[a, b], (80, 105), SPAN_MS);
    assert!(logs.are_several());
    logs.take(&[a], (125, 170), SPAN_MS);
    assert!(logs.are_several());
    logs.take(&[a], (126, 170), SPAN_MS);
    assert!(!logs.are_several(), "nothing came of the other for long");
    logs.take(&[b], (100, 100), SPAN_MS);
    assert!(logs.are_several(), "and it may come late");
}

#[test]
fn what_was_seen_is_bounded_by_number_and_by_time() {
    let event = |number: u128| (TenantId(Uuid::from_u128(1)), EventId(Uuid::from_u128(number)));
    let mut seen = Seen::new(0);
    for number in 1..=1000 {
        seen.turn(0, 100, SPAN_MS);
        assert!(seen.is_new(event(number)));
        assert!(seen.newer.len() + seen.older.len() <= 100);
    }
    assert!((951..=1000).all(|number| !seen.is_new(event(number))));
    seen.turn(2 * SPAN_MS + 1, 100, SPAN_MS);
    assert!(!seen.is_new(event(1000)), "half of it goes at a time");
    seen.turn(4 * SPAN_MS + 2, 100, SPAN_MS);
    assert!(seen.is_new(event(999)));
}

/// Found by the model below: it was known only as long as the first one was.
#[test]
fn an_event_that_comes_again_is_known_for_as_long_as_one_that_is_new() {
    let mut seen = Seen::new(0);
    let event = row(1, 1, 1, 0).event;
    seen.was(event);
    assert!(!seen.is_new(event));
    seen.turn(2 * SPAN_MS + 1, 100, SPAN_MS);
    assert!(!seen.is_new(event));
}

#[tokio::test]
async fn without_a_window_and_without_a_topic_nothing_is_asked() {
    let settings = Settings {
        url: "http://127.0.0.1:9".into(),
        user: String::new(),
        password: String::new(),
        database: "o".into(),
        ca_file: None,
        compression: Compression::None,
        insert_timeout: Duration::from_secs(1),
    };
    let client = Client::new(&settings).unwrap();
    let range = |beside: Option<Beside>| Range {
        id: RangeId { topic: "t".into(), partition: 0, first: 0, last: 0, mark: None },
        rows: 1,
        body: bytes::Bytes::from_static(b"not looked at").into(),
        parked: Block::default(),
        oldest_received_at_ms: 0,
        first_expiry: 0,
        replayed: false,
        of_earlier_opening: false,
        beside,
        generation: 1,
        revoked: CancellationToken::new(),
    };
    let off = Resent::new(client.clone(), Window { span: Duration::ZERO, ids: 10 });
    assert!(off.look(&range(Some(Beside::default()))).await.unwrap().is_empty());
    let on = Resent::new(client, Window { span: Duration::from_secs(1), ids: 10 });
    assert!(on.look(&range(None)).await.unwrap().is_empty());
    assert!(on.look(&range(Some(Beside::default()))).await.is_err(), "here it is asked");
}

/// A sink of one partition, as the source and ClickHouse see it: what it knows goes with it.
#[derive(Default)]
struct Model {
    logs: Option<Logs>,
    seen: Option<Seen>,
}

impl Model {
    /// [`Resent::look`] with `before` for ClickHouse's rows of earlier offsets, and `there` for all of its rows.
    fn look(&mut self, rows: &[Row], before: &[&Row], there: &[Stored]) -> HashSet<Place> {
        let oldest_ms = rows.iter().map(|row| row.received_at_ms).min().unwrap();
        let since = |row: &&&Row| row.received_at_ms >= oldest_ms - WINDOWS * SPAN_MS;
        let logs = self.logs.get_or_insert_with(|| {
            let mut rows: Vec<&&Row> = before.iter().filter(since).collect();
            // Of each log the newest stays.
            rows.sort_by_key(|row| row.received_at_ms);
            Logs::new(rows.into_iter().map(|row| (row.origin.wal_id, row.received_at_ms)))
        });
        let theirs: Vec<WalId> = rows.iter().map(|row| row.origin.wal_id).collect();
        let newest_ms = rows.iter().map(|row| row.received_at_ms).max().unwrap();
        logs.take(&theirs, (oldest_ms, newest_ms), SPAN_MS);
        if !logs.are_several() {
            self.seen = None;
            return HashSet::new();
        }
        let seen = self.seen.get_or_insert_with(|| {
            let mut seen = Seen::new(oldest_ms);
            before.iter().filter(since).for_each(|row| seen.was(row.event));
            seen
        });
        let suspects = seen.examine(rows, 1 << 20, SPAN_MS);
        decide(rows, &suspects, there, SPAN_MS)
    }
}

proptest! {
    /// Two or three nodes take events, some of them the same ones, each node an event only once within its window, and deliver
    /// them nearly in the order of time. The sink is ended at any step of any range, perhaps with some of its rows stored, and
    /// reads the range again; or it goes on. In the end every event is stored, no two rows of it within the window of each
    /// other, and every row that was left out is counted and has its event stored near it.
    #[test]
    fn whatever_ends_the_sink_each_event_is_stored_once_within_the_window(
        sent in prop::collection::vec((0_u8..6, 1_u8..4, 0_i64..4, 0_i64..6), 1..60),
        sizes in prop::collection::vec(1_usize..8, 1..10),
        ends in prop::collection::vec(prop::option::weighted(0.4, any::<u16>()), 1..40),
    ) {
        let mut rows: Vec<Row> = Vec::new();
        let mut now_ms = 0;
        for (event, log, passed_ms, late_ms) in sent {
            now_ms += passed_ms;
            let row = row(event + 1, log, rows.len(), now_ms - late_ms);
            let known = |earlier: &Row| {
                earlier.event == row.event
                    && earlier.origin.wal_id == row.origin.wal_id
                    && (earlier.received_at_ms - row.received_at_ms).abs() <= SPAN_MS
            };
            if !rows.iter().any(known) {
                rows.push(row);
            }
        }
        let (mut table, mut gone) = (HashSet::new(), HashSet::new());
        let (mut sizes, mut ends) = (sizes.into_iter().cycle(), ends.into_iter());
        let mut sink = Model::default();
        let mut first = 0;
        while first < rows.len() {
            let last = rows.len().min(first + sizes.next().unwrap());
            loop {
                let before: Vec<&Row> = rows[..first].iter().filter(|row| table.contains(&row.place())).collect();
                let there: Vec<Stored> =
                    rows.iter().filter(|row| table.contains(&row.place())).map(stored).collect();
                let copies = sink.look(&rows[first..last], &before, &there);
                let end = ends.next().flatten();
                for (number, row) in rows[first..last].iter().enumerate() {
                    // A part of the rows, or all.
                    if !copies.contains(&row.place()) && end.is_none_or(|some| some >> number & 1 == 1) {
                        table.insert(row.place());
                    }
                }
                if end.is_none_or(|some| some >> 15 == 1) {
                    gone.extend(copies);
                }
                match end {
                    Some(_) => sink = Model::default(),
                    None => break,
                }
            }
            first = last;
        }
        for row in &rows {
            let near: Vec<Place> = rows
                .iter()
                .filter(|other| other.event == row.event)
                .filter(|other| (other.received_at_ms - row.received_at_ms).abs() <= SPAN_MS)
                .map(Row::place)
                .filter(|place| table.contains(place))
                .collect();
            prop_assert!(!near.is_empty(), "lost");
            if table.contains(&row.place()) {
                prop_assert_eq!(near.len(), 1, "stored twice");
                prop_assert!(!gone.contains(&row.place()), "stored, and counted as left out");
            } else {
                prop_assert!(gone.contains(&row.place()), "left out and not counted");
            }
        }
    }
}

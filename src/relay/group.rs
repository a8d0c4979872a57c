//! Records of the log, cut into messages: rows by topic and partition, in their order. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    broker::{MESSAGE_OVERHEAD, partitioner},
    dead_letters::Form,
    error_chain::chain,
    ids::{WalId, WalSeq},
    row::{self, Origin, Row},
};

/// How large one message may be.
#[derive(Clone, Debug)]
pub(super) struct MessageLimits {
    /// Rows.
    pub(super) rows: usize,
    /// Bytes, headers and framing included.
    pub(super) bytes: usize,
}

impl MessageLimits {
    /// Bytes of rows that a message has room for.
    fn payload(&self) -> usize {
        self.bytes.saturating_sub(MESSAGE_OVERHEAD)
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Destination {
    /// This partition of the topic of events.
    Events(u32),
    /// The topic of parked events, which has one partition.
    Parked,
}

/// One message: rows that share a destination, of one record or of several that follow each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) to: Destination,
    /// The opening of the log that wrote the record of its first row.
    pub(super) wal_id: WalId,
    /// The record of its first row.
    pub(super) first: WalSeq,
    /// Ordinal of its first row in that record.
    pub(super) first_ordinal: u32,
    /// The record of its last row.
    pub(super) last: WalSeq,
    pub(super) rows: u32,
    /// Newline-separated JSON.
    pub(super) payload: Vec<u8>,
}

/// A row that no message can carry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) ordinal: u32,
    pub(super) reason: String,
    /// What `bytes` are.
    pub(super) form: Form,
    pub(super) bytes: Vec<u8>,
}

/// Messages in the making: records are added in the order of the log.
#[derive(Debug)]
pub(super) struct Grouping {
    limits: MessageLimits,
    open: BTreeMap<Destination, Message>,
    /// Full ones: those of one destination in their order.
    messages: Vec<Message>,
    key: Vec<u8>,
    line: Vec<u8>,
}

impl Grouping {
    pub(super) fn new(limits: MessageLimits) -> Self {
        Self { limits, open: BTreeMap::new(), messages: Vec::new(), key: Vec::new(), line: Vec::new() }
    }

    /// Adds the encoded `rows` of a record; gives those that no message can carry. `origin` is that of the record; each
    /// row gets its own ordinal. Rows in `too_large` were refused by the broker itself.
    pub(super) fn add<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a [u8]>,
        origin: &Origin,
        partitions: u32,
        too_large: &BTreeSet<u32>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        let most = self.limits.payload();
        for (ordinal, encoded) in (0_u32..).zip(rows) {
            let mut refuse = |reason: String, form: Form, bytes: &[u8]| {
                refused.push(Refused { ordinal, reason, form, bytes: bytes.to_vec() });
            };
            let row = match row::decode(encoded) {
                Ok(row) => row,
                Err(error) => {
                    refuse(chain(&error), Form::Row, encoded);
                    continue;
                }
            };
            let origin = Origin { wal_ordinal: ordinal, ..origin.clone() };
            let Self { key, line, .. } = self;
            line.clear();
            let (to, form) = match &row {
                Row::Event(event) => {
                    row::write_json(event, &origin, line);
                    key.clear();
                    row::write_partition_key(event, key);
                    (Destination::Events(partitioner::partition(key, partitions)), Form::Line)
                }
                Row::Parked(parked) => {
                    row::write_parked_json(parked, &origin, line);
                    (Destination::Parked, Form::ParkedLine)
                }
            };
            if line.len() > most {
                refuse(format!("the row takes {} bytes, a message has room for {most}", line.len()), form, line);
            } else if too_large.contains(&ordinal) {
                refuse(format!("the broker refuses a message of {} bytes as too large", line.len()), form, line);
            } else {
                self.put(to, &origin);
            }
        }
        refused
    }

    /// Puts the line into the open message of its destination, or into a new one.
    fn put(&mut self, to: Destination, origin: &Origin) {
        let seq = WalSeq(origin.wal_seq);
        let most = self.limits.payload();
        if let Some(message) = self.open.get_mut(&to) {
            let full = usize::try_from(message.rows).is_ok_and(|rows| rows >= self.limits.rows)
                || message.payload.len() + 1 + self.line.len() > most;
            if !full {
                message.payload.push(b'\n');
                message.payload.extend_from_slice(&self.line);
                message.rows += 1;
                message.last = seq;
                return;
            }
        }
        let Origin { wal_id, wal_ordinal: first_ordinal, .. } = *origin;
        let payload = self.line.clone();
        let message = Message { to, wal_id, first: seq, first_ordinal, last: seq, rows: 1, payload };
        self.messages.extend(self.open.insert(to, message));
    }

    /// The messages in the order in which they must be sent.
    pub(super) fn finish(mut self) -> Vec<Message> {
        self.messages.extend(self.open.into_values());
        self.messages
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use uuid::Uuid;

    use super::*;
    use crate::{
        ids::{EventId, TenantId, WalId},
        row::{EventRow, ParkedRow},
    };

    fn rows(sessions: &[&str], text: &str) -> Vec<Vec<u8>> {
        let encode = |(index, session): (u128, &&str)| {
            let mut row = EventRow::new(TenantId(Uuid::from_u128(1)), EventId(Uuid::from_u128(index)), "custom");
            row.session_id = (*session).into();
            row.text = text.into();
            let mut bytes = Vec::new();
            row::encode(&row, &mut bytes);
            bytes
        };
        (0..).zip(sessions).map(encode).collect()
    }

    fn origin(wal_seq: u64) -> Origin {
        Origin { wal_id: WalId(Uuid::from_u128(9)), wal_seq, wal_ordinal: 0, relayed_at_ms: 7 }
    }

    /// The messages of one record, and what of it is refused.
    fn group<'a>(
        rows: impl IntoIterator<Item = &'a [u8]>,
        partitions: u32,
        limits: &MessageLimits,
        too_large: &BTreeSet<u32>,
    ) -> (Vec<Message>, Vec<Refused>) {
        let mut grouping = Grouping::new(limits.clone());
        let refused = grouping.add(rows, &origin(42), partitions, too_large);
        (grouping.finish(), refused)
    }

    /// (destination, first ordinal, ordinals of the rows as the payload has them)
    fn shape(messages: &[Message]) -> Vec<(Destination, u32, Vec<u32>)> {
        let origin = |to: Destination, line: &[u8]| match to {
            Destination::Events(_) => row::read_json(line).unwrap().1,
            Destination::Parked => row::read_parked_json(line).unwrap().1,
        };
        let ordinals = |message: &Message| -> Vec<u32> {
            let lines = message.payload.split(|byte| *byte == b'\n');
            lines.map(|line| origin(message.to, line).wal_ordinal).collect()
        };
        messages
            .iter()
            .map(|message| {
                let ordinals = ordinals(message);
                assert_eq!(ordinals.len(), message.rows as usize);
                (message.to, message.first_ordinal, ordinals)
            })
            .collect()
    }

    fn partition_of(session: &str, partitions: u32) -> u32 {
        partitioner::partition(format!("{}:{session}", Uuid::from_u128(1)).as_bytes(), partitions)
    }

    #[test]
    fn rows_of_a_partition_share_a_message_in_their_order() {
        let sessions: Vec<String> = (0..20).map(|n| format!("s-{}", n % 7)).collect();
        let sessions: Vec<&str> = sessions.iter().map(String::as_str).collect();
        let encoded = rows(&sessions, "");
        let limits = MessageLimits { rows: 1000, bytes: 1_000_000 };
        let (messages, refused) = group(encoded.iter().map(Vec::as_slice), 5, &limits, &BTreeSet::new());
        assert!(refused.is_empty());
        let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (ordinal, session) in (0..).zip(&sessions) {
            expected.entry(partition_of(session, 5)).or_default().push(ordinal);
        }
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(partition, ordinals)| (Destination::Events(partition), ordinals[0], ordinals))
            .collect();
        assert_eq!(shape(&messages), expected);
    }

    #[test]
    fn records_that_follow_each_other_share_messages() {
        let encoded = rows(&["a", "b", "a"], "");
        let encoded: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
        let mut grouping = Grouping::new(MessageLimits { rows: 4, bytes: 1_000_000 });
        for seq in [42, 43, 47] {
            assert!(grouping.add(encoded.iter().copied(), &origin(seq), 1, &BTreeSet::new()).is_empty());
        }
        let places = |message: &Message| -> Vec<(u64, u32)> {
            let lines = message.payload.split(|byte| *byte == b'\n');
            lines.map(|line| row::read_json(line).unwrap().1).map(|from| (from.wal_seq, from.wal_ordinal)).collect()
        };
        let messages = grouping.finish();
        let found: Vec<_> = messages
            .iter()
            .map(|message| (message.first.0, message.first_ordinal, message.last.0, message.rows, places(message)))
            .collect();
        let expected = [
            (42, 0, 43, 4, vec![(42, 0), (42, 1), (42, 2), (43, 0)]),
            (43, 1, 47, 4, vec![(43, 1), (43, 2), (47, 0), (47, 1)]),
            (47, 2, 47, 1, vec![(47, 2)]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_message_keeps_to_rows_and_bytes() {
        let encoded = rows(&["s"; 7], "");
        let encoded: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
        let none = BTreeSet::new();
        let by = |rows, bytes| {
            let (messages, _) = group(encoded.iter().copied(), 3, &MessageLimits { rows, bytes }, &none);
            shape(&messages).into_iter().map(|(_, first, ordinals)| (first, ordinals.len())).collect::<Vec<_>>()
        };
        assert_eq!(by(3, 1_000_000), [(0, 3), (3, 3), (6, 1)]);
        assert_eq!(by(1, 1_000_000), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
        let limits = MessageLimits { rows: 9, bytes: 9999 };
        let one = group(encoded.iter().take(1).copied(), 3, &limits, &none).0[0].payload.len();
        assert_eq!(by(1000, MESSAGE_OVERHEAD + 2 * one + 1), [(0, 2), (2, 2), (4, 2), (6, 1)]);
        assert_eq!(by(1000, MESSAGE_OVERHEAD + 2 * one), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
    }

    #[test]
    fn what_no_message_can_carry_is_refused_and_the_rest_goes() {
        let mut encoded = rows(&["a", "b", "c"], "");
        encoded.extend(rows(&["d"], &"x".repeat(2000)));
        encoded.push(vec![99, 1, 2]);
        let limits = MessageLimits { rows: 10, bytes: 1500 };
        let (messages, refused) = group(encoded.iter().map(Vec::as_slice), 1, &limits, &BTreeSet::from([1]));
        assert_eq!(refused.iter().map(|refused| refused.ordinal).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(refused[0].reason.contains("the broker refuses"), "{}", refused[0].reason);
        assert!(refused[2].reason.contains("layout 99"), "{}", refused[2].reason);
        assert_eq!(shape(&messages), [(Destination::Events(0), 0, vec![0, 2])]);
    }

    #[test]
    fn parked_rows_go_apart_and_the_events_go_as_without_them() {
        let encoded = rows(&["a", "b", "a", "c"], "");
        let parked = ParkedRow {
            tenant_id: TenantId(Uuid::from_u128(1)),
            event_id: EventId(Uuid::from_u128(9)),
            timestamp_ms: 0,
            received_at_ms: 0,
            expires_at: 0,
            plugin: "redact".into(),
            kind: "custom".into(),
            reason: "quarantined".into(),
            raw: "{}".into(),
        };
        let mut bytes = Vec::new();
        row::encode_parked(&parked, &mut bytes);
        let limits = MessageLimits { rows: 2, bytes: 100_000 };
        let (first, rest) = encoded.split_at(2);
        let mixed: Vec<&[u8]> = [&bytes[..], &first[0], &first[1], &bytes, &bytes, &rest[0], &rest[1]].to_vec();
        let (messages, refused) = group(mixed, 1, &limits, &BTreeSet::new());
        assert!(refused.is_empty());
        let (to_events, to_parked) = (Destination::Events(0), Destination::Parked);
        let expected = [
            (to_parked, 0, vec![0, 3]),
            (to_events, 1, vec![1, 2]),
            (to_events, 5, vec![5, 6]),
            (to_parked, 4, vec![4]),
        ];
        let mut shape = shape(&messages);
        shape.sort();
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(shape, expected);
        let large = MessageLimits { rows: 2, bytes: MESSAGE_OVERHEAD + 10 };
        assert_eq!(group([&bytes[..]], 1, &large, &BTreeSet::new()).1.len(), 1);
    }
}

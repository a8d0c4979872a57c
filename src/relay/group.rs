//! Records of the log, cut into messages: rows by topic and partition, in their order. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    broker::{Format, MESSAGE_OVERHEAD, message, partitioner},
    dead_letters::Form,
    error_chain::chain,
    ids::{WalId, WalSeq},
    row::{self, BinaryError, Origin, Row, Table},
};

/// How messages are written, and how large one may be.
#[derive(Clone, Debug)]
pub(super) struct MessageLimits {
    /// How rows of events are written.
    pub(super) format: Format,
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
    /// Rows, as [`message`] has them.
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
    /// Payloads of messages that were sent, for new ones: memory that comes and goes with every message costs page faults.
    spare: Vec<Vec<u8>>,
    key: Vec<u8>,
    line: Vec<u8>,
}

/// A row on its way into a message.
#[derive(Clone, Copy)]
enum Written<'a> {
    /// As the log keeps it.
    Row(&'a [u8]),
    /// As JSON, in `Grouping::line`.
    Line(Form),
}

impl Grouping {
    pub(super) fn new(limits: MessageLimits, spare: Vec<Vec<u8>>) -> Self {
        Self { limits, open: BTreeMap::new(), messages: Vec::new(), spare, key: Vec::new(), line: Vec::new() }
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
            let origin = Origin { wal_ordinal: ordinal, ..origin.clone() };
            let mut refuse = |reason: String, form: Form, bytes: &[u8]| {
                refused.push(Refused { ordinal, reason, form, bytes: bytes.to_vec() });
            };
            let (to, written) = match self.write(encoded, &origin, partitions) {
                Ok(written) => written,
                Err(error) => {
                    refuse(chain(&error), Form::Row, encoded);
                    continue;
                }
            };
            let (form, bytes) = match written {
                Written::Row(encoded) => (Form::TopicRow, message::row_len(encoded)),
                Written::Line(form) => (form, self.line.len()),
            };
            let reason = if bytes > most {
                format!("the row takes {bytes} bytes, a message has room for {most}")
            } else if too_large.contains(&ordinal) {
                format!("the broker refuses a message of {bytes} bytes as too large")
            } else {
                self.put(to, written, bytes, &origin);
                continue;
            };
            if let Written::Row(encoded) = written {
                self.line.clear();
                row::write_carried(encoded, &origin, &mut self.line);
            }
            refuse(reason, form, &self.line);
        }
        refused
    }

    /// Where a row goes, and as what.
    fn write<'a>(
        &mut self,
        encoded: &'a [u8],
        origin: &Origin,
        partitions: u32,
    ) -> Result<(Destination, Written<'a>), BinaryError> {
        let Self { limits, key, line, .. } = self;
        key.clear();
        line.clear();
        let table = row::write_partition_key(encoded, key)?;
        if limits.format == Format::Binary && table == Table::Events {
            return Ok((Destination::Events(partitioner::partition(key, partitions)), Written::Row(encoded)));
        }
        Ok(match row::decode(encoded)? {
            Row::Event(event) => {
                row::write_json(&event, origin, line);
                (Destination::Events(partitioner::partition(key, partitions)), Written::Line(Form::Line))
            }
            Row::Parked(parked) => {
                row::write_parked_json(&parked, origin, line);
                (Destination::Parked, Written::Line(Form::ParkedLine))
            }
        })
    }

    /// Puts a row, which takes `bytes`, into the open message of its destination, or into a new one.
    fn put(&mut self, to: Destination, written: Written<'_>, bytes: usize, origin: &Origin) {
        let seq = WalSeq(origin.wal_seq);
        let most = self.limits.payload();
        let full = self.open.get(&to).is_none_or(|message| {
            usize::try_from(message.rows).is_ok_and(|rows| rows >= self.limits.rows)
                || message.payload.len() + 1 + bytes > most
        });
        if full {
            let Origin { wal_id, wal_ordinal: first_ordinal, .. } = *origin;
            let mut payload = self.spare.pop().unwrap_or_default();
            payload.clear();
            let message = Message { to, wal_id, first: seq, first_ordinal, last: seq, rows: 0, payload };
            self.messages.extend(self.open.insert(to, message));
        }
        if let Some(message) = self.open.get_mut(&to) {
            match written {
                Written::Row(encoded) => message::append_row(&mut message.payload, encoded, origin),
                Written::Line(_) => message::append_line(&mut message.payload, &self.line),
            }
            message.rows += 1;
            message.last = seq;
        }
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
        broker::{Carries, message::Entry},
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
        let mut grouping = Grouping::new(limits.clone(), vec![b"of an earlier message".to_vec()]);
        let refused = grouping.add(rows, &origin(42), partitions, too_large);
        (grouping.finish(), refused)
    }

    const FORMATS: [Format; 2] = [Format::Binary, Format::Json];

    fn origins(message: &Message) -> Vec<Origin> {
        let carries = match message.to {
            Destination::Events(_) => Carries::Events,
            Destination::Parked => Carries::Parked,
        };
        message::entries(&message.payload).map(|(_, entry)| entry.decode(carries).unwrap().1).collect()
    }

    /// (destination, first ordinal, ordinals of the rows as the payload has them)
    fn shape(messages: &[Message]) -> Vec<(Destination, u32, Vec<u32>)> {
        messages
            .iter()
            .map(|message| {
                let ordinals: Vec<_> = origins(message).iter().map(|origin| origin.wal_ordinal).collect();
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
        let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (ordinal, session) in (0..).zip(&sessions) {
            expected.entry(partition_of(session, 5)).or_default().push(ordinal);
        }
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(partition, ordinals)| (Destination::Events(partition), ordinals[0], ordinals))
            .collect();
        for format in FORMATS {
            let limits = MessageLimits { format, rows: 1000, bytes: 1_000_000 };
            let (messages, refused) = group(encoded.iter().map(Vec::as_slice), 5, &limits, &BTreeSet::new());
            assert!(refused.is_empty());
            assert_eq!(shape(&messages), expected, "{format:?}");
        }
    }

    #[test]
    fn records_that_follow_each_other_share_messages() {
        let encoded = rows(&["a", "b", "a"], "");
        let encoded: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
        let expected = [
            (42, 0, 43, 4, vec![(42, 0), (42, 1), (42, 2), (43, 0)]),
            (43, 1, 47, 4, vec![(43, 1), (43, 2), (47, 0), (47, 1)]),
            (47, 2, 47, 1, vec![(47, 2)]),
        ];
        for format in FORMATS {
            let mut grouping = Grouping::new(MessageLimits { format, rows: 4, bytes: 1_000_000 }, Vec::new());
            for seq in [42, 43, 47] {
                assert!(grouping.add(encoded.iter().copied(), &origin(seq), 1, &BTreeSet::new()).is_empty());
            }
            let found: Vec<_> = grouping
                .finish()
                .iter()
                .map(|message| {
                    let places = origins(message).iter().map(|from| (from.wal_seq, from.wal_ordinal)).collect();
                    (message.first.0, message.first_ordinal, message.last.0, message.rows, places)
                })
                .collect();
            assert_eq!(found, expected, "{format:?}");
        }
    }

    #[test]
    fn a_message_keeps_to_rows_and_bytes() {
        let encoded = rows(&["s"; 7], "");
        let encoded: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
        let none = BTreeSet::new();
        for (format, first, others) in [(Format::Binary, 1, 1), (Format::Json, 0, 1)] {
            let by = |rows, bytes| {
                let (messages, _) = group(encoded.iter().copied(), 3, &MessageLimits { format, rows, bytes }, &none);
                shape(&messages).into_iter().map(|(_, first, ordinals)| (first, ordinals.len())).collect::<Vec<_>>()
            };
            assert_eq!(by(3, 1_000_000), [(0, 3), (3, 3), (6, 1)]);
            assert_eq!(by(1, 1_000_000), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
            let limits = MessageLimits { format, rows: 9, bytes: 9999 };
            let one = group(encoded.iter().take(1).copied(), 3, &limits, &none).0[0].payload.len() - first;
            let two = MESSAGE_OVERHEAD + first + one + others + one;
            assert_eq!(by(1000, two), [(0, 2), (2, 2), (4, 2), (6, 1)], "{format:?}");
            let less = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)];
            assert_eq!(by(1000, two - 1), less, "{format:?}");
        }
    }

    #[test]
    fn what_no_message_can_carry_is_refused_and_the_rest_goes() {
        let mut encoded = rows(&["a", "b", "c"], "");
        encoded.extend(rows(&["d"], &"x".repeat(2000)));
        encoded.push(vec![99, 1, 2]);
        for (format, form) in [(Format::Binary, Form::TopicRow), (Format::Json, Form::Line)] {
            let limits = MessageLimits { format, rows: 10, bytes: 1500 };
            let (messages, refused) = group(encoded.iter().map(Vec::as_slice), 1, &limits, &BTreeSet::from([1]));
            let ordinals: Vec<_> = refused.iter().map(|refused| (refused.ordinal, refused.form)).collect();
            assert_eq!(ordinals, [(1, form), (3, form), (4, Form::Row)]);
            assert!(refused[0].reason.contains("the broker refuses"), "{}", refused[0].reason);
            assert!(refused[1].reason.contains("a message has room for"), "{}", refused[1].reason);
            assert!(refused[2].reason.contains("layout 99"), "{}", refused[2].reason);
            let about = refused[1].bytes.as_slice();
            let entry = if form == Form::Line { Entry::Line(about) } else { Entry::Row(about) };
            let (row, origin) = entry.decode(Carries::Events).unwrap();
            assert_eq!((row.event_id().0, origin.wal_ordinal), (Uuid::from_u128(0), 3), "the letter is the row");
            assert_eq!(shape(&messages), [(Destination::Events(0), 0, vec![0, 2])]);
        }
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
        let (first, rest) = encoded.split_at(2);
        let mixed: Vec<&[u8]> = [&bytes[..], &first[0], &first[1], &bytes, &bytes, &rest[0], &rest[1]].to_vec();
        let (to_events, to_parked) = (Destination::Events(0), Destination::Parked);
        let expected = [
            (to_parked, 0, vec![0, 3]),
            (to_events, 1, vec![1, 2]),
            (to_events, 5, vec![5, 6]),
            (to_parked, 4, vec![4]),
        ];
        let mut expected = expected.to_vec();
        expected.sort();
        for format in FORMATS {
            let limits = MessageLimits { format, rows: 2, bytes: 100_000 };
            let (messages, refused) = group(mixed.iter().copied(), 1, &limits, &BTreeSet::new());
            assert!(refused.is_empty());
            let mut shape = shape(&messages);
            shape.sort();
            assert_eq!(shape, expected, "{format:?}");
            let large = MessageLimits { format, rows: 2, bytes: MESSAGE_OVERHEAD + 10 };
            assert_eq!(group([&bytes[..]], 1, &large, &BTreeSet::new()).1.len(), 1);
        }
    }
}

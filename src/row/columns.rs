//! The columns of `events` and of `parked_events`, once: from these lists come the structs, their encodings and the column
//! lists of the inserts.

use super::{
    binary::{BinaryError, ColumnValue, Json, Text},
    native::Layout,
};
use crate::ids::{EventId, TenantId, WalId};

macro_rules! column_group {
    (
        $(#[$doc:meta])*
        $list:ident, $group:ident $(<$life:lifetime>)? {
            $($(#[$field_doc:meta])* $field:ident ($column:literal): $type:ty,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $group $(<$life>)? {
            $($(#[$field_doc])* pub $field: $type,)+
        }

        /// Names of the group's columns, in the order in which a row is encoded.
        pub const $list: &[&str] = &[$($column),+];

        impl $(<$life>)? $group $(<$life>)? {
            /// How ClickHouse lays out the columns, in the same order.
            pub(super) const LAYOUTS: &'static [Layout] = &[$(<$type as ColumnValue<'_>>::LAYOUT),+];

            /// Appends the columns in `RowBinary`.
            pub fn write_binary(&self, out: &mut Vec<u8>) {
                $(self.$field.write_binary(out);)+
            }
        }
    };
}

column_group! {
    /// What the sender said and what acceptance added. Times are Unix milliseconds unless the name says otherwise.
    EVENT_COLUMNS, EventRow<'a> {
        /// Owner.
        tenant_id ("tenant_id"): TenantId,
        /// The sender's id, or one made at acceptance.
        event_id ("event_id"): EventId,
        /// When it happened, by the sender's clock.
        timestamp_ms ("timestamp"): i64,
        /// When this engine accepted it.
        received_at_ms ("received_at"): i64,
        /// Unix seconds from which the row may be dropped, rounded up to its retention bucket.
        expires_at ("expires_at"): u32,
        /// The event type.
        kind ("type"): Text<'a>,
        /// Session.
        session_id ("session_id"): Text<'a>,
        /// Known user.
        user_id ("user_id"): Text<'a>,
        /// Unknown user.
        anonymous_id ("anonymous_id"): Text<'a>,
        /// Page or screen address.
        url ("url"): Text<'a>,
        /// Path of the address.
        path ("path"): Text<'a>,
        /// Where the visitor came from.
        referrer ("referrer"): Text<'a>,
        /// Page title (pageview).
        title ("title"): Text<'a>,
        /// Browser or SDK.
        user_agent ("user_agent"): Text<'a>,
        /// Screen size as sent, `1920x1080`.
        screen ("screen"): Text<'a>,
        /// BCP 47 language tag.
        locale ("locale"): Text<'a>,
        /// IANA time zone.
        timezone ("timezone"): Text<'a>,
        /// Event name (custom).
        name ("name"): Text<'a>,
        /// Element (click).
        element ("element"): Text<'a>,
        /// CSS selector (click).
        selector ("selector"): Text<'a>,
        /// Text of the element (click).
        text ("text"): Text<'a>,
        /// Horizontal position in CSS pixels (click).
        x ("x"): Option<f64>,
        /// Vertical position in CSS pixels (click).
        y ("y"): Option<f64>,
        /// Depth in percent, 0 to 100 (scroll).
        depth ("depth"): Option<f64>,
        /// Direction (scroll).
        direction ("direction"): Text<'a>,
        /// Load time in milliseconds (pageview).
        load_time_ms ("load_time_ms"): Option<f64>,
        /// Largest contentful paint, ms (performance).
        lcp ("lcp"): Option<f64>,
        /// First input delay, ms (performance).
        fid ("fid"): Option<f64>,
        /// Interaction to next paint, ms (performance).
        inp ("inp"): Option<f64>,
        /// Cumulative layout shift, no unit (performance).
        cls ("cls"): Option<f64>,
        /// Time to first byte, ms (performance).
        ttfb ("ttfb"): Option<f64>,
        /// First contentful paint, ms (performance).
        fcp ("fcp"): Option<f64>,
        /// `DOMContentLoaded`, ms (performance).
        dom_content_loaded ("dom_content_loaded"): Option<f64>,
        /// `load`, ms (performance).
        load_complete ("load_complete"): Option<f64>,
        /// The sender's context object.
        context ("context"): Json<'a>,
        /// The sender's properties, and every field that has no column of its own.
        properties ("properties"): Json<'a>,
    }
}

column_group! {
    /// An event that could not be run through a plugin, as it was sent. The first five columns are those of an event, so
    /// that both kinds of rows have their expiry in the same place.
    PARKED_COLUMNS, ParkedRow<'a> {
        /// Owner.
        tenant_id ("tenant_id"): TenantId,
        /// The sender's id, or one made at acceptance.
        event_id ("event_id"): EventId,
        /// When it happened, by the sender's clock.
        timestamp_ms ("timestamp"): i64,
        /// When this engine accepted it.
        received_at_ms ("received_at"): i64,
        /// Unix seconds from which the row may be dropped: that of the event that it will become.
        expires_at ("expires_at"): u32,
        /// The plugin that could not be used.
        plugin ("plugin"): Text<'a>,
        /// The event type.
        kind ("type"): Text<'a>,
        /// Why the plugin could not be used, in words.
        reason ("reason"): Text<'a>,
        /// The event's JSON, byte for byte as it was sent.
        raw ("raw"): Text<'a>,
    }
}

column_group! {
    /// Where a row entered: the record of a write-ahead log, and its place in it. Identifies the row for ever.
    ORIGIN_COLUMNS, Origin {
        /// The opening of the log under which the record was written.
        wal_id ("wal_id"): WalId,
        /// The record.
        wal_seq ("wal_seq"): u64,
        /// The row's place in the record, from 0.
        wal_ordinal ("wal_ordinal"): u32,
        /// When the relay produced it, or the sink read it from the log (Unix milliseconds).
        relayed_at_ms ("relayed_at"): i64,
    }
}

column_group! {
    /// Where the sink read a row: the range that it inserts is named by these.
    POSITION_COLUMNS, Position<'a> {
        /// Topic, or `wal` on a node without brokers.
        topic ("topic"): Text<'a>,
        /// Partition; 0 for the log.
        partition ("partition"): u32,
        /// Offset in the partition; the sequence number for the log.
        offset ("offset"): u64,
    }
}

macro_rules! read_columns {
    ($input:ident, $group:ident { $($field:ident)+ }) => {
        Ok($group { $($field: ColumnValue::read_binary($input, stringify!($field))?,)+ })
    };
}

impl<'a> ParkedRow<'a> {
    /// Reads the columns back from `RowBinary`, moving `input` past them.
    ///
    /// # Errors
    /// [`BinaryError`] naming the first column that is not there or not valid.
    pub fn read_binary(input: &mut &'a [u8]) -> Result<Self, BinaryError> {
        read_columns!(input, ParkedRow {
            tenant_id event_id timestamp_ms received_at_ms expires_at plugin kind reason raw
        })
    }
}

/// Where a row entered: log, record, place in it.
pub type Place = (WalId, u64, u32);

impl Origin {
    /// Where the row entered, whenever it was read.
    pub const fn place(&self) -> Place {
        (self.wal_id, self.wal_seq, self.wal_ordinal)
    }

    /// Reads the columns back from `RowBinary`, moving `input` past them.
    ///
    /// # Errors
    /// [`BinaryError`] naming the first column that is not there or not valid.
    pub fn read_binary(input: &mut &[u8]) -> Result<Self, BinaryError> {
        read_columns!(input, Origin { wal_id wal_seq wal_ordinal relayed_at_ms })
    }
}

impl<'a> Position<'a> {
    /// Reads the columns back from `RowBinary`, moving `input` past them.
    ///
    /// # Errors
    /// [`BinaryError`] naming the first column that is not there or not valid.
    pub fn read_binary(input: &mut &'a [u8]) -> Result<Self, BinaryError> {
        read_columns!(input, Position { topic partition offset })
    }
}

impl<'a> EventRow<'a> {
    /// Reads the columns back from `RowBinary`, moving `input` past them.
    ///
    /// # Errors
    /// [`BinaryError`] naming the first column that is not there or not valid.
    pub fn read_binary(input: &mut &'a [u8]) -> Result<Self, BinaryError> {
        read_columns!(input, EventRow {
            tenant_id event_id timestamp_ms received_at_ms expires_at kind session_id user_id anonymous_id url path
            referrer title user_agent screen locale timezone name element selector text x y depth direction
            load_time_ms lcp fid inp cls ttfb fcp dom_content_loaded load_complete context properties
        })
    }

    /// An event of `kind` with nothing but its identity, for callers that fill in the rest.
    pub fn new(tenant_id: TenantId, event_id: EventId, kind: impl Into<Text<'a>>) -> Self {
        Self {
            tenant_id,
            event_id,
            timestamp_ms: 0,
            received_at_ms: 0,
            expires_at: super::EXPIRES_NEVER,
            kind: kind.into(),
            session_id: Text::default(),
            user_id: Text::default(),
            anonymous_id: Text::default(),
            url: Text::default(),
            path: Text::default(),
            referrer: Text::default(),
            title: Text::default(),
            user_agent: Text::default(),
            screen: Text::default(),
            locale: Text::default(),
            timezone: Text::default(),
            name: Text::default(),
            element: Text::default(),
            selector: Text::default(),
            text: Text::default(),
            x: None,
            y: None,
            depth: None,
            direction: Text::default(),
            load_time_ms: None,
            lcp: None,
            fid: None,
            inp: None,
            cls: None,
            ttfb: None,
            fcp: None,
            dom_content_loaded: None,
            load_complete: None,
            context: Json::default(),
            properties: Json::default(),
        }
    }
}
